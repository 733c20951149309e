"""Filling test matrices: Rademacher against skerch's ``RademacherNoiseLinOp``, then all of ours.

Memory that is let go of is kept by the process, for both: to get it from a virtual machine may take
longer than to fill it.

Usage: python workflows/benchmarks/noise.py --repeats 7 --json noise.json
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from skerch.measurements import RademacherNoiseLinOp

sys.path.append(str(Path(__file__).resolve().parents[2]))

from skerch_ooc.algebra.noise import draw
from skerch_ooc.base.partition import Range
from workflows.benchmarks import common

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Names of glibc."""

KINDS = [
    ("rademacher", "int8"),
    ("rademacher", "float32"),
    ("rademacher", "float64"),
    ("sparse-sign", "int8"),
    ("sparse-sign", "float32"),
    ("sparse-sign", "float64"),
    ("gaussian", "float64"),
    ("gaussian", "complex128"),
    ("phase", "complex128"),
    ("ssrft", "float64"),
    ("ssrft", "complex128"),
]


def seconds_of_ours(rows: int, columns: int) -> float:
    """Seconds to make a float32 matrix of our signs."""
    start = time.perf_counter()
    draw("rademacher", 1, "right", Range(0, rows), Range(0, columns), np.float32)
    return time.perf_counter() - start


def seconds_of_theirs(rows: int, columns: int) -> float:
    """Seconds of the reference for the same matrix, in one block."""
    noise = RademacherNoiseLinOp((rows, columns), 1, blocksize=columns, register=False)
    start = time.perf_counter()
    noise.get_block(0, torch.float32, "cpu")
    return time.perf_counter() - start


def nanoseconds_an_entry(noise: str, dtype: str, rows: int, columns: int, repeats: int) -> float:
    """The median over ``repeats`` fillings of one buffer, after one without a clock."""
    buffer = np.empty((rows, columns), dtype)
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        draw(noise, 1, "right", Range(0, rows), Range(0, columns), dtype, out=buffer)
        seconds.append(time.perf_counter() - start)
    return 1e9 * statistics.median(seconds[1:]) / buffer.size


def keep_memory() -> None:
    """Tells the C library to give no memory back to the system, where it can be told."""
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def main() -> None:
    """Reads the command line, prints the ratio of medians and what an entry of each costs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=39760)
    parser.add_argument("--columns", type=int, default=2000)
    parser.add_argument("--some-columns", type=int, default=128, help="of each of our matrices")
    parser.add_argument("--repeats", type=int, default=7)
    common.add_json(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    ours, theirs = [], []
    # Once without a clock, as all memory is new then.
    seconds_of_ours(options.rows, options.columns)
    seconds_of_theirs(options.rows, options.columns)
    for _ in range(options.repeats):
        ours.append(seconds_of_ours(options.rows, options.columns))
        theirs.append(seconds_of_theirs(options.rows, options.columns))
    ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
    print(f"{options.rows} x {options.columns} float32 signs, medians of {options.repeats}")
    print(f"skerch_ooc  {statistics.median(ours):8.3f} s")
    print(f"skerch      {statistics.median(theirs):8.3f} s")
    print(f"ratio       {ratio:8.1f}")
    some = min(options.columns, options.rows, options.some_columns)
    nanoseconds = {
        f"{noise} {dtype}": nanoseconds_an_entry(noise, dtype, options.rows, some, options.repeats)
        for noise, dtype in KINDS
    }
    print(f"{options.rows} x {some}, nanoseconds an entry, medians of {options.repeats}")
    for kind, figure in nanoseconds.items():
        print(f"{kind:24}{figure:8.2f}")
    figures = {
        "settings": {"rows": options.rows, "columns": options.columns},
        "ours": ours,
        "reference": theirs,
        "ratio": ratio,
        "nanoseconds": nanoseconds,
    }
    common.write_json(options.json, figures)


if __name__ == "__main__":
    main()
