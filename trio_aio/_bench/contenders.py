"""The contenders: the same load, as a user of each library would write it.

Each is a function that is given a `Work`, opens what it needs, and lets its tasks go through the phases. All are written the way that is
quickest for the library: no seek where a read goes on from the last, no buffer of ``io`` in between, one hop to a thread and not two.
Peers are imported when it is their turn; one that is not installed is left out.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import shutil
import subprocess
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import anyio
import anyio.lowlevel
import anyio.to_thread

from trio_aio import AIOContext, open_aio, read_bytes
from trio_aio._bench.measure import Measured, Phase, Unavailable, Work, drive
from trio_aio._context import MAX_WORKERS
from trio_aio.testing import FaultyContext

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from typing_extensions import Self

__all__ = ("Contender", "File", "measure")

Loop = Literal["trio", "asyncio"]
File = Literal["small", "large", "lines", "sparse", "long sparse", "none"]
BATCH = 1024  # blocks of one read_blocks
DEPTH = 8  # of chunks


@dataclass(frozen=True)
class Contender:
    """A library and a way to use it."""

    name: str
    run: Callable[[Work], Any]
    """A coroutine function if there is a `loop`."""
    loop: Loop | None = None
    ours: bool = False
    same_work: bool = True
    """False for what only gives a measure, such as a bare checkpoint or a loop that blocks: it is no peer that wins."""
    file: File | None = None
    """What it reads, if not the row's file."""


def measure(contender: Contender, work: Work) -> Measured:
    """Run one round of a contender in a run of its own; `Unavailable`, or whatever goes wrong in it."""
    if contender.loop is None:
        contender.run(work)
        return work.measured
    if contender.loop == "trio" and find_spec("trio") is None:
        raise Unavailable("trio is not installed")
    anyio.run(contender.run, work, backend=contender.loop)
    return work.measured


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise Unavailable(f"{name.partition('.')[0]} is not installed, or not for this machine: {error}") from None


# ---- trio_aio


async def pread(work: Work) -> None:
    """`AsyncFile.pread`, all tasks on one file."""
    size = work.load.piece
    async with open_aio(work.load.path, direct=work.load.direct) as file:

        async def task(phase: Phase) -> None:
            read = file.pread
            for offset in phase.offsets():
                await read(size, offset)

        await drive(work, task)


async def preadinto(work: Work) -> None:
    """`AsyncFile.preadinto`, each task into memory of its own, again and again."""
    async with open_aio(work.load.path, direct=work.load.direct) as file:

        async def task(phase: Phase) -> None:
            buffer = mmap.mmap(-1, work.load.piece)
            for offset in phase.offsets():
                await file.preadinto(buffer, offset)

        await drive(work, task)


async def read_blocks(work: Work) -> None:
    """`AsyncFile.read_blocks` by one task; as many are in flight as there would be tasks."""
    size = work.load.piece
    file: Any
    async with (
        AIOContext(work.load.tasks) as context,
        open_aio(work.load.path, direct=work.load.direct, context=context) as file,
    ):
        into = mmap.mmap(-1, BATCH * size)  # aligned, as memory for direct I/O should be

        async def task(phase: Phase) -> None:
            for offsets in phase.batches(BATCH):
                await file.read_blocks(offsets, size, into=memoryview(into)[: len(offsets) * size])
                phase.operations += len(offsets)

        await drive(work, task, 1)


async def chunks(work: Work) -> None:
    """`AsyncFile.chunks`, from the beginning again until the time is over."""
    file: Any
    async with open_aio(work.load.path, direct=work.load.direct) as file:

        async def task(phase: Phase) -> None:
            while True:
                async for _ in file.chunks(work.load.piece, depth=DEPTH):
                    phase.operations += 1
                    if phase.over:
                        break
                if phase.over or work.load.whole:
                    return

        await drive(work, task, 1)


async def copy(work: Work) -> None:
    """`AsyncFile.chunks` into `AsyncFile.writer`."""
    with _scratch(work) as path:
        file: Any
        copied: Any
        async with open_aio(work.load.path) as file, open_aio(path, "wb") as copied:

            async def task(phase: Phase) -> None:
                async with copied.writer(size=work.load.piece, depth=DEPTH) as writer:
                    async for chunk in file.chunks(work.load.piece, depth=DEPTH):
                        phase.operations += 1
                        await writer.write(chunk)

            await drive(work, task, 1)


