"""`Listing`: what every listing returns; `scandir` and its `DirEntry`; `listdir`.

A directory is read by requests of 32 KiB, about 1,000 names each: a worker opens it with the first one and closes it with the last. Between
two requests the listing owns the open directory. When a listing is dropped or left early, the engine lets a worker close what it owns, and
no task waits for that.

The entries of one request are handed out without a checkpoint. So a listing has one checkpoint for each request, not for each entry.

A *step* reads more entries. While a task waits in one, a worker uses the open directory and the memory of the listing. So another task
cannot make a step, and a listing that another task closes is only marked as ended: the step itself then releases what is open.
"""

from __future__ import annotations

import os
import stat as _stat
import warnings
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from trio_aio._backends import raise_if_cancelled, shielded_checkpoint
from trio_aio._bulk.waiting import wait_for
from trio_aio._context.shared import current_core, given_core
from trio_aio._engine.descriptor import Descriptor
from trio_aio._errors import NotCopied, os_error
from trio_aio._files.open import drop_unclaimed
from trio_aio._lanes.protocols import State
from trio_aio._names.calls import is_bytes, name_of, stat_of
from trio_aio._requests.names import ListNames, new_listing_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import TracebackType

    from typing_extensions import Self

    from trio_aio._context.context import AIOContext
    from trio_aio._context.core import Core
    from trio_aio._names.calls import AnyPath, Guard, Name
    from trio_aio._requests.names import Listed

__all__ = (
    *("DT_DIR", "DT_LNK", "DT_REG", "ERROR", "DirEntry", "Directory", "Entries", "Listing"),
    *("entries_of", "listdir", "names_maker", "scandir"),
)

T = TypeVar("T")

DT_DIR, DT_REG, DT_LNK = 4, 8, 10  # dirent.h
ERROR = 128  # added to an errno in `Listed.targets`


class Listing(NotCopied, Generic[T]):
    """The entries of a directory or a tree, read as they are needed.

    ``async for entry in listing`` yields them as they are read, and ``await listing`` returns a list of all. ``async with listing`` closes
    it early; so does dropping it, without waiting. It can be used once. Order: the kernel's. An OSError of the listing is raised where it
    happens, and ends it. A step that was cancelled can be made again, and loses nothing. A listing that was never used warns
    (RuntimeWarning). Only one task at a time may wait for entries: RuntimeError for another. Any task may close it.
    """

    def __init__(self, core: Core | None, guard: Guard | None = None) -> None:
        # Subclasses call this last: from here on, `__del__` warns and releases.
        self._given: Core | None = core
        # For the first requests: they start from a directory that may be closed meanwhile.
        self._guard: Guard | None = guard
        self._used: bool = False
        self._stepping: bool = False  # a task waits for entries
        self._closed_in_step: bool = False  # another task has closed it meanwhile
        self._ended: bool = False
        self._batch: list[T] = []
        self._at: int = 0

    # ---- what each kind of listing does

    async def _next_batch(self, core: Core) -> list[T] | None:
        """Return more entries, perhaps none; None: there are no more."""
        raise NotImplementedError

    def _release(self) -> None:
        """Release what it owns, without waiting."""

    # ---- for users

    def __aiter__(self) -> Self:
        self._used = True
        return self

    async def __anext__(self) -> T:
        self._used = True
        while self._at == len(self._batch):
            batch = await self._step()
            if batch is None:
                raise StopAsyncIteration
            self._batch, self._at = batch, 0
        entry = self._batch[self._at]
        self._at += 1
        return entry

    def __await__(self) -> Generator[Any, Any, list[T]]:
        self._used = True
        return self._all().__await__()

    async def __aenter__(self) -> Self:
        self._used = True
        return self

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self._close()

    async def aclose(self) -> None:
        """End it early: it yields no more entries. What it has open is closed by a worker, and this does not wait for that.

        A task that waits for the next entry meanwhile gets none: its loop ends. One that awaits the list gets RuntimeError.
        """
        self._used = True
        core = self._given or current_core()
        core.check()
        self._close()
        await core.checkpoint()

    def _close(self) -> None:
        self._closed_in_step = self._stepping
        self._end()

    async def _all_once(self) -> list[T]:
        """Return a list of all, as ``await`` does."""
        return await self

    async def _all(self) -> list[T]:
        entries = self._batch[self._at :]
        self._batch, self._at = [], 0
        had_ended = self._ended
        try:
            while (batch := await self._step()) is not None:
                entries.extend(batch)
        except BaseException:
            if not self._ended:
                self._batch = entries  # for a call that is made again
            raise
        if self._closed_in_step and not had_ended:
            raise RuntimeError("another task has closed this listing while it was awaited: it may have had more entries")
        return entries

    async def _step(self) -> list[T] | None:
        """Return more entries, perhaps none; None: there are no more. RuntimeError if another task waits for some."""
        if self._ended:
            await raise_if_cancelled()
            await shielded_checkpoint()
            return None
        core = self._given = self._given or current_core()
        core.check()  # before anything has happened: a call of another thread must not end it
        if self._stepping:
            raise RuntimeError("another task is waiting for the next entry: iterate in one task, or make a listing for each")
        try:  # twice: an interrupt may come in front of a `finally`
            try:
                self._stepping = True
                batch = await self._more(core)
            finally:
                self._stepping = False
        finally:
            self._stepping = False
            if self._ended:
                self._release()
        return None if self._ended else batch

    async def _more(self, core: Core) -> list[T] | None:
        try:
            if self._guard is None:
                batch = await self._next_batch(core)
            else:
                batch = await self._guard(lambda: self._next_batch(core))
                self._guard = None
        except Exception:  # not a cancellation: after one it can continue
            self._end()
            raise
        if batch is None:
            self._end()
        return batch

    def _end(self) -> None:
        self._ended = True
        self._batch, self._at = [], 0
        if not self._stepping:
            self._release()

    def __del__(self) -> None:
        if not getattr(self, "_used", True):
            warnings.warn(f"this {type(self).__name__} was never awaited or iterated", RuntimeWarning, stacklevel=2, source=self)
        if not getattr(self, "_ended", True):
            self._release()


