"""What a disk may hold after a power cut, for every moment of a recorded run.

A weak model of a file system. The bytes of a file are sure once it was synced; before that it may be empty, cut, full of
zeros, or whole. A name is sure once its folder was synced after the name was made, moved or removed; until then every such
change may have reached the disk or not, each for itself. Nothing is promised about order.
"""

import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple, TypeVar

from tests.faults.harness import Call

Tree = Mapping[str, bytes]
"""The bytes of every file that can be reached, by path."""

_ENUMERATED = 256
"""Where there are more possibilities than this, some are drawn instead."""
_DRAWN = 32

Item = TypeVar("Item")


class State(NamedTuple):
    """What a disk may hold."""

    moment: int
    """Calls that had returned when the power went."""
    tree: Tree


class _File:
    """What was written and what of it is sure."""

    def __init__(self) -> None:
        self.data = b""
        self.sure: bytes | None = None

    def variants(self) -> list[bytes]:
        """The bytes that may be on the disk."""
        if self.sure == self.data:
            return [self.data]
        torn = [b"", self.data[: len(self.data) // 2], bytes(len(self.data)), self.data]
        return list(dict.fromkeys([*torn, *([self.sure] if self.sure is not None else [])]))


class _Change(NamedTuple):
    """A name that was made or moved (the file it leads to; a folder leads to none), or removed."""

    folder: str
    made: str
    removed: str
    file: _File | None


class _Disk:
    """Replays calls."""

    def __init__(self) -> None:
        self.sure: list[_Change] = []
        self.waiting: list[_Change] = []
        self.files: dict[int, _File] = {}
        self.names: dict[str, _File | None] = {}
        """As a process sees them."""

    def happen(self, call: Call) -> None:
        if call.failed:
            return
        step = getattr(self, f"_{call.name}", None)
        if step:
            step(call)

    def _change(self, made: str, removed: str, file: _File | None) -> None:
        self.waiting.append(_Change(_parent(made or removed), made, removed, file))
        if removed:
            self.names.pop(removed, None)
        if made:
            self.names[made] = file

    def _mkdir(self, call: Call) -> None:
        self._change(call.path, "", None)

    def _create(self, call: Call) -> None:
        file = self.names.get(call.path)
        if file is None:
            file = _File()
            self._change(call.path, "", file)
        file.data = b""
        self.files[call.file] = file

    def _write(self, call: Call) -> None:
        self.files[call.file].data += call.data

    def _fsync(self, call: Call) -> None:
        if call.file in self.files:
            self.files[call.file].sure = self.files[call.file].data
        else:
            self.sure += [change for change in self.waiting if change.folder == call.path]
            self.waiting = [change for change in self.waiting if change.folder != call.path]

    def _rename(self, call: Call) -> None:
        assert _parent(call.path) == _parent(call.target), "the model knows renames within a folder only"
        self._change(call.target, call.path, self.names[call.path])

    def _link(self, call: Call) -> None:
        self._change(call.target, "", self.names[call.path])

    def _unlink(self, call: Call) -> None:
        self._change("", call.path, None)

    def _rmdir(self, call: Call) -> None:
        self._change("", call.path, None)

    def trees(self, generator: random.Random) -> Iterator[Tree]:
        """Everything that may be left."""
        for kept in self._subsets(generator):
            names: dict[str, _File | None] = {}
            for change in [*self.sure, *kept]:
                names.pop(change.removed, None)
                if change.made:
                    names[change.made] = change.file
            files = {path: file for path, file in names.items() if file is not None and self._is_reachable(path, names)}
            open_files = list(dict.fromkeys(files.values()))
            for data in _choices([file.variants() for file in open_files], generator):
                held = dict(zip(open_files, data, strict=True))
                yield {path: held[file] for path, file in files.items()}

    def _subsets(self, generator: random.Random) -> Iterator[Sequence[_Change]]:
        for marks in _choices([(False, True)] * len(self.waiting), generator):
            yield [change for change, mark in zip(self.waiting, marks, strict=True) if mark]

    def _is_reachable(self, path: str, names: Mapping[str, _File | None]) -> bool:
        made = {change.made for change in [*self.sure, *self.waiting] if change.file is None}
        above = [str(folder) for folder in PurePosixPath(path).parents]
        return all(folder in names for folder in above if folder in made)


def states(calls: Sequence[Call], *, seed: int = 0) -> Iterator[State]:
    """Every state that the disk may be in if the power goes after the first 0, 1, 2 ... calls, each once per moment."""
    disk, generator = _Disk(), random.Random(seed)
    for moment in range(len(calls) + 1):
        seen = set()
        for tree in disk.trees(generator):
            spelled = tuple(sorted(tree.items()))
            if spelled not in seen:
                seen.add(spelled)
                yield State(moment, tree)
        if moment < len(calls):
            disk.happen(calls[moment])


def violations(calls: Sequence[Call], check: Callable[[State], str | None], *, seed: int = 0) -> tuple[int, list[str]]:
    """How many states there are, and what ``check`` says against some of them."""
    number, found = 0, []
    for state in states(calls, seed=seed):
        number += 1
        if complaint := check(state):
            found.append(f"after call {state.moment}: {complaint}")
    return number, found


def _choices(options: Sequence[Sequence[Item]], generator: random.Random) -> Iterable[Sequence[Item]]:
    """Every way to take one of each of ``options``, or some of them if there are too many."""
    if math.prod(map(len, options)) <= _ENUMERATED:
        return itertools.product(*options)
    return [[generator.choice(each) for each in options] for _ in range(_DRAWN)]


def _parent(path: str) -> str:
    return str(PurePosixPath(path).parent)


def joined(*runs: Sequence[Call]) -> list[Call]:
    """The calls of several runs, one after the other; their openings of files get numbers of their own."""
    return [
        call._replace(file=call.file + place * 10**6 if call.file >= 0 else -1)
        for place, run in enumerate(runs)
        for call in run
    ]