async def append(work: Work) -> None:
    """`AsyncFile.pwrite` and `fdatasync` on one file that is open for appending: `write` would take turns, for the cursor's sake."""
    block = os.urandom(work.load.piece)
    with _scratch(work) as path:
        async with open_aio(path, "ab") as file:

            async def task(phase: Phase) -> None:
                for _ in phase.offsets():
                    await file.pwrite(block, 0)
                    await file.fdatasync()

            await drive(work, task)


async def pwrite(work: Work) -> None:
    """`AsyncFile.pwrite`, all tasks on one file."""
    block = os.urandom(work.load.piece)
    with _scratch(work) as path:
        async with open_aio(path, "wb") as file:

            async def task(phase: Phase) -> None:
                for offset in phase.offsets():
                    await file.pwrite(block, offset)

            await drive(work, task)


async def close(work: Work) -> None:
    """A context and a file of its own for each operation, sixteen reads, and the end of both."""

    async def task(phase: Phase) -> None:
        for offset in phase.offsets():
            async with (
                AIOContext(16) as context,
                open_aio(work.load.path, direct=work.load.direct, context=context) as file,
                anyio.create_task_group() as group,
            ):
                for _ in range(16):
                    group.start_soon(file.pread, work.load.piece, offset)

    await drive(work, task)


async def whole(work: Work) -> None:
    """`read_bytes` of a file that has the size of a piece."""
    with _small_file(work) as path:

        async def task(phase: Phase) -> None:
            while not (phase.over and phase.operations):
                await read_bytes(path)
                phase.operations += 1

        await drive(work, task)