class Directory:
    """One directory that is being read, request by request.

    start: what its path starts from. path: as the kernel takes it; None: `start` itself. shown: for errors.
    """

    __slots__ = ("_memory", "_opened", "_path", "_start", "_unread", "finished", "flags")

    def __init__(self, start: int, path: bytes | None, shown: object, **flags: Any) -> None:
        self._start: Descriptor = Descriptor(start, shown)
        self._path: bytes | None = path
        self._opened: Descriptor = Descriptor(-1, shown)
        self._memory: Any = None
        self._unread: ListNames | None = None  # the last request, until its answer was taken
        self.flags: dict[str, Any] = flags
        self.finished: bool = False

    def request(self) -> ListNames:
        """Return the request for its next part. Only one may exist at a time."""
        if self._memory is None:
            self._memory = new_listing_memory()
        request = self._unread = ListNames(self._start, self._path, self._opened, self._memory, **self.flags)
        return request

    def take(self, request: ListNames) -> Listed:
        """Return what a request has read. OSError if it failed."""
        self._unread = None
        self.finished = not self._opened.unclaimed
        if request.result < 0:
            raise request.error()
        listed = request.listed()
        if self.finished:
            self._memory = None
        return listed

    async def read(self, core: Core) -> Listed:
        """Read its next part. OSError. Cancelled: it can be called again."""
        request = self._unread
        if request is None or request.state in (State.CREATED, State.WITHDRAWN):
            request = self.request()
            try:
                await core.submit_and_wait(request)
            except OSError:
                self.finished = True
                raise
        else:  # a native cancellation or a signal's exception has ended the step that waited for it
            core.check()
            backend = core.backend
            assert backend is not None
            await backend.checkpoint_if_cancelled()
            await wait_for(backend, request)
        return self.take(request)

    def release(self, core: Core | None) -> None:
        """Let a worker close it, if it is open, as soon as no request uses it. No task will take the answer of one in flight."""
        engine = None if core is None else core.engine
        if engine is None:
            return
        request = self._unread
        if request is not None and request.state is not State.CREATED:
            was_left = request.left
            request.left = True  # first: it may be ending in the event loop's thread, and this may be a finalizer in another
            if not request.finished:
                if not was_left:
                    engine.drops.add(None, request)
                return
        drop_unclaimed(engine, self._opened)


class Entries(Listing[T]):
    """The entries of one directory, each made by `make` from what the kernel says."""

    def __init__(self, name: Name, make: Callable[[Listed, Core], list[T]], core: Core | None, **flags: Any) -> None:
        if name.resolve:
            flags["beneath"] = 1
        self._directory: Directory = Directory(name.dir, name.path, name.shown, **flags)
        self._make: Callable[[Listed, Core], list[T]] = make
        super().__init__(core, name.guard)

    async def _next_batch(self, core: Core) -> list[T] | None:
        if self._directory.finished:
            return None
        return self._make(await self._directory.read(core), core)

    def _release(self) -> None:
        self._directory.release(self._given)


