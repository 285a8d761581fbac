"""Submitters: io_submit that sleeps keeps no event loop, and no other device, waiting.

No test measures time. While requests of one filesystem cannot continue, a task does its whole work on another. Then they are released.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import mmap
import os
import select
import shutil
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import trio
from anyio.lowlevel import checkpoint

from trio_aio import RWF, AIOContext, AsyncFile, open_aio
from trio_aio.__main__ import main
from trio_aio._engine.block_map import BlockMap
from trio_aio._lanes import kernel_context as _kernel_context
from trio_aio._lanes.devices import SLEEP_BACKOFF, DeviceRecord
from trio_aio._lanes.kernel_context import KernelContext
from trio_aio._lanes.protocols import State
from trio_aio._native import lib
from trio_aio._requests.poll import Poll
from trio_aio._requests.sync import Sync
from trio_aio.lowlevel import io_destroy, io_setup

from ..conftest import need
from ..support.engine_loop import loop
from ..support.files import BLOCK, make_file, opened
from ..support.frozen import FREEZABLE, freezable, frozen
from ..support.fuse import MOST_IN_THE_BACKGROUND, Misbehaving
from ..support.page_cache import attempts
from ..support.pipes import empty_pipe
from ..support.requests import closed_like, direct_write

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from trio_aio._requests.base import Request
    from trio_aio._requests.transfer import Write

SIZE = 64 * BLOCK
DIRECT = os.O_RDWR | os.O_DIRECT


@pytest.fixture(scope="module", params=FREEZABLE)
def mounted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield each filesystem that can be frozen in turn."""
    need(os.geteuid() == 0, "root, to mount and freeze a filesystem")
    with freezable(request.param, tmp_path_factory.mktemp("freezable")) as folder:
        yield folder


@pytest.fixture(scope="module")
def _fuse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Misbehaving]:
    need(os.geteuid() == 0 and os.path.exists("/dev/fuse"), "root and /dev/fuse, to mount a filesystem of its own")
    need(shutil.which("fusermount3") is not None and importlib.util.find_spec("pyfuse3") is not None, "fuse3 and pyfuse3")
    filesystem = Misbehaving(tmp_path_factory.mktemp("misbehaving"))
    yield filesystem
    filesystem.end()


@pytest.fixture
def device(_fuse: Misbehaving) -> Iterator[Misbehaving]:
    """Yield a filesystem with a server, with the kernel's default settings. There is one file in it, "file"."""
    _fuse.reset()
    make_file(_fuse.source, SIZE)
    yield _fuse
    _fuse.reset()


async def work(context: AIOContext, folder: Path) -> None:
    """Do all kinds of things on another filesystem, which takes many ticks of the event loop."""
    path, data = make_file(folder, SIZE, "elsewhere")
    for direct in (False, True):
        async with open_aio(path, "r+b", direct=direct, context=context) as file:
            for at in range(0, SIZE, BLOCK):
                assert await file.pread(BLOCK, at) == data[at : at + BLOCK]
                assert await file.pwrite(data[at : at + BLOCK], at) == BLOCK
            assert await file.pwrite(data[:5], 0) == 5
            assert await file.read_blocks([0, BLOCK], BLOCK) == data[: 2 * BLOCK]
            assert await file.write_ranges([(0, data[:BLOCK]), (BLOCK, data[BLOCK : 2 * BLOCK])]) == 2 * BLOCK
            await file.fdatasync()
    for _ in range(100):
        await checkpoint()
    assert path.read_bytes() == data


# ---- a frozen filesystem


async def _with_writer(file: AsyncFile) -> None:
    async with file.writer(0, size=BLOCK, depth=4) as writer:
        await writer.write(bytes(16 * BLOCK))


async def _read_chunks(file: AsyncFile) -> int:
    return sum([len(chunk) async for chunk in file.chunks(BLOCK)])


def _aligned(size: int) -> mmap.mmap:
    memory = mmap.mmap(-1, size)
    memory.write(bytes(size))
    return memory


