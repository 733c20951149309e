"""The Gauss-Newton matrix of a network, on two workers that are killed once: against Lanczos.

Starts ``skerch-ooc run`` with a local Dask cluster, ends all its processes by SIGKILL once some
shards are there, and runs the same command again. The leading nine eigenvalues, as many as the
classes leave, are compared with those of ``scipy.sparse.linalg.eigsh``, and the products that were
made with those that were planned.

Usage: python workflows/benchmarks/killed_ggn.py --json killed_ggn.json
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[2]))

from workflows.benchmarks import common

WORKFLOWS = Path(__file__).resolve().parent.parent
LEADING = 9
DIGITS = 1e-5


def leading() -> dict[str, Any]:
    """The leading eigenvalues by Lanczos, in this process, with the products that they took."""
    import torch
    from scipy.sparse.linalg import LinearOperator, eigsh

    from workflows.three_c3d import make

    operator, products = make(), 0

    def product(x: np.ndarray) -> np.ndarray:
        nonlocal products
        products += 1
        made: np.ndarray = (operator @ torch.from_numpy(x.astype(np.float32).ravel())).numpy()
        return made.astype(np.float64)

    start = np.random.default_rng(0).standard_normal(operator.shape[0])
    given = LinearOperator(operator.shape, matvec=product, dtype=np.float64)
    values = eigsh(given, k=LEADING, tol=1e-7, v0=start, return_eigenvectors=False)
    return {"values": sorted(values.tolist(), reverse=True), "products": products}


def recovered(run_dir: str) -> dict[str, Any]:
    """The leading eigenvalues of a run, and its products."""
    import skerch_ooc as ooc

    run = ooc.open_run(run_dir)
    result = ooc.recover(run)
    assert isinstance(result, ooc.Eigh)
    assessment = ooc.assess(run)
    return {
        "values": result.eigenvalues[:LEADING].double().tolist(),
        "products": assessment.products,
        "relative_error": assessment.relative_error,
    }


def kill_when_measured(command: list[str], run_dir: Path, shards: int) -> int:
    """Starts a command, and kills it with all its workers once so many shards are there."""
    process = subprocess.Popen(command, start_new_session=True)
    while len(found := list((run_dir / "shards").glob("[!.]*.h5"))) < shards:
        if process.poll() is not None:
            raise SystemExit(f"the run ended with {process.returncode} before it was killed")
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return len(found)


def main() -> int:
    """Runs the benchmark."""
    if common.serve_part([leading, recovered]):
        return 0
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--after", type=int, default=5, help="shards after which it is killed")
    parser.add_argument("--scratch", type=Path, help="folder for the run; a temporary one")
    common.add_json(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        run_dir = Path(folder) / "run"
        command = [
            sys.executable, "-m", "skerch_ooc", "run", str(WORKFLOWS / "three_c3d.toml"),
            "--run", str(run_dir), "--executor", "dask", "--workers", "2", "--threads", "1",
            "--memory", "6GiB",
        ]  # fmt: skip
        there = kill_when_measured(command, run_dir, options.after)
        start = time.perf_counter()
        subprocess.run(command, check=True)
        seconds = time.perf_counter() - start
        _, found = common.run_part(__file__, recovered, 2, run_dir=str(run_dir))
    _, expected = common.run_part(__file__, leading, 2)
    off = np.abs(np.array(found["values"]) / np.array(expected["values"]) - 1)
    report = {
        "shards_when_killed": there,
        "seconds_after": seconds,
        "ours": found,
        "lanczos": expected,
        "largest_difference": float(off.max()),
    }
    print(f"killed with {there} shards; resumed in {seconds:.0f} s: {found['products']}")
    for number, (mine, theirs, each) in enumerate(
        zip(found["values"], expected["values"], off, strict=True), 1
    ):
        print(f"{number}: {mine:.8g}, by Lanczos {theirs:.8g}, relative difference {each:.1e}")
    common.write_json(options.json, report)
    return 0 if off.max() <= DIGITS else 3


if __name__ == "__main__":
    raise SystemExit(main())
