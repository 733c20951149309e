"""What people see on a terminal: tables, the bar, and what to do next."""

from __future__ import annotations

import codecs
import os
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import click
import pytest
from commands import CommandLine
from specs import write_spec

import skerch_ooc as ooc
from skerch_ooc.base.errors import IncompleteError
from skerch_ooc.base.progress import Bar, Lines, Stage, terminal_progress
from skerch_ooc.cli.main import cli
from skerch_ooc.executors.work import Work
from skerch_ooc.pipeline.run import run_all
from skerch_ooc.pipeline.start import make_plan
from skerch_ooc.planning.spec import Spec
from skerch_ooc.results.advice import Found, advise, percent

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

SPECS = {
    "eigh": {"sketch": {"test_measurements": 12, "block": 16}},
    "rounds": {
        "kind": "svd", "sketch": {"test_measurements": 20},
        "recovery": {"method": "hmt", "power_iterations": 2},
    },
    "inner sketch": {"kind": "svd", "recovery": {"method": "oversampled"}},
    "limited rank": {"recovery": {"rank": 5}},
    "no error test": {"sketch": {"test_measurements": 0}},
    "tolerance": {"tolerance": 1e-4},
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folders with a spec and a finished run ``r`` of it; to be copied."""
    made = {}

    def finished_run(case):
        if case not in made:
            folder = tmp_path_factory.mktemp("finished")
            (folder / "mine.py").write_text(
                "import torch\n\ndef make():\n    return torch.diag(0.95 ** torch.arange(300.))\n"
            )
            write_spec(folder, "", 40, **{"operator": {"factory": "mine.py:make"}} | SPECS[case])
            work = Work.of(threads=1)
            planned = make_plan(Spec.from_toml(folder / "spec.toml"), folder / "r", work)
            run_all(planned, work)
            made[case] = folder
        return made[case]

    return finished_run


@pytest.fixture
def run_of(finished, tmp_path, inside):
    """Copies a finished run into the test's folder; and runs commands there."""

    def copied(case):
        shutil.copytree(finished(case), tmp_path, dirs_exist_ok=True)
        return inside

    return copied


TABLES = {
    "plan": ["spec.toml", "--run", "other"],
    "probe": ["spec.toml"],
    "run": ["--run", "r"],
    "assess": ["r"],
    "status": ["r"],
    "estimates": ["r"],
    "clean": ["r"],
    "report": ["r"],
    "compare": ["r", "r"],
    "verify": ["r"],
}


@pytest.mark.sampled(6)
@pytest.mark.parametrize("case", ["eigh", "rounds"])
@pytest.mark.parametrize("verb", TABLES)
def test_every_table_fits_80_columns_of_plain_text(run_of, case, verb):
    done = run_of(case)(verb, *TABLES[verb])
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert done.stdout.isascii()
    assert done.stdout.isprintable() or not ESCAPE.search(done.stdout)


def test_what_was_submitted_fits_80_columns(run_of):
    inside = run_of("eigh")
    assert inside("plan", "spec.toml", "--run", "new").returncode == 0
    shown = inside("status", "new").stdout
    assert "skerch-ooc measure new" in shown
    assert max(map(len, shown.splitlines())) <= 80


def advice_of(shown):
    return shown.partition("what to do next\n")[2]


def commands_in(shown):
    return [
        shlex.split(line)[1:]
        for line in advice_of(shown).splitlines()
        if line.startswith("    skerch-ooc ")
    ]


class TestAdvice:
    @pytest.mark.parametrize("case", SPECS)
    def test_is_of_commands_that_parse(self, run_of, case):
        found = commands_in(run_of(case)("assess", "r").stdout)
        assert found
        for arguments in found:
            name, command, rest = cli.resolve_command(click.Context(cli), arguments)
            assert command.make_context(name, list(rest)).params

    @pytest.mark.parametrize("case", SPECS)
    def test_ends_with_the_report(self, run_of, case):
        assert commands_in(run_of(case)("assess", "r").stdout)[-1] == ["report", "r"]

    @pytest.mark.parametrize(
        ("case", "text"),
        [
            ("eigh", "This error is large"),
            ("eigh", "skerch-ooc extend r --measurements 80"),
            ("eigh", "skerch-ooc recover r --method singlepass"),
            ("limited rank", "skerch-ooc recover r --rank all"),
            ("rounds", "A new plan, else as this one, with more measurements would"),
            ("rounds", "--set measurements=80"),
            ("inner sketch", "A new plan, else as this one, with more measurements would"),
            ("no error test", "--set sketch.test_measurements=30"),
            ("tolerance", "The tolerance of 0.01 % is not met"),
        ],
    )
    def test_says(self, run_of, case, text):
        assert text in advice_of(run_of(case)("assess", "r").stdout)

    @pytest.mark.parametrize("case", ["rounds", "inner sketch"])
    def test_extends_nothing_whose_columns_do_not_nest(self, run_of, case):
        assert "extend" not in run_of(case)("assess", "r").stdout

    def test_followed_makes_the_error_smaller(self, run_of):
        inside = run_of("eigh")
        error = ooc.assess(ooc.open_run("r")).relative_error
        (extension,) = (c for c in commands_in(inside("assess", "r").stdout) if c[0] == "extend")
        assert inside(*extension).returncode == 0
        assert ooc.assess(ooc.open_run("r")).relative_error < error / 2

    def test_of_leading_pairs_plans_rounds_enough_for_them(self, run_of):
        inside = run_of("limited rank")
        (rounds,) = (c for c in commands_in(inside("assess", "r").stdout)
                     if "recovery.method=krylov" in c)  # fmt: skip
        options = rounds[rounds.index("OTHER-DIR") + 1 :]
        planned = inside("plan", "spec.toml", "--run", "other", *options)
        assert planned.returncode == 0
        assert re.search(r"at most 1\d more rounds of 16\n(.*\n)*.* 5, to 1.0e-04", planned.stdout)

    def test_tries_no_method_that_was_tried(self, run_of):
        inside = run_of("eigh")
        (recovery,) = (c for c in commands_in(inside("assess", "r").stdout) if c[0] == "recover")
        made = inside(*recovery).stdout
        assert "--method singlepass" not in inside("assess", "r").stdout
        name = made.split("--name ")[1].strip()
        again = inside("assess", "r", "--name", name)
        assert "--method" not in advice_of(again.stdout)
        assert f"skerch-ooc report r --name {name}" in again.stdout

    def test_asks_nothing_of_shards_that_were_removed(self, run_of):
        inside = run_of("eigh")
        assert inside("clean", "r", "--shards").returncode == 0
        verbs = {command[0] for command in commands_in(inside("assess", "r").stdout)}
        assert verbs == {"run", "report"}

    def test_for_an_object_of_python_leads_to_a_larger_run(self, tmp_path, inside):
        import torch

        A = torch.diag(0.95 ** torch.arange(300.0, dtype=torch.float64))
        ooc.eigh(A, measurements=40, run_dir="r")
        shown = inside("assess", "r").stdout
        assert "repeat the call in Python, with measurements=80" in " ".join(shown.split())
        (extension,) = (c for c in commands_in(shown) if c[0] == "extend")
        assert inside(*extension).returncode == 0
        assert len(ooc.eigh(A, measurements=80, run_dir="r").eigenvalues) == 80

    def test_names_directories_as_shells_read_them(self, finished, tmp_path):
        folder = shutil.copytree(finished("eigh") / "r", tmp_path / "my run")
        run = ooc.open_run(folder)
        steps = advise(Found.of(run, "default", ooc.assess(run))).steps
        assert all(str(folder) in shlex.split(step.command) for step in steps if "my run" in
                   step.command)  # fmt: skip
        assert any("my run" in step.command for step in steps)

    def test_names_no_method_that_would_throw_the_rounds_away(self, run_of):
        assert "--method" not in run_of("rounds")("assess", "r").stdout

    def test_of_a_limited_rank_is_given_once(self, run_of):
        inside = run_of("limited rank")
        assert inside("recover", "r", "--rank", "all").returncode == 0
        assert "--rank all" not in inside("assess", "r").stdout

    def test_keeps_vectors_as_they_are(self, run_of):
        inside = run_of("eigh")
        inside("recover", "r", "--vectors", "implicit", "--rank", 9, "--name", "small")
        inside("assess", "r", "--name", "small")
        shown = inside("assess", "r", "--name", "small").stdout
        assert "--method singlepass --rank 9 --vectors implicit" in shown

    @pytest.mark.parametrize("name", ["r", "ooc", "recover"])
    def test_on_the_page_calls_the_directory_dir_and_nothing_else(self, finished, tmp_path, name):
        folder = shutil.copytree(finished("eigh") / "r", tmp_path / name)
        page = ooc.report(ooc.open_run(folder)).read_text()
        words = re.findall(r'<span class="word">([^<]*)</span>', page)
        assert {"skerch-ooc", "recover", "DIR"} <= set(words)

    def test_of_an_object_of_python_names_all_that_the_call_needs(self, tmp_path, inside):
        import torch

        ooc.eigh(torch.diag(0.95 ** torch.arange(90.0)), measurements=20, run_dir="r",
                 test_measurements=4)  # fmt: skip
        assert "ooc.eigh(A, measurements=20, test_measurements=30, run_dir=...)" in (
            inside("assess", "r").stdout
        )

    def test_of_a_failed_gate_says_where_to_read_on(self, run_of):
        done = run_of("eigh")("assess", "r", "--max-relative-error", "1e-9")
        assert done.returncode == 3
        assert "is above --max-relative-error 1e-09" in done.stderr


STAGE = Stage("measure", 10_000, "products", 4e8, 1250)


class TestSaid:
    @pytest.mark.parametrize("width", [1, 24, 40, 46, 80])
    def test_fits_unless_not_even_the_count_does(self, width):
        said = STAGE.said(5000, 625, 100.0, width)
        assert len(said) <= max(width, len("5000 of 10000 products"))

    @pytest.mark.parametrize(
        ("width", "text"),
        [
            (100, "5000 of 10000 products, 625 of 1250 tasks, 2e+03 of 4e+03 GB, 50 products/s, "
                  "1:40 left"),
            (80, "5000 of 10000 products, 625 of 1250 tasks, 50 products/s, 1:40 left"),
            (50, "5000 of 10000 products, 50 products/s, 1:40 left"),
            (46, "5000 of 10000 products, 1:40 left"),
            (1, "5000 of 10000 products"),
        ],
    )  # fmt: skip
    def test_leaves_out_what_matters_least(self, width, text):
        assert STAGE.said(5000, 625, 100.0, width) == text

    def test_of_what_is_done_names_no_time_left(self):
        assert "left" not in STAGE.said(10_000, 1250, 100.0)

    @pytest.mark.parametrize(
        ("size", "text"), [(2e9, "1 of 2 GB"), (2e6, "1 of 2 MB"), (2e3, "1 of 2 kB")]
    )
    def test_counts_bytes_in_units_of_their_size(self, size, text):
        assert text in Stage("merge", 2, "tiles", size / 2).said(1, 1, 0.0)

    def test_of_one_thing_speaks_of_one(self):
        assert Stage("solve", 1, "tiles").said(1, 1, 0.0) == "1 of 1 tile"


class Terminal:
    """A terminal of 80 columns, and what was written to it."""

    def __init__(self, encoding="utf-8"):
        self.ours, theirs = pty.openpty()
        self.stream = os.fdopen(theirs, "w", encoding=encoding)

    def read(self):
        self.stream.flush()
        found = b""
        while select.select([self.ours], [], [], 0.2)[0]:
            found += os.read(self.ours, 65536)
        return found.decode(self.stream.encoding)

    def close(self):
        self.stream.close()
        os.close(self.ours)


@pytest.fixture
def terminal(monkeypatch):
    opened = []

    def open_terminal(encoding="utf-8"):
        opened.append(Terminal(encoding))
        monkeypatch.setattr(sys, "stderr", opened[-1].stream)
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.setenv("TERM", "xterm-256color")
        for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            monkeypatch.delenv(name, raising=False)
        return opened[-1]

    yield open_terminal
    for one in opened:
        one.close()


def lines_of(text):
    return [line for line in re.split(r"[\r\n]+", ESCAPE.sub("", text)) if line.strip()]


def use_bar():
    with Bar().stage("orthogonalise", 100, "tiles", 1e9, 50) as advance:
        for _ in range(50):
            advance(2)


def use_bar_until_interrupted():
    with Bar().stage("measure", 9, "products") as advance:
        advance(1)
        raise KeyboardInterrupt


class TestBar:
    def test_fits_a_line_and_is_seen(self, terminal):
        shown = terminal()
        use_bar()
        lines = lines_of(shown.read())
        assert max(map(len, lines)) <= 80
        assert "\N{BOX DRAWINGS HEAVY HORIZONTAL}" * 10 in lines[-1]
        assert "100 of 100 tiles" in lines[-1]
        assert not any("\N{HORIZONTAL ELLIPSIS}" in line for line in lines)

    def test_needs_no_colour(self, terminal, monkeypatch):
        shown = terminal()
        monkeypatch.setenv("NO_COLOR", "1")
        use_bar()
        text = shown.read()
        assert not re.search(r"\x1b\[(3|4|9|10)[0-9]", text)
        assert "100 of 100 tiles" in text

    def test_needs_no_more_than_ascii(self, terminal):
        shown = terminal("ascii")
        use_bar()
        assert "-" * 10 in lines_of(shown.read())[-1]

    def test_that_is_interrupted_leaves_the_cursor_to_the_shell(self, terminal):
        shown = terminal()
        with pytest.raises(KeyboardInterrupt):
            use_bar_until_interrupted()
        text = shown.read()
        assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
        assert text.endswith(("\n", "\x1b[?25h"))


class TestForTerminal:
    def test_is_a_bar(self, terminal):
        terminal()
        assert isinstance(terminal_progress(), Bar)

    @pytest.mark.parametrize("kind", ["dumb", "", "unknown"])
    def test_that_cannot_move_its_cursor_is_lines(self, terminal, monkeypatch, kind):
        terminal()
        monkeypatch.setenv("TERM", kind)
        assert isinstance(terminal_progress(), Lines)

    def test_of_a_file_is_lines(self, tmp_path, monkeypatch):
        with open(tmp_path / "log", "w") as log:
            monkeypatch.setattr(sys, "stderr", log)
            assert isinstance(terminal_progress(), Lines)


class OnTerminal:
    """The command line in a process of its own, whose terminal is ours."""

    def __init__(self, cwd, *arguments):
        self.ours, theirs = pty.openpty()
        environment = os.environ | {"TERM": "xterm", "COLUMNS": "80", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "skerch_ooc", *map(str, arguments)], cwd=cwd, stdin=theirs,
            stdout=theirs, stderr=theirs, env=environment, start_new_session=True,
            # Whoever runs the tests in the background has it ignored.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        os.close(theirs)
        self.text = ""
        # What is read may end within a character.
        self.decoder = codecs.getincrementaldecoder("utf-8")()

    def read_until(self, done, seconds=120.0):
        end = time.monotonic() + seconds
        while not done(self.text) and time.monotonic() < end:
            if select.select([self.ours], [], [], 0.1)[0]:
                try:
                    self.text += self.decoder.decode(os.read(self.ours, 65536))
                except OSError:
                    break
        return self.text

    def interrupt(self):
        self.process.send_signal(2)


@pytest.fixture
def interrupted(tmp_path):
    """A run that is interrupted while it measures; what its terminal showed, and its exit code."""
    spec = write_spec(
        tmp_path, "matrix", 40, operator={"args": {"delay": 0.2}}, sketch={"block": 2}
    )
    shown = OnTerminal(tmp_path, "run", spec, "--run", "r")
    shown.read_until(lambda text: "2 of" in text)
    shown.interrupt()
    code = shown.process.wait(timeout=60)
    text = shown.read_until(lambda text: "goes on" in text, 5.0)
    os.close(shown.ours)
    return text, code


@pytest.mark.thorough
def test_interrupted_run_says_that_nothing_is_lost_below_its_bar(interrupted):
    text, code = interrupted
    assert code == 130
    assert lines_of(text)[-1] == "interrupted; nothing published is lost, the same command goes on"
    assert "Traceback" not in text
    assert max(map(len, lines_of(text))) <= 80


def test_piped_output_is_for_programs_and_progress_is_apart(finished, tmp_path):
    shutil.copytree(finished("eigh"), tmp_path, dirs_exist_ok=True)
    done = CommandLine(tmp_path)("assess", "r")
    assert not ESCAPE.search(done.stdout)
    assert done.stdout.isascii()
    assert done.stderr == ""


def test_advice_on_what_is_not_there_is_an_error_with_the_command(run_of):
    inside = run_of("eigh")
    done = inside("assess", "r", "--name", "nothing")
    assert done.returncode == IncompleteError.exit_code
    assert "skerch-ooc recover r --name nothing" in done.stderr


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.9964, "99.6 %"), (1.5, "150 %"), (0.0304, "3 %"), (0.0345, "3.5 %"), (1e-6, "1.0e-06"),
     (12, "12")],
)  # fmt: skip
def test_share_is_written_for_people(number, text):
    assert percent(number) == text


