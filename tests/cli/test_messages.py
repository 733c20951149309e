"""What a user reads when something is wrong: every message, gathered from the code.

A message names the value that is wrong, and says what is allowed or what to do next; in words of
the interface, not of the code. What the rules here cannot judge is listed with its reason.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from specs import write_spec

import skerch_ooc as ooc
from skerch_ooc.base import errors, files
from skerch_ooc.base.resources import ask_for
from skerch_ooc.cli.main import cli
from skerch_ooc.executors.slurm import commands
from skerch_ooc.executors.slurm.commands import SlurmError
from skerch_ooc.executors.work import Work
from skerch_ooc.operators.matrices.formats import open_source
from skerch_ooc.operators.terms import Stack, Sum
from skerch_ooc.pipeline.run import run_all
from skerch_ooc.pipeline.start import make_plan
from skerch_ooc.planning.spec import OperatorSpec, RecoverySpec, SketchSpec, Spec
from skerch_ooc.store.cleaned import Cleaned
from skerch_ooc.store.shards import list_shards, open_shard

PACKAGE = Path(ooc.__file__).resolve().parent

ERRORS = {
    name for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, errors.OocError)
} | {"SlurmError"}  # fmt: skip

HOLE = "\N{WHITE SQUARE}"
"""What stands for a value in a message."""

LONGEST = 420
"""Characters of a message, its values not counted: about five lines of a terminal."""


@dataclass(frozen=True)
class Message:
    """What a ``raise`` says: its text, and the expressions whose values are shown in it."""

    where: str
    text: str
    values: tuple[str, ...]

    def __str__(self):
        return f"{self.where}: {self.text}"


def rendered(node):
    """The text of an expression, and what it shows."""
    if isinstance(node, ast.Constant):
        return str(node.value), ()
    if isinstance(node, ast.JoinedStr):
        return joined(map(rendered, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return joined([rendered(node.left), rendered(node.right)])
    if isinstance(node, ast.IfExp):
        return max(rendered(node.body), rendered(node.orelse), key=lambda one: len(one[0]))
    inner = node.value if isinstance(node, ast.FormattedValue) else node
    if isinstance(inner, ast.Constant | ast.JoinedStr | ast.IfExp):
        return rendered(inner)
    return HOLE, (ast.unparse(inner),)


def joined(parts):
    texts, values = zip(*parts, strict=True)
    return "".join(texts), tuple(value for some in values for value in some)


def texts_of(tree, argument):
    """What may be said: the argument, or all that is assigned to the variable that it is."""
    if not isinstance(argument, ast.Name):
        return [argument]
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and ast.unparse(node.targets[0]) == argument.id
        and not isinstance(node.value, ast.Constant)
    ]


def messages_of(name, source):
    """All messages of a module, also those that are made before they are raised."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name | ast.Attribute):
            continue
        called = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
        if called in ERRORS:
            for argument in texts_of(tree, *node.args):
                yield Message(name, *rendered(argument))


@cache
def all_messages():
    """All messages of the package. Not read where tests are only collected."""
    return [
        message
        for path in sorted(PACKAGE.rglob("*.py"))
        for message in messages_of(str(path.relative_to(PACKAGE)), path.read_text())
    ]


NEXT_STEP = re.compile(
    r"skerch-ooc [a-z]+ |--[a-z]+|\bat (?:most|least) |\brm |\ballowed here: |command goes on|"
    r"takes any$|"
    r"(?<!another )(?<!other )(?<!the )(?<!this )(?<!a )(?<!of )(?<!s )(?<!is no )\b(?:run|plan)\b|"
    r"\b(?:add|call|check|choose|compute|correct|define|extend|give|go on with|install|leave|let|"
    r"look|make|mend|move|multiply|must|pip install|put|recover|rename|repeat|replace|restore|"
    r"scale|seed|see with|set|take(?= \")|try again|use|wait|write)\b",
    re.I,
)
"""Words that ask for something, or say what is allowed."""

