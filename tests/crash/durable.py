"""What a power loss leaves: a recorded trace of system calls, replayed on a pessimist's disk.

The rules are POSIX's, read as darkly as they allow:

* what was written to a file is durable once the file was synced (fsync, fdatasync) after it; until
  then a power loss may take it or leave it;
* a name (of a file made, linked, renamed or removed, or of a folder) is durable once the folder it
  stands in was synced after it; until then it may be there or not, whatever happened to others;
* a sync counts when it has returned, and only for what had returned before it began.

One thing is taken for granted, as on every file system with a journal: a rename may leave both
names, but never neither. ``torn_renames`` takes that away too.
"""

from __future__ import annotations

import itertools
import random
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# what a program does to the disk


@dataclass(frozen=True, slots=True)
class Make:
    """A new, empty file; nothing where the name is taken already."""

    path: Path


@dataclass(frozen=True, slots=True)
class MakeFolder:
    """A new folder."""

    path: Path


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes into a file, from ``offset``; None appends."""

    path: Path
    data: bytes
    offset: int | None = None


@dataclass(frozen=True, slots=True)
class Truncate:
    """A file cut, or filled with zeros, to ``size`` bytes."""

    path: Path
    size: int


@dataclass(frozen=True, slots=True)
class Link:
    """A second name for a file."""

    old: Path
    new: Path


@dataclass(frozen=True, slots=True)
class Rename:
    """A file's name moved, perhaps to another folder."""

    old: Path
    new: Path


@dataclass(frozen=True, slots=True)
class Remove:
    """A name that goes: a file's or an empty folder's."""

    path: Path


@dataclass(frozen=True, slots=True)
class Sync:
    """fsync or fdatasync of a file or a folder."""

    path: Path


@dataclass(frozen=True, slots=True)
class Say:
    """What the program printed: a promise to whoever reads it."""

    text: str


Step = Make | MakeFolder | Write | Truncate | Link | Rename | Remove | Sync | Say


@dataclass(frozen=True, slots=True)
class Event:
    """A step, and the lines of the trace at which it began and had returned."""

    step: Step
    began: int
    ended: int


def in_order(*steps: Step) -> list[Event]:
    """Steps that were done one after another."""
    return [Event(step, number, number) for number, step in enumerate(steps)]


# the disk


@dataclass(eq=False, slots=True)
class Node:
    """A file or a folder: its content on the disk for certain, and as the program sees it."""

    is_folder: bool = False
    synced: bytearray = field(default_factory=bytearray)
    now: bytearray = field(default_factory=bytearray)
    unsynced: list[tuple[int, int, bytes | None]] = field(default_factory=list)

    def change(self, ended: int, offset: int, data: bytes | None) -> None:
        """Write ``data`` at ``offset``, or cut there where it is None."""
        _put(self.now, offset, data)
        self.unsynced.append((ended, offset, data))

    def sync(self, began: int) -> None:
        """Bring to the disk what had been written before."""
        for _, offset, data in (change for change in self.unsynced if change[0] < began):
            _put(self.synced, offset, data)
        self.unsynced = [change for change in self.unsynced if change[0] >= began]


@dataclass(eq=False, slots=True)
class Change:
    """What a name stood for from one moment on. ``brings`` is the other half of a rename."""

    node: Node | None
    ended: int = -1
    brings: tuple[Path, Change] | None = None