class TestDirectoryWithSpaces:
    """Whatever a message tells to type is to be copied into a shell."""

    @pytest.fixture
    def spaced(self, finished, tmp_path, inside):
        shutil.copytree(finished("eigh"), tmp_path, dirs_exist_ok=True)
        (tmp_path / "r").rename(tmp_path / "my r")
        return inside

    @pytest.mark.parametrize("verb", ["assess", "estimates", "report"])
    def test_damaged_result_of_another_name_is_not_advised_to_remove_others(
        self, spaced, tmp_path, verb
    ):
        spaced("recover", "my r", "--rank", 3, "--name", "small")
        path = tmp_path / "my r/results/small/eigh.h5"
        path.write_bytes(path.read_bytes()[:-100])
        said = spaced(verb, "my r", "--name", "small").stderr
        assert "rm -r 'my r/results/small' && skerch-ooc recover 'my r' --name small" in said
        assert "with the settings that it had" in said

    @pytest.mark.parametrize(
        ("arguments", "command"),
        [
            (["measure", "my r"], "skerch-ooc merge 'my r'"),
            (["merge", "my r"], "skerch-ooc recover 'my r'"),
            (["recover", "my r"], "skerch-ooc assess 'my r'"),
            (["estimates", "my r", "--name", "no"], "skerch-ooc recover 'my r' --name no"),
            (["run", "--run", "my r", "--set", "operator.args={ n = 5 }", "--set", "seed=2"],
             "skerch-ooc run SPEC --run 'my r' --set 'operator.args={ n = 5 }' --set seed=2"),
        ],
    )  # fmt: skip
    def test_next_command_is_quoted(self, spaced, arguments, command):
        done = spaced(*arguments)
        assert command in done.stdout + done.stderr


