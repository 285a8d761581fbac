"""Many reads or writes in one call, and what becomes of the others when one is bad."""

from __future__ import annotations

import errno
import itertools
import os
import random
from array import array
from typing import TYPE_CHECKING, Any

import pytest
from anyio import create_task_group

from trio_aio import AIOContext, open_aio
from trio_aio._memory.exports import export_buffer
from trio_aio._native import lib
from trio_aio._requests.pieces import Pieces, PiecesRead

from ..support.engine_loop import loop
from ..support.files import BLOCK, content, make_file, opened
from ..support.page_cache import attempts, evict
from ..support.tasks import busy, cancelled_while_blocked, until_idle

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.backends("trio", "asyncio")]

MODES = pytest.mark.parametrize("direct", [False, True], ids=["buffered", "direct"])


@MODES
@pytest.mark.parametrize("size", [512, BLOCK, 5000])
async def test_read_blocks_returns_blocks_in_the_order_of_offsets(filesystem: Path, direct: bool, size: int) -> None:
    path, data = make_file(filesystem, 300 * BLOCK)
    chance = random.Random(size)
    offsets = [chance.randrange(300 * BLOCK - size) for _ in range(300)]
    aligned = [offset // BLOCK * BLOCK for offset in offsets]
    async with open_aio(path, direct=direct) as file:
        for cold in (True, False):
            for at in (offsets, aligned):
                if cold:
                    evict(path)
                assert await file.read_blocks(at, size) == b"".join(data[offset : offset + size] for offset in at)
    await until_idle(file.context)


@MODES
async def test_read_blocks_takes_offsets_from_any_buffer_of_integers(disk: Path, direct: bool) -> None:
    path, data = make_file(disk)
    offsets = [3 * BLOCK, 0, 3 * BLOCK]
    expected = b"".join(data[offset : offset + BLOCK] for offset in offsets)
    async with open_aio(path, direct=direct) as file:
        for code in "qQlLiIhH":
            assert await file.read_blocks(array(code, offsets), BLOCK) == expected
        assert await file.read_blocks(tuple(offsets), BLOCK) == expected
        assert await file.read_blocks(memoryview(array("q", [0, *offsets]))[1:], BLOCK) == expected
        assert await file.read_blocks(memoryview(array("q", [0, 9, BLOCK, 9]))[::2], BLOCK) == data[: 2 * BLOCK]
        assert await file.read_blocks([], BLOCK) == b""
        assert await file.read_blocks([5, 6], 0) == b""
        into = array("q", bytes(3 * BLOCK))
        assert await file.read_blocks(offsets, BLOCK, into=into) is into
        assert into.tobytes() == expected


async def test_read_blocks_with_invalid_arguments_raises_before_any_read(disk: Path) -> None:
    path, _ = make_file(disk)
    async with open_aio(path) as file:
        before = file.context.statistics()
        bad: list[tuple[type[Exception], str, tuple[Any, ...], dict[str, Any]]] = [
            (ValueError, "negative offset: -5", ([0, -5], 10), {}),
            (ValueError, "negative size", ([0], -1), {}),
            (ValueError, "into must have 10 bytes .*not 9", ([0], 10), {"into": bytearray(9)}),
            (TypeError, "writable", ([0], 10), {"into": bytes(10)}),
            (TypeError, "integers", (array("d", [0.0]), 10), {}),
            (TypeError, "integer", ([0.5], 10), {}),
            (OverflowError, "int", ([1 << 63], 10), {}),
        ]
        for kind, match, arguments, options in bad:
            with pytest.raises(kind, match=match):
                await file.read_blocks(*arguments, **options)
        with pytest.raises(ValueError, match="negative max_gap: -1"):
            await file.read_ranges([(0, 1)], max_gap=-1)
        assert file.context.statistics() == before


@MODES
async def test_read_blocks_past_the_end_names_the_block(filesystem: Path, direct: bool) -> None:
    path, _ = make_file(filesystem, 10 * BLOCK + 100)
    async with open_aio(path, direct=direct) as file:
        for offset, have in ((10 * BLOCK, 100), (20 * BLOCK, 0)):
            with pytest.raises(EOFError, match=f"block at offset {offset}: {have} of {BLOCK} bytes"):
                await file.read_blocks([0, BLOCK, offset, 2 * BLOCK], BLOCK)
    await until_idle(file.context)


@MODES
async def test_read_ranges_returns_in_order_and_merges_near_ranges(filesystem: Path, direct: bool) -> None:
    path, data = make_file(filesystem, 100 * BLOCK + 77)
    chance = random.Random(1)
    ranges = [(chance.randrange(110 * BLOCK), chance.choice((0, 1, 2, 100, BLOCK, 3 * BLOCK))) for _ in range(200)]
    expected = [data[offset : offset + size] for offset, size in ranges]
    async with open_aio(path, direct=direct) as file:
        for gap in (0, 1000, 1 << 30):
            for cold in (False, True):
                if cold:
                    evict(path)
                assert await file.read_ranges(ranges, max_gap=gap) == expected
        assert await file.read_ranges([]) == []
        assert await file.read_ranges(iter([(0, 5), (0, 0)])) == [data[:5], b""]
    await until_idle(file.context)


async def test_read_ranges_submits_one_request_for_near_ranges(disk: Path) -> None:
    path, data = make_file(disk)
    async with AIOContext() as context, open_aio(path, context=context) as file:
        for gap, requests in ((0, 3), (99, 3), (100, 2), (10_000, 1)):
            before = context.statistics().completed
            assert await file.read_ranges([(0, 10), (10, 10), (120, 5), (5000, 5)], max_gap=gap) == [
                data[:10],
                data[10:20],
                data[120:125],
                data[5000:5005],
            ]
            assert context.statistics().completed == before + requests


@MODES
async def test_write_ranges_writes_all_ranges(filesystem: Path, direct: bool) -> None:
    path, data = make_file(filesystem, 50 * BLOCK)
    model = bytearray(data)
    chance = random.Random(2)
    cuts = sorted({chance.randrange(60 * BLOCK) for _ in range(100)} | {BLOCK, 2 * BLOCK, 3 * BLOCK, 40 * BLOCK})
    ranges = [(start, content(end - start, seed=end)) for start, end in itertools.pairwise(cuts)]
    chance.shuffle(ranges)
    model.extend(bytes(max(0, cuts[-1] - len(model))))
    for offset, part in ranges:
        model[offset : offset + len(part)] = part
    async with open_aio(path, "r+b", direct=direct) as file:
        assert await file.write_ranges(ranges) == sum(len(part) for _, part in ranges)
        assert await file.write_ranges([]) == 0
        assert await file.write_ranges([(1 << 40, b"")]) == 0
        assert await file.pread(1 << 20, 0) == model
    assert path.read_bytes() == model
    await until_idle(file.context)


@MODES
async def test_failed_range_is_named_by_its_offset(disk: Path, direct: bool, file_size_limit: int) -> None:
    path, data = make_file(disk, 5 * BLOCK)
    far = file_size_limit + BLOCK
    async with open_aio(path, "r+b", direct=direct) as file:
        with pytest.raises(OSError, match=f"writing at offset {far}") as caught:
            await file.write_ranges([(0, data[:BLOCK]), (far, bytes(BLOCK))])
        assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
        await until_idle(file.context)
        assert await file.write_ranges([(0, data[:BLOCK])]) == BLOCK


@MODES
async def test_read_blocks_beyond_memory_raises_memory_error(disk: Path, direct: bool) -> None:
    path, _ = make_file(disk)
    async with open_aio(path, direct=direct) as file:
        for count, size in ((1, (1 << 63) - 1), (2, (1 << 63) - 1), (4, 1 << 62), (1 << 10, 1 << 54)):
            with pytest.raises(MemoryError):
                await file.read_blocks([0] * count, size)


def test_group_stopped_by_a_worker_raises_its_error(disk: Path) -> None:
    path, _ = make_file(disk)
    with loop() as made, opened(path, os.O_RDONLY) as fd:
        parts = [(i * BLOCK, export_buffer(bytearray(BLOCK), writable=True)) for i in range(4)]
        descriptor = made.descriptor(fd)
        pieces = Pieces.ranges(descriptor, parts, writing=False)
        for piece, result in enumerate((BLOCK, lib.TAIO_UNTRIED, -errno.EAGAIN, -errno.EIO)):  # as the kernel lane may leave them
            pieces.array[piece].result = result
        pieces.array[1].memory = BLOCK  # nothing is mapped there
        request = PiecesRead(descriptor, pieces)
        made.engine.outstanding, request.outstanding = 1, True
        descriptor.order.lease()
        made.engine.workers.accept(request)
        made.wait_for(request)
        assert pieces.failure() == (BLOCK, errno.EFAULT)


# ---- cancellation


@MODES
async def test_cancelled_batch_that_no_worker_has_started_never_runs(disk: Path, direct: bool) -> None:
    path, data = make_file(disk)
    async with AIOContext(max_workers=1, engine="workers") as context, open_aio(path, "r+b", direct=direct, context=context) as file:
        async with busy(context):
            assert await cancelled_while_blocked(lambda: file.write_ranges([(0, b"never"), (BLOCK, bytes(BLOCK))]))
            for _ in attempts("a read of blocks that were not cached"):
                evict(path)
                if await cancelled_while_blocked(lambda: file.read_blocks([0, BLOCK], BLOCK)):
                    break
            for _ in attempts("a read of ranges that were not cached"):
                evict(path)
                if await cancelled_while_blocked(lambda: file.read_ranges([(0, 10), (BLOCK, 10)])):
                    break
        await until_idle(context)
    assert path.read_bytes() == data


@MODES
@pytest.mark.parametrize("slots", [1, 3, 128])
async def test_batches_share_slots_with_other_requests(disk: Path, direct: bool, slots: int) -> None:
    path, data = make_file(disk, 256 * BLOCK)
    async with AIOContext(slots, max_workers=2) as context, open_aio(path, direct=direct, context=context) as file:
        got: list[bytes] = []

        async def one(i: int) -> None:
            got.append(await file.pread(BLOCK, i * BLOCK))

        async def all_of_them() -> None:
            assert await file.read_blocks(range(0, 256 * BLOCK, BLOCK), BLOCK) == data

        for _ in range(3):
            evict(path)
            async with create_task_group() as group:
                for i in range(20):
                    group.start_soon(all_of_them if i % 5 == 0 else one, *([i] if i % 5 else []))
            assert context.statistics().in_flight == 0
        assert len(got) == 48