class DirEntry:
    """An entry of `scandir`, as ``os.DirEntry``. What it knows, the listing's request has found out: its plain methods make no system
    call.
    """

    __slots__ = ("_core", "_inode", "_name", "_path", "_start", "_status", "_target", "_type")

    def __init__(
        self, name: Any, path: Any, inode: int, kind: int, target: int, status: os.stat_result | None, core: Core, start: Name
    ) -> None:
        self._name: Any = name
        self._path: Any = path
        self._inode: int = inode
        self._type: int = kind
        self._target: int = target
        self._status: os.stat_result | None = status
        self._core: Core = core
        # The directory that was listed: its descriptor and flags are those of the entry.
        self._start: Name = start

    @property
    def name(self) -> Any:
        """The name in its directory: bytes if the directory's path is bytes, otherwise str."""
        return self._name

    @property
    def path(self) -> Any:
        """The directory's path as it was passed, joined with the name."""
        return self._path

    def __fspath__(self) -> Any:
        return self._path

    def __repr__(self) -> str:
        return f"<DirEntry {self._name!r}>"

    def inode(self) -> int:
        """Return the inode number."""
        return self._inode

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Return whether it is a directory, or a link to one. As ``os.DirEntry.is_dir``."""
        return self._is(DT_DIR, follow_symlinks)

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Return whether it is a regular file, or a link to one. As ``os.DirEntry.is_file``."""
        return self._is(DT_REG, follow_symlinks)

    def is_symlink(self) -> bool:
        """Return whether it is a symbolic link, broken or not."""
        return self._type == DT_LNK

    def is_junction(self) -> bool:
        """Return False: Linux has no junctions."""
        return False

    async def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """As ``os.DirEntry.stat``: what the listing has found out, if it was made with ``stat=True`` and this is no link. statx(2)."""
        status = self._status
        if status is not None and not (follow_symlinks and _stat.S_ISLNK(status.st_mode)):
            await self._core.checkpoint()
            return status
        name = self._start._replace(path=os.fsencode(self._path), shown=self._path)
        if name.guard is not None:
            return await name.guard(lambda: stat_of(self._core, name, follow_symlinks=follow_symlinks))  # type: ignore[no-any-return]
        return await stat_of(self._core, name, follow_symlinks=follow_symlinks)

    def _is(self, wanted: int, follow_symlinks: bool) -> bool:
        if self._type != DT_LNK or not follow_symlinks:
            return self._type == wanted
        if self._target >= ERROR:
            raise os_error(self._target - ERROR, self._path)
        return self._target == wanted


def scandir(path: AnyPath = ".", *, stat: bool = False, context: AIOContext | None = None) -> Listing[DirEntry]:
    """Return a `Listing` of the `DirEntry`s of a directory, without ``.`` and ``..``. As ``os.scandir``. getdents64(2).

    path: str, bytes, PathLike or a descriptor. stat: the requests that list also bring the attributes of every entry.
    OSError: FileNotFoundError, NotADirectoryError, PermissionError. Cancelled before the listing has started: no effect.
    """
    return entries_of(name_of(path), path, given_core(context), stat=stat)


def entries_of(name: Name, path: AnyPath, core: Core | None, *, stat: bool) -> Listing[DirEntry]:
    """Return a `Listing` of the `DirEntry`s of a directory. path: as the caller passed it."""

    def make(listed: Listed, used: Core) -> list[DirEntry]:
        entries = []
        plain: Any = os.fspath(path) if not isinstance(path, int) else path
        statuses = listed.stats if listed.stats is not None else [None] * len(listed.names)
        for each, inode, kind, target, status in zip(listed.names, listed.inodes, listed.types, listed.targets, statuses, strict=True):
            own = each if isinstance(plain, bytes) else os.fsdecode(each)
            whole = own if isinstance(plain, int) else os.path.join(plain, own)
            entries.append(DirEntry(own, whole, inode, kind, target, status, used, name))
        return entries

    return Entries(name, make, core, targets=True, stats=stat)


async def listdir(path: AnyPath | None = None, *, context: AIOContext | None = None) -> list[Any]:
    """As ``os.listdir``: the names in a directory, bytes if `path` is bytes, otherwise str. getdents64(2)."""
    path = "." if path is None else path
    return await Entries(name_of(path), names_maker(path), given_core(context))


def names_maker(path: AnyPath) -> Callable[[Listed, Core], list[Any]]:
    """Return a function for `Entries` that returns plain names, of the type that fits `path`."""
    as_bytes = is_bytes(path)

    def make(listed: Listed, _: Core) -> list[Any]:
        return listed.names if as_bytes else [os.fsdecode(each) for each in listed.names]

    return make