class TestAfterShardsWereRemoved:
    @pytest.fixture
    def cleaned(self, run_of, tmp_path):
        inside = run_of("eigh")
        shutil.copytree(tmp_path / "r/shards", tmp_path / "kept")
        assert inside("clean", "r", "--shards").returncode == 0
        return inside

    def test_result_that_is_not_there_is_not_promised(self, cleaned):
        said = cleaned("assess", "r", "--name", "other").stderr
        assert "skerch-ooc recover" not in said
        assert "a new run only. Results that are there: default" in said

    def test_damaged_leftover_is_for_clean(self, cleaned, tmp_path):
        left = sorted((tmp_path / "kept").iterdir())[0]
        shutil.copy(left, tmp_path / "r/shards")
        path = tmp_path / "r/shards" / left.name
        path.write_bytes(path.read_bytes()[:-100])
        said = cleaned("verify", "r").stderr
        assert "skerch-ooc clean r --shards" in said
        assert "skerch-ooc measure" not in said

    def test_half_cleaned_run_is_not_told_to_run(self, cleaned, tmp_path):
        shutil.copy(sorted((tmp_path / "kept").iterdir())[0], tmp_path / "r/shards")
        shown = cleaned("status", "r").stdout
        assert "skerch-ooc clean r --shards" in shown
        assert "all that is left" not in shown


