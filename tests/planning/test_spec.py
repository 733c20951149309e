"""What a user may ask for, what is refused by name, and what a run is frozen to."""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerch_ooc.base.errors import CorruptError, UsageError
from skerch_ooc.base.files import digest
from skerch_ooc.base.partition import Range
from skerch_ooc.pipeline import start
from skerch_ooc.planning.krylov import MOST_ROUNDS, Krylov
from skerch_ooc.planning.methods import METHODS
from skerch_ooc.planning.plan import FORMAT_VERSION, NOISE_VERSION, Amendment, Cut, Identity, Plan
from skerch_ooc.planning.spec import (
    DTYPES,
    KINDS,
    MAX_SEED,
    MOST_POWER_ITERATIONS,
    NOISES,
    ORDERS,
    ROLES,
    TEST_MATRICES,
    VECTORS,
    OperatorSpec,
    RecoverySpec,
    SketchSpec,
    Spec,
)
from skerch_ooc.planning.values import MAX_SIZE

relaxed = settings(deadline=None)

ALLOWED_AT_TOP = (
    "measurements, kind, storage, tolerance, pairs_tolerance, rounds, round_width, seed, dtype, "
    "operator, sketch, recovery, start"
)
ALLOWED_IN_SKETCH = (
    "noise, test_measurements, left_measurements, left_test_measurements, inner_measurements, "
    "block, task_seconds"
)
ALLOWED_IN_RECOVERY = "method, core, rank, vectors, power_iterations, which"


def nested(path, value, **table):
    """A table with ``value`` at a dotted path."""
    *sections, last = path.split(".")
    inner = table
    for section in sections:
        inner = inner.setdefault(section, {})
    inner[last] = value
    return table


def found_at(path, spec):
    for name in path.split("."):
        spec = spec[name] if isinstance(spec, dict) else getattr(spec, name)
    return spec


class TestDefaults:
    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("kind", "eigh"),
            ("storage", None),
            ("tolerance", None),
            ("seed", 1),
            ("dtype", None),
            ("operator.factory", None),
            ("operator.args", {}),
            ("operator.device", "cpu"),
            ("operator.shape", None),
            ("sketch.noise", "rademacher"),
            ("sketch.test_measurements", 30),
            ("sketch.left_measurements", "auto"),
            ("sketch.inner_measurements", "auto"),
            ("sketch.block", "auto"),
            ("sketch.task_seconds", 600.0),
            ("recovery.method", "nystrom"),
            ("recovery.core", "auto"),
            ("recovery.rank", "all"),
            ("recovery.vectors", "stored"),
            ("recovery.power_iterations", 0),
        ],
    )
    def test_every_key_but_the_measurements_has_one(self, key, value):
        assert found_at(key, Spec.from_table({"measurements": 5})) == value

    @pytest.mark.parametrize("table", [{"seed": 5}, {"measurements": None}], ids=str)
    def test_the_measurements_or_the_storage_must_be_said(self, table):
        missing = "the key measurements is missing; give it, or storage = "
        with pytest.raises(UsageError, match=f"^{missing}"):
            Spec.from_table(table)

    def test_a_tolerance_of_pairs_for_another_method_is_told_its_own(self):
        table = {"pairs_tolerance": 1e-3, "recovery": {"method": "nystrom"}}
        with pytest.raises(UsageError, match=r'method = "krylov", which pairs_tolerance is for$'):
            Spec.from_table(table)

    def test_the_storage_may_be_said_instead_of_the_measurements(self):
        spec = Spec.from_table({"storage": "2 GiB"})
        assert (spec.measurements, spec.storage) == (None, "2 GiB")

    def test_measurements_and_storage_cannot_both_be_said(self):
        with pytest.raises(UsageError, match=r"^measurements = 5 and storage = '2 GiB': give one"):
            Spec.from_table({"measurements": 5, "storage": "2 GiB"})


