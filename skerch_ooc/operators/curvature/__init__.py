"""Curvature of networks: the operators that people ask for, of any model and loss."""

from skerch_ooc.operators.curvature.matrices import (
    fisher,
    ggn,
    ggn_of,
    hessian,
    hessian_of,
    kfac,
)

__all__ = ["fisher", "ggn", "ggn_of", "hessian", "hessian_of", "kfac"]
