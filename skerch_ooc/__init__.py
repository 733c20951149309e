"""Out-of-core, distributed sketched decompositions of linear operators.

Names are loaded when they are first used: importing the package loads neither torch nor dask.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from skerch_ooc.cleaning import Cleaning, clean
    from skerch_ooc.errors import (
        CorruptError,
        DriftError,
        IncompleteError,
        OocError,
        OperatorError,
        QualityError,
        UsageError,
    )
    from skerch_ooc.executors.dask import Dask
    from skerch_ooc.executors.serial import Serial
    from skerch_ooc.operators.terms import Stack, Sum
    from skerch_ooc.pipeline import (
        assess,
        eigh,
        estimates,
        extend,
        measure,
        merge,
        open_run,
        plan,
        recover,
        run,
        svd,
        update,
    )
    from skerch_ooc.reporting import report
    from skerch_ooc.results import Eigh, Svd
    from skerch_ooc.rundir import Run
    from skerch_ooc.spec import OperatorSpec, RecoverySpec, SketchSpec, Spec
    from skerch_ooc.stages.assess import Assessment
    from skerch_ooc.stages.estimates import Diagonal, Estimates, Figure, SpectralNorm

_HOMES = {
    "skerch_ooc.cleaning": ("Cleaning", "clean"),
    "skerch_ooc.stages.assess": ("Assessment",),
    "skerch_ooc.errors": (
        "CorruptError",
        "DriftError",
        "IncompleteError",
        "OocError",
        "OperatorError",
        "QualityError",
        "UsageError",
    ),
    "skerch_ooc.executors.dask": ("Dask",),
    "skerch_ooc.executors.serial": ("Serial",),
    "skerch_ooc.operators.terms": ("Stack", "Sum"),
    "skerch_ooc.pipeline": (
        "assess",
        "eigh",
        "estimates",
        "extend",
        "measure",
        "merge",
        "open_run",
        "plan",
        "recover",
        "run",
        "svd",
        "update",
    ),
    "skerch_ooc.reporting": ("report",),
    "skerch_ooc.results": ("Eigh", "Svd"),
    "skerch_ooc.rundir": ("Run",),
    "skerch_ooc.stages.estimates": ("Diagonal", "Estimates", "Figure", "SpectralNorm"),
    "skerch_ooc.spec": ("OperatorSpec", "RecoverySpec", "SketchSpec", "Spec"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Assessment",
    "Cleaning",
    "CorruptError",
    "Dask",
    "Diagonal",
    "DriftError",
    "Eigh",
    "Estimates",
    "Figure",
    "IncompleteError",
    "OocError",
    "OperatorError",
    "OperatorSpec",
    "QualityError",
    "RecoverySpec",
    "Run",
    "Serial",
    "SketchSpec",
    "Spec",
    "SpectralNorm",
    "Stack",
    "Sum",
    "Svd",
    "UsageError",
    "assess",
    "clean",
    "eigh",
    "estimates",
    "extend",
    "measure",
    "merge",
    "open_run",
    "plan",
    "recover",
    "report",
    "run",
    "svd",
    "update",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'skerch_ooc' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)
