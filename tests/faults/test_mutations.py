"""Damage of any file of a run: named, or the values that are read are unchanged."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path

import pytest

from faults.attacks import seeded
from faults.cases import CASES, state_of
from faults.mutations import ANY, RESEALED, Others
from skerch_ooc.base.errors import CorruptError

RUNS = (
    "eigh nystrom", "svd oversampled", "svd hmt", "eigh implicit", "eigh ssrft complex",
    "eigh updated", "eigh by stages, row shards", "eigh by shares, many shards",
    "eigh in pieces",
)  # fmt: skip
MUTATIONS = ANY | RESEALED
SOAKED = 16
"""Mutations of each kind and run in the soak."""


@pytest.fixture(scope="module")
def finished(zygote, tmp_path_factory):
    """Finished runs, each with one of another seed, and the state that they are in."""

    @cache
    def finished_run(name):
        folder = tmp_path_factory.mktemp("finished")
        case = CASES[name]
        case.write(folder)
        for command in case.commands:
            assert zygote(folder, *command).code == 0
        (folder / "foreign").mkdir()
        case.write(folder / "foreign")
        for command in case.commands:
            seed = ("--set", "seed=2") if "spec.toml" in command else ()
            assert zygote(folder / "foreign", *command, *seed).code == 0
        return folder, state_of(folder / "run")

    return finished_run


def files_of(run: Path) -> list[Path]:
    """All that a run consists of, by paths within it."""
    return sorted(path.relative_to(run) for path in run.glob("**/*") if path.is_file())


def damaged_copy(finished: Path, folder: Path, kind: str, chance) -> tuple[Path, Path, bool]:
    """A copy of a run with a file damaged: the run, the file, and whether it is another now."""
    run = folder / "run"
    shutil.copytree(finished / "run", run)
    suffixes = (".h5",) if kind in RESEALED else (".h5", ".json", ".jsonl")
    names = [name for name in files_of(run) if name.suffix in suffixes]
    # Each kind of file as often as the others, however many there are of it.
    kinds = sorted({(name.parts[0], name.suffix) for name in names})
    chosen = chance.choice(kinds)
    path = run / chance.choice([n for n in names if (n.parts[0], n.suffix) == chosen])
    before = path.read_bytes()
    MUTATIONS[kind](path, chance, Others(run, finished / "foreign/run"))
    is_other = path.is_symlink() or not path.is_file() or path.read_bytes() != before
    return run, path, is_other


def forget_what_follows(run: Path, path: Path) -> None:
    """Removes what was made of a file, so that it has to be read again."""
    stage = path.relative_to(run).parts[0]
    for later in {"shards": ("sketch", "results"), "sketch": ("results",)}.get(stage, ()):
        shutil.rmtree(run / later)
        (run / later).mkdir()


def require_named(ended, path: Path, run: Path) -> None:
    """A damage that is noticed ends with a designed code, and the file is named."""
    assert ended.code in (2, 4, 5), ended
    inside = path.relative_to(run)
    # An amendment that is gone is missed by its number or by what it planned.
    assert any(part in ended.err for part in (inside.name, str(inside.parent))), ended.err


def is_done_with(name: str) -> bool:
    """Whether a finished run can do without a file."""
    return name.startswith("sketch/") or name.endswith("/recipe.h5")


def require_same_numbers(run: Path, path: Path, expected, named: bool) -> None:
    """What a run says is the same; what it did not need to read is refused to whoever reads it."""
    found, refused = {}, ""
    try:
        found = state_of(run)
    except CorruptError as error:
        refused = str(error)
    if refused:
        # Vectors of a finished run, or sums that have done their service: verify has told of them.
        assert (named, path.name in refused) == (True, True), refused
        return
    # Sums and recipes that have done their service are not made again; nor are they looked at, but
    # by verify.
    gone = {name for name in expected.keys() - found.keys() if not is_done_with(name)}
    assert gone == set(), path
    damaged = path.relative_to(run).as_posix()
    left = {name for name in found if not (named and name == damaged and is_done_with(name))}
    assert {name: found[name] for name in left} == {name: expected[name] for name in left}, path


def try_damage(zygote, tally, finished, folder, name, kind, chance) -> None:
    source, expected = finished(name)
    with tally.fault(f"damage: {kind}", name) as attempt:
        run, path, is_other = damaged_copy(source, folder, kind, chance)
        named = False
        verified = zygote(folder, "verify", "run")
        if verified.code != 0:
            require_named(verified, path, run)
            named = True
        # What is there, and not what it was, does not verify; logs are but decoration.
        decoration = path.relative_to(run).parts[0] == "logs"
        assert named or decoration or not is_other or not path.exists(), (path, verified)
        forget_what_follows(run, path)
        again = zygote(folder, "run", "--run", "run", "--threads", 1)
        if again.code == 0:
            require_same_numbers(run, path, expected, named)
        else:
            require_named(again, path, run)
        attempt.ended("named" if named or again.code else "harmless")


@pytest.mark.sampled(8)
@pytest.mark.parametrize("kind", MUTATIONS)
@pytest.mark.parametrize("name", RUNS[:2])
def test_damage_is_named_or_harmless(zygote, tally, finished, tmp_path, name, kind):
    try_damage(zygote, tally, finished, tmp_path, name, kind, seeded(name, kind))


@pytest.mark.soak
@pytest.mark.parametrize("kind", MUTATIONS)
@pytest.mark.parametrize("name", RUNS)
def test_much_damage_is_named_or_harmless(zygote, tally, finished, tmp_path, name, kind):
    chance = seeded(name, kind, "soak")
    for number in range(SOAKED):
        folder = tmp_path / str(number)
        folder.mkdir()
        try_damage(zygote, tally, finished, folder, name, kind, chance)
        shutil.rmtree(folder)
