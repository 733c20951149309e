"""Origin: with which operator a shard was measured, by a few numbers of the fingerprint.

Runs of one spec have one identity, whatever weights or data their factories found. So shards that
are exchanged as a whole between them, or left over from an operator whose fingerprint was removed,
agree with each other and with the plan; what they note here they do not share.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from skerch_ooc.base.arrays import tolerance
from skerch_ooc.base.errors import CorruptError, DriftError
from skerch_ooc.base.figures import short
from skerch_ooc.store.rundir import Run
from skerch_ooc.store.sealed import SealedFile

ORIGIN = "operator"
"""The key of these numbers in the provenance of a shard."""


def origin_of(fingerprint: Mapping[str, Any] | None) -> list[float]:
    """Returns the numbers of a fingerprint that a shard notes; none of none."""
    if fingerprint is None:
        return []
    first, second = fingerprint["functionals"][:2]
    return [fingerprint["norm"], *first, *second]


@dataclass(frozen=True)
class Origins:
    """Compares shards of a run with its fingerprints, each of which is read once."""

    run: Run
    _known: dict[int, list[float]] = field(default_factory=dict)

    def require(self, file: SealedFile, part: int) -> None:
        """Refuses a shard of another operator. What notes nothing, or was not noted, passes.

        Args:
            file: The shard, opened.
            part: The number of its part.

        Raises:
            DriftError: If it is of another operator; says how it is made anew.
        """
        noted, own = _numbers(file.provenance.get(ORIGIN)), self._own(part)
        scale = max(abs(each[0]) for each in (own, noted)) if noted and own else 0.0
        apart = max((abs(a - b) for a, b in zip(own, noted, strict=False)), default=0.0)
        if apart > _ALLOWED * tolerance(self.run.plan.identity.dtype) * scale:
            raise DriftError(
                f"{file.path} was measured with another operator than that of "
                f"{self.run.fingerprint_path(part)}: what is noted of both differs by "
                f"{short(apart / scale)} of the norm{file.advice}"
            )

    def _own(self, part: int) -> list[float]:
        if part not in self._known:
            self._known[part] = []
            # Verifying names a damaged one, which no other stage needs.
            with contextlib.suppress(CorruptError):
                self._known[part] = origin_of(self.run.fingerprint(part))
        return self._known[part]

    def each(self, files: Iterable[SealedFile], parts: Iterable[int]) -> Iterator[SealedFile]:
        """Yields shards, and refuses those of a part if all of them are of another operator.

        If some are, what they hold does not fit that of the others, and merging names them.

        Raises:
            DriftError: At the end.
        """
        strange, own = dict[int, DriftError](), set[int]()
        for file, part in zip(files, parts, strict=True):
            if part not in own:
                try:
                    self.require(file, part)
                    own.add(part)
                except DriftError as error:
                    strange.setdefault(part, error)
            yield file
        for part in strange.keys() - own:
            raise strange[part]


def _numbers(noted: Any) -> list[float]:
    return noted if isinstance(noted, list) and all(type(each) is float for each in noted) else []


_ALLOWED = 8
"""Times the tolerance: single functionals scatter more than all of a fingerprint together."""
