"""Advice: what to do next with a result, for the terminal and the report page to say."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from skerch_ooc.base.errors import UsageError
from skerch_ooc.base.figures import short
from skerch_ooc.base.noise_kinds import FEW_COLUMNS
from skerch_ooc.planning.krylov import PAIRS, PAIRS_TOLERANCE, ROUND_WIDTH, most_rounds
from skerch_ooc.planning.methods import METHODS, WHOLE_METHOD
from skerch_ooc.planning.plan import Plan, source_of
from skerch_ooc.planning.spec import RecoverySpec
from skerch_ooc.results.assess import CONFIDENCE, Assessment, count_within, tolerance_factor
from skerch_ooc.results.pairs import KnownPairs
from skerch_ooc.stages.recover.problems import serves
from skerch_ooc.store.result_files import VALUES, command_of, has_result, result_name, result_path
from skerch_ooc.store.rundir import Run
from skerch_ooc.store.sealed import SealedFile
from skerch_ooc.store.sketch import known_rounds

_LARGE = 0.1
_FLAT = 8.0
_ROUNDS_BEYOND = 6
"""About so many rounds more than the pairs fill are needed for most spectra."""

_VALUE = {"eigh": "eigenvalue", "svd": "singular value"}
_SURE_ENOUGH = 0.9
_NEW_RUN = "skerch-ooc run SPEC --run OTHER-DIR"


@dataclass(frozen=True)
class Step:
    """A step that would make a result better.

    Attributes:
        text: What the step is good for, and what it costs.
        command: What to type, on a command line or in Python.
    """

    text: str
    command: str


@dataclass(frozen=True)
class Advice:
    """What to do next with a result.

    Attributes:
        verdict: Whether the error is small enough; empty if the error is not known.
        steps: What would make the error smaller, or surer; the cheapest first.
    """

    verdict: str
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Found:
    """A result, as advice needs it.

    Attributes:
        run: The run of the result.
        name: The folder of the result.
        settings: The settings that it was recovered with.
        assessment: The quality of the result.
        directory: The run directory as commands name it.
    """

    run: Run
    name: str
    settings: RecoverySpec
    assessment: Assessment
    directory: str

    @classmethod
    def of(cls, run: Run, name: str, assessment: Assessment) -> Found:
        """Describes a result on disk that was just assessed."""
        settings = RecoverySpec(**SealedFile(result_path(run, name)).identity["settings"])
        return cls(run, name, settings, assessment, shlex.quote(str(run.directory)))

    @property
    def plan(self) -> Plan:
        """The plan in force."""
        return self.run.plan

    @property
    def factories(self) -> list[str | None]:
        """The factory of each part of the operator; ``None`` for an object of Python."""
        return [source_of(self.plan, part).factory for part in self.plan.parts]

    @property
    def good(self) -> tuple[int, int] | None:
        """How many values are surely known to 1 %, of how many; ``None`` if nothing tells."""
        arrays = SealedFile(result_path(self.run, self.name)).arrays
        bounds = self.assessment.bounds_of(arrays.get("residuals"))
        if bounds is None:
            return None
        return count_within(arrays[VALUES[self.plan.identity.kind]], bounds, 0.01), len(bounds)

    @property
    def is_flat(self) -> bool:
        """Whether most of what is missing is a long tail, as large as the values that were found.

        Then the error is far above the values in the middle of those that were found.
        """
        error, relative = self.assessment.error, self.assessment.relative_error
        if error is None or relative is None or relative <= _LARGE:
            return False
        file = SealedFile(result_path(self.run, self.name))
        values = file.arrays[VALUES[self.plan.identity.kind]]
        return bool(error > _FLAT * abs(values[len(values) // 2])) if len(values) else False

    @property
    def rounding(self) -> float:
        """A relative error that rounding alone may cause."""
        return 100 * self.plan.identity.epsilon


def percent(number: float) -> str:
    """Writes a relative error for people, in plain characters."""
    if not 1e-4 <= number < 10:
        return short(number)
    return f"{100 * number:.{2 if number < 0.1 else 3}g} %"


def advise(found: Found, share: Callable[[float], str] = percent) -> Advice:
    """Says what to do next with a result.

    Args:
        found: The result.
        share: Writes a relative error.
    """
    relative = found.assessment.relative_error
    if found.assessment.error is None:
        return Advice("", (_tested(found, 30, "To know the error, plan with "
                                   "sketch.test_measurements of at least 10"),))  # fmt: skip
    if relative is None:
        return Advice("Nothing: there is nothing to be found.", ())
    if (pairs := found.assessment.pairs) is not None:
        return Advice(_judged_pairs(pairs, found.settings.which), tuple(_more_pairs(found, pairs)))
    if relative <= found.rounding:
        return Advice(_judged(found, relative, share), ())
    steps = list(_improvements(found))
    if found.assessment.bounds(1.5) < _SURE_ENOUGH:
        more = max(30, 2 * found.plan.reach("test"))
        steps.append(
            _tested(found, more, "With more test vectors, in a new plan, the error would be surer")
        )
    return Advice(_judged(found, relative, share), tuple(steps))


def _judged_values(found: Found) -> str:
    """Says of a large error how many values are known all the same."""
    value = _VALUE[found.plan.identity.kind]
    if found.good is None:
        return (
            "This error is large, but it is that of the whole: how well each single "
            f"{value} is known, this run does not tell."
        )
    good, of = found.good
    if not good:
        return f"This error is large, and no {value} is known to 1 %."
    return (
        f"This error is large, but it is that of the whole: {good} of {of} {value}s are known to "
        "1 %."
    )


def _judged(found: Found, relative: float, share: Callable[[float], str]) -> str:
    tolerance = found.plan.amendments[-1].tolerance
    if relative >= 1:
        return "This is no better than zero: give more measurements, or another method."
    if tolerance is not None and found.name == "default":
        sure_of = relative * tolerance_factor(found.plan, found.assessment.test_measurements)
        met = "is met" if sure_of <= tolerance else "is not met"
        return (
            f"The tolerance of {share(tolerance)} {met}: with {100 * CONFIDENCE:.0f} % "
            f"probability the error is below {share(sure_of)}."
        )
    if relative > _LARGE:
        return _judged_values(found)
    if relative <= found.rounding:
        return f"Nothing: that is about as small as {found.plan.identity.dtype} allows."
    return "If that is small enough, nothing."


def _judged_pairs(pairs: KnownPairs, which: str) -> str:
    """Says whether the pairs that were looked for are known."""
    if pairs.found < pairs.wanted:
        return (
            f"There are {pairs.found} pairs, not {pairs.wanted}: the rounds show no more of the "
            "operator."
        )
    if pairs.tolerance is not None and pairs.met >= pairs.wanted and not pairs.confirmed:
        return (
            "All are known to the tolerance, but copies of a value may be missing: no test vectors "
            "were left to look for them. A new run with more of them, or a larger round_width, "
            "would tell."
        )
    if not pairs.are_met:
        said = f"Not all are known well enough: {pairs.text()}."
        if which != "LM" and pairs.met < pairs.wanted:
            said += (
                " Where values lie close together at that end, rounds of the inverse find them in "
                "far fewer: docs/operators.md, on smallest eigenvalues."
            )
        return said
    if _is_loose(pairs):
        return "The bound of each pair tells how well it is known; these rounds know some badly."
    return "Nothing, if these pairs are what you want; the error is that of the whole operator."


def _is_loose(pairs: KnownPairs) -> bool:
    """Whether pairs of a given number of rounds, without a tolerance, are not known to 1 %."""
    return pairs.tolerance is None and pairs.worst is not None and pairs.worst > 0.01


def _more_pairs(found: Found, pairs: KnownPairs) -> Iterator[Step]:
    """Yields what would find more pairs, or make them surer."""
    if found.run.cleaned() is not None:
        return
    more = f"skerch-ooc extend {found.directory}"
    if any(named is None for named in found.factories):
        more += " --plan-only"
    again = command_of(found.run, found.name, vars(found.settings), found.directory)
    *_, last = known_rounds(found.run)
    if found.name != "default" and pairs.rounds < last.number:
        yield Step(f"It is of {pairs.rounds} rounds, of which there are more by now", again)
        return
    if found.settings.which != found.plan.recovery.which:
        # Rounds to a tolerance end when the pairs of the plan are known.
        if not pairs.are_met:
            yield Step(
                f"Further rounds, {found.plan.later_columns} products each, and these pairs again",
                f"{more} --rounds {2 * pairs.rounds} && {again}",
            )
        return
    if pairs.met < pairs.wanted <= pairs.found and not pairs.are_met:
        rounds = 2 * pairs.rounds
        yield Step(
            f"Further rounds, {found.plan.later_columns} products each, go on from there",
            f"{more} --rounds {rounds} --pairs-tolerance {pairs.tolerance:g}",
        )
    elif _is_loose(pairs) and not pairs.exhausted:
        text = "Further rounds go on from there, and know them better"
        yield Step(text, f"{more} --rounds {2 * pairs.rounds}")
    elif pairs.are_met and pairs.tolerance and pairs.tolerance >= 400 * found.plan.identity.epsilon:
        yield Step(
            "To know them better, a smaller tolerance takes a few rounds more",
            f"{more} --pairs-tolerance {pairs.tolerance / 100:g}",
        )
    whole = dataclasses.replace(found.settings, method=WHOLE_METHOD, rank="all", which="LM")
    if not _is_there(found, whole):
        yield Step(
            "From the same rounds an approximation of the whole operator, at no product",
            _recovered(found, whole),
        )


def _improvements(found: Found) -> Iterator[Step]:
    """Yields what would make the error smaller, the cheapest first."""
    if found.run.cleaned() is None:
        yield from _recoveries(found)
    if found.is_flat and found.plan.method.is_one_pass:
        yield _rounds_instead(found)
        return
    if found.plan.krylov is not None:
        yield from _more_rounds(found)
        return
    yield from _more_measurements(found)
    relative, rank = found.assessment.relative_error, found.settings.rank
    if isinstance(rank, int) and relative is not None and relative > _LARGE:
        yield Step(
            f"If the leading {rank} are what you want, and not the whole, rounds of products find "
            f"each to {PAIRS_TOLERANCE:g}, with a bound",
            _pairs_anew(found),
        )


def _more_measurements(found: Found) -> Iterator[Step]:
    """Yields how more measurements would be made."""
    most, has = min(found.plan.identity.shape), found.plan.reach("right")
    more = min(2 * has, most)
    if more <= has:
        signs = found.plan.identity.noise.get("right") == "rademacher"
        missed = (found.assessment.relative_error or 0) > found.rounding
        if signs and missed and found.assessment.core < most <= FEW_COLUMNS:
            yield Step(
                "As many columns are measured as there can be; random signs of so few may depend "
                "on each other, which gaussian numbers do not",
                _planned_anew(found, "sketch.noise", "gaussian"),
            )
        return
    if _is_extensible(found):
        text = "More measurements make it smaller, and only the new ones are measured"
        command = f"skerch-ooc extend {found.directory} --measurements {more}"
        if any(named is None for named in found.factories):
            text += f"; then repeat the call in Python, with measurements={more}"
            command += " --plan-only"
        yield Step(text, command)
    else:
        planned = found.plan.recovery
        can_sharpen = planned.power_iterations < found.plan.method.most_power_iterations
        sharper = ", or one more of power_iterations," * can_sharpen
        yield Step(
            f"A new plan, else as this one, with more measurements{sharper} would make it smaller",
            _planned_anew(found, "measurements", more),
        )


def _more_rounds(found: Found) -> Iterator[Step]:
    """Yields what would make the error of the whole smaller where it was made of rounds."""
    if found.run.cleaned() is not None:
        return
    *_, last = known_rounds(found.run)
    if sum(block.columns for block in last.blocks) >= min(found.plan.identity.shape):
        return
    more = " --plan-only" * any(named is None for named in found.factories)
    yield Step(
        "Further rounds make it smaller, and go on from those there are",
        f"skerch-ooc extend {found.directory} --rounds {2 * last.number}{more}",
    )


def _rounds_instead(found: Found) -> Step:
    """Says what rounds for the leading pairs would cost, where one pass is no good."""
    plan = found.plan
    width = min(ROUND_WIDTH, plan.reach("right"))
    usual = PAIRS // width + _ROUNDS_BEYOND
    products = width * usual
    if plan.identity.kind == "eigh" and _is_extensible(found):
        more = " --plan-only" * any(named is None for named in found.factories)
        command = f"skerch-ooc extend {found.directory} --pairs-tolerance {PAIRS_TOLERANCE:g}{more}"
    else:
        command = _pairs_anew(found)
        products *= 1 + (plan.identity.kind == "svd")
    return Step(
        "The spectrum falls too slowly for one pass, and more measurements would help little. If "
        f"the leading pairs are what you want, rounds of products find them to "
        f"{PAIRS_TOLERANCE:g}: {PAIRS} that stand apart take some {products} products, {PAIRS} "
        "that lie close together several times as many",
        command,
    )


def _pairs_anew(found: Found) -> str:
    """Returns the command that makes another run with rounds for the leading pairs."""
    planned, identity = found.plan.recovery, found.plan.identity
    if identity.factory is None:
        rank = f"rank={planned.rank}, " * isinstance(planned.rank, int)
        return f"ooc.{identity.kind}(A, {rank}pairs_tolerance={PAIRS_TOLERANCE:g}, run_dir=...)"
    pairs = planned.rank if isinstance(planned.rank, int) else PAIRS
    # The measurements of the spec would be the most products of all rounds, which are too few.
    most = ROUND_WIDTH * most_rounds(identity.kind, pairs, ROUND_WIDTH)
    command = (
        f"{_NEW_RUN} --set pairs_tolerance={PAIRS_TOLERANCE:g} --set recovery.method=krylov "
        f"--set measurements={most}"
    )
    return command + " --set recovery.power_iterations=0" * bool(planned.power_iterations)


def _recoveries(found: Found) -> Iterator[Step]:
    """Yields other settings on the same sketch that might have a smaller error."""
    whole = dataclasses.replace(found.settings, rank="all")
    if isinstance(found.settings.rank, int) and found.settings.rank < found.assessment.core and (
        not _is_there(found, whole)
    ):  # fmt: skip
        yield Step(
            f"The rank is limited to {found.settings.rank}. A higher one costs no product",
            _recovered(found, whole),
        )
    if not METHODS[found.settings.method].is_one_pass:
        # Its products were made for an accuracy that no other method gets from its first round.
        return
    known = (found.settings.method, *METHODS[found.settings.method].compares)
    for method in METHODS:
        settings = dataclasses.replace(
            found.settings, method=method, power_iterations=0, core="auto"
        )
        if method not in known and not METHODS[method].compares and _is_served(found, settings):
            yield Step(
                "Another method on the same sketch costs no product", _recovered(found, settings)
            )
            return


def _is_served(found: Found, settings: RecoverySpec) -> bool:
    """Whether the sketch serves settings without a product, and there is no such result yet."""
    try:
        serves(found.plan, settings)
    except UsageError:
        return False
    return METHODS[settings.method].is_one_pass and not _is_there(found, settings)


def _is_there(found: Found, settings: RecoverySpec) -> bool:
    return has_result(found.run, result_name(settings, found.plan))


def _recovered(found: Found, settings: RecoverySpec) -> str:
    wanted = settings.as_json() | {"vectors": settings.vectors}
    return command_of(found.run, "default", wanted, found.directory)


def _is_extensible(found: Found) -> bool:
    """Whether the run can grow: its method nests, and all of its operators can be built again."""
    if not found.plan.method.nests or found.run.cleaned() is not None:
        return False
    return found.plan.summands == 1 or None not in found.factories


def _tested(found: Found, columns: int, text: str) -> Step:
    return Step(text, _planned_anew(found, "sketch.test_measurements", columns))


def _planned_anew(found: Found, key: str, value: int | str) -> str:
    """Returns the command that makes another run with one value of the spec replaced."""
    again = ", then the same updates" * (found.plan.summands > 1)
    if found.plan.identity.factory is not None:
        return f"{_NEW_RUN} --set {key}={value}{again}"
    kind, name = found.plan.identity.kind, key.rpartition(".")[2]
    options: dict[str, int | str] = {"measurements": found.plan.reach("right"), name: value}
    if found.plan.krylov is not None:
        options = {"round_width": found.plan.later_columns, name: value}
    given = ", ".join(f"{option}={chosen!r}" for option, chosen in options.items())
    return f"ooc.{kind}(A, {given}, run_dir=...){again}"
