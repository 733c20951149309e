"""Operators of curvlinops (the extra ``curvature``): KFAC, and forward over reverse Hessians."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from skerch_ooc.base.errors import OperatorError
from skerch_ooc.base.figures import short
from skerch_ooc.operators.derivatives.checks import apart, closeness, first_words
from skerch_ooc.operators.derivatives.operator import Curvature


def constructed(
    name: str, model: Any, loss: Any, tensors: list[Any], data: list[Any], **more: Any
) -> Any:
    """Makes an operator of curvlinops.

    Raises:
        OperatorError: If it is not installed.
    """
    constructor = getattr(imported(), name)
    if "check_deterministic" in inspect.signature(constructor).parameters:
        # It costs further passes over the data, and our own checks tell the same.
        more["check_deterministic"] = False
    return constructor(model, loss, tensors, data, **more)


def imported() -> Any:
    """Imports curvlinops.

    Raises:
        OperatorError: If it is not installed.
    """
    try:
        import curvlinops
    except ImportError as error:
        raise OperatorError(
            "this operator needs curvlinops; install it with: pip install 'skerch_ooc[curvature]'"
        ) from error
    return curvlinops


def require_equal(theirs: Any, ours: Curvature) -> float:
    """Compares an operator of curvlinops with ours by one product; returns how far they are apart.

    Raises:
        OperatorError: If they differ, or theirs fails.
    """
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(ours.shape[0], 1, generator=generator).to(ours.device, ours.dtype)
    try:
        off = apart(theirs @ v, ours @ v)
    except Exception as error:
        # Whatever torch raises where a layer has no forward derivative.
        raise OperatorError(
            "reverse: forward over reverse differentiation fails: "
            f"{first_words(error)}; leave reverse out"
        ) from error
    if not off <= closeness(ours.dtype):
        raise OperatorError(
            f"reverse: forward over reverse differentiation is off by {short(off)} from "
            "reverse over reverse, which agrees with a difference of gradients; leave reverse out"
        )
    return off
