"""Read-ahead and write-behind: in order, bounded, and nothing is left in flight."""

from __future__ import annotations

import errno
import gc
import random
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio import CancelScope, create_task_group

from trio_aio import AIOContext, open_aio

from ..support.files import BLOCK, content, make_file
from ..support.page_cache import attempts, evict
from ..support.tasks import busy, cancelled_while_blocked, until_blocked, until_idle

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trio_aio._bulk.chunks import Writer


pytestmark = [pytest.mark.anyio, pytest.mark.backends("trio", "asyncio")]

MODES = pytest.mark.parametrize("direct", [False, True], ids=["buffered", "direct"])


async def gathered(chunks: Any) -> list[bytes]:
    return [chunk async for chunk in chunks]


# ---- chunks


@MODES
@pytest.mark.parametrize("size", [1000, BLOCK, 1 << 20, 3 << 20])
async def test_chunks_return_the_bytes_in_order(filesystem: Path, direct: bool, size: int) -> None:
    path, data = make_file(filesystem, 100 * BLOCK + 33)
    evict(path)
    async with open_aio(path, direct=direct) as file:
        for start, stop, depth in (
            (0, None, 4),
            (1, None, 1),
            (BLOCK, 5 * BLOCK, 3),
            (99 * BLOCK, 1 << 40, 8),
            (1 << 40, None, 2),
            (5, 5, 2),
        ):
            found = await gathered(file.chunks(size, start=start, stop=stop, depth=depth))
            assert b"".join(found) == data[start:stop]
            assert all(len(chunk) == size for chunk in found[:-1])
            assert all(found)
            await until_idle(file.context)


@MODES
async def test_chunks_left_early_leave_nothing_in_flight(disk: Path, direct: bool) -> None:
    path, data = make_file(disk, 64 * BLOCK)
    async with AIOContext(4, max_workers=2) as context, open_aio(path, direct=direct, context=context) as file:
        for _ in range(20):
            evict(path)
            async for chunk in file.chunks(BLOCK, depth=16):
                assert chunk == data[:BLOCK]
                break
            gc.collect()
            await until_idle(context)
            async with file.chunks(BLOCK, depth=16) as chunks:
                assert await chunks.__anext__() == data[:BLOCK]
            await until_idle(context)  # a withdrawn request's slot comes back a moment later
            assert await gathered(chunks) == []
        pool = context._core.engine.buffers  # type: ignore[union-attr]
        assert not any(slab.page.in_use for slabs in pool._free.values() for slab in slabs)


@MODES
async def test_cancelled_step_loses_no_chunk(disk: Path, direct: bool) -> None:
    path, data = make_file(disk, 8 * BLOCK)
    for _ in attempts("chunks that had to be waited for"):
        async with AIOContext(max_workers=1, engine="workers") as context, open_aio(path, direct=direct, context=context) as file:
            chunks = file.chunks(BLOCK)
            got: list[bytes] = []

            async def step(chunks: Any = chunks, got: list[bytes] = got) -> None:
                got.append(await chunks.__anext__())

            async with busy(context):
                evict(path)
                cancelled = [await cancelled_while_blocked(step) for _ in range(3)]
            assert b"".join(got + await gathered(chunks)) == data
        if all(cancelled):
            break


