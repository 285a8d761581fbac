"""`Glob`: the paths below a directory that match a pattern, as the running Python's pathlib finds them.

How pathlib works. Its rules have changed with its versions. Up to 3.12 a trailing ``**`` matches directories only, since 3.13 also files.
Up to 3.11 a name without wildcards is followed if it is a link, so a broken link is not found; 3.12 looks for it in the listing; 3.13 asks
for the link itself. A slash at the end means a directory from 3.11 on.

What we do about it. A pattern is a list of parts. A directory is searched for several of them at once: for all that may match there. Each
directory is read once, and for each of its entries we note which parts may match below it. So ``**/*.py`` takes one request for each
directory, and no path is found twice. A part without wildcards needs no listing: it is joined, and looked up in the end.
"""

from __future__ import annotations

import fnmatch
import os
import re
import stat
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from trio_aio._names.calls import Name, status_or_error
from trio_aio._names.listing import DT_DIR, DT_LNK, ERROR, Listing
from trio_aio._names.tree import AHEAD, Node, TreeReader, join

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_aio._context.core import Core

__all__ = ("Glob", "Part", "parts_of")

_P = TypeVar("_P")

_MAGIC = re.compile("[*?[]")
_VERSION = sys.version_info[:2]


class Part(NamedTuple):
    """One part of a pattern."""

    text: str
    match: Callable[[str], Any] | None
    """For a part that is compared with names; None: ``**``, ``..``, a name that is joined, or an empty part at the end."""


def parts_of(parts: list[str], case_sensitive: bool | None) -> list[Part]:
    """Return the parts of a pattern. ValueError for a pattern that the running Python refuses."""
    compiled = []
    for part in parts:
        if _VERSION < (3, 13) and "**" in part and part != "**":
            raise ValueError("Invalid pattern: '**' can only be an entire path component")
        looks = _MAGIC.search(part) is not None or case_sensitive is not None or _VERSION == (3, 12)
        match = None
        if looks and part not in ("**", "..", ""):
            flags = re.IGNORECASE if case_sensitive is False else 0
            match = re.compile(fnmatch.translate(part), flags).match
        compiled.append(Part(part, match))
    return compiled


class _Place(Node):
    """A path that the parts at the indexes `states` may match below. exists: it was seen in a listing, or looked up."""

    __slots__ = ("exists", "found", "states")

    def __init__(self, path: bytes, shown: object, states: frozenset[int], *, exists: bool, found: bool = False) -> None:
        super().__init__(path, shown)
        self.states: frozenset[int] = states
        self.exists: bool = exists
        # It has been yielded, or does not exist.
        self.found: bool = found


