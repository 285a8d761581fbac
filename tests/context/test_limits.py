"""What a host, a container or a process limit refuses: the error says so, nothing leaks, and other requests continue."""

from __future__ import annotations

import errno
import os
import select
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from trio_aio import AIOContext, open_aio
from trio_aio._engine.descriptor import Descriptor
from trio_aio._lanes import kernel_context as _kernel_context
from trio_aio._lanes.kernel_context import KernelContext
from trio_aio._requests.base import State
from trio_aio._requests.poll import Poll
from trio_aio._requests.transfer import Read
from trio_aio.lowlevel import io_destroy, io_setup

from ..support.engine_loop import loop
from ..support.files import BLOCK, make_file, opened
from ..support.pipes import empty_pipe
from ..support.programs import run
from ..support.seccomp import REFUSE

if TYPE_CHECKING:
    from collections.abc import Iterator


MOST_EVENTS = 4194304  # that io_setup takes


# ---- fs.aio-max-nr


@contextmanager
def no_events_left() -> Iterator[int]:
    """Have contexts ask for more events than the host allows, so that the kernel refuses; yield what it allows.

    The limit and the count are the whole host's: to use them up would disturb other processes, and be disturbed by them.
    """
    limit = int(Path("/proc/sys/fs/aio-max-nr").read_text(encoding="ascii"))
    if limit >= MOST_EVENTS:
        pytest.skip("fs.aio-max-nr allows all that io_setup takes")
    acquire = _kernel_context.acquire
    spare = _kernel_context._take_spare()  # it is paid for already, and would do
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_kernel_context, "acquire", lambda nr_events: acquire(limit + nr_events))
            yield limit
    finally:
        if spare is not None:
            _kernel_context.release(spare)


@pytest.mark.alone
@pytest.mark.trio
async def test_context_without_aio_events_left_uses_workers_or_raises_advice(disk: Path) -> None:
    path, data = make_file(disk)
    with no_events_left() as limit:
        with pytest.raises(BlockingIOError, match=rf"aio-max-nr is {limit}; raise it with `sysctl fs.aio-max-nr=") as caught:
            await AIOContext(engine="aio").__aenter__()
        async with AIOContext() as context:
            engine = context.engine
            async with open_aio(path, "r+b", direct=True, context=context) as file:
                assert await file.pread(BLOCK, BLOCK) == data[BLOCK : 2 * BLOCK]
                await file.fsync()
                with empty_pipe() as (reader, writer):
                    os.write(writer, b"x")
                    assert await context.poll(reader, select.POLLIN) == select.POLLIN
    assert caught.value.errno == errno.EAGAIN
    assert engine == "workers"
    async with AIOContext() as context:
        assert context.engine == "aio"


# ---- a ring that is full


