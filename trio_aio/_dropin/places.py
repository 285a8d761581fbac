"""Where trio and anyio have what `install` replaces, and what takes its place.

trio and anyio have each function in a private module, and pass it on: as ``trio.open_file``, and as ``anyio.open_file``, which newer
versions of anyio look up at the first use. Their `Path.open` calls neither; it opens in a thread. So all of these are places.

A replacement has the signature, the name and the docstring of what it replaces. A file of a kind that `open_aio` does not open (a FIFO, a
terminal) is opened by what it replaces.
"""

from __future__ import annotations

import importlib
from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple

from trio_aio._dropin.open_file import opener_of
from trio_aio._dropin.path_methods import NAMES, WHOLE, like_anyio, like_trio
from trio_aio._files.binary import AsyncFile
from trio_aio._files.streams import FileReadStream, FileWriteStream
from trio_aio._files.text import AsyncTextFile
from trio_aio._names import temporary
from trio_aio._names.spooled import SpooledTemporaryFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trio_aio._files.opener import FileOpener

__all__ = ("Place", "anyio_places", "trio_places")

_TEMPORARY: dict[str, Any] = {
    "SpooledTemporaryFile": SpooledTemporaryFile,
    **{name: getattr(temporary, name) for name in temporary.__all__},
}


class Place(NamedTuple):
    """An attribute of a module or class, what is there, and what takes its place."""

    owner: Any
    name: str
    original: Any
    ours: Any

    @property
    def shown(self) -> str:
        """The name for messages."""
        owner = self.owner.__name__ if not isinstance(self.owner, type) else f"{self.owner.__module__}.{self.owner.__qualname__}"
        return f"{owner}.{self.name}"


def trio_places(*, whole: bool, names: bool) -> Iterator[Place]:
    """Return the places in trio. ImportError if it is not installed."""
    import trio

    module: Any = importlib.import_module("trio._file_io")
    module.AsyncIOWrapper.register(AsyncFile)
    module.AsyncIOWrapper.register(AsyncTextFile)
    original = trio.open_file
    ours = _trio_open_file(original)
    for owner in (trio, module):
        yield Place(owner, "open_file", original, ours)
    yield from _path_places(trio.Path, _open_of_path(trio.Path), like_trio, whole=whole, names=names)


def anyio_places(*, streams: bool, whole: bool, names: bool) -> Iterator[Place]:
    """Return the places in anyio. ImportError if it is not installed."""
    import anyio

    anyio.AsyncFile.register(AsyncFile)
    anyio.AsyncFile.register(AsyncTextFile)
    anyio.AsyncFile.register(SpooledTemporaryFile)
    original = anyio.open_file
    ours = _anyio_open_file(original)
    for owner in (anyio, importlib.import_module("anyio._core._fileio")):
        yield Place(owner, "open_file", original, ours)
    yield from _path_places(anyio.Path, _open_of_path(anyio.Path), like_anyio, whole=whole, names=names)
    if streams:
        module = importlib.import_module("anyio.streams.file")
        for kind in (FileReadStream, FileWriteStream):
            yield Place(module, kind.__name__, getattr(module, kind.__name__), kind)
    if names:
        module = importlib.import_module("anyio._core._tempfile")
        for name, thing in _TEMPORARY.items():
            for owner in (anyio, module):
                yield Place(owner, name, getattr(module, name), thing)


def _path_places(path: Any, opening: Any, like: Callable[[str, Any], Any], *, whole: bool, names: bool) -> Iterator[Place]:
    yield Place(path, "open", vars(path)["open"], opening)
    for name in (*(WHOLE if whole else ()), *(NAMES if names else ())):
        original = vars(path).get(name)
        if original is not None:
            yield Place(path, name, original, like(name, original))


def _trio_open_file(original: Any) -> Callable[..., FileOpener[Any]]:
    @wraps(original)
    def open_file(
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> FileOpener[Any]:
        return opener_of("open_file", original, file, mode, buffering, encoding, errors, newline, closefd, opener)

    return open_file


def _anyio_open_file(original: Any) -> Callable[..., FileOpener[Any]]:
    @wraps(original)
    def open_file(
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
        *,
        limiter: Any = None,
    ) -> FileOpener[Any]:
        return opener_of("open_file", original, file, mode, buffering, encoding, errors, newline, closefd, opener, limiter=limiter)

    return open_file


def _open_of_path(path: Any) -> Callable[..., FileOpener[Any]]:
    original = vars(path)["open"]

    def otherwise(file: Any, mode: str, buffering: int, encoding: Any, errors: Any, newline: Any, *_: Any, **__: Any) -> Any:
        # It hands on the limiter of the path itself.
        return original(file, mode, buffering, encoding, errors, newline)

    @wraps(original)
    def open(
        self: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> FileOpener[Any]:
        limiter = getattr(self, "limiter", None)
        return opener_of("open", otherwise, self, mode, buffering, encoding, errors, newline, limiter=limiter)

    return open