class Glob(Listing[_P]):
    """What `Path.glob` and `Path.rglob` return. make: returns the user's path for one below `top`, and its type."""

    def __init__(self, top: Name, parts: list[Part], make: Callable[[str, int, int], _P], *, recurse_symlinks: bool) -> None:
        self._top: Name = top
        self._parts: list[Part] = parts
        self._make: Callable[[str, int, int], _P] = make
        self._recurse_symlinks: bool = recurse_symlinks
        self._reader: TreeReader | None = None
        self._new: list[_P] = []  # found, and not yet yielded
        self._stack: list[_Place] = [_Place(b"", top.shown, frozenset((0,)), exists=False)]
        # Only ".." and several "**" can lead to one path twice.
        several = sum(part.text == "**" for part in parts) > 1 or any(part.text == ".." for part in parts)
        self._found: set[str] | None = set() if several else None
        super().__init__(None)

    async def _next_batch(self, core: Core) -> list[_P] | None:
        if self._reader is None:
            self._reader = TreeReader(core, self._top, targets=True)
        try:
            await self._reader.open()
        except OSError:
            return None  # it is no directory, or cannot be searched
        while self._stack and not self._ended:
            self._reader.read_ahead(place for place in self._stack[: -AHEAD - 1 : -1] if self._reads(place))
            await self._visit(core, self._stack[-1])
            if self._new:
                batch, self._new = self._new, []
                return batch
        return None

    def _closure(self, states: frozenset[int]) -> set[int]:
        """Return the parts that may match here, with those behind a ``**``, which matches no directory too."""
        closed = set(states)
        for state in sorted(states):
            at = state
            while at < len(self._parts) and self._parts[at].text == "**":
                at += 1
                closed.add(at)
        return closed

    def _reads(self, place: _Place) -> bool:
        """Return whether a directory must be read."""
        return any(at < len(self._parts) and (self._parts[at].text == "**" or self._parts[at].match) for at in self._closure(place.states))

    async def _visit(self, core: Core, place: _Place) -> None:
        """Yield and enter the place that is on top of the stack. Cancelled: it can be called again."""
        states, last = self._closure(place.states), len(self._parts)
        ends_in_slash = last - 1 in states and self._parts[-1].text == ""
        if (last in states or ends_in_slash) and not place.found:
            # Behind "**" and "/" a path must be a directory.
            await self._look_up(core, place, directory=ends_in_slash or last not in place.states)
            place.found = True
        parts = None
        if self._reads(place):
            assert self._reader is not None
            with suppress(OSError):
                parts = await self._reader.read(place)
        self._stack.pop()
        if parts is not None:
            prefix = os.fsdecode(place.path) + "/" if place.path else ""
            for listed in parts:
                for name, text, kind, target in zip(listed.names, listed.texts(), listed.types, listed.targets, strict=True):
                    self._enter(place, states, name, text, prefix, kind, target)
        self._join(place, states, climbing=parts is not None)

    def _join(self, place: _Place, states: set[int], *, climbing: bool) -> None:
        """Continue below the parts that need no listing. climbing: only those that lead up; a listing was read for the others."""
        for at in states:
            if at == len(self._parts) or self._parts[at].match is not None:
                continue
            text = self._parts[at].text
            if text in ("**", "") or (climbing and text != ".."):
                continue
            # What leads up from a place that exists is not looked up since 3.12.
            exists = place.exists and text == ".." and _VERSION >= (3, 12)
            self._stack.append(_Place(join(place.path, os.fsencode(text)), self._top.shown, frozenset((at + 1,)), exists=exists))

    def _enter(self, place: _Place, states: set[int], name: bytes, text: str, prefix: str, kind: int, target: int) -> None:
        """Note what may match at an entry of a directory, and below it. text: the name; prefix: that of its directory's names."""
        last = len(self._parts)
        is_directory = kind == DT_DIR or (kind == DT_LNK and target == DT_DIR)
        below: set[int] = set()
        yields = False
        for at in states:
            if at == last:
                continue
            part = self._parts[at]
            if part.text == "**":
                if kind == DT_DIR or (is_directory and self._recurse_symlinks):
                    below.add(at)
                if at == last - 1 and _VERSION >= (3, 13):
                    yields = True
            elif part.match(text) if part.match is not None else part.text == text:
                if at == last - 1:
                    # Up to 3.11 a name without wildcards is followed if it is a link.
                    yields = yields or part.match is not None or _VERSION >= (3, 12) or kind != DT_LNK or 0 < target < ERROR
                elif is_directory:
                    below.add(at + 1)
        if yields:
            self._add(prefix + text, kind, target)
        if below:
            self._stack.append(_Place(join(place.path, name), self._top.shown, frozenset(below), exists=True, found=yields))

    async def _look_up(self, core: Core, place: _Place, *, directory: bool) -> None:
        """Yield a path that no listing has shown, if it exists."""
        follow = directory or _VERSION < (3, 13)
        assert self._reader is not None
        name = Name(self._reader.fd, place.path or b".", self._top.shown)
        status = await status_or_error(core, name, follow_symlinks=follow)
        if isinstance(status, int):
            return
        kind = stat.S_IFMT(status.st_mode) >> 12
        if not directory or kind == DT_DIR:
            self._add(os.fsdecode(place.path), kind, 0)

    def _add(self, path: str, kind: int, target: int) -> None:
        if self._found is not None:
            if path in self._found:
                return
            self._found.add(path)
        self._new.append(self._make(path, kind, target))

    def _release(self) -> None:
        if self._reader is not None:
            self._reader.release()
