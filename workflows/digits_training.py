"""The digits Hessian before and after training, against the gradient.

How many eigenvalues stand out, and how much of the gradient of the loss lies in the span of their
eigenvectors? (Sagun et al. 2017, arXiv 1706.04454, and Gur-Ari et al. 2018, arXiv 1812.04754, asked
both.)

    python workflows/digits_training.py --runs runs/training

Needs the extra ``workflows``. Makes two runs of digits_training.toml, ``before`` and ``after``; of
runs that are there it only prints the figures, which takes one training and a few products.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parent.parent))

import skerch_ooc as ooc
from workflows.digits_hessian import Batches, make, problem
from workflows.shared import decomposed, parser, print_table, share, spec_of

CLASSES = 10


@dataclass(frozen=True)
class State:
    """A network and its Hessian.

    Attributes:
        parameters: How many it has.
        loss: Of all digits.
        right: Share of the digits that it tells right.
        values: The leading eigenvalues.
        error: Relative error of the whole decomposition, in the Frobenius norm.
        residual: The largest ``||A u - v u|| / |v|`` of the leading nine pairs ``v, u``.
        gradient: Share of the gradient (of its squared norm) in the leading nine eigenvectors.
    """

    parameters: int
    loss: float
    right: float
    values: torch.Tensor
    error: float
    residual: float
    gradient: float

    @property
    def gap(self) -> tuple[int, float]:
        """After which of the leading 20 eigenvalues the largest gap is, and its ratio."""
        sizes = self.values[:21].abs()
        ratios = sizes[:-1] / sizes[1:]
        return int(ratios.argmax()) + 1, float(ratios.max())


def state_of(spec: ooc.Spec, run_dir: Path, threads: int | None) -> State:
    """Decomposes a Hessian, if that is not done, and compares it with the gradient."""
    eig, assessment = decomposed(spec, run_dir, threads)
    assert assessment.relative_error is not None
    leading, values = eig.eigenvectors[:, : CLASSES - 1], eig.eigenvalues
    loss, right, gradient = descent(*problem(**spec.operator.args))
    residuals = make(**spec.operator.args) @ leading - leading * values[: CLASSES - 1]
    return State(
        parameters=len(gradient),
        loss=loss,
        right=right,
        values=values,
        error=assessment.relative_error,
        residual=float((residuals.norm(dim=0) / values[: CLASSES - 1].abs()).max()),
        gradient=share(gradient, leading),
    )


def descent(
    model: torch.nn.Module, loss: torch.nn.Module, data: Batches
) -> tuple[float, float, torch.Tensor]:
    """The loss of all data, the share that is told right, and the gradient of the loss."""
    x, y = (torch.cat(tensors) for tensors in zip(*data, strict=True))
    outputs = model(x)
    value = loss(outputs, y)
    gradient = torch.autograd.grad(value, list(model.parameters()))
    right = float((outputs.argmax(1) == y).float().mean())
    return float(value.detach()), right, torch.cat([part.flatten() for part in gradient])


def main(arguments: Sequence[str] | None = None) -> tuple[State, State]:
    """Makes both runs, if they are not there, and prints the figures."""
    given = parser(__doc__, "runs/training").parse_args(arguments)
    untrained = [*given.set, "operator.args.epochs=0"]
    before, after = (
        state_of(spec_of("digits_training.toml", settings), given.runs / name, given.threads)
        for name, settings in (("before", untrained), ("after", given.set))
    )
    both, count = (before, after), CLASSES - 1
    print_table(
        ("", "before training", "after"),
        [
            ("loss", *(f"{state.loss:.3g}" for state in both)),
            ("digits told right", *(f"{state.right:.1%}" for state in both)),
            ("largest eigenvalue", *(f"{state.values[0]:.3g}" for state in both)),
            (f"eigenvalue {count}", *(f"{state.values[count - 1]:.3g}" for state in both)),
            (f"eigenvalue {count + 1}", *(f"{state.values[count]:.3g}" for state in both)),
            ("largest gap of the leading 20, after",
             *(f"{state.gap[0]} ({state.gap[1]:.1f} x)" for state in both)),
            (f"residual of the leading {count}", *(f"{state.residual:.1%}" for state in both)),
            (f"gradient in the leading {count}", *(f"{state.gradient:.1%}" for state in both)),
            ("  by chance it would be", *2 * (f"{count / before.parameters:.2%}",)),
            ("relative error, all", *(f"{state.error:.3g}" for state in both)),
        ],
    )  # fmt: skip
    print(f"{after.gap[0]} eigenvalues stand out after training, of {CLASSES} classes.")
    return before, after


if __name__ == "__main__":
    main()
