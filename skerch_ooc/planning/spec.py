"""The spec that a user writes, in TOML or Python: its keys, tables, defaults and overrides."""

from __future__ import annotations

import codecs
import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skerch_ooc.base.errors import UsageError, did_you_mean
from skerch_ooc.base.keywords import tells_keywords
from skerch_ooc.planning import values
from skerch_ooc.planning.krylov import MOST_ROUNDS, PAIRS
from skerch_ooc.planning.methods import DEFAULTS, METHODS, MOST_POWER_ITERATIONS, PAIRS_METHOD

KINDS = ("eigh", "svd")
DTYPES = ("float32", "float64", "complex64", "complex128")
DEFAULT_DTYPE = "float32"
"""Of products, where neither the spec nor the operator says another that will do."""

NOISES = ("rademacher", "gaussian", "phase", "ssrft", "sparse-sign")
SPARSER = ("sparse-sign-64", "sparse-sign-256")
"""Sparser kinds of noise for wide test matrices of a matrix on disk; a user cannot ask for them."""

VECTORS = ("stored", "implicit")

ORDERS = ("LM", "LA", "SA")
"""Which eigenvalues come first: largest magnitude, largest, or smallest (most negative)."""

ROLES = ("right", "test", "left", "inner", "test-left")
"""The roles of the first round of a run, in the order in which they are measured."""

TEST_MATRICES = ("right", "left", "inner-left", "inner-right", "test", "test-left")
"""The test matrices that are drawn, never stored."""
DEFAULT_BLOCK = 128
MAX_SEED = 2**64 - 1


@tells_keywords
@dataclass(frozen=True)
class OperatorSpec(values.Checked):
    """The table ``[operator]`` of a spec.

    Attributes:
        factory: The function that makes it: ``"package.module:function"``, ``"file.py:function"``
            (relative to the spec file), or the name of an entry point in the group
            ``skerch_ooc.operators``, such as ``"stored"`` or ``"sparse"``. Left out only where the
            operator is handed over as a Python object.
        args: Keyword arguments of the factory. They are stored in the plan, so they must be JSON
            values: text, finite numbers, booleans, lists, tables. Without a factory they are
            options of the array, frame or dataset that is handed over: see the page "Matrices".
        device: The torch device on which the operator runs, such as ``"cuda"``.
        shape: ``[height, width]``. Needed only to plan without loading the operator, which also
            takes a ``sketch.block`` that is no ``"auto"``; else it must be that of the operator.
        parts: In how many parts an operator that has terms (:class:`skerch_ooc.Sum`,
            :class:`skerch_ooc.Stack`, a matrix on disk) is measured, at most. ``"auto"``: one,
            unless a product takes longer than ``sketch.task_seconds``; of a matrix on disk as many
            as its sketches pay for. Never decides the numbers (with ``oversampled`` but to
            rounding).
    """

    section = "operator"
    factory: str | None = values.checked(values.factory, None)
    args: Mapping[str, Any] = values.checked(values.arguments, default_factory=dict, hash=False)
    device: str = values.checked(values.text, "cpu")
    shape: tuple[int, int] | None = values.checked(values.shape, None)
    parts: int | str = values.checked(values.integer(1, word="auto"), "auto")


@tells_keywords
@dataclass(frozen=True)
class SketchSpec(values.Checked):
    """The table ``[sketch]`` of a spec.

    Attributes:
        noise: Distribution of the test matrices; those of the error estimate are always Gaussian.
            ``"phase"`` needs a complex dtype, ``"sparse-sign"`` at least 64 measurements,
            ``"ssrft"`` (arXiv 1902.08651, section 3.1) an operator of at most 2^31 rows and
            columns.
        test_measurements: Columns of the test sketch, from which the error is estimated. Without
            any there is no error figure; a tolerance needs 10.
        left_measurements: Columns of the left sketch (``kind = "svd"`` only, not ``hmt``), at least
            as many as ``measurements``. ``"auto"``: 1.5 times as many for ``nystrom``, else as
            many; more of a matrix on disk, where they cost no reading.
        left_test_measurements: Columns of the test sketch of the adjoint (``kind = "svd"`` and one
            pass only): with those of the test sketch they tell how far each singular value is off.
            ``"auto"``: 10 for a matrix on disk, where they cost no reading, else none.
        inner_measurements: Rows and columns of the inner sketch (``oversampled`` only), at least
            ``measurements``. ``"auto"``: twice as many, and one more if real.
        block: Columns that a task applies at once. ``"auto"``: as many as ``task_seconds`` and the
            memory allow, 128 at most. Never decides the numbers.
        task_seconds: How long a task may take that ``block = "auto"`` aims at, in seconds.
    """

    section = "sketch"
    noise: str = values.checked(values.one_of(*NOISES), "rademacher")
    test_measurements: int = values.checked(values.integer(0), 30)
    left_measurements: int | str = values.checked(values.integer(1, word="auto"), "auto")
    left_test_measurements: int | str = values.checked(values.integer(0, word="auto"), "auto")
    inner_measurements: int | str = values.checked(values.integer(1, word="auto"), "auto")
    block: int | str = values.checked(values.integer(1, word="auto"), "auto")
    task_seconds: float = values.checked(values.positive_seconds, 600.0)


