"""Objects of other libraries as operators: arrays, frames, tensors, datasets.

What can be applied as it is stays as it is: arrays of numpy, tensors of torch and sparse matrices
of SciPy in the dtypes of runs, and whatever has ``.shape`` and ``@`` of its own; unless options say
that something is to be made of the entries first. No library is imported to look at an object: who
has one has imported it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import OperatorError, shown_list
from skerch_ooc.planning.spec import DTYPES

if TYPE_CHECKING:
    from skerch_ooc.operators.matrices.sources import Meant, Rows

_WAYS_OUT = {
    "jax": "numpy.asarray(X)", "jaxlib": "numpy.asarray(X)", "tensorflow": "X.numpy()",
    "cupy": "torch.from_dlpack(X)", "pyarrow": "X.to_pandas()",
    "anndata": "X.X, or one of X.layers",
    "netCDF4": 'the file, by factory = "stored" with path, dataset and rows',
}  # fmt: skip
"""What to give in place of objects of other libraries."""


def is_lazy(data: Any) -> bool:
    """Whether numbers of an object lie elsewhere, or are not what they seem."""
    return library_of(data) in ("h5py", "zarr", "xarray", "dask") or isinstance(
        data, np.ma.MaskedArray
    )


def library_of(data: Any) -> str:
    """The package that the type of an object is from."""
    return type(data).__module__.partition(".")[0]


def adapted(operator: Any, memory: int | None = None) -> Any:
    """What is applied in place of an object: itself where it can be.

    Args:
        operator: Anything.
        memory: Peak resident memory of the process, in bytes, if it is known.

    Raises:
        OperatorError: If it cannot be used, with the way out.
    """
    if hasattr(operator, "as_product"):
        return operator
    found = looked_into(operator, _meant(memory))
    if hasattr(found, "rows_together"):
        return _stored(found)
    if library_of(found) == "dask":
        from skerch_ooc.operators.dask_arrays import DaskMatrix

        return DaskMatrix(found)
    return found


def rows_of(operator: Any, wanted: Meant) -> Any:
    """What gives the rows of an object, also where that could be applied as it is.

    Args:
        operator: An array, a frame, a tensor, a sparse matrix, a dataset.
        wanted: How much memory there is, and which stored values stand for missing entries.

    Returns:
        The rows; an array of Dask as it is.

    Raises:
        OperatorError: If it is something else, or cannot be used, with the way out.
    """
    if isinstance(operator, np.ma.MaskedArray) and operator.dtype.kind in "biufc":
        return _of_masked(operator, wanted)
    found = looked_into(operator, wanted)
    if hasattr(found, "rows_together") or library_of(found) == "dask":
        return found
    if callable(getattr(found, "tocsr", None)):
        return _held(found, wanted)
    if isinstance(found, np.ndarray):
        _require_matrix(found, "give X.reshape(...)")
        return _sliced(found, found.dtype, found.__getitem__, codes=wanted.codes)
    if library_of(found) == "torch" and str(found.layout) == "torch.strided":
        _require_matrix(found, "give X.reshape(...)")
        return _of_rows(found.detach(), wanted)
    raise _refusal(
        operator,
        "options are for the entries of arrays, frames, tensors, sparse matrices and datasets; let "
        "what makes the operator do that, or leave them out",
    )


def looked_into(operator: Any, wanted: Meant) -> Any:
    """What an object is: rows that are read, an array of Dask, or what is applied as it is.

    Raises:
        OperatorError: If it cannot be used, with the way out.
    """
    library = library_of(operator)
    if library == "anndata" and not hasattr(operator, "obs"):
        raise _refusal(operator, 'give X.to_memory(), or the file, by factory = "stored"')
    if library in _WAYS_OUT:
        raise _refusal(operator, f"give {_WAYS_OUT[library]}")
    adapt = _BY_LIBRARY.get(library)
    if isinstance(operator, np.ndarray):
        adapt = _of_numpy
    elif callable(getattr(operator, "tocsr", None)):
        adapt = _of_sparse
    return operator if adapt is None else adapt(operator, wanted)


def _refusal(operator: Any, advice: str) -> OperatorError:
    kind = type(operator)
    return OperatorError(f"cannot decompose a {kind.__module__}.{kind.__qualname__}: {advice}")


def _meant(memory: int | None) -> Meant:
    from skerch_ooc.operators.matrices.sources import Meant

    return Meant() if memory is None else Meant(memory=memory)


def _stored(source: Rows) -> Any:
    """The operator that reads a source slab by slab."""
    from skerch_ooc.operators.matrix import StoredMatrix

    return StoredMatrix(source)


def _sliced(
    operator: Any, dtype: Any, get: Callable[[slice], Array], *, codes: tuple[float, ...] = (),
    **options: Any,
) -> Any:  # fmt: skip
    from skerch_ooc.operators.matrices.decoding import Decoding
    from skerch_ooc.operators.matrices.sliced import SlicedSource

    name, dtype = f"the {type(operator).__name__}", np.dtype(dtype).newbyteorder("=")
    if codes:
        options["decoding"] = Decoding.of({}, dtype, codes)
    return SlicedSource(name, tuple(operator.shape), dtype, get, **options)


def _held(operator: Any, wanted: Meant) -> Any:
    """The rows of a sparse matrix in memory; of one by columns without a copy."""
    from skerch_ooc.operators.matrices.npz import HeldSource

    turned = operator.format == "csc"
    made = HeldSource(f"the {type(operator).__name__}", operator.T if turned else operator, wanted)
    made.is_transposed, made.remarks = turned, ()
    return made


def _require_matrix(operator: Any, advice: str) -> None:
    shape = tuple(operator.shape)
    if len(shape) != 2:
        raise _refusal(operator, f"it has shape {shape}, and a matrix has two sizes; {advice}")


def _of_numpy(operator: Any, wanted: Meant) -> Any:
    if operator.dtype.kind not in "biufc":
        raise _refusal(
            operator, f"it is of dtype {operator.dtype}; give numbers, such as X.astype(float)"
        )
    if isinstance(operator, np.ma.MaskedArray):
        operator = _unmasked(operator)
    if operator.ndim != 2 or operator.dtype.newbyteorder("=").name in DTYPES:
        return operator
    return _sliced(operator, operator.dtype, operator.__getitem__, codes=wanted.codes)


def _of_masked(operator: Any, wanted: Meant) -> Any:
    """The rows of a masked array, with NaN where it is masked."""
    from skerch_ooc.operators.matrices.sliced import numbers_of

    _require_matrix(operator, "give X.reshape(...)")
    dtype = np.result_type(operator.dtype, _floating(operator.dtype))

    def get(rows: slice) -> Array:
        return numbers_of(operator[rows]).astype(dtype)

    return _sliced(operator, dtype, get, codes=wanted.codes)


def _unmasked(operator: Any) -> Array:
    """The numbers of a masked array of which none is masked."""
    masked = np.argwhere(np.ma.getmaskarray(operator))
    if len(masked):
        row, *column = (int(one) for one in masked[0])
        raise _refusal(
            operator,
            f"{len(masked)} of its entries are masked, the first in row {row}, "
            f"column {column[0] if column else 0}; fill them first, as by "
            "X.filled(X.mean(axis=0))",
        )
    return np.asarray(operator.data)


def _floating(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of products with entries of a dtype."""
    if dtype.newbyteorder("=").name in DTYPES:
        return dtype.newbyteorder("=")
    if dtype.kind == "c":
        return np.dtype(np.complex128)
    return np.dtype(np.float32 if dtype.itemsize <= 2 else np.float64)


