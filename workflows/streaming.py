r"""Batches that arrive one after the other, and are forgotten slowly.

The covariance of a stream whose leading direction turns a little with every batch, as
``C <- forget C + (1 - forget) B``: only the covariance ``B`` of the new batch is measured, and
after each the decomposition is that of the weighted sum, error figures included. It is compared
with the truth, and with a run that forgets nothing (``forget = n / (n + 1)``, the plain mean).

    python workflows/streaming.py --runs runs/stream --batches 6 --forget 0.5

Needs nothing but the package. Makes the runs ``forgetting`` and ``mean`` of streaming.toml.
From the command line a batch is added by

    skerch-ooc update DIR --factory workflows/streaming.py:covariance --arg batch=1 \
        --arg dimension=5000 --arg samples=200 --forget 0.5 --scale 0.5
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parent.parent))

import skerch_ooc as ooc
from workflows.shared import HERE, decomposed, parser, print_table, share, spec_of

TURN = 0.3
"""By how much the leading direction turns from batch to batch, in radians."""


class Covariance:
    """The covariance of the rows of a matrix, which is never formed."""

    def __init__(self, rows: torch.Tensor) -> None:
        self.rows = rows
        self.shape = (rows.shape[1], rows.shape[1])
        self.dtype = rows.dtype

    def __matmul__(self, x: torch.Tensor) -> torch.Tensor:
        return self.rows.T @ (self.rows @ x) / len(self.rows)


def direction(batch: int, dimension: int) -> torch.Tensor:
    """The direction in which samples of a batch vary most."""
    angle = torch.tensor(TURN * batch, dtype=torch.float64)
    found = torch.zeros(dimension, dtype=torch.float64)
    found[0], found[1] = torch.cos(angle), torch.sin(angle)
    return found


def samples_of(batch: int, dimension: int, samples: int) -> torch.Tensor:
    """The samples of a batch: one strong direction, ten weaker ones that stay, little noise."""
    random = torch.Generator().manual_seed(1000 + batch)
    strong = torch.randn(samples, 1, dtype=torch.float64, generator=random)
    weak = torch.randn(samples, 10, dtype=torch.float64, generator=random)
    rows = 1e-3 * torch.randn(samples, dimension, dtype=torch.float64, generator=random)
    rows[:, 2:12] += 0.5 * weak
    return rows + 3.0 * strong * direction(batch, dimension)


def covariance(batch: int, dimension: int = 5000, samples: int = 200) -> Covariance:
    """The covariance of a batch; the factory of streaming.toml."""
    return Covariance(samples_of(batch, dimension, samples))


@dataclass(frozen=True)
class Moment:
    """The stream after a batch.

    Attributes:
        batch: Its number.
        products: All products of the run so far, without probes.
        error: Relative error by the test vectors.
        off: Largest relative difference of the three leading eigenvalues to the truth.
        newest: Share of the newest batch's direction in the leading eigenvector.
    """

    batch: int
    products: int
    error: float
    off: float
    newest: float


def truth(spec: ooc.Spec, weights: Sequence[float]) -> torch.Tensor:
    """The eigenvalues of a weighted sum of the batches' covariances, in descending order."""
    size = {name: spec.operator.args[name] for name in ("dimension", "samples")}
    rows = torch.cat(
        [(weight / size["samples"]) ** 0.5 * samples_of(batch, **size)
         for batch, weight in enumerate(weights)]
    )  # fmt: skip
    squares: torch.Tensor = torch.linalg.eigvalsh(rows @ rows.T)
    return squares.flip(0)


def stream(
    spec: ooc.Spec, run_dir: Path, batches: int, forget: float | None, threads: int | None
) -> list[Moment]:
    """Decomposes the first batch, then adds the others; ``forget=None`` keeps the mean."""
    eig, assessment = decomposed(spec, run_dir, threads)
    run, weights, moments = ooc.open_run(run_dir), [1.0], []
    for batch in range(batches):
        if batch:
            old = batch / (batch + 1) if forget is None else forget
            weights = [*(old * weight for weight in weights), 1 - old]
            added = ooc.OperatorSpec(
                factory=f"{HERE / 'streaming.py'}:covariance",
                args={**spec.operator.args, "batch": batch},
            )
            run = ooc.update(run, added, scale=1 - old, forget=old, threads=threads)
            eig, assessment = ooc.recover(run, threads=threads), ooc.assess(run)
        expected, leading = truth(spec, weights)[:3], eig.eigenvectors[:, :1]
        assert assessment.relative_error is not None
        moments.append(
            Moment(
                batch=batch,
                products=assessment.products["done"],
                error=assessment.relative_error,
                off=float((eig.eigenvalues[:3] / expected - 1).abs().max()),
                newest=share(direction(batch, spec.operator.args["dimension"]), leading),
            )
        )
    return moments


def main(arguments: Sequence[str] | None = None) -> tuple[list[Moment], list[Moment]]:
    """Streams twice, with and without forgetting, and prints how well each keeps up."""
    options = parser(__doc__, "runs/stream")
    options.add_argument("--batches", type=int, default=6)
    options.add_argument("--forget", type=float, default=0.5)
    given = options.parse_args(arguments)
    if given.runs.exists():
        raise SystemExit(f"{given.runs} is there already; give other --runs")
    spec = spec_of("streaming.toml", given.set)
    forgetting, mean = (
        stream(spec, given.runs / name, given.batches, forget, given.threads)
        for name, forget in (("forgetting", given.forget), ("mean", None))
    )
    print_table(
        ("batch", "products", "error", "off the truth", "of the newest direction", "by the mean"),
        [(str(now.batch), str(now.products), f"{now.error:.1e}", f"{now.off:.1e}",
          f"{now.newest:.1%}", f"{plain.newest:.1%}")
         for now, plain in zip(forgetting, mean, strict=True)],
    )  # fmt: skip
    return forgetting, mean


if __name__ == "__main__":
    main()
