"""The run directory: creating, opening and amending a run; its fingerprints, receipts and logs."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skerch_ooc.base import disk_errors, files
from skerch_ooc.base.errors import CorruptError, IncompleteError, OocError, UsageError, quoted
from skerch_ooc.base.html import never_raising, table
from skerch_ooc.base.object_trial import require_first_wins
from skerch_ooc.base.parameter_layout import ParameterLayout
from skerch_ooc.base.places import ObjectPath, is_object, place, removal
from skerch_ooc.base.provenance import provenance
from skerch_ooc.base.resources import peak_memory
from skerch_ooc.planning.plan import FUNCTIONALS, Amendment, Identity, Plan, require_sound
from skerch_ooc.store import names
from skerch_ooc.store.cleaned import Cleaned, mark_path, read_cleaned
from skerch_ooc.store.names import AMENDMENTS

log = logging.getLogger("skerch_ooc")

PLAN = names.PLAN.name()


@dataclass(frozen=True)
class Run:
    """A planned run: a directory and the plan in force when it was opened.

    Attributes:
        directory: The run directory; it may be moved while the run is not open.
        plan: The plan in force.
    """

    directory: Path
    plan: Plan

    def __repr__(self) -> str:
        return f"Run({str(self.directory)!r}, {self.plan!r})"

    @never_raising
    def _repr_html_(self) -> str:
        kind = names.RESULT[self.plan.identity.kind]
        results = ", ".join(path.parent.name for path in kind.found_in(self.directory))
        rows = [("directory", self.directory), *self.plan.figures, ("results", results or "none")]
        return table("Run", rows)

    @property
    def shards(self) -> Path:
        """The folder of the column shards, which holds nothing else."""
        return self.directory / names.SHARDS

    @property
    def sketch(self) -> Path:
        """The folder of row shards, sums and bases, which all are derived from sketches."""
        return self.directory / names.SKETCH

    @property
    def results(self) -> Path:
        """The folder of the results, with a folder for each."""
        return self.directory / names.RESULTS

    @property
    def logs(self) -> Path:
        """The folder of receipts and logs, which no stage needs."""
        return self.directory / names.LOGS

    def fingerprint_path(self, part: int) -> Path:
        """Returns the path of the fingerprint of a part."""
        return self.directory / names.FINGERPRINT.name(of_part=part)

    def fingerprint(self, part: int = 0) -> dict[str, Any] | None:
        """Reads the published fingerprint of a part; ``None`` if none was measured yet.

        Raises:
            CorruptError: If the file is damaged, or of another run or part.
        """
        path = self.fingerprint_path(part)
        try:
            value = files.read_signed(path, "; restore it from a copy")
        except FileNotFoundError:
            return None
        if value.get("run") != self.plan.run_id:
            raise CorruptError(
                f"{path} belongs to another run ({str(value.get('run'))[:16]}...); restore it "
                "from a copy"
            )
        if not _is_fingerprint(value):
            raise CorruptError(f"{path} is no fingerprint of an operator; restore it from a copy")
        # A fingerprint of a run of one part does not state the part.
        if value.get("part", part) != part:
            raise CorruptError(
                f"{path} is the fingerprint of part {value['part']}; restore that of part {part} "
                "from a copy"
            )
        return value

    def publish_fingerprint(self, value: dict[str, Any], part: int = 0) -> None:
        """Publishes the fingerprint of a part, unless another process has done so already."""
        value = value | {"run": self.plan.run_id}
        if len(self.plan.parts) > 1:
            value["part"] = part
        files.publish_bytes(files.signed_line(value), self.fingerprint_path(part))

    def layout(self) -> ParameterLayout | None:
        """Reads the layout of the parameters that vectors are made of; ``None`` if there is none.

        Raises:
            CorruptError: If the file is damaged, or of another run.
        """
        return read_layout(self.directory, self.plan.run_id, self.plan.identity.shape[1])

    def publish_layout(self, layout: ParameterLayout | None) -> None:
        """Publishes the layout that an operator states, unless that is done already."""
        path = layout_path(self.directory)
        if layout is None or files.is_taken(path):
            return
        value = {"run": self.plan.run_id, "parameters": layout.as_json()}
        files.publish_bytes(files.signed_line(value), path)

    def cleaned(self) -> Cleaned | None:
        """Reads the mark of a run whose shards were removed; ``None`` if they never were.

        Raises:
            CorruptError: If the mark is damaged, or of another run.
        """
        return read_cleaned(self.directory, self.plan.run_id)

    def require_shards(self) -> None:
        """Refuses to go on if ``clean --shards`` removed the column shards of this run.

        It does not check that all shards are there.

        Raises:
            IncompleteError: If they were removed; says when, and which results there are.
            CorruptError: If the mark that they were removed is damaged.
        """
        mark = self.cleaned()
        if mark is not None:
            lost = mark.lost_results(self.directory, self.plan.identity.kind)
            there = ", ".join(sorted(set(mark.results).difference(lost)))
            said = f"its results are there: {there}" if there else "none of its results is there"
            if lost:
                said += f"; restore from a copy what is gone: {', '.join(lost)}"
            raise IncompleteError(
                f"the column shards of {self.directory} were removed by clean --shards on "
                f"{mark.when}, so that nothing can be measured, merged or recovered any more; "
                f"{said}. For others plan a new run. If there is a copy of the shards: put all of "
                f"them back, then {removal(mark_path(self.directory))}"
            )

    def how_to_measure(self, part: int | None = None) -> str:
        """Says how missing columns are measured, for messages.

        Args:
            part: The part whose columns are missing; by default any.
        """
        sources = [one.source for one in self.plan.parts if part in (None, one.number)]
        own = self.plan.identity.factory
        if None in [own if source is None else source.factory for source in sources]:
            return "the call in Python that measured the others, as the operator is an object there"
        return f"skerch-ooc measure {quoted(self.directory)}"

    def receipts(self) -> Iterator[dict[str, Any]]:
        """Reads the receipts: the time and memory of each task, and the host that did it."""
        return self.log("receipts")

    def log(self, name: str) -> Iterator[dict[str, Any]]:
        """Reads a log; lines that cannot be read are left out."""
        for record in files.read_json_lines(self.logs / names.LOG.name(log=name)):
            if isinstance(record, dict):
                yield record

    @contextlib.contextmanager
    def receipt_of(self, stage: str, **more: Any) -> Iterator[None]:
        """Records the time and memory of a stage on leaving the context without an error."""
        start = time.perf_counter()
        yield
        taken = {"seconds": round(time.perf_counter() - start, 6), "peak_bytes": peak_memory()}
        self.record("receipts", provenance(stage=stage, **taken, **more))

    def record(self, log_name: str, record: dict[str, Any]) -> None:
        """Appends a line to a log; if that fails, it warns, as no stage needs a log."""
        try:
            files.append_line(self.logs / names.LOG.name(log=log_name), record)
        except OSError as error:
            log.warning("cannot write the log %s: %s", log_name, error.strerror)


def layout_path(directory: Path) -> Path:
    """Returns the path of the layout of a run."""
    return directory / names.LAYOUT.name()


def read_layout(directory: Path, run_id: str, size: int) -> ParameterLayout | None:
    """Reads the layout of the parameters that vectors of a run are made of.

    Args:
        directory: The run directory.
        run_id: The id of the run that it must belong to.
        size: The length of the vectors.

    Returns:
        The layout; ``None`` if the run has none.

    Raises:
        CorruptError: If the file is damaged, or of another run.
    """
    path = layout_path(directory)
    try:
        value = files.read_signed(path, "; restore it from a copy")
    except FileNotFoundError:
        return None
    if value.get("run") != run_id:
        raise CorruptError(
            f"{path} belongs to another run ({str(value.get('run'))[:16]}...); restore it from a "
            "copy"
        )
    layout = ParameterLayout.from_json(value.get("parameters"), str(path))
    if layout.size != size:
        raise CorruptError(
            f"{path} is of {layout.size} entries, the vectors have {size}; restore it from a copy"
        )
    return layout


def require_folder(run: Run) -> None:
    """Refuses a run whose folder of column shards is gone, which would look like an empty one.

    Raises:
        IncompleteError: If the folder is gone.
    """
    if files.lacks_folder(run.shards):
        raise IncompleteError(
            f"{run.shards} is gone; put it back from a copy, or, to measure all columns anew: "
            f"mkdir {quoted(run.shards)} && {run.how_to_measure()}"
        )


def look_again(run: Run) -> None:
    """Lists the folders of a run, so that files which other hosts have published become visible."""
    derived = (*run.sketch.glob("*/"), *run.results.glob("*/"))
    for folder in (run.shards, run.sketch, *derived):
        with contextlib.suppress(OSError):
            files.look_again(folder)


def _is_fingerprint(value: dict[str, Any]) -> bool:
    """Whether a value has the form of a fingerprint: pairs of numbers, a norm, texts."""
    try:
        pairs, content = value["functionals"], dict(value.get("content") or {})
        numbers = [float(part) for pair in pairs for part in pair] + [float(value["norm"])]
        good = len(pairs) == FUNCTIONALS and all(len(pair) == 2 for pair in pairs)
        good = good and all(map(math.isfinite, numbers)) and numbers[-1] >= 0
    except (KeyError, TypeError, ValueError, OverflowError):
        return False
    return good and all(isinstance(text, str) for text in content.values())


def create_run(directory: Path, identity: Identity, amendment: Amendment) -> Run:
    """Makes a run directory, or completes one whose making was interrupted.

    Returns:
        The run; its first amendment is that of another process if that process was faster.

    Raises:
        UsageError: If the directory holds other files or a run of another identity, or cannot be
            made.
        IncompleteError: If there is no room for it.
        CorruptError: If it holds a damaged run.
    """
    try:
        files.make_folder(directory)
        _require_no_strangers(directory)
        for name in names.FOLDERS:
            (directory / name).mkdir(exist_ok=True)
        # The identity is published first. When several processes plan at once, the first to publish
        # it decides which run this is, and no other process adds an amendment for another identity.
        files.publish_bytes(identity.as_bytes(), directory / PLAN)
        if (directory / PLAN).read_bytes() != identity.as_bytes():
            raise UsageError(
                f"{directory} is being planned by another process with another spec, or was when "
                "that was killed; give a new directory, or remove this one if nobody works there: "
                f"{removal(directory, below=True)}"
            )
        files.publish_bytes(
            files.canonical_line(amendment.as_json()),
            _amendment_path(directory, amendment.number),
        )
    except OSError as error:
        raise _not_made(directory, error) from error
    return open_run(directory)


def _not_made(directory: Path, error: OSError) -> OocError:
    if error.errno in disk_errors.NO_ROOM:
        return disk_errors.cannot_write(directory, error)
    what = f"{disk_errors.remedy(error)}, or " if is_object(directory) else ""
    return UsageError(
        f"cannot make the run directory {directory}: {error.strerror}; {what}give another with "
        "--run"
    )


def require_place(directory: Path) -> None:
    """Refuses early what :func:`create_run` would refuse; makes nothing.

    Raises:
        UsageError: If the directory holds something else, or cannot be made, or lies in a store
            where the first publication does not win.
        IncompleteError: If its store does not answer.
    """
    if isinstance(directory, ObjectPath):
        try:
            _require_no_strangers(directory)
            require_first_wins(directory.store, directory.key)
        except OSError as error:
            raise _not_made(directory, error) from error
        return
    try:
        above = (directory, *directory.absolute().parents)
        existing = next(path for path in above if path.exists())
    except OSError:
        # create_run will meet the same error, and says why the directory cannot be made.
        return
    if not existing.is_dir():
        raise UsageError(
            f"cannot make the run directory {directory}: {existing} is a file; give another --run"
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(
            f"cannot make the run directory {directory}: {existing}: Permission denied; give "
            "another --run"
        )
    if existing == directory:
        _require_no_strangers(directory)


def _require_no_strangers(directory: Path) -> None:
    if (directory / PLAN).exists():
        return
    there = {path.name for path in directory.iterdir() if path.name[0] != "."}
    strangers = sorted(there - set(names.FOLDERS))
    # Another process may have published the plan after the first look, and more after the plan.
    if strangers and not (directory / PLAN).exists():
        raise UsageError(
            f"{directory} is not empty and holds no plan ({strangers[0]} is there); "
            "give a new directory"
        )


def is_planned(directory: Path) -> bool:
    """Whether a directory holds a run with a complete plan: an identity and an amendment.

    Raises:
        UsageError: If an object store refuses to say it.
        IncompleteError: If an object store does not answer.
    """
    try:
        return (directory / PLAN).exists() and _amendment_path(directory, 1).exists()
    except OSError as error:
        if not is_object(directory):
            raise
        raise _not_read(directory / PLAN, error) from error


_UNANSWERED = {errno.EIO, errno.EPROTO}
"""Where a store did not answer, or something else in its place."""


def _not_read(path: Path, error: OSError) -> OocError:
    if not is_object(path):
        advice = "give permission, or another run directory"
    elif error.errno in _UNANSWERED and (told := disk_errors.explained(error)) is not None:
        return told
    else:
        advice = disk_errors.remedy(error)
    return UsageError(f"cannot read {path}: {error.strerror}; {advice}")


def _amendment_path(directory: Path, number: int) -> Path:
    return directory / AMENDMENTS / names.AMENDMENT.name(number=number)


def amend_run(run: Run, amendment: Amendment) -> Run:
    """Appends an amendment to the plan of a run.

    Returns:
        The run with the plan now in force.

    Raises:
        UsageError: If another process has amended the plan meanwhile, the amended plan is not
            sound, or the amendment cannot be written.
        IncompleteError: If there is no room for it, or the shards of the run were removed.
        CorruptError: If the mark of removed shards, or the plan on disk, is damaged.
    """
    run.require_shards()
    require_sound(Plan(run.plan.identity, (*run.plan.amendments, amendment)))
    path = _amendment_path(run.directory, amendment.number)
    content = files.canonical_line(amendment.as_json())
    try:
        files.publish_bytes(content, path)
        found = path.read_bytes()
    except OSError as error:
        if error.errno in disk_errors.NO_ROOM:
            raise disk_errors.cannot_write(path, error) from error
        raise UsageError(
            f"cannot write {path}: {error.strerror}; {disk_errors.remedy(error)}, then plan again"
        ) from error
    if found != content:
        raise UsageError(f"{path} was written by another process just now; look at it, then retry")
    # Shards may be removed at this moment. The process that removes them first publishes its mark
    # and then looks at the plan; here the plan is published first and then the mark looked for. So
    # at least one of the two processes sees the other.
    run.require_shards()
    return open_run(run.directory)


def open_run(directory: str | Path) -> Run:
    """Opens a planned run.

    Args:
        directory: The run directory.

    Raises:
        UsageError: If there is no plan, it cannot be read, or it has another format or noise
            version.
        IncompleteError: If the plan has no amendment.
        CorruptError: If plan and amendments are damaged or do not belong together, or a folder of
            the run is a link.
    """
    directory = place(directory)
    path = directory / PLAN
    try:
        content = files.read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        if names.PCA.found_in(directory):
            raise UsageError(
                f"{directory} keeps principal components, and is no run directory; write scores "
                f"with: skerch-ooc scores {quoted(directory)}, or open it with PCA.load"
            ) from None
        raise UsageError(
            f"{directory} is not a run directory (it has no {PLAN}); "
            f"make it with: skerch-ooc plan SPEC --run {quoted(directory)}"
        ) from None
    except OSError as error:
        raise _not_read(path, error) from error
    _require_own_folders(directory)
    identity = Identity.from_json(content, str(path))
    # The run id is the hash of these bytes. The spelling is checked after the version, so that a
    # plan of another version is refused as such, and not as an altered one.
    if path.read_bytes() != identity.as_bytes():
        raise CorruptError(
            f"{path} was altered: it is not spelt as it was written; restore it from a copy"
        )
    plan = Plan(identity, tuple(_read_amendments(directory, identity)))
    if not plan.amendments:
        raise IncompleteError(
            f"{directory / AMENDMENTS} holds no part of the plan; plan the run again"
        )
    try:
        require_sound(plan)
    except UsageError as error:
        raise CorruptError(
            f"{directory}: its plan makes no sense: {error}; restore {PLAN} and {AMENDMENTS} "
            "from a copy"
        ) from error
    return Run(directory, plan)


def _amendment_files(directory: Path) -> list[Path]:
    """Lists the files of amendments, in order."""
    found = sorted((directory / AMENDMENTS).glob("[0-9]*.json"))
    # Some stores list late what was written; asked for by name it is there.
    while isinstance(directory, ObjectPath) and files.is_taken(
        following := _amendment_path(directory, len(found) + 1)
    ):
        found.append(following)
    return found


def _read_amendments(directory: Path, identity: Identity) -> Iterator[Amendment]:
    """Reads the amendments of a plan, in order.

    Raises:
        CorruptError: If one is damaged, misnamed, missing, or of another run.
    """
    for number, file in enumerate(_amendment_files(directory), start=1):
        amendment = Amendment.from_json(files.read_json(file, files.canonical_line), str(file))
        wanted = names.AMENDMENT.name(number=number)
        if amendment.number != number or file.name != wanted:
            raise CorruptError(
                f"{file}: {wanted} should come here, and is missing or misnamed; restore the "
                "folder from a copy"
            )
        if amendment.run_id != identity.run_id:
            raise CorruptError(
                f"{file} belongs to run {amendment.run_id[:16]}..., {directory / PLAN} is run "
                f"{identity.run_id[:16]}...: one of them was altered or swapped; restore it from a "
                "copy"
            )
        yield amendment


def _require_own_folders(directory: Path) -> None:
    """Refuses a run directory in which a folder is a link: files would be written elsewhere.

    Raises:
        CorruptError: If one is a link, or no folder; names it.
    """
    if isinstance(directory, ObjectPath):
        return
    own = [directory / name for name in names.FOLDERS]
    strange = next((path for path in own if path.exists() and not path.is_dir()), None)
    if strange is not None:
        raise CorruptError(f"{strange} is no folder; put the folder itself there")
    inner = [directory / name for name in (names.SKETCH, names.RESULTS, names.LOGS)]
    for folder in inner:
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            own += [folder / entry.name for entry in entries if entry.is_symlink()]
    linked = next((path for path in own if path.is_symlink() and _may_be_folder(path)), None)
    if linked is not None:
        raise CorruptError(
            f"{linked} is a link to another folder; put the folder itself there, or move the whole "
            "run directory and link that"
        )


def _may_be_folder(path: Path) -> bool:
    # A link that leads nowhere counts, too: its target may be a folder that is made later.
    return path.is_dir() or not path.exists()
