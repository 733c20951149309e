"""Measures all figures of README and documentation in one go, and writes them into the pages.

One benchmark after the other, the most important first, each in a process of its own, and only
while nothing else is at work on the machine. What each found is kept in ``docs/tables/``, with the
commit, the day, the processor and the versions; the sections of the pages that are made of it are
written at once (``sections.py``). Where a benchmark fails, what was there stays, and the others go
on.

Usage: python workflows/benchmarks/all.py [--only NAME ...] [--long] [--resume] [--wait]
       python workflows/benchmarks/all.py --list | --render | --quick
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))

from workflows.benchmarks import common, quiet
from workflows.benchmarks.figures import (
    BENCHMARKS,
    ROOT,
    Circumstances,
    Measured,
    Section,
    circumstances,
    keep,
    load,
    render,
    same_code,
)
from workflows.benchmarks.sections import SECTIONS

PATIENCE = 6
"""How many times as long as it is said to take a benchmark may take, until it is ended."""
LEAST_PATIENCE = 1200.0
WAIT_SECONDS = 600.0
"""How long a machine that was quiet at first is waited for in between."""
FOR_EVER = 7 * 86400.0
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Row:
    """A benchmark, as the pages have it.

    Attributes:
        name: Of its file of figures.
        says: What it measures.
        script: Its script.
        options: Its options, at the sizes of the pages.
        quick: What makes it tiny, in their place.
        minutes: How long it takes, about.
        needs: Modules that it compares with.
        long: Whether it is left out unless it is asked for.
    """

    name: str
    says: str
    script: str
    options: str
    quick: str
    minutes: float
    needs: tuple[str, ...] = ()
    long: bool = False

    def command(self, options: str) -> str:
        """Its command line, in the folder of benchmarks."""
        return f"{self.script} {options}".rstrip()


ROWS = (
    Row("mlp_hessian", "a network's Hessian, against skerch in memory", "mlp_hessian.py",
        "--repeats 4", "--repeats 1 --measurements 60 --tests 8", 2.5, ("skerch", "curvlinops")),
    Row("matrix_svd", "a matrix on disk, against dask and scikit-learn", "matrix_svd.py",
        "--repeats 3", "--repeats 1 --rows 9000 --columns 300 --chunk-rows 5000 --threads 1", 3.5,
        ("sklearn", "distributed")),
    Row("recovery", "vectors from a sketch on disk, against dask", "recovery.py",
        "--repeats 1", "--repeats 1 --rows 9000 --columns 32 --chunk-rows 5000 --threads 1", 3.5,
        ("distributed",)),
    Row("resnet18_scale", "all stages at half of a ResNet-18", "resnet18_scale.py",
        "--rows 6000000 --slabs 0",
        "--rows 9000 --columns 40 --goal 80 --slabs 0 --threads 1", 2.2),
    Row("noise", "making test matrices, against skerch", "noise.py",
        "", "--rows 1000 --columns 64 --repeats 1", 0.6, ("skerch",)),
    Row("pca", "principal components, against scikit-learn", "pca.py",
        "--repeats 3", "--rows 2000 --columns 40 --repeats 1", 1, ("sklearn",)),
    Row("dask_overhead", "what Dask costs for a task, what a second worker gains",
        "dask_overhead.py", "--repeats 3",
        "--repeats 1 --tasks 200 --size 200 --rows 150000 --columns 8 --threads 1", 3,
        ("distributed",)),
    Row("comparison", "small problems, against everybody", "comparison.py",
        "--only dense free --repeats 3 --threads 2",
        "--only dense free --repeats 1 --rows 300 --columns 200 --size 3000 --threads 1", 5,
        ("sklearn", "scipy", "distributed", "skerch")),
    Row("leading", "20 leading pairs to a tolerance, against everybody", "leading.py",
        "--pairs 20 --tolerances 1e-4", "--pairs 20 --tolerances 1e-4 --size 500 "
        "--problems flat inverse exponential singular --contenders scipy krylov nystrom hmt", 6,
        ("scipy", "skerch", "primme", "hessian_eigenthings")),
    Row("matrices", "matrices in files, against what people use", "matrices.py",
        "--repeats 1",
        "--repeats 1 --rows 6000 --columns 300 --sparse-rows 3000 --sparse-columns 1000 "
        "--entries 60 --svd-rows 6000 --svd-columns 300 --chunk-rows 3000 --threads 1", 9.5,
        ("sklearn", "scipy", "distributed", "zarr")),
    Row("dask_scaling", "hundreds of workers on Dask's scheduler", "dask_scaling.py",
        "--repeats 1",
        "--repeats 1 --workers 1 3 --task-seconds 0.01 --seconds 0.1 --tasks 30 --hosted 2", 1.5,
        ("distributed",)),
    Row("billion_rows", "what a billion rows take, from a small run", "billion_rows.py",
        "--columns 256", "--rows 9000 --columns 32", 1.5),
    Row("leading_more", "10 and 50 pairs, to two tolerances", "leading.py",
        "--problems inverse exponential --pairs 10 50 --tolerances 1e-4 1e-6 --widths 8 16 "
        "--contenders scipy krylov 'PRIMME, blocks of 8'",
        "--problems inverse --pairs 10 50 --tolerances 1e-4 1e-6 --widths 8 --equal 8 --size 300 "
        "--contenders scipy krylov", 3.5, ("scipy", "primme")),
    Row("accuracy_hermitian", "how accurate methods are on Hermitian matrices", "accuracy.py",
        "--table hermitian --seeds 10", "--table hermitian --seeds 1", 1.2),
    Row("accuracy_general", "the same on synthetic matrices, at several budgets", "accuracy.py",
        "--table general --seeds 10", "--table general --seeds 1", 2),
    Row("accuracy_one_pass", "the same for one pass of svd, against skerch", "accuracy.py",
        "--table one-pass --seeds 20", "--table one-pass --seeds 1", 0.5, ("skerch",)),
    Row("workflow_times", "processor seconds of the workflows", "workflow_times.py",
        "", "--only matrix_pca.py", 8, ("curvlinops", "sklearn", "distributed"), long=True),
    Row("thousand_workers", "a thousand workers on Dask's scheduler", "dask_scaling.py",
        "--workers 1000 --tasks 100000 --task-seconds 1 --seconds 30 --hosted 250 --repeats 1",
        "--workers 3 --tasks 30 --task-seconds 0.01 --seconds 0.1 --hosted 2 --repeats 1", 6,
        ("distributed",), long=True),
)  # fmt: skip
"""The most important first."""

NOT_IN_PAGES = {
    "gpu.py": "it needs a GPU, and no page states the speed of one",
    "killed_ggn.py": "it says whether a killed run ends with the right values, not how fast",
    "object_store.py": "its server is a stand-in, whose speed says nothing of a store",
    "products.py": "it is for those who work on products; no page has its figures",
    "status.py": "it is for those who work on status; no page has its figures",
    "storage.py": "it is for those who work on files; no page has its figures",
}
"""Benchmarks that are run by hand, and why."""


def measure(row: Row, options: str, folder: Path | None, patience: float) -> Measured:
    """Runs a benchmark.

    Raises:
        RuntimeError: If it fails, or does not end.
    """
    where = circumstances()
    look, start = quiet.Look.now(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="skerch-ooc-all-", dir=folder) as scratch:
        file = Path(scratch) / "figures.json"
        # All sizes but those that are given follow from the machine.
        environment = {key: it for key, it in os.environ.items() if key not in THREADS}
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        environment |= {"PYTHONPATH": path, "TMPDIR": scratch}
        script = ROOT / BENCHMARKS / row.script
        command = [sys.executable, str(script), *shlex.split(options), "--json", str(file)]
        _run(command, environment, patience)
        if not file.exists():
            raise RuntimeError("it wrote no figures")
        figures = json.loads(file.read_text())
    others = look.others() if look else None
    return Measured(row.command(options), where, time.monotonic() - start, others, figures)


def _run(command: Sequence[str], environment: dict[str, str], patience: float) -> None:
    """Runs a command; all that it started ends with it."""
    process = subprocess.Popen(command, env=environment, cwd=ROOT, start_new_session=True)
    try:
        code = process.wait(patience)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"it was ended after {patience / 60:.0f} minutes") from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if code:
        raise RuntimeError(f"it exited with {code}")


def measure_all(rows: Sequence[Row], options: argparse.Namespace) -> dict[str, str]:
    """Measures rows one after the other; returns what failed, and why."""
    failed = {row.name: missing for row in rows if (missing := missing_for(row))}
    for name, missing in failed.items():
        common.say(f"== {name} is left out: {missing}")
    rows = [row for row in rows if row.name not in failed]
    for number, row in enumerate(rows, 1):
        common.say(f"== {number} of {len(rows)}, {row.name}: about {row.minutes:g} min")
        try:
            if not options.busy and (said := quiet.wait_until_quiet(WAIT_SECONDS)):
                raise RuntimeError(said)
            patience = max(LEAST_PATIENCE, PATIENCE * 60 * row.minutes)
            found = measure(row, row.options, options.folder, patience)
            keep(row.name, found)
            for page in render(chosen_sections((row.name,)), stored()):
                common.say(f"== {page} is written anew")
        except Exception as error:  # noqa: BLE001 (the others are measured all the same)
            failed[row.name] = str(error)
            common.say(f"== {row.name} failed: {error}")
    return failed


def missing_for(row: Row) -> str | None:
    """What a benchmark compares with and is not there: without it, figures would be lost."""
    command = [sys.executable, "-c", "".join(f"import {name}\n" for name in row.needs)]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stderr.splitlines()[-1] if done.returncode else None


def try_all(rows: Sequence[Row], options: argparse.Namespace) -> dict[str, str]:
    """Runs rows at tiny sizes, and makes what sections would say of them; writes nothing."""
    failed, found = {}, {}
    for row in rows:
        try:
            found[row.name] = measure(row, row.quick, options.folder, LEAST_PATIENCE)
        except RuntimeError as error:
            failed[row.name] = str(error)
    for section in chosen_sections(tuple(row.name for row in rows)):
        if {*section.rows} <= {*found}:
            print(f"{section.page}, {section.name}:\n{section.text(found)}")
    return failed


def chosen_sections(names: Sequence[str]) -> list[Section]:
    """The sections that are made of any of these rows."""
    return [section for section in SECTIONS if {*section.rows} & {*names}]


def stored() -> dict[str, Measured]:
    """All figures that are there."""
    found = {}
    for row in ROWS:
        try:
            found[row.name] = load(row.name)
        except FileNotFoundError:
            common.say(f"{row.name} was never measured")
    return found


def rows_of(options: argparse.Namespace) -> list[Row]:
    """The rows that are asked for."""
    if options.only:
        return [row for row in ROWS if row.name in options.only]
    rows = [row for row in ROWS if options.long or not row.long]
    return [row for row in rows if not (options.resume and _is_done(row))]


def _is_done(row: Row) -> bool:
    """Whether its figures are those of this code, measured as the table has it."""
    try:
        found = load(row.name)
    except FileNotFoundError:
        return False
    return found.command == row.command(row.options) and same_code(found.circumstances.commit)


def listing() -> Iterator[str]:
    """What there is, for people: what it took last time, or is thought to take."""
    figures = stored()
    taken = {row.name: row.minutes for row in ROWS}
    taken |= {name: found.seconds / 60 for name, found in figures.items()}
    for row in ROWS:
        where = _where(figures[row.name].circumstances) if row.name in figures else "never"
        only = ", with --long" if row.long else ""
        yield f"{row.name:20}{taken[row.name]:5.1f} min  {row.says}{only}; {where}"
    usual = sum(taken[row.name] for row in ROWS if not row.long)
    yield f"{'all':20}{usual:5.0f} min  without those that take long"


def _where(found: Circumstances) -> str:
    return f"{found.date}, {found.commit}"


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add: Any = parser.add_argument
    add("--list", action="store_true", help="say what there is, and how long it takes")
    add("--render", action="store_true", help="write the pages' sections anew, measure nothing")
    add("--quick", action="store_true", help="run all at tiny sizes; keep and write nothing")
    add("--only", nargs="+", metavar="NAME", choices=[row.name for row in ROWS], help="these")
    add("--long", action="store_true", help="those that take long, too")
    add("--resume", action="store_true", help="leave out what was measured of this code already")
    add("--wait", action="store_true", help="wait until nothing else is at work")
    add("--busy", action="store_true", help="measure although other programs are at work")
    add("--folder", type=Path, help="for all files, removed again; a temporary one")
    return parser.parse_args()


def main() -> int:
    """Reads the command line, and does what it asks for."""
    options = arguments()
    # Whoever ends this ends the benchmark at work, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if options.list:
        print("\n".join(listing()))
        return 0
    if options.render:
        print("\n".join(render(SECTIONS, stored())) or "nothing has changed")
        return 0
    rows = rows_of(options)
    if options.quick:
        return _report(try_all(rows, options))
    said = None if options.busy else quiet.wait_until_quiet(FOR_EVER if options.wait else 0.0)
    if said:
        common.say(f"{said}: end them, or give --wait, or --busy to measure all the same")
        return 2
    # The first process of a benchmark is as fast as the others.
    subprocess.run([sys.executable, "-m", "compileall", "-q", ROOT / "skerch_ooc"], check=False)
    return _report(measure_all(rows, options))


def _report(failed: dict[str, str]) -> int:
    for name, why in failed.items():
        common.say(f"failed: {name}: {why}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
