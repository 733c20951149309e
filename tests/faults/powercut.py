"""A disk that loses what was not synced: which contents recorded steps may leave after a power cut.

It keeps what POSIX promises, and no more. Bytes of a file are there for certain once the file was
synced; before that each write may be there, be lost, or be torn. The name of a file or folder, and
its removal, are certain once the folder that it is in was synced; before that each change may be
there or not, whatever became of others. Only a rename is one change.
"""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from faults.recording import Step

Content = dict[str, bytes | None]
"""Files and their bytes, by path; of folders ``None``."""

Effect = TypeVar("Effect")
Choice = Callable[[Sequence[Effect]], Sequence[Effect]]

_SECTOR = 512


@dataclass
class _File:
    certain: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, int, bytes | None]] = field(default_factory=list)
    """The step, an offset, and data; or a new size and ``None``."""

    def sync(self, since: int) -> None:
        done = [effect for effect in self.pending if effect[0] < since]
        self.certain = _after(self.certain, done)
        self.pending = [effect for effect in self.pending if effect[0] >= since]


@dataclass(frozen=True, eq=False)
class _Change:
    """Names of folders that get another meaning, all of them or none."""

    step: int
    names: tuple[tuple[_Folder, str, _Node | None], ...]


@dataclass(eq=False)
class _Folder:
    certain: dict[str, _Node] = field(default_factory=dict)
    now: dict[str, _Node] = field(default_factory=dict)
    pending: list[_Change] = field(default_factory=list)

    def sync(self, since: int) -> None:
        for change in [change for change in self.pending if change.step < since]:
            for folder, name, node in change.names:
                _enter(folder.certain, name, node)
                if change in folder.pending:
                    folder.pending.remove(change)


_Node = _File | _Folder


def _enter(entries: dict[str, _Node], name: str, node: _Node | None) -> None:
    if node is None:
        entries.pop(name, None)
    else:
        entries[name] = node


def _after(content: bytearray, effects: Iterable[tuple[int, int, bytes | None]]) -> bytearray:
    """The bytes of a file after writes and truncations; what was never written are zeros."""
    found = bytearray(content)
    for _, offset, data in effects:
        end = offset + len(data or b"")
        if len(found) < end:
            found.extend(bytes(end - len(found)))
        if data is None:
            del found[offset:]
        else:
            found[offset:end] = data
    return found


class Disk:
    """A disk on which recorded steps are repeated.

    Args:
        content: What is on it for certain.
    """

    def __init__(self, content: Content) -> None:
        self.root = _Folder()
        for path, data in sorted(content.items()):
            folder, name = self._place(path)
            node = _Folder() if data is None else _File(bytearray(data))
            folder.now[name] = folder.certain[name] = node
        self._number = 0

    def do(self, step: Step) -> None:
        """Repeats a step; steps are numbered as they come."""
        getattr(self, f"_{step.what}")(step)
        self._number += 1

    def is_folder(self, path: str) -> bool:
        """Whether there is a folder of this name."""
        return isinstance(self._node(path), _Folder)

    def unsure(self) -> int:
        """How many effects of all steps up to now may be there or not."""
        return len({id(effect) for node in _nodes(self.root) for effect in node.pending})

    def left(self, choose: Choice) -> Content:
        """What a power cut leaves at this moment.

        Args:
            choose: Which of several effects, given in order, are there.
        """
        chosen: dict[int, bool] = {}
        return dict(self._kept(self.root, "", choose, chosen))

    def _kept(
        self, folder: _Folder, path: str, choose: Choice, chosen: dict[int, bool]
    ) -> Iterator[tuple[str, bytes | None]]:
        new = [change for change in folder.pending if id(change) not in chosen]
        there = choose(new)
        chosen.update((id(change), change in there) for change in new)
        entries = dict(folder.certain)
        for change in folder.pending:
            for one, name, node in change.names:
                if one is folder and chosen[id(change)]:
                    _enter(entries, name, node)
        for name, node in sorted(entries.items()):
            if isinstance(node, _Folder):
                yield path + name, None
                yield from self._kept(node, f"{path}{name}/", choose, chosen)
            else:
                yield path + name, bytes(_after(node.certain, choose(node.pending)))

    def _place(self, path: str) -> tuple[_Folder, str]:
        *above, name = path.split("/")
        folder = self.root
        for one in above:
            inner = folder.now[one]
            assert isinstance(inner, _Folder)
            folder = inner
        return folder, name

    def _node(self, path: str) -> _Node | None:
        if path == ".":
            return self.root
        folder, name = self._place(path)
        return folder.now.get(name)

    def _change(self, *names: tuple[str, _Node | None]) -> None:
        placed = [(*self._place(path), node) for path, node in names]
        change = _Change(self._number, tuple(placed))
        for folder, name, node in placed:
            _enter(folder.now, name, node)
        for folder in {id(folder): folder for folder, _, _ in placed}.values():
            folder.pending.append(change)

    def _make(self, step: Step) -> None:
        self._change((step.path, _File()))

    def _mkdir(self, step: Step) -> None:
        self._change((step.path, _Folder()))

    def _link(self, step: Step) -> None:
        self._change((step.to, self._node(step.path)))

    def _remove(self, step: Step) -> None:
        self._change((step.path, None))

    def _rename(self, step: Step) -> None:
        self._change((step.path, None), (step.to, self._node(step.path)))

    def _write(self, step: Step) -> None:
        self._effect(step.path, step.offset, step.data)

    def _truncate(self, step: Step) -> None:
        self._effect(step.path, step.offset, None)

    def _effect(self, path: str, offset: int, data: bytes | None) -> None:
        file = self._node(path)
        assert isinstance(file, _File), path
        file.pending.append((self._number, offset, data))

    def _sync(self, step: Step) -> None:
        # What was removed meanwhile need not be known any more.
        node = self._node(step.path)
        if node is not None:
            node.sync(step.since)


