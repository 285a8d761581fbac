"""Methods for ``trio.Path`` and ``anyio.Path`` that call those of our `Path`. What they return has the class of the path they belong to.

anyio's listings are iterated with ``async for``; trio's are awaited, and return an ordinary iterator.
"""

from __future__ import annotations

import io
from functools import wraps
from typing import TYPE_CHECKING, Any

from trio_aio._names.path import Path

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

__all__ = ("NAMES", "WHOLE", "like_anyio", "like_trio")

WHOLE = ("read_bytes", "write_bytes", "read_text", "write_text")
_PLAIN = (
    *("stat", "lstat", "exists", "is_dir", "is_file", "is_symlink", "is_socket", "is_fifo", "is_block_device", "is_char_device"),
    *("is_junction", "is_mount", "samefile", "owner", "group"),
    *("touch", "mkdir", "unlink", "rmdir", "chmod", "lchmod", "symlink_to", "hardlink_to"),
)
_TO_PATHS = ("absolute", "readlink", "expanduser", "resolve", "rename", "replace", "copy", "copy_into", "move", "move_into")
_OF_CLASS = ("cwd", "home")
_LISTINGS = ("iterdir", "glob", "rglob", "walk")
NAMES = (*_PLAIN, *_TO_PATHS, *_OF_CLASS, *_LISTINGS)


def like_anyio(name: str, original: Any) -> Any:
    """Return the replacement of a method of ``anyio.Path``."""
    if name in _LISTINGS:
        return _anyio_listing(name, original)
    return _method(name, original)


def like_trio(name: str, original: Any) -> Any:
    """Return the replacement of a method of ``trio.Path``."""
    if name in _LISTINGS:
        return _trio_listing(name, original)
    return _method(name, original)


def _maker(path: Any) -> Callable[[Any], Any]:
    """Return a function that makes paths of the class of `path`, with its limiter if it has one."""
    cls = type(path)
    if not hasattr(path, "limiter"):
        return cls
    limiter = path.limiter
    return lambda made: cls(made, limiter=limiter)


def _method(name: str, original: Any) -> Any:
    call: Any = getattr(Path, name)
    if name in _OF_CLASS:

        @wraps(original.__func__)
        async def of_class(cls: Any, **limiter: Any) -> Any:
            return cls(await call(), **limiter)

        return classmethod(of_class)  # type: ignore[arg-type]
    if name in _TO_PATHS:

        @wraps(original)
        async def to_path(self: Any, *args: Any, **kwargs: Any) -> Any:
            return _maker(self)(await call(Path(self), *args, **kwargs))

        return to_path
    if name in WHOLE:

        @wraps(original)
        async def whole(self: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return await call(Path(self), *args, **kwargs)
            except io.UnsupportedOperation:
                # Neither a regular file nor a block device, which was found before anything was opened.
                return await original(self, *args, **kwargs)

        return whole

    @wraps(original)
    async def plain(self: Any, *args: Any, **kwargs: Any) -> Any:
        return await call(Path(self), *args, **kwargs)

    return plain


def _converter(name: str, path: Any) -> Callable[[Any], Any]:
    make = _maker(path)
    return (lambda entry: (make(entry[0]), *entry[1:])) if name == "walk" else make


class _Converted:
    """The entries of a `Listing`, with paths of another class. An asynchronous iterator."""

    def __init__(self, entries: AsyncIterator[Any], convert: Callable[[Any], Any]) -> None:
        self._entries: AsyncIterator[Any] = entries
        self._convert: Callable[[Any], Any] = convert

    def __aiter__(self) -> _Converted:
        return self

    async def __anext__(self) -> Any:
        return self._convert(await self._entries.__anext__())


def _anyio_listing(name: str, original: Any) -> Any:
    call: Any = getattr(Path, name)

    @wraps(original)
    def listing(self: Any, *args: Any, **kwargs: Any) -> _Converted:
        return _Converted(call(Path(self), *args, **kwargs).__aiter__(), _converter(name, self))

    return listing


def _trio_listing(name: str, original: Any) -> Any:
    call: Any = getattr(Path, name)

    @wraps(original)
    async def listing(self: Any, *args: Any, **kwargs: Any) -> Any:
        return map(_converter(name, self), await call(Path(self), *args, **kwargs))

    return listing
