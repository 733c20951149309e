"""Bad input: specs, plans, records, names and command lines of people who mean no good.

Whatever they hold: no traceback, a designed exit code, bounded time and memory, and nothing is
made, changed or removed outside of the run directory.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import strategies as st
from specs import FACTORIES, write_spec

from faults.hostile import (
    DESIGNED,
    JUNK,
    Change,
    broken_texts,
    changed,
    changes,
    command,
    designed,
    places,
    sealed,
    search,
    snapshot,
    spelt,
)
from skerch_ooc.base.errors import OocError
from skerch_ooc.planning.plan import Amendment, Identity

GIB = 1024**3


def efforts(few, many):
    """Examples by default, and those of the long search."""
    return pytest.mark.parametrize(
        "examples", [few, pytest.param(many, marks=pytest.mark.soak)], ids=["few", "many"]
    )


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CPUS_PER_TASK", "1")
        # There are no network folders here whose late files are worth waiting for.
        patch.setattr("skerch_ooc.base.patience.LATE_FILES_SECONDS", ())
        yield


@pytest.fixture(scope="module")
def templates(tmp_path_factory):
    """Runs at several stages, to be copied, and the folder that they lie in."""
    folder = tmp_path_factory.mktemp("templates")
    spec = write_spec(
        folder,
        "matrix",
        20,
        operator={"args": {"n": 40}},
        sketch={"test_measurements": 12, "block": 8},
    )
    (folder / "calls.log").write_text("")
    assert command(folder, "run", spec, "--run", "finished").code == 0
    shutil.copytree(folder / "finished", folder / "measured", symlinks=True)
    for made in ("sketch", "results"):
        shutil.rmtree(folder / "measured" / made)
        (folder / "measured" / made).mkdir()
    shutil.copytree(folder / "measured", folder / "planned")
    for shard in (folder / "planned/shards").iterdir():
        shard.unlink()
    record = json.dumps(
        {"token": "0123456789abcdef", "left": "x", "unchanged": 0, "options": _options()}
    )
    slurm = folder / "planned/logs/slurm/0001"
    slurm.mkdir(parents=True)
    (slurm / "submission.json").write_text(record)
    (slurm / "jobs.jsonl").write_text('{"job":"17","stage":"measure","indices":[0,1]}\n')
    (slurm / "measure.17_0.log").write_text("begins on here\nended with exit code 4\n")
    return folder


def _options():
    from skerch_ooc.executors.slurm.options import JobOptions

    return JobOptions().as_json()


@pytest.fixture
def place(tmp_path, templates):
    """A folder with neighbours that nobody may touch; makes fresh copies of a template in it."""
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "precious.txt").write_text("mine")
    (folder / "results").mkdir()
    (folder / "results/assessment.json").write_text("{}")
    (folder / "eigh.h5").write_bytes(b"not yours")
    run = folder / "run"

    class Place:
        def __init__(self):
            self.folder, self.run = folder, run
            self.outside = snapshot(tmp_path, but=run)

        def fresh(self, template):
            if run.is_symlink() or run.exists():
                shutil.rmtree(run)
            shutil.copytree(templates / template, run, symlinks=True)
            return run

        def untouched(self):
            assert snapshot(tmp_path, but=run) == self.outside

    return Place()


READING = (
    ("status", "run"),
    ("status", "run", "--json"),
    ("verify", "run"),
    ("assess", "run"),
    ("estimates", "run"),
    ("submit", "run", "--dry-run", "--max-array-size", "100"),
)
WORKING = (
    ("measure", "run", "--max-seconds", "5"),
    ("merge", "run"),
    ("recover", "run"),
    ("run", "--run", "run", "--max-seconds", "5"),
    ("task", "run", "measure", "--index", "0", "--of", "2"),
    ("extend", "run", "--measurements", "24", "--plan-only"),
    ("update", "run", "--factory", f"{FACTORIES}:matrix", "--arg", "n=40", "--plan-only"),
)
VERBS = READING + WORKING

_OFTEN = ("status", "assess", "submit", "measure")
each_verb = pytest.mark.parametrize(
    "verb",
    [verb if verb[0] in _OFTEN else pytest.param(verb, marks=pytest.mark.soak) for verb in VERBS],
    ids=[" ".join(verb)[:12] for verb in VERBS],
)
"""Some of them by default, all of them in the long search."""


def _attack(place, tally, kind, where, arguments):
    with tally.fault(kind, where) as attempt:
        done = designed(place.folder, *arguments)
        place.untouched()
        attempt.ended("refused" if done.code else "harmless")
    return done


# Spec files.

VALID = """
measurements = 20
kind = "eigh"
seed = 3
dtype = "float64"
[operator]
factory = "{factory}:matrix"
device = "cpu"
shape = [40, 40]
[operator.args]
n = 40
[sketch]
noise = "gaussian"
test_measurements = 10
block = 8
task_seconds = 10.5
[recovery]
method = "nystrom"
core = "auto"
rank = 5
vectors = "stored"
"""

TOML_JUNK = (
    "true",
    "false",
    "0",
    "-1",
    "1.5",
    "-0.0",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "9" * 5000,
    "0x" + "f" * 6000,
    "-9223372036854775809",
    "2026-01-01",
    "07:32:00",
    "1979-05-27T07:32:00Z",
    '""',
    '"x"',
    r'"\u0000"',
    r'"\uFFFF"',
    '"' + "x" * 10**5 + '"',
    "[]",
    "{}",
    "[[]]",
    "[1, 2, 3]",
    "[40, 40.0]",
    "[40, true]",
    "[-1, 40]",
    "[281474976710656, 281474976710656]",
    "{a = 1}",
    "[" * 90 + "]" * 90,
    "[" * 10**4 + "]" * 10**4,
    '"""\n"""',
    "'''x'''",
    "1_000",
    '"auto"',
)

LINES = [line for line in VALID.splitlines() if line]


@st.composite
def specs(draw):
    """Texts of a valid spec, with some lines changed, removed, repeated or added."""
    lines = LINES[:]
    for _ in range(draw(st.integers(1, 3))):
        position = draw(st.integers(0, len(lines) - 1))
        how = draw(st.sampled_from(["value", "value", "value", "key", "remove", "repeat", "add"]))
        line = lines[position]
        if how == "value" and "=" in line:
            lines[position] = f"{line.partition('=')[0]} = {draw(st.sampled_from(TOML_JUNK))}"
        elif how == "key" and "=" in line:
            name = draw(
                st.sampled_from(["x", '""', "'a.b'", "k" * 10**4, "sketch", "recovery.rank"])
            )
            lines[position] = f"{name} = {line.partition('=')[2]}"
        elif how == "remove":
            del lines[position]
        elif how == "repeat":
            lines.insert(position, line)
        else:
            more = [
                "[[operator]]",
                "[a]",
                "[operator.args.x]",
                "[[sketch.block]]",
                "\0",
                "\ufeff",
                "[",
            ]
            lines.insert(position, draw(st.sampled_from(more)))
        if not lines:
            lines = [""]
    text = "\n".join(lines).replace("{factory}", str(FACTORIES))
    return draw(st.sampled_from(["", "", "\ufeff", "\0", "\r\n"])) + text


def texts():
    return specs().map(str.encode) | st.binary(max_size=200) | st.text(max_size=200).map(str.encode)


@pytest.fixture
def planning(place, tally):
    """Plans a spec of these bytes in a folder with neighbours."""

    def plan(content, *more, where="spec file"):
        shutil.rmtree(place.run, ignore_errors=True)
        spec = place.folder / "spec.toml"
        spec.write_bytes(content)
        with tally.fault("bad input", where) as attempt:
            done = designed(place.folder, "plan", "spec.toml", "--run", "run", *more)
            spec.unlink()
            place.outside.pop("home", None)
            now = snapshot(place.folder.parent, but=place.run)
            now.pop("home", None)
            assert now == place.outside
            assert (place.run / "plan.json").exists() == (done.code == 0)
            attempt.ended("refused" if done.code else "harmless")
        return done

    return plan


@efforts(60, 3000)
def test_any_spec_is_planned_or_refused(planning, examples):
    search(planning, texts(), examples)


@pytest.mark.parametrize("value", TOML_JUNK, ids=[text[:20] for text in TOML_JUNK])
@pytest.mark.parametrize(
    "line", ["seed = ", "operator.factory = ", "operator.args = ", "storage = "]
)
def test_value_of_a_spec_is_checked(planning, value, line):
    assert planning(f"measurements = 4\n{line}{value}\n".encode()).code == 2


SETTINGS = (
    "measurements",
    "operator",
    "operator.args.n",
    "operator.shape",
    "sketch.block",
    "recovery.rank",
    "",
    ".",
    "..",
    "a.b.c.d",
    "storage",
    "tolerance",
    "recovery",
    "operator.factory",
    "\0",
    "\udcff",
)


@efforts(40, 2000)
def test_any_setting_is_taken_or_refused(planning, examples):
    valid = VALID.replace("{factory}", str(FACTORIES)).encode()
    value = st.sampled_from(TOML_JUNK) | st.text(max_size=20)
    pairs = st.tuples(st.sampled_from(SETTINGS), st.sampled_from(["=", " = ", "", "=="]), value)
    search(
        lambda pair: planning(valid, "--set", "".join(pair), where="setting on the command line"),
        pairs,
        examples,
    )


# What is in a run directory.


@pytest.mark.parametrize(
    "name", ["plan.json", "plan.d/0001.json", "fingerprint.json", "results/default/assessment.json"]
)
@efforts(15, 600)
def test_file_that_is_no_json_of_ours(place, templates, tally, name, examples):
    content = (templates / "finished" / name).read_bytes()

    def check(attack):
        text, verb = attack
        run = place.fresh("finished")
        (run / name).write_bytes(text)
        _attack(place, tally, "bad input", name, verb)

    search(check, st.tuples(broken_texts(content), st.sampled_from(VERBS)), examples)


@pytest.mark.parametrize("name", ["fingerprint.json", "results/default/assessment.json"])
@pytest.mark.parametrize("text", ["1e999", "[]", "null"])
def test_value_that_has_no_checksum_is_altered(place, tally, name, text):
    run = place.fresh("finished")
    (run / name).write_text(text)
    with tally.fault("bad input", name) as attempt:
        done = designed(place.folder, "verify", "run")
        assert (done.code, f"{name} was altered" in done.err) == (5, True), done.err
        attempt.ended("named")


@pytest.mark.parametrize("template", ["planned", "measured", "finished"])
@efforts(25, 1500)
def test_altered_amendment(place, templates, tally, template, examples):
    known = json.loads((templates / template / "plan.d/0001.json").read_bytes())

    def check(attack):
        those, reseal, verb = attack
        run = place.fresh(template)
        value = changed(known, those)
        if reseal and isinstance(value, dict):
            value = sealed(value)
        (run / "plan.d/0001.json").write_bytes(spelt(value) + b"\n")
        _attack(place, tally, "bad input", "plan.d/NNNN.json", verb)

    several = st.sampled_from([True, True, True, False])
    search(check, st.tuples(changes, several, st.sampled_from(VERBS)), examples)


@pytest.mark.parametrize("template", ["planned", "finished"])
@efforts(25, 1500)
def test_altered_identity_with_amendments_that_fit(place, templates, tally, template, examples):
    known = json.loads((templates / template / "plan.json").read_bytes())
    amendment = json.loads((templates / template / "plan.d/0001.json").read_bytes())

    def check(attack):
        those, verb = attack
        run = place.fresh(template)
        _write_plan(run, changed(known, those), amendment)
        _attack(place, tally, "bad input", "plan.json", verb)

    search(check, st.tuples(changes, st.sampled_from(VERBS)), examples)


def _write_plan(run, identity, *amendments):
    """Writes a plan whose hashes all fit, whatever it says."""
    import hashlib

    content = spelt(identity) + b"\n"
    (run / "plan.json").write_bytes(content)
    for number, amendment in enumerate(amendments, 1):
        named = amendment | {"run": hashlib.sha256(content).hexdigest()}
        (run / f"plan.d/{number:04d}.json").write_bytes(spelt(sealed(named)) + b"\n")


@pytest.mark.parametrize("template", ["planned", "finished"])
@efforts(20, 800)
def test_altered_fingerprint(place, templates, tally, template, examples):
    known = json.loads((templates / template / "fingerprint.json").read_bytes())

    def check(attack):
        those, verb = attack
        run = place.fresh(template)
        value = changed(known, those)
        (run / "fingerprint.json").write_bytes(spelt(sealed(value)) + b"\n")
        _attack(place, tally, "bad input", "fingerprint.json", verb)

    search(check, st.tuples(changes, st.sampled_from(VERBS)), examples)


@efforts(20, 800)
def test_altered_assessment(place, templates, tally, examples):
    known = json.loads((templates / "finished/results/default/assessment.json").read_bytes())

    def check(attack):
        those, verb = attack
        run = place.fresh("finished")
        (run / "results/default/assessment.json").write_bytes(spelt(changed(known, those)))
        _attack(place, tally, "bad input", "assessment.json", verb)

    search(check, st.tuples(changes, st.sampled_from(READING)), examples)


@pytest.mark.sampled(16)
@pytest.mark.parametrize("value", JUNK, ids=lambda value: repr(value)[:20])
def test_status_shows_whatever_error_an_assessment_states(place, tally, value):
    run = place.fresh("finished")
    (run / "results/default/assessment.json").write_bytes(spelt({"relative_error": value}))
    for verb in READING[:2]:
        assert _attack(place, tally, "bad input", "assessment.json", verb).code == 0


# Logs. Nothing depends on them.

LOGS = (
    "receipts.jsonl",
    "plan.jsonl",
    "listings.jsonl",
    "places.json",
    "slurm/0001/submission.json",
    "slurm/0001/jobs.jsonl",
)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", LOGS)
@efforts(20, 800)
def test_altered_log_is_no_reason_to_stop(place, templates, tally, name, examples):
    template = "planned" if name.startswith("slurm") else "finished"
    path = templates / template / "logs" / name
    lines = path.read_bytes().splitlines() if name.endswith("l") else [path.read_bytes()]
    known = [json.loads(line) for line in lines]

    def check(attack):
        those, broken, verb = attack
        run = place.fresh(template)
        altered = [spelt(changed(value, those)) for value in known]
        content = b"\n".join(altered) + b"\n" if broken is None else broken
        (run / "logs" / name).write_bytes(content)
        _attack(place, tally, "bad input", f"logs/{name}", verb)

    broken = st.none() | st.none() | broken_texts(lines[0])
    search(check, st.tuples(changes, broken, st.sampled_from(READING + WORKING[:1])), examples)


@pytest.mark.parametrize("name", LOGS)
@pytest.mark.parametrize("verb", READING[:2] + READING[5:], ids=lambda verb: verb[0])
def test_log_does_not_decide_how_status_ends(place, tally, name, verb):
    run = place.fresh("planned")
    path = run / "logs" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"[" * 10**5 + b"\n" + b"\xff\n{}\n[]\n" + b"9" * 10**4 + b"\n")
    assert _attack(place, tally, "bad input", f"logs/{name}", verb).code == 0


@pytest.mark.covered(1)
@each_verb
@pytest.mark.parametrize("name", LOGS)
def test_log_that_is_a_pipe_is_never_opened(place, tally, name, verb):
    run = place.fresh("planned")
    path = run / "logs" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    _attack(place, tally, "special file", f"logs/{name}", verb)


@pytest.mark.covered(1)
@each_verb
@pytest.mark.parametrize("name", [*LOGS, "slurm/lock", "slurm/0001/measure.17_0.log"])
def test_log_that_is_a_link_is_never_followed(place, tally, name, verb):
    run = place.fresh("planned")
    path = run / "logs" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(place.folder / ("precious.txt" if name != "slurm/lock" else "new.txt"))
    done = _attack(place, tally, "special file", f"logs/{name}", verb)
    assert "mine" not in done.out


# Plans that are spelt well.


@pytest.mark.parametrize("name", ["plan.json", "plan.d/0001.json"])
def test_every_value_of_a_plan_is_checked_or_harmless(templates, tally, name):
    known = json.loads((templates / "finished" / name).read_bytes())
    read = Identity.from_json if name == "plan.json" else Amendment.from_json
    for number in range(len(list(places(known)))):
        for value in JUNK:
            with tally.fault("bad input", f"{name}, each value") as attempt:
                altered = Change(number, "replace", value).of(known)
                altered = altered if name == "plan.json" else sealed(altered)
                try:
                    read(altered, name).as_json()
                    attempt.ended("harmless")
                except OocError:
                    attempt.ended("refused")


HUGE = 2**48
PLANS = {
    "all that integers allow": ({"shape": [HUGE, HUGE]}, {}),
    "tasks without end": (
        {"shape": [HUGE, HUGE]},
        {"blocks": {"right": {"start": 0, "stop": 2**40, "width": 1}}},
    ),
    "rows without end": ({"shape": [2**40, 2**40]}, {}),
    "no right sketch": ({}, {"blocks": {"test": {"start": 0, "stop": 8, "width": 8}}}),
    "cut that begins late": ({}, {"blocks": {"right": {"start": 4, "stop": 8, "width": 8}}}),
    "more columns than the operator has": (
        {},
        {"blocks": {"right": {"start": 0, "stop": 41, "width": 8}}},
    ),
    "many parts": (
        {},
        {
            "parts": [
                {"number": n, "scale": 1.0, "terms": [n, n + 1], "of": 10**4} for n in range(10**4)
            ]
        },
    ),
    "terms of another part": (
        {},
        {"parts": [{"number": 0, "scale": 1.0, "terms": [0, 9], "of": 3}]},
    ),
    "no terms": ({}, {"parts": [{"number": 0, "scale": 1.0, "terms": [2, 2], "of": 3}]}),
    "rows of nobody": (
        {},
        {"parts": [{"number": 0, "scale": 1.0, "terms": [0, 1], "of": 2, "rows": [0, HUGE]}]},
    ),
    "test matrix that is missing": ({"noise": {"right": "gaussian"}}, {}),
    "folder outside": ({}, {"folder": "../../../../../../etc"}),
    "factory by a path": ({"factory": "../../../../etc/passwd.py:make"}, {}),
    "factory by an absolute path": ({"factory": "/dev/stdin.py:make"}, {}),
    "device of no kind": ({}, {"device": "../../dev/null"}),
    "rounds of a basis": (
        {},
        {
            "recovery": {
                "method": "hmt",
                "core": "auto",
                "rank": "all",
                "power_iterations": 2,
                "vectors": "stored",
            }
        },
    ),
}


@pytest.mark.covered(1)
@each_verb
@pytest.mark.parametrize("plan", PLANS)
def test_plan_that_is_spelt_well_and_makes_no_sense(place, templates, zygote, tally, plan, verb):
    run = place.fresh("planned")
    _write_plan(run, *_hostile(templates, *PLANS[plan]))
    limits = {"RLIMIT_AS": _address_space(), "RLIMIT_CPU": 20}
    with tally.fault("bad input", "plans that make no sense") as attempt:
        ended = zygote(place.folder, *verb, limits=limits)
        assert ended.code in DESIGNED, ended
        assert "MemoryError" not in ended.err
        place.untouched()
        attempt.ended("refused" if ended.code else "harmless")


def _hostile(templates, of_identity, of_amendment):
    identity, amendment = (
        json.loads((templates / "planned" / name).read_bytes())
        for name in ("plan.json", "plan.d/0001.json")
    )
    of_operator = {key: of_identity[key] for key in ("shape", "factory") if key in of_identity}
    rest = {key: value for key, value in of_identity.items() if key not in of_operator}
    if "factory" in of_operator:
        of_operator["sha256"] = "0" * 64
    identity |= rest | {"operator": identity["operator"] | of_operator}
    return identity, amendment | of_amendment


def _address_space():
    """What a process with all libraries has mapped, and a GiB."""
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize() + 2 * GIB


@pytest.mark.parametrize(
    "cuts",
    [
        [(0, 8), (8, 16), (20, 24)],
        [(0, 8), (4, 16), (16, 24)],
        [(0, 8), (16, 24), (8, 16)],
        [(0, 8), (0, 8)],
    ],
)
def test_amendments_whose_cuts_do_not_follow_each_other(place, templates, tally, cuts):
    run = place.fresh("planned")
    identity, first = _hostile(templates, {}, {})
    amendments = [
        first | {"number": number, "blocks": {"right": {"start": start, "stop": stop, "width": 8}}}
        for number, (start, stop) in enumerate(cuts, 1)
    ]
    _write_plan(run, identity, *amendments)
    assert _attack(place, tally, "bad input", "plans that make no sense", VERBS[0]).code == 5


@pytest.mark.parametrize("name", ["shards", "sketch", "results", "logs", "plan.d"])
@each_verb
def test_folder_of_a_run_that_is_a_link_is_not_written_into(place, tally, name, verb):
    run = place.fresh("finished")
    os.rename(run / name, place.folder / "elsewhere")
    try:
        (run / name).symlink_to(place.folder / "elsewhere")
        before = snapshot(place.folder / "elsewhere")
        with tally.fault("special file", "folders") as attempt:
            assert designed(place.folder, *verb).code == 5
            assert snapshot(place.folder / "elsewhere") == before
            attempt.ended("refused")
    finally:
        shutil.rmtree(place.folder / "elsewhere")


# Names in folders.

NAMES = [
    b"..x",
    b"a\nb.h5",
    b"x" * 255,
    "é\u202e.h5".encode(),
    b"\xff\xfe.h5",
    b"\x1b[2J.h5",
    b" ",
    b"-rf",
    b"right.p0.c0-999999999999999.r0-40.h5",
    b"right.p0.c0-8.r0-999999999999999.h5",
    b"right.p999999999.c0-8.r0-40.h5",
    b"right.p0.c00-8.r0-40.h5",
    "right.p0.c0-٨.r0-40.h5".encode(),
    b"round2-0.p0.c0-8.r0-40.h5",
    b"roundx.p0.c0-8.r0-40.h5",
    b"total.h5",
    b"right.p0.c0-4.r0-40.h5",
    b"eigh.h5",
    b"recipe.h5",
    b"0001.json",
    b"$(touch x).h5",
    b"'; touch x; '.h5",
]


def _make(path, kind, precious):
    if kind == "file":
        path.write_bytes(b"x" * 1000)
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.symlink_to(precious)


@efforts(80, 4000)
def test_names_in_the_folders_of_a_run(place, tally, examples):
    folders = (
        "shards",
        "sketch",
        "results",
        "logs",
        "plan.d",
        "logs/slurm",
        "results/default",
        "sketch/*",
        ".",
    )
    kinds = ("file", "folder", "pipe", "loop", "device", "link")

    def check(attack):
        template, folder, name, kind, verb = attack
        run = place.fresh(template)
        into = run if folder == "." else next(iter(sorted(run.glob(folder))), None)
        if into is None:
            return
        path = into / os.fsdecode(name)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        _make(path, kind, place.folder / "precious.txt")
        _attack(place, tally, "special file", f"{kind} in a folder", verb)

    search(
        check,
        st.tuples(
            st.sampled_from(["planned", "measured", "finished"]),
            st.sampled_from(folders),
            st.sampled_from(NAMES),
            st.sampled_from(kinds),
            st.sampled_from(VERBS),
        ),
        examples,
    )


@pytest.mark.parametrize("name", ["\x1b[2J.h5", "a\nb.h5", "\udcff.h5", "\x9b2J"])
def test_name_that_a_terminal_would_obey_is_shown_as_escapes(place, name):
    run = place.fresh("finished")
    (run / "shards" / name).write_bytes(b"")
    done = designed(place.folder, "status", "run")
    assert (done.code, ascii(name) in done.out, name in done.out) == (0, True, False)


@pytest.mark.parametrize("verb", READING[:2], ids=["text", "json"])
def test_status_shows_names_of_any_bytes(place, tally, verb):
    run = place.fresh("finished")
    for name in NAMES:
        (run / "shards" / os.fsdecode(name)).write_bytes(b"")
    done = _attack(place, tally, "special file", "names", verb)
    assert done.code == 0
    assert "\x1b" not in done.out


@pytest.mark.covered(1)
@pytest.mark.parametrize("name", ["shards", "sketch", "results", "logs", "plan.d", "plan.json"])
@pytest.mark.parametrize("kind", ["nothing", "file", "pipe", "loop"])
@each_verb
def test_something_else_in_place_of_a_folder(place, tally, name, kind, verb):
    run = place.fresh("finished")
    shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()
    if kind != "nothing":
        _make(run / name, kind, None)
    _attack(place, tally, "special file", "folders", verb)


# Command lines.

WORDS = (
    "run",
    "spec.toml",
    "",
    " ",
    "-",
    "--",
    ".",
    "..",
    "../home/run",
    "nowhere",
    "a\nb",
    "a\0b",
    "\udcff",
    "é",
    "0",
    "1",
    "-1",
    "1.5",
    "nan",
    "inf",
    "-inf",
    "1e999",
    "1e999999999",
    "1/0",
    "1/3",
    "9" * 5000,
    str(2**64),
    "²",
    "--5",
    "x=1",
    "=",
    "measure",
    "merge.2",
    "assess",
    "measure.99999",
    "solve",
    "tcp://",
    "default",
    ".hidden",
    "../x",
    "x/y",
    "1KiB",
    "0B",
    "99999999TiB",
    "cuda:99",
    "nosuch",
    "all",
    "auto",
)


def _options_of(verb):
    from skerch_ooc.cli.main import cli

    return [
        name
        for param in cli.commands[verb].params
        for name in (*param.opts, *param.secondary_opts)
        if name.startswith("-")
        and name not in ("--watch", "--scheduler", "--scheduler-file", "--executor", "--follow")
    ]


@st.composite
def lines(draw):
    """A verb, mostly in its usual form, with random words in it."""
    from skerch_ooc.cli.main import cli

    verb = draw(st.sampled_from(sorted(cli.commands)))
    usual = {
        "plan": ["spec.toml", "--run", "new"],
        "probe": ["spec.toml"],
        "run": ["--run", "run"],
        "task": ["run", "measure", "--index", "0", "--of", "1"],
        "submit": ["run", "--dry-run"],
        "extend": ["run", "--measurements", "24"],
        "update": ["run", "--factory", "file.py:make"],
    }
    words = [verb, *usual.get(verb, ["run"])]
    for _ in range(draw(st.integers(1, 3))):
        word = draw(st.sampled_from(WORDS) | st.text(max_size=6))
        how = draw(st.sampled_from(["option", "option", "replace", "append"]))
        if how == "option":
            words += [draw(st.sampled_from(_options_of(verb) or ["--json"])), word]
        elif how == "replace" and len(words) > 1:
            words[draw(st.integers(1, len(words) - 1))] = word
        else:
            words.append(word)
    if verb == "submit" and "--dry-run" not in words:
        words.append("--dry-run")
    return words


@efforts(150, 6000)
def test_any_command_line(place, tally, examples):
    spec = VALID.replace("{factory}", str(FACTORIES)).replace("[operator.args]", "[operator.args]")

    def check(words):
        place.fresh("planned")
        (place.folder / "spec.toml").write_text(spec)
        before = snapshot(place.folder.parent, but=place.run)
        with tally.fault("bad input", "command lines") as attempt:
            done = designed(place.folder, *words)
            # What is planned may be planned anywhere that the command line says.
            made = snapshot(place.folder.parent, but=place.run)
            kept = {name: made.get(name) for name in before if name != "home"}
            assert kept == {name: before[name] for name in kept}
            if words[0] not in ("plan", "run"):
                assert made.keys() == before.keys()
            attempt.ended("refused" if done.code else "harmless")
        for path in place.folder.iterdir():
            if path.name not in ("precious.txt", "results", "eigh.h5", "run"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    search(check, lines(), examples)


@pytest.mark.parametrize("verb", ["status", "verify", "merge", "recover", "assess", "measure"])
@pytest.mark.parametrize("path", ["", "a\0b"])
def test_path_that_names_nothing_is_refused(place, verb, path):
    assert designed(place.folder, verb, path).code == 2


def test_run_without_a_name_is_not_the_current_folder(place):
    (place.folder / "spec.toml").write_text(VALID.replace("{factory}", str(FACTORIES)))
    assert designed(place.folder, "plan", "spec.toml", "--run", "").code == 2
    assert not (place.folder / "plan.json").exists()


@pytest.mark.parametrize("name", ["..", "../x", "a/b", ".x", "", "\n", "a\nb", "x" * 300, "\udcff"])
@pytest.mark.parametrize("verb", ["recover", "assess", "estimates"])
def test_result_of_no_plain_name_is_refused(place, tally, verb, name):
    place.fresh("finished")
    assert _attack(place, tally, "bad input", "names", (verb, "run", "--name", name)).code == 2


@pytest.mark.parametrize("scale", ["1e999999999", "nan", "inf", "1/0", "1/" + "9" * 5000, "x", "0"])
def test_scale_that_is_no_number_is_refused_at_once(place, tally, scale):
    place.fresh("finished")
    verb = ("update", "run", "--factory", f"{FACTORIES}:matrix", "--arg", "n=40", "--scale", scale)
    assert _attack(place, tally, "bad input", "command lines", verb).code == 2


@pytest.mark.parametrize("option", ["--core", "--rank"])
@pytest.mark.parametrize("value", ["²", "--5", "-1", "9" * 30, "1.5"])
def test_number_that_is_none_is_refused(place, tally, option, value):
    place.fresh("finished")
    verb = ("recover", "run", option, value)
    assert _attack(place, tally, "bad input", "command lines", verb).code == 2


def test_folder_of_a_submission_with_a_foreign_digit_is_left_alone(place, tally):
    run = place.fresh("planned")
    (run / "logs/slurm/0001²").mkdir()
    assert _attack(place, tally, "special file", "names", READING[-1]).code == 0
