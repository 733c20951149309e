"""Parts, terms and summands of an operator: the pieces that are measured by themselves.

An operator ``A = sum_s a_s A_s`` has one *summand* when it is planned; each update adds one. A
summand may be made of *terms* of its own: data batches whose matrices add up, or ranges of rows
that lie on top of each other. A *part* is an aligned run of ``2**j`` terms of a summand, or all of
it; it is measured, and compared with its fingerprint, by itself.

However a summand is cut into parts, the sum has the same bits: sketches of parts that cover the
same rows are kept in double precision, added in the one tree of
:func:`skerch_ooc.base.partition.tree_sum`, and rounded once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from skerch_ooc.base.errors import UsageError, shown
from skerch_ooc.base.partition import Range, aligned_runs
from skerch_ooc.planning import values

UNNAMED = "a Python object"
"""Text that messages show in place of a factory, if the operator has none."""


@dataclass(frozen=True)
class OperatorSource(values.Checked):
    """The factory that makes the operator of a later summand, and its arguments.

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
        """Returns the entry of an amendment file."""
        return {
            "factory": self.factory,
            "args": dict(self.args),
            "sha256": self.sha256,
            "folder": self.folder,
        }


@dataclass(frozen=True)
class Part:
    """A part of the operator: some or all terms of one summand.

    Attributes:
        number: Its number, which its shards state.
        scale: The factor of its summand.
        summand: The number of its summand.
        terms: The terms of the summand that it is made of; ``None`` for all.
        of: How many terms the summand has.
        rows: The rows of the operator that these terms make up; ``None`` for all.
        together: Whether a task measures the blocks of all roles together, in one reading.
        source: The factory that makes the operator; ``None`` for the factory of the plan.
        columns_at_once: How many columns the operator applies in one inner call, whatever process
            it is in; ``None`` if it was not told.
    """

    number: int = 0
    scale: float = 1.0
    summand: int = 0
    terms: Range | None = None
    of: int = 1
    rows: Range | None = None
    together: bool = False
    source: OperatorSource | None = None
    columns_at_once: int | None = None

    @property
    def weight(self) -> float:
        """Its share of a product of the summand: the share of the terms that it has."""
        return 1.0 if self.terms is None else len(self.terms) / self.of

    @property
    def is_piece(self) -> bool:
        """Whether its summand has other parts."""
        return self.terms is not None

    def is_partial(self, *, adjoint: bool) -> bool:
        """Whether sketches of other parts of its summand add to the same entries.

        Args:
            adjoint: Whether all rows of the operator contribute to each entry of the sketch.
        """
        return self.is_piece and (adjoint or self.rows is None)

    def _is_sound(self) -> bool:
        numbers = [self.number, self.summand, self.of]
        numbers += [end for run in (self.terms, self.rows) if run for end in (run.start, run.stop)]
        # By type, as isinstance takes true and false for integers.
        plain = all(type(number) is int and 0 <= number <= values.MAX_SIZE for number in numbers)
        return (
            plain
            and type(self.together) is bool
            and (self.terms is None or (len(self.terms) > 0 and self.terms.stop <= self.of))
            and (self.rows is None or len(self.rows) > 0)
            and (self.columns_at_once is None or _is_width(self.columns_at_once))
        )

    def as_json(self) -> dict[str, Any]:
        """Returns the entry of an amendment file; values of a single part are left out."""
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
        if self.columns_at_once is not None:
            content["columns_at_once"] = self.columns_at_once
        return content

    @classmethod
    def from_json(cls, value: Any) -> Part:
        """Reads an entry that :meth:`as_json` made.

        Raises:
            UsageError: If it is anything else.
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
                columns_at_once=value.get("columns_at_once"),
            )
            if not part._is_sound():
                raise UsageError(f"{shown(value)} is no part")
            return part
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"{shown(value)} is no part") from error


def _is_width(value: Any) -> bool:
    return type(value) is int and 1 <= value <= values.MAX_SIZE


def _range(value: Any) -> Range | None:
    return None if value is None else Range(*value)


def require_numbered(parts: tuple[Part, ...]) -> None:
    """Checks that parts are numbered from 0, and that their summands are in order.

    Raises:
        UsageError: If they are not.
    """
    summands = [part.summand for part in parts]
    numbered = [part.number for part in parts] == list(range(len(parts)))
    if not parts or not numbered or summands[0] != 0 or summands != sorted(summands):
        raise UsageError("the parts are not numbered in order")


def exponent_for(terms: int, parts: int) -> int:
    """Returns the smallest ``j`` with at most ``parts`` aligned runs of ``2**j`` terms."""
    return (-(-terms // parts) - 1).bit_length()


def runs_of(terms: int, parts: int) -> list[Range | None]:
    """Cuts terms into at most ``parts`` aligned runs; ``[None]`` stands for a single run of all."""
    # Aligned runs of 2^j are subtrees of the summation tree, so no cut changes a bit of the sum.
    runs = list(aligned_runs(terms, exponent_for(terms, max(1, parts))))
    return list(runs) if len(runs) > 1 else [None]
