"""Several processes at one run directory: one valid result or a refusal, never a mixture."""

from __future__ import annotations

import contextlib
import json
import shutil

import pytest

from faults.attacks import seeded
from faults.cases import BY_STAGES, CASES, ONE_COMMAND, state_of

AT_ONCE = "at once"
(RUN,) = ONE_COMMAND
PLAN, MEASURE = BY_STAGES[0], BY_STAGES[1]


@pytest.fixture(scope="session")
def zygotes(zygote, tmp_path_factory):
    """Four, so that four commands can be at work."""
    with contextlib.ExitStack() as others:
        yield [
            zygote,
            *(
                others.enter_context(zygote.another(tmp_path_factory.mktemp("another")))
                for _ in range(3)
            ),
        ]


def together(zygotes, folder, *commands, chance, longest=0.3):
    """Starts commands one shortly after the other, and waits for all of them."""
    for forks, command in zip(zygotes, commands, strict=False):
        forks.start(folder, *command, start_after=chance.uniform(0, longest))
    ended = [forks.wait() for forks, _ in zip(zygotes, commands, strict=False)]
    assert not any("Traceback" in one.err for one in ended), ended
    return ended


def lasting(state):
    """A state but for what was merged on the way, which depends on who was first."""
    return {name: value for name, value in state.items() if not name.startswith("sketch")}


def attempts(count, soaked):
    """Numbers of attempts, of which the later are left to the soak."""
    return [
        pytest.param(n, marks=() if n < count else pytest.mark.soak) for n in range(soaked)
    ]  # fmt: skip


@pytest.mark.sampled(1)
@pytest.mark.parametrize("number", attempts(1, 12))
@pytest.mark.parametrize("name", ["svd hmt", "eigh nystrom", "eigh in pieces"])
def test_two_runs_of_one_directory_leave_the_contents_of_one(
    zygotes, tally, quiet, tmp_path, name, number
):
    case = CASES[name]
    case.write(tmp_path)
    with tally.fault(AT_ONCE, f"two runs: {name}") as attempt:
        chance = seeded("runs", name, number)
        ended = together(zygotes, tmp_path, *case.commands * 2, chance=chance)
        # Who finds that the other has removed what is superseded says so.
        assert {one.code for one in ended} <= {0, 4}, ended
        assert zygotes[0](tmp_path, *case.commands[0]).code == 0
        assert state_of(tmp_path / "run") == quiet.of(name)[0]
        attempt.ended("same")


@pytest.mark.sampled(1)
@pytest.mark.parametrize("number", attempts(1, 12))
@pytest.mark.parametrize("stage", ["measure", "merge", "vectors"])
def test_four_processes_at_one_task_leave_one_valid_file(
    zygotes, tally, quiet, tmp_path, stage, number
):
    name = "eigh in pieces"
    CASES[name].write(tmp_path)
    stages = ("measure", "merge", "vectors")
    tasks = [("task", "run", s, "--index", 0, "--of", 1, "--threads", 1) for s in stages]
    at = [task[2] for task in tasks].index(stage)
    for command in (PLAN, *tasks[:at]):
        assert zygotes[0](tmp_path, *command).code == 0
    with tally.fault(AT_ONCE, f"four processes at one task: {stage}") as attempt:
        chance = seeded("tasks", stage, number)
        ended = together(zygotes, tmp_path, *[tasks[at]] * 4, chance=chance, longest=0.05)
        assert {one.code for one in ended} == {0}, ended
        assert zygotes[0](tmp_path, *RUN).code == 0
        assert state_of(tmp_path / "run") == quiet.of(name)[0]
        attempt.ended("same")


@pytest.mark.parametrize("number", attempts(1, 12))
def test_two_plans_of_one_directory_leave_one_of_them(zygotes, tally, tmp_path, number):
    CASES["eigh nystrom"].write(tmp_path)
    with tally.fault(AT_ONCE, "two plans of different seeds") as attempt:
        commands = [(*PLAN, "--set", f"seed={seed}") for seed in (1, 2, 3, 4)]
        chance = seeded("plans", number)
        ended = together(zygotes, tmp_path, *commands, chance=chance, longest=0.02)
        codes = [one.code for one in ended]
        assert sorted(codes) == [0, 2, 2, 2], ended
        planned = json.loads((tmp_path / "run/plan.json").read_text())
        assert planned["seed"] == codes.index(0) + 1
        assert zygotes[0](tmp_path, *MEASURE).code == 0
        attempt.ended("refused")