def test_full_ring_loses_no_request(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, data = make_file(disk)
    ctx = io_setup(1)  # a page of events; the lane thinks that it has ten times as many
    monkeypatch.setattr(_kernel_context, "acquire", lambda nr_events: KernelContext(ctx, nr_events))
    monkeypatch.setattr(_kernel_context, "release", lambda context: None)
    with empty_pipe() as (reader, writer), loop(1024, gather=True) as made, opened(path, os.O_RDWR | os.O_DIRECT) as fd:
        descriptor = made.descriptor(fd)
        made.warm()
        memory = made.engine.buffers.take(BLOCK)
        polls = [Poll(Descriptor(reader), select.POLLIN) for _ in range(500)]
        made.submit(*polls)
        made.flush()
        refused = [request for request in polls if request.finished]
        assert {request.result for request in refused} == {-errno.EAGAIN}  # no event would report that there is room
        polls = [request for request in polls if request.state is State.KERNEL_IN_FLIGHT]
        assert len(polls) + len(refused) == 500
        lone = Read(descriptor, memory.address, BLOCK, BLOCK, 0, None)
        assert made.run(lone) == [BLOCK]  # it does not wait for the polls
        assert memory.copy_out(BLOCK) == data[BLOCK : 2 * BLOCK]
        assert not any(request.finished for request in polls)
        reads = [Read(descriptor, memory.address, BLOCK, i % 64 * BLOCK, 0, None) for i in range(2000)]
        made.submit(*reads)
        made.flush()
        os.write(writer, b"x")
        made.wait_for(*polls, *reads)
        assert [request.result for request in reads] == [BLOCK] * len(reads)
        assert all(request.result & select.POLLIN for request in polls)
        made.engine.buffers.return_slab(memory)
    io_destroy(ctx)


# ---- limits of the process


def test_open_without_descriptors_left_fails_and_open_files_work(disk: Path) -> None:
    path, _ = make_file(disk)
    run(
        """
        async def main():
            async with open_aio(path) as file, open_aio(path, "r+b", direct=True) as direct:
                used = len(os.listdir("/proc/self/fd"))
                soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
                resource.setrlimit(resource.RLIMIT_NOFILE, (used + 5, hard))
                opened = []
                try:
                    while True:
                        opened.append(await open_aio(path))
                except OSError as error:
                    assert error.errno == errno.EMFILE and error.filename == path, error
                assert opened
                for engine in ("auto", "aio", "workers"):
                    try:
                        async with AIOContext(engine=engine):
                            raise AssertionError("there was a descriptor left")
                    except OSError as error:
                        assert error.errno == errno.EMFILE, error
                assert await file.pread(BLOCK, BLOCK) == data[BLOCK:2 * BLOCK]
                assert await direct.pread(BLOCK, BLOCK) == data[BLOCK:2 * BLOCK]
                await direct.fsync()
                try:
                    assert await direct.pwrite(data[1:100], 1) == 99  # not aligned: it needs a second descriptor
                except OSError as error:
                    assert error.errno == errno.EMFILE, error
                    assert error.characters_written == 0
                for other in opened:
                    await other.aclose()
                async with AIOContext() as context, open_aio(path, context=context) as again:
                    assert await again.read() == data
                    assert await direct.pwrite(data[1:100], 1) == 99
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        trio.run(main)
        """,
        path,
    )


def test_call_beyond_the_memory_limit_fails_and_smaller_calls_work(disk: Path) -> None:
    path, _ = make_file(disk)
    run(
        """
        def used():
            with open("/proc/self/statm") as statm:
                return int(statm.read().split()[0]) * resource.getpagesize()

        async def main():
            async with open_aio(path, "r+b") as file, open_aio(path, "r+b", direct=True) as direct:
                async def read_range(size):
                    return (await file.read_ranges([(0, size)]))[0]

                async def read_direct_range(size):
                    return (await direct.read_ranges([(0, size)]))[0]

                async def try_everything():
                    failed = 0
                    for size in (1 << 20, 8 << 20, 64 << 20, 512 << 20):
                        for call in (read_range, read_direct_range):
                            try:
                                assert await call(size) == data[:size]
                            except MemoryError:
                                failed += 1
                            except OSError as error:  # the worker's own memory, or the kernel's
                                assert error.errno == errno.ENOMEM, error
                                failed += 1
                    async def read(i):
                        try:
                            assert await direct.pread(BLOCK, i * BLOCK) == data[i * BLOCK:][:BLOCK]
                            assert await file.pread(BLOCK, i * BLOCK, flags=8) == data[i * BLOCK:][:BLOCK]
                        except (MemoryError, BlockingIOError):
                            pass
                    async with trio.open_nursery() as nursery:
                        for i in range(64):
                            nursery.start_soon(read, i)
                    try:
                        async with AIOContext() as context, open_aio(path, context=context) as other:
                            assert await other.read() == data
                    except (MemoryError, RuntimeError) as error:  # no memory; no thread
                        assert isinstance(error, MemoryError) or "thread" in str(error), error
                        failed += 1
                    except OSError as error:
                        assert error.errno in (errno.ENOMEM, errno.EAGAIN), error
                        failed += 1
                    return failed

                soft, hard = resource.getrlimit(resource.RLIMIT_AS)
                # Python takes memory for small objects a MiB at a time; with less room than that trio's own run loop raises MemoryError.
                for room in (1 << 20, 2 << 20, 4 << 20, 16 << 20, 64 << 20, 128 << 20):
                    resource.setrlimit(resource.RLIMIT_AS, (used() + room, hard))
                    assert await try_everything(), room
                    assert await file.pread(10, 0) == data[:10]
                resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
                assert await try_everything() == 0
                assert file.context.statistics().in_flight == 0
        trio.run(main)
        """,
        path,
    )


def test_thread_has_memory_to_begin_or_is_an_error(disk: Path) -> None:
    path, _ = make_file(disk)
    # glibc ends the process if a thread finds no memory for a library's thread-local data, as cffi has it.
    run(
        """
        from trio_aio._lanes.threads import Background
        from trio_aio._native import lib

        def use_up():
            kept = []
            for size in (1 << 20, 1 << 16, 1 << 12, 1 << 10):
                try:
                    while True:
                        kept.append(bytearray(size))
                except MemoryError:
                    pass
            return kept

        def used():
            with open("/proc/self/statm") as statm:
                return int(statm.read().split()[0]) * resource.getpagesize()

        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        refused = begun = 0
        for room in range(0, 32 << 20, 1 << 20):
            done = []
            # The first leaves its stack to the second, which then needs nothing but what it takes itself.
            first, second = Background("first", int), Background("second", lambda: done.append(lib.taio_io_destroy(0)))
            first.start()
            first.join()
            full = used()
            little, limit = (full, hard), (full + room, hard)
            resource.setrlimit(resource.RLIMIT_AS, little)
            kept = use_up()
            resource.setrlimit(resource.RLIMIT_AS, limit)
            try:
                second.start()
            except RuntimeError:
                refused += 1
            else:
                second.join()
                assert len(done) == 1
                begun += 1
            finally:
                resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        assert refused and begun
        """,
        path,
    )


# ---- seccomp, as containers have it


FILTER = f"""
{REFUSE}
import platform
IO_SETUP = {{"x86_64": 206, "aarch64": 0}}[platform.machine()]
IO_URING_SETUP = 425

async def use(**arguments):
    async with AIOContext(**arguments) as context:
        async with open_aio(path, "r+b", direct=True, context=context) as file, open_aio(path, context=context) as buffered:
            while context.statistics().engine == "aio" and not context.statistics().submitted_kernel:
                await file.pread(BLOCK, 0)
            assert await file.pread(BLOCK, BLOCK) == data[BLOCK:2 * BLOCK]
            assert await file.pwrite(data[:BLOCK], 0) == BLOCK
            await file.fsync()
            assert await buffered.read() == data
            reader, writer = os.pipe()
            with trio.move_on_after(0):
                await context.poll(reader, select.POLLIN)
            os.write(writer, b"x")
            assert await context.poll(reader, select.POLLIN) == select.POLLIN
            os.close(reader), os.close(writer)
            return context.engine
"""


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOSYS])
def test_seccomp_without_io_setup_leaves_everything_to_the_workers(disk: Path, error: int) -> None:
    path, _ = make_file(disk)
    program = f"""
refuse(IO_SETUP, {error})
assert trio.run(use) == "workers"
try:
    trio.run(lambda: use(engine="aio"))
except OSError as error:
    assert error.errno == {error} and "io_setup is " in str(error), error
else:
    raise AssertionError("it should insist")
os.environ["TRIO_AIO_ENGINE"] = "workers"
assert trio.run(use) == "workers"
"""
    run(FILTER + program, path)


def test_seccomp_without_io_uring_keeps_native_aio(disk: Path) -> None:
    path, _ = make_file(disk)
    run(FILTER + 'refuse(IO_URING_SETUP, errno.EPERM)\nassert trio.run(lambda: use(engine="aio")) == "aio"\n', path)
