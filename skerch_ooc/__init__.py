"""Out-of-core, distributed sketched decompositions of linear operators.

Names are loaded when they are first used: importing the package loads neither torch nor dask.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from skerch_ooc.base.version import __version__ as __version__

if TYPE_CHECKING:
    from skerch_ooc.algebra.noise import draw as draw
    from skerch_ooc.base.errors import CorruptError as CorruptError
    from skerch_ooc.base.errors import DriftError as DriftError
    from skerch_ooc.base.errors import IncompleteError as IncompleteError
    from skerch_ooc.base.errors import OocError as OocError
    from skerch_ooc.base.errors import OperatorError as OperatorError
    from skerch_ooc.base.errors import QualityError as QualityError
    from skerch_ooc.base.errors import UsageError as UsageError
    from skerch_ooc.base.parameter_layout import ParameterLayout as ParameterLayout
    from skerch_ooc.base.partition import Range as Range
    from skerch_ooc.base.progress import Progress as Progress
    from skerch_ooc.base.progress import terminal_progress as terminal_progress
    from skerch_ooc.executors.dask import Dask as Dask
    from skerch_ooc.executors.serial import Serial as Serial
    from skerch_ooc.operators.terms import Stack as Stack
    from skerch_ooc.operators.terms import Sum as Sum
    from skerch_ooc.pipeline.clean import Cleaning as Cleaning
    from skerch_ooc.pipeline.clean import clean as clean
    from skerch_ooc.pipeline.grow import extend as extend
    from skerch_ooc.pipeline.grow import update as update
    from skerch_ooc.pipeline.principal.estimator import PCA as PCA
    from skerch_ooc.pipeline.run import eigh as eigh
    from skerch_ooc.pipeline.run import run as run
    from skerch_ooc.pipeline.run import svd as svd
    from skerch_ooc.pipeline.start import plan as plan
    from skerch_ooc.pipeline.steps import assess as assess
    from skerch_ooc.pipeline.steps import estimates as estimates
    from skerch_ooc.pipeline.steps import measure as measure
    from skerch_ooc.pipeline.steps import merge as merge
    from skerch_ooc.pipeline.steps import open_run as open_run
    from skerch_ooc.pipeline.steps import recover as recover
    from skerch_ooc.planning.spec import OperatorSpec as OperatorSpec
    from skerch_ooc.planning.spec import RecoverySpec as RecoverySpec
    from skerch_ooc.planning.spec import SketchSpec as SketchSpec
    from skerch_ooc.planning.spec import Spec as Spec
    from skerch_ooc.results.assess import Assessment as Assessment
    from skerch_ooc.results.compare import ComparedResult as ComparedResult
    from skerch_ooc.results.compare import Comparison as Comparison
    from skerch_ooc.results.compare import compare as compare
    from skerch_ooc.results.density import Density as Density
    from skerch_ooc.results.density import TraceEstimate as TraceEstimate
    from skerch_ooc.results.density import density as density
    from skerch_ooc.results.density import trace as trace
    from skerch_ooc.results.estimates import Diagonal as Diagonal
    from skerch_ooc.results.estimates import Estimates as Estimates
    from skerch_ooc.results.estimates import Figure as Figure
    from skerch_ooc.results.estimates import SpectralNorm as SpectralNorm
    from skerch_ooc.results.lowrank import Eigh as Eigh
    from skerch_ooc.results.lowrank import LazyMatrix as LazyMatrix
    from skerch_ooc.results.lowrank import Svd as Svd
    from skerch_ooc.results.overlap import Overlap as Overlap
    from skerch_ooc.results.overlap import overlap as overlap
    from skerch_ooc.results.report.write import report as report
    from skerch_ooc.store.rundir import Run as Run

_HOMES = {
    "Assessment": "results.assess",
    "Cleaning": "pipeline.clean",
    "ComparedResult": "results.compare",
    "Comparison": "results.compare",
    "CorruptError": "base.errors",
    "Dask": "executors.dask",
    "Density": "results.density",
    "Diagonal": "results.estimates",
    "DriftError": "base.errors",
    "Eigh": "results.lowrank",
    "Estimates": "results.estimates",
    "Figure": "results.estimates",
    "IncompleteError": "base.errors",
    "LazyMatrix": "results.lowrank",
    "OocError": "base.errors",
    "OperatorError": "base.errors",
    "OperatorSpec": "planning.spec",
    "Overlap": "results.overlap",
    "PCA": "pipeline.principal.estimator",
    "ParameterLayout": "base.parameter_layout",
    "Progress": "base.progress",
    "QualityError": "base.errors",
    "Range": "base.partition",
    "RecoverySpec": "planning.spec",
    "Run": "store.rundir",
    "Serial": "executors.serial",
    "SketchSpec": "planning.spec",
    "Spec": "planning.spec",
    "SpectralNorm": "results.estimates",
    "Stack": "operators.terms",
    "Sum": "operators.terms",
    "Svd": "results.lowrank",
    "TraceEstimate": "results.density",
    "UsageError": "base.errors",
    "assess": "pipeline.steps",
    "clean": "pipeline.clean",
    "compare": "results.compare",
    "density": "results.density",
    "draw": "algebra.noise",
    "eigh": "pipeline.run",
    "estimates": "pipeline.steps",
    "extend": "pipeline.grow",
    "measure": "pipeline.steps",
    "merge": "pipeline.steps",
    "open_run": "pipeline.steps",
    "overlap": "results.overlap",
    "plan": "pipeline.start",
    "recover": "pipeline.steps",
    "report": "results.report.write",
    "run": "pipeline.run",
    "svd": "pipeline.run",
    "terminal_progress": "base.progress",
    "trace": "results.density",
    "update": "pipeline.grow",
}
"""In which module each public name is."""

__all__ = [*_HOMES]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'skerch_ooc' has no attribute {name!r}")
    return getattr(importlib.import_module(f"skerch_ooc.{_HOMES[name]}"), name)