ADVICE = {
    "_CAUSES", "advice", "again", "command", "file.advice", "merge_command(run.directory)",
    "self._file.advice", "self.file.advice", "recovered_anew(path)", "run.how_to_measure()",
    "_not_there(path)", "_for_less(plan)", "_ADVICE", "cause",
}  # fmt: skip
"""Variables that hold what to do next; where they are made they are read by these rules too."""

NAMES_NO_VALUE = {
    "it is about a model, a loader or a library, and there is but one": [
        "the model has no parameters that require a gradient",
        "the data loader shuffles",
        "this operator needs curvlinops",
        "the data hold no batches",
        "parameters = [] is empty",
        "the model calls torch.utils.checkpoint in its reentrant way",
        "sparse matrices need SciPy",
        "scipy() needs SciPy",
        "to_xarray() needs xarray",
        "plot() needs matplotlib",
    ],
    "the value is zero, NaN or infinity, and the message says so": [
        "there is nothing to decompose: the operator's products with random vectors",
        "there is nothing to decompose: the operator's products with all test vectors",
        "there is nothing to decompose: what these test vectors show",
        "the adjoint's product with random vectors of signs",
        "there are no test measurements",
    ],
    "it names a key or an argument that is not there": [
        "the key operator.factory is missing",
        "run_dir is missing",
        "give the operator that is to be added",
        "other processes can only build an operator that a factory names",
    ],
    "it is about the queue, which is between two states": ["jobs of an earlier submission are"],
    "it is said inside of what names the file, see below": [
        "the parts are not numbered in order",
        "there are no columns of the right sketch",
        "tolerance and most belong together",
    ],
}

COMPLETED_BY_OTHERS = {
    "who opens a file adds how to have it made anew, or verify lists it": [
        f"store/checksums.py: {HOLE}: the seal in its first",
        f"store/checksums.py: {HOLE} has {HOLE} bytes, but was published",
        f"store/checksums.py: {HOLE} was altered: the SHA-256 of its metadata",
        f"store/sealed.py: {HOLE} has no dataset",
        f"store/sealed.py: {HOLE}: {HOLE} is {HOLE} {HOLE}, its identity says",
        f"store/sealed.py: {HOLE}: {HOLE} is not tiled",
        f"store/sealed.py: {HOLE}: {HOLE} does not lie where the seal says",
        f"store/sealed.py: {HOLE} has no readable",
        f"store/layout.py: {HOLE}: its identity does not describe its data",
        f"store/sealed.py: {HOLE}: its data do not lie where the seal says",
        f"store/sealed.py: {HOLE} holds no {HOLE}",
        f"store/sealed.py: {HOLE}: {HOLE} is a link to elsewhere",
        f"store/sealed.py: {HOLE}: {HOLE} is not a dataset",
        f"store/sealed.py: {HOLE}: {HOLE} keeps its data in other files",
        f"store/sealed.py: {HOLE}: {HOLE} is filtered",
        f"store/descriptors.py: {HOLE} cannot be opened any more",
        f"store/object_bytes.py: {HOLE} cannot be opened any more: it is gone",
        f"store/sealed.py: {HOLE}: its identity does not describe its data",
        f"store/sealed.py: {HOLE} cannot be read as HDF5",
        f"store/pieces.py: {HOLE}: it does not describe the pieces",
    ],
    "who reads a plan names the file, and says to restore it": [
        "planning/parts.py: the parts are not numbered in order",
        f"planning/parts.py: {HOLE} is no part",
        "planning/plan.py: kind = 'eigh' with shape",
        f"planning/plan.py: kind = {HOLE} with {HOLE} test columns",
        "planning/plan.py: there are no columns of the right sketch",
        "planning/plan.py: the test matrices are",
        f"planning/plan.py: {HOLE} has {HOLE} columns, shape",
        f"planning/plan.py: part {HOLE} has the rows",
        f"planning/plan.py: {HOLE} has no columns from",
        f"planning/plan.py: {HOLE} goes on with column",
        "planning/plan.py: tolerance and most belong together",
    ],
    "the table of what files begin with says the way out": [
        f"operators/matrices/formats.py: cannot open {HOLE} as an HDF5 file: it is {HOLE}"
    ],
    "it hands on the message of another error, which says it": [
        f"cli/upkeep_verbs.py: {HOLE}",
        f"operators/adapters.py: {HOLE}",
        f"planning/spec.py: {HOLE}: {HOLE}",
        f"results/vectors.py: {HOLE} makes its vectors from the shards: {HOLE}",
    ],
    "only the cluster knows why, and says so": [
        f"executors/slurm/commands.py: {HOLE} refused",
        "executors/slurm/commands.py: squeue failed",
        f"executors/slurm/send.py: {HOLE} was not submitted: {HOLE}",
    ],
    "it is told with what was to be done, or with --again": [
        "executors/slurm/commands.py: squeue did not answer",
        f"executors/slurm/queue.py: {HOLE}; so nobody knows whether",
    ],
    "the first element submits what is missing, and says so after it": [
        f"pipeline/submission.py: {HOLE} is too early: {HOLE}"
    ],
}

