"""What the benchmarks share: measured child processes, room on the disk, tables of ratios.

Whatever is timed runs in a process of its own, which fixes its threads before any library is
loaded. A script names the functions that such a process may call by :func:`serve_part`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import queue
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Part = Callable[..., dict[str, Any]]

POLL_SECONDS = 0.02
TILE_ROWS = 4096
SPARE_BYTES = 1 << 30


@dataclass(frozen=True)
class Child:
    """What a process took.

    Attributes:
        wall: Seconds, with its start.
        user: Processor seconds of it and its children.
        system: Seconds of the kernel for it: reads, writes, pages of fresh memory.
        peak: Resident bytes at their highest; of all processes together if it starts some.
        output: Its standard output.
    """

    wall: float
    user: float
    system: float
    peak: int
    output: str

    def figures(self) -> dict[str, float]:
        """All but the output."""
        return {"wall": self.wall, "user": self.user, "system": self.system, "peak": self.peak}


def run_child(command: Sequence[str], threads: int, warm: bool = False) -> Child:
    """Runs a process and measures it.

    Args:
        command: What to run; its standard error is passed on.
        threads: For the linear algebra in it.
        warm: Whether free memory is touched before; see :func:`touch_memory`.

    Raises:
        RuntimeError: If it fails.
    """
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    environment = os.environ | dict.fromkeys(names, str(threads))
    if warm:
        # Should memory run short meanwhile, it is this process that is ended, and no harm done.
        subprocess.run([sys.executable, __file__], check=False)
    start = time.perf_counter()
    # A file, not a pipe: nobody reads while it runs.
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, env=environment)
        peak = 0
        try:
            while True:
                ended, status, usage = os.wait4(process.pid, os.WNOHANG)
                if ended:
                    break
                peak = max(peak, resident_bytes(process.pid))
                time.sleep(POLL_SECONDS)
        except BaseException:
            process.kill()
            raise
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} exited with {process.returncode}")
    return Child(wall, usage.ru_utime, usage.ru_stime, peak, text)


class Stopwatch:
    """Takes the time from when it is made.

    Processor time says more than the clock where other programs are at work.
    """

    def __init__(self) -> None:
        self._clock, self._processor = time.perf_counter(), time.process_time()

    def figures(self) -> dict[str, float]:
        """Seconds by the clock, and of the processor for all threads of this process."""
        return {
            "seconds": time.perf_counter() - self._clock,
            "processor": time.process_time() - self._processor,
        }


def touch_memory() -> None:
    """Writes to all memory that is free, and lets go of it.

    A virtual machine may hand free memory back to its host, and to get it again may take longer
    than to write as much to a disk: for a process, and for the files that it writes, as they pass
    through the page cache. Which part of it is gone, nobody knows; so it is got back before.
    """
    free = 0
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemFree:"):
                free = int(line.split()[1]) * 1024
    zeros = bytes(1 << 22)
    if free > SPARE_BYTES:
        with mmap.mmap(-1, free - SPARE_BYTES) as memory:
            for start in range(0, len(memory) - len(zeros), len(zeros)):
                memory[start : start + len(zeros)] = zeros


def resident_bytes(pid: int) -> int:
    """Resident bytes of a process and its descendants.

    Of one without descendants the highest so far. (Not ``ru_maxrss``, which a process inherits
    from the one that started it.)
    """
    family = [pid]
    for member in family:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{member}/task").iterdir():
                family += [int(child) for child in (task / "children").read_text().split()]
    if len(family) == 1:
        return _status_bytes(pid, "VmHWM:")
    return sum(_status_bytes(member, "VmRSS:") for member in family)


def _status_bytes(pid: int, key: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    sizes = [int(line.split()[1]) * 1024 for line in lines if line.startswith(key)]
    return sizes[0] if sizes else 0


def run_cli(*arguments: object, threads: int, warm: bool = False) -> Child:
    """Runs ``skerch-ooc`` with these arguments; the others are those of :func:`run_child`."""
    return run_child([sys.executable, "-m", "skerch_ooc", *map(str, arguments)], threads, warm)


def run_part(
    script: str, function: Part, threads: int, warm: bool = False, **arguments: Any
) -> tuple[Child, dict[str, Any]]:
    """Calls a function of a script in a process of its own.

    Args:
        script: The script's ``__file__``.
        function: One of those that the script hands to :func:`serve_part`.
        threads: For the linear algebra in it.
        warm: As of :func:`run_child`.
        arguments: Its keyword arguments, JSON values.

    Returns:
        What the process took, and what the function returned.
    """
    child = run_child(
        [sys.executable, script, "--part", function.__name__, json.dumps(arguments)],
        threads,
        warm,
    )
    return child, json.loads(child.output.splitlines()[-1])


def serve_part(functions: Sequence[Part]) -> bool:
    """Does what :func:`run_part` asks for, if this process was started by it.

    Returns:
        Whether it was: then there is nothing else to do.
    """
    if sys.argv[1:2] != ["--part"]:
        return False
    name, arguments = sys.argv[2:]
    chosen = {function.__name__: function for function in functions}[name]
    print(json.dumps(chosen(**json.loads(arguments))))
    return True


def write_spec(
    path: Path, rows: int, columns: int, tests: int, block: int, rank: int, decades: float
) -> None:
    """Writes the spec of an operator that costs next to nothing and whose spectrum is known.

    Args:
        path: The spec file.
        rows: Height and width of the operator.
        columns: Columns of the sketch.
        tests: Columns of the test sketch.
        block: Columns of a shard.
        rank: Eigenvalues that are not zero; they alternate in sign and fall off evenly.
        decades: By how many powers of ten they fall off.
    """
    path.write_text(
        f'kind = "eigh"\nmeasurements = {columns}\ndtype = "float32"\n'
        "[operator]\n"
        'factory = "skerch_ooc.operators.synthetic:decaying"\n'
        f"shape = [{rows}, {rows}]\n"
        f"args = {{ n = {rows}, rank = {rank}, rate = {decades / rank} }}\n"
        f"[sketch]\ntest_measurements = {tests}\nblock = {block}\n"
    )


def known_eigenvalues(rank: int, decades: float) -> list[float]:
    """The eigenvalues of the operator of :func:`write_spec`, in descending magnitude."""
    return [(-1) ** i * 10 ** (-decades / rank * i) for i in range(rank)]


def clear(*folders: Path) -> None:
    """Removes what folders hold, not the folders."""
    for folder in folders:
        for entry in folder.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def remove(folder: Path) -> None:
    """Removes a folder and all that it holds."""
    shutil.rmtree(folder)


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in a folder and below."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def gemm_seconds(
    rows: int, columns: int, threads: int, tiles: int | None = None
) -> dict[str, float]:
    """The least that a merge has to compute, straightforwardly, in double precision.

    For each tile of 4096 rows ``Y^T Y`` (of which numpy computes one half) and ``Omega^T Y``, each
    tile in one thread and several at once, on data that are in the cache already.

    Args:
        rows: Rows of the sketch.
        columns: Columns of the sketch.
        threads: Tiles at once.
        tiles: Computes only that many tiles and scales the seconds to all rows.

    Returns:
        Seconds of both products, and the rate of the second.
    """
    import numpy as np
    from threadpoolctl import threadpool_limits

    generator = np.random.default_rng(1)
    height = min(TILE_ROWS, rows)
    y = generator.standard_normal((height, columns))
    omega = generator.choice([-1.0, 1.0], (height, columns))
    count = tiles or -(-rows // height)

    def seconds_of(left: Any) -> float:
        places = queue.SimpleQueue[Any]()
        for _ in range(threads):
            places.put(np.zeros((columns, columns)))

        def multiply(_: int) -> None:
            place = places.get()
            np.matmul(left.T, y, out=place)
            places.put(place)

        with ThreadPoolExecutor(threads) as pool:
            # Once without a clock.
            list(pool.map(multiply, range(threads)))
            start = time.perf_counter()
            list(pool.map(multiply, range(count)))
            return time.perf_counter() - start

    with threadpool_limits(1):
        gram, cross = seconds_of(y), seconds_of(omega)
    scale = rows / (count * height)
    rate = 2 * count * height * columns**2 / cross / 1e9
    return {"gram": gram * scale, "cross": cross * scale, "gflops": rate}


def median_of(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of each figure."""
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the ratios of figures that were taken in turn."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