async def beside_hung(work: Work) -> None:
    """`AsyncFile.pread` of one file while half of the workers hang with another."""
    async with (
        FaultyContext() as context,
        open_aio(work.load.path, context=context) as file,
        open_aio(work.load.path, context=context, abandon_on_cancel=True) as stuck,
        anyio.create_task_group() as group,
    ):
        with context.hang(file=stuck.fileno(), operation="read") as hang:
            for _ in range(MAX_WORKERS // 2):
                group.start_soon(stuck.pread, work.load.piece, 0)
            while hang.held < MAX_WORKERS // 2:
                await anyio.lowlevel.checkpoint()

            async def task(phase: Phase) -> None:
                for offset in phase.offsets():
                    await file.pread(work.load.piece, offset)

            await drive(work, task)
            group.cancel_scope.cancel()


async def failing(work: Work) -> None:
    """`AsyncFile.pread`, every one of which fails with EIO."""
    async with FaultyContext() as context, open_aio(work.load.path, context=context) as file:
        context.fail(errno.EIO, operation="read")

        async def task(phase: Phase) -> None:
            for offset in phase.offsets():
                with suppress(OSError):
                    await file.pread(work.load.piece, offset)

        await drive(work, task)


# ---- files with a cursor, all of one shape: trio.open_file, anyio.open_file, aiofiles.open and ours


def _trio_open_file() -> Callable[..., Awaitable[Any]]:
    opener: Callable[..., Awaitable[Any]] = _module("trio").open_file
    return opener


def _anyio_open_file() -> Callable[..., Awaitable[Any]]:
    return anyio.open_file


def _aiofiles_open() -> Callable[..., Awaitable[Any]]:
    opener: Callable[..., Awaitable[Any]] = _module("aiofiles").open
    return opener


def _open_aio() -> Callable[..., Awaitable[Any]]:
    return open_aio


@asynccontextmanager
async def _cursor_file(opener: Callable[..., Awaitable[Any]], path: str, mode: str, buffering: int) -> AsyncIterator[Any]:
    file = await opener(path, mode, buffering)
    try:
        yield file
    finally:
        await (file.aclose if hasattr(file, "aclose") else file.close)()


async def _cursor_reader(find: Callable[[], Callable[..., Awaitable[Any]]], buffering: int, work: Work) -> None:
    # A cached file is read from one end to the other: a seek would be a second hop, and the page cache does not care.
    size, seek = work.load.piece, work.load.cold
    opener = find()

    async def task(phase: Phase) -> None:
        async with _cursor_file(opener, work.load.path, "rb", buffering) as file:
            for offset in phase.offsets():
                if seek:
                    await file.seek(offset)
                if not await file.read(size):
                    await file.seek(0)

    await drive(work, task)


async def _line_reader(find: Callable[[], Callable[..., Awaitable[Any]]], mode: str, look: bool, work: Work) -> None:
    # `look`: a contender that takes seconds for the file looks at the clock at each line; for the quick ones that would be much of a line.
    opener = find()

    async def task(phase: Phase) -> None:
        while not (phase.over and phase.operations):
            async with _cursor_file(opener, work.load.path, mode, -1) as file:
                count = 0
                async for _ in file:
                    count += 1
                    if look and phase.over:
                        break
                phase.operations += count

    await drive(work, task, 1)


def _builtin_lines(mode: str, work: Work) -> None:
    for phase in work.phases():
        with phase:
            while not (phase.over and phase.operations):
                with open(work.load.path, mode) as file:
                    count = 0
                    for _ in file:
                        count += 1
                    phase.operations += count


def _builtin_file(path: str, mode: str) -> IO[Any]:
    return open(path, mode)


class _AsyncLines:
    """The lines of a built-in file by ``async for``, with as little about it as Python allows."""

    __slots__ = ("_file",)

    def __init__(self, file: IO[Any]) -> None:
        self._file: IO[Any] = file

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        for line in self._file:
            return line
        raise StopAsyncIteration


async def _builtin_lines_by_async_for(mode: str, work: Work) -> None:
    """How fast any asynchronous file can be."""

    async def task(phase: Phase) -> None:
        while not (phase.over and phase.operations):
            with _builtin_file(work.load.path, mode) as file:
                count = 0
                async for _ in _AsyncLines(file):
                    count += 1
                phase.operations += count

    await drive(work, task, 1)


def cursor(find: Callable[[], Callable[..., Awaitable[Any]]], *, buffering: int = 0) -> Callable[[Work], Any]:
    """Give a contender's function: reads with a cursor, each task with a file of its own."""
    return partial(_cursor_reader, find, buffering)


def lines(find: Callable[[], Callable[..., Awaitable[Any]]], mode: str, *, look: bool) -> Callable[[Work], Any]:
    """Give a contender's function: reads a file by lines."""
    return partial(_line_reader, find, mode, look)


# ---- one call in a thread


async def thread_pread(work: Work) -> None:
    """``os.pread`` by ``to_thread.run_sync``: what a positional read costs with a hop."""
    run = await _run_sync()
    with _open(work.load.path, os.O_RDONLY | (os.O_DIRECT if work.load.direct else 0)) as fd:
        size = work.load.piece

        async def task(phase: Phase) -> None:
            if work.load.direct:
                buffers = [mmap.mmap(-1, size)]
                for offset in phase.offsets():
                    await run(os.preadv, fd, buffers, offset)
            else:
                for offset in phase.offsets():
                    await run(os.pread, fd, size, offset)

        await drive(work, task)


async def thread_append(work: Work) -> None:
    """``os.write`` and ``os.fdatasync`` in one hop."""
    run = await _run_sync()
    block = os.urandom(work.load.piece)
    with _scratch(work) as path, _open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) as fd:

        def append() -> None:
            os.write(fd, block)
            os.fdatasync(fd)

        async def task(phase: Phase) -> None:
            for _ in phase.offsets():
                await run(append)

        await drive(work, task)


async def thread_pwrite(work: Work) -> None:
    """``os.pwrite`` by ``to_thread.run_sync``."""
    run = await _run_sync()
    block = os.urandom(work.load.piece)
    with _scratch(work) as path, _open(path, os.O_WRONLY | os.O_CREAT) as fd:

        async def task(phase: Phase) -> None:
            for offset in phase.offsets():
                await run(os.pwrite, fd, block, offset)

        await drive(work, task)


async def thread_whole(work: Work) -> None:
    """``Path.read_bytes`` in one hop."""
    run = await _run_sync()
    with _small_file(work) as path:

        async def task(phase: Phase) -> None:
            while not (phase.over and phase.operations):
                await run(Path(path).read_bytes)
                phase.operations += 1

        await drive(work, task)


async def thread_close(work: Work) -> None:
    """What `close` does, with ``trio.open_file``."""
    opener = _trio_open_file()

    async def task(phase: Phase) -> None:
        for offset in phase.offsets():
            async with _cursor_file(opener, work.load.path, "rb", 0) as file, anyio.create_task_group() as group:
                await file.seek(offset)
                for _ in range(16):
                    group.start_soon(file.read, work.load.piece)

    await drive(work, task)


async def _run_sync() -> Callable[..., Awaitable[Any]]:
    """Give the loop's own way to a thread: trio's, without a detour over anyio."""
    if find_spec("trio") is not None and _module("trio").lowlevel.in_trio_run():
        run: Callable[..., Awaitable[Any]] = _module("trio").to_thread.run_sync
        return run
    return anyio.to_thread.run_sync


