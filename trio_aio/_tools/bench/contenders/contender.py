"""What a contender is, how one round of it runs, and what contenders share: imports, fds, and files that are removed again."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import anyio

from trio_aio._tools.bench.measure import Measured, Unavailable, Work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = (
    *("BATCH", "DEPTH", "Contender", "File", "Loop", "imported", "measure", "opened", "scratch_folder", "scratch_path", "small_file"),
)

Loop = Literal["trio", "asyncio"]
File = Literal["small", "large", "overwritten", "lines", "sparse", "long sparse", "none"]

# Blocks of one `read_blocks`.
BATCH = 1024
# Pieces that `chunks` and `writer` have in flight.
DEPTH = 8


@dataclass(frozen=True)
class Contender:
    """A library and a way to use it."""

    name: str
    function: Callable[[Work], Any]
    """A coroutine function if there is a `loop`."""
    loop: Loop | None = None
    ours: bool = False
    same_work: bool = True
    """False for a mere measure, such as a bare checkpoint or a blocking loop, which cannot win as a peer."""
    file: File | None = None
    """The file it reads, if not the row's."""
    build: str | None = None
    """The other build of trio_aio that it uses, by the name on the command line; None: this one."""


def measure(contender: Contender, work: Work) -> Measured:
    """Return one round of a contender, in an event-loop run of its own. `Unavailable`; any error of the contender."""
    if contender.loop is None:
        contender.function(work)
        return work.measured
    if contender.loop == "trio" and find_spec("trio") is None:
        raise Unavailable("trio is not installed")
    anyio.run(contender.function, work, backend=contender.loop)
    return work.measured


def imported(name: str) -> Any:
    """Return a module of another library. `Unavailable` if it cannot be imported."""
    try:
        return import_module(name)
    except ImportError as error:
        raise Unavailable(f"{name.partition('.')[0]} is not installed, or not for this machine: {error}") from None


@contextmanager
def opened(path: str, flags: int) -> Iterator[int]:
    """Provide an fd until the end of the block."""
    fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def scratch_path(work: Work) -> Iterator[str]:
    """Provide the path of a file that does not exist, and remove the file at the end of the block."""
    path = f"{work.load.path}.{os.getpid()}"
    try:
        yield path
    finally:
        try:
            os.unlink(path)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise


@contextmanager
def scratch_folder(work: Work) -> Iterator[Path]:
    """Provide a new folder until the end of the block."""
    folder = Path(f"{work.load.path}.{os.getpid()}.d")
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def small_file(work: Work) -> Iterator[str]:
    """Provide the path of a new file that has the size of one operation, until the end of the block."""
    with scratch_path(work) as path:
        Path(path).write_bytes(os.urandom(work.load.piece))
        yield path