OUR_NAMES = {
    "skerch_ooc", "run_dir", "open_run", "requires_grad_", "scipy.sparse.save_npz",
    "power_iterations", "__rmatmul__", "columns_at_once", "weight_of", "rows_at_once", "per_batch",
    "degrees_north", "empty_columns",
    "hessian_of", "ggn_of", "torch.view_as_real", "use_reentrant", "n_components", "n_samples",
    "random_state", "row_weights", "sample_weight", "distributed.get_client", "to_xarray",
    *(f"sketch.{key}" for key in SketchSpec.__dataclass_fields__),
    *(f"recovery.{key}" for key in RecoverySpec.__dataclass_fields__),
    *(f"operator.{key}" for key in OperatorSpec.__dataclass_fields__),
    *Spec.__dataclass_fields__,
}  # fmt: skip
"""Names with an underscore that users know."""

THEIR_NAMES = {
    "CrossEntropyLoss", "BCEWithLogitsLoss", "MSELoss", "LayerNorm", "SciPy", "NaN",
    "MaxArraySize", "GiB", "OperatorSpec", "AnnData", "DataArray",
}  # fmt: skip
"""Names with capitals inside that users know."""

READ_ALOUD = re.compile(
    r"\b(?:invalid|illegal|failed to|error:|please|oops|unexpected|bad)\b", re.I
)


def listed(table):
    return [entry for entries in table.values() for entry in entries]


def is_listed(text, table):
    return any(text.startswith(entry) for entry in listed(table))


def is_completed(message):
    exact = {
        f"cli/upkeep_verbs.py: {HOLE}",
        f"operators/adapters.py: {HOLE}",
        f"planning/spec.py: {HOLE}: {HOLE}",
    }
    text = str(message)
    return text in exact or any(
        text.startswith(entry) for entry in listed(COMPLETED_BY_OTHERS) if entry not in exact
    )


def offenders(is_right):
    """The messages of which something is not true."""
    return [str(message) for message in all_messages() if not is_right(message)]


def is_short_and_plain(message):
    text = message.text
    return (
        len(text) <= LONGEST
        and not re.match("[A-Z]", text)
        and not re.search(r"[^.]\.$|[;:,!\s]$", text)
        and not READ_ALOUD.search(text)
    )


def speaks_of_what_users_know(message):
    dotted = re.findall(r"[A-Za-z_.]*[a-z]_[A-Za-z_.]*", message.text)
    return (
        {name.strip(".") for name in dotted} <= OUR_NAMES
        and set(re.findall(r"\b[A-Z]\w*[a-z][A-Z]\w*", message.text)) <= THEIR_NAMES
        and not re.search(r"\bself\b|\bNone\b|(?<!=)(?<!= )\b(?:True|False)\b|<class", message.text)
    )