def _of_sparse(operator: Any, wanted: Meant) -> Any:  # noqa: ARG001 (as the others)
    found = operator if library_of(operator) == "scipy" else operator.tocsr()
    if found.dtype.kind not in "biufc":
        raise _refusal(operator, f"it is of dtype {found.dtype}; give X.astype(float)")
    if found.ndim != 2 or found.dtype.name in DTYPES:
        return found
    return found.tocsr().astype(_floating(found.dtype))


def _of_torch(operator: Any, wanted: Meant) -> Any:
    import torch

    if not isinstance(operator, torch.Tensor) or operator.ndim != 2:
        return operator
    if operator.is_quantized:
        raise _refusal(operator, "it is quantised; give X.dequantize()")
    if operator.is_meta:
        raise _refusal(operator, "it is on the device meta, and has no numbers; load them first")
    name = str(operator.dtype).removeprefix("torch.")
    if name in DTYPES:
        return operator
    if operator.layout != torch.strided:
        return operator.detach().to(_torch_kind(operator.dtype))
    return _of_rows(operator.detach(), wanted)


def _of_rows(tensor: Any, wanted: Meant) -> Any:
    """The rows of a tensor of torch, converted as they are asked for."""
    name = str(tensor.dtype).removeprefix("torch.")
    kind = tensor.dtype if name in DTYPES else _torch_kind(tensor.dtype)

    def get(rows: slice) -> Array:
        found = tensor[rows].to("cpu").to(kind).resolve_conj().resolve_neg()
        return np.asarray(found.numpy())

    dtype = np.dtype(str(kind).removeprefix("torch."))
    return _sliced(tensor, dtype, get, codes=wanted.codes)


def _torch_kind(dtype: Any) -> Any:
    """The dtype of runs that holds what is of another dtype of torch."""
    import torch

    if dtype.is_complex:
        return torch.complex64
    if dtype.is_floating_point or dtype.itemsize <= 2:
        return torch.float32
    return torch.float64


def _of_pandas(operator: Any, wanted: Meant) -> Any:
    if not hasattr(operator, "columns"):
        raise _refusal(operator, "give a frame of numbers, or X.to_numpy() of two dimensions")
    dtypes = [getattr(one, "numpy_dtype", one) for one in operator.dtypes]
    dtypes = [getattr(one, "subtype", one) for one in dtypes]
    dtype = _of_columns(operator, list(operator.columns), dtypes)

    def get(rows: slice) -> Array:
        return np.asarray(operator.iloc[rows].to_numpy(dtype=dtype, na_value=np.nan))

    return _sliced(operator, dtype, get, codes=wanted.codes, columns=list(operator.columns))


