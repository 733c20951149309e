"""Options: what is to be made of the entries of a matrix before it is decomposed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from skerch_ooc.base.errors import OperatorError, did_you_mean, shown_list

REFUSE, COLUMN_MEAN, LEAVE_OUT = "refuse", "column-mean", "leave-out"
COS_LATITUDE = "cos-latitude"

_ALLOWED: dict[str, tuple[Any, ...]] = {
    "subtract": (None, COLUMN_MEAN, "row-mean", "both"),
    "scale": (None, "column-std"),
    "missing": (REFUSE, COLUMN_MEAN),
    "empty_columns": (REFUSE, LEAVE_OUT),
    "transpose": (False, True),
}


@dataclass(frozen=True)
class Options:
    """What is made of the entries, in this order; rows and columns are those that are meant.

    Attributes:
        transpose: Whether rows and columns change their roles before all else.
        rows: The dimensions that are rows, of an array that has more than two.
        missing_codes: Stored values that stand for missing entries, beside NaN and what the file
            says.
        missing: What is done about missing entries: ``"refuse"``, or ``"column-mean"`` to put the
            mean of the others of the column there.
        empty_columns: What is done about columns that are missing throughout: ``"refuse"``, or
            ``"leave-out"``: they are zero then, in the matrix and in ``V``.
        subtract: ``"column-mean"``, ``"row-mean"`` or ``"both"``.
        scale: ``"column-std"`` to divide each column by its standard deviation (of the population,
            as scikit-learn does; columns that are constant stay as they are).
        row_weights: Weights of the rows: each is multiplied by the square root of its own. The name
            of a dataset beside the matrix, or of a ``.npy`` file relative to the spec.
        column_weights: The same of the columns; also ``"cos-latitude"``.
    """

    transpose: bool = False
    rows: tuple[str | int, ...] = ()
    missing_codes: tuple[float, ...] = ()
    missing: str = REFUSE
    empty_columns: str = REFUSE
    subtract: str | None = None
    scale: str | None = None
    row_weights: str | None = None
    column_weights: str | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Options:
        """Reads options as a user gives them.

        Raises:
            OperatorError: If there is no such option, or a value is not allowed.
        """
        known = [one.name for one in fields(cls)]
        for key in given:
            if key not in known:
                raise OperatorError(
                    f"the option {key!r} is unknown; give some of: path, dataset, minus, "
                    f"{shown_list(known)}{did_you_mean(key, ['path', 'dataset', 'minus', *known])}"
                )
        values = dict(given)
        for key, allowed in _ALLOWED.items():
            if key in values and values[key] not in allowed:
                said = ", ".join(_spelt(one) for one in allowed if one is not None)
                left_out = ", or left out" if None in allowed else ""
                raise OperatorError(f"{key} = {values[key]!r}: must be one of {said}{left_out}")
        for key in ("rows", "missing_codes"):
            if key in values:
                values[key] = _listed(key, values[key])
        for key in ("row_weights", "column_weights"):
            if not isinstance(values.get(key), str | None):
                raise OperatorError(
                    f"{key} = {values[key]!r}: must be the name of a dataset or of a .npy file"
                )
        found = cls(**values)
        if found.missing == COLUMN_MEAN and found.subtract in ("row-mean", "both"):
            raise OperatorError(
                f'missing = "column-mean" together with subtract = "{found.subtract}" is not '
                "unambiguous, as each mean depends on the other; fill the matrix first, and give "
                "the filled one"
            )
        return found


OPTIONS_OF_OBJECTS = tuple(one.name for one in fields(Options) if one.name != "rows")
"""Those of arrays, frames and datasets: one that has more than two dimensions is made a matrix by
its own library."""


def _spelt(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f'"{value}"'


def _listed(key: str, value: Any) -> tuple[Any, ...]:
    found = tuple(value) if isinstance(value, list | tuple) else (value,)
    kinds: Any = (str, int) if key == "rows" else (int, float)
    if not all(isinstance(one, kinds) and not isinstance(one, bool) for one in found):
        what = "names or numbers of dimensions" if key == "rows" else "numbers"
        raise OperatorError(f"{key} = {value!r}: must be a list of {what}")
    return found