def test_status_says_how_to_do_all_that_is_left(run_of):
    inside = run_of("eigh")
    inside("plan", "spec.toml", "--run", "new")
    shown = inside("status", "new").stdout
    assert "or all that is left: skerch-ooc run --run new" in " ".join(shown.split())


class TestObjectOfPython:
    """What was handed over in Python is measured there, and by no command."""

    @pytest.fixture
    def grown(self, tmp_path, inside):
        import torch

        A = torch.diag(0.95 ** torch.arange(90.0))
        ooc.eigh(A, measurements=20, run_dir="r")
        self.extended = inside("extend", "r", "--measurements", 40, "--plan-only")
        return inside

    def test_extension_is_continued_in_python(self, grown):
        assert "next: the call in Python" in self.extended.stdout

    def test_status_names_no_command_that_would_fail(self, grown):
        shown = " ".join(grown("status", "r").stdout.split())
        assert "next the call in Python" in shown
        assert "skerch-ooc" not in shown

    def test_missing_columns_are_measured_in_python(self, grown, no_late_files):
        said = grown("recover", "r").stderr
        assert "measure them with: the call in Python" in said

    def test_damaged_shard_of_a_summand_is_made_by_what_made_that(self, tmp_path, inside):
        import torch

        A = torch.diag(0.95 ** torch.arange(90.0))
        ooc.eigh(A, measurements=20, run_dir="r")
        spec = ooc.OperatorSpec("decaying", {"n": 90, "rank": 5})
        run = ooc.update(ooc.open_run("r"), spec)
        ooc.recover(run)
        said = []
        for part in ("p0", "p1"):
            path = sorted(run.shards.glob(f"right.{part}.*"))[0]
            path.write_bytes(path.read_bytes()[:-100])
            said.append(inside("verify", "r").stderr)
        assert "then the call in Python" in said[0]
        assert "&& skerch-ooc measure r" in said[1]


