"""What callers may hand in, meant badly or not: a clear error or the right result, and never a crash.

Where there is one, the same call of ``os`` or ``open`` says what is right.
"""

from __future__ import annotations

import array
import ctypes
import errno
import mmap
import os
import select
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trio_aio import RWF, AIOContext, open_aio
from trio_aio.lowlevel import IOCB, io_destroy, io_getevents, io_setup, io_submit

from ..support.files import BLOCK, make_file
from ..support.tasks import until_idle

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from trio_aio import AsyncFile

LARGEST = (1 << 63) - 1
MODES = pytest.mark.parametrize("direct", [False, True], ids=["buffered", "direct"])
REFUSED = (OSError, ValueError, TypeError, OverflowError, MemoryError, BufferError)
FUZZ = settings(max_examples=int(os.environ.get("TRIO_AIO_EXAMPLES", "100")), deadline=None, suppress_health_check=list(HealthCheck))


class Index:
    """An integer that says something else each time."""

    def __init__(self, *answers: Any) -> None:
        self._answers: list[Any] = list(answers)

    def __index__(self) -> Any:
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer


class Path_:
    """A path that says something else each time."""

    def __init__(self, *answers: Any) -> None:
        self._answers: list[Any] = list(answers)

    def __fspath__(self) -> Any:
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer


# ---- numbers


@pytest.mark.trio
@MODES
async def test_index_of_argument_is_called_once_and_checked(disk: Path, direct: bool) -> None:
    path, data = make_file(disk)
    async with open_aio(path, "r+b", direct=direct) as file:
        assert await file.pread(Index(10, 1 << 40), Index(5, -1)) == data[5:15]
        assert await file.pread(10, Index(0), flags=Index(0, -1)) == data[:10]
        assert await file.read_ranges([(Index(7, -7), Index(3, 1 << 40))]) == [data[7:10]]
        assert await file.seek(Index(3, -3), Index(0, 9)) == 3
        for answer, error in ((-1, ValueError), (1 << 64, OverflowError), ("no", TypeError), (KeyError("own"), KeyError)):
            calls: list[Callable[[Any], Awaitable[object]]] = [
                lambda number: file.pread(number, 0),
                lambda number: file.pread(10, number),
                lambda number: file.preadinto(bytearray(10), number),
                lambda number: file.pwrite(b"x", number),
                lambda number: file.read_ranges([(0, number)]),
                lambda number: file.read_ranges([(number, 10)]),
                lambda number: file.write_ranges([(number, b"x")]),
                lambda number: file.read_blocks([0], number),
                lambda number: file.fallocate(0, number),
            ]
            for call in calls:
                with pytest.raises(error):
                    await call(Index(answer))
    assert path.read_bytes() == data


