"""Out-of-core, distributed sketched decompositions of linear operators.

Names are loaded when they are first used: importing the package loads neither torch nor dask.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from skerch_ooc.base.version import __version__ as __version__

if TYPE_CHECKING:
    from skerch_ooc.base.errors import (
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
    from skerch_ooc.pipeline.clean import Cleaning, clean
    from skerch_ooc.pipeline.grow import extend, update
    from skerch_ooc.pipeline.run import eigh, run, svd
    from skerch_ooc.pipeline.start import plan
    from skerch_ooc.pipeline.steps import assess, estimates, measure, merge, open_run, recover
    from skerch_ooc.planning.spec import OperatorSpec, RecoverySpec, SketchSpec, Spec
    from skerch_ooc.results.assess import Assessment
    from skerch_ooc.results.estimates import Diagonal, Estimates, Figure, SpectralNorm
    from skerch_ooc.results.lowrank import Eigh, Svd
    from skerch_ooc.results.report.write import report
    from skerch_ooc.store.rundir import Run

_HOMES = {
    "skerch_ooc.base.errors": (
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
    "skerch_ooc.operators.terms": (
        "Stack",
        "Sum",
    ),
    "skerch_ooc.pipeline.clean": (
        "Cleaning",
        "clean",
    ),
    "skerch_ooc.pipeline.grow": (
        "extend",
        "update",
    ),
    "skerch_ooc.pipeline.run": (
        "eigh",
        "run",
        "svd",
    ),
    "skerch_ooc.pipeline.start": ("plan",),
    "skerch_ooc.pipeline.steps": (
        "assess",
        "estimates",
        "measure",
        "merge",
        "open_run",
        "recover",
    ),
    "skerch_ooc.planning.spec": (
        "OperatorSpec",
        "RecoverySpec",
        "SketchSpec",
        "Spec",
    ),
    "skerch_ooc.results.assess": ("Assessment",),
    "skerch_ooc.results.estimates": (
        "Diagonal",
        "Estimates",
        "Figure",
        "SpectralNorm",
    ),
    "skerch_ooc.results.lowrank": (
        "Eigh",
        "Svd",
    ),
    "skerch_ooc.results.report.write": ("report",),
    "skerch_ooc.store.rundir": ("Run",),
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
