"""Layer-wise Hessians of the digits network, against the Hessian of all its parameters.

One run for each layer, which is a diagonal block of the whole, and one for the whole: what do the
blocks tell of it? Their traces add up to the whole's; their Frobenius norms do not, and what is
missing is in the blocks off the diagonal.

    python workflows/digits_layers.py --runs runs/layers

Needs the extra ``workflows``. Makes the runs ``whole``, ``layer-0``, ``layer-2`` and ``layer-4`` of
digits_hessian.toml; of runs that are there it only prints the figures, at no product.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parent.parent))

import skerch_ooc as ooc
from workflows.shared import decomposed, parser, print_table, real, spec_of

LAYERS = ("0", "2", "4")
LEADING = 9


@dataclass(frozen=True)
class Block:
    """A layer's Hessian, or the whole one.

    Attributes:
        parameters: How many it has.
        values: Its eigenvalues.
        leading: The leading nine eigenvectors.
        trace: Its estimate.
        trace_error: One standard error of that.
        frobenius: Estimate of the Frobenius norm.
    """

    parameters: int
    values: torch.Tensor
    leading: torch.Tensor
    trace: float
    trace_error: float
    frobenius: float

    def row(self, name: str, part: float) -> tuple[str, ...]:
        """A line of the table."""
        return (
            name, f"{self.parameters:,}", f"{self.values[0]:.4g}", f"{self.values[LEADING]:.3g}",
            f"{self.trace:.3f} +- {self.trace_error:.3f}", f"{self.frobenius:.4g}", f"{part:.1%}",
        )  # fmt: skip


def block_of(settings: Sequence[str], run_dir: Path, threads: int | None) -> Block:
    """Decomposes a block, if that is not done."""
    eig, _ = decomposed(spec_of("digits_hessian.toml", settings), run_dir, threads)
    found = ooc.estimates(ooc.open_run(run_dir), threads=threads)
    trace, trace_error = real(found.trace)
    return Block(
        parameters=eig.shape[0],
        values=eig.eigenvalues,
        leading=eig.eigenvectors[:, :LEADING],
        trace=trace,
        trace_error=trace_error,
        frobenius=real(found.frobenius_norm)[0],
    )


def main(arguments: Sequence[str] | None = None) -> tuple[Block, list[Block], list[float]]:
    """Makes the runs that are not there, and prints what they say.

    Returns:
        The whole, the layers, and how much of the whole's leading eigenvectors lies in each layer.
    """
    given = parser(__doc__, "runs/layers").parse_args(arguments)
    whole = block_of(given.set, given.runs / "whole", given.threads)
    layers = [
        block_of([*given.set, f'operator.args.layers=["{name}"]'], given.runs / f"layer-{name}",
                 given.threads)
        for name in LAYERS
    ]  # fmt: skip
    rows = torch.split(whole.leading, [layer.parameters for layer in layers])
    parts = [float((piece**2).sum()) / LEADING for piece in rows]
    print_table(
        ("", "parameters", "largest", f"no. {LEADING + 1}", "trace", "norm", "of leading 9"),
        [layer.row(f"layer {name}", part)
         for name, layer, part in zip(LAYERS, layers, parts, strict=True)]
        + [whole.row("whole", sum(parts))],
    )  # fmt: skip
    trace = sum(layer.trace for layer in layers)
    squares = sum(layer.frobenius**2 for layer in layers)
    print(
        f"The traces of the layers add up to {trace:.3f}, that of the whole is {whole.trace:.3f}."
    )
    print(f"Outside of the layers' blocks is {1 - squares / whole.frobenius**2:.0%} "
          "of the squared Frobenius norm.")  # fmt: skip
    return whole, layers, parts


if __name__ == "__main__":
    main()