# What waits for the filesystem, of files opened with `direct` or without.
WRITES: dict[str, Callable[[AsyncFile], Awaitable[object]]] = {
    "aligned": lambda file: file.pwrite(_aligned(BLOCK), BLOCK),
    "bounced": lambda file: file.pwrite(bytes(BLOCK + 1)[1:], BLOCK),
    "unaligned": lambda file: file.pwrite(b"x" * 5, 3),
    "large": lambda file: file.pwrite(_aligned(SIZE), 0),
    "vector": lambda file: file.pwritev([_aligned(BLOCK), _aligned(BLOCK)], 0),
    "dsync": lambda file: file.pwrite(_aligned(BLOCK), 0, flags=RWF.DSYNC),
    "beyond the end": lambda file: file.pwrite(_aligned(BLOCK), SIZE),
    "ranges": lambda file: file.write_ranges([(at, _aligned(BLOCK)) for at in range(0, SIZE, 2 * BLOCK)]),
    "writer": _with_writer,
    "truncate": lambda file: file.truncate(SIZE - BLOCK),
    "fallocate": lambda file: file.fallocate(SIZE, BLOCK),
}
# What does not.
OTHERS: dict[str, Callable[[AsyncFile], Awaitable[object]]] = {
    "read": lambda file: file.pread(BLOCK, BLOCK),
    "unaligned read": lambda file: file.pread(5, 3),
    "read of a vector": lambda file: file.preadv([bytearray(5), _aligned(BLOCK)], 0),
    "blocks": lambda file: file.read_blocks(range(0, SIZE, 2 * BLOCK), BLOCK),
    "ranges": lambda file: file.read_ranges([(3, 5), (2 * BLOCK + 1, 7)]),
    "chunks": _read_chunks,
    "all": lambda file: file.read(),
    "stat": lambda file: file.stat(),
}


@pytest.mark.anyio
@pytest.mark.backends("trio", "asyncio+uvloop")
@pytest.mark.parametrize("direct", [False, True], ids=["buffered", "direct"])
async def test_writes_wait_for_a_frozen_filesystem_and_nothing_else_does(mounted: Path, disk: Path, direct: bool) -> None:
    done: dict[str, object] = {}
    async with AIOContext(max_workers=32) as context:

        async def call(name: str, file: AsyncFile) -> None:
            done[name] = await WRITES[name](file)

        files = {}
        for name in [*WRITES, "others"]:
            path, data = make_file(mounted, SIZE, name)
            files[name] = await open_aio(path, "r+b", direct=direct, context=context)
            await files[name].pread(BLOCK, 0)
        with frozen(mounted) as freeze:
            async with anyio.create_task_group() as group:
                try:
                    for name in WRITES:
                        group.start_soon(call, name, files[name])
                    for other in OTHERS.values():
                        await other(files["others"])
                    await work(context, disk)
                    assert not done
                finally:
                    freeze.thaw()
            assert done.keys() == WRITES.keys()
        for name in (*WRITES, "others"):
            await files[name].fsync()
            await files[name].aclose()
        assert (mounted / "unaligned").read_bytes() == data[:3] + b"x" * 5 + data[8:]
        assert (mounted / "aligned").read_bytes() == data[:BLOCK] + bytes(BLOCK) + data[2 * BLOCK :]
        assert (mounted / "beyond the end").read_bytes() == data + bytes(BLOCK)


@pytest.mark.anyio
@pytest.mark.backends("trio", "asyncio")
async def test_syncs_of_a_frozen_filesystem_keep_nothing_waiting(mounted: Path, disk: Path) -> None:
    path, _ = make_file(mounted, SIZE, "synced")
    async with AIOContext() as context:
        for direct in (False, True):
            async with open_aio(path, "r+b", direct=direct, context=context) as file:
                with frozen(mounted) as freeze:
                    async with anyio.create_task_group() as group:
                        try:
                            for sync in (file.fsync, file.fdatasync):
                                group.start_soon(sync)
                            await work(context, disk)
                        finally:
                            freeze.thaw()


@pytest.mark.anyio
@pytest.mark.backends("trio", "asyncio")
async def test_direct_writes_that_were_not_taken_are_cancelled_while_the_filesystem_is_frozen(mounted: Path) -> None:
    path, data = make_file(mounted, SIZE, "cancelled")
    results: list[int] = []
    async with open_aio(path, "r+b", direct=True) as file:
        context = file.context
        with frozen(mounted) as freeze:
            async with anyio.create_task_group() as group:
                group.start_soon(_keep, results, file.pwrite(b"1" * BLOCK, 0))
                engine: Any = context._core.engine
                for _ in attempts("a write that its submitter has taken", 100_000):
                    await checkpoint()
                    if context.statistics().submitted_workers > 1 or _taken(engine):
                        break
                with anyio.CancelScope() as scope:
                    async with anyio.create_task_group() as others:
                        for at in range(1, 32):
                            others.start_soon(_keep, results, file.pwrite(b"2" * BLOCK, at * BLOCK))
                        for _ in range(10):
                            await checkpoint()
                        scope.cancel()
                assert scope.cancelled_caught
                assert not results
                assert context.statistics().cancelled == 31
                freeze.thaw()
        assert results == [BLOCK]
    assert path.read_bytes() == b"1" * BLOCK + data[BLOCK:]