def _nodes(folder: _Folder) -> Iterator[_Node]:
    """All that can be reached by certain or uncertain names."""
    seen: dict[int, _Node] = {}
    waiting: list[_Node] = [folder]
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen[id(node)] = node
        if isinstance(node, _Folder):
            waiting += [*node.certain.values(), *node.now.values()]
    return iter(seen.values())


def all_lost(effects: Sequence[Effect]) -> Sequence[Effect]:
    """A choice: nothing is there that need not be."""
    del effects
    return []


def some_lost(chance: random.Random, share: float) -> Choice:
    """A choice at random: so many effects are lost, and some writes are torn."""

    def choose(effects: Sequence[Effect]) -> Sequence[Effect]:
        found = [effect for effect in effects if chance.random() >= share]
        return [_perhaps_torn(effect, chance) for effect in found]

    return choose


def _perhaps_torn(effect: Effect, chance: random.Random) -> Effect:
    if isinstance(effect, tuple) and effect[2] and chance.random() < 0.25:
        number, offset, data = effect
        kept = chance.randrange(len(data) // _SECTOR + 1) * _SECTOR
        return (number, offset, data[:kept])  # type: ignore[return-value]
    return effect


def removals_only(effects: Sequence[Effect]) -> Sequence[Effect]:
    """A choice: names that were removed are gone, nothing that is new is there."""
    return [
        effect
        for effect in effects
        if isinstance(effect, _Change) and all(node is None for *_, node in effect.names)
    ]


def names_only(effects: Sequence[Effect]) -> Sequence[Effect]:
    """A choice: all names are there, and no bytes that were not synced."""
    return [effect for effect in effects if isinstance(effect, _Change)]


def content_of(folder: Path) -> Content:
    """What lies in a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def lay_out(content: Content, folder: Path, age: float = 600.0) -> None:
    """Makes files and folders; files were written so many seconds ago."""
    written = time.time() - age
    for path, data in content.items():
        if data is None:
            (folder / path).mkdir(parents=True, exist_ok=True)
        else:
            (folder / path).write_bytes(data)
            os.utime(folder / path, (written, written))


def digest_of(content: Content) -> str:
    """A hash by which equal contents are told."""
    found = hashlib.sha256()
    for path, data in sorted(content.items()):
        found.update(repr((path, None if data is None else hashlib.sha256(data).digest())).encode())
    return found.hexdigest()