class TestEachMessage:
    def test_names_the_value_that_is_wrong(self):
        assert offenders(lambda one: one.values or is_listed(one.text, NAMES_NO_VALUE)) == []

    def test_says_what_is_allowed_or_what_to_do(self):
        assert (
            offenders(
                lambda one: (
                    NEXT_STEP.search(one.text) or ADVICE & set(one.values) or is_completed(one)
                )
            )
            == []
        )

    def test_is_short_and_plain(self):
        assert offenders(is_short_and_plain) == []

    def test_speaks_of_nothing_but_what_users_know(self):
        assert offenders(speaks_of_what_users_know) == []

    def test_names_commands_that_exist(self):
        known = cli.commands.keys() | {"says"}
        verbs = re.compile(r"skerch-ooc ([a-z]+)")
        assert offenders(lambda one: set(verbs.findall(one.text)) <= known) == []


def test_all_messages_are_gathered():
    # Guards the reading of the code: were it blind, all these tests would pass.
    written = sum(
        len(re.findall(rf"raise (?:{'|'.join(sorted(ERRORS))})\(", path.read_text()))
        for path in PACKAGE.rglob("*.py")
    )
    assert len(all_messages()) >= written > 300


@pytest.mark.parametrize(
    ("source", "text", "values"),
    [
        ("UsageError('a')", "a", ()),
        ("errors.UsageError(f'a {b!r}')", f"a {HOLE}", ("b",)),
        ("UsageError(f'a {b}' + ('' if c else f' {d}') + e)", f"a {HOLE} {HOLE}{HOLE}",
         ("b", "d", "e")),
        ("wrong = None\nwrong = f'a {b}'\nUsageError(wrong)", f"a {HOLE}", ("b",)),
    ],
)  # fmt: skip
def test_messages_are_read_as_they_are_written(source, text, values):
    assert [(one.text, one.values) for one in messages_of("x.py", source)] == [(text, values)]


def test_every_message_that_is_excused_for_its_value_is_there():
    texts = [one.text for one in all_messages() if not one.values]
    excused = listed(NAMES_NO_VALUE)
    assert [entry for entry in excused if not any(text.startswith(entry) for text in texts)] == []


def test_every_message_that_is_completed_by_others_is_there_and_needs_it():
    wrong = []
    for entry in listed(COMPLETED_BY_OTHERS):
        found = [one for one in all_messages() if str(one).startswith(entry) and is_completed(one)]
        if not found or any(NEXT_STEP.search(one.text) for one in found):
            wrong.append(entry)
    assert wrong == []


LEAVING = {
    "leaves_early.py": "sys.exit(0)\n",
    "leaves.py": "def make():\n    sys.exit(0)\n",
    "leaves_late.py": "class make:\n    shape = (60, 60)\n\n"
    "    def __matmul__(self, x):\n        sys.exit(0)\n",
    "leaves_shape.py": "class make:\n    shape = property(lambda self: sys.exit(0))\n",
}
"""Files of operators that end their process."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a finished run ``r``, a planned run ``p`` and their spec; to be copied."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "mine.py").write_text(
        "import torch\n\ndef make():\n    return torch.diag(0.9 ** torch.arange(60.))\n"
    )
    for name, text in LEAVING.items():
        (folder / name).write_text(f"import sys\n\n{text}")
    write_spec(folder, "", 20, operator={"factory": "mine.py:make"})
    spec, work = Spec.from_toml(folder / "spec.toml"), Work.of(threads=1)
    run_all(make_plan(spec, folder / "r", work), work)
    make_plan(spec, folder / "p", work)
    return folder


@pytest.fixture
def here(made, tmp_path):
    """The test's folder, with a copy of it all."""
    return shutil.copytree(made, tmp_path, dirs_exist_ok=True)


