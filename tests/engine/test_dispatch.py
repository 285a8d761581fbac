"""Which lane each request takes. Tests call the engine directly: no event loop is imported here."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from trio_aio._engine.descriptor import Descriptor
from trio_aio._engine.engine import Engine
from trio_aio._errors import setup_error
from trio_aio._lanes import kernel_context as _kernel_context
from trio_aio._memory.exports import export_buffer, export_vector
from trio_aio._requests.metadata import Allocate, Seek, Stat, Truncate
from trio_aio._requests.opening import Close, Open
from trio_aio._requests.sync import Sync
from trio_aio._requests.transfer import DIRECT_LIMIT, Append, Read, ReadVector

from ..support.engine_loop import Loop, loop
from ..support.files import BLOCK, make_file, opened
from ..support.requests import DIRECT, direct_read, direct_write, read, write

if TYPE_CHECKING:
    from pathlib import Path


# ---- what each lane does


def test_worker_reads_and_writes_equal_the_system_calls(engine_loop: Loop, file: tuple[Path, bytes]) -> None:
    path, data = file
    with opened(path, os.O_RDWR) as fd:
        descriptor = engine_loop.descriptor(fd)
        memory = bytearray(5000)
        export = export_buffer(memory, writable=True)
        request = Read(descriptor, export.address, 5000, 100, 0, export)
        assert engine_loop.run(request) == [5000]
        assert memory == data[100:5100]
        assert engine_loop.run(write(descriptor, b"abc", 7)) == [3]
        assert path.read_bytes()[7:10] == b"abc"
        parts = [bytearray(3), bytearray(0), bytearray(4)]
        vector = export_vector(parts, writable=True)
        request = ReadVector(descriptor, vector, 6, 0)
        assert engine_loop.run(request) == [7]
        assert b"".join(parts) == data[6:7] + b"abc" + data[10:13]


def test_worker_runs_stat_truncate_seek_allocate_and_sync(engine_loop: Loop, file: tuple[Path, bytes]) -> None:
    path, data = file
    with opened(path, os.O_RDWR | os.O_APPEND) as fd:
        descriptor = engine_loop.descriptor(fd)
        export = export_buffer(b"end", writable=False)
        assert engine_loop.run(Append(descriptor, export.address, 3, export)) == [len(data) + 3]
        stat = Stat(descriptor)
        assert engine_loop.run(stat) == [0]
        assert stat.status().st_size == len(data) + 3
        assert engine_loop.run(Truncate(descriptor, 10)) == [0]
        assert path.stat().st_size == 10
        assert engine_loop.run(Allocate(descriptor, 0, BLOCK)) == [0]
        assert engine_loop.run(Seek(descriptor, -1, os.SEEK_END)) == [BLOCK - 1]
        assert engine_loop.run(Sync(descriptor, data_only=False), Sync(descriptor, data_only=True)) == [0, 0]


def test_workers_open_and_close(engine_loop: Loop, file: tuple[Path, bytes]) -> None:
    path, data = file
    request = Open(Descriptor(-1), os.fsencode(path), os.O_RDONLY | os.O_CLOEXEC)
    record = request.record
    [fd] = engine_loop.run(request)
    assert os.fstat(fd).st_size == record.value.size == len(data)
    assert (request.descriptor.fd, request.descriptor.unclaimed) == (fd, True)  # until somebody takes it over
    request.descriptor.unclaimed = False
    assert engine_loop.run(Close(Descriptor(fd))) == [0]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_eventfd_serves_both_lanes_and_counts_each_request_once(file: tuple[Path, bytes]) -> None:
    path, _ = file
    with loop(gather=True) as made, opened(path, DIRECT) as fd, opened(path, os.O_RDWR) as plain:
        descriptor, buffered, engine = made.descriptor(fd), made.descriptor(plain), made.engine
        requests = [direct_read(made, descriptor, BLOCK, 0), read(buffered, 100, 0), write(buffered, b"12", 8 * BLOCK)]
        assert made.run(*requests) == [BLOCK, 100, 2]
        assert sorted(map(id, made.woken)) == sorted(map(id, requests))
        assert (engine.submitted_kernel, engine.submitted_workers, engine.completed) == (1, 2, 3)
        assert (engine.bytes_read, engine.bytes_written) == (BLOCK + 100, 2)
        assert (engine.outstanding, engine.occupied, engine.queued, engine.cancelled, engine.retried) == (0, 0, 0, 0, 0)


def test_direct_reads_and_overwrites_take_the_kernel_lane(engine_loop: Loop, file: tuple[Path, bytes]) -> None:
    path, data = file
    with opened(path, DIRECT) as fd:
        descriptor = engine_loop.descriptor(fd)
        request = direct_read(engine_loop, descriptor, BLOCK, BLOCK)
        assert engine_loop.run(request) == [BLOCK]
        assert request.slab.copy_out(BLOCK) == data[BLOCK : 2 * BLOCK]
        assert engine_loop.run(direct_write(engine_loop, descriptor, data[:BLOCK], 2 * BLOCK)) == [BLOCK]
        assert engine_loop.run(Sync(descriptor, data_only=True)) == [0]
        assert engine_loop.engine.submitted_kernel == 3
        assert path.read_bytes()[2 * BLOCK : 3 * BLOCK] == data[:BLOCK]


def test_direct_read_past_the_end_is_short_and_needs_no_worker(engine_loop: Loop, disk: Path) -> None:
    path, data = make_file(disk, BLOCK + 300)
    with opened(path, DIRECT) as fd:
        descriptor = engine_loop.descriptor(fd)
        request = direct_read(engine_loop, descriptor, 2 * BLOCK, 0)
        assert engine_loop.run(request) == [BLOCK + 300]
        assert request.slab.copy_out(BLOCK + 300) == data
        assert engine_loop.engine.submitted_workers == 0


def test_short_kernel_read_is_kept_and_a_worker_reads_the_rest(engine_loop: Loop, disk: Path) -> None:
    path, data = make_file(disk, 2 * BLOCK)
    with opened(path, DIRECT) as fd:
        descriptor = engine_loop.descriptor(fd)
        # An aligned short count may be the end of the file or not: a worker looks.
        request = direct_read(engine_loop, descriptor, 4 * BLOCK, 0)
        assert engine_loop.run(request) == [2 * BLOCK]
        assert request.slab.copy_out(2 * BLOCK) == data
        assert (engine_loop.engine.submitted_kernel, engine_loop.engine.submitted_workers) == (1, 1)


def test_appends_and_large_requests_of_direct_files_go_to_the_workers(engine_loop: Loop, file: tuple[Path, bytes]) -> None:
    path, data = file
    with opened(path, DIRECT) as fd:
        descriptor = engine_loop.descriptor(fd)
        assert engine_loop.run(direct_write(engine_loop, descriptor, data[:BLOCK], len(data))) == [BLOCK]
        assert engine_loop.run(direct_read(engine_loop, descriptor, 2 * DIRECT_LIMIT, 0)) == [len(data) + BLOCK]
        assert engine_loop.engine.submitted_kernel == 0
        # What was an append is an overwrite now.
        assert engine_loop.run(direct_write(engine_loop, descriptor, data[:BLOCK], len(data))) == [BLOCK]
        assert engine_loop.engine.submitted_kernel == 1


# ---- without native AIO


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EPERM, errno.EAGAIN, errno.EINVAL, errno.ENOMEM])
def test_without_native_aio_the_workers_do_everything(monkeypatch: pytest.MonkeyPatch, file: tuple[Path, bytes], code: int) -> None:
    def refuse(_: int) -> None:
        raise setup_error(code)

    monkeypatch.setattr(_kernel_context, "acquire", refuse)
    with loop() as made, opened(file[0], DIRECT) as fd:
        descriptor = made.descriptor(fd)
        assert made.run(direct_read(made, descriptor, BLOCK, 0)) == [BLOCK]
        assert made.engine.submitted_kernel == 0
        assert made.engine.setup_error is not None
        assert made.engine.setup_error.errno == code
    with pytest.raises(OSError, match=r"io_setup|aio") as caught:
        Engine(8, 1, use_kernel=True, insist=True, wake=print, plug=print)
    assert caught.value.errno == code