@pytest.mark.parametrize("number", attempts(1, 12))
def test_run_that_grows_while_it_is_measured_ends_as_one_that_grew_later(
    zygotes, tally, quiet, tmp_path, number
):
    CASES["eigh extended"].write(tmp_path)
    assert zygotes[0](tmp_path, *PLAN).code == 0
    extend = CASES["eigh extended"].commands[1]
    with tally.fault(AT_ONCE, "extend during measure") as attempt:
        chance = seeded("extend", number)
        ended = together(zygotes, tmp_path, MEASURE, extend, chance=chance)
        assert {one.code for one in ended} <= {0, 4}, ended
        assert zygotes[0](tmp_path, "run", "--run", "run", "--threads", 1).code == 0
        assert lasting(state_of(tmp_path / "run")) == lasting(quiet.of("eigh extended")[0])
        attempt.ended("same")


@pytest.mark.parametrize("number", attempts(1, 6))
def test_update_while_the_run_is_measured_is_refused_or_comes_after(
    zygotes, tally, quiet, tmp_path, number
):
    CASES["eigh updated"].write(tmp_path)
    assert zygotes[0](tmp_path, *PLAN).code == 0
    update = CASES["eigh updated"].commands[1]
    with tally.fault(AT_ONCE, "update during measure") as attempt:
        chance = seeded("update", number)
        ended = together(zygotes, tmp_path, MEASURE, update, chance=chance)
        assert ended[0].code == 0, ended
        assert ended[1].code in (0, 4), ended
        for command in (("run", "--run", "run", "--threads", 1), update):
            assert zygotes[0](tmp_path, *command).code in (0, 2)
        assert lasting(state_of(tmp_path / "run")) == lasting(quiet.of("eigh updated")[0])
        attempt.ended("same")


@pytest.mark.parametrize("number", attempts(1, 12))
def test_two_results_of_one_name_are_one_of_them(zygotes, tally, tmp_path, number):
    CASES["eigh nystrom"].write(tmp_path)
    for command in (PLAN, MEASURE, ("merge", "run")):
        assert zygotes[0](tmp_path, *command).code == 0
    with tally.fault(AT_ONCE, "two results of one name") as attempt:
        chance = seeded("results", number)
        commands = [("recover", "run", "--name", "x", "--rank", rank) for rank in (3, 4, 5, 6)]
        ended = together(zygotes, tmp_path, *commands, chance=chance, longest=0.02)
        assert sorted(one.code for one in ended) == [0, 2, 2, 2], ended
        first = next(n for n, one in enumerate(ended) if one.code == 0)
        alone = zygotes[0](tmp_path, "recover", "run", "--name", "alone", "--rank", 3 + first)
        assert alone.code == 0
        states = state_of(tmp_path / "run")
        assert states["results/x/eigh.h5"] == states["results/alone/eigh.h5"]
        attempt.ended("refused")


@pytest.mark.sampled(1)
@pytest.mark.parametrize("number", attempts(1, 12))
@pytest.mark.parametrize("options", [(), ("--sketch",), ("--shards",)], ids=lambda o: " ".join(o))
def test_clean_during_a_run_takes_nothing_that_is_needed(
    zygotes, tally, quiet, tmp_path, options, number
):
    name = "eigh in pieces"
    CASES[name].write(tmp_path)
    for command in (PLAN, MEASURE):
        assert zygotes[0](tmp_path, *command).code == 0
    with tally.fault(AT_ONCE, " ".join(("clean", *options, "during merge"))) as attempt:
        chance = seeded("clean", options, number)
        cleaning = ("clean", "run", *options)
        ended = together(zygotes, tmp_path, RUN, cleaning, cleaning, chance=chance, longest=1.0)
        # A run that finds its input gone says so; clean refuses while something needs the files.
        assert {one.code for one in ended} <= {0, 2, 4}, ended
        if not (tmp_path / "run/cleaned.json").exists():
            assert zygotes[0](tmp_path, *RUN).code == 0
        state, expected = state_of(tmp_path / "run"), quiet.of(name)[0]
        assert state == {key: value for key, value in expected.items() if key in state}
        assert "results/default/eigh.h5" in state
        attempt.ended("same")


@pytest.mark.parametrize("number", attempts(1, 6))
def test_shards_that_go_while_they_are_merged_are_missed_by_name(
    zygotes, tally, quiet, tmp_path, number
):
    CASES["eigh in pieces"].write(tmp_path)
    for command in (PLAN, MEASURE):
        assert zygotes[0](tmp_path, *command).code == 0
    with tally.fault(AT_ONCE, "a shard removed during merge") as attempt:
        zygotes[0].start(tmp_path, "merge", "run")
        lost = sorted((tmp_path / "run/shards").glob("*.h5"))[number % 3]
        shutil.move(lost, tmp_path / "lost")
        ended = zygotes[0].wait()
        assert ended.code in (0, 4, 5), ended
        assert ended.code == 0 or lost.name in ended.err or "not measured yet" in ended.err
        shutil.move(tmp_path / "lost", lost)
        assert zygotes[0](tmp_path, *RUN).code == 0
        assert state_of(tmp_path / "run") == quiet.of("eigh in pieces")[0]
        attempt.ended("named")