def change_json(path, changes):
    """Changes a file of ours, with the hash that makes it look as if we had written it."""
    value = json.loads(path.read_text())
    hashed = "sha256" in value
    value = {key: one for key, one in (value | changes).items() if key != "sha256"}
    value |= {"sha256": files.digest(value)} if hashed else {}
    path.write_bytes(files.canonical_json(value) + b"\n")


def of_another_run(here):
    change_json(here / "r/fingerprint.json", {"run": "0" * 64})


def plan_is_a_folder(here):
    (here / "r/plan.json").unlink()
    (here / "r/plan.json").mkdir()


def plan_goes_on_after_a_gap(here):
    path = here / "r/plan.d/0001.json"
    blocks = json.loads(path.read_text())["blocks"]
    blocks["right"]["start"] = 5
    change_json(path, {"blocks": blocks})


def plan_with_too_many_rows(here):
    path = here / "r/plan.d/0001.json"
    parts = json.loads(path.read_text())["parts"]
    parts[0] |= {"rows": [0, 61]}
    change_json(path, {"parts": parts})


def no_part(here):
    change_json(here / "r/plan.d/0001.json", {"parts": [{"number": 0}]})


def unsound_part(here):
    path = here / "r/plan.d/0001.json"
    parts = json.loads(path.read_text())["parts"]
    parts[0] |= {"number": -1}
    change_json(path, {"parts": parts})


def no_shards(here):
    shutil.rmtree(here / "r/shards")


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    path.write_bytes(content[:-9])


def result_is_torn(here):
    damage(here / "r/results/default/eigh.h5")


def sums_are_torn(here):
    for path in (here / "r/sketch").glob("*/total.h5"):
        damage(path)


def assessment_of_another_result(here):
    run = ooc.open_run(here / "r")
    ooc.recover(run, name="other", rank=3, threads=1)
    ooc.assess(run, "other")
    shutil.copy(here / "r/results/other/assessment.json", here / "r/results/default")


def figure_of_another_result(here):
    change_json(here / "r/results/default/assessment.json", {"error": 1.0})


def logs_are_a_file(here):
    (here / "p/logs").mkdir(exist_ok=True)
    (here / "p/logs/slurm").write_text("")


def mark_with(**changes):
    """The note of removed shards, with something changed."""

    def change(here):
        run = ooc.open_run(here / "r")
        Cleaned("2026-01-01T00:00:00Z", 1, "", {}, {}, {}, 0, 0).publish(
            run.directory, run.plan.run_id
        )
        change_json(here / "r/cleaned.json", changes)

    return change


def mark_of_another_result(here):
    mark_with(results={"default": "0" * 64})(here)


def mark_of_a_result_that_is_gone(here):
    mark_of_another_result(here)
    (here / "r/results/default/eigh.h5").unlink()


def mark_of_a_result_that_is_torn(here):
    mark_of_another_result(here)
    result_is_torn(here)


def mark_was_altered(here):
    mark_with()(here)
    path = here / "r/cleaned.json"
    path.write_text(path.read_text().replace("2026", "2025"))


def nothing(here):
    pass


def stranger(here):
    (here / "d").mkdir()
    (here / "d/thesis.tex").write_text("")


NEW = ["plan", "spec.toml", "--run", "d"]

