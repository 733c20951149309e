"""Formats: which module opens a file, by what its name and its first bytes say."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from skerch_ooc.base.errors import OperatorError, shown_list
from skerch_ooc.operators.matrices.sources import BROKEN, Meant, Rows
from skerch_ooc.operators.matrices.stacks import stacked
from skerch_ooc.operators.matrices.zarr_store import is_zarr


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        suffixes: What names of such files end in.
        opener: ``"module:function"`` in this package: opens a path, given what is wanted. The
            module is imported only for files of this kind.
        is_folder: Whether it is a folder of files that make up one matrix.
    """

    suffixes: tuple[str, ...]
    opener: str
    is_folder: bool = False

    def open(self, path: Path | str, wanted: Meant) -> Rows:
        """Opens a file; as text, a URL.

        Raises:
            OperatorError: If it is missing, of another kind, or holds no matrix.
        """
        module, _, name = self.opener.partition(":")
        function: Callable[[Path | str, Meant], Rows] = getattr(
            import_module(f"skerch_ooc.operators.matrices.{module}"), name
        )
        try:
            return function(path, wanted)
        except BROKEN as error:
            # Libraries raise many things of files that are altered.
            raise OperatorError(
                f"cannot open {path}: {error or type(error).__name__}; copy or write the file again"
            ) from error


HDF5 = Format(
    (".h5", ".hdf5", ".hdf", ".h5ad", ".nc", ".nc4", ".mat", ".loom"), "hdf5_sparse:rows_of"
)

ZARR = Format((".zarr", ".zarr.zip"), "zarr_arrays:open_zarr", is_folder=True)
"""Also any folder that says by what it holds that it is Zarr, other zip files, and any URL."""

CHECKPOINT = Format((".safetensors.index.json",), "safetensors_files:open_index")
"""A folder in which there is one index is what that says."""

FORMATS = (
    ZARR,
    Format((".npy",), "npy:NpySource"),
    Format((".npz",), "npz:open_npz"),
    Format((".mtx", ".mtx.gz"), "market:open_market"),
    Format((".safetensors",), "safetensors_files:SafetensorsSource"),
    CHECKPOINT,
    HDF5,
)
"""What can be opened; a file that ends otherwise is tried as HDF5."""

_TWO_DIMENSIONS = ("npy:", "npz:", "market:")

_SIGNATURES = {
    b"CDF": ("netCDF 3", "convert it: nccopy -k nc4 OLD NEW"),
    b"MATLAB 5.0": ("MATLAB before 7.3", "write it with save(..., '-v7.3')"),
    b"PAR1": ("Parquet", "give a table of numbers as .npy or HDF5"),
    b"\x93NUMPY": (".npy", "let its name end in .npy"),
    b"PK\x03\x04": (
        "a zip archive",
        "if it is SciPy's sparse matrix, let its name end in .npz; write others, such as tensors "
        "of torch or a sheet, as .npy or HDF5",
    ),
    b"\x1f\x8b": ("gzip", "unpack it first: gunzip FILE"),
}
"""How files begin that are often given in place of HDF5."""
_TEXT = frozenset(b"\t\n\r" + bytes(range(32, 127)))


def open_source(
    paths: Sequence[Path | str], dataset: str | None = None, wanted: Meant = Meant()  # noqa: B008
) -> Any:  # fmt: skip
    """Opens what holds the rows of a matrix.

    Args:
        paths: Files, from top to bottom; a folder stands for its files in the order of their names,
            and text for a URL.
        dataset: Name of the dataset in HDF5 files.
        wanted: What else is said of them.

    Raises:
        OperatorError: If a file is missing, of another kind, or holds no matrix.
    """
    wanted = replace(wanted, dataset=dataset or wanted.dataset)
    files = [file for path in paths for file in _files(path)]
    if len(files) > 1:
        # Each file holds some of it; together they may hold no more than one would.
        wanted = replace(wanted, memory=max(1, wanted.memory // len(files)))
    made = stacked([_open(file, wanted) for file in files], [str(file) for file in files])
    for path in paths:
        made.remarks += _order_of(path)
    return made


def located(folder: str | Path, name: str) -> Path | str:
    """What a name in a spec stands for: a path relative to a folder, or a URL as it is."""
    return name if "://" in name else Path(folder, name)


def format_of(path: Path | str) -> Format | None:
    """The format that the end of a name says, or a folder; ``None`` if they say none."""
    if isinstance(path, str) or (path.is_dir() and is_zarr(path)):
        return ZARR
    ends = path.name.lower()
    return next((one for one in FORMATS if ends.endswith(one.suffixes)), None)


def _files(path: Path | str) -> Sequence[Path | str]:
    known = format_of(path)
    if isinstance(path, str) or not path.is_dir() or (known is not None and known.is_folder):
        return [path]
    seen = (file for file in path.iterdir() if not file.name.startswith("."))
    files = sorted(file for file in seen if format_of(file) is not None)
    indices = [file for file in files if format_of(file) is CHECKPOINT]
    if len(indices) == 1:
        return indices
    if not files:
        ends = sorted(suffix for one in FORMATS for suffix in one.suffixes)
        raise OperatorError(
            f"{path} is a folder without matrices: give one with files that end in "
            f"{', '.join(ends)}"
        )
    return files


def _order_of(path: Path | str) -> tuple[str, ...]:
    """Says in which order the files of a folder are taken, where numbers would give another."""
    names = [file.name for file in _files(path) if isinstance(file, Path)]
    if names == sorted(names, key=_by_numbers):
        return ()
    return (
        f"files of {path} are stacked in the order of their names as text: {shown_list(names)}; "
        "for that of their numbers write these with leading zeros, or give a list",
    )


def _by_numbers(name: str) -> list[tuple[bool, int, str]]:
    parts = re.split(r"(\d+)", name)
    return [(not one.isdigit(), int(one) if one.isdigit() else 0, one) for one in parts if one]


def _open(path: Path | str, wanted: Meant) -> Rows:
    if isinstance(path, str):
        return ZARR.open(path, wanted)
    if not path.exists():
        raise OperatorError(
            f"{path} is not there; give a path that is absolute, or relative to the spec"
        )
    if not (path.is_file() or path.is_dir()):
        # To open a pipe would wait for who writes it.
        raise OperatorError(
            f"{path} is a pipe or a device, which is read only once: write it to a file first"
        )
    known = format_of(path) or (ZARR if path.name.lower().endswith(".zip") else HDF5)
    if known is HDF5:
        _require_no_other(path)
    if known.opener.startswith(_TWO_DIMENSIONS) and tuple(wanted.rows) not in ((), (0,)):
        raise OperatorError(
            f"rows = {list(wanted.rows)} cannot be chosen in {path}: its rows are the first of two "
            "dimensions; give transpose = true, reshape the array, or write it as HDF5"
        )
    return known.open(path, wanted)


def _require_no_other(path: Path) -> None:
    """Refuses by name what is often given in place of HDF5.

    Raises:
        OperatorError: With what it is, and the way out.
    """
    with path.open("rb") as file:
        begin = file.read(16)
    for signature, (what, advice) in _SIGNATURES.items():
        if begin.startswith(signature):
            raise OperatorError(f"cannot open {path} as an HDF5 file: it is {what}; {advice}")
    if begin and set(begin) <= _TEXT:
        raise OperatorError(
            f"cannot open {path} as an HDF5 file: it is text; read it with pandas, say, and write "
            "its numbers, without an index, as .npy by numpy.save"
        )