# ---- caio and aiofile, on asyncio


def _caio_context(implementation: str, tasks: int) -> Any:
    caio = _module("caio")
    adapter = getattr(caio, f"{implementation}_asyncio", None)
    if adapter is None:
        raise Unavailable(f"caio has no {implementation} here")
    try:
        return adapter.AsyncioContext(max_requests=max(tasks, 128))
    except OSError as error:
        raise Unavailable(f"caio's {implementation} cannot be had here: {error}") from None


async def _caio_pread(implementation: str, work: Work) -> None:
    size = work.load.piece
    with _open(work.load.path, os.O_RDONLY) as fd:
        async with _caio_context(implementation, work.load.tasks) as context:

            async def task(phase: Phase) -> None:
                read = context.read
                for offset in phase.offsets():
                    await read(size, fd, offset)

            await drive(work, task)


async def _caio_append(implementation: str, work: Work) -> None:
    block = os.urandom(work.load.piece)
    with _scratch(work) as path, _open(path, os.O_WRONLY | os.O_CREAT) as fd:
        end = 0
        async with _caio_context(implementation, work.load.tasks) as context:

            async def task(phase: Phase) -> None:
                nonlocal end
                for _ in phase.offsets():
                    start, end = end, end + len(block)
                    await context.write(block, fd, start)
                    await context.fdsync(fd)

            await drive(work, task)


async def _caio_pwrite(implementation: str, work: Work) -> None:
    block = os.urandom(work.load.piece)
    with _scratch(work) as path, _open(path, os.O_WRONLY | os.O_CREAT) as fd:
        async with _caio_context(implementation, work.load.tasks) as context:

            async def task(phase: Phase) -> None:
                for offset in phase.offsets():
                    await context.write(block, fd, offset)

            await drive(work, task)


async def aiofile_pread(work: Work) -> None:
    """``AIOFile.read_bytes``, all tasks on one file."""
    size = work.load.piece
    async with _module("aiofile").AIOFile(work.load.path, "rb") as file:

        async def task(phase: Phase) -> None:
            for offset in phase.offsets():
                await file.read_bytes(size, offset)

        await drive(work, task)


# ---- without a library


async def checkpoint(work: Work) -> None:
    """A bare checkpoint of trio: what no coroutine can be quicker than."""
    step = _module("trio").lowlevel.checkpoint

    async def task(phase: Phase) -> None:
        for _ in phase.offsets():
            await step()

    await drive(work, task)


async def idle(work: Work) -> None:
    """Nothing: how late the ticks are by themselves, on this machine at this time."""

    async def task(phase: Phase) -> None:
        await anyio.sleep(work.load.seconds)

    await drive(work, task, 1)


def pread_loop(work: Work) -> None:
    """``os.pread``, one after another."""
    size = work.load.piece
    with _open(work.load.path, os.O_RDONLY) as fd:
        for phase in work.phases():
            with phase:
                for offset in phase.offsets():
                    os.pread(fd, size, offset)


def preadv_loop(work: Work) -> None:
    """``os.preadv`` into the same memory again and again, which is less than `read_blocks` does."""
    preadv = os.preadv
    buffers = [bytearray(work.load.piece)]
    with _open(work.load.path, os.O_RDONLY) as fd:
        for phase in work.phases():
            with phase:
                for offsets in phase.batches(BATCH):
                    for offset in offsets:
                        preadv(fd, buffers, offset)
                    phase.operations += len(offsets)