class Disk:
    """Names and data, each with all that a power loss may leave of it.

    It begins with ``folders`` and ``files``, durable. Every name has a history: what it surely
    stood for first, then what was done to it since its folder was synced.
    """

    def __init__(
        self,
        folders: Iterable[Path],
        files: Mapping[Path, bytes] | None = None,
        *,
        torn_renames: bool = False,
    ) -> None:
        self.names: dict[Path, list[Change]] = {p: [Change(Node(True))] for p in folders}
        for path, content in (files or {}).items():
            node = Node(synced=bytearray(content), now=bytearray(content))
            self.names[path] = [Change(node)]
        self.torn_renames = torn_renames

    def do(self, event: Event) -> None:
        """Take one step."""
        match event.step:
            case Make(path):
                if self.node(path) is None:
                    self._name(path, Node(), event)
            case MakeFolder(path):
                self._name(path, Node(is_folder=True), event)
            case Write(path, data, offset):
                node = self._file(path)
                node.change(event.ended, len(node.now) if offset is None else offset, data)
            case Truncate(path, size):
                node = self._file(path)
                missing = b"\0" * (size - len(node.now))
                node.change(event.ended, size - len(missing), missing or None)
            case Link(old, new):
                self._name(new, self._file(old), event)
            case Rename(old, new):
                arrival = self._name(new, self._file(old), event)
                self._name(old, None, event).brings = (new, arrival)
            case Remove(path):
                self._name(path, None, event)
            case Sync(path):
                self._sync(path, event.began)

    def node(self, path: Path) -> Node | None:
        """What a name stands for as the program sees it."""
        return self.names[path][-1].node if path in self.names else None

    def may_be(self, path: Path) -> list[Node | None]:
        """All that a name may stand for after a power loss."""
        return [change.node for change in self.names.get(path, [Change(None)])]

    def is_there(self, path: Path) -> bool:
        """Whether a power loss surely leaves this name, and every folder above it that we know."""
        found = self.may_be(path)
        return (
            found[-1] is not None
            and all(node is found[-1] for node in found)
            and (path.parent not in self.names or self.is_there(path.parent))
        )

    def keeps(self, path: Path, content: bytes) -> bool:
        """Whether a power loss surely leaves this name with this content."""
        node = self.node(path)
        return self.is_there(path) and node is not None and node.synced == node.now == content

    def losses(self, paths: Sequence[Path]) -> Iterator[dict[Path, Node | None]]:
        """Every way in which a power loss may leave these names."""
        histories = [self.names[path] for path in paths]
        for ends in itertools.product(*(range(len(history)) for history in histories)):
            kept = {p: h[: end + 1] for p, h, end in zip(paths, histories, ends, strict=True)}
            if self.torn_renames or self._is_whole(kept):
                yield {path: history[-1].node for path, history in kept.items()}

    def lose(self, dice: random.Random) -> list[tuple[Path, Node, bytes | None]]:
        """One way in which a power loss may leave everything: name, file, content.

        Folders have None for content; each stands before what is in it.
        """
        while True:
            kept = {
                path: history[: dice.randrange(len(history)) + 1]
                for path, history in sorted(self.names.items())
            }
            if self._is_whole(kept):
                break
        found: dict[Path, Node] = {}
        contents: dict[Node, bytes | None] = {}
        for path, history in kept.items():
            node = history[-1].node
            if node and (path.parent in found or path.parent not in self.names):
                found[path] = node
                content = None if node.is_folder else dice.choice([node.synced, node.now])
                contents.setdefault(node, content if content is None else bytes(content))
        return [(path, node, contents[node]) for path, node in found.items()]

    def _is_whole(self, kept: Mapping[Path, Sequence[Change]]) -> bool:
        """Whether no rename took its old name away without bringing its new one."""
        return all(
            change.brings[1] in kept[change.brings[0]]
            for history in kept.values()
            for change in history
            if change.brings
            and change.brings[0] in kept
            and change.brings[1] in self.names[change.brings[0]]
        )

    def _file(self, path: Path) -> Node:
        node = self.node(path)
        assert node is not None and not node.is_folder, f"no file the model knows: {path}"
        return node

    def _name(self, path: Path, node: Node | None, event: Event) -> Change:
        change = Change(node, event.ended)
        self.names.setdefault(path, [Change(None)]).append(change)
        return change

    def _sync(self, path: Path, began: int) -> None:
        node = self.node(path)
        assert node is not None, f"synced, and the model does not know it: {path}"
        node.sync(began)
        for below, history in self.names.items():
            if node.is_folder and below.parent == path:
                early = itertools.takewhile(lambda change: change.ended < began, history)
                self._settle(below, len(list(early)) - 1)

    def _settle(self, path: Path, index: int) -> None:
        """Make a name's history durable up to one change, and what came with it by renaming."""
        history = self.names[path]
        settled, self.names[path] = history[1 : index + 1], history[index:]
        for target, arrival in (change.brings for change in settled if change.brings):
            if not self.torn_renames and arrival in self.names[target]:
                self._settle(target, self.names[target].index(arrival))


