"""The generalised Gauss-Newton matrix of the digits network, against its Hessian.

The Hessian is the Gauss-Newton matrix and a rest, which has the curvature of the network itself and
weighs as much as the loss's gradient with respect to the outputs: little, once the network fits
(Schraudolph 2002, "Fast curvature matrix-vector products for second-order gradient descent").

    python workflows/digits_ggn.py --runs runs/ggn

Needs the extra ``workflows``. Makes the runs ``hessian`` and ``ggn`` of digits_hessian.toml; of
runs that are there it only prints the figures, at no product.
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
from workflows.shared import decomposed, parser, print_table, real, share, spec_of

LEADING = 9


@dataclass(frozen=True)
class Comparison:
    """What the two have in common.

    Attributes:
        hessian: Eigenvalues of the Hessian.
        ggn: Those of the Gauss-Newton matrix.
        overlaps: By how many leading eigenvectors of each, how much of their spans is common.
    """

    hessian: torch.Tensor
    ggn: torch.Tensor
    overlaps: dict[int, float]


def main(arguments: Sequence[str] | None = None) -> Comparison:
    """Makes the runs that are not there, and prints what they say."""
    given = parser(__doc__, "runs/ggn").parse_args(arguments)
    results: dict[str, Any] = {}
    rows = []
    for name in ("hessian", "ggn"):
        spec = spec_of("digits_hessian.toml", [*given.set, f'operator.args.curvature="{name}"'])
        results[name], error = decomposed(spec, given.runs / name, given.threads)
        found = ooc.estimates(ooc.open_run(given.runs / name), threads=given.threads)
        values = results[name].eigenvalues
        rows.append((
            name, f"{values[0]:.4g}", f"{values[LEADING - 1]:.4g}", f"{values[LEADING]:.4g}",
            f"{int((values < 0).sum())} of {len(values)}", f"{values.min():.2g}",
            "{:.3f} +- {:.3f}".format(*real(found.trace)),
            f"{error.relative_error:.2g}",
        ))  # fmt: skip
    print_table(
        ("", "no. 1", f"no. {LEADING}", f"no. {LEADING + 1}", "negative", "smallest", "trace",
         "error"), rows,
    )  # fmt: skip
    hessian, ggn = results["hessian"], results["ggn"]
    overlaps = {
        count: share(hessian.eigenvectors[:, :count], ggn.eigenvectors[:, :count])
        for count in (1, LEADING, 2 * LEADING, 4 * LEADING)
    }
    ratios = ggn.eigenvalues[:LEADING] / hessian.eigenvalues[:LEADING]
    print(f"Leading {LEADING} eigenvalues of the two differ by at most "
          f"{float((ratios - 1).abs().max()):.1%}.")  # fmt: skip
    for count, overlap in overlaps.items():
        print(f"The leading {count:2d} eigenvectors have {overlap:.1%} of their spans in common.")
    return Comparison(hessian.eigenvalues, ggn.eigenvalues, overlaps)


if __name__ == "__main__":
    main()
