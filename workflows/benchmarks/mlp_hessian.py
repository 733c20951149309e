"""Our whole process against the reference's, on the Hessian of a 784-50-10 network.

Ours: ``skerch-ooc run``, with start-up, disk, error test and assessment. The reference: skerch's
in-memory ``seigh`` by ``hmt`` (two passes) with its error test, as a process of its own, with the
products of curvlinops, as in its example. They run
in turn, so that a noisy machine disturbs both; the figures are medians and ratios.

Usage: python workflows/benchmarks/mlp_hessian.py --repeats 5 --json mlp_hessian.json
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))

from workflows.benchmarks import common

WORKFLOWS = Path(__file__).resolve().parent.parent
MEASUREMENTS = 2000
TESTS = 30


def reference(measurements: int, tests: int) -> dict[str, float]:
    """The decomposition of the same operator by skerch; returns its figures."""
    sys.path.insert(0, str(WORKFLOWS))
    import torch
    from mlp_hessian import make
    from skerch.a_posteriori import apost_error
    from skerch.algorithms import seigh
    from skerch.linops import CompositeLinOp, DiagonalLinOp

    operator = make(reverse=False)
    values, vectors = seigh(
        operator, "cpu", torch.float32, measurements, seed=1, noise_type="rademacher",
        recovery_type="hmt", meas_blocksize=measurements,
    )  # fmt: skip
    approximation = CompositeLinOp(
        (("Q", vectors), ("L", DiagonalLinOp(values)), ("Qt", vectors.T))
    )
    (norm2, _, error2), _ = apost_error(
        operator, approximation, "cpu", torch.float32, num_meas=tests, seed=10**6
    )
    return {
        "relative_error": float((error2 / norm2) ** 0.5),
        "products": 2 * measurements + tests,
    }


def orthogonality(run_dir: Path) -> float:
    """The spectral norm of ``U^H U - I`` of our stored vectors, in full."""
    import torch

    import skerch_ooc as ooc

    result = ooc.recover(ooc.open_run(run_dir))
    assert isinstance(result, ooc.Eigh)
    u = result.eigenvectors[:].double()
    gram = u.T @ u
    return float(torch.linalg.matrix_norm(gram - torch.eye(len(gram)), 2))


def measured(command: list[str]) -> tuple[float, int, str]:
    """Wall seconds, peak resident bytes and standard output of a process."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        peak = 0
        while process.poll() is None:
            peak = max(peak, high_water(process.pid))
            time.sleep(0.02)
        wall = time.perf_counter() - start
        assert process.stdout is not None
        output = process.stdout.read()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} exited with {process.returncode}")
    return wall, peak, output


def high_water(pid: int) -> int:
    """Peak resident bytes of a running process; 0 once it has ended.

    (Not ``ru_maxrss``, which a process inherits from the one that started it.)
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    sizes = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
    return sizes[0] if sizes else 0


def compare(repeats: int, measurements: int, tests: int, scratch: Path) -> dict[str, Any]:
    """Runs both in turn and returns all figures."""
    needed = 6 * 10**9
    if shutil.disk_usage(scratch).free < needed:
        raise SystemExit(f"{scratch} needs {needed / 1e9:.0f} GB of free disk")
    ours: list[dict[str, float]] = []
    theirs: list[dict[str, float]] = []
    for number in range(repeats):
        run_dir = scratch / f"run-{number}"
        wall, peak, output = measured(
            [sys.executable, "-m", "skerch_ooc", "run", str(WORKFLOWS / "mlp_hessian.toml"),
             "--run", str(run_dir), "--json", "--set", f"measurements={measurements}",
             "--set", f"sketch.test_measurements={tests}"]
        )  # fmt: skip
        figures = json.loads(output)
        ours.append(
            {
                "wall": wall,
                "peak": peak,
                "relative_error": figures["relative_error"],
                "orthogonality": orthogonality(run_dir),
                "products": figures["products"]["done"] + figures["products"]["probe"],
            }
        )
        shutil.rmtree(run_dir)
        wall, peak, output = measured(
            [sys.executable, __file__, "--reference", "--measurements", str(measurements),
             "--tests", str(tests)]
        )  # fmt: skip
        theirs.append({"wall": wall, "peak": peak} | json.loads(output.splitlines()[-1]))
        print(
            f"{number + 1}: ours {ours[-1]['wall']:.1f} s {ours[-1]['peak'] / 1e9:.2f} GB, "
            f"reference {theirs[-1]['wall']:.1f} s {theirs[-1]['peak'] / 1e9:.2f} GB",
            file=sys.stderr,
        )
    medians = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for name, runs in (("ours", ours), ("reference", theirs))
    }
    ratios = {
        key: statistics.median(a[key] / b[key] for a, b in zip(ours, theirs, strict=True))
        for key in ("wall", "peak", "products", "relative_error")
    }
    return {"medians": medians, "ratios": ratios, "runs": {"ours": ours, "reference": theirs}}


def table(figures: dict[str, Any]) -> str:
    """The medians and ratios, for people."""
    ours, theirs = figures["medians"]["ours"], figures["medians"]["reference"]
    ratios = figures["ratios"]
    rows = [
        ("wall, s", "wall", "{:.1f}", 1.0),
        ("peak memory, GB", "peak", "{:.2f}", 1e-9),
        ("products", "products", "{:.0f}", 1.0),
        ("relative error", "relative_error", "{:.2e}", 1.0),
        ("||U^H U - I||_2", "orthogonality", "{:.1e}", 1.0),
    ]
    lines = [f"{'':18}{'skerch_ooc':>12}{'skerch hmt':>12}{'ratio':>8}"]
    for title, key, form, scale in rows:
        ratio = f"{ratios[key]:.2f}" if key in ratios else ""
        ours_text = form.format(ours[key] * scale)
        theirs_text = form.format(theirs[key] * scale) if key in theirs else "-"
        lines.append(f"{title:18}{ours_text:>12}{theirs_text:>12}{ratio:>8}")
    return "\n".join(lines)


def main() -> None:
    """Reads the command line and runs the comparison, or the reference alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--measurements", type=int, default=MEASUREMENTS)
    parser.add_argument("--tests", type=int, default=TESTS)
    parser.add_argument("--scratch", type=Path, help="folder for the runs; a temporary one")
    common.add_json(parser)
    parser.add_argument("--reference", action="store_true", help="only run the reference")
    options = parser.parse_args()
    if options.reference:
        print(json.dumps(reference(options.measurements, options.tests)))
        return
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        figures = compare(options.repeats, options.measurements, options.tests, Path(scratch))
    print(table(figures))
    common.write_json(options.json, figures)


if __name__ == "__main__":
    main()