async def test_direct_chunks_stay_in_aligned_memory_until_they_are_taken(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, data = make_file(disk, 64 * BLOCK)
    async with AIOContext() as context, open_aio(path, direct=True, context=context) as file:
        pool = context._core.engine.buffers  # type: ignore[union-attr]
        chunks = file.chunks(8 * BLOCK, depth=4)
        got = [await chunks.__anext__()]
        await until_idle(context)
        assert pool.kept == 4
        with monkeypatch.context() as patch:
            patch.setattr("trio_aio._requests.direct.KeptRead.copy", no_memory)
            with pytest.raises(MemoryError):
                await chunks.__anext__()
        got += await gathered(chunks)
        assert b"".join(got) == data
        assert pool.kept == 0
        assert not any(slab.page.in_use for slabs in pool._free.values() for slab in slabs)


async def test_context_that_is_closed_before_chunks_are_taken_leaves_the_rest_to_their_object(disk: Path) -> None:
    path, data = make_file(disk, 64 * BLOCK)
    async with AIOContext() as context, open_aio(path, direct=True, context=context) as file:
        chunks = file.chunks(8 * BLOCK, depth=4)
        assert await chunks.__anext__() == data[: 8 * BLOCK]
        await until_idle(context)
    with pytest.raises(RuntimeError, match="closed"):
        await chunks.__anext__()
    await chunks.aclose()


@MODES
async def test_context_that_is_closed_while_a_task_waits_for_a_chunk_starts_no_more_reads(disk: Path, direct: bool) -> None:
    path, data = make_file(disk, 64 * BLOCK)
    found: list[bytes] = []

    async def read(chunks: Any) -> None:
        with suppress(RuntimeError):  # "this AIOContext is closed"
            async for chunk in chunks:
                found.append(chunk)

    async with AIOContext(max_workers=1, engine="workers") as context, create_task_group() as group:
        file: Any = await open_aio(path, direct=direct, context=context)
        async with busy(context) as pipe:
            evict(path)
            group.start_soon(read, file.chunks(16 * BLOCK, depth=2))
            await until_blocked()
            group.start_soon(context.aclose)
            await until_blocked()
            pipe.release()
    assert found in ([data[: 16 * BLOCK]], [])
    with suppress(RuntimeError):
        await file.aclose()


@MODES
async def test_error_after_a_read_ahead_has_started_repeats_no_chunk_and_loses_none(disk: Path, direct: bool) -> None:
    path, data = make_file(disk, 32 * BLOCK)
    for fails_at in range(8):
        for before in (False, True):
            async with AIOContext() as context, open_aio(path, direct=direct, context=context) as file:
                engine: Any = context._core.engine
                submit, calls = engine.submit, iter(range(1000))

                def fail(request: object, *, at: int = fails_at, before: bool = before, submit: Any = submit, calls: Any = calls) -> None:
                    fails = next(calls) == at
                    if fails and before:
                        raise MemoryError
                    submit(request)
                    if fails:
                        raise MemoryError

                chunks, found, errors = file.chunks(4 * BLOCK, depth=3), [], 0
                engine.submit = fail
                try:
                    while True:
                        try:
                            found.append(await chunks.__anext__())
                        except MemoryError:
                            errors += 1
                        except StopAsyncIteration:
                            break
                finally:
                    del engine.submit
                assert (b"".join(found), errors) == (data, 1)
                assert engine.buffers.kept == 0


async def test_slab_that_the_pool_has_no_memory_to_take_back_returns_later(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, data = make_file(disk, 64 * BLOCK)
    async with AIOContext() as context, open_aio(path, direct=True, context=context) as file:
        pool: Any = context._core.engine.buffers  # type: ignore[union-attr]
        return_slab, calls = pool.return_slab, 0

        def fail(slab: object) -> None:
            nonlocal calls
            calls += 1
            if calls % 3 == 1:
                raise MemoryError
            return_slab(slab)

        monkeypatch.setattr(pool, "return_slab", fail)
        assert b"".join(await gathered(file.chunks(8 * BLOCK, depth=4))) == data
        assert calls > 8
        assert pool.kept == 0
        assert not any(slab.page.in_use for slabs in pool._free.values() for slab in slabs)


def no_memory(request: object) -> bytes:
    raise MemoryError


async def test_second_task_waiting_for_a_chunk_is_refused(disk: Path) -> None:
    path, _ = make_file(disk)
    async with AIOContext(max_workers=1) as context, open_aio(path, context=context) as file:
        chunks = file.chunks(1 << 20)
        async with busy(context) as pipe, create_task_group() as group:
            group.start_soon(chunks.__anext__)
            await until_blocked()
            with pytest.raises(RuntimeError, match="another task"):
                await chunks.__anext__()
            pipe.release()
        await chunks.aclose()


async def test_chunks_and_writer_with_invalid_arguments_raise_at_once(disk: Path) -> None:
    path, _ = make_file(disk)
    async with open_aio(path, "r+b") as file:
        makers: list[Callable[[], object]] = [
            lambda: file.chunks(0),
            lambda: file.chunks(-1),
            lambda: file.chunks(start=-1),
            lambda: file.chunks(stop=-1),
            lambda: file.chunks(depth=0),
            lambda: file.writer(-1),
            lambda: file.writer(size=0),
            lambda: file.writer(depth=0),
        ]
        for make in makers:
            with pytest.raises(ValueError, match=r"negative|at least 1"):
                make()


# ---- writer


@MODES
@pytest.mark.parametrize("size", [1000, BLOCK, 1 << 20])
async def test_writer_writes_all_data(filesystem: Path, direct: bool, size: int) -> None:
    chance = random.Random(size)
    pieces = [content(chance.choice((0, 1, 100, BLOCK, 3 * BLOCK + 5)), seed=i) for i in range(60)]
    data = b"".join(pieces)
    for offset in (0, 5, BLOCK):
        path, model = make_file(filesystem, 3 * BLOCK, name=f"at-{offset}")
        async with open_aio(path, "r+b", direct=direct) as file:
            async with file.writer(offset, size=size, depth=3) as writer:
                for piece in pieces:
                    assert await writer.write(piece) == len(piece)
            await until_idle(file.context)
        assert path.read_bytes() == model[:offset] + data + model[offset + len(data) :]


@MODES
async def test_writer_appends_in_order(disk: Path, direct: bool) -> None:
    path, data = make_file(disk, 300)
    new = content(20 * BLOCK, seed=9)
    async with open_aio(path, "ab", direct=direct) as file, file.writer(size=1000) as writer:
        await writer.write(new)
    assert path.read_bytes() == data + new


@MODES
@pytest.mark.parametrize("at_the_end", [False, True])
async def test_writer_error_is_raised_at_the_next_write_or_on_exit(
    disk: Path, direct: bool, at_the_end: bool, file_size_limit: int
) -> None:
    path = disk / "file"
    async with open_aio(path, "wb", direct=direct) as file:
        written = 0
        with pytest.raises(OSError, match="writing at offset") as caught:  # noqa: PT012
            async with file.writer(size=BLOCK, depth=2) as writer:
                while not at_the_end or written <= file_size_limit:
                    written += await writer.write(bytes(BLOCK))
        assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
        await until_idle(file.context)
    assert path.stat().st_size == file_size_limit


@MODES
async def test_writer_body_that_raises_leaves_a_contiguous_beginning(disk: Path, direct: bool) -> None:
    data = content(100 * BLOCK)
    for cancelled in (False, True):
        path = disk / f"file-{cancelled}"
        async with open_aio(path, "wb", direct=direct) as file:
            with CancelScope() as scope:
                with pytest.raises((KeyError, anyio.get_cancelled_exc_class())) as caught:  # noqa: PT012
                    async with file.writer(size=4 * BLOCK) as writer:
                        await writer.write(data[: 50 * BLOCK])
                        if cancelled:
                            scope.cancel()
                            await writer.write(data[50 * BLOCK :])
                        raise KeyError
                if cancelled:
                    raise caught.value
            await until_idle(file.context)
        left = path.read_bytes()
        assert left == data[: len(left)]
        assert len(left) == 48 * BLOCK


async def test_cancelled_write_of_writer_is_not_accepted(disk: Path) -> None:
    path = disk / "file"
    async with (
        AIOContext(max_workers=1) as context,
        open_aio(path, "wb", context=context) as file,
        file.writer(size=10, depth=1) as writer,
    ):
        async with busy(context):
            assert await writer.write(b"0123456789") == 10
            assert await cancelled_while_blocked(lambda: writer.write(b"never"))
        assert await writer.write(b"abc") == 3
    assert path.read_bytes() == b"0123456789abc"


async def test_writer_outside_async_with_or_in_second_task_is_refused(disk: Path) -> None:
    path = disk / "file"
    async with AIOContext(max_workers=1) as context, open_aio(path, "wb", context=context) as file:
        writer = file.writer(size=10, depth=1)
        with pytest.raises(RuntimeError, match="async with"):
            await writer.write(b"x")
        async with writer:
            with pytest.raises(RuntimeError, match="already open"):
                await writer.__aenter__()
            async with busy(context) as pipe, create_task_group() as group:
                group.start_soon(writer.write, b"0" * 25)
                await until_blocked()
                with pytest.raises(RuntimeError, match="another task"):
                    await writer.write(b"x")
                pipe.release()
            with pytest.raises(TypeError):
                await writer.write("text")  # type: ignore[arg-type]
    assert path.read_bytes() == b"0" * 25


async def test_pipelines_end_at_the_largest_offset(disk: Path) -> None:
    path, data = make_file(disk)
    largest = (1 << 63) - 1
    async with open_aio(path, "r+b") as file:
        with pytest.raises(OSError, match="Invalid argument"):
            await anext(file.chunks(10, start=largest))
        with pytest.raises(OSError, match="writing at offset"):  # the kernel's error, or that no offset is left
            await _write(file.writer(largest - 9, size=10), b"0" * 30)
        await until_idle(file.context)
        assert await file.pread(10, 0) == data[:10]


async def _write(writer: Writer, data: bytes) -> None:
    async with writer:
        await writer.write(data)
