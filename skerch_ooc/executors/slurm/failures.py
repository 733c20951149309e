"""Which of the failures of a submission is shown as the cause, and what it says of itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from skerch_ooc.base.errors import IncompleteError
from skerch_ooc.executors.slurm.logs import Log


@dataclass(frozen=True)
class Failure:
    """An element that failed, or was killed.

    Attributes:
        position: That of its job in the submission.
        log: Its log.
    """

    position: int
    log: Log

    @property
    def follows_another(self) -> bool:
        """Whether the element only found that something was missing."""
        return self.log.exit_code == IncompleteError.exit_code

    @property
    def reason(self) -> str:
        """Why the element failed, as far as its log says."""
        code, said = self.log.exit_code, self.log.last_line
        if code is None:
            return f"killed or cancelled; it said{f': {said}' if said else ' nothing'}"
        return said or f"it said nothing, and ended with {code}"


def cause_of(failures: Iterable[Failure]) -> Failure | None:
    """The failure to look at, which is the last one as far as logs tell.

    Of several stages the first counts, as what failed there is why later ones do; and elements that
    only found something missing come after all others.
    """
    return max(
        failures,
        key=lambda one: (not one.follows_another, -one.position, one.log.modified),
        default=None,
    )
