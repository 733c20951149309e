"""Eigenspaces of the Hessian and large parameters, while a network is trained.

At several epochs the leading eigenpairs of the digits network's Hessian are found in rounds of
products; the same rounds tell the density of the whole spectrum. Then subspaces are compared: the
leading eigenvectors with those of the end of training, and with the parameters that pruning by
magnitude would keep. It is the study of Fernandez, Schneider, Mahsereci and Hennig 2025 (arXiv
2504.14701) in small: there eigenvectors lie more among the largest parameters than chance says.

    python workflows/eigenspace_overlap.py --runs runs/overlap

Needs the extra ``workflows``. Makes a run for each epoch; of runs that are there it only prints the
figures, at no product.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).resolve().parent.parent))

import skerch_ooc as ooc
from workflows.digits_hessian import problem
from workflows.shared import parser, print_table, spec_of

EPOCHS = (0, 1, 3, 10, 30)
SHARES = (0.01, 0.1)
"""Parts of the parameters that masks keep."""

SETTINGS = ("recovery.method=krylov", "recovery.rank=10", "rounds=20")
"""A number of rounds, not a tolerance: untrained, the leading values lie close to one another."""


@dataclass(frozen=True)
class Snapshot:
    """What the network is like after some epochs.

    Attributes:
        eig: The leading eigenpairs.
        bulk: The share of the eigenvalues that are below a hundredth of the largest.
        masks: For each share of the parameters the overlap of the eigenvectors with the largest.
        final: The overlap with the eigenvectors of the end of training.
    """

    eig: ooc.Eigh
    bulk: float
    masks: dict[float, ooc.Overlap]
    final: ooc.Overlap


def main(arguments: Sequence[str] | None = None) -> dict[int, Snapshot]:
    """Makes the runs that are not there, and prints what they say."""
    given = parser(__doc__, "runs/overlap").parse_args(arguments)
    specs = {
        epochs: spec_of(
            "digits_hessian.toml", [*SETTINGS, *given.set, f"operator.args.epochs={epochs}"]
        )
        for epochs in EPOCHS
    }
    runs = {epochs: given.runs / f"epoch-{epochs:02d}" for epochs in EPOCHS}
    results = {
        epochs: ooc.run(spec, runs[epochs], threads=given.threads) for epochs, spec in specs.items()
    }
    found = {
        epochs: snapshot(runs[epochs], result, magnitudes(specs[epochs]), results[EPOCHS[-1]])
        for epochs, result in results.items()
    }
    print_table(
        ("epochs", "no. 1", "no. 10", "bound", "bulk", "in the final",
         *(f"in the largest {share:.0%}" for share in SHARES)),
        [row(epochs, one) for epochs, one in found.items()],
    )  # fmt: skip
    last = found[EPOCHS[-1]]
    for share, overlap in last.masks.items():
        print(
            f"Of the final eigenvectors {overlap.value:.1%} lie in the largest {share:.0%} of the "
            f"parameters; by chance it would be {overlap.at_random:.1%}."
        )
    return found


def magnitudes(spec: ooc.Spec) -> torch.Tensor:
    """The sizes of the parameters that a spec's network has, in the order of the vectors."""
    given: dict[str, Any] = {
        key: value for key, value in spec.operator.args.items() if key != "curvature"
    }
    model, _, _ = problem(**given)
    return torch.cat([p.detach().abs().reshape(-1) for p in model.parameters()])


def snapshot(run: Path, eig: Any, sizes: torch.Tensor, final: Any) -> Snapshot:
    """Compares the leading eigenvectors of a run with large parameters, and with the final ones."""
    density = ooc.density(run)
    masks = {
        share: ooc.overlap(eig, sizes.topk(round(share * len(sizes))).indices) for share in SHARES
    }
    small = 0.01 * float(eig.eigenvalues.abs().max())
    bulk = density.count(-small, small).value / density.n
    return Snapshot(eig, bulk, masks, ooc.overlap(eig, final))


def row(epochs: int, one: Snapshot) -> list[str]:
    """A line of the table."""
    values, bounds = one.eig.eigenvalues, one.eig.bounds
    assert bounds is not None
    bound = float(bounds.max())
    return [
        str(epochs), f"{values[0]:.4g}", f"{values[-1]:.4g}", f"{bound:.1g}", f"{one.bulk:.1%}",
        f"{one.final.value:.0%}", *(f"{overlap.value:.0%}" for overlap in one.masks.values()),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