async def _keep(results: list[int], call: Awaitable[int]) -> None:
    results.append(await call)


def _taken(engine: Any) -> bool:
    """Return whether submitters have taken all that they were given."""
    lane = engine.kernel
    given = [request for request in lane.requests() if request.state is State.KERNEL_HANDED_OVER]
    return bool(given) and not any(lib.taio_ring_is_prepared(lane.ring, lane.slot_of(request)) for request in given)


# ---- a filesystem with a server


@pytest.mark.anyio
@pytest.mark.backends("trio", "asyncio", "asyncio+uvloop")
@pytest.mark.parametrize("operation", ["read", "write"])
async def test_more_direct_requests_than_the_server_takes_keep_nothing_else_waiting(
    device: Misbehaving, disk: Path, operation: str
) -> None:
    count = 3 * MOST_IN_THE_BACKGROUND
    results: list[int] = []
    async with AIOContext() as context, open_aio(device.folder / "file", "r+b", direct=True, context=context) as file:
        for _ in range(2):  # before it is known that there is no RWF_NOWAIT, workers get all that are in flight
            await file.pwrite(await file.pread(BLOCK, 0), 0)
        with device.hanging(operation):
            async with anyio.create_task_group() as group:
                try:
                    for at in range(count):
                        buffer = _aligned(BLOCK)
                        call = file.preadinto if operation == "read" else file.pwrite
                        group.start_soon(_keep, results, call(buffer, at * BLOCK))
                    while device.held() < 1:
                        await checkpoint()
                    await work(context, disk)
                    assert not results
                finally:
                    device.release()
    assert results == [BLOCK] * count