def _of_columns(operator: Any, names: list[Any], dtypes: list[Any]) -> np.dtype[Any]:
    """The dtype that holds all columns.

    Raises:
        OperatorError: If some hold no numbers, with their names.
    """
    others = [str(name) for name, one in zip(names, dtypes, strict=True)
              if not isinstance(one, np.dtype) or one.kind not in "biufc"]  # fmt: skip
    if others:
        raise _refusal(
            operator,
            f"of its columns {shown_list(others)} hold no numbers; give those that do alone, or "
            "turn these into numbers",
        )
    return np.result_type(*(_floating(one) for one in dtypes)) if dtypes else np.dtype(float)


_POLARS_WIDE = ("Int32", "Int64", "Int128", "UInt32", "UInt64", "UInt128", "Float64", "Decimal")
_POLARS = ("Boolean", "Int8", "Int16", "UInt8", "UInt16", "Float16", "Float32")


def _of_polars(operator: Any, wanted: Meant) -> Any:
    if not hasattr(operator, "to_numpy"):
        raise _refusal(operator, "give X.collect()")
    if not hasattr(operator, "columns"):
        raise _refusal(operator, "give a frame of numbers, such as X.to_frame()")
    known: dict[str, np.dtype[Any]] = dict.fromkeys(_POLARS_WIDE, np.dtype(np.float64))
    known |= dict.fromkeys(_POLARS, np.dtype(np.float32))
    dtypes = [known.get(str(one.base_type())) for one in operator.dtypes]
    dtype = _of_columns(operator, operator.columns, dtypes)

    def get(rows: slice) -> Array:
        return np.asarray(operator[rows].to_numpy()).astype(dtype)

    return _sliced(operator, dtype, get, codes=wanted.codes, columns=operator.columns)


def _of_h5py(operator: Any, wanted: Meant) -> Any:
    from skerch_ooc.operators.matrices.sliced import OpenHdf5Source

    if not hasattr(operator, "dtype"):
        raise _refusal(operator, "give a dataset of it, X[name]")
    if operator.shape is not None:
        _require_matrix(operator, 'give the file, by factory = "stored" with path and rows')
    return OpenHdf5Source(operator, wanted)


def _of_zarr(operator: Any, wanted: Meant) -> Any:
    from skerch_ooc.operators.matrices.zarr_arrays import ZarrSource

    if not hasattr(operator, "dtype"):
        raise _refusal(operator, "give an array of it, X[name]")
    _require_matrix(operator, 'give the path, by factory = "stored" with path and rows')
    name = str(getattr(operator, "store_path", "the array"))
    return ZarrSource(name, operator, wanted)


def _of_xarray(operator: Any, wanted: Meant) -> Any:
    from skerch_ooc.operators.matrices.decoding import Decoding

    if not hasattr(operator, "dims") or not hasattr(operator, "dtype"):
        raise _refusal(operator, "give one of its arrays, X[name]")
    _require_matrix(
        operator, 'stack the others, as by X.stack(place=("lat", "lon")), or give the file'
    )
    decoding = Decoding.of(operator.attrs, operator.dtype, wanted.codes)
    if operator.chunks is not None:
        if Decoding.of(operator.attrs, operator.dtype) is not None:
            raise _refusal(
                operator,
                "its numbers are scaled, or stand for missing ones, as its attributes say; open "
                "it with mask_and_scale=True, or give xarray.decode_cf(...)",
            )
        return looked_into(operator.data, wanted)
    found = _sliced(
        operator, operator.dtype, lambda rows: np.asarray(operator[rows].values), decoding=decoding
    )
    found.beside = operator.coords
    sizes = operator.encoding.get("preferred_chunks") or {}
    chunks = [min(size, sizes.get(dim, size))
              for dim, size in zip(operator.dims, operator.shape, strict=True)]  # fmt: skip
    return found.in_chunks(chunks, wanted) if sizes else found


def _of_dask(operator: Any, wanted: Meant) -> Any:  # noqa: ARG001 (as the others)
    if not hasattr(operator, "to_delayed") or not hasattr(operator, "chunks"):
        raise _refusal(
            operator, "give an array whose sizes are known, as X.to_dask_array(lengths=True)"
        )
    if any(size != size for sizes in operator.chunks for size in sizes):
        raise _refusal(
            operator, "the sizes of its chunks are not known; call X.compute_chunk_sizes() first"
        )
    _require_matrix(operator, "give X.reshape(...)")
    if not isinstance(operator._meta, np.ndarray):
        raise _refusal(
            operator,
            f"its chunks are of {type(operator._meta).__name__}; give chunks of numpy, as by "
            "X.map_blocks(lambda chunk: chunk.toarray())",
        )
    return operator


_BY_LIBRARY: dict[str, Callable[[Any, Meant], Any]] = {
    "torch": _of_torch,
    "pandas": _of_pandas,
    "polars": _of_polars,
    "dask": _of_dask,
    "h5py": _of_h5py,
    "zarr": _of_zarr,
    "xarray": _of_xarray,
}
