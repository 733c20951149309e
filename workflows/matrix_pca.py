"""Principal components of a matrix on disk, against the truth.

Writes a matrix of 20 components, noise, and columns with a mean that is far larger; decomposes it
in one reading, centred; and compares with the eigenvalues of its covariance matrix, which is formed
from the file in double precision.

    python workflows/matrix_pca.py --runs runs/pca --rows 50000 --columns 800

Needs nothing but the package, and rows x columns x 4 bytes of disk. Makes ``matrix.npy`` and the
run ``pca`` of matrix_pca.toml.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

sys.path.append(str(Path(__file__).resolve().parent.parent))

from workflows.shared import decomposed, parser, print_table, share, spec_of

COMPONENTS = 20
SLAB = 5000
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Found:
    """The components and what they should be.

    Attributes:
        values: Singular values of the centred matrix, as found.
        truth: The true ones.
        common: How much of the true leading right singular vectors lies in those found.
        explained: Share of the variance that the components explain.
        error: Relative error of the decomposition, as the run estimates it.
    """

    values: Array
    truth: Array
    common: float
    explained: float
    error: float


def write_matrix(path: Path, rows: int, columns: int) -> None:
    """Writes a float32 matrix slab by slab: components, noise, and a mean.

    Under another name, until it is complete: a part of it would be taken for the whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"unfinished-{path.name}")
    random = np.random.default_rng(0)
    directions = np.linalg.qr(random.standard_normal((columns, COMPONENTS)))[0].T
    scales, mean = 10.0 * 0.85 ** np.arange(COMPONENTS), 5.0 * random.standard_normal(columns)
    shape = (rows, columns)
    file = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.float32, shape=shape)
    for first in range(0, rows, SLAB):
        slab = file[first : first + SLAB]
        scores = random.standard_normal((len(slab), COMPONENTS)) * scales
        noise = 0.1 * random.standard_normal(slab.shape)
        slab[:] = scores @ directions + noise + mean
    file.flush()
    unfinished.replace(path)


def truth_of(path: Path) -> tuple[Array, Array, float]:
    """Singular values and right vectors of the centred matrix, and its squared norm."""
    file = np.load(path, mmap_mode="r")
    mean = np.mean(file, axis=0, dtype=np.float64)
    covariance = np.zeros((file.shape[1], file.shape[1]))
    for first in range(0, len(file), SLAB):
        slab = file[first : first + SLAB] - mean
        covariance += slab.T @ slab
    values, vectors = np.linalg.eigh(covariance)
    return np.sqrt(values[::-1].clip(0)), vectors[:, ::-1], float(values.sum())


def main(arguments: Sequence[str] | None = None) -> Found:
    """Makes matrix and run, if they are not there, and prints how far they are from the truth."""
    options = parser(__doc__, "runs/pca")
    options.add_argument("--rows", type=int, default=50_000)
    options.add_argument("--columns", type=int, default=800)
    given = options.parse_args(arguments)
    path = given.runs.resolve() / "matrix.npy"
    if not path.exists():
        write_matrix(path, given.rows, given.columns)
    if np.load(path, mmap_mode="r").shape != (given.rows, given.columns):
        raise SystemExit(f"{path} is there with another shape; remove it, or give other --runs")
    named = f"operator.args.path={json.dumps(str(path))}"
    spec = spec_of("matrix_pca.toml", [named, *given.set])
    usv, assessment = decomposed(spec, given.runs / "pca", given.threads)
    truth, vectors, variance = truth_of(path)
    values = usv.S.double().numpy()
    assert assessment.relative_error is not None
    found = Found(
        values=values,
        truth=truth[: len(values)],
        common=share(torch.from_numpy(vectors[:, : len(values)].copy()), usv.V[:]),
        explained=float((values**2).sum() / variance),
        error=assessment.relative_error,
    )
    shown = [number for number in (1, 2, 5, 10, 20) if number <= len(values)]
    print_table(
        ("component", "singular value", "truth", "difference"),
        [(str(n), f"{values[n - 1]:.6g}", f"{truth[n - 1]:.6g}",
          f"{values[n - 1] / truth[n - 1] - 1:+.1e}") for n in shown],
    )  # fmt: skip
    print(f"They explain {found.explained:.2%} of the variance; {found.common:.4%} of the true "
          "leading\nsubspace is found.")  # fmt: skip
    print(f"Relative error by the test vectors: {found.error:.3g}, the noise included.")
    return found


if __name__ == "__main__":
    main()
