"""Filling a Rademacher test matrix: ours against skerch's ``RademacherNoiseLinOp``, in turn.

Usage: python workflows/benchmarks/noise.py --repeats 7 --json noise.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from skerch.measurements import RademacherNoiseLinOp

from skerch_ooc.noise import draw
from skerch_ooc.partition import Range


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


def main() -> None:
    """Reads the command line, runs both in turn, prints medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=39760)
    parser.add_argument("--columns", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    ours, theirs = [], []
    # Once without a clock: memory that a virtual machine has never touched is slow.
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
    if options.json:
        figures = {"ours": ours, "reference": theirs, "ratio": ratio}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
