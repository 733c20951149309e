"""Requests of a measure task to an operator: columns of test matrices, whole or row by row."""

from __future__ import annotations

from functools import partial

import numpy as np
import numpy.typing as npt

from skerch_ooc.algebra.noise import draw, draw_entries
from skerch_ooc.base.arrays import Array
from skerch_ooc.base.noise_kinds import SPARSE, WHOLE_COLUMNS
from skerch_ooc.base.partition import Range, cut
from skerch_ooc.operators.rows import Backward, Forward, Inner, Request
from skerch_ooc.planning.disk import NOISE_TILE_COLUMNS
from skerch_ooc.planning.parts import Part
from skerch_ooc.planning.plan import Plan
from skerch_ooc.planning.sides import ADJOINT_ROLES, height_of_noise, test_matrix_of
from skerch_ooc.store.shards import Rectangle
from skerch_ooc.store.sketch import Round


def request_for(round_: Round, rectangle: Rectangle) -> Request:
    """Makes the request for one shard to an operator that reads its own rows."""
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
        # Only what is not zero: the adjoint product then costs a few operations for each entry.
        return Backward(
            lambda rows: draw_entries(noise, identity.seed, role, rows, columns), len(columns)
        )
    if noise in WHOLE_COLUMNS:
        # Such columns are drawn whole or not at all: once here, not once for each slab of rows.
        drawn = test_vectors(round_, role, whole_of(round_, role), columns)
        return Backward(lambda rows: drawn[rows.slice], len(columns))
    return Backward(lambda rows: test_vectors(round_, role, rows, columns), len(columns))


def is_adjoint_role(round_: Round, role: str) -> bool:
    """Whether the sketch of a role is made by the adjoint of the operator."""
    return round_.adjoint if round_.basis else role in ADJOINT_ROLES


def whole_of(round_: Round, role: str) -> Range:
    """Returns all rows of a role's test matrix, as a range."""
    height, width = round_.run.plan.identity.shape
    return Range(0, height if is_adjoint_role(round_, role) else width)


def rows_given(round_: Round, part: Part, role: str) -> Range:
    """Returns the rows of a role's test matrix that a part is applied to."""
    if is_adjoint_role(round_, role) and part.rows is not None:
        return part.rows
    return whole_of(round_, role)


def test_vectors(round_: Round, role: str, rows: Range, columns: Range) -> Array:
    """Draws the test vectors of a task, or reads them from the basis of a later round."""
    identity = round_.run.plan.identity
    if round_.basis is not None:
        return round_.basis.matrix.read(rows, columns)
    name = test_matrix_of(round_.run.plan, role)
    return _drawn(round_.run.plan, name, rows, columns, identity.dtype)


def _drawn(plan: Plan, name: str, rows: Range, columns: Range, dtype: npt.DTypeLike) -> Array:
    """Draws some rows and columns of a test matrix, of any kind of noise."""
    noise, seed = plan.identity.noise[name], plan.identity.seed
    if noise in WHOLE_COLUMNS:
        whole = Range(0, height_of_noise(plan, name))
        return draw(noise, seed, name, whole, columns, dtype)[rows.slice]
    return draw(noise, seed, name, rows, columns, dtype)


def _phi(plan: Plan, rows: Range, *, dtype: npt.DTypeLike) -> Array:
    """Draws rows of ``Phi``, the test matrix on the left of the inner sketch."""
    return _drawn(plan, "inner-left", rows, Range(0, plan.inner), dtype)


def inner_product(plan: Plan, rows: Range, measured: Array) -> Array:
    """Forms ``Phi^H M`` for rows of a block ``M`` of products: columns of the inner sketch."""
    # In double precision, and drawn in pieces: Phi is as tall as the operator.
    count = Range(0, plan.inner)
    wide = plan.identity.wide_dtype
    total = np.zeros((len(count), measured.shape[1]), wide)
    if plan.identity.noise["inner-left"] in WHOLE_COLUMNS:
        for piece in cut(count, NOISE_TILE_COLUMNS):
            phi = _drawn(plan, "inner-left", rows, piece, wide)
            total[piece.slice] = phi.conj().T @ measured.astype(wide)
    else:
        for inside in cut(rows, plan.identity.tile[0]):
            phi = _phi(plan, inside, dtype=wide)
            block = measured[inside.shifted(-rows.start).slice]
            total += phi.conj().T @ block.astype(wide)
    return total
