"""A matrix on disk is read as few times as memory allows."""

from __future__ import annotations

import numpy as np
import pytest

from skerch_ooc.base.resources import SPARE_BYTES, Resources
from skerch_ooc.operators.matrix import stored
from skerch_ooc.pipeline import readings
from skerch_ooc.pipeline.readings import parts_that_fit, widths_that_fit
from skerch_ooc.planning.memory import Reading, rows_bytes
from skerch_ooc.planning.parts import runs_of
from skerch_ooc.planning.sizes import Sizes
from skerch_ooc.planning.spec import Spec

ROWS, COLUMNS = 300_000, 2000
TERM = 131_072
HELD = 1 << 28
SLABS = 2 * 8192 * COLUMNS * 4
SIZES = Sizes(150, 1200, 0, 30, 10)
SPEC = Spec.from_table({"kind": "svd", "measurements": SIZES.right})


@pytest.fixture
def product(tmp_path, monkeypatch):
    """A matrix of three terms, of which nothing but the header is on disk."""
    # What this process takes changes with the tests before.
    monkeypatch.setattr(readings, "resident_memory", lambda: HELD)
    np.lib.format.open_memmap(tmp_path / "a.npy", "w+", "float32", (ROWS, COLUMNS))
    return stored("a.npy", folder=str(tmp_path)).as_product("float32", "cpu")


def cut(product, needed):
    """How many parts and blocks of columns there are with so much memory for a task."""
    resources = Resources(HELD + SPARE_BYTES + product.held_bytes + needed, 1)
    runs = runs_of(product.terms, parts_that_fit(SPEC, product, SIZES, resources))
    widths = widths_that_fit(SPEC, product, SIZES, runs, resources)
    return len(runs), -(-SIZES.right // widths["right"])


def task_bytes(rows, **reading):
    return rows_bytes((rows, COLUMNS), "float32", SIZES.as_dict(), Reading(SLABS, **reading))


def test_one_task_needs_no_room_for_products_of_another(product):
    needed = task_bytes(ROWS, alone=True, terms=3)
    assert needed < task_bytes(ROWS, terms=3)
    assert cut(product, needed) == (1, 1)


def test_largest_part_fits_where_parts_are_not_of_equal_height(product):
    # Two parts would have two terms and one.
    needed = task_bytes(TERM)
    assert needed < task_bytes(ROWS // 2, terms=2)
    assert cut(product, needed) == (3, 1)


def test_columns_are_cut_where_parts_are_too_large(product):
    parts, blocks = cut(product, task_bytes(TERM) * 3 // 4)
    assert (parts, blocks) == (3, 2)