PROVOKED = {
    "plan of a folder": (plan_is_a_folder, ["status", "r"], 5,
        "r/plan.json is not a plain file (a link, folder or device stands in its place); put the"),
    "plan with a gap": (plan_goes_on_after_a_gap, ["status", "r"], 5,
        "r: its plan makes no sense: right goes on with column 5 after 0; restore plan.json and"),
    "plan with too many rows": (plan_with_too_many_rows, ["status", "r"], 5,
        "part 0 has the rows"),
    "plan of no part": (no_part, ["status", "r"], 5, "is no part; restore it from a copy"),
    "plan of an unsound part": (unsound_part, ["status", "r"], 5, "is no part; restore it"),
    "run in a folder of somebody": (stranger, NEW, 2,
        "d is not empty and holds no plan (thesis.tex is there); give a new directory"),
    "run below a file": (nothing, ["plan", "spec.toml", "--run", "spec.toml/x"], 2,
        "spec.toml is a file; give another --run"),
    "fingerprint of another run": (of_another_run, ["verify", "r"], 5,
        "belongs to another run (0000000000000000...); restore it from a copy"),
    "no shards": (no_shards, ["status", "r"], 4,
        "r/shards is gone; put it back from a copy, or, to measure all columns anew: "
        "mkdir r/shards && skerch-ooc measure r"),
    "nothing to verify": (no_shards, ["verify", "r"], 4,
        "r/shards is gone; put it back from a copy, or, to measure all columns anew: "
        "mkdir r/shards && skerch-ooc measure r"),
    "torn result, assessed": (result_is_torn, ["assess", "r"], 5,
        ". To make it anew: rm -r r/results/default && skerch-ooc recover r"),
    "torn result, recovered": (result_is_torn, ["recover", "r"], 5,
        ". To make it anew: rm -r r/results/default && skerch-ooc recover r"),
    "torn result, reported": (result_is_torn, ["report", "r"], 5,
        ". To make it anew: rm -r r/results/default && skerch-ooc recover r"),
    "torn sums": (sums_are_torn, ["recover", "r", "--name", "again"], 5, ". To make it anew: rm "),
    "no result": (nothing, ["estimates", "r", "--name", "again"], 4,
        "there is no result r/results/again/eigh.h5; make it with: skerch-ooc recover r --name ag"),
    "assessment of another result": (assessment_of_another_result, ["clean", "r", "--shards"], 5,
        "is not of r/results/default/eigh.h5; write it anew with: skerch-ooc assess r"),
    "figure of another result": (figure_of_another_result, ["report", "r"], 4,
        "is not of eigh.h5 beside it; renew it with: skerch-ooc assess r"),
    "note of another run": (mark_with(run="0" * 64), ["measure", "r"], 5,
        "r/cleaned.json belongs to another run; restore it from a copy. If all shards are there"),
    "note of another format": (mark_with(format=9), ["measure", "r"], 5,
        "r/cleaned.json is of another format; restore it from a copy"),
    "note of something else": (mark_with(more=1), ["measure", "r"], 5,
        "r/cleaned.json does not note what was removed: "),
    "note of no numbers": (mark_with(shards="many"), ["measure", "r"], 5,
        "r/cleaned.json does not note what was removed; restore it from a copy"),
    "note that was altered": (mark_was_altered, ["measure", "r"], 5,
        "r/cleaned.json was altered; restore it from a copy"),
    "note of another result": (mark_of_another_result, ["clean", "r", "--shards"], 5,
        "r/results/default/eigh.h5 is not the result that was there before; no further shard is"),
    "note of a result that is gone": (mark_of_a_result_that_is_gone, ["clean", "r", "--shards"], 4,
        "eigh.h5 is gone; no further shard is removed. If all shards are still there, this makes"),
    "note of a result that is torn": (mark_of_a_result_that_is_torn, ["clean", "r", "--shards"], 5,
        "; no further shard is removed. If all shards are still there, this makes the run an ordi"),
    "logs that are a file": (logs_are_a_file, ["submit", "p"], 2,
        "cannot write p/logs/slurm: File exists; move away what is in the place of its folder, th"),
    "tries in this process": (nothing, ["measure", "r", "--tries", "3"], 2,
        "--tries 3 needs --executor dask"),
    "time of nothing": (nothing, ["submit", "p", "--time", "soon"], 2,
        "--time soon: must be minutes, or like 30:00, 4:00:00, 1-12 or 1-12:30:00"),
    "workers of an array": (nothing, ["submit", "p", "--workers", "3"], 2,
        "--workers 3 needs --executor dask; else give --elements"),
    "options for nothing": (nothing, ["submit", "p", "--for", "measure"], 2,
        "--for measure: must be like measure=--gpus=1"),
    "patience in this process": (nothing, ["measure", "r", "--patience", "9"], 2,
        "--patience 9.0 needs --executor dask"),
    "scheduler in this process": (nothing, ["measure", "r", "--scheduler", "tcp://a:1"], 2,
        "--scheduler tcp://a:1 needs --executor dask"),
    "share of nothing": (nothing, ["task", "p", "measure", "--index", "0", "--of", "0"], 2,
        "--of 0: must be at least 1"),
    "share beyond": (nothing, ["task", "p", "measure", "--index", "4", "--of", "4"], 2,
        "--index 4 --of 4: the index must be from 0 to 3"),
    "round beyond": (nothing, ["task", "p", "measure.2", "--index", "0", "--of", "4"], 2,
        "stage 'measure.2': must be of a round from 1 to 1"),
    "unknown stage": (nothing, ["task", "p", "magic", "--index", "0", "--of", "4"], 2,
        "stage 'magic': must be one of measure, "),
    "no age": (nothing, ["clean", "r", "--older-than", "soon"], 2,
        "'soon': must be a time such as 90s, 30m, 12h or 1d"),
    "threads of nothing": (nothing, ["measure", "p", "--threads", "0"], 2,
        "threads = 0: must be at least 1"),
    "values without a spec": (nothing, ["run", "--run", "r", "--set", "seed=2"], 2,
        "give it too: skerch-ooc run SPEC --run r --set seed=2"),
    "value in a value": (nothing, [*NEW, "--set", "measurements.x=2"], 2,
        "--set measurements.x=2: measurements is not a table; set measurements itself"),
    "setup that is not there": (nothing, ["submit", "p", "--setup", "no.sh"], 2,
        "cannot read no.sh: No such file or directory; give --setup a file of shell lines"),
    "setup that is no shell": (nothing, ["submit", "p", "--setup", "mine.py", "--dry-run"], 2,
        "--setup: bash cannot read these lines: "),
    "function that is not there": (nothing, [*NEW, "--set", "operator.factory=mine.py:mak"], 2,
        "has no function mak; give one of: make"),
    "device that is none": (nothing, [*NEW, "--device", "abacus"], 2, "abacus"),
    "update of half a run": (nothing, ["update", "p", "--factory", "mine.py:make"], 4,
        "p is not measured to its end, and only then can be updated; go on with: skerch-ooc meas"),
    "more rank than measurements": (nothing, ["recover", "r", "--rank", "21"], 2,
        "recovery.rank = 21: there are only 20 measurements; give at most so many"),
    "more measurements than columns": (nothing, ["extend", "r", "--measurements", "61"], 2,
        "measurements = 61: the operator is 60 x 60, so that at most 60 make sense"),
    "fewer measurements": (nothing, ["extend", "r", "--measurements", "9"], 2,
        "measurements = 9: the run has 20 already"),
    "factory that leaves": (nothing, [*NEW, "--set", "operator.factory=leaves.py:make"], 2,
        "failed with arguments {}; mend it, or them: SystemExit(0) ends the process ("),
    "file that leaves": (nothing, [*NEW, "--set", "operator.factory=leaves_early.py:make"], 2,
        "does not import; mend it: SystemExit(0) ends the process ("),
    "product that leaves": (nothing, [*NEW, "--set", "operator.factory=leaves_late.py:make"], 2,
        "the operator ended its process: SystemExit(0) (in __matmul__, "),
    "shape that leaves": (nothing, [*NEW, "--set", "operator.factory=leaves_shape.py:make"], 2,
        "ended the process: SystemExit(0); let it raise another exception instead"),
    "memory for nothing": (nothing, [*NEW, "--memory", "1KiB"], 2,
        "memory = 1.0 KiB is too little: "),
    "operator of another size": (nothing, [*NEW, "--set", "operator.shape=[61, 61]"], 2,
        "operator.shape = [61, 61], but the operator has [60, 60]; correct it, or leave it out"),
}  # fmt: skip


