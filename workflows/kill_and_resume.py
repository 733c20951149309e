"""A run that is killed in the middle of measuring, and goes on.

Starts ``skerch-ooc run``, ends it by SIGKILL once a few shards are published, runs the same command
again, and does it all once more undisturbed: no product of a published shard was repeated, and the
results have the same bits.

    python workflows/kill_and_resume.py --runs runs/kill --after 5

Needs the extra ``workflows``, and a system that knows SIGKILL. Makes the runs ``killed`` and
``undisturbed`` of digits_hessian.toml, or another ``--spec`` of ``kind = "eigh"``, in blocks of 16
columns.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parent.parent))

import skerch_ooc as ooc
from workflows.shared import HERE, eigh_of, parser

PATIENCE = 600.0


@dataclass(frozen=True)
class Story:
    """What happened.

    Attributes:
        before: Columns that were published when the run was killed.
        first: Products of the first process that the run has receipts of.
        second: Those of the second.
        planned: Columns of the plan.
        untouched: Whether the shards of the first process are the same files as before.
        same_bits: Whether values and vectors are those of the undisturbed run.
    """

    before: int
    first: int
    second: int
    planned: int
    untouched: bool
    same_bits: bool


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    """What identifies the published shards: inode and time of the last change."""
    stats = {path.name: path.stat() for path in folder.glob("[!.]*.h5")}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


def kill_when_measured(command: Sequence[str], run_dir: Path, shards: int) -> None:
    """Starts a command and kills it when so many shards are there, or more."""
    process = subprocess.Popen(command)
    end = time.monotonic() + PATIENCE
    while len(files_of(run_dir / "shards")) < shards:
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            raise SystemExit(f"{run_dir} was not measuring any more; give a smaller --after")
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def products_of(run_dir: Path) -> dict[int, int]:
    """Columns that each process measured and published, in the order in which they came."""
    products: dict[int, int] = {}
    for receipt in ooc.open_run(run_dir).receipts():
        if receipt.get("stage") == "measure" and receipt["published"]:
            products[receipt["pid"]] = products.get(receipt["pid"], 0) + receipt["products"]
    return products


def main(arguments: Sequence[str] | None = None) -> Story:
    """Kills, resumes, compares."""
    options = parser(__doc__, "runs/kill")
    options.add_argument("--after", type=int, default=5, help="shards after which it is killed")
    options.add_argument("--spec", type=Path, default=HERE / "digits_hessian.toml")
    given = options.parse_args(arguments)
    killed, undisturbed = given.runs / "killed", given.runs / "undisturbed"
    if killed.exists():
        raise SystemExit(f"{killed} is there already; give other --runs")
    base = [sys.executable, "-m", "skerch_ooc", "run", str(given.spec)]
    base += [f"--threads={given.threads or 1}", "--set=sketch.block=16"]
    base += [f"--set={text}" for text in given.set]

    kill_when_measured([*base, f"--run={killed}"], killed, given.after)
    shards = files_of(killed / "shards")
    print(f"killed by SIGKILL with {len(shards)} shards published", flush=True)
    for directory in (killed, undisturbed):
        subprocess.run([*base, f"--run={directory}"], check=True)
    return compared(killed, undisturbed, shards)


def compared(killed: Path, undisturbed: Path, shards: dict[str, tuple[int, int]]) -> Story:
    """What the two runs have in common, and what the two processes of the first did."""
    run = ooc.open_run(killed)
    # Results that are there already.
    eig, expected = (eigh_of(ooc.open_run(directory)) for directory in (killed, undisturbed))
    *first, second = products_of(killed).values()
    assessment = ooc.assess(run)
    story = Story(
        before=sum(columns_of(name) for name in shards),
        first=sum(first),
        second=second,
        planned=assessment.products["planned"],
        untouched=files_of(killed / "shards").items() >= shards.items(),
        same_bits=torch.equal(eig.eigenvalues, expected.eigenvalues)
        and torch.equal(eig.eigenvectors[:], expected.eigenvectors[:]),
    )
    print(f"planned {story.planned} products; {story.before} were published before, "
          f"{story.second} measured after")  # fmt: skip
    print(f"shards of the first process untouched: {story.untouched}")
    print(f"values and vectors have the bits of an undisturbed run: {story.same_bits}")
    return story


def columns_of(shard: str) -> int:
    """How many columns a shard has, by its name: ``right.p0.c16-32.r0-16522.h5``."""
    first, last = shard.split(".")[2].removeprefix("c").split("-")
    return int(last) - int(first)


if __name__ == "__main__":
    main()