@dataclass(frozen=True)
class Goal:
    """A figure with what it should be.

    Attributes:
        name: What it is.
        value: What was measured.
        sign: ``"<="`` or ``">="``.
        limit: What it should be.
    """

    name: str
    value: float
    sign: str
    limit: float

    @property
    def met(self) -> bool:
        """Whether it is as it should be."""
        return self.value <= self.limit if self.sign == "<=" else self.value >= self.limit

    def as_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"value": self.value, "sign": self.sign, "limit": self.limit, "met": self.met}


def goal_table(goals: Sequence[Goal]) -> str:
    """Goals, for people."""
    width = max(len(goal.name) for goal in goals)
    return "\n".join(
        f"{goal.name:<{width}} {goal.value:10.3g}   goal {goal.sign} {goal.limit:g}: "
        + ("met" if goal.met else "MISSED")
        for goal in goals
    )


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table: the first column is flush left, the others flush right."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Adds the option for the file of :func:`write_json`."""
    parser.add_argument("--json", type=Path, help="write all figures to this file")


def argument_parser(description: str | None, rows: int, columns: int, repeats: int) -> Any:
    """A parser with the options that all benchmarks have."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=rows, help=f"of the sketch, {rows}")
    parser.add_argument("--columns", type=int, default=columns, help=f"of the sketch, {columns}")
    parser.add_argument("--repeats", type=int, default=repeats, help=str(repeats))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="all cores")
    parser.add_argument(
        "--warm", action="store_true",
        help="touch all free memory before whatever is timed: takes long, and makes figures "
        "steadier on virtual machines that hand free memory back to their host",
    )  # fmt: skip
    parser.add_argument("--folder", type=Path, help="for all files, removed again; a temporary one")
    add_json(parser)
    return parser


@contextlib.contextmanager
def scratch(parent: Path | None, needed: int) -> Iterator[Path]:
    """A folder for a benchmark's files, in ``parent``, removed at the end.

    Raises:
        SystemExit: If the disk has less room than is needed.
    """
    if parent:
        parent.mkdir(parents=True, exist_ok=True)
    # The folder is removed when somebody ends the benchmark, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="skerch-ooc-bench-", dir=parent) as name:
        free = shutil.disk_usage(name).free
        say(f"needs {needed / 1e9:.1f} GB of disk in {name}, {free / 1e9:.1f} GB are free")
        if free < needed:
            raise SystemExit("that is too little: give another --folder, or fewer --rows")
        yield Path(name)


def say(text: str) -> None:
    """Tells people how far it is."""
    print(text, file=sys.stderr, flush=True)


def write_json(path: Path | None, figures: Mapping[str, Any]) -> None:
    """Writes all figures, if they are wanted."""
    if path:
        path.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    touch_memory()
