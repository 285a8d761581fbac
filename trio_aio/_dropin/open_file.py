"""`open_file`: opens what ``trio.open_file`` and ``anyio.open_file`` open, with their arguments.

Regular files and block devices are files of ours. A FIFO, a socket, a terminal or another character device is opened by anyio, in a thread:
its open may block until another process opens the other side, and so may each call. Our workers look at the kind of a file before they open
it. So nothing is opened twice, and an `opener` is called once: its descriptor is handed on.

`install` puts functions like it into the places of trio's and anyio's own (`_dropin.places`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

from anyio import AsyncFile as AnyioFile
from anyio import open_file as open_with_anyio
from anyio import wrap_file

from trio_aio._dropin.limiters import check_limiter, for_anyio
from trio_aio._files.open import make_opener

if TYPE_CHECKING:
    import os
    from collections.abc import Awaitable, Callable

    from _typeshed import OpenBinaryMode, OpenTextMode

    from trio_aio._context.context import AIOContext
    from trio_aio._files.binary import AsyncFile
    from trio_aio._files.opener import FileOpener
    from trio_aio._files.text import AsyncTextFile

__all__ = ("open_file", "opener_of", "wrap_file")


@overload
def open_file(
    file: str | bytes | os.PathLike[str] | os.PathLike[bytes] | int,
    mode: OpenTextMode = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: Callable[[Any, int], int] | None = None,
    *,
    limiter: Any = None,
    direct: bool = False,
    abandon_on_cancel: bool = False,
    context: AIOContext | None = None,
) -> FileOpener[AsyncTextFile | AnyioFile[str]]: ...


@overload
def open_file(
    file: str | bytes | os.PathLike[str] | os.PathLike[bytes] | int,
    mode: OpenBinaryMode,
    buffering: int = -1,
    encoding: None = None,
    errors: None = None,
    newline: None = None,
    closefd: bool = True,
    opener: Callable[[Any, int], int] | None = None,
    *,
    limiter: Any = None,
    direct: bool = False,
    abandon_on_cancel: bool = False,
    context: AIOContext | None = None,
) -> FileOpener[AsyncFile | AnyioFile[bytes]]: ...


@overload
def open_file(
    file: str | bytes | os.PathLike[str] | os.PathLike[bytes] | int,
    mode: str,
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: Callable[[Any, int], int] | None = None,
    *,
    limiter: Any = None,
    direct: bool = False,
    abandon_on_cancel: bool = False,
    context: AIOContext | None = None,
) -> FileOpener[AsyncFile | AsyncTextFile | AnyioFile[Any]]: ...


def open_file(
    file: str | bytes | os.PathLike[str] | os.PathLike[bytes] | int,
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: Callable[[Any, int], int] | None = None,
    *,
    limiter: Any = None,
    direct: bool = False,
    abandon_on_cancel: bool = False,
    context: AIOContext | None = None,
) -> FileOpener[Any]:
    """Open a file as ``anyio.open_file`` does: text by default, and any kind of file. A worker calls open(2).

    ``async with await open_file(path) as file:``, ``async with open_file(path) as file:`` or ``file = await open_file(path)``. A regular
    file or block device is an `AsyncFile` or an `AsyncTextFile`, as from `open_aio`. Any other kind is opened by anyio in a thread, and is
    an ``anyio.AsyncFile``; with `direct` it is refused (``io.UnsupportedOperation``).

    - `limiter`: an ``anyio.CapacityLimiter``, a ``trio.CapacityLimiter`` or None; otherwise TypeError. It is the file's `limiter`. Files of
      ours take no token from it, because their calls take no thread; those of anyio do, and need anyio's limiter if trio does not run.
    - The other arguments, and cancellation, are those of `open_aio`.

    OSError as from ``open()``, with the file's name.
    """
    return opener_of(
        "open_file", with_anyio, file, mode, buffering, encoding, errors, newline, closefd, opener,
        limiter=limiter, direct=direct, abandon_on_cancel=abandon_on_cancel, context=context,
    )  # fmt: skip


def with_anyio(file: Any, *arguments: Any, **limiter: Any) -> Awaitable[Any]:
    """Open a file of another kind as ``anyio.open_file`` did before `install`."""
    return open_with_anyio(file, *arguments, **limiter)


def opener_of(
    function: str,
    original: Callable[..., Awaitable[Any]],
    file: Any,
    mode: str,
    buffering: int,
    encoding: str | None,
    errors: str | None,
    newline: str | None,
    closefd: bool = True,
    opener: Callable[[Any, int], int] | None = None,
    *,
    limiter: Any = None,
    direct: bool = False,
    abandon_on_cancel: bool = False,
    context: AIOContext | None = None,
) -> FileOpener[Any]:
    """Return what the public function `function` returns. It is called by that function directly: warnings name its caller.

    original: opens files of the kinds that `open_aio` does not open, with the arguments of ``open()`` and `limiter` if there is one.
    """
    check_limiter(limiter)

    def otherwise(handing_over: Callable[[Any, int], int] | None) -> Awaitable[Any]:
        more = {} if limiter is None else {"limiter": for_anyio(limiter)}
        return original(file, mode, buffering, encoding, errors, newline, closefd, handing_over, **more)

    return make_opener(
        function, file, mode, buffering, encoding, errors, newline, closefd, opener, direct, abandon_on_cancel, context,
        stacklevel=4, otherwise=otherwise, limiter=limiter,
    )  # fmt: skip
