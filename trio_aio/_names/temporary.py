"""Temporary files and directories, with the arguments of ``tempfile`` and of anyio.

A file without a name is made with O_TMPFILE where the filesystem has it, and is otherwise removed as soon as it is open. Names are random,
and made with O_EXCL. What has a name is removed at the end, and no cancellation stops that: `leftovers` says how.
"""

from __future__ import annotations

import os
import random
import tempfile
import warnings
from typing import TYPE_CHECKING, Any, AnyStr, Generic, cast

from trio_aio._backends import Deferred, raise_if_cancelled, shielded_checkpoint
from trio_aio._context.shared import checked_core, current_core, given_core
from trio_aio._engine.descriptor import Descriptor
from trio_aio._errors import UsedOnce
from trio_aio._files.binary import AsyncFile
from trio_aio._files.mode import format_of
from trio_aio._files.open import dropped_on_error, open_descriptor
from trio_aio._names.calls import encoded, name_of, request_of
from trio_aio._names.leftovers import left, remove_directory, remove_later, remove_name, run_to_the_end, take_back
from trio_aio._names.removing import remove_named_tree
from trio_aio._requests.base import State
from trio_aio._requests.contents import TemporaryName
from trio_aio._requests.names import Call, ChangeName, OpenFile
from trio_aio._requests.opening import AT_FDCWD

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import TracebackType

    from typing_extensions import Self

    from trio_aio._context.context import AIOContext
    from trio_aio._context.core import Core
    from trio_aio._files.text import AsyncTextFile
    from trio_aio._requests.names import NameRequest

__all__ = (
    *("NamedTemporaryFile", "TemporaryDirectory", "TemporaryFile"),
    *("gettempdir", "gettempdirb", "mkdtemp", "mkstemp"),
)

_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789_"
_random = random.SystemRandom()
os.register_at_fork(after_in_child=lambda: globals().__setitem__("_random", random.SystemRandom()))


async def gettempdir(*, context: AIOContext | None = None) -> str:
    """As ``tempfile.gettempdir``. The first call of a process tries directories, in a thread."""
    used = checked_core(context)
    await used.checkpoint()
    if tempfile.tempdir is not None:
        return os.fsdecode(tempfile.tempdir)
    backend = used.backend
    assert backend is not None
    return os.fsdecode(await backend.run_in_thread(tempfile.gettempdir))


async def gettempdirb(*, context: AIOContext | None = None) -> bytes:
    """As ``tempfile.gettempdirb``."""
    return os.fsencode(await gettempdir(context=context))


async def _whole_name(core: Core, suffix: Any, prefix: Any, directory: Any) -> tuple[Any, Any, Any]:
    """Return prefix, suffix and directory with the defaults filled in, all str or all bytes. TypeError if they are mixed."""
    given = [os.fspath(part) for part in (suffix, prefix, directory) if part is not None]
    if len({type(part) for part in given}) > 1:
        raise TypeError("suffix, prefix and dir must all be str, or all be bytes")
    as_bytes = bool(given) and isinstance(given[0], bytes)
    parts = [
        "" if suffix is None else os.fsdecode(suffix),
        tempfile.gettempprefix() if prefix is None else os.fsdecode(prefix),
        await gettempdir(context=core.context) if directory is None else os.fsdecode(directory),
    ]
    suffix, prefix, directory = (os.fsencode(part) if as_bytes else part for part in parts)
    return suffix, prefix, os.path.abspath(directory)  # noqa: ASYNC240 - no system call but getcwd, and that for a relative path only


