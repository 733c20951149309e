"""Objects with options: what is made of the entries of an array, as of those of a file.

The words are those of the factory ``"stored"``. In Python weights may also be numbers; a plan then
says their digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import OperatorError, did_you_mean, shown, shown_list
from skerch_ooc.operators.dask_arrays import DaskSource
from skerch_ooc.operators.dask_options import prepared_dask
from skerch_ooc.operators.matrices.options import OPTIONS_OF_OBJECTS, Options
from skerch_ooc.operators.matrices.sources import MEMORY, Meant, Rows
from skerch_ooc.operators.matrices.weights import require_weights, weights_of
from skerch_ooc.operators.matrix import StoredMatrix
from skerch_ooc.operators.objects import library_of, rows_of

DIGEST = "sha256:"
"""How weights begin that were numbers, where a plan states them."""

_WEIGHTS = ("row_weights", "column_weights")


def stated(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as a plan says them: weights that are numbers by their digest.

    Raises:
        OperatorError: If weights are no numbers.
    """
    made = dict(options)
    for key, numbers in _numbers(options).items():
        made[key] = f"{DIGEST}{hashlib.sha256(numbers.tobytes()).hexdigest()}"
    if "missing_codes" in made:
        codes = np.atleast_1d(np.asarray(made["missing_codes"])).tolist()
        made["missing_codes"] = codes
    return made


def prepared(
    operator: Any, options: Mapping[str, Any], memory: int | None, *, here: bool = False
) -> StoredMatrix:
    """The matrix that is made of an object.

    Args:
        operator: An array, a frame, a tensor, a sparse matrix, a dataset; or what this has made of
            it.
        options: See :class:`~skerch_ooc.operators.matrices.options.Options`; weights may be
            numbers. Paths are relative to the current folder.
        memory: Peak resident memory of the process, in bytes, if it is known.
        here: Whether chunks of Dask are prepared in this process, which then knows how.

    Raises:
        OperatorError: If an option is not allowed, or the object takes none, with the way out.
    """
    if hasattr(operator, "as_product"):
        return _made_before(operator, options)
    for key in options:
        if key not in OPTIONS_OF_OBJECTS:
            raise OperatorError(
                f"the option {key!r} is unknown for the entries of an object; give some of: "
                f"{shown_list(OPTIONS_OF_OBJECTS)}{did_you_mean(key, OPTIONS_OF_OBJECTS)}"
            )
    numbers = _numbers(options)
    asked = Options.of({key: options[key] for key in options if key not in numbers})
    wanted = Meant(codes=asked.missing_codes, memory=memory or MEMORY)
    source = rows_of(operator, wanted)
    chunked = library_of(source) == "dask"
    rows: Rows = DaskSource(source, getattr(operator, "coords", None)) if chunked else source
    weights = _weights(asked, numbers, rows)
    made: StoredMatrix
    if chunked and not here:
        made = prepared_dask(source, asked, weights)
    else:
        made = StoredMatrix(rows, options=asked, weights=weights)
    made.stated = stated(options)
    return made


def _weights(
    asked: Options, numbers: Mapping[str, Array], source: Rows
) -> tuple[Array | None, Array | None]:
    """The square roots of the weights of rows and columns, named or given as numbers."""
    rows, columns = weights_of(asked, source, Path.cwd())
    turned = source.is_transposed != asked.transpose
    height, width = source.shape[::-1] if turned else source.shape
    if "row_weights" in numbers:
        rows = require_weights("row_weights, an array,", numbers["row_weights"], height)
    if "column_weights" in numbers:
        columns = require_weights("column_weights, an array,", numbers["column_weights"], width)
    return rows, columns


def _made_before(operator: Any, options: Mapping[str, Any]) -> StoredMatrix:
    """The matrix that has these options already.

    Raises:
        OperatorError: If it has none, or others.
    """
    found = getattr(operator, "stated", None)
    if isinstance(operator, StoredMatrix) and found == stated(options):
        return operator
    raise OperatorError(
        f"the operator is made already, and {shown(dict(options))} would be made of its entries; "
        "give these options to what makes it"
    )


def _numbers(options: Mapping[str, Any]) -> dict[str, Array]:
    """Weights that are given as numbers.

    Raises:
        OperatorError: If they are something else.
    """
    found = {}
    for key in _WEIGHTS:
        value = options.get(key)
        if value is None or isinstance(value, str):
            continue
        try:
            found[key] = np.asarray(value, np.float64)
        except (TypeError, ValueError) as error:
            raise OperatorError(
                f"{key} = {shown(value)}: must be one number for each, or the name of a .npy file"
            ) from error
    return found
