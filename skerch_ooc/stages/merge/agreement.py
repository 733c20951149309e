"""Agreement of shards: the check at merge that one operator made all shards of a round.

This module finds the products that are computed twice, from different shards;
:mod:`skerch_ooc.stages.merge.drift` compares them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.partition import Range
from skerch_ooc.planning.sides import BASIS, CORANGE, RANGE, Side
from skerch_ooc.stages.merge.accumulate import Sums
from skerch_ooc.stages.merge.drift import (
    Applied,
    pair_asymmetry,
    pair_difference,
    relative_difference,
    require_one_operator,
)
from skerch_ooc.store.sketch import Round

Placed = tuple[Range, Path]
"""The columns of a shard, and its path."""


def require_no_drift(round_: Round, sums: Mapping[str, Sums], first: Sums | None = None) -> None:
    """Refuses a sketch whose shards were made by different operators, where that can be seen.

    A later round of a general operator is compared with the first one if it applies the adjoint, as
    the last round does, which the result is made of. Rounds of ``krylov`` are compared with all
    before them when the next block is made, from the same sums.

    Args:
        round_: The round.
        sums: Its sums, by side.
        first: The sums of the first round on the range, for later ones of ``krylov``.

    Raises:
        DriftError: If shards disagree; it names them.
    """
    identity = round_.run.plan.identity
    sides = {side.name: side for side in round_.sides}
    if identity.kind == "eigh":
        placed, pairs = _hermitian_pairs(round_, sides[RANGE], sums[RANGE], first)
    elif CORANGE in sides and round_.run.plan.krylov is None:
        placed, pairs = _adjoint_pairs(round_, sides, sums)
    else:
        return
    require_one_operator(pairs, placed, identity.dtype, alike=round_.basis is None)


def _hermitian_pairs(
    round_: Round, side: Side, sums: Sums, first: Sums | None
) -> tuple[list[Placed], Array]:
    """Lists the shards of a round of a Hermitian operator, and how far they disagree in pairs."""
    rows, norms = [], []
    for role, place in side.measured.items():
        of_basis = round_.basis is not None and role == round_.role
        noise = side.noise[_test_matrix(round_, side) if of_basis else role]
        rows.append(sums.cross[noise.slice][: len(place)])
        norms.append(_basis_norms(len(place)) if of_basis else np.ones(len(place)))
    # A block leaves out what those before it have found, so its products may be small, and rounded
    # as the whole operator's are.
    least = 0.0 if first is None else math.sqrt(float(np.mean(first.column_squares)))
    products = _measured_norms(side, sums)
    square = np.concatenate(rows)[:, : len(products)]
    applied = Applied(np.concatenate(norms), products, least)
    placed = round_.sketch.readers[side.name].placed_shards()
    difference = relative_difference(square, square, applied, applied)
    return placed, pair_asymmetry(difference, [place for place, _ in placed])


def _test_matrix(round_: Round, side: Side) -> str:
    """Returns the name of the test matrix of a later round."""
    return BASIS if BASIS in side.noise else f"{BASIS}{round_.number}"


def _adjoint_pairs(
    round_: Round, sides: Mapping[str, Side], sums: Mapping[str, Sums]
) -> tuple[list[Placed], Array]:
    """Lists the shards of a round that applied the adjoint, and how far they disagree in pairs.

    Each is paired with shards that applied the operator itself, which come after them in the list:
    those of the same round or, where the test matrix of the round is a basis, those of the test
    sketch of the first round. (Its other columns are what the basis was made of.)
    """
    side, total = sides[CORANGE], sums[CORANGE]
    if round_.basis is None:
        first, roles = round_, ["right", "test"]
        noise, cross = sides[RANGE].noise, sums[RANGE].cross
        there = np.concatenate([cross[noise[role].slice] for role in side.sketches])
        norms, products = np.ones(len(there)), _measured_norms(sides[RANGE], sums[RANGE])
    else:
        first, roles = Round(round_.run), ["test"]
        there = round_.basis.file.arrays["test_products"]
        norms, products = _basis_norms(len(there)), np.linalg.norm(there, axis=0)
    own = _measured_norms(side, total)
    back = [total.cross[side.noise[role].slice] for role in roles if role in side.noise]
    if not back:
        return [], np.zeros((0, 0))
    difference = relative_difference(
        there,
        np.concatenate(back)[:, : len(own)],
        Applied(norms, own),
        Applied(np.ones(len(products)), products),
    )
    rows = round_.sketch.readers[CORANGE].placed_shards()
    columns = first.sketch.readers[RANGE].placed_shards(roles)
    pairs = pair_difference(difference, [place for place, _ in rows], [p for p, _ in columns])
    return rows + columns, pairs


def _basis_norms(columns: int) -> Array:
    """Returns the norms of basis vectors, relative to random ones, as rounding errors see them.

    A basis of the range of a sketch spans its rounding errors too. If those repeat themselves in
    the next round, they are not at random angles to it, but within that many dimensions.
    """
    return np.full(columns, 1 / math.sqrt(max(1, columns)))


def _measured_norms(side: Side, sums: Sums) -> Array:
    """Returns the norms of the columns of ``Z`` that are measured, which stand first."""
    return np.sqrt(sums.column_squares)[: sum(map(len, side.measured.values()))]