@pytest.mark.parametrize("case", PROVOKED)
def test_provoked_message_is_what_a_user_reads(here, inside, case):
    change, arguments, code, text = PROVOKED[case]
    change(here)
    done = inside(*arguments)
    assert (done.returncode, text in done.stderr) == (code, True), done.stderr


def npy_of(array):
    def make(folder):
        np.save(folder / "a.npy", array)
        return open_source([folder / "a.npy"])

    return make


def folder_of_nothing(folder):
    return open_source([folder])


PROVOKED_IN_PYTHON = {
    "cube": (npy_of(np.zeros((2, 2, 2))), "has shape (2, 2, 2); give a matrix: two sizes, both"),
    "names": (npy_of(np.array([["a", "b"]])), "holds <U1; give a matrix of numbers"),
    "folder of nothing": (folder_of_nothing, "is a folder without matrices: give one with files"),
    "no file": (lambda folder: open_source([folder / "b.npy"]),
        "is not there; give a path that is abs"),
    "no terms": (lambda _: Sum([]), "a Sum of 0 terms: give at least one"),
    "one term": (lambda _: Sum(torch.eye(2)),
        "is made of a list of operators, not of a Tensor; give"),
    "no operator": (lambda _: Sum([5]), "or a function that returns one, not a int"),
    "scales": (lambda _: Sum([torch.eye(2)], [1, 2]), "a sum of 1 terms has 2 scales; give one"),
    "heights": (lambda _: Stack([torch.eye(2)], heights=[1, 1], width=2),
        "a stack of 1 terms has 2 heights; give one for each"),
    "widths": (lambda _: Stack([torch.eye(2), torch.eye(3)]),
        "operators that are stacked must be equally wide, not of widths [2, 3]"),
    "dtype": (lambda _: Sum([torch.eye(2)], dtype="int"), "dtype = 'int': must be one of float32"),
    "time": (lambda folder: ooc.clean(ooc.open_run(folder / "r"), older_than="soon"),
        "must be a time such as"),
    "workers and scheduler": (lambda _: ooc.Dask("tcp://a:1", workers=2),
        "workers = 2: those of a scheduler that runs were started with it; give either"),
    "factory as an object": (lambda folder: ooc.update(ooc.open_run(folder / "r"), "a.py:make"),
        "for a factory give OperatorSpec(factory='a.py:make')"),
}  # fmt: skip