@tells_keywords
@dataclass(frozen=True)
class RecoverySpec(values.Checked):
    """The table ``[recovery]`` of a spec; none of it is in the identity of a run.

    Attributes:
        method: How the decomposition is recovered from the sketches. ``"nystrom"``: arXiv
            2212.01127, section 3 (``eigh``), and arXiv 2009.11392 (``svd``); ``"singlepass"``:
            arXiv 0909.4061, section 5.5; ``"auto"``: the better of these two, by the test columns
            that choose the core (without such a choice ``nystrom``); ``"oversampled"``: arXiv
            1902.08651, section 2; ``"hmt"``: arXiv 0909.4061, sections 5.1 and 5.3, with a second
            round of products; ``"krylov"``: leading pairs to a tolerance, in rounds (Golub and
            Underwood 1977; for ``svd`` block Golub-Kahan). Left out of a spec: ``"auto"`` for
            ``svd``, ``"nystrom"`` for ``eigh``, or that of the run that goes on.
        core: How many singular values of the core are inverted, at most ``measurements``.
            ``"auto"``: chosen on a third of the test columns. ``hmt`` inverts none, and takes only
            ``"auto"``.
        rank: How many values and vectors are returned, at most ``measurements``. ``"all"``: as many
            as the method found; in ``krylov`` 20.
        vectors: ``"stored"``: the vectors are written out; ``"implicit"``: only the small
            transform is, and vectors are computed from the sketch as they are read.
        power_iterations: For ``hmt`` only: rounds of products (two for ``svd``) that sharpen the
            range (arXiv 0909.4061, section 4.5).
        which: For ``krylov`` only: which eigenvalues are looked for, and come first. ``"LM"``: of
            largest magnitude; ``"LA"``: largest; ``"SA"``: smallest, the most negative.
    """

    section = "recovery"
    method: str = values.checked(values.one_of(*METHODS), "nystrom")
    core: int | str = values.checked(values.integer(1, word="auto"), "auto")
    rank: int | str = values.checked(values.integer(1, word="all"), "all")
    vectors: str = values.checked(values.one_of(*VECTORS), "stored")
    power_iterations: int = values.checked(values.integer(0, MOST_POWER_ITERATIONS), 0)
    which: str = values.checked(values.one_of(*ORDERS), "LM")
    states_method: bool = field(default=True, init=False, repr=False, compare=False)
    """Whether the method was asked for; where not, that of a planned run is as good."""
    states_rank: bool = field(default=True, init=False, repr=False, compare=False)
    """Whether so many pairs were asked for; where not, an operator may have fewer."""

    def as_json(self) -> dict[str, Any]:
        """Returns the settings that decide the numbers, as JSON values."""
        extra: dict[str, Any] = {}
        if self.power_iterations:
            extra["power_iterations"] = self.power_iterations
        if self.which != "LM":
            extra["which"] = self.which
        return {"method": self.method, "core": self.core, "rank": self.rank} | extra


def _of_default_method(kind: str, table: Mapping[str, Any]) -> RecoverySpec:
    """Makes settings that state no method; they get the default one of the kind."""
    method = DEFAULTS["svd" if kind == "svd" else "eigh"]
    made: RecoverySpec = values.from_table(
        RecoverySpec, {"method": method, **table}, "recovery", _elsewhere
    )
    object.__setattr__(made, "states_method", False)
    return made


def _of_default_rank(settings: RecoverySpec) -> RecoverySpec:
    """Makes settings of ``krylov`` that state no rank; they get the default one."""
    made = dataclasses.replace(settings, rank=PAIRS)
    object.__setattr__(made, "states_rank", False)
    return made