async def _make(core: Core, suffix: Any, prefix: Any, directory: Any, request_for: Callable[[Any], NameRequest]) -> Any:
    """Make random names until one is new, each by the request that `request_for` returns, and return the last request and its path.

    FileExistsError after ``tempfile.TMP_MAX`` tries. Cancelled: nothing was made, or it was removed.
    """
    suffix, prefix, directory = await _whole_name(core, suffix, prefix, directory)
    for tries in range(tempfile.TMP_MAX):
        text = "".join(_random.choices(_LETTERS, k=8))
        path = os.path.join(directory, prefix + (text.encode() if isinstance(prefix, bytes) else text) + suffix)
        request = request_for(path)
        try:
            with dropped_on_error(core, request.descriptor):
                await request_of(core, request)
        except FileExistsError:
            if tries + 1 == tempfile.TMP_MAX:
                raise
            continue
        except BaseException as error:
            if request.state is State.COMPLETED and not request.failed:
                await take_back(core, path, error, directory=not isinstance(request, OpenFile))
            raise
        return request, path
    raise FileExistsError(17, "no usable temporary name found", directory)


async def _make_file(core: Core, suffix: Any, prefix: Any, directory: Any) -> tuple[Descriptor, Any]:
    """Make a file with a random name, and return its descriptor and its path. Not for appending: as ``tempfile``, whatever the mode."""
    how = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW

    def request_for(path: Any) -> OpenFile:
        return OpenFile(Descriptor(AT_FDCWD, path), encoded(path), flags=how, mode=0o600)

    request, path = await _make(core, suffix, prefix, directory, request_for)
    return request.descriptor, path


async def mkstemp(
    suffix: AnyStr | None = None,
    prefix: AnyStr | None = None,
    dir: AnyStr | os.PathLike[AnyStr] | None = None,
    text: bool = False,
    *,
    context: AIOContext | None = None,
) -> tuple[int, AnyStr]:
    """As ``tempfile.mkstemp``: make a file with the mode 0600, and return an open descriptor and its path. Both are the caller's."""
    descriptor, path = await _make_file(checked_core(context), suffix, prefix, dir)
    descriptor.take_unclaimed()
    return descriptor.fd, path


async def mkdtemp(
    suffix: AnyStr | None = None,
    prefix: AnyStr | None = None,
    dir: AnyStr | os.PathLike[AnyStr] | None = None,
    *,
    context: AIOContext | None = None,
) -> AnyStr:
    """As ``tempfile.mkdtemp``: make a directory with the mode 0700, and return its path."""

    def request_for(path: Any) -> ChangeName:
        return ChangeName(Call.MKDIR, Descriptor(AT_FDCWD, path), encoded(path), mode=0o700, flags=0)

    _, path = await _make(checked_core(context), suffix, prefix, dir, request_for)
    return cast("AnyStr", path)


class _Temporary(UsedOnce, Generic[AnyStr]):
    """What is made when it is awaited or entered, once."""

    def __init__(self, context: AIOContext | None) -> None:
        self._core: Core | None = given_core(context)
        self._file: AsyncFile | AsyncTextFile | None = None

    async def _open(self) -> AsyncFile | AsyncTextFile:
        raise NotImplementedError

    def __await__(self) -> Generator[Any, Any, Any]:
        self._use(type(self).__name__)
        return self._open().__await__()

    async def __aenter__(self) -> Any:
        self._file = await self
        return self._file

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        file, self._file = self._file, None
        if file is not None:
            await file.__aexit__(kind, value, traceback)


