"""What estimators inherit: scikit-learn's base classes, or the little of them that is needed."""

from __future__ import annotations

import inspect
from typing import Any, Self

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import UsageError, shown_list
from skerch_ooc.base.html import never_raising, table


def require_width(estimator: Any, width: int) -> None:
    """Refuses samples with other features than the estimator was fitted with.

    Raises:
        UsageError: Naming both numbers.
    """
    if width != estimator.n_features_in_:
        raise UsageError(
            f"the samples have {width} features, and {type(estimator).__name__} was fitted with "
            f"{estimator.n_features_in_}; give those"
        )


class PlainEstimator:
    """What takes the place of scikit-learn's base classes where it is not installed."""

    def __repr__(self) -> str:
        asked = ", ".join(f"{name}={value!r}" for name, value in self._asked())
        return f"{type(self).__name__}({asked})"

    @never_raising
    def _repr_html_(self) -> str:
        found = [(name, value) for name, value in vars(self).items() if name.endswith("_")]
        rows = [*self._asked(), *((name, value) for name, value in found if np.ndim(value) == 0)]
        return table(type(self).__name__, rows)

    def _asked(self) -> list[tuple[str, Any]]:
        """The parameters that are not as by default."""
        defaults = inspect.signature(type(self)).parameters
        return [(name, value) for name, value in self.get_params().items()
                if value is not defaults[name].default]  # fmt: skip

    def get_params(self, deep: bool = True) -> dict[str, Any]:  # noqa: ARG002 (its signature)
        """The parameters, by name."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **params: Any) -> Self:
        """Sets parameters.

        Raises:
            UsageError: If there is none of a name.
        """
        known = self.get_params()
        for name, value in params.items():
            if name not in known:
                raise UsageError(f"no parameter {name}; give one of: {shown_list(list(known))}")
            setattr(self, name, value)
        return self

    def fit_transform(self, X: Any, y: Any = None, **params: Any) -> Any:
        """Fits, and returns the scores of the same samples."""
        estimator: Any = self
        return estimator.fit(X, y, **params).transform(X)

    def get_feature_names_out(self, input_features: Any = None) -> Array:  # noqa: ARG002
        """Names of the scores: ``pca0``, ``pca1``, ..."""
        estimator: Any = self
        name = type(self).__name__.lower()
        return np.asarray([f"{name}{i}" for i in range(estimator._n_features_out)], object)


def _plain_check(estimator: Any) -> None:
    if not hasattr(estimator, "n_features_in_"):
        raise UsageError(f"this {type(estimator).__name__} is not fitted yet; call fit first")


def _plain_data(estimator: Any, X: Any, *, reset: bool, **_: Any) -> Any:
    X = X if hasattr(X, "shape") else np.asarray(X)
    if X.ndim != 2 if hasattr(X, "ndim") else False:
        raise UsageError(f"the samples have {X.ndim} dimensions; give a matrix: rows of features")
    if reset:
        estimator.n_features_in_ = X.shape[1]
    else:
        require_width(estimator, X.shape[1])
    return X


Estimator: Any = PlainEstimator
"""The class that estimators inherit from."""

check_is_fitted: Any = _plain_check
validate_data: Any = _plain_data

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.utils import validation

    check_is_fitted, validate_data = validation.check_is_fitted, validation.validate_data
except (ImportError, AttributeError):
    # It is not there, or is older than 1.6.
    pass
else:

    class SklearnEstimator(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
        """A transformer of scikit-learn."""

    Estimator = SklearnEstimator