def test_leave_one_out_is_not_doubted_for_a_lower_rank(tmp_path, inside):
    import torch

    ooc.eigh(torch.diag(0.5 ** torch.arange(60.0)), measurements=30, rank=2, run_dir="r")
    shown = inside("assess", "r").stdout
    assert "before the rank was cut" in " ".join(shown.split())


def test_nothing_is_advised_at_rounding(tmp_path, inside):
    import torch

    ooc.eigh(torch.diag(0.1 ** torch.arange(8.0)).double(), measurements=8, run_dir="r",
             test_measurements=4)  # fmt: skip
    assert commands_in(inside("assess", "r").stdout) == [["report", "r"]]


def test_tolerance_that_cannot_be_met_is_not_blamed_on_measurements(tmp_path, inside):
    import torch

    A = torch.diag(0.95 ** torch.arange(60.0))
    with pytest.raises(ooc.QualityError, match="float32 allows no less"):
        ooc.eigh(A, measurements=60, run_dir="r", tolerance=1e-9)


def test_verify_names_columns_that_are_gone(run_of, tmp_path):
    inside = run_of("eigh")
    shards = sorted((tmp_path / "r/shards").glob("test.*"))
    shards[0].unlink()
    done = inside("verify", "r")
    assert done.returncode == 0
    assert re.search(r"gone: \d+ columns of test; next: skerch-ooc measure r\n", done.stdout)


@pytest.mark.parametrize("place", ["a file", "not empty", "below a file"])
def test_place_that_cannot_be_a_run_is_refused_before_the_operator_is_built(
    tmp_path, inside, place
):
    (tmp_path / "mine.py").write_text("def make():\n    raise SystemExit('built')\n")
    write_spec(tmp_path, "", 20, operator={"factory": "mine.py:make"})
    run = tmp_path / "place"
    if place == "not empty":
        run.mkdir()
        (run / "notes.txt").write_text("mine")
    else:
        run.write_text("mine")
    done = inside("plan", "spec.toml", "--run", run / "run" if place == "below a file" else run)
    assert done.returncode == 2
    assert "built" not in done.stderr
