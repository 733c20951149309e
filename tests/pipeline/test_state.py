"""State: what is left of a run and what comes next, at each step from its plan to its end."""

from __future__ import annotations

import pytest
from specs import write_spec

import skerch_ooc as ooc
from skerch_ooc.pipeline.state import State
from skerch_ooc.pipeline.status import status

pytestmark = pytest.mark.usefixtures("no_late_files")

STEPS = ("measure", "merge", "recover", "assess")


def planned(folder, **more):
    spec = write_spec(folder, "synthetic", 12, sketch={"test_measurements": 4, "block": 4}, **more)
    return ooc.plan(spec, folder / "run", threads=1)


def states_of(run):
    """The state by notes, and the one for which shards are opened."""
    return State(run, by_notes=True), State(run)


def verb_of(command):
    return command and command.split()[1]


def test_each_step_leads_to_the_next(tmp_path):
    run = planned(tmp_path)
    for number, verb in enumerate(STEPS):
        for state in states_of(run):
            assert verb_of(state.next) == verb
            assert (state.incomplete, state.measured) == (number == 0, number > 0)
            assert (state.merged, state.stale, state.assessed) == (number >= 2, number < 3, False)
            assert not state.finished
        getattr(ooc, verb)(run)
    for state in states_of(run):
        assert (state.next, state.finished, state.left) == (None, True, [])


def test_assessment_that_was_altered_is_left_to_be_made(tmp_path):
    run = planned(tmp_path)
    for verb in STEPS:
        getattr(ooc, verb)(run)
    with open(run.results / "default/assessment.json", "r+") as file:
        file.write("[")
    for state in states_of(run):
        left = [str(one.stage) for one in state.left]
        assert (verb_of(state.next), left) == ("assess", ["assess"])


def test_stages_that_are_left_are_those_from_the_next_on(tmp_path):
    run, left = planned(tmp_path), []
    for verb in STEPS:
        left.append([str(one.stage) for one in State(run).left])
        getattr(ooc, verb)(run)
    # One small sketch is merged, and its result written, by the process that needs it.
    assert left == [["measure", "assess"], ["assess"], ["assess"], ["assess"]]


def test_rounds_are_known_as_soon_as_there_is_their_basis(tmp_path):
    run = planned(tmp_path, recovery={"method": "hmt"})
    for known in (1, 2):
        ooc.measure(run)
        assert [len(state.rounds) for state in states_of(run)] == [known, known]
        ooc.merge(run)
    assert all(state.measured and state.merged for state in states_of(run))


def test_result_of_fewer_columns_is_stale(tmp_path):
    run = planned(tmp_path)
    for verb in STEPS:
        getattr(ooc, verb)(run)
    grown = ooc.extend(run, 16)
    assert all(state.incomplete and state.stale for state in states_of(grown))
    ooc.measure(grown)
    assert all(state.measured and state.stale and state.assessed for state in states_of(grown))


def test_digest_by_notes_is_that_of_the_shards(tmp_path):
    run = planned(tmp_path)
    ooc.measure(run)
    noted, opened = states_of(run)
    # Nothing was made of it yet that could be compared.
    assert (noted.digest, opened.digest) == (None, opened.last.sketch.digest)
    ooc.merge(run)
    noted, opened = states_of(run)
    assert noted.digest == opened.digest == opened.last.sketch.digest


def test_shard_that_is_damaged_is_told_of_by_who_opens_it(tmp_path):
    run = planned(tmp_path)
    ooc.measure(run)
    ooc.merge(run)
    path = next(iter(sorted(run.shards.glob("*.h5"))))
    path.write_bytes(path.read_bytes()[:-1])
    noted, opened = states_of(run)
    assert noted.digest is None
    assert verb_of(noted.next) == "recover"
    with pytest.raises(ooc.CorruptError, match=path.name):
        opened.digest  # noqa: B018


def test_status_says_what_the_state_is(tmp_path):
    run = planned(tmp_path)
    ooc.measure(run)
    state, found = State(run, by_notes=True), status(run)
    assert (found.next, found.merged, found.shards) == (state.next, False, len(state.shards))
    assert found.all_of_it == f"skerch-ooc run --run {run.directory}"