class TemporaryFile(_Temporary[AnyStr]):
    """A temporary file without a name: ``async with TemporaryFile() as file``, or ``await`` it. As ``tempfile.TemporaryFile``.

    The result is an `AsyncFile`, or for a mode without "b" an `AsyncTextFile`. Made with O_TMPFILE; where the filesystem has none, it has a
    name until it is open. direct: open with O_DIRECT. OSError as open(2). Cancelled: what was made is removed.
    """

    def __init__(
        self,
        mode: str = "w+b",
        buffering: int = -1,
        encoding: str | None = None,
        newline: str | None = None,
        suffix: AnyStr | None = None,
        prefix: AnyStr | None = None,
        dir: AnyStr | os.PathLike[AnyStr] | None = None,
        *,
        errors: str | None = None,
        direct: bool = False,
        context: AIOContext | None = None,
    ) -> None:
        super().__init__(context)
        self._arguments: tuple[Any, ...] = (mode, format_of(mode, buffering, encoding, errors, newline, stacklevel=2), buffering)
        self._place: tuple[Any, Any, Any] = (suffix, prefix, dir)
        self._direct: bool = direct

    async def _open(self) -> AsyncFile | AsyncTextFile:
        used = self._core or current_core()
        _, _, directory = await _whole_name(used, *self._place)
        descriptor = Descriptor(AT_FDCWD, directory)
        # Not O_APPEND, whatever the mode: as ``tempfile``, which lets even a file of the mode "a" write at its position.
        flags = os.O_RDWR | (os.O_DIRECT if self._direct else 0)
        with dropped_on_error(used, descriptor):
            await request_of(used, TemporaryName(descriptor, encoded(directory), flags=flags, mode=0o600))
        # As ``tempfile`` does: a file without a name is shown by its number.
        descriptor.name = descriptor.fd
        return await open_descriptor(used, descriptor, *self._arguments, direct=self._direct)


class _NamedFile(AsyncFile):
    """A file that is removed when it is closed, or dropped."""

    # Whether `aclose` removes it; whether it is still to be removed at all.
    removed_at_close: bool = False
    to_remove: bool = False

    async def _close(self) -> None:
        """Close it, and remove its name if the arguments say so, also in a cancelled scope."""
        with Deferred(self._backend) as put_off:
            try:
                with put_off:
                    await super()._close()
            finally:
                if self.removed_at_close:
                    await self._remove()

    async def _remove(self) -> None:
        """Remove its name, if that is still to be done, also in a cancelled scope."""
        if self.to_remove:
            self._core.check()
            await run_to_the_end(self._core, self._remove_name)

    async def _remove_name(self) -> None:
        try:
            await remove_name(self._core, self.name)
        except OSError:
            self.to_remove = False  # the caller knows, and decides
            raise
        self.to_remove = False

    def _drop(self) -> None:
        """Remove it, if that is still to be done."""
        if self.to_remove:
            self.to_remove = False
            remove_later(self._core, os.unlink, self.name)

    def __del__(self) -> None:
        if self.to_remove:
            self._drop()
        super().__del__()


class NamedTemporaryFile(_Temporary[AnyStr]):
    """A temporary file with a name, which is the file's `name`. As ``tempfile.NamedTemporaryFile``.

    delete: it is removed by `aclose`, and on leaving; with ``delete_on_close=False`` only on leaving. Both happen also in a cancelled
    scope. One that is dropped is removed by a thread (ResourceWarning). OSError as open(2). Cancelled: what was made is removed.
    """

    def __init__(
        self,
        mode: str = "w+b",
        buffering: int = -1,
        encoding: str | None = None,
        newline: str | None = None,
        suffix: AnyStr | None = None,
        prefix: AnyStr | None = None,
        dir: AnyStr | os.PathLike[AnyStr] | None = None,
        delete: bool = True,
        *,
        errors: str | None = None,
        delete_on_close: bool = True,
        context: AIOContext | None = None,
    ) -> None:
        super().__init__(context)
        self._arguments: tuple[Any, ...] = (mode, format_of(mode, buffering, encoding, errors, newline, stacklevel=2), buffering)
        self._place: tuple[Any, Any, Any] = (suffix, prefix, dir)
        self._delete: bool = delete
        self._delete_on_close: bool = delete_on_close

    async def _open(self) -> AsyncFile | AsyncTextFile:
        used = self._core or current_core()
        descriptor, path = await _make_file(used, *self._place)
        try:
            file = await open_descriptor(used, descriptor, *self._arguments, kind=_NamedFile)
        except BaseException as error:
            await take_back(used, path, error)
            raise
        binary = file if isinstance(file, AsyncFile) else file.buffer
        assert isinstance(binary, _NamedFile)
        binary.to_remove, binary.removed_at_close = self._delete, self._delete_on_close
        if self._delete:
            left.add(binary)
        return file

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        file = self._file
        if file is None:
            return
        binary = file if isinstance(file, AsyncFile) else file.buffer
        assert isinstance(binary, _NamedFile)
        with Deferred(binary._backend, value) as put_off:
            try:
                with put_off:
                    await super().__aexit__(kind, value, traceback)
            finally:
                if self._delete and not self._delete_on_close:
                    await binary._remove()