class TestGoodValues:
    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("measurements", 1),
            ("measurements", MAX_SIZE),
            *[("kind", kind) for kind in KINDS],
            ("tolerance", 0.01),
            ("tolerance", 1e-300),
            ("seed", 0),
            ("seed", MAX_SEED),
            *[("dtype", dtype) for dtype in DTYPES],
            ("operator.factory", "package.module:function"),
            ("operator.factory", "folder/file.py:function"),
            (
                "operator.args",
                {"hidden": 50, "rates": [0.5, 1.0], "name": "x", "more": {"on": True}},
            ),
            ("operator.device", "cuda:0"),
            *[("recovery.which", which) for which in ORDERS],
            *[("sketch.noise", noise) for noise in NOISES],
            ("sketch.test_measurements", 0),
            ("sketch.left_measurements", 1),
            ("sketch.left_measurements", "auto"),
            ("sketch.left_test_measurements", 0),
            ("sketch.left_test_measurements", "auto"),
            ("sketch.inner_measurements", 1),
            ("sketch.inner_measurements", "auto"),
            ("sketch.block", 1),
            ("sketch.block", "auto"),
            ("sketch.task_seconds", 0.5),
            *[("recovery.method", method) for method in METHODS],
            ("recovery.core", 12),
            ("recovery.core", "auto"),
            ("recovery.rank", 12),
            ("recovery.rank", "all"),
            *[("recovery.vectors", vectors) for vectors in VECTORS],
            *[("recovery.power_iterations", count) for count in range(MOST_POWER_ITERATIONS + 1)],
        ],
    )
    def test_are_kept(self, key, value):
        assert found_at(key, Spec.from_table({"measurements": 5} | nested(key, value))) == value

    @pytest.mark.parametrize(
        "said",
        [{"pairs_tolerance": 1e-3}, {"rounds": 5}, {"recovery": {"method": "krylov"}}],
        ids=str,
    )
    def test_those_of_pairs_mean_krylov_and_need_no_measurements(self, said):
        spec = Spec.from_table(said)
        assert (spec.recovery.method, spec.recovery.rank) == ("krylov", 20)

    @pytest.mark.parametrize("said", [{"pairs_tolerance": 1e-3}, {"rounds": 5}], ids=str)
    def test_those_of_pairs_leave_another_method_that_is_named(self, said):
        spec = Spec.from_table({"measurements": 5, "recovery": {"method": "hmt"}} | said)
        assert spec.recovery.method == "hmt"

    def test_a_shape_becomes_a_pair(self):
        spec = Spec.from_table({"measurements": 5, "operator": {"shape": [20, 30]}})
        assert spec.operator.shape == (20, 30)

    def test_a_section_may_be_given_as_an_object(self):
        assert Spec(5, sketch=SketchSpec(block=7)) == Spec(5, sketch={"block": 7})

    def test_arguments_are_a_copy_of_what_the_caller_may_still_change(self):
        arguments = {"layers": [1, 2]}
        spec = Spec(5, operator={"args": arguments})
        arguments["layers"].append(3)
        assert spec.operator.args == {"layers": [1, 2]}

    def test_a_tuple_among_the_arguments_is_stored_as_the_list_that_json_makes_of_it(self):
        assert OperatorSpec(args={"layers": (1, 2)}).args == {"layers": [1, 2]}

    def test_a_spec_is_frozen(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            Spec(5).seed = 2


def out_of(low, high=MAX_SIZE):
    return f"must be an integer from {low} to {high}"


A_WORD_OR_AN_INTEGER = f" or an integer from 1 to {MAX_SIZE}"
A_RELATIVE_ERROR = "must be a relative error between 0 and 1"
NOT_JSON = "arguments of a factory must be JSON values"

BAD_VALUES = [
    ("measurements", 0, out_of(1)),
    ("measurements", MAX_SIZE + 1, out_of(1)),
    ("measurements", 1.5, out_of(1)),
    ("measurements", "many", out_of(1)),
    ("measurements", True, out_of(1)),
    ("kind", "qr", f"must be one of {', '.join(KINDS)}"),
    ("kind", 1, f"must be one of {', '.join(KINDS)}"),
    ("storage", "", "must be a non-empty string"),
    ("storage", 5, "must be a non-empty string"),
    ("tolerance", 0, A_RELATIVE_ERROR),
    ("tolerance", 1, A_RELATIVE_ERROR),
    ("tolerance", -0.1, A_RELATIVE_ERROR),
    ("tolerance", float("nan"), A_RELATIVE_ERROR),
    ("tolerance", True, A_RELATIVE_ERROR),
    ("tolerance", "0.1", A_RELATIVE_ERROR),
    ("seed", -1, out_of(0, MAX_SEED)),
    ("seed", MAX_SEED + 1, out_of(0, MAX_SEED)),
    ("seed", "one", out_of(0, MAX_SEED)),
    ("dtype", "float16", f"must be one of {', '.join(DTYPES)}"),
    ("dtype", ["float32"], f"must be one of {', '.join(DTYPES)}"),
    (
        "operator.factory",
        "no colon",
        "must be 'package.module:function', 'file.py:function' or a name",
    ),
    (
        "operator.factory",
        "module:",
        "must be 'package.module:function', 'file.py:function' or a name",
    ),
    (
        "operator.factory",
        ":function",
        "must be 'package.module:function', 'file.py:function' or a name",
    ),
    (
        "operator.factory",
        "file.py:2nd",
        "must be 'package.module:function', 'file.py:function' or a name",
    ),
    ("operator.factory", "", "must be a non-empty string"),
    ("operator.factory", 3, "must be a non-empty string"),
    ("operator.device", "", "must be a non-empty string"),
    ("operator.device", "cpu\0", "must be a non-empty string"),
    ("operator.device", 0, "must be a non-empty string"),
    ("operator.shape", [5], "must be [height, width]"),
    ("operator.shape", [5, 5, 5], "must be [height, width]"),
    ("operator.shape", "55", "must be [height, width]"),
    ("operator.shape", 5, "must be [height, width]"),
    ("operator.shape", [5, 0], out_of(1)),
    ("operator.shape", [5.0, 5], out_of(1)),
    ("sketch.noise", "uniform", f"must be one of {', '.join(NOISES)}"),
    ("sketch.test_measurements", -1, out_of(0)),
    ("sketch.left_measurements", 0, 'must be "auto"' + A_WORD_OR_AN_INTEGER),
    ("sketch.left_measurements", "all", 'must be "auto"' + A_WORD_OR_AN_INTEGER),
    ("sketch.inner_measurements", -1, 'must be "auto"' + A_WORD_OR_AN_INTEGER),
    ("sketch.inner_measurements", 2.5, 'must be "auto"' + A_WORD_OR_AN_INTEGER),
    ("sketch.block", 0, 'must be "auto"' + A_WORD_OR_AN_INTEGER),
    ("sketch.block", "all", 'must be "auto"' + A_WORD_OR_AN_INTEGER),
    ("sketch.block", True, 'must be "auto"' + A_WORD_OR_AN_INTEGER),
    ("sketch.task_seconds", 0, "must be a positive number of seconds"),
    ("sketch.task_seconds", -1.0, "must be a positive number of seconds"),
    ("sketch.task_seconds", float("inf"), "must be a positive number of seconds"),
    ("sketch.task_seconds", float("nan"), "must be a positive number of seconds"),
    ("sketch.task_seconds", "600", "must be a positive number of seconds"),
    ("sketch.task_seconds", True, "must be a positive number of seconds"),
    ("sketch.task_seconds", 10**400, "must be a positive number of seconds"),
    ("recovery.method", "lanczos", f"must be one of {', '.join(METHODS)}"),
    ("recovery.core", 0, 'must be "auto"' + A_WORD_OR_AN_INTEGER),
    ("recovery.core", "all", 'must be "auto"' + A_WORD_OR_AN_INTEGER),
    ("recovery.rank", 0, 'must be "all"' + A_WORD_OR_AN_INTEGER),
    ("recovery.rank", "auto", 'must be "all"' + A_WORD_OR_AN_INTEGER),
    ("recovery.vectors", "both", f"must be one of {', '.join(VECTORS)}"),
    ("recovery.which", "SM", f"must be one of {', '.join(ORDERS)}"),
    ("pairs_tolerance", 0, A_RELATIVE_ERROR),
    ("pairs_tolerance", 1, A_RELATIVE_ERROR),
    ("rounds", 0, out_of(1, MOST_ROUNDS)),
    ("rounds", MOST_ROUNDS + 1, out_of(1, MOST_ROUNDS)),
    ("round_width", 0, out_of(1)),
    ("start", "", "must be a non-empty string"),
    ("recovery.power_iterations", -1, out_of(0, MOST_POWER_ITERATIONS)),
    ("recovery.power_iterations", 3, out_of(0, MOST_POWER_ITERATIONS)),
    ("recovery.power_iterations", "auto", out_of(0, MOST_POWER_ITERATIONS)),
]


def name_of(value):
    return str(value)[:24].replace("\0", "NUL") or "empty"


class TestBadValues:
    @pytest.mark.parametrize(("key", "value", "allowed"), BAD_VALUES, ids=name_of)
    def test_are_refused_by_key_with_what_is_allowed(self, key, value, allowed):
        table = ({} if key == "storage" else {"measurements": 5}) | nested(key, value)
        with pytest.raises(UsageError, match=f"^{key} = .*{re.escape(allowed)}"):
            Spec.from_table(table)

    @pytest.mark.parametrize("section", ["operator", "sketch", "recovery"])
    def test_a_section_that_is_no_table_is_refused(self, section):
        with pytest.raises(UsageError, match=f"^{section} must be a table, not 5$"):
            Spec.from_table({"measurements": 5, section: 5})

    @pytest.mark.parametrize(
        ("arguments", "why"),
        [
            ([1], r"must be a table of keyword arguments, not \[1\]"),
            ({"start": datetime.date(2024, 1, 1)}, NOT_JSON),
            ({"rate": float("nan")}, NOT_JSON),
            ({"rate": float("inf")}, NOT_JSON),
            ({"call": print}, NOT_JSON),
            ({1: "one", "two": 2}, "the keys of a factory's arguments must be text"),
            ({1: "one"}, "the keys of a factory's arguments must be text"),
            ({"sizes": {1: "one"}}, "the keys of a factory's arguments must be text"),
        ],
        ids=name_of,
    )
    def test_arguments_that_a_plan_cannot_store_are_refused(self, arguments, why):
        with pytest.raises(UsageError, match=f"^operator.args.* ?{why}"):
            Spec(5, operator={"args": arguments})


class TestUnknownKeys:
    @pytest.mark.parametrize(
        ("key", "allowed"),
        [
            ("size", ALLOWED_AT_TOP),
            ("folder", ALLOWED_AT_TOP),
            ("operator.kind", "factory, args, device, shape"),
            ("sketch.kind", ALLOWED_IN_SKETCH),
            ("recovery.kind", ALLOWED_IN_RECOVERY),
        ],
    )
    def test_are_refused_with_those_that_are_allowed_there(self, key, allowed):
        with pytest.raises(UsageError, match=f"^unknown key {key}; allowed here: {allowed}"):
            Spec.from_table(nested(key, 1, measurements=5))

    @pytest.mark.parametrize(
        ("key", "meant"),
        [
            ("measurement", "measurements"),
            ("sede", "seed"),
            ("sketch.nosie", "noise"),
            ("sketch.left_measurement", "left_measurements"),
            ("recovery.ranks", "rank"),
            ("recovery.power_iteration", "power_iterations"),
            ("tolerence", "tolerance"),
            ("operator.arg", "args"),
        ],
    )
    def test_a_near_miss_names_what_was_probably_meant(self, key, meant):
        with pytest.raises(UsageError, match=rf"unknown key {key}; .*; did you mean {meant}\?$"):
            Spec.from_table(nested(key, 1, measurements=5))

    @pytest.mark.parametrize(
        ("key", "where"),
        [
            ("rank", r"rank stands in the table \[recovery\]"),
            ("factory", r"factory stands in the table \[operator\]"),
            ("recovery.rounds", "rounds stands at the top, before any table"),
            ("sketch.seed", "seed stands at the top, before any table"),
            ("recovery.noise", r"noise stands in the table \[sketch\]"),
            ("recovery.pairs_tolerence", r"did you mean pairs_tolerance\?"),
            ("task_second", r"did you mean sketch.task_seconds\?"),
            ("operator.path", r"arguments of the factory stand in the table \[operator.args\].*"),
        ],
    )
    def test_of_another_table_are_told_where_they_stand(self, key, where):
        with pytest.raises(UsageError, match=rf"unknown key {key}; .*; {where}$"):
            Spec.from_table(nested(key, 1, measurements=5))

    def test_a_key_like_no_other_suggests_nothing(self):
        with pytest.raises(UsageError, match=f"{ALLOWED_AT_TOP}$"):
            Spec.from_table({"measurements": 5, "zzz": 1})


class TestFile:
    @pytest.fixture
    def written(self, tmp_path):
        def write(content):
            path = tmp_path / "spec.toml"
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
            return path

        return write

    def test_says_what_the_same_tables_say(self, written):
        path = written("measurements = 5\nseed = 3\n[operator.args]\nhidden = 50\n")
        table = {"measurements": 5, "seed": 3, "operator": {"args": {"hidden": 50}}}
        assert Spec.from_toml(path) == Spec.from_table(table)

    def test_its_folder_is_where_factories_are_looked_for(self, written):
        path = written("measurements = 5")
        assert Spec.from_toml(str(path)).folder == path.parent

    def test_a_missing_file_is_named(self, tmp_path):
        path = tmp_path / "none.toml"
        with pytest.raises(
            UsageError, match=f"^cannot read the spec file {re.escape(str(path))}: No such file"
        ):
            Spec.from_toml(path)

    def test_a_folder_is_no_file(self, tmp_path):
        with pytest.raises(
            UsageError, match=f"^cannot read the spec file {re.escape(str(tmp_path))}: Is a dir"
        ):
            Spec.from_toml(tmp_path)

    @pytest.mark.parametrize(
        "content",
        ["measurements = ", "measurements = 5\nmeasurements = 6", "a = " + "[" * 100000],
        ids=["no value", "key twice", "nested beyond all bounds"],
    )
    def test_what_is_not_toml_is_refused(self, written, content):
        path = written(content)
        with pytest.raises(UsageError, match=f"^{re.escape(str(path))} is not a TOML file: "):
            Spec.from_toml(path)

    def test_mark_of_the_encoding_is_no_part_of_the_first_key(self, written):
        path = written(b'\xef\xbb\xbfmeasurements = 5\n[operator]\nfactory = "decaying"\n')
        assert Spec.from_toml(path).measurements == 5

    def test_what_is_not_utf_8_is_refused(self, written):
        path = written('kind = "\xe4"'.encode("latin-1"))
        with pytest.raises(
            UsageError, match=f"^{re.escape(str(path))} is not a TOML file: 'utf-8' codec"
        ):
            Spec.from_toml(path)

    def test_a_refused_key_is_named_with_the_file(self, written):
        path = written("measurements = 5\nsede = 1")
        with pytest.raises(UsageError, match=f"^{re.escape(str(path))}: unknown key sede"):
            Spec.from_toml(path)


class TestOverrides:
    @pytest.fixture
    def read(self, tmp_path):
        path = tmp_path / "spec.toml"
        path.write_text('measurements = 5\n[operator]\ndevice = "cpu"\nargs = {hidden = 50}\n')
        return lambda *overrides: Spec.from_toml(path, overrides)

    @pytest.mark.parametrize(
        ("override", "key", "value"),
        [
            ("seed=7", "seed", 7),
            (" seed = 7 ", "seed", 7),
            ("measurements=6", "measurements", 6),
            ("sketch.block=16", "sketch.block", 16),
            ("sketch.task_seconds=1e3", "sketch.task_seconds", 1000.0),
            ("sketch.noise=gaussian", "sketch.noise", "gaussian"),
            ('sketch.noise="gaussian"', "sketch.noise", "gaussian"),
            ("operator.device=cuda:0", "operator.device", "cuda:0"),
            ("operator.factory=file.py:make", "operator.factory", "file.py:make"),
            ("operator.shape=[30, 30]", "operator.shape", (30, 30)),
            ("operator.args.hidden=60", "operator.args.hidden", 60),
            ("operator.args.on=true", "operator.args.on", True),
            ("operator.args.path=data/a=b.npy", "operator.args.path", "data/a=b.npy"),
            ("operator.args.inner.deep=1", "operator.args.inner.deep", 1),
        ],
    )
    def test_replaces_or_adds_what_it_names(self, read, override, key, value):
        assert found_at(key, read(override)) == value

    def test_leaves_the_other_keys(self, read):
        assert read("operator.device=cuda").operator.args == {"hidden": 50}

    def test_the_last_of_several_wins(self, read):
        assert read("seed=2", "seed=3").seed == 3

    def test_a_text_of_several_lines_is_taken_whole(self, read):
        assert read("operator.args.note=1\nmore = 2").operator.args["note"] == "1\nmore = 2"

    @pytest.mark.parametrize("override", ["seed", "=5", " =5", ""])
    def test_without_key_or_value_shows_the_form(self, read, override):
        form = "must have the form key=value or section.key=value"
        with pytest.raises(UsageError, match=f"^--set {override}: {form}$"):
            read(override)

    def test_into_what_is_no_table_is_refused(self, read):
        with pytest.raises(
            UsageError,
            match=r"^--set measurements.x=1: measurements is not a table; set measurements itself$",
        ):
            read("measurements.x=1")

    def test_of_an_unknown_key_is_refused(self, read):
        with pytest.raises(UsageError, match=r"unknown key sketch.nosie; .*did you mean noise\?$"):
            read("sketch.nosie=gaussian")

    def test_with_a_bad_value_is_refused(self, read):
        with pytest.raises(UsageError, match="seed = 'x': must be an integer"):
            read("seed=x")

    def test_nested_beyond_all_bounds_is_refused(self, read):
        with pytest.raises(UsageError):
            read("seed=" + "[" * 100000)


# --- what a run is frozen to -------------------------------------------------------------------

names = st.from_regex(r"[a-z_][a-z_0-9]{0,8}", fullmatch=True)
texts = st.text(max_size=5)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
json_values = st.recursive(
    scalars.filter(lambda value: value not in (float("inf"), float("-inf"))),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
sizes = st.integers(1, MAX_SIZE)
identities = st.builds(
    Identity,
    kind=st.sampled_from(KINDS),
    factory=st.none() | st.builds("{}.py:{}".format, names, names),
    args=st.dictionaries(texts, json_values, max_size=3),
    factory_sha256=st.none() | st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
    shape=st.tuples(sizes, sizes),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, MAX_SEED),
    noise=st.dictionaries(st.sampled_from(TEST_MATRICES), st.sampled_from(NOISES)),
)
columns = st.builds(Cut, st.integers(0, 99), st.integers(100, MAX_SIZE), sizes)
amendments = st.builds(
    Amendment,
    run_id=st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
    number=st.integers(1, 9999),
    blocks=st.dictionaries(st.sampled_from(ROLES), columns),
    recovery=st.builds(
        RecoverySpec,
        method=st.sampled_from([name for name in METHODS if not METHODS[name].orthogonal]),
        core=st.just("auto") | sizes,
        rank=st.just("all") | sizes,
        vectors=st.sampled_from(VECTORS),
        power_iterations=st.integers(0, MOST_POWER_ITERATIONS),
    ),
    device=names,
    folder=names,
)
with_tolerance = st.builds(
    dataclasses.replace,
    amendments,
    tolerance=st.floats(0, 1, exclude_min=True, exclude_max=True),
    most=sizes,
)
with_krylov_rounds = st.builds(
    dataclasses.replace,
    amendments,
    recovery=st.builds(
        RecoverySpec, method=st.just("krylov"), rank=sizes, which=st.sampled_from(ORDERS)
    ),
    krylov=st.builds(
        Krylov,
        width=sizes,
        rounds=st.integers(1, MOST_ROUNDS),
        tolerance=st.none() | st.floats(0, 1, exclude_min=True, exclude_max=True),
    ),
)


def an_identity(**changes):
    identity = Identity(
        kind="eigh",
        factory="file.py:make",
        args={"hidden": 50},
        factory_sha256="ab" * 32,
        shape=(300, 300),
        dtype="float32",
        seed=1,
        noise={"right": "rademacher", "test": "gaussian"},
    )
    return dataclasses.replace(identity, **changes)


def an_amendment(number=1, **changes):
    amendment = Amendment(
        run_id=an_identity().run_id,
        number=number,
        blocks={"right": Cut(0, 100, 32), "test": Cut(0, 30, 32)},
        recovery=RecoverySpec(),
        device="cpu",
        folder="..",
    )
    return dataclasses.replace(amendment, **changes)


def remade(value):
    """Through the bytes of a file and back."""
    return json.loads(json.dumps(value))


class TestIdentity:
    @relaxed
    @given(identities)
    def test_is_read_back_from_its_bytes_unchanged(self, identity):
        assert Identity.from_json(json.loads(identity.as_bytes()), "plan.json") == identity

    @relaxed
    @given(identities)
    def test_has_the_same_run_id_when_read_back(self, identity):
        read = Identity.from_json(json.loads(identity.as_bytes()), "plan.json")
        assert read.run_id == identity.run_id

    def test_its_run_id_does_not_depend_on_the_order_of_its_arguments(self):
        one, other = ({"a": 1, "b": 2}, {"b": 2, "a": 1})
        assert an_identity(args=one).run_id == an_identity(args=other).run_id

    @pytest.mark.parametrize(
        "change",
        [
            {"factory": "file.py:other"},
            {"args": {"hidden": 51}},
            {"args": {"hidden": 50, "more": None}},
            {"factory_sha256": "cd" * 32},
            {"shape": (300, 301)},
            {"dtype": "float64"},
            {"seed": 2},
            {"noise": {"right": "gaussian", "test": "gaussian"}},
            {"tile": (2048, 512)},
        ],
        ids=str,
    )
    def test_its_run_id_changes_with_all_that_decides_the_numbers(self, change):
        assert an_identity(**change).run_id != an_identity().run_id

    @pytest.mark.parametrize("key", ["format", "noise_version"])
    def test_of_another_version_is_refused_naming_both(self, key):
        value = an_identity().as_json()
        known, other = value[key], value[key] + 1
        with pytest.raises(
            UsageError, match=f"^plan.json: {key} {other}, but this version .* knows {known};"
        ):
            Identity.from_json(value | {key: other}, "plan.json")

    @pytest.mark.parametrize(
        ("key", "version"), [("format", FORMAT_VERSION), ("noise_version", NOISE_VERSION)]
    )
    def test_states_the_versions_that_it_was_made_with(self, key, version):
        assert an_identity().as_json()[key] == version

    @pytest.mark.parametrize(
        "key", ["format", "noise_version", "kind", "operator", "seed", "noise", "tile"]
    )
    def test_without_one_of_its_entries_is_corrupt(self, key):
        value = an_identity().as_json()
        del value[key]
        with pytest.raises(CorruptError, match=r"^plan\.json is not a plan: "):
            Identity.from_json(value, "plan.json")

    @pytest.mark.parametrize("key", ["factory", "args", "sha256", "shape", "dtype"])
    def test_without_one_of_the_operators_entries_is_corrupt(self, key):
        value = remade(an_identity().as_json())
        del value["operator"][key]
        with pytest.raises(CorruptError, match=r"^plan\.json is not a plan: "):
            Identity.from_json(value, "plan.json")

    @pytest.mark.parametrize(
        ("path", "altered"),
        [
            ("format", "1"),
            ("noise_version", None),
            ("kind", "qr"),
            ("operator", []),
            ("operator.factory", "no thing"),
            ("operator.args", [50]),
            ("operator.shape", None),
            ("operator.shape", [300]),
            ("operator.shape", [300, "300"]),
            ("operator.shape", [300, -300]),
            ("operator.dtype", "float16"),
            ("operator.more", 1),
            ("seed", -1),
            ("seed", 1.0),
            ("seed", "1"),
            ("noise", ["rademacher"]),
            ("noise.right", "uniform"),
            ("noise.middle", "gaussian"),
            ("noise.left", "uniform"),
            ("tile", [4096, 256]),
            ("more", 1),
        ],
        ids=name_of,
    )
    def test_with_an_altered_entry_is_corrupt(self, path, altered):
        value = nested(path, altered, **remade(an_identity().as_json()))
        with pytest.raises(CorruptError, match=r"^plan\.json is not a plan: "):
            Identity.from_json(value, "plan.json")

    @pytest.mark.parametrize("value", [None, 5, "plan", [], {}], ids=str)
    def test_that_is_something_else_is_corrupt(self, value):
        with pytest.raises(CorruptError, match=r"^plan\.json is not a plan: "):
            Identity.from_json(value, "plan.json")


class TestAmendment:
    @relaxed
    @given(amendments | with_tolerance | with_krylov_rounds)
    def test_is_read_back_unchanged(self, amendment):
        assert Amendment.from_json(remade(amendment.as_json()), "0001.json") == amendment

    @pytest.mark.parametrize(
        ("path", "altered"),
        [
            ("format", FORMAT_VERSION + 1),
            ("run", "cd" * 32),
            ("number", 2),
            ("blocks.right.start", 1),
            ("blocks.right.stop", 101),
            ("blocks.right.width", 33),
            ("blocks.test", None),
            ("blocks", {}),
            ("parts", []),
            ("recovery.core", 12),
            ("recovery.power_iterations", 1),
            ("device", "cuda"),
            ("folder", "elsewhere"),
            ("tolerance", 0.1),
            ("most", 50),
            ("rounds", {"width": 16, "rounds": 9, "tolerance": 1e-4}),
            ("recovery.which", "LA"),
            ("sha256", "cd" * 32),
            ("more", 1),
        ],
        ids=name_of,
    )
    def test_with_an_altered_entry_is_corrupt(self, path, altered):
        value = nested(path, altered, **remade(an_amendment().as_json()))
        with pytest.raises(CorruptError, match=r"^0001\.json is not an amendment: "):
            Amendment.from_json(value, "0001.json")

    @pytest.mark.parametrize(
        ("path", "altered"),
        [
            ("run", ""),
            ("number", 0),
            ("blocks", []),
            ("blocks.middle", {"start": 0, "stop": 5, "width": 5}),
            ("blocks.left", {"start": 5, "stop": 5, "width": 5}),
            ("blocks.left", {"start": 6, "stop": 5, "width": 5}),
            ("blocks.right", {"start": 0, "stop": 5}),
            ("blocks.right.width", 0),
            ("blocks.right.more", 1),
            ("parts", []),
            ("recovery", 5),
            ("recovery.core", 0),
            ("recovery.more", 1),
            ("recovery.power_iterations", 3),
            ("device", ""),
            ("folder", None),
            ("tolerance", 0.1),
            ("most", 50),
            ("rounds", {"width": 16, "rounds": 9, "tolerance": 1e-4}),
            ("recovery.method", "krylov"),
            ("more", 1),
        ],
        ids=name_of,
    )
    def test_that_is_not_allowed_is_corrupt_even_if_its_hash_fits(self, path, altered):
        content = nested(path, altered, **remade(an_amendment().as_json()))
        del content["sha256"]
        with pytest.raises(CorruptError, match=r"^0001\.json is not an amendment: "):
            Amendment.from_json(content | {"sha256": digest(content)}, "0001.json")

    def test_with_a_tolerance_but_no_most_columns_is_corrupt(self):
        value = remade(an_amendment(tolerance=0.1).as_json())
        with pytest.raises(CorruptError, match="tolerance and most belong together"):
            Amendment.from_json(value, "0001.json")

    @pytest.mark.parametrize("value", [None, 5, "plan", [], {}], ids=str)
    def test_that_is_something_else_is_corrupt(self, value):
        with pytest.raises(CorruptError, match=r"^0001\.json is not an amendment: "):
            Amendment.from_json(value, "0001.json")


class TestPlan:
    @pytest.fixture
    def plan(self):
        grown = an_amendment(
            number=2,
            blocks={"right": Cut(100, 150, 20)},
            recovery=RecoverySpec(core=40),
            device="cuda",
        )
        return Plan(an_identity(shape=(9000, 9000)), (an_amendment(), grown))

    @pytest.mark.parametrize(("role", "columns"), [("right", 150), ("test", 30)])
    def test_the_reach_is_the_sum_of_the_amendments(self, plan, role, columns):
        assert plan.reach(role) == columns

    @pytest.mark.parametrize(
        ("role", "blocks"),
        [
            (
                "right",
                ["0-32", "32-64", "64-96", "96-100", "100-120", "120-140", "140-150"],
            ),
            ("test", ["0-30"]),
        ],
    )
    def test_the_blocks_are_cut_as_each_amendment_says(self, plan, role, blocks):
        assert [str(block) for block in plan.blocks(role)] == blocks

    @pytest.mark.parametrize(
        ("role", "columns"), [("right", Range(0, 150)), ("test", Range(0, 30))]
    )
    def test_the_span_of_a_role_is_from_its_first_to_its_last_column(self, plan, role, columns):
        assert plan.span(role) == columns

    def test_the_span_of_an_inner_sketch_may_begin_where_the_right_one_ends(self):
        blocks = {"right": Cut(0, 20, 10), "inner": Cut(20, 41, 10)}
        assert Plan(an_identity(), (an_amendment(blocks=blocks),)).span("inner") == Range(20, 41)

    @pytest.mark.parametrize("role", ["test", "left", "inner"])
    def test_a_role_that_is_not_planned_has_no_columns(self, role):
        plan = Plan(an_identity(), (an_amendment(blocks={"right": Cut(0, 100, 32)}),))
        assert plan.span(role) == Range(0, 0)

    @pytest.mark.parametrize(
        ("method", "blocks", "inner"),
        [
            ("nystrom", {"right": Cut(0, 20, 10)}, 0),
            ("oversampled", {"right": Cut(0, 20, 10), "inner": Cut(0, 41, 10)}, 41),
            ("oversampled", {"right": Cut(0, 20, 10), "inner": Cut(20, 41, 10)}, 41),
            ("oversampled", {"right": Cut(0, 20, 10)}, 20),
        ],
        ids=str,
    )
    def test_the_inner_sketch_has_at_least_the_columns_of_the_right_one(
        self, method, blocks, inner
    ):
        amendment = an_amendment(blocks=blocks, recovery=RecoverySpec(method=method))
        assert Plan(an_identity(), (amendment,)).inner == inner

    @pytest.mark.parametrize(
        ("kind", "method", "power_iterations", "rounds"),
        [
            *[(kind, method, 0, 1) for kind in KINDS for method in METHODS if method != "hmt"],
            *[(kind, "hmt", 0, 2) for kind in KINDS],
            ("eigh", "hmt", 1, 3),
            ("eigh", "hmt", 2, 4),
            ("svd", "hmt", 1, 4),
            ("svd", "hmt", 2, 6),
        ],
    )
    def test_only_hmt_has_several_rounds(self, kind, method, power_iterations, rounds):
        recovery = RecoverySpec(method=method, power_iterations=power_iterations)
        plan = Plan(an_identity(kind=kind), (an_amendment(recovery=recovery),))
        assert plan.rounds == rounds

    def test_each_later_round_costs_as_many_products_as_the_right_sketch(self):
        recovery = RecoverySpec(method="hmt", power_iterations=2)
        plan = Plan(an_identity(), (an_amendment(recovery=recovery),))
        assert plan.products == 100 + 30 + 3 * 100

    def test_later_rounds_are_cut_as_the_last_columns_of_the_right_sketch(self, plan):
        assert plan.block_width == 20

    def test_the_tiles_of_a_sketch_of_another_height_are_its_own(self, plan):
        assert [str(tile) for tile in plan.tiles(5000)] == ["0-4096", "4096-5000"]

    def test_a_role_that_is_not_planned_has_no_blocks(self):
        plan = Plan(an_identity(), (an_amendment(blocks={"right": Cut(0, 100, 32)}),))
        assert plan.blocks("test") == []

    def test_every_column_costs_a_product(self, plan):
        assert plan.products == 180

    def test_the_tiles_are_rows_of_the_whole_height(self, plan):
        assert [str(tile) for tile in plan.tiles()] == ["0-4096", "4096-8192", "8192-9000"]

    def test_the_last_amendments_recovery_is_in_force(self, plan):
        assert plan.recovery == RecoverySpec(core=40)

    def test_the_last_amendments_device_is_in_force(self, plan):
        assert plan.device == "cuda"

    def test_amendments_do_not_change_the_run_id(self, plan):
        assert plan.run_id == dataclasses.replace(plan, amendments=plan.amendments[:1]).run_id


class TestPlanning:
    """From a spec to an identity; with shape and block given no operator is needed."""

    @pytest.fixture
    def run_id(self, tmp_path):
        count = iter(range(10))

        def planned(override=None):
            (tmp_path / "file.py").write_text("")
            path = tmp_path / "spec.toml"
            path.write_text(
                "measurements = 50\n[operator]\nfactory = 'file.py:make'\nshape = [300, 300]\n"
                "args = {hidden = 50}\n[sketch]\nblock = 16\n"
            )
            spec = Spec.from_toml(path, [override] if override else [])
            return start.plan(spec, tmp_path / f"run{next(count)}").plan.run_id

        return planned

    @pytest.mark.parametrize(
        "override",
        [
            "recovery.core=20",
            "recovery.rank=20",
            "sketch.block=10",
            "sketch.task_seconds=10",
            "operator.device=cuda",
            "measurements=60",
            "tolerance=0.1",
            "sketch.test_measurements=10",
            "recovery.vectors=implicit",
            "recovery.method=hmt",
        ],
    )
    def test_the_run_id_does_not_change_with(self, run_id, override):
        assert run_id(override) == run_id()

    @pytest.mark.parametrize(
        "override",
        [
            "seed=2",
            "kind=svd",
            "sketch.noise=gaussian",
            "operator.shape=[301, 301]",
            "dtype=float64",
            "operator.args.hidden=51",
            "operator.factory=file.py:other",
        ],
    )
    def test_the_run_id_changes_with(self, run_id, override):
        assert run_id(override) != run_id()

    def test_the_run_id_does_not_change_with_the_folder(self, run_id, tmp_path, monkeypatch):
        here = run_id()
        elsewhere = Spec.from_toml(tmp_path / "spec.toml")
        monkeypatch.chdir(tmp_path)
        assert start.plan(elsewhere, Path("other")).plan.run_id == here


def test_integers_of_numpy_are_integers():
    found = Spec.from_table({"measurements": np.int64(7), "operator": {"factory": "a"}})
    assert (found.measurements, type(found.measurements)) == (7, int)
