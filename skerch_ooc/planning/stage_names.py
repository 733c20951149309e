"""The stages of a run by name, such as ``measure`` or ``merge.2``, and their unfinished tasks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from skerch_ooc.base.errors import UsageError

STAGES = ("measure", "merge", "solve", "vectors", "assess")
"""The stages in the order in which each round has them; ``assess`` ends the last round."""


_NAME = re.compile(rf"({'|'.join(STAGES[:-1])})(?:\.([1-9]\d{{0,3}}))?|{STAGES[-1]}")


@dataclass(frozen=True)
class RoundStage:
    """A stage of one round.

    Attributes:
        name: One of :data:`STAGES`.
        round: Number of the round; by default, and for ``assess`` always, the first.
    """

    name: str
    round: int = 1

    @classmethod
    def parse(cls, text: str, rounds: int) -> RoundStage:
        """Reads the name of a stage, such as ``"measure"`` or ``"measure.2"``.

        Args:
            text: The name.
            rounds: How many rounds the run has.

        Raises:
            UsageError: If there is no such stage.
        """
        found = _NAME.fullmatch(text)
        if found is None:
            raise UsageError(
                f"stage {text!r}: must be one of {', '.join(STAGES)}; of a later round, such as "
                "measure.2, all but assess"
            )
        name, number = (found[1] or text), int(found[2] or 1)
        if number > rounds:
            raise UsageError(f"stage {text!r}: must be of a round from 1 to {rounds}")
        return cls(name, number)

    def __str__(self) -> str:
        return self.name if self.round == 1 else f"{self.name}.{self.round}"


@dataclass(frozen=True)
class Left:
    """The tasks of a stage that are not done.

    Attributes:
        stage: The stage.
        tasks: The numbers of these tasks.
    """

    stage: RoundStage
    tasks: Sequence[int]
