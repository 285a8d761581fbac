"""Worker threads, and the chains of requests that they take together."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from trio_aio._engine.descriptor import Descriptor
from trio_aio._lanes.devices import DeviceRecord
from trio_aio._lanes.workers import GATHER, READS, WorkerLane
from trio_aio._memory.exports import export_buffer
from trio_aio._native import lib
from trio_aio._requests.direct import BufferedWrite
from trio_aio._requests.metadata import Seek
from trio_aio._requests.transfer import Read, Write

from ..support.engine_loop import loop
from ..support.files import BLOCK, make_file, opened
from ..support.page_cache import evict
from ..support.pipes import empty_pipe, full_pipe

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("hired", [0, 1])
def test_failed_thread_start_leaves_requests_to_existing_workers(monkeypatch: pytest.MonkeyPatch, hired: int) -> None:
    hire, calls = WorkerLane._hire, []

    def refuse(lane: WorkerLane) -> None:
        calls.append(lane)
        if len(calls) > hired:
            raise RuntimeError("can't start new thread")
        hire(lane)

    monkeypatch.setattr(WorkerLane, "_hire", refuse)
    if not hired:
        with pytest.raises(RuntimeError, match="new thread"), loop(4, 4):
            pass
        return
    with loop(4, 4) as made, full_pipe() as pipe, empty_pipe() as (reader, _):
        made.submit(pipe.request())
        requests = [Seek(Descriptor(reader), 0, 0) for _ in range(6)]
        made.submit(*requests)
        pipe.release()
        made.wait_for(*requests)
        assert (len(made.engine.workers.threads), made.engine.workers.max_workers) == (1, 1)


# ---- chains


def missed(descriptor: Descriptor, number: int) -> tuple[Read, bytearray]:
    """Return a read of a block that the inline lane has left, and its memory."""
    memory = bytearray(BLOCK)
    export = export_buffer(memory, writable=True)
    request = Read(descriptor, export.address, BLOCK, number * BLOCK, 0, export)
    request.may_chain = True
    return request, memory


def test_missed_reads_are_gathered_while_others_are_in_flight(disk: Path) -> None:
    path, data = make_file(disk, 64 * BLOCK)
    evict(path)
    with path.open("rb", buffering=0) as file, full_pipe() as pipe, loop(64, 1, gather=True) as lp:
        workers = lp.engine.workers
        descriptor = lp.descriptor(file.fileno())
        lp.submit(pipe.request())
        reads = [missed(descriptor, number) for number in range(lib.TAIO_CHAIN + 6)]
        gathered = []
        for request, _ in reads:
            lp.submit(request)
            gathered.append(sum(chain.length for chain in workers.gathered.values()))
        # The first two in flight go alone. Then half of those in flight go at once, so that the device has them before the end of the tick,
        # and never more than 8.
        assert (GATHER, READS, len(reads)) == (2, 8, 22)
        assert gathered == [0, *[1, 0], *[1, 2, 3, 0], *[1, 2, 3, 4, 5, 6, 7, 0], *[1, 2, 3, 4, 5, 6, 7]]
        assert lp.engine.cancel(reads[-1][0])
        lp.flush()
        assert not workers.gathered
        assert lp.engine.cancel(reads[-2][0])  # no worker has begun it
        pipe.release()
        lp.settle()
        for number, (request, memory) in enumerate(reads[:-2]):
            assert (request.result, memory) == (BLOCK, data[number * BLOCK : (number + 1) * BLOCK])
        assert not any(reads[-1][1] + reads[-2][1])
        while workers.occupied:  # the slots of those that were withdrawn come back too
            lp.turn()


def test_reads_of_two_devices_share_no_chain(disk: Path) -> None:
    path, data = make_file(disk, 64 * BLOCK)
    with path.open("rb", buffering=0) as file, full_pipe() as pipe, loop(64, 1, gather=True) as lp:
        one, other = lp.descriptor(file.fileno()), lp.descriptor(file.fileno())
        other.read_device = DeviceRecord()
        lp.submit(pipe.request())
        reads = [missed(descriptor, number) for number, descriptor in enumerate((one, one, one, other, other, one))]
        gathered = []
        for request, _ in reads:
            lp.submit(request)
            gathered.append([chain.length for chain in lp.engine.workers.gathered.values()])
        assert gathered == [[], [1], [], [1], [2], [2, 1]]
        pipe.release()
        lp.settle()
        assert b"".join(memory for _, memory in reads) == data[: len(reads) * BLOCK]


def test_end_of_file_and_error_in_a_chain_are_reported(disk: Path) -> None:
    path, data = make_file(disk, BLOCK + 100)
    evict(path)
    with path.open("rb", buffering=0) as file, full_pipe() as pipe, loop(64, 1, gather=True) as lp:
        descriptor, gone = lp.descriptor(file.fileno()), Descriptor(os.dup(file.fileno()), "gone")
        gone.read_device = descriptor.read_device
        os.close(gone.fd)
        lp.submit(pipe.request())
        reads = [missed(of, number) for of, number in ((descriptor, 0), (descriptor, 1), (gone, 0), (descriptor, 2), (descriptor, 0))]
        lp.submit(*(request for request, _ in reads))
        pipe.release()
        lp.settle()
        assert [request.result for request, _ in reads] == [BLOCK, 100, -errno.EBADF, 0, BLOCK]
        assert reads[1][1][:100] == data[BLOCK:]


@pytest.mark.parametrize("direct", [False, True])
def test_buffered_writes_of_one_file_are_gathered(disk: Path, direct: bool) -> None:
    path, data = make_file(disk, 64 * BLOCK)
    with opened(path, os.O_RDWR | (os.O_DIRECT if direct else 0)) as fd, full_pipe() as pipe, loop(64, 1, gather=True) as lp:
        descriptor = lp.descriptor(fd)
        descriptor.size = 0  # so that all go to the workers
        lp.submit(pipe.request())
        writes = []
        for number in range(5):
            export = export_buffer(b"%d" % number, writable=False)
            request = (BufferedWrite if direct else Write)(descriptor, export.address, 1, number, 0, export)
            writes.append(request)
            lp.submit(request)
        assert [chain.length for chain in lp.engine.workers.gathered.values()] == [4]
        assert lp.engine.cancel(writes[3])
        pipe.release()
        lp.settle()
        assert path.read_bytes()[:6] == b"012" + data[3:4] + b"4" + data[5:6]
        while lp.engine.workers.occupied:
            lp.turn()
