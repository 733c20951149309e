"""Principal components as they are kept and used: scores, what they stand for, likelihoods."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from skerch_ooc.algebra.principal import Spectrum, with_signs
from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import UsageError
from skerch_ooc.base.files import make_folder
from skerch_ooc.base.provenance import provenance
from skerch_ooc.store.sealed import SealedFile, sealed_writer


@dataclass(frozen=True)
class Components:
    """Principal components of some samples, in double precision.

    Attributes:
        mean: Of each feature, ``(d,)``.
        directions: One a row, ``(k, d)``.
        values: Singular values of the centred samples, ``(k,)``.
        variances: Along each direction, ``(k,)``.
        ratios: Shares of the variance of all features, ``(k,)``.
        noise: Mean variance of the directions that were left out.
        samples: How many there were.
        fill: What stands where entries are missing, for each feature; ``None`` for nothing.
        factors: What features are multiplied by before all else; ``None`` for nothing.
    """

    mean: Array
    directions: Array
    values: Array
    variances: Array
    ratios: Array
    noise: float
    samples: int
    fill: Array | None = None
    factors: Array | None = None

    @classmethod
    def of(
        cls, found: Spectrum, mean: Array, samples: int, number: int,
        weights: Array | None = None,
    ) -> Components:  # fmt: skip
        """Takes the first directions of a spectrum.

        Args:
            found: All singular values, or the first.
            mean: Of each feature.
            samples: How many there were.
            number: How many directions to keep.
            weights: Of the samples; variances are then those of ``numpy.cov(..., aweights=...)``.
        """
        freedom: float = max(1, samples - 1)
        if weights is not None:
            freedom = float(weights.sum() - (weights**2).sum() / weights.sum()) or 1.0
        total = found.squares / freedom
        variances = found.values[:number] ** 2 / freedom
        rest = min(samples, len(mean)) - number
        noise = max(0.0, total - float(variances.sum())) / rest if rest else 0.0
        # Where samples are all the same, no direction explains anything.
        ratios = variances / total if total > 0 else np.full(number, math.nan)
        directions = np.ascontiguousarray(with_signs(found.directions[:number]))
        return cls(
            mean, directions, found.values[:number], variances, ratios, noise, samples
        )  # fmt: skip

    @property
    def digest(self) -> str:
        """SHA-256 of what scores are made with."""
        found = hashlib.sha256()
        parts = (self.mean, self.directions, self.variances, self.fill, self.factors)
        for part in (one for one in parts if one is not None):
            found.update(np.ascontiguousarray(part, "<f8").data)
        return found.hexdigest()

    @property
    def scale(self) -> Array:
        """Standard deviation along each direction, by which scores are whitened."""
        return np.asarray(np.maximum(np.sqrt(self.variances), np.finfo(np.float64).eps))

    def scores(self, rows: Any, *, whiten: bool) -> Array:
        """Scores of samples, ``(n, k)``.

        Args:
            rows: Dense, in double precision, which are overwritten; or sparse.
            whiten: Whether each has the variance 1.
        """
        if isinstance(rows, np.ndarray):
            made = self._centred(rows) @ self.directions.T
        else:
            made = rows @ self._multiplied(self.directions).T - self.mean @ self.directions.T
        return np.asarray(made / self.scale if whiten else made)

    def samples_of(self, scores: Array, *, whiten: bool) -> Array:
        """Samples that have some scores, ``(n, d)``."""
        scores = scores * self.scale if whiten else scores
        made = scores @ self.directions + self.mean
        if self.factors is None:
            return np.asarray(made)
        # What was multiplied by zero cannot be told any more.
        parts = np.where(self.factors == 0, 0.0, 1.0 / np.where(self.factors == 0, 1, self.factors))
        return np.asarray(made * parts)

    def _multiplied(self, rows: Array) -> Array:
        return rows if self.factors is None else np.asarray(rows * self.factors)

    def _centred(self, rows: Array) -> Array:
        """Rows as they were fitted, in their own place."""
        if self.factors is not None:
            rows *= self.factors
        rows -= self.mean
        return rows

    def likelihoods(self, rows: Any) -> Array:
        """Log-likelihood of each sample in the model of Tipping and Bishop (1999), ``(n,)``.

        Args:
            rows: As for :meth:`scores`.

        Raises:
            UsageError: If samples lie in fewer dimensions than they have features.
        """
        width, kept = len(self.mean), len(self.variances)
        if kept < width and self.noise <= 0:
            raise UsageError(
                f"the likelihood needs a variance of what {kept} components of {width} leave out, "
                "and it is zero: give a smaller n_components"
            )
        dense = rows if isinstance(rows, np.ndarray) else rows.toarray().astype(np.float64)
        rows = self._centred(dense)
        scores = rows @ self.directions.T
        along = np.maximum(self.variances, self.noise or np.finfo(float).tiny)
        inside = scores**2 / along
        size = np.log(along).sum() + width * math.log(2 * math.pi)
        squares = inside.sum(axis=1)
        if kept < width:
            outside = np.einsum("ij,ij->i", rows, rows) - (scores**2).sum(axis=1)
            squares = squares + np.maximum(outside, 0.0) / self.noise
            size += (width - kept) * math.log(self.noise)
        return np.asarray(-0.5 * (squares + size))

    def save(self, path: Path, identity: Mapping[str, Any], **more: Any) -> bool:
        """Writes them as a sealed file, unless there is one; see :func:`publish`.

        Args:
            path: The file.
            identity: What they were made of, and how.
            **more: What is noted beside the identity.

        Raises:
            IncompleteError: If it cannot be written.
        """
        make_folder(path.parent)
        parts = {one.name: getattr(self, one.name) for one in fields(self)}
        arrays = {name: np.asarray(part) for name, part in parts.items() if part is not None}
        with sealed_writer(path) as writer:
            return writer.publish(identity, arrays, provenance(**more))

    @classmethod
    def load(cls, file: SealedFile) -> Components:
        """Takes them from a sealed file."""
        names = (one.name for one in fields(cls))
        found: dict[str, Any] = {name: file.arrays[name] for name in names if name in file.arrays}
        return cls(**found | {"noise": float(found["noise"]), "samples": int(found["samples"])})