def _elsewhere(section: str, key: str) -> str:
    """Says in which table of a spec an unknown key of another table stands, as did_you_mean does.

    Args:
        section: The table in which it is unknown; empty for the top of a spec.
        key: The key.
    """
    tables = {"": Spec, "operator": OperatorSpec, "sketch": SketchSpec, "recovery": RecoverySpec}
    home = {name: place for place, kind in tables.items() for name in values.keys_of(kind)}
    if key in home:
        place = f"in the table [{home[key]}]" if home[key] else "at the top, before any table"
        return f"; {key} stands {place}"
    near = did_you_mean(key, values.keys_of(tables[section]))
    if section == "operator":
        return f"; arguments of the factory stand in the table [operator.args]{near}"
    if not near and (near := did_you_mean(key, home)):
        name = near.removeprefix("; did you mean ").removesuffix("?")
        return f"; did you mean {f'{home[name]}.' * bool(home[name])}{name}?"
    return near


@tells_keywords
@dataclass(frozen=True)
class Spec(values.Checked):
    """A spec: all that a user asks for, in a spec file or in Python.

    Attributes:
        measurements: Columns of the right sketch: about the rank that is hoped for, and more; at
            most the smaller side of the operator. With ``tolerance``, at most so many. For
            ``krylov`` it may be left out; it is the most in all rounds.
        kind: ``"eigh"``: the operator is Hermitian, definite or not; ``"svd"``: any operator, tall
            or wide, which must have an adjoint.
        storage: Instead of ``measurements``: how much the sketches may take on disk, such as
            ``"10 GiB"``; the sizes are chosen to fit.
        tolerance: Relative error, of the Frobenius norm, at which a run that measures in growing
            rounds may stop. Needs ``nystrom``, ``singlepass`` or ``auto``, and 10 test columns.
        pairs_tolerance: For ``krylov``: the relative error to which ``recovery.rank`` pairs are to
            be known when the rounds end, by default 1e-4. Where it is given, or ``rounds`` or
            ``start`` is, the method is ``krylov`` unless ``recovery.method`` says another.
        rounds: For ``krylov``: with ``pairs_tolerance`` the most rounds, else their number. A round
            of ``svd`` applies the operator or its adjoint.
        round_width: For ``krylov``: columns of a round, by default 16. It decides the numbers.
        seed: Seed of all test matrices.
        dtype: Type of the operator's products, and of the vectors. Left out: what the operator
            states as its own, if it is one of these four, else float32; float32 also where
            ``operator.shape`` and ``sketch.block`` are given, so that planning loads no operator.
        operator: See :class:`OperatorSpec`; a mapping will do.
        sketch: See :class:`SketchSpec`; a mapping will do.
        recovery: See :class:`RecoverySpec`; a mapping will do.
        folder: The folder to which a ``"file.py:function"`` factory is relative; by default the
            current one, or that of the spec file.
        start: For ``krylov``: the run of an earlier, similar operator, whose leading vectors make
            the second block; or the folder of one of its results. A round then has by default as
            many columns as pairs are looked for, from 16 to 64. Relative to ``folder``, or a URL.

    Raises:
        UsageError: If a value is not allowed, or both or none of ``measurements`` and ``storage``
            are given, of which ``krylov`` needs none; names the key.
    """

    measurements: int | None = values.checked(values.optional(values.integer(1)), None)
    kind: str = values.checked(values.one_of(*KINDS), "eigh")
    storage: str | None = values.checked(values.optional(values.text), None)
    tolerance: float | None = values.checked(values.optional(values.tolerance), None)
    pairs_tolerance: float | None = values.checked(values.optional(values.tolerance), None)
    rounds: int | None = values.checked(values.optional(values.integer(1, MOST_ROUNDS)), None)
    round_width: int | None = values.checked(values.optional(values.integer(1)), None)
    seed: int = values.checked(values.integer(0, MAX_SEED), 1)
    dtype: str | None = values.checked(values.optional(values.one_of(*DTYPES)), None)
    operator: OperatorSpec = values.checked(
        values.section(OperatorSpec, _elsewhere), default_factory=OperatorSpec
    )
    sketch: SketchSpec = values.checked(
        values.section(SketchSpec, _elsewhere), default_factory=SketchSpec
    )
    recovery: RecoverySpec = values.checked(
        # A table, in which no method is named: what else is asked for may mean another.
        values.section(RecoverySpec, _elsewhere),
        default_factory=dict,
    )
    folder: Path = field(default_factory=Path.cwd, compare=False)
    start: str | None = values.checked(values.optional(values.text), None)

    def __post_init__(self) -> None:
        recovery: Any = self.recovery
        if isinstance(recovery, Mapping) and "method" not in recovery:
            by_pairs = (self.pairs_tolerance, self.rounds, self.start) != (None, None, None)
            if by_pairs:
                recovery = {"method": PAIRS_METHOD, **recovery}
            else:
                recovery = _of_default_method(self.kind, recovery)
            object.__setattr__(self, "recovery", recovery)
        super().__post_init__()
        method = METHODS[self.recovery.method]
        if method.orthogonal and self.recovery.rank == "all":
            object.__setattr__(self, "recovery", _of_default_rank(self.recovery))
        if self.measurements is None and self.storage is None and not method.orthogonal:
            pairs = "pairs_tolerance if leading pairs are what you want"
            if self.pairs_tolerance is not None:
                pairs = f'method = "{PAIRS_METHOD}", which pairs_tolerance is for'
            raise UsageError(
                'the key measurements is missing; give it, or storage = "10 GiB" to have it '
                f"chosen, or {pairs}"
            )
        if self.measurements is not None and self.storage is not None:
            raise UsageError(
                f"measurements = {self.measurements} and storage = {self.storage!r}: give one, the "
                "other follows from it"
            )

    @property
    def products_dtype(self) -> str:
        """What ``dtype`` says; float32 as long as it is left out."""
        return self.dtype or DEFAULT_DTYPE

    @classmethod
    def from_table(cls, table: Mapping[str, Any], folder: Path | None = None) -> Spec:
        """Makes a spec from nested tables, as they come from TOML.

        Args:
            table: Keys and values; the tables ``operator``, ``sketch`` and ``recovery`` as
                mappings.
            folder: The folder to which a ``"file.py:function"`` factory is relative; by default
                the current one.

        Raises:
            UsageError: If a key is unknown, or a value is not allowed; names it.
        """
        made: Spec = values.from_table(cls, table, "", _elsewhere)
        return dataclasses.replace(made, folder=folder) if folder else made

    @classmethod
    def from_toml(cls, path: str | Path, overrides: Sequence[str] = ()) -> Spec:
        """Reads a spec file.

        Args:
            path: The TOML file.
            overrides: ``"section.key=value"`` texts that replace what the file says; a value that
                is not TOML is taken as text.

        Raises:
            UsageError: If the file cannot be read or is not TOML, or as for :meth:`from_table`.
        """
        path = Path(path)
        try:
            # Editors of Windows begin a file with a mark of its encoding.
            table = tomllib.loads(path.read_bytes().removeprefix(codecs.BOM_UTF8).decode())
        except OSError as error:
            raise UsageError(
                f"cannot read the spec file {path}: {error.strerror}; give the path of a TOML file"
            ) from error
        except (ValueError, RecursionError) as error:
            # Not only TOMLDecodeError: an integer of over 4300 digits raises a plain ValueError.
            raise UsageError(f"{path} is not a TOML file: {error}; correct it") from error
        for text in overrides:
            _override(table, text)
        try:
            return cls.from_table(table, folder=path.resolve().parent)
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from error


def parse_arguments(texts: Sequence[str]) -> dict[str, Any]:
    """Parses keyword arguments of a factory from ``"key=value"`` texts.

    Raises:
        UsageError: If a text has another form.
    """
    table: dict[str, Any] = {}
    for text in texts:
        _override(table, text, option="--arg")
    return table


def _override(table: dict[str, Any], text: str, option: str = "--set") -> None:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"{option} {text}: must have the form key=value or section.key=value")
    parsed: Any = value.strip()
    # A value with a line break could smuggle in further keys: then it counts as text.
    try:
        lines = tomllib.loads(f"value = {value}")
    except ValueError:
        lines = {}
    except RecursionError:
        raise UsageError(
            f"{option} {key}: the value is nested too deeply; set a shorter one"
        ) from None
    if lines.keys() == {"value"}:
        parsed = lines["value"]
    *sections, last = (part.strip() for part in key.split("."))
    for name in sections:
        inner = table.setdefault(name, {})
        if not isinstance(inner, dict):
            raise UsageError(f"{option} {text}: {name} is not a table; set {name} itself")
        table = inner
    table[last] = parsed
