"""``PCA``: principal components with scikit-learn's interface, of arrays, files, specs and runs."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import IncompleteError, UsageError, shown
from skerch_ooc.base.keywords import tells_keywords
from skerch_ooc.base.places import place
from skerch_ooc.base.progress import Progress
from skerch_ooc.base.resources import Resources
from skerch_ooc.executors.executor import Executor
from skerch_ooc.executors.work import Work
from skerch_ooc.operators.samples import Learned, require_unmasked
from skerch_ooc.pipeline.principal import sklearn_base
from skerch_ooc.pipeline.principal.fit import fit, pca_path
from skerch_ooc.pipeline.principal.inputs import GivenSamples, given, is_named
from skerch_ooc.pipeline.principal.scoring import known_of, scores_of
from skerch_ooc.pipeline.principal.sklearn_base import Estimator, check_is_fitted, validate_data
from skerch_ooc.pipeline.principal.wanted import Wanted
from skerch_ooc.planning.spec import MAX_SEED
from skerch_ooc.results.components import Components
from skerch_ooc.results.scores import (
    Sheet,
    is_table,
    names_along,
    require_free,
    write_scores,
    writer_of,
)
from skerch_ooc.store.anew import open_if_there


@tells_keywords
class PCA(Estimator):  # type: ignore[misc]
    """Principal component analysis of whatever holds samples, in bounded memory.

    It has the interface of scikit-learn's ``PCA``, and its conventions of signs and variances. What
    it is fitted with may be a numpy array, a frame of pandas or polars, a torch tensor, a SciPy
    sparse matrix, a dataset of h5py; the path of a file or folder that ``factory = "stored"``
    takes; the path of a spec or of a run directory, a :class:`Spec` or an :class:`OperatorSpec`.
    Rows are samples.

    Args:
        n_components: How many components: a number, a share of the variance that they explain at
            least (between 0 and 1), or ``None`` for all.
        whiten: Whether scores are scaled to the variance 1.
        method: ``"gram"``: the exact sum of products of the columns, in one reading; ``"qr"``: the
            triangular factor, also in one reading, at some four times the work, which keeps
            singular values below 1e-7 of the first; ``"krylov"``: rounds of products, for wide
            matrices; ``"auto"``: one of them, by the shape.
        tolerance: For ``krylov``: the relative error to which components are to be known.
        memory: Peak resident memory of this process, in bytes or as text such as ``"2 GiB"``.
        run_dir: Where components are kept, and the work on them, so that the same call goes on or
            has nothing to do, and :meth:`load` finds them; by default nothing is kept.
        random_state: Seed of ``krylov``, or what one is drawn from; by default always the same.
        executor: :class:`Serial` (the default) or :class:`Dask`, for samples in files.
        progress: Shows how far it is.
        missing: ``"column-mean"`` to put the mean of the others of the feature where an entry is
            NaN, masked, or missing as a file says; also in samples that come later, by the same
            means. By default such entries are refused.

    Attributes:
        components_: Directions of unit length, one a row, ``(k, d)``.
        explained_variance_: Along each, ``(k,)``.
        explained_variance_ratio_: Shares of the variance of all features, ``(k,)``.
        singular_values_: Of the centred samples, ``(k,)``.
        mean_: Of each feature, ``(d,)``; of what options of a file, such as ``scale``, make of it.
        n_components_: How many components were kept.
        n_samples_: How many samples there were.
        n_features_in_: How many features they had.
        feature_names_in_: Names of these, if a frame was given whose columns are text.
        noise_variance_: Mean variance of the directions that were left out.
        method_: By which method they were found.
    """

    def __init__(
        self, n_components: int | float | None = None, *, whiten: bool = False,
        method: str = "auto", tolerance: float = 1e-6, memory: int | str | None = None,
        run_dir: str | Path | None = None, random_state: Any = None,
        executor: Executor | None = None, progress: Progress | None = None,
        missing: str | None = None,
    ) -> None:  # fmt: skip
        self.n_components = n_components
        self.whiten = whiten
        self.method = method
        self.tolerance = tolerance
        self.memory = memory
        self.run_dir = run_dir
        self.random_state = random_state
        self.executor = executor
        self.progress = progress
        self.missing = missing

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:  # noqa: ARG002 (scikit-learn's signature)
        """Finds the components of samples.

        Args:
            X: The samples; see the class.
            y: Ignored.
            sample_weight: Of each sample, so that the mean is weighted, and variances are those of
                ``numpy.cov(..., aweights=sample_weight)``. Files may have the option
                ``row_weights`` instead.

        Returns:
            Itself.

        Raises:
            OperatorError: If the samples cannot be used.
            UsageError: If a parameter is not allowed, or ``run_dir`` keeps other components.
            QualityError: If ``krylov`` did not reach the tolerance.
            ValueError: Of scikit-learn, if an array cannot be used.
        """
        seed = _seed(self.random_state)
        wanted = Wanted(
            self.n_components, self.whiten, self.method, self.tolerance, seed, self.missing
        )
        work = Work.of(self.executor, self.memory, progress=self.progress)
        data = self._given(X, reset=True).with_weights(sample_weight)
        directory = None if self.run_dir is None else place(self.run_dir)
        note = {"features": list(map(str, getattr(self, "feature_names_in_", ())))}
        found = fit(data, wanted, work, directory, note)
        self._take(found.components, found.method)
        return self

    def _take(self, found: Components, method: str) -> None:
        self.components_ = found.directions
        self.explained_variance_ = found.variances
        self.explained_variance_ratio_ = found.ratios
        self.singular_values_ = found.values
        self.mean_ = found.mean
        self.noise_variance_ = found.noise
        self.n_components_ = len(found.values)
        self.n_samples_ = found.samples
        self.method_ = method
        self._learned = Learned(found.fill, found.factors)

    @property
    def _kept(self) -> Components:
        """The components as they were found."""
        check_is_fitted(self)
        return Components(
            self.mean_, self.components_, self.singular_values_, self.explained_variance_,
            self.explained_variance_ratio_, self.noise_variance_, self.n_samples_,
            self._learned.fill, self._learned.factors,
        )  # fmt: skip

    def _given(self, X: Any, *, reset: bool) -> GivenSamples:
        """Opens samples, and sets or checks what is known of their features."""
        memory = Resources.of(self.memory).memory
        options = None if self.missing is None else {"missing": self.missing}
        if is_named(X):
            data = given(X, memory, options)
            if reset:
                self.n_features_in_ = data.samples.shape[1]
                self.__dict__.pop("feature_names_in_", None)
            else:
                sklearn_base.require_width(self, data.samples.shape[1])
            return data
        if options is None:
            require_unmasked(X)
        if _is_plain(X):
            X = validate_data(
                self, X, reset=reset, accept_sparse=("csr", "csc"), dtype="numeric",
                ensure_min_samples=2 if reset else 1,
                ensure_all_finite=True if options is None else "allow-nan",
            )  # fmt: skip
            return given(X, memory, options)
        # No copy of what may be large: entries are converted and checked slab by slab.
        data = given(X, memory, options)
        validate_data(self, X, reset=reset, skip_check_array=True)
        return data

    def transform(self, X: Any, out: str | Path | None = None) -> Any:
        """Returns the scores of samples, or writes them to a file.

        Args:
            X: The samples; whatever :meth:`fit` takes.
            out: The file, new; its suffix says which format: ``.h5`` (in the dataset ``scores``),
                ``.zarr``, ``.parquet`` or ``.csv``. Scores are then never held whole, and tables
                begin with the names that a file has of its rows.

        Returns:
            Scores, ``(n, k)``, or the path of the file.

        Raises:
            OperatorError: If the samples cannot be used.
            UsageError: If the samples have other features, or the file is there already.
            ValueError: Of scikit-learn, if an array cannot be used.
        """
        kept, path = self._kept, None if out is None else Path(out)
        if path is not None:
            writer_of(path)
            require_free(path)
        data = self._given(X, reset=False)
        samples = data.samples.filled_by(self._learned)
        blocks = scores_of(kept, samples, whiten=self.whiten)
        shape = (samples.shape[0], len(kept.values))
        if path is not None:
            known = kept.digest
            sheet = Sheet(shape, samples.dtype, known, known, data.source_identity(), self.whiten)
            if is_table(path):
                labels = known_of(data.source, samples.shape).labels
                sheet = replace(sheet, names=names_along(labels, labels.rows))
            return write_scores(path, sheet, blocks)
        made = np.empty(shape, samples.dtype)
        for rows, block in blocks:
            made[rows.slice] = block
        return made

    def inverse_transform(self, X: Any) -> Array:
        """Returns the samples that have some scores.

        Args:
            X: Scores, ``(n, k)``.

        Raises:
            UsageError: If there is another number of scores than of components.
        """
        kept, scores = self._kept, np.asarray(X)
        if scores.ndim != 2 or scores.shape[1] != len(kept.values):
            raise UsageError(
                f"the scores have shape {scores.shape}; give one of {len(kept.values)} columns, as "
                "there are components"
            )
        return kept.samples_of(scores, whiten=self.whiten)

    def score_samples(self, X: Any) -> Array:
        """Returns the log-likelihood of each sample, ``(n,)``.

        The model is that of probabilistic principal components (Tipping and Bishop 1999):
        directions that were left out have the variance ``noise_variance_``.

        Raises:
            UsageError: If that is zero, though directions were left out.
        """
        kept = self._kept
        samples = self._given(X, reset=False).samples.filled_by(self._learned)
        made = np.empty(samples.shape[0])
        for rows, slab in samples.slabs():
            made[rows.slice] = kept.likelihoods(slab)
        return made

    def score(self, X: Any, y: Any = None) -> float:  # noqa: ARG002 (scikit-learn's signature)
        """Returns the mean of :meth:`score_samples`."""
        return float(self.score_samples(X).mean())

    @classmethod
    def load(cls, run_dir: str | Path) -> Self:
        """Takes the components that a fit has left in a directory; no sample is read.

        Args:
            run_dir: What ``run_dir`` was when they were fitted.

        Raises:
            IncompleteError: If there are none.
            CorruptError: If they are damaged.
        """
        path = pca_path(place(run_dir))
        file = open_if_there(path)
        if file is None:
            raise IncompleteError(
                f"{run_dir} keeps no principal components; call fit with this run_dir first"
            )
        settings = file.identity["settings"]
        made = cls(run_dir=run_dir)
        made.set_params(**{key: settings[key] for key in settings if key != "seed"})
        made.random_state = settings.get("seed")
        components = Components.load(file)
        made._take(components, settings["method"])
        made.n_features_in_ = len(components.mean)
        if names := file.provenance.get("features"):
            made.feature_names_in_ = np.asarray(names, object)
        return made

    @property
    def _n_features_out(self) -> int:
        """How many scores a sample has; for scikit-learn."""
        return len(self.components_)

    def __sklearn_clone__(self) -> Any:
        # An executor has connections, a progress display a stream: clones share them.
        bare = copy.copy(self)
        bare.executor = bare.progress = None
        made = super(PCA, bare).__sklearn_clone__()
        return made.set_params(executor=self.executor, progress=self.progress)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        tags.input_tags.sparse = True
        tags.input_tags.allow_nan = self.missing is not None
        return tags


def _is_plain(X: Any) -> bool:
    """Whether samples are in memory, in what scikit-learn checks without a copy."""
    if isinstance(X, np.ndarray):
        # Masks are lost where an array is checked.
        return not isinstance(X, (np.memmap, np.ma.MaskedArray))
    return hasattr(X, "tocsr") or not hasattr(X, "shape")


def _seed(random_state: Any) -> int:
    """The seed that a random state stands for.

    Raises:
        UsageError: If it is none.
    """
    if random_state is None:
        return 1
    draw = getattr(random_state, "integers", None) or getattr(random_state, "randint", None)
    seed = random_state if draw is None else int(draw(2**31))
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise UsageError(
            f"random_state = {shown(random_state)}: must be a whole number or a generator of "
            "numpy, or left out"
        )
    if not 0 <= seed <= MAX_SEED:
        raise UsageError(f"random_state = {seed}: must be at least 0 and at most {MAX_SEED}")
    return int(seed)
