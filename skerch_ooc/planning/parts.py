"""Parts: the summands of an operator, and the pieces that they are measured in.

An operator ``A = sum_s a_s A_s`` has one *summand* when it is planned; each update adds one. A
summand may be made of *terms* of its own: data batches whose matrices add up, or ranges of rows
that lie on top of each other. A *part* is an aligned run of ``2**j`` terms of a summand, or all of
it; it is measured, and compared with its fingerprint, by itself.

Whatever the cut, the sum is the same, bit for bit: parts of a summand that lie over each other are
kept in double precision, added in the one tree of :func:`skerch_ooc.base.partition.tree_sum`, and
rounded once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from skerch_ooc.base.errors import UsageError, shown
from skerch_ooc.base.partition import Range, aligned_runs
from skerch_ooc.planning import values


@dataclass(frozen=True)
class OperatorSource(values.Checked):
    """Where the operator of a later summand comes from.

    Attributes:
        factory: As in :class:`skerch_ooc.planning.spec.OperatorSpec`; ``None`` for a Python object.
        args: Keyword arguments of the factory.
        sha256: Hash of the factory's file, if it is a file.
        folder: The factory's folder, relative to the run directory.
    """

    factory: str | None = values.checked(values.factory)
    args: Mapping[str, Any] = values.checked(values.arguments, hash=False)
    sha256: str | None = values.checked(values.sha256)
    folder: str = values.checked(values.text)

    def as_json(self) -> dict[str, Any]:
        """As it stands in an amendment."""
        return {
            "factory": self.factory,
            "args": dict(self.args),
            "sha256": self.sha256,
            "folder": self.folder,
        }


@dataclass(frozen=True)
class Part:
    """A part of the operator.

    Attributes:
        number: Its number, which its shards state.
        scale: What its summand is multiplied by.
        summand: The number of its summand.
        terms: Which terms of the summand it is made of; ``None`` for all.
        of: How many terms the summand has.
        rows: Which rows of the operator these terms make up; ``None`` for all.
        together: Whether all roles of a block are measured together, while rows are in memory.
        source: Where the operator comes from; ``None`` for that of the plan.
    """

    number: int = 0
    scale: float = 1.0
    summand: int = 0
    terms: Range | None = None
    of: int = 1
    rows: Range | None = None
    together: bool = False
    source: OperatorSource | None = None

    @property
    def weight(self) -> float:
        """Which share of its summand it is."""
        return 1.0 if self.terms is None else len(self.terms) / self.of

    @property
    def is_piece(self) -> bool:
        """Whether its summand has other parts."""
        return self.terms is not None

    def is_partial(self, *, adjoint: bool) -> bool:
        """Whether sketches of other parts of its summand are to be added to the same entries.

        Args:
            adjoint: For sketches to which all row ranges contribute.
        """
        return self.is_piece and (adjoint or self.rows is None)

    def _is_sound(self) -> bool:
        numbers = [self.number, self.summand, self.of]
        numbers += [end for run in (self.terms, self.rows) if run for end in (run.start, run.stop)]
        plain = all(type(number) is int and 0 <= number <= values.MAX_SIZE for number in numbers)
        return (
            plain
            and type(self.together) is bool
            and (self.terms is None or (len(self.terms) > 0 and self.terms.stop <= self.of))
            and (self.rows is None or len(self.rows) > 0)
        )

    def as_json(self) -> dict[str, Any]:
        """As it stands in an amendment: what is not said is as for an operator of one part."""
        content: dict[str, Any] = {"number": self.number, "scale": self.scale}
        if self.summand:
            content["summand"] = self.summand
        if self.terms is not None:
            content |= {"terms": [self.terms.start, self.terms.stop], "of": self.of}
        if self.rows is not None:
            content["rows"] = [self.rows.start, self.rows.stop]
        if self.together:
            content["together"] = True
        if self.source is not None:
            content["operator"] = self.source.as_json()
        return content

    @classmethod
    def from_json(cls, value: Any) -> Part:
        """Reads what :meth:`as_json` makes.

        Raises:
            UsageError: If it is something else.
        """
        try:
            source = value.get("operator")
            part = cls(
                number=value["number"],
                scale=values.factor("scale", value["scale"]),
                summand=value.get("summand", 0),
                terms=_range(value.get("terms")),
                of=value.get("of", 1),
                rows=_range(value.get("rows")),
                together=value.get("together", False),
                source=None if source is None else OperatorSource(**source),
            )
            if not part._is_sound():
                raise UsageError(f"{shown(value)} is no part")
            return part
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"{shown(value)} is no part") from error


def _range(value: Any) -> Range | None:
    return None if value is None else Range(*value)


def require_numbered(parts: tuple[Part, ...]) -> None:
    """Checks that parts are numbered from 0, and their summands in order.

    Raises:
        UsageError: If they are not.
    """
    summands = [part.summand for part in parts]
    numbered = [part.number for part in parts] == list(range(len(parts)))
    if not parts or not numbered or summands[0] != 0 or summands != sorted(summands):
        raise UsageError("the parts are not numbered in order")


def exponent_for(terms: int, parts: int) -> int:
    """The smallest ``j`` with at most so many aligned runs of ``2**j`` terms."""
    return (-(-terms // parts) - 1).bit_length()


def runs_of(terms: int, parts: int) -> list[Range | None]:
    """Cuts terms into at most so many aligned runs; ``[None]`` stands for all in one."""
    runs = list(aligned_runs(terms, exponent_for(terms, max(1, parts))))
    return list(runs) if len(runs) > 1 else [None]
