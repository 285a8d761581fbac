"""A call, the place where it is made, and the files that are there."""

from __future__ import annotations

import contextlib
import mmap
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import trio_aio

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Awaitable, Callable

    from trio_aio import AIOContext

BLOCK = 4096
EXTENTS = 360  # of the file "file": every other block is written, so that its map does not fit into its inode
WHOLE = 64  # blocks of the file "whole", half of them
FAR = 2 * BLOCK * 200  # an offset in "file"
END = (2 * EXTENTS - 1) * BLOCK  # its size
LINE = "a line of text, with ä and €\n"


def make_tree(folder: pathlib.Path) -> None:
    """Make what the calls use."""
    folder.mkdir()
    block = b"f" * (BLOCK - 1) + b"\n"
    for name, blocks in (("file", 2 * EXTENTS), ("whole", WHOLE)):
        with (folder / name).open("wb", buffering=0) as made:
            for at in range(0, blocks, 2):
                os.pwrite(made.fileno(), block, at * BLOCK)
    (folder / "text").write_text(LINE * 1000, encoding="utf-8")
    for name in ("small", "warm", "other", "victim"):
        (folder / name).write_bytes(block * (1 if name == "small" else 16))
    os.symlink("small", folder / "link")
    os.mkfifo(folder / "fifo")
    for name in ("empty", "sub/a", "sub/b"):
        (folder / name).mkdir(parents=True)
    for name in ("sub/one.py", "sub/a/two.py", "sub/b/three"):
        (folder / name).write_bytes(b"contents")
    with contextlib.suppress(OSError):  # not every filesystem has attributes of users
        os.setxattr(folder / "small", "user.name", b"value")


class Place:
    """Where a call is made, and with what."""

    def __init__(self, folder: pathlib.Path, context: AIOContext) -> None:
        self.folder: pathlib.Path = folder
        self.context: AIOContext = context
        self.file: Any = None  # a file that was opened before
        self.other: Any = None  # another thing that was made before
        self._left: list[Callable[[], Any]] = []

    def __truediv__(self, name: str) -> pathlib.Path:
        return self.folder / name

    def path(self, name: str) -> trio_aio.Path:
        return trio_aio.Path(self.folder / name)

    def later(self, function: Callable[[], Any]) -> None:
        """Call this, and await what it returns, when nothing waits any more."""
        self._left.append(function)

    async def keep(self, opener: Any) -> Any:
        """Return the file or directory that this opens. It is closed when nothing waits any more."""
        made = await opener
        self.later(made.aclose)
        return made

    async def end(self) -> None:
        while self._left:
            result = self._left.pop()()
            if result is not None:
                await result


class Call(NamedTuple):
    """One call. `before` and the opening of the file take place while nothing waits."""

    api: str
    how: str
    make: Callable[[Place], Awaitable[Any]]
    opens: tuple[str, str, dict[str, Any]] | None = None  # a name, a mode and options
    before: Callable[[Place], Awaitable[Any]] | None = None

    @property
    def name(self) -> str:
        return f"{self.api}, {self.how}" if self.how else self.api


CALLS: list[Call] = []


def add(api: str, make: Callable[[Place], Awaitable[Any]], how: str = "", **options: Any) -> None:
    CALLS.append(Call(api, how, make, **options))


def aligned(size: int) -> memoryview:
    return trio_aio.aligned_buffer(size)


async def all_of(listing: Any) -> list[Any]:
    return [entry async for entry in listing]


async def mapped(place: Place) -> None:
    """Map a file of the device, of which nothing is in memory."""
    fd = os.open(place / "other", os.O_RDWR)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    place.other = mmap.mmap(fd, 4 * BLOCK)
    os.close(fd)
    place.later(place.other.close)


async def opened_descriptor(place: Place) -> None:
    """Open a file without the package."""
    place.other = os.open(place / "file", os.O_RDWR)
    place.later(lambda: os.close(place.other))
