"""A run that grows until its error is below a tolerance, and further by hand.

Runs growing.toml, which says ``tolerance``: after each round the error is looked at, and the run
grows until it is surely below. Then ``extend`` adds half as many
columns again, and a run that was planned with so many from the start tells that nothing is lost by
growing: the difference is rounding at most, as blocks may be cut elsewhere.

    python workflows/growing.py --runs runs/growing

Needs the extra ``workflows``. Makes the runs ``grown`` and ``planned``.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

import skerch_ooc as ooc
from workflows.shared import decomposed, eigh_of, parser, print_table, spec_of


@dataclass(frozen=True)
class Growth:
    """How a run grew.

    Attributes:
        measurements: When the tolerance was met, and after ``extend``.
        errors: The relative errors then.
        products: All products of each, ``extend`` on top of the first.
        difference: Largest difference of eigenvalues to the run that was planned with as many, as a
            share of the largest eigenvalue.
    """

    measurements: tuple[int, int]
    errors: tuple[float, float]
    products: tuple[int, int]
    difference: float


def main(arguments: Sequence[str] | None = None) -> Growth:
    """Grows a run to its tolerance, then by half, and compares."""
    given = parser(__doc__, "runs/growing").parse_args(arguments)
    spec, grown = spec_of("growing.toml", given.set), given.runs / "grown"
    if grown.exists():
        raise SystemExit(f"{grown} is there already; give other --runs")
    ooc.run(spec, grown, threads=given.threads)
    run = ooc.open_run(grown)
    met, first = run.plan.reach("right"), ooc.assess(run)
    run = ooc.extend(run, met + met // 2)
    ooc.measure(run, threads=given.threads)
    eig, second = eigh_of(run, threads=given.threads), ooc.assess(run)
    planned = dataclasses.replace(spec, tolerance=None, measurements=met + met // 2)
    expected, _ = decomposed(planned, given.runs / "planned", given.threads)
    assert first.relative_error is not None
    assert second.relative_error is not None
    few = min(len(eig.eigenvalues), len(expected.eigenvalues), 20)
    distance = (eig.eigenvalues[:few] - expected.eigenvalues[:few]).abs().max()
    growth = Growth(
        measurements=(met, met + met // 2),
        errors=(first.relative_error, second.relative_error),
        products=(first.products["done"], second.products["done"]),
        difference=float(distance / expected.eigenvalues[0]),
    )
    print_table(
        ("", "measurements", "products", "relative error"),
        [(name, f"{growth.measurements[i]}", f"{growth.products[i]}", f"{growth.errors[i]:.3g}")
         for i, name in enumerate((f"tolerance {spec.tolerance:g}", "extended by half"))],
    )  # fmt: skip
    print("Leading eigenvalues, to those of a run planned with as many: "
          f"{growth.difference:.1e} apart.")  # fmt: skip
    return growth


if __name__ == "__main__":
    main()
