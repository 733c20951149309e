"""Measure, merge and recover on the processor and on a GPU: seconds of each stage, and the results.

Run where there is a CUDA device; without one it says so and ends with 2. The operator has a known
spectrum and costs little, so that what is compared is the arithmetic on tiles and the way of the
products through memory.

Usage: python workflows/benchmarks/gpu.py --json gpu.json
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))

from workflows.benchmarks import common

TESTS = 20
BLOCK = 128
DECADES = 6.0
STAGES = ("plan", "measure", "merge", "recover")


def figures(run_dir: str) -> dict[str, Any]:
    """What was recovered."""
    import skerch_ooc as ooc

    run = ooc.open_run(run_dir)
    result = ooc.recover(run)
    assert isinstance(result, ooc.Eigh)
    assessment = ooc.assess(run)
    return {
        "values": result.eigenvalues.double().tolist(),
        "relative_error": assessment.relative_error,
        "orthogonality": assessment.orthogonality,
    }


def has_gpu() -> dict[str, Any]:
    """The name of the GPU, if there is one."""
    import torch

    return {"name": torch.cuda.get_device_name() if torch.cuda.is_available() else None}


def run_on(
    device: str, folder: Path, rows: int, columns: int, threads: int
) -> tuple[dict[str, float], dict[str, Any]]:
    """Runs all stages with their products on a device; seconds of each, and what came out."""
    folder.mkdir()
    spec, run_dir = folder / "spec.toml", folder / "run"
    common.write_spec(spec, rows, columns, TESTS, BLOCK, columns // 2, DECADES)
    seconds = {}
    for stage in STAGES:
        where = (spec, "--run", run_dir) if stage == "plan" else (run_dir,)
        child = common.run_cli(stage, *where, "--device", device, threads=threads)
        seconds[stage] = child.wall
    _, found = common.run_part(__file__, figures, threads, run_dir=str(run_dir))
    return seconds, found


def main() -> int:
    """Runs the benchmark."""
    if common.serve_part([figures, has_gpu]):
        return 0
    parser = common.argument_parser(__doc__, rows=2_000_000, columns=1000, repeats=3)
    options = parser.parse_args()
    _, gpu = common.run_part(__file__, has_gpu, 1)
    if gpu["name"] is None:
        print("there is no CUDA device here: nothing to compare", file=sys.stderr)
        return 2
    needed = 5 * options.rows * options.columns * 4
    report: dict[str, Any] = {"gpu": gpu["name"], "rows": options.rows, "columns": options.columns}
    with common.scratch(options.folder, needed) as scratch:
        runs: dict[str, list[dict[str, float]]] = {"cpu": [], "cuda": []}
        found: dict[str, dict[str, Any]] = {}
        for number in range(options.repeats):
            for device in runs:
                folder = scratch / f"{device}{number}"
                seconds, found[device] = run_on(
                    device, folder, options.rows, options.columns, options.threads
                )
                runs[device].append(seconds)
                common.remove(folder)
    medians = {device: common.median_of(seconds) for device, seconds in runs.items()}
    known = common.known_eigenvalues(options.columns // 2, DECADES)
    rows = []
    for stage in STAGES:
        cpu, cuda = medians["cpu"][stage], medians["cuda"][stage]
        rows.append([stage, f"{cpu:.2f} s", f"{cuda:.2f} s", f"{cuda / cpu:.2f}"])
    print(common.text_table(["stage", "cpu", gpu["name"], "ratio"], rows))
    for device, result in found.items():
        off = max(abs(a - b) for a, b in zip(result["values"][:50], known[:50], strict=True))
        report[device] = medians[device] | {
            "relative_error": result["relative_error"],
            "orthogonality": result["orthogonality"],
            "leading_values_off_by": off,
        }
        print(
            f"{device}: relative error {result['relative_error']:.2e}, orthogonality "
            f"{result['orthogonality']:.1e}, leading values off by {off:.1e}"
        )
    common.write_json(options.json, report)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
