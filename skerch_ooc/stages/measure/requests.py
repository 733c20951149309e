"""What a task asks of an operator: columns of test matrices, whole or row by row."""

from __future__ import annotations

from functools import partial

import numpy as np
import numpy.typing as npt

from skerch_ooc.algebra.noise import draw, draw_entries
from skerch_ooc.base.arrays import Array
from skerch_ooc.base.noise_kinds import SPARSE, WHOLE_COLUMNS
from skerch_ooc.base.partition import Range, cut
from skerch_ooc.operators.rows import Backward, Forward, Inner, Request
from skerch_ooc.planning.parts import Part
from skerch_ooc.planning.plan import Plan
from skerch_ooc.planning.sides import height_of_noise, test_matrix_of
from skerch_ooc.stages.merge.testmatrices import COLUMNS_AT_ONCE
from skerch_ooc.store.shards import Rectangle
from skerch_ooc.store.sketch import Round


def request_for(round_: Round, rectangle: Rectangle) -> Request:
    """What is asked of an operator whose rows are at hand."""
    plan, role, columns = round_.run.plan, rectangle.role, rectangle.columns
    identity = plan.identity
    if role == "inner":
        phi, count = partial(_phi, plan, dtype=identity.dtype), plan.inner
        return Inner(phi, count, test_vectors(round_, role, whole_of(round_, role), columns))
    if not is_adjoint_role(round_, role):
        return Forward(test_vectors(round_, role, whole_of(round_, role), columns))
    noise = identity.noise.get(test_matrix_of(plan, role)) if round_.basis is None else None
    if noise in SPARSE:
        assert noise is not None
        return Backward(
            lambda rows: draw_entries(noise, identity.seed, role, rows, columns), len(columns)
        )
    if noise in WHOLE_COLUMNS:
        drawn = test_vectors(round_, role, whole_of(round_, role), columns)
        return Backward(lambda rows: drawn[rows.slice], len(columns))
    return Backward(lambda rows: test_vectors(round_, role, rows, columns), len(columns))


def is_adjoint_role(round_: Round, role: str) -> bool:
    """Whether the adjoint of the operator makes the sketch of a role."""
    return round_.adjoint if round_.basis else role == "left"


def whole_of(round_: Round, role: str) -> Range:
    """All rows of a role's test matrix."""
    height, width = round_.run.plan.identity.shape
    return Range(0, height if is_adjoint_role(round_, role) else width)


def rows_given(round_: Round, part: Part, role: str) -> Range:
    """The rows of a role's test matrix that a part is applied to."""
    if is_adjoint_role(round_, role) and part.rows is not None:
        return part.rows
    return whole_of(round_, role)


def test_vectors(round_: Round, role: str, rows: Range, columns: Range) -> Array:
    """The part of the test matrix that a task applies the operator to."""
    identity = round_.run.plan.identity
    if round_.basis is not None:
        return round_.basis.matrix.read(rows, columns)
    name = test_matrix_of(round_.run.plan, role)
    return _drawn(round_.run.plan, name, rows, columns, identity.dtype)


def _drawn(plan: Plan, name: str, rows: Range, columns: Range, dtype: npt.DTypeLike) -> Array:
    """A part of a test matrix, whether it has slices of rows or not."""
    noise, seed = plan.identity.noise[name], plan.identity.seed
    if noise in WHOLE_COLUMNS:
        whole = Range(0, height_of_noise(plan, name))
        return draw(noise, seed, name, whole, columns, dtype)[rows.slice]
    return draw(noise, seed, name, rows, columns, dtype)


def _phi(plan: Plan, rows: Range, *, dtype: npt.DTypeLike) -> Array:
    """Rows of the test matrix on the left of the inner sketch."""
    return _drawn(plan, "inner-left", rows, Range(0, plan.inner), dtype)


def inner_product(plan: Plan, rows: Range, measured: Array) -> Array:
    """``Phi^H M`` for some rows of a block ``M`` of products: columns of the inner sketch."""
    count = Range(0, plan.inner)
    wide = plan.identity.wide_dtype
    total = np.zeros((len(count), measured.shape[1]), wide)
    if plan.identity.noise["inner-left"] in WHOLE_COLUMNS:
        for piece in cut(count, COLUMNS_AT_ONCE):
            phi = _drawn(plan, "inner-left", rows, piece, wide)
            total[piece.slice] = phi.conj().T @ measured.astype(wide)
    else:
        for inside in cut(rows, plan.identity.tile[0]):
            phi = _phi(plan, inside, dtype=wide)
            block = measured[inside.shifted(-rows.start).slice]
            total += phi.conj().T @ block.astype(wide)
    return total