@pytest.mark.parametrize("case", PROVOKED_IN_PYTHON)
def test_message_of_the_python_interface_is_what_a_user_reads(here, case):
    call, text = PROVOKED_IN_PYTHON[case]
    with pytest.raises(errors.OocError, match=re.escape(text)):
        call(here)


def test_shard_that_is_gone_is_named_with_the_command(here):
    run = ooc.open_run(here / "r")
    rectangle = list_shards(run.shards)[0]
    (run.shards / rectangle.name).unlink()
    with pytest.raises(errors.IncompleteError, match="is gone; make it again with: skerch-ooc mea"):
        open_shard(run, run.shards, rectangle)


def test_program_that_cannot_be_started_is_named(tmp_path, monkeypatch):
    (tmp_path / "sbatch").write_text("")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SlurmError, match="cannot start sbatch: Permission denied; mend that, then"):
        commands._call(["sbatch"], 9.0)
    (tmp_path / "squeue").write_text("")
    with pytest.raises(SlurmError, match="cannot start squeue: Permission denied; look for it on"):
        commands.Question(["1"])


@pytest.mark.parametrize(("needed", "text"), [(10 * 2**20, "19MiB"), (2**40, "1127GiB")])
def test_amount_to_ask_for_is_one_that_people_can_read(needed, text):
    assert ask_for(needed) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "none"), (2, "n0, n1"), (99, "n10, n11 and 87 more")]
)
def test_lists_of_names_are_short(count, text):
    assert errors.shown_list([f"n{i}" for i in range(count)]).endswith(text)
