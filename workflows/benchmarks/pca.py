"""Principal components of many samples of few features, against scikit-learn's two, in turn.

The samples are float32, in one contiguous HDF5 dataset, with a mean of 10 and a spread of some 3;
ten components are asked for. ``ooc.PCA`` is given the file, ``IncrementalPCA`` batches of its rows;
``PCA`` has all of it in memory, which is read before. Each fits in a process of its own, with one
thread, a few random samples first, so that all is imported; seconds are those of the fit, in which
the page cache may serve what is read. The error is the largest relative one of the variances,
against those of the covariance in double precision.

Usage: python workflows/benchmarks/pca.py --repeats 3 --json pca.json
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))

from workflows.benchmarks import common, comparison

COMPONENTS = 10
BATCH_ROWS = 5000
MEAN = 10.0
FIRST_ROWS = 100


def make_samples(path: str, rows: int, columns: int) -> dict[str, Any]:
    """Writes the samples; returns the variances of their components."""
    import h5py
    import numpy as np

    generator = np.random.default_rng(0)
    mix = generator.standard_normal((columns, columns)) * 0.95 ** np.arange(columns)[:, None]
    sums, products = np.zeros(columns), np.zeros((columns, columns))
    with h5py.File(path, "w") as file:
        data = file.create_dataset("samples", (rows, columns), "float32")
        for start in range(0, rows, BATCH_ROWS):
            height = min(BATCH_ROWS, rows - start)
            samples = generator.standard_normal((height, columns)) @ mix + MEAN
            data[start : start + height] = samples
            shifted = data[start : start + height].astype("float64") - MEAN
            sums += shifted.sum(axis=0)
            products += shifted.T @ shifted
    covariance = (products - np.outer(sums, sums) / rows) / (rows - 1)
    values = np.linalg.eigvalsh(covariance)[::-1]
    return {"values": values[:COMPONENTS].tolist()}


def ours(path: str) -> dict[str, Any]:
    """``ooc.PCA`` of the file."""
    import skerch_ooc as ooc

    ooc.PCA(COMPONENTS).fit(_first())
    return _figures(*comparison.timed(lambda: ooc.PCA(COMPONENTS, memory="1GiB").fit(path)))


def incremental(path: str) -> dict[str, Any]:
    """``IncrementalPCA``, batch by batch."""
    import h5py
    from sklearn.decomposition import IncrementalPCA

    IncrementalPCA(COMPONENTS).fit(_first())

    def fit() -> Any:
        pca = IncrementalPCA(COMPONENTS)
        with h5py.File(path, "r") as file:
            data = file["samples"]
            for start in range(0, len(data), BATCH_ROWS):
                pca.partial_fit(data[start : start + BATCH_ROWS], check_input=False)
        return pca

    return _figures(*comparison.timed(fit))


def in_memory(path: str) -> dict[str, Any]:
    """``PCA`` of all samples."""
    import h5py
    from sklearn.decomposition import PCA

    PCA(COMPONENTS).fit(_first())
    with h5py.File(path, "r") as file:
        samples = file["samples"][:]
    return _figures(*comparison.timed(lambda: PCA(COMPONENTS).fit(samples)))


def _first() -> Any:
    import numpy as np

    return np.random.default_rng(1).standard_normal((FIRST_ROWS, COMPONENTS + 1), dtype="float32")


def _figures(pca: Any, seconds: float) -> dict[str, Any]:
    return {"seconds": seconds, "values": [float(value) for value in pca.explained_variance_]}


CONTENDERS: dict[str, common.Part] = {
    "ooc.PCA": ours, "IncrementalPCA": incremental, "PCA, in memory": in_memory,
}  # fmt: skip


def compare(options: Any, folder: Path) -> dict[str, list[dict[str, float]]]:
    """Makes the samples, fits all in turn, and returns the figures of each run."""
    path = str(folder / "samples.h5")
    common.say("making the samples")
    shape = {"rows": options.rows, "columns": options.columns}
    true = common.run_part(__file__, make_samples, options.threads, path=path, **shape)[1]["values"]
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    for _ in range(options.repeats):
        for name, fit in CONTENDERS.items():
            child, found = common.run_part(__file__, fit, options.threads, options.warm, path=path)
            pairs = zip(found["values"], true, strict=True)
            error = max(abs(value / known - 1) for value, known in pairs)
            figures = {"seconds": found["seconds"], "peak": child.peak, "error": error}
            runs[name].append(figures)
            common.say(f"{name}: {found['seconds']:.2f} s")
    return runs


def main() -> None:
    """Reads the command line and runs the comparison."""
    if common.serve_part([make_samples, *CONTENDERS.values()]):
        return
    parser = common.argument_parser(__doc__, rows=500_000, columns=200, repeats=3)
    parser.set_defaults(threads=1)
    options = parser.parse_args()
    with common.scratch(options.folder, 4 * options.rows * options.columns + 10**8) as folder:
        runs = compare(options, folder)
    medians = {name: common.median_of(found) for name, found in runs.items()}
    rows = [
        [name, f"{it['seconds']:.2f}", f"{it['peak'] / 1e9:.2f}", f"{it['error']:.1e}"]
        for name, it in medians.items()
    ]
    print(common.text_table(["", "s", "peak, GB", "error"], rows))
    settings = {"rows": options.rows, "columns": options.columns, "components": COMPONENTS}
    common.write_json(options.json, {"settings": settings, "medians": medians, "runs": runs})


if __name__ == "__main__":
    main()