@pytest.mark.anyio
@pytest.mark.backends("trio", "asyncio", "asyncio+uvloop")
@pytest.mark.parametrize("buffer", [BLOCK, 5], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("earlier", [0, 8])
async def test_direct_read_whose_attributes_are_late_keeps_nothing_else_waiting(
    device: Misbehaving, disk: Path, buffer: int, earlier: int
) -> None:
    data = (device.source / "file").read_bytes()
    results: list[bytes] = []
    async with open_aio(device.folder / "file", direct=True) as file:
        context = file.context
        for at in range(earlier):
            assert await file.pread(BLOCK, at * BLOCK) == data[at * BLOCK : (at + 1) * BLOCK]
        with device.hanging("attributes"):
            async with anyio.create_task_group() as group:
                try:
                    group.start_soon(_keep, results, file.pread(buffer, 3))
                    while device.held() < 1:
                        await checkpoint()
                    await work(context, disk)
                    assert not results
                finally:
                    device.release()
    assert results == [data[3 : 3 + buffer]]


@pytest.mark.anyio
@pytest.mark.backends("trio", "asyncio")
@pytest.mark.parametrize("direct", [False, True], ids=["buffered", "direct"])
@pytest.mark.parametrize("operation", ["read", "write", "sync", "attributes"])
async def test_server_that_does_not_answer_keeps_nothing_else_waiting(
    device: Misbehaving, disk: Path, operation: str, direct: bool
) -> None:
    calls: dict[str, list[Callable[[AsyncFile], Awaitable[object]]]] = {
        "read": [
            OTHERS["read"],
            OTHERS["unaligned read"],
            OTHERS["read of a vector"],
            OTHERS["blocks"],
            OTHERS["ranges"],
            OTHERS["chunks"],
        ],
        "write": [WRITES[name] for name in ("aligned", "bounced", "unaligned", "vector", "dsync", "ranges", "writer")],
        "sync": [AsyncFile.fsync, AsyncFile.fdatasync],
        "attributes": [OTHERS["read"], OTHERS["unaligned read"], OTHERS["stat"]],
    }
    done: list[object] = []
    async with AIOContext(max_workers=32) as context, open_aio(device.folder / "file", "r+b", direct=direct, context=context) as file:
        await file.pwrite(bytes(BLOCK), 0)  # for the syncs

        async def call(function: Callable[[AsyncFile], Awaitable[object]]) -> None:
            done.append(await function(file))

        with device.hanging(operation):
            async with anyio.create_task_group() as group:
                try:
                    for function in calls[operation]:
                        group.start_soon(call, function)
                    while device.held() < 1:
                        await checkpoint()
                    await work(context, disk)
                finally:
                    device.release()
        assert len(done) == len(calls[operation])


@pytest.mark.anyio
@pytest.mark.backends("trio", "asyncio")
async def test_poll_of_a_file_with_a_server_is_submitted_elsewhere(device: Misbehaving, file: tuple[Path, bytes]) -> None:
    async with AIOContext() as context:
        for path in (device.folder / "file", file[0]):
            with opened(path, os.O_RDWR) as fd:
                assert await context.poll(fd, select.POLLIN | select.POLLOUT) == select.POLLIN | select.POLLOUT
        assert len(context._core.engine.kernel.submitters) == 2  # type: ignore[union-attr]
        with empty_pipe() as (_, writer):
            assert await context.poll(writer, select.POLLOUT) == select.POLLOUT
        assert len(context._core.engine.kernel.submitters) == 2  # type: ignore[union-attr]


@pytest.mark.trio
@pytest.mark.parametrize("engine", ["aio", "workers"])
async def test_first_poll_on_a_device_whose_server_has_stopped_keeps_nothing_else_waiting(
    tmp_path_factory: pytest.TempPathFactory, device: Misbehaving, disk: Path, engine: Any
) -> None:
    # A server that does not know polls is asked once: so this takes a filesystem that is new.
    fresh = Misbehaving(tmp_path_factory.mktemp("fresh"))
    make_file(fresh.source, SIZE)
    ready: list[int] = []
    try:
        async with AIOContext(engine=engine) as context, open_aio(fresh.folder / "file", "r+b", context=context) as file:

            async def poll() -> None:
                ready.append(await context.poll(file.fileno(), select.POLLIN))

            async with anyio.create_task_group() as group:
                with fresh.stopped():
                    group.start_soon(poll)
                    await work(context, disk)
                    assert not ready
            assert ready == [select.POLLIN]
    finally:
        fresh.end()


@pytest.mark.trio
async def test_device_with_a_server_is_recognized_by_its_first_direct_read_and_a_local_one_too(device: Misbehaving, disk: Path) -> None:
    local, _ = make_file(disk, SIZE)
    for path, expected in ((device.folder / "file", False), (local, True)):
        async with open_aio(path, direct=True) as file:
            record = file._descriptor.read_device
            assert record.offload
            for _ in attempts("a direct read that a submitter has made"):
                await file.pread(BLOCK, 0)
                if record.local is not None:
                    break
            assert (record.local, record.offload) == (expected, not expected)


def test_doctor_reports_where_io_submit_waits(device: Misbehaving, disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in attempts("a local filesystem where io_submit did not wait", 20):
        assert main(["doctor", str(disk), "--json"]) == 0
        local = json.loads(capsys.readouterr().out)["waits"]
        assert local.keys() == {f"direct {direction}, {name}" for direction in ("read", "write") for name in ("one", "many at once")}
        if not any(found["slept"] for found in local.values()):
            break
    assert main(["doctor", str(device.folder), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["waits"]["direct read, one"]["slept"] > 0  # for the attributes
    assert report["waits"]["direct write, many at once"]["slept"] > 0
    assert any("io_submit" in line and "waits here" in line for line in report["advice"])


# ---- which reads a submitter gets


@pytest.mark.trio
async def test_first_read_of_each_region_goes_to_the_submitter_and_later_ones_do_not(disk: Path) -> None:
    path = disk / "large"
    path.write_bytes(bytes(4 << 20))
    async with AIOContext() as context, open_aio(path, direct=True, context=context) as file:
        while file._descriptor.read_device.local is None:
            await file.pread(BLOCK, 0)
        block_map = file._descriptor.block_map
        for region in range(1, 4):
            assert not block_map.has(region << 20, BLOCK)
            while not block_map.has(region << 20, BLOCK):
                await file.pread(BLOCK, region << 20)
            assert block_map.whole is (region == 3)
        async with open_aio(path, direct=True, context=context) as again:
            assert again._descriptor.block_map is block_map


@pytest.mark.parametrize("size", [0, 1, 1 << 20, 1 << 30, (1 << 30) + 1, 1 << 50])
def test_block_map_knows_what_was_read(size: int) -> None:
    block_map = BlockMap(size)
    for offset in (0, max(size - BLOCK, 0), size + (1 << 40)):
        block_map.add(offset, BLOCK)
        assert block_map.has(offset, BLOCK)
    assert not block_map.has(1 << 60, BLOCK)


def test_device_whose_io_submit_slept_gets_a_submitter_for_ever_longer() -> None:
    record = DeviceRecord()
    record.note_place(local=True)
    assert not record.must_offload()
    for span in (SLEEP_BACKOFF, 2 * SLEEP_BACKOFF):
        record.note_slept()
        assert [record.must_offload() for _ in range(span)] == [True] * (span - 1) + [False]
    record.note_slept()
    for _ in range(4 * SLEEP_BACKOFF - 1):
        record.must_offload()
    record.note_slept_elsewhere()
    assert [record.must_offload() for _ in range(2)] == [True, True]


# ---- one engine


@pytest.fixture
def write_file(disk: Path) -> tuple[Path, bytes]:
    return make_file(disk, SIZE)


def test_writes_of_a_tick_are_handed_over_together_and_a_bad_one_fails_alone(write_file: tuple[Path, bytes]) -> None:
    path, data = write_file
    with loop(16, gather=True) as made, opened(path, DIRECT) as fd, empty_pipe() as (reader, writer):
        descriptor = made.descriptor(fd)
        watch = Poll(closed_like(descriptor), select.POLLIN)
        watch.descriptor.fd = reader
        made.submit(watch)  # where nothing is in flight, a request is handed over at once
        gone = closed_like(descriptor)
        requests: list[Request] = [direct_write(made, descriptor, data[BLOCK : 2 * BLOCK], at * BLOCK) for at in range(6)]
        requests.insert(3, direct_write(made, gone, data[:BLOCK], 0))
        requests.insert(5, direct_write(made, gone, data[:BLOCK], 0))
        made.submit(*requests)
        assert {request.state for request in requests} == {State.KERNEL_HANDED_OVER}
        assert made.engine.submit_calls == 1
        made.wait_for(*requests)
        bad = [-errno.EBADF]
        assert [request.result for request in requests] == [BLOCK] * 3 + bad + [BLOCK] + bad + [BLOCK] * 2
        os.write(writer, b"x")
        made.wait_for(watch)
    assert path.read_bytes() == 6 * data[BLOCK : 2 * BLOCK] + data[6 * BLOCK :]


def test_what_a_submitter_found_is_kept_while_completions_are_taken(write_file: tuple[Path, bytes]) -> None:
    path, data = write_file
    with loop(gather=True) as made, opened(path, DIRECT) as fd:
        descriptor = made.descriptor(fd)
        assert made.engine.has_kernel_lane()
        lane = made.engine.kernel
        assert lane is not None
        lib.taio_ring_use_getevents(lane.ring)  # so the submitter sees no event, and finds each call fast
        descriptor.write_device.back_off()
        descriptor.write_device.skips_left = 1  # this write tries again; what it finds may be learned as soon as it is handed over
        made.run(direct_write(made, descriptor, data[BLOCK : 2 * BLOCK], 0))
        submitter = lane.submitters[descriptor.write_device]
        submitter.stop()
        readable = select.poll()
        readable.register(made.engine.event_fd, select.POLLIN)
        while not submitter.stopped:  # then it has stored what it found
            assert readable.poll(60_000)
            made.engine.reap(drain=True)
        made.engine.reap(drain=False)
        assert submitter.learn()
        assert descriptor.write_device.skips_left == 0


def test_gathered_write_is_withdrawn_and_its_slot_is_free(write_file: tuple[Path, bytes]) -> None:
    path, data = write_file
    with loop(1, gather=True) as made, opened(path, DIRECT) as fd:
        descriptor = made.descriptor(fd)
        first, second = (direct_write(made, descriptor, bytes(BLOCK), at * BLOCK) for at in range(2))
        hand_over = made.engine.kernel.hand_over if made.engine.has_kernel_lane() else None  # type: ignore[union-attr]
        assert hand_over is not None
        made.engine.kernel.hand_over = list  # type: ignore[union-attr]
        made.submit(first, second)
        assert (first.state, second.state) == (State.KERNEL_HANDED_OVER, State.KERNEL_QUEUED)
        assert made.engine.cancel(first)
        assert second.state is State.KERNEL_HANDED_OVER
        made.engine.kernel.hand_over = hand_over  # type: ignore[union-attr]
        made.engine.ask_for_flush()
        made.wait_for(second)
        assert (first.state, second.result, made.engine.cancelled) == (State.WITHDRAWN, BLOCK, 1)
    assert path.read_bytes() == data[:BLOCK] + bytes(BLOCK) + data[2 * BLOCK :]


def test_sync_waits_for_writes_that_a_submitter_has(write_file: tuple[Path, bytes]) -> None:
    path, data = write_file
    with loop(8, gather=True) as made, opened(path, DIRECT) as fd:
        descriptor = made.descriptor(fd)
        writes = [direct_write(made, descriptor, data[:BLOCK], at * BLOCK) for at in range(4)]
        sync = Sync(descriptor, data_only=True)
        made.submit(*writes, sync)
        assert sync.state is State.HELD
        made.wait_for(sync)
        assert all(write.finished for write in writes)


def test_without_threads_left_the_workers_write(write_file: tuple[Path, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    path, data = write_file
    with loop(8) as made, opened(path, DIRECT) as fd:
        descriptor = made.descriptor(fd)
        monkeypatch.setattr("trio_aio._lanes.submitter._hand_over", lambda native, limit: -errno.EAGAIN)
        writes: list[Write] = [direct_write(made, descriptor, data[:BLOCK], at * BLOCK) for at in range(4)]
        assert made.run(*writes) == [BLOCK] * 4
        assert made.engine.submitted_workers == 4
    assert path.read_bytes() == data[:BLOCK] * 4 + data[4 * BLOCK :]


@pytest.mark.parametrize("polls_end", [True, False])
def test_full_ring_delays_writes_and_loses_none(write_file: tuple[Path, bytes], monkeypatch: pytest.MonkeyPatch, polls_end: bool) -> None:
    path, data = write_file
    ctx = io_setup(1)  # a page of events; the lane thinks that it has ten times as many
    monkeypatch.setattr(_kernel_context, "acquire", lambda nr_events: KernelContext(ctx, nr_events))
    monkeypatch.setattr(_kernel_context, "release", lambda context: None)
    with empty_pipe() as (reader, writer), loop(1024) as made, opened(path, DIRECT) as fd:
        descriptor = made.descriptor(fd)
        poll_descriptor = closed_like(descriptor)
        poll_descriptor.fd = reader
        polls = [Poll(poll_descriptor, select.POLLIN) for _ in range(500)]
        made.submit(*polls)
        assert any(poll.result == -errno.EAGAIN for poll in polls)  # the ring is full
        writes = [direct_write(made, descriptor, data[BLOCK : 2 * BLOCK], at * BLOCK) for at in range(40)]
        made.submit(*writes)
        if polls_end:
            os.write(writer, b"x")
        made.wait_for(*writes)
        assert [write.result for write in writes] == [BLOCK] * 40
        os.write(writer, b"x")
        made.wait_for(*polls)
    assert path.read_bytes() == 40 * data[BLOCK : 2 * BLOCK] + data[40 * BLOCK :]
    io_destroy(ctx)


def test_closing_joins_the_threads_of_submitters(write_file: tuple[Path, bytes]) -> None:
    def threads() -> set[str]:
        return set(os.listdir("/proc/self/task"))

    before = threads()
    path, data = write_file
    with loop(8) as made, opened(path, DIRECT) as fd:
        made.run(direct_write(made, made.descriptor(fd), data[:BLOCK], 0))
        assert "trio_aio submit" in {_name(thread) for thread in threads() - before}
    while threads() != before:  # pthread_join returns a moment before the kernel removes the thread; one that stays is a timeout
        os.sched_yield()


def _name(thread: str) -> str:
    with open(f"/proc/self/task/{thread}/comm") as file:
        return file.read().strip()


def test_child_of_fork_uses_files_of_its_own_while_the_parents_submitter_works(disk: Path) -> None:
    path, data = make_file(disk, SIZE)

    async def child() -> None:
        async with open_aio(path, "r+b", direct=True) as file:
            await file.pwrite(data[:BLOCK], 0)

    async def parent() -> int:
        async with open_aio(path, "r+b", direct=True) as file:
            await file.pwrite(data[:BLOCK], BLOCK)
            pid = os.fork()
            if not pid:
                os._exit(_run_in_thread(partial(trio.run, child)))
            await file.pwrite(data[:BLOCK], 2 * BLOCK)
            return await trio.to_thread.run_sync(lambda: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    assert trio.run(parent) == 0
    assert path.read_bytes() == data[:BLOCK] * 3 + data[3 * BLOCK :]


def _run_in_thread(function: Callable[[], object]) -> int:
    """Run a function in a thread of its own, which has no event loop yet. Return the exit status."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return len(failed)