def readinto_loop(work: Work) -> None:
    """A plain blocking loop over a file, with one buffer."""
    buffer = bytearray(work.load.piece)
    for phase in work.phases():
        with phase, open(work.load.path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                phase.operations += 1


def fio(work: Work, depth: int | None = None) -> None:
    """fio with libaio: the same file, size, depth and time."""
    program = shutil.which("fio")
    if program is None:
        raise Unavailable("fio is not on the PATH")
    load = work.load
    arguments = {
        "name": "bench",
        "filename": load.path.replace(":", "\\:"),
        "readonly": "",
        "ioengine": "libaio",
        "direct": "1",
        "rw": "read" if load.whole or load.piece >= 1 << 20 else "randread",
        "randrepeat": "0",
        "bs": str(load.piece),
        "size": str(load.size),
        "iodepth": str(load.tasks if depth is None else depth),
        "time_based": "",
        "runtime": f"{max(load.seconds, 0.1) * 1000:.0f}ms",
        "output-format": "json",
    }
    options = [f"--{name}={value}" if value else f"--{name}" for name, value in arguments.items()]
    done = subprocess.run([program, *options], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"fio: {done.stderr.strip() or done.stdout.strip()}")
    (job,) = json.loads(done.stdout[done.stdout.index("{") :])["jobs"]
    read = job["read"]
    seconds = read["runtime"] / 1000
    work.measured.operations = read["total_ios"]
    work.measured.seconds = seconds
    work.measured.cpu = (job["usr_cpu"] + job["sys_cpu"]) / 100 * seconds


@contextmanager
def _open(path: str, flags: int) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _scratch(work: Work) -> Iterator[str]:
    """Give a name that is free, for a file that goes away again."""
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
def _small_file(work: Work) -> Iterator[str]:
    with _scratch(work) as path:
        Path(path).write_bytes(os.urandom(work.load.piece))
        yield path


# ---- all of them, as rows list them


def _caio(run: Callable[[str, Work], Any]) -> tuple[Contender, ...]:
    names = ("linux_uring", "linux_aio", "thread_aio")
    return tuple(Contender(f"caio {name}", partial(run, name), "asyncio") for name in names)


def ours(run: Callable[[Work], Any], suffix: str = "") -> tuple[Contender, ...]:
    """Give trio_aio on both loops."""
    return (
        Contender(f"trio_aio{suffix}", run, "trio", ours=True),
        Contender(f"trio_aio{suffix} (asyncio)", run, "asyncio", ours=True),
    )


def cursor_files(*, buffering: int = 0) -> tuple[Contender, ...]:
    """Give the libraries that send each call to a thread."""
    return (
        Contender("trio.open_file", cursor(_trio_open_file, buffering=buffering), "trio"),
        Contender("anyio.open_file", cursor(_anyio_open_file, buffering=buffering), "trio"),
        Contender("anyio.open_file (asyncio)", cursor(_anyio_open_file, buffering=buffering), "asyncio"),
        Contender("aiofiles", cursor(_aiofiles_open, buffering=buffering), "asyncio"),
    )


def line_readers(mode: str) -> tuple[Contender, ...]:
    """Give readers of lines."""
    return (
        *ours(lines(_open_aio, mode, look=False)),
        Contender("built-in open", partial(_builtin_lines, mode)),
        Contender("built-in open by async for", partial(_builtin_lines_by_async_for, mode), "trio", same_work=False),
        Contender("trio.open_file", lines(_trio_open_file, mode, look=True), "trio"),
        Contender("anyio.open_file", lines(_anyio_open_file, mode, look=True), "trio"),
        Contender("anyio.open_file (asyncio)", lines(_anyio_open_file, mode, look=True), "asyncio"),
        Contender("aiofiles", lines(_aiofiles_open, mode, look=True), "asyncio"),
    )


CAIO_PREAD = _caio(_caio_pread)
CAIO_APPEND = _caio(_caio_append)
CAIO_PWRITE = _caio(_caio_pwrite)
CURSOR_OURS = ours(cursor(_open_aio, buffering=-1))
PREAD_LOOP = Contender("os.pread loop", pread_loop, same_work=False)
AIOFILE = Contender("aiofile", aiofile_pread, "asyncio")
THREAD_PREAD = Contender("trio.to_thread os.pread", thread_pread, "trio")
THREAD_PWRITE = Contender("trio.to_thread os.pwrite", thread_pwrite, "trio")
THREAD_APPEND = (
    Contender("trio.to_thread", thread_append, "trio"),
    Contender("anyio.to_thread (asyncio)", thread_append, "asyncio"),
)
THREAD_WHOLE = (
    Contender("trio.to_thread Path.read_bytes", thread_whole, "trio"),
    Contender("anyio.to_thread Path.read_bytes (asyncio)", thread_whole, "asyncio"),
)
BESIDE_FAULTS = (
    Contender("trio_aio, half of the workers hang", beside_hung, "trio", ours=True),
    Contender("trio_aio, every read fails", failing, "trio", ours=True, same_work=False),
)
THREAD_CLOSE = Contender("trio.open_file", thread_close, "trio")
IDLE = (
    Contender("an idle loop (trio)", idle, "trio", same_work=False),
    Contender("an idle loop (asyncio)", idle, "asyncio", same_work=False),
)