@pytest.mark.trio
@MODES
@pytest.mark.parametrize("offset", [LARGEST, LARGEST - 1, LARGEST - BLOCK + 1, 1 << 62, 1 << 50, LARGEST // BLOCK * BLOCK])
async def test_extreme_offsets_behave_like_the_system_call(disk: Path, direct: bool, offset: int) -> None:
    path, data = make_file(disk)

    def outcome_of(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except OSError as error:
            return error.errno

    async with open_aio(path, "r+b", direct=direct) as file:
        with open(path, "r+b", buffering=0) as plain:  # noqa: ASYNC230
            fd = plain.fileno()
            read = outcome_of(lambda: os.pread(fd, 10, offset))
            write = outcome_of(lambda: os.pwrite(fd, b"0123456789", offset))
            assert isinstance(write, int)
            assert write != 10, "this would really make the file so long"
        calls: list[tuple[Callable[[], Awaitable[object]], Any]] = [
            (lambda: file.pread(10, offset), read),
            (lambda: file.preadinto(bytearray(10), offset), read),
            (lambda: file.preadv([bytearray(5), bytearray(5)], offset), read),
            (lambda: file.read_ranges([(offset, 10)]), read),
            (lambda: file.read_blocks([offset], 10), read),
            (lambda: file.pwrite(b"0123456789", offset), write),
            (lambda: file.pwritev([b"01234", b"56789"], offset), write),
            (lambda: file.write_ranges([(offset, b"0123456789")]), write),
            (lambda: file.truncate(offset), None),
            (lambda: file.fallocate(offset, 1), None),
            (lambda: _all_chunks(file, offset), read),
            (lambda: _write_behind(file, offset), write),
            (lambda: file.seek(offset), None),
            (lambda: file.read(10), read),
            (lambda: file.write(b"0123456789"), write),
        ]
        seen: list[tuple[int, Any, int | None]] = []
        for number, (call, right) in enumerate(calls):
            try:
                got = await call()
            except EOFError:
                assert right == b"", number
            except OSError as error:
                seen.append((number, right, error.errno))
            else:
                assert right is None or got in (b"", 0, [b""], []), number
                if right is None and await file.size() != len(data):
                    await file.truncate(len(data))
        await until_idle(file.context)
    # Past the largest offset a direct request is refused where a buffered one finds nothing.
    assert all(right in (None, got) or got in (errno.EINVAL, errno.EFBIG, errno.EOVERFLOW) for _, right, got in seen), seen
    assert path.read_bytes() == data


async def _all_chunks(file: AsyncFile, start: int) -> list[bytes]:
    return [chunk async for chunk in file.chunks(10, start=start)]


async def _write_behind(file: AsyncFile, offset: int) -> None:
    async with file.writer(offset, size=5) as writer:
        await writer.write(b"0123456789")


@pytest.mark.trio
@MODES
async def test_sizes_beyond_memory_raise(disk: Path, direct: bool) -> None:
    path, data = make_file(disk)
    async with open_aio(path, direct=direct) as file:
        for size in (LARGEST, LARGEST - 1, 1 << 62, 1 << 55):
            assert await file.pread(size, 1) == data[1:]  # memory is taken for what is there
            assert await file.read(size) == data
            await file.seek(0)
            calls: list[Callable[[int], Awaitable[object]]] = [
                lambda size: file.read_ranges([(0, size)]),
                lambda size: file.read_ranges([(LARGEST, size)]),
                lambda size: file.read_blocks([0], size),
                lambda size: file.read_blocks([0] * 100, size),
            ]
            with pytest.raises(OSError, match="Invalid argument"):
                await file.pread(size, LARGEST)
            for call in calls:
                with pytest.raises((MemoryError, OverflowError, ValueError)):
                    await call(size)
        assert await file.pread(10, 0) == data[:10]
        await until_idle(file.context)


@FUZZ
@given(
    flags=st.integers(0, (1 << 31) - 1) | st.sampled_from([int(flag) for flag in RWF]),
    offset=st.integers(0, 1 << 20),
    writing=st.booleans(),
)
def test_any_flags_raise_or_return_the_right_result(
    tmp_path_factory: pytest.TempPathFactory, flags: int, offset: int, writing: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "flags"
    data = bytes(range(256)) * 64
    path.write_bytes(data)

    async def main() -> None:
        async with open_aio(path, "r+b") as file:
            try:
                if writing:
                    assert await file.pwrite(b"new", offset, flags=flags) == 3
                else:
                    assert await file.pread(10, offset, flags=flags) == data[offset : offset + 10]
            except OSError as error:
                refused = error.errno
            else:
                refused = None
            assert refused in (None, errno.EOPNOTSUPP, errno.EAGAIN, errno.EINVAL)
            now = path.read_bytes()
            at = len(data) if flags & RWF.APPEND else offset
            assert now[at : at + 3] == b"new" if writing and refused is None else now == data

    trio.run(main)


# ---- buffers


@pytest.mark.trio
@MODES
async def test_invalid_or_released_buffers_are_refused(disk: Path, direct: bool) -> None:
    path, data = make_file(disk)
    released = memoryview(bytearray(10))
    released.release()
    closed = mmap.mmap(-1, BLOCK)
    closed.close()
    readable: list[Any] = [released, closed, "text", 5, None, object(), memoryview(bytes(20))[::2], [1, 2]]
    writable = [*readable, b"constant", memoryview(b"constant"), mmap.mmap(-1, BLOCK, prot=mmap.PROT_READ)]
    async with open_aio(path, "r+b", direct=direct) as file:
        for buffer in writable:
            calls: list[Callable[[], Awaitable[object]]] = [
                lambda: file.preadinto(buffer, 0),  # noqa: B023
                lambda: file.preadv([bytearray(BLOCK), buffer], 0),  # noqa: B023
                lambda: file.read_blocks([0], 10, into=5 if buffer is None else buffer),  # noqa: B023 - None is the default
                lambda: file.readinto(buffer),  # noqa: B023
            ]
            for call in calls:
                with pytest.raises((TypeError, ValueError, BufferError)):
                    await call()
        for buffer in readable:
            calls = [
                lambda: file.pwrite(buffer, 0),  # noqa: B023
                lambda: file.pwritev([bytes(BLOCK), buffer], 0),  # noqa: B023
                lambda: file.write(buffer),  # noqa: B023
                lambda: file.write_ranges([(0, bytes(BLOCK)), (BLOCK, buffer)]),  # noqa: B023
            ]
            for call in calls:
                with pytest.raises((TypeError, ValueError, BufferError)):
                    await call()
    assert path.read_bytes() == data
    writable[-1].close()


@pytest.mark.trio
@MODES
async def test_every_kind_of_buffer_is_read_as_bytes(disk: Path, direct: bool) -> None:
    path, data = make_file(disk)
    anonymous = mmap.mmap(-1, BLOCK)
    buffers: list[Any] = [
        bytearray(BLOCK),
        memoryview(bytearray(BLOCK + 7))[7:],
        array.array("d", bytes(BLOCK)),
        memoryview(array.array("H", bytes(BLOCK))).cast("B").cast("B", (2, BLOCK // 2)),
        (ctypes.c_char * BLOCK)(),
        (ctypes.c_int64 * (BLOCK // 8))(),
        anonymous,
    ]
    async with open_aio(path, "r+b", direct=direct) as file:
        for number, buffer in enumerate(buffers):
            assert await file.preadinto(buffer, number * BLOCK) == BLOCK
            assert bytes(memoryview(buffer).cast("B") if number != 3 else buffer) == data[number * BLOCK : (number + 1) * BLOCK]
            assert await file.pwrite(buffer, number * BLOCK) == BLOCK
    assert path.read_bytes() == data
    anonymous.close()


@pytest.mark.trio
@MODES
async def test_buffer_in_flight_cannot_be_resized_released_or_closed(disk: Path, direct: bool) -> None:
    path, data = make_file(disk)
    grown, view, mapping = bytearray(BLOCK), memoryview(bytearray(BLOCK)), mmap.mmap(-1, BLOCK)
    underneath = view.obj
    async with open_aio(path, direct=direct) as file:
        await until_idle(file.context)

        async def attack() -> None:
            for attempt in (lambda: grown.append(0), lambda: grown.clear(), view.release, mapping.close, lambda: mapping.resize(2 * BLOCK)):
                with suppress(BufferError, ValueError, SystemError):  # whatever Python says of it, the memory is still there
                    attempt()
            del underneath[:0]

        for _ in range(20):
            with suppress(ValueError):  # released or closed before this call
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(attack)
                    for i, buffer in enumerate((grown, view, mapping)):
                        nursery.start_soon(_read_if_possible, file, buffer, i * BLOCK)
                    nursery.start_soon(attack)
        fresh = bytearray(BLOCK)
        assert await file.preadinto(fresh, 0) == BLOCK
        assert fresh == data[:BLOCK]
    with suppress(BufferError):
        mapping.close()


async def _read_if_possible(file: AsyncFile, buffer: Any, offset: int) -> None:
    with suppress(ValueError):
        await file.preadinto(buffer, offset)


@pytest.mark.trio
@MODES
async def test_sequences_with_wrong_length_or_error_are_refused(disk: Path, direct: bool) -> None:
    path, data = make_file(disk)

    class Lying(list):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return 1000

    class Bytes(bytes):
        def __len__(self) -> int:
            return 1 << 40

        def __getitem__(self, index: Any) -> Any:
            raise IndexError

    def broken() -> Iterator[Any]:
        yield (0, b"never")
        raise KeyError("own")

    def broken_ranges() -> Iterator[tuple[int, int]]:
        yield (0, 5)
        raise KeyError("own")

    async with open_aio(path, "r+b", direct=direct) as file:
        assert await file.preadv(Lying([bytearray(10)]), 0) == 10
        assert await file.pwritev(Lying([data[:10]]), 0) == 10
        assert await file.pwrite(Bytes(data[:10]), 0) == 10
        assert await file.read_ranges(Lying([(0, 10)])) == [data[:10]]
        assert await file.read_blocks(Lying([0, 10]), 10) == data[:20]
        with pytest.raises(KeyError):
            await file.write_ranges(broken())
        with pytest.raises(KeyError):
            await file.read_ranges(broken_ranges())
        for ranges in ([1], [(1,)], [(1, 2, 3)], "ab", 5, [("a", 1)], None):
            with pytest.raises((TypeError, ValueError)):
                await file.read_ranges(ranges)  # type: ignore[arg-type]
            with pytest.raises((TypeError, ValueError)):
                await file.write_ranges(ranges)  # type: ignore[arg-type]
        for offsets in (["a"], [1.5], [None], "ab", 5, [[1]], memoryview(bytes(16)).cast("d")):
            with pytest.raises((TypeError, ValueError)):
                await file.read_blocks(offsets, 10)  # type: ignore[arg-type]
    assert path.read_bytes() == data


@pytest.mark.skipif(sys.version_info < (3, 12), reason="classes have __buffer__ from Python 3.12 on")
@pytest.mark.trio
@MODES
async def test_buffer_that_changes_at_each_export_raises_or_succeeds(disk: Path, direct: bool) -> None:
    path, data = make_file(disk)

    class Changing:
        def __init__(self, *views: Any) -> None:
            self._views: list[Any] = list(views)

        def __buffer__(self, flags: int) -> memoryview:
            answer = self._views.pop(0) if len(self._views) > 1 else self._views[0]
            if isinstance(answer, BaseException):
                raise answer
            return memoryview(answer)

    async with open_aio(path, "r+b", direct=direct) as file:
        for views in (
            (bytearray(BLOCK), bytearray(10)),
            (bytearray(10), bytearray(BLOCK)),
            (bytearray(10), bytes(10)),
            (bytearray(10), memoryview(bytearray(20))[::2]),
            (bytearray(10), KeyError("own")),
            (KeyError("own"),),
        ):
            for call in (lambda buffer: file.preadinto(buffer, 0), lambda buffer: file.preadv([buffer, bytearray(10)], 0)):
                with suppress(BufferError, TypeError, ValueError, KeyError):
                    assert await call(Changing(*views)) in (10, 20, BLOCK, BLOCK + 10)
        assert await file.pread(10, 0) == data[:10]


# ---- paths


@pytest.mark.trio
async def test_open_takes_the_paths_that_built_in_open_takes(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"target")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "link").symlink_to("target")
    surrogate = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe")
    paths: list[Any] = [
        Path_(str(target)),
        Path_(os.fsencode(target)),
        Path_(5),
        Path_(None),
        Path_(KeyError("own")),
        Path_("nul\0byte"),
        "",
        b"",
        str(target) + "/",
        tmp_path / "loop",
        tmp_path / "dangling",
        tmp_path / "link",
        tmp_path / ("x" * 300),
        "/" + "x/" * 3000,
        surrogate,
        "\ud800",
        tmp_path / "none" / ".." / "target",
        bytearray(os.fsencode(target)),
        1.5,
        None,
        True and -1,
    ]
    for path in paths:
        for mode in ("rb", "r+b", "xb"):
            outcomes = []
            for theirs in (True, False):
                for leftover in (tmp_path / "nowhere", tmp_path / os.fsdecode(b"\xff\xfe")):
                    leftover.unlink(missing_ok=True)
                try:
                    if theirs:
                        with open(path, mode, buffering=0) as file:  # noqa: ASYNC230
                            outcomes.append((file.mode, file.read() if "r" in mode else b""))
                    else:
                        async with open_aio(path, mode) as ours:
                            outcomes.append((ours.mode, await ours.read() if "r" in mode else b""))
                except BaseException as error:
                    outcomes.append((type(error), getattr(error, "errno", None)))  # type: ignore[arg-type]
            assert outcomes[0] == outcomes[1], (path, mode)


@pytest.mark.trio
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
async def test_created_file_has_the_mode_of_built_in_open(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        for mode in ("wb", "xb", "ab", "w+b"):
            with open(tmp_path / f"theirs {mode}", mode):  # noqa: ASYNC230
                pass
            async with open_aio(tmp_path / f"ours {mode}", mode) as file:
                assert not os.get_inheritable(file.fileno())
            assert (tmp_path / f"ours {mode}").stat().st_mode == (tmp_path / f"theirs {mode}").stat().st_mode
    finally:
        os.umask(before)


# ---- the border to C

NUMBERS = st.integers() | st.integers(-(1 << 64), 1 << 64) | st.sampled_from([0, 1, -1, 1 << 15, 1 << 31, 1 << 32, LARGEST, LARGEST + 1])
ANYTHING = NUMBERS | st.none() | st.text(max_size=3) | st.floats() | st.binary(max_size=3) | st.booleans()


@pytest.fixture(scope="module")
def playground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int, list[int]]]:
    """Yield a kernel context, an eventfd, and descriptors on which nothing can be spoilt."""
    path = tmp_path_factory.mktemp("playground") / "file"
    path.write_bytes(bytes(1 << 16))
    ctx = io_setup(64)
    event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    fds = [os.open(path, os.O_RDWR), os.open(path, os.O_RDONLY), os.open(path, os.O_RDWR | os.O_DIRECT)]
    yield ctx, event_fd, fds
    for fd in (*fds, event_fd):
        os.close(fd)
    io_destroy(ctx)


@FUZZ
@given(data=st.data())
def test_any_kernel_request_is_refused_or_completes(playground: tuple[int, int, list[int]], data: st.DataObject) -> None:
    ctx, event_fd, fds = playground
    draw = data.draw
    iocbs: list[IOCB] = []
    for _ in range(draw(st.integers(1, 8))):
        name = draw(st.sampled_from(["pread", "pwrite", "preadv", "pwritev", "fsync", "fdsync", "noop"]))
        fd = draw(st.sampled_from([*fds, -1, 1 << 30, 1 << 31, 1 << 40]) | st.none() | st.floats())
        offset = draw(st.sampled_from([0, 512, 5]) | ANYTHING)
        buffer = draw(st.binary(max_size=5000).map(bytearray) | st.binary(max_size=10) | st.none() | st.text(max_size=2))
        options = {
            "data": draw(st.just(0) | ANYTHING),
            "rw_flags": draw(st.just(0) | ANYTHING),
            "resfd": draw(st.just(event_fd) | st.none() | st.sampled_from([-1, 1 << 30, fds[0], 1 << 33])),
            "ioprio": draw(st.none() | ANYTHING),
        }
        arguments: dict[str, tuple[Any, ...]] = {
            "pread": (fd, buffer, offset),
            "pwrite": (fd, buffer, offset),
            "preadv": (fd, draw(st.just([buffer]) | st.just([buffer] * 3) | st.just([]) | st.just(buffer)), offset),
            "pwritev": (fd, draw(st.just([buffer]) | st.just([]) | st.just([b"x"] * 1030)), offset),
        }
        with suppress(*REFUSED):
            iocbs.append(getattr(IOCB, name)(*arguments.get(name, (fd,)), **options))
    accepted = 0
    left = list(iocbs)
    while left:
        try:
            n = io_submit(ctx, left)
        except OSError:
            n = 0
        accepted += n
        left = left[n + 1 :]  # behind the one that was refused
    events = io_getevents(ctx, accepted, max(accepted, 1), timeout=30)
    assert len(events) == accepted
    for event in events:
        assert event.iocb in iocbs
        assert -4096 < event.res <= 5000 * 3 + 1030
    assert io_getevents(ctx, 0, 8, timeout=0) == []


@FUZZ
@given(
    ctx=NUMBERS.filter(lambda number: number >= 0),
    values=st.lists(ANYTHING, min_size=3, max_size=3),
    iocbs=st.lists(ANYTHING, max_size=3) | ANYTHING,
)
def test_any_arguments_of_the_system_calls_are_refused(ctx: Any, values: list[Any], iocbs: Any) -> None:
    # An id that is no context is none for the kernel; it is looked up before anything is done.
    with suppress(*REFUSED):
        assert io_submit(ctx, iocbs) == 0
    with suppress(*REFUSED):
        assert io_getevents(ctx, values[0], values[1], timeout=0) == []
    with pytest.raises(REFUSED):
        io_getevents(ctx, 1, 1, timeout=values[2] if isinstance(values[2], (str, bytes)) else 0)
    with pytest.raises(REFUSED):
        io_destroy(ctx)
    for number in values:
        if not isinstance(number, int) or not 0 < number < 1 << 17:  # those the kernel would really give
            with pytest.raises(REFUSED):
                io_setup(number)


@FUZZ
@given(
    fd=st.sampled_from([-1, -(1 << 31), 1 << 30, 1 << 31, 1 << 40, 1 << 70]) | st.floats() | st.text(max_size=2) | st.none(),
    events=ANYTHING,
)
def test_invalid_descriptor_is_refused(fd: Any, events: Any) -> None:
    async def main() -> None:
        async with AIOContext(2) as context:
            calls: list[Callable[[], Awaitable[object]]] = [
                lambda: context.pread(fd, 10, 0),
                lambda: context.preadinto(fd, bytearray(10), 0),
                lambda: context.pwrite(fd, b"x", 0),
                lambda: context.fsync(fd),
                lambda: context.fdatasync(fd),
                lambda: context.poll(fd, select.POLLIN),
                lambda: context.poll(fd, events),
            ]
            for call in calls:
                with pytest.raises(REFUSED):
                    await call()
            assert context.statistics().in_flight == 0

    trio.run(main)
