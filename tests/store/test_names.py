"""What files are called: the table of their kinds, its names there and back, and golden runs."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerch_ooc.base.partition import Range
from skerch_ooc.planning.krylov import Origin
from skerch_ooc.store import names
from skerch_ooc.store.names import KINDS, kind_of, names_of
from skerch_ooc.store.rundir import open_run
from skerch_ooc.store.sealed import SealedFile

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("run_v1*/"))
FILES = [
    (run, path.relative_to(run))
    for run in GOLDEN
    for path in sorted(run.rglob("*"))
    if path.is_file()
]

SIXTEEN = "0123456789abcdef"

RANGES = st.tuples(st.integers(0, 10**9), st.integers(1, 10**9)).map(
    lambda pair: f"{pair[0]}-{sum(pair)}"
)
VALUES = {
    "role": st.from_regex("[a-z][a-z0-9-]{0,39}", fullmatch=True),
    "part": st.integers(0, 999),
    "columns": RANGES,
    "rows": RANGES,
    "tiles": RANGES,
    "side": st.sampled_from(["range", "corange"]),
    "noise": st.sampled_from(["right", "inner-left"]),
    "figure": st.sampled_from(names.FIGURES),
    "log": st.sampled_from(["receipts", "plan", "listings"]),
    "number": st.integers(1, 9999),
    "of_part": st.integers(0, 99),
    "source": st.builds(Origin, st.integers(1, 999))
    | st.integers(1, 99).map(lambda stop: Origin(tests=Range(stop - 1, stop))),
}


def fields_of(kind):
    return [field for _, field, *_ in string.Formatter().parse(kind.template) if field]


def place_of(kind):
    """A folder in which files of a kind lie."""
    inside = {"[0-9a-f]{16}": SIXTEEN, ".+": "default"}
    return tuple(inside.get(one, one) for one in kind.folder)


@pytest.mark.sampled(16)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.template)
@given(data=st.data())
def test_names_lead_back_to_their_kind_and_values(kind, data):
    strategies = VALUES | {"matrix": st.sampled_from(kind.matrices or ("",))}
    values = {field: data.draw(strategies[field]) for field in fields_of(kind)}
    name = kind.name(**values)
    assert kind.is_name(name, **values)
    assert [other for other in KINDS if other.lies_in(place_of(kind)) and other.is_name(name)] == [
        kind
    ]
    assert kind_of(place_of(kind), name) is kind


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ((names.SHARDS,), "right.p0.c5-5.r0-8.h5"),
        ((names.SHARDS,), "right.p0.c5-4.r0-8.h5"),
        ((names.SHARDS,), "right.p0.c05-6.r0-8.h5"),
        ((names.SHARDS,), "right.p00.c5-6.r0-8.h5"),
        ((names.SHARDS,), "Right.p0.c5-6.r0-8.h5"),
        ((names.SHARDS,), "right.p0.c5-6.r0-8.h5.bak"),
        ((names.SHARDS,), "total.h5"),
        ((names.SHARDS,), ".tmp-host-1-00000000"),
        ((names.SKETCH, "default"), "total.h5"),
        ((names.SKETCH, SIXTEEN, "deeper"), "total.h5"),
        ((names.SKETCH, SIXTEEN), "other.total.h5"),
        ((names.SKETCH, SIXTEEN), "sums.t4-2.h5"),
        ((names.SKETCH, SIXTEEN), "U.t0-2.h5"),
        ((names.RESULTS, "default"), "basis.t0-2.h5"),
        ((names.RESULTS, "default"), "draft.W.h5"),
        ((names.RESULTS,), "eigh.h5"),
        ((), "fingerprint.p0.json"),
        ((), "total.h5"),
    ],
)
def test_other_names_are_of_no_kind(folder, name):
    assert kind_of(folder, name) is None


def test_golden_runs_have_files_of_most_kinds():
    found = {kind_of(path.parts[:-1], path.name) for _, path in FILES}
    assert len(found - {None}) >= 10


@pytest.mark.parametrize(("run", "path"), FILES, ids=lambda path: str(path)[-60:])
def test_files_of_golden_runs_are_of_the_kind_that_they_say(run, path):
    kind = kind_of(path.parts[:-1], path.name)
    assert kind is not None
    if path.suffix == ".h5":
        identity = SealedFile(run / path).identity
        assert kind.type == identity["type"]
        shards = (names.COLUMN_SHARD, names.ROW_SHARD)
        own = names_of(open_run(run).plan, identity)
        assert own == [] if kind in shards else path.name in own


def test_identity_states_kind_and_run_and_the_ends_of_ranges():
    stated = names.PARTIAL_SUMS.identity("run", sketch="digest", tiles=Range(2, 4))
    assert list(stated.items()) == [
        ("format", 1), ("type", "sums"), ("run", "run"), ("sketch", "digest"), ("tiles", [2, 4]),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", [names.TOTAL_SUMS, names.EIGH, names.COLUMN_SHARD])
def test_files_of_a_kind_are_found_in_order(kind):
    for run in GOLDEN:
        wanted = [
            run / path for one, path in FILES
            if one == run and kind_of(path.parts[:-1], path.name) is kind
        ]  # fmt: skip
        assert kind.found_in(run) == sorted(wanted)


@pytest.mark.parametrize(
    "identity",
    [
        {},
        {"type": None},
        {"type": "unknown"},
        {"type": "sums", "tiles": 5},
        {"type": "piece", "matrix": ["U"], "tiles": [0, 1]},
        {"type": "recipe", "rows": [1, 2]},
        {"type": "noise", "noise": {"right": 1}},
        {"type": ["sums"], "tiles": [0, 1]},
    ],
)
def test_identities_that_make_no_sense_have_no_name(identity):
    assert names_of(open_run(GOLDEN[0]).plan, identity) == []