def _put(content: bytearray, offset: int, data: bytes | None) -> None:
    if data is None:
        del content[offset:]
        return
    content.extend(b"\0" * (offset - len(content)))
    content[offset : offset + len(data)] = data


# the trace

CALLS = (
    "open,openat,openat2,creat,write,pwrite64,writev,pwritev,pwritev2,lseek,truncate,ftruncate,"
    "fallocate,fsync,fdatasync,link,linkat,symlink,symlinkat,rename,renameat,renameat2,unlink,"
    "unlinkat,mkdir,mkdirat,rmdir,copy_file_range,sendfile,splice,ioctl"
)
"""All calls that change a file or a name (but for memory maps: SQLite's, of what it can lose)."""


def record(command: Sequence[str], trace: Path, log: Path, *more: str) -> int:
    """Run a command, write its system calls and its output to files, return its exit code.

    ``more`` are options of strace.
    """
    strace = shutil.which("strace")
    assert strace, "needs strace (Debian: strace)"
    options = ["-f", "-y", "-xx", "-s", str(1 << 24), "-e", "signal=none", "-o", str(trace)]
    options += ["-e", f"trace={CALLS}"]
    with log.open("ab") as output:
        done = subprocess.run(
            [strace, *options, *more, *command],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    return done.returncode


@dataclass(frozen=True, slots=True)
class Call:
    """A system call that went well."""

    name: str
    arguments: tuple[str, ...]
    answer: str
    began: int
    ended: int


_LINE = re.compile(
    r"(?P<thread>\d+) +(?:<\.\.\. (?P<resumed>\w+) resumed>)?(?P<text>.*?)"
    r"(?:(?P<unfinished> <unfinished \.\.\.>)|\) += (?P<answer>.*))"
)
_HEX = re.compile(r"(?:\\x[0-9a-f]{2})*")


def calls(trace: Path) -> Iterator[Call]:
    """The calls of a trace that went well, in the order in which they began.

    Of a call that a kill broke off nobody knows whether it was made: it is left out.
    """
    begun: dict[str, tuple[int, str]] = {}
    found: list[Call] = []
    for number, line in enumerate(trace.read_text().splitlines()):
        match = _LINE.fullmatch(line)
        if match is None:
            assert re.match(r"\d+ +(\+\+\+|---) ", line), line[:200]
            continue
        thread, text = match["thread"], match["text"]
        began = number
        if match["resumed"]:
            began, start = begun.pop(thread)
            text = start + text
        if match["unfinished"]:
            begun[thread] = (began, text)
        elif not match["answer"].startswith(("-1", "?")):
            name, _, arguments = text.partition("(")
            answer = match["answer"].split(" (")[0]
            found.append(Call(name, tuple(arguments.split(", ")), answer, began, number))
    return iter(sorted(found, key=lambda call: call.began))


def events(trace: Path, roots: Sequence[Path]) -> list[Event]:
    """What a trace did below some folders, and what it said.

    Changes stand where they began, syncs where they had returned. Raises AssertionError at a call
    that the model does not know.
    """
    found = []
    offsets: dict[int, int | None] = {}
    for call in calls(trace):
        for step in _steps(call, offsets):
            paths = [getattr(step, key, None) for key in ("path", "old", "new")]
            if isinstance(step, Say) or any(_is_ours(path, roots) for path in paths if path):
                found.append(Event(step, call.began, call.ended))
    return sorted(found, key=lambda e: e.ended if isinstance(e.step, Sync | Say) else e.began)


def _is_ours(path: Path, roots: Sequence[Path]) -> bool:
    """Whether a path lies below a root; SQLite's shared memory is made anew after a crash."""
    return not path.name.endswith("-shm") and any(path.is_relative_to(root) for root in roots)


def _steps(  # noqa: PLR0912 - a table: one line a call
    call: Call, offsets: dict[int, int | None]
) -> Iterator[Step]:
    """A system call in the model's words. ``offsets``: where every open file stands."""
    args = call.arguments
    match call.name:
        case "openat":
            yield from _opened(_at(args[0], args[1]), args[2])
            offsets[_number(call.answer)] = None if "O_APPEND" in args[2] else 0
        case "lseek":
            offsets[_number(args[0])] = int(call.answer)
        case "write" | "writev":
            yield from _written(call, offsets)
        case "pwrite64":
            yield Write(_path(args[0]), _bytes(args[1]), int(args[3]))
        case "ftruncate":
            yield Truncate(_path(args[0]), int(args[1]))
        case "fsync" | "fdatasync":
            yield Sync(_path(args[0]))
        case "mkdir":
            yield MakeFolder(_string(args[0]))
        case "mkdirat":
            yield MakeFolder(_at(args[0], args[1]))
        case "linkat":
            yield Link(_at(args[0], args[1]), _at(args[2], args[3]))
        case "rename":
            yield Rename(_string(args[0]), _string(args[1]))
        case "renameat" | "renameat2":
            yield Rename(_at(args[0], args[1]), _at(args[2], args[3]))
        case "unlink" | "rmdir":
            yield Remove(_string(args[0]))
        case "unlinkat":
            yield Remove(_at(args[0], args[1]))
        case "ioctl":
            assert "FICLONE" not in args[1], call
        case _:
            raise AssertionError(f"the model does not know {call.name}{args}")


def _opened(path: Path, flags: str) -> Iterator[Step]:
    assert "O_TMPFILE" not in flags, path
    if "O_CREAT" in flags:
        yield Make(path)
    if "O_TRUNC" in flags:
        yield Truncate(path, 0)


def _written(call: Call, offsets: dict[int, int | None]) -> Iterator[Step]:
    number, path = _number(call.arguments[0]), _path(call.arguments[0])
    texts = re.findall(r'"((?:\\x[0-9a-f]{2})*)"', ", ".join(call.arguments[1:]))
    data = b"".join(_unhex(text) for text in texts)[: int(call.answer)]
    if number == 1:
        yield Say(data.decode())
        return
    offset = offsets.get(number, 0)
    yield Write(path, data, offset)
    if offset is not None:
        offsets[number] = offset + len(data)


def _number(descriptor: str) -> int:
    return int(descriptor.partition("<")[0])


def _path(descriptor: str) -> Path:
    """The file behind a descriptor, as ``7<\\x2f...>``; one without a name is nobody's."""
    name = descriptor.partition("<")[2]
    if name.endswith("(deleted)") or not name.startswith("\\x2f"):
        return Path("/nowhere")
    return Path(_unhex(name.removesuffix(">")).decode())


def _at(folder: str, name: str) -> Path:
    """A name as seen from the folder of a descriptor."""
    path = Path(_bytes(name).decode())
    return path if path.is_absolute() else _path(folder) / path


def _string(text: str) -> Path:
    path = Path(_bytes(text).decode())
    assert path.is_absolute(), path
    return path


def _bytes(text: str) -> bytes:
    assert text.startswith('"') and text.endswith('"'), f"cut short: {text[-40:]}"
    return _unhex(text[1:-1])


def _unhex(text: str) -> bytes:
    assert _HEX.fullmatch(text), text[:80]
    return bytes.fromhex(text.replace("\\x", ""))
