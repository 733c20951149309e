"""What several workflows share: their arguments, all stages in order, a table."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

import skerch_ooc as ooc

HERE = Path(__file__).resolve().parent


def parser(description: str | None, runs: str) -> argparse.ArgumentParser:
    """The arguments that all have, to which a workflow may add its own.

    Args:
        description: The docstring of the workflow.
        runs: Where its runs are by default.
    """
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--runs", type=Path, default=Path(runs), help=f"run directories ({runs})")
    made.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="replace a value of the spec",
    )
    made.add_argument("--threads", type=int, help="threads of a process; by default one per core")
    return made


def decomposed(
    spec: ooc.Spec, run_dir: Path, threads: int | None = None
) -> tuple[Any, ooc.Assessment]:
    """All stages, each of which finds what is done already; the result and its error."""
    result = ooc.run(spec, run_dir, threads=threads)
    return result, ooc.assess(run_dir)


def eigh_of(run: ooc.Run, **options: Any) -> ooc.Eigh:
    """The eigendecomposition of a run of ``kind = "eigh"``; one that is there costs nothing."""
    result = ooc.recover(run, **options)
    assert isinstance(result, ooc.Eigh)
    return result


def real(figure: ooc.Figure | None) -> tuple[float, float]:
    """An estimate of a real number, and its standard error."""
    assert figure is not None
    assert isinstance(figure.value, float)
    assert figure.standard_error is not None
    return figure.value, figure.standard_error


def spec_of(name: str, settings: Iterable[str] = ()) -> ooc.Spec:
    """A spec of this folder, with ``"key=value"`` texts that replace what it says."""
    return ooc.Spec.from_toml(HERE / name, list(settings))


def share(vectors: torch.Tensor, within: torch.Tensor) -> float:
    """How much of some orthonormal vectors lies in the span of others: 0 to 1.

    It is the mean of the squared cosines of the principal angles; for one vector, the square of the
    cosine of its angle to the span.

    Args:
        vectors: ``(p, k)`` or ``(p,)``, which is normalised.
        within: ``(p, r)``, orthonormal.
    """
    columns = vectors.double().reshape(len(vectors), -1)
    inside = within.double().T @ columns
    return float((inside**2).sum() / (columns**2).sum())


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints texts in columns: the first to the left, others to the right."""
    lines = [list(head), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        print("  ".join(cells).rstrip())