class TemporaryDirectory(UsedOnce, Generic[AnyStr]):
    """A temporary directory: ``async with TemporaryDirectory() as name``. As ``tempfile.TemporaryDirectory``.

    Leaving removes it and all that is in it, also in a cancelled scope, and also directories whose mode forbids it. delete: False leaves it
    to `cleanup`. ignore_cleanup_errors: what cannot be removed stays. One that is dropped is removed by a thread (ResourceWarning).
    """

    def __init__(
        self,
        suffix: AnyStr | None = None,
        prefix: AnyStr | None = None,
        dir: AnyStr | os.PathLike[AnyStr] | None = None,
        *,
        ignore_cleanup_errors: bool = False,
        delete: bool = True,
        context: AIOContext | None = None,
    ) -> None:
        self._core: Core | None = given_core(context)
        self._place: tuple[Any, Any, Any] = (suffix, prefix, dir)
        self._ignore: bool = ignore_cleanup_errors
        self._delete: bool = delete
        self._name: Any = None
        self._to_remove: bool = False  # it is removed if it is dropped
        self._removed: bool = False

    @property
    def name(self) -> Any:
        """The path, str or bytes as the arguments; None before it is made."""
        return self._name

    def __await__(self) -> Generator[Any, Any, Self]:
        return self._made().__await__()

    async def _made(self) -> Self:
        await self.__aenter__()
        return self

    async def __aenter__(self) -> AnyStr:
        self._use("TemporaryDirectory")
        core = self._core = self._core or current_core()
        suffix, prefix, directory = self._place
        self._name = await mkdtemp(suffix, prefix, directory, context=core.context)
        self._to_remove = self._delete
        left.add(self)
        return cast("AnyStr", self._name)

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        if self._delete:
            core = self._core or current_core()
            if core.backend is None:
                raise core.refusal()
            with Deferred(core.backend, value):
                await (self.cleanup() if value is None else self._cleanup())

    async def cleanup(self) -> None:
        """Remove it and all that is in it, also in a cancelled scope, and then raise Cancelled. Then a second call is a checkpoint.

        OSError: something could not be removed; a second call tries again.
        """
        await self._cleanup()
        await raise_if_cancelled()

    async def _cleanup(self) -> None:
        """Do what `cleanup` does, and do not raise Cancelled."""
        core = self._core or current_core()
        if self._name is None or self._removed:
            await shielded_checkpoint()
            return
        core.check()
        await run_to_the_end(core, self._remove)

    async def _remove(self) -> None:
        errors: list[OSError] = []
        on_error = errors.append if self._ignore else None
        core = self._core or current_core()
        try:
            await remove_named_tree(core, name_of(self._name), missing_ok=True, on_error=on_error, insist=True)
        except OSError:
            self._to_remove = False  # as ``tempfile``: the caller knows, and decides
            raise
        self._to_remove, self._removed = False, not errors

    def __del__(self) -> None:
        if getattr(self, "_to_remove", False):
            self._drop()

    def _drop(self) -> None:
        """Remove it, if that is still to be done, and warn."""
        if self._to_remove:
            self._to_remove = False
            assert self._core is not None
            remove_later(self._core, remove_directory, self._name)
            if self._core.state != "forked":
                warnings.warn(f"unclosed {self!r}: use it in `async with`", ResourceWarning, stacklevel=2, source=self)

    def __repr__(self) -> str:
        return f"<TemporaryDirectory {self._name!r}>"
