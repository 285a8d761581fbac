"""Whole files, compared with pathlib's."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import gc
import io
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import trio
from anyio import CancelScope, create_task_group

from trio_aio import current_context, open_aio, read_bytes, read_text, write_bytes, write_text
from trio_aio._engine.descriptor import cached_size
from trio_aio._files import whole as _whole
from trio_aio._lanes.threads import living

from ..support.files import BLOCK, content, make_file, opened
from ..support.page_cache import attempts, evict
from ..support.pipes import full_pipe
from ..support.tasks import cancelled_while_blocked, until_blocked, until_idle, write_to

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.anyio, pytest.mark.backends("trio", "asyncio")]

SMALL, LARGE, PART = _whole.SCRATCH_SIZE, 1 << 20, 256 << 10
SIZES = (0, 1, 2, BLOCK, SMALL - 1, SMALL, SMALL + 1, PART, LARGE - 1, LARGE, LARGE + 1, LARGE + 3 * PART + 7)


@pytest.fixture(autouse=True)
def _pieces_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_whole, "LARGEST_REQUEST", LARGE)
    monkeypatch.setattr(_whole, "PART", PART)


@pytest.mark.parametrize("cold", [False, True])
async def test_read_bytes_equals_pathlib(disk: Path, cold: bool) -> None:
    for size in SIZES:
        path, data = make_file(disk, size)
        if cold:
            evict(path)
        assert await read_bytes(path) == data


async def test_read_bytes_of_hundred_megabytes_is_complete(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    path, data = make_file(disk, 100_000_000)
    assert await read_bytes(path) == data
    assert await write_bytes(path, data[::-1]) == len(data)
    assert path.read_bytes() == data[::-1]


@pytest.mark.parametrize("size", [0, 1, SMALL + 1, LARGE + 3 * PART])
async def test_whole_file_round_trip_on_each_filesystem(filesystem: Path, size: int) -> None:
    path, data = filesystem / "file", content(size)
    assert await write_bytes(path, data) == len(data)
    assert path.read_bytes() == data
    assert await read_bytes(path) == data


async def test_whole_file_calls_take_every_kind_of_path(tmp_path: Path) -> None:
    for path in (str(tmp_path / "å"), os.fsencode(tmp_path / "b"), tmp_path / "c", trio.Path(tmp_path / "d"), anyio.Path(tmp_path / "e")):
        assert await write_bytes(path, b"content") == 7
        assert await read_bytes(path) == b"content"
        assert await write_text(path, "text") == 4
        assert await read_text(path) == "text"
    for bad, kind in (("a\0b", ValueError), (b"a\0b", ValueError), (3, TypeError), (None, TypeError)):
        with pytest.raises(kind):
            await read_bytes(bad)  # type: ignore[arg-type]
        with pytest.raises(kind):
            await write_bytes(bad, b"")  # type: ignore[arg-type]


async def test_write_bytes_takes_any_buffer(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for data in (b"bytes", bytearray(b"array"), memoryview(b"-view-")[1:5]):
        path.write_bytes(b"longer than what comes now")
        assert await write_bytes(path, data) == len(data)
        assert path.read_bytes() == bytes(data)
    for bad in ("text", None, 5):
        with pytest.raises(TypeError):
            await write_bytes(path, bad)  # type: ignore[arg-type]
    assert path.read_bytes() == b"view"


async def test_whole_file_error_has_errno_and_name(tmp_path: Path) -> None:
    for path, kind in ((tmp_path / "missing" / "file", FileNotFoundError), (tmp_path, IsADirectoryError)):
        for call in (read_bytes(path), write_bytes(path, b"x"), read_text(path), write_text(path, "x")):
            with pytest.raises(kind) as caught:
                await call
            assert caught.value.filename == str(path)
    os.mkfifo(tmp_path / "fifo")
    for call in (read_bytes(tmp_path / "fifo"), write_bytes(tmp_path / "fifo", b"x"), read_bytes("/dev/zero")):
        with pytest.raises(io.UnsupportedOperation, match=r"a FIFO|a character device"):
            await call


async def test_write_bytes_on_full_disk_reports_bytes_written(on_filesystem: Callable[[str], Path]) -> None:
    path = on_filesystem("small_tmpfs") / "file"
    with pytest.raises(OSError, match="No space left") as caught:
        await write_bytes(path, bytes(4 << 20))
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert caught.value.characters_written == path.stat().st_size > 0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "name", ["/proc/self/status", "/proc/version", "/proc/filesystems", "/proc/kallsyms", "/sys/kernel/mm/transparent_hugepage/enabled"]
)
async def test_read_bytes_of_file_with_unknown_size_reads_to_the_end(name: str) -> None:
    ours, theirs = await read_bytes(name), Path(name).read_bytes()  # noqa: ASYNC240
    assert ours.splitlines()[0] == theirs.splitlines()[0]
    assert ours.splitlines()[-1].split()[0] == theirs.splitlines()[-1].split()[0]


# ---- the size is a hint


async def test_read_bytes_of_file_whose_size_changed_is_complete(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for size in (0, 1, SMALL, SMALL + 1, PART, LARGE + PART + 1, LARGE + 2 * PART):
        path, data = make_file(tmp_path, size)
        for told in (-errno.EAGAIN, 0, 1, SMALL + 1, PART, LARGE - 1, LARGE + PART + 1, LARGE + 5 * PART):
            monkeypatch.setattr(_whole, "cached_size", lambda _, told=told: told)
            assert await read_bytes(path) == data


async def test_read_bytes_takes_the_size_from_memory_or_not_at_all(disk: Path) -> None:
    path, _ = make_file(disk, 12345)
    with opened(path, os.O_RDONLY):  # the kernel keeps the name in memory as long as it is open
        for _ in attempts("a name in memory"):  # a mount or a rename anywhere may disturb a look
            found = cached_size(os.fsencode(path) + b"\0")
            if found != -errno.EAGAIN:
                break
    assert found == 12345
    missing = disk / "missing"
    assert cached_size(os.fsencode(missing) + b"\0") == -errno.EAGAIN  # only the disk knows
    for _ in attempts("the absence of a name in memory"):
        assert not missing.exists()
        found = cached_size(os.fsencode(missing) + b"\0")
        if found != -errno.EAGAIN:
            break
    assert found == -errno.ENOENT


# ---- text


@pytest.mark.parametrize("encoding", [None, "utf-8-sig", "utf-16"])
async def test_read_text_equals_open(tmp_path: Path, encoding: str | None) -> None:
    text = "one\ntwo\r\nthree\rfoür\n"
    paths = [tmp_path / name for name in ("theirs", "ours")]
    for newline in (None, "", "\n", "\r", "\r\n"):
        with open(paths[0], "w", encoding=encoding, newline=newline) as file:  # noqa: ASYNC230
            file.write(text)
        assert await write_text(paths[1], text, encoding, newline=newline) == len(text)
        assert paths[0].read_bytes() == paths[1].read_bytes()
        with open(paths[0], encoding=encoding, newline=newline) as file:  # noqa: ASYNC230
            assert await read_text(paths[1], encoding, newline=newline) == file.read()


async def test_text_calls_with_invalid_arguments_raise_before_any_effect(tmp_path: Path) -> None:
    path = tmp_path / "file"
    bad: list[tuple[type[Exception], tuple[Any, ...]]] = [
        (TypeError, (b"bytes",)),
        (LookupError, ("text", "no such encoding")),
        (ValueError, ("text", None, None, "x")),
        (UnicodeEncodeError, ("foür", "ascii")),
    ]
    for kind, arguments in bad:
        with pytest.raises(kind):
            await write_text(path, *arguments)
    assert not path.exists()
    path.write_bytes(b"fo\xfcr")
    with pytest.raises(UnicodeDecodeError):
        await read_text(path, "utf-8")
    assert await read_text(path, "utf-8", "replace") == "fo\ufffdr"
    for kind, arguments in ((LookupError, ("no such encoding",)), (ValueError, (None, None, "x"))):
        with pytest.raises(kind):
            await read_text(tmp_path / "missing", *arguments)


# ---- cancellation


@pytest.fixture
def one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the run's context use one worker."""
    monkeypatch.setattr("trio_aio._context.context.MAX_WORKERS", 1)


@pytest.mark.usefixtures("one_worker")
async def test_cancelled_write_bytes_not_started_creates_and_truncates_nothing(disk: Path) -> None:
    path, data = make_file(disk)
    with full_pipe() as pipe:
        async with create_task_group() as group:
            group.start_soon(write_to, current_context(), pipe)
            while not pipe.begun:
                await anyio.lowlevel.checkpoint()
            assert await cancelled_while_blocked(lambda: write_bytes(path, b"never"))
            assert await cancelled_while_blocked(lambda: write_bytes(disk / "new", b"never"))
            assert await cancelled_while_blocked(lambda: read_bytes(path))
            pipe.release()
    await until_idle(current_context())
    assert path.read_bytes() == data
    assert not (disk / "new").exists()


async def test_whole_file_calls_in_cancelled_scope_have_no_effect(disk: Path) -> None:
    path, data = make_file(disk)
    before = current_context().statistics()
    for call in (
        lambda: read_bytes(path),
        lambda: write_bytes(path, b"never"),
        lambda: write_bytes(disk / "new", b"never"),
        lambda: read_text(path),
        lambda: write_text(path, "never"),
    ):
        with CancelScope() as scope:
            scope.cancel()
            await call()
        assert scope.cancelled_caught
    assert current_context().statistics() == before
    assert path.read_bytes() == data
    assert not (disk / "new").exists()


async def test_cancelled_read_of_large_file_stops_after_the_pieces_in_flight(disk: Path) -> None:
    path, _ = make_file(disk, LARGE + 20 * PART)
    context = current_context()
    engine: Any = context._core.engine
    submit = engine.submit
    with CancelScope() as scope:

        def submit_and_cancel(request: Any) -> None:
            submit(request)
            if getattr(request, "offset", 0) == 3 * PART:
                scope.cancel()

        engine.submit = submit_and_cancel
        await read_bytes(path)
    del engine.submit
    assert scope.cancelled_caught
    await until_idle(context)
    assert context.statistics().bytes_read <= 4 * PART
    assert not [name for name in map(_target, os.listdir("/proc/self/fd")) if name == str(path)]


def _target(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:
        return ""


async def test_read_that_fails_in_a_later_piece_closes_the_file(disk: Path) -> None:
    path, _ = make_file(disk, LARGE + 4 * PART)
    engine: Any = current_context()._core.engine
    submit = engine.submit

    def submit_a_bad_one(request: Any) -> None:
        if getattr(request, "offset", 0) == 2 * PART:
            request.flags = 1 << 30
        submit(request)

    engine.submit = submit_a_bad_one
    with pytest.raises(OSError, match="not supported") as caught:
        await read_bytes(path)
    del engine.submit
    assert caught.value.filename == str(path)


@pytest.mark.backends("trio")
async def test_many_whole_files_at_once_are_complete(disk: Path) -> None:
    async def both(i: int) -> None:
        path, data = disk / str(i), content(i * 1000, seed=i)
        for _ in range(3):
            assert await write_bytes(path, data) == len(data)
            assert await read_bytes(path) == data

    async with create_task_group() as group:
        for i in range(200):
            group.start_soon(both, i)


# ---- a descriptor that is opened when no task waits any more


@pytest.mark.backends("asyncio")
@pytest.mark.parametrize("how", ["open_aio", "read_bytes", "read_bytes, of which the size was not known"])
def test_file_opened_for_an_ended_loop_is_closed(disk: Path, how: str) -> None:
    """A lease (fcntl(2)) keeps an open from returning until its holder lets go."""
    path, _ = make_file(disk, SMALL + 1)
    holder = os.open(path, os.O_RDWR)
    fcntl.fcntl(holder, fcntl.F_SETSIG, signal.SIGURG)  # type: ignore[attr-defined,unused-ignore]
    fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_WRLCK)

    async def open_it() -> object:
        return await open_aio(path)

    async def main() -> None:
        kept.append(asyncio.ensure_future(open_it() if how == "open_aio" else read_bytes(path)))
        await until_blocked()
        assert current_context().statistics().in_flight == 1

    kept: list[object] = []
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)
    with pytest.MonkeyPatch.context() as patch:
        if "not known" in how:  # it is left open: there was no room
            patch.setattr(_whole, "cached_size", lambda _: 0)
        loop.run_until_complete(main())
    loop.close()
    fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    os.close(holder)
    for thread in [*living]:
        if thread.name == "trio_aio drain":
            thread.join()
    kept.clear()
    gc.collect()


async def test_child_of_fork_shares_no_memory_with_its_parent(disk: Path) -> None:
    path, data = make_file(disk, BLOCK)
    assert await read_bytes(path) == data
    scratch = _whole._scratches[-1]
    child = os.fork()
    if child == 0:
        scratch.view[:4] = b"mine"
        os._exit(len(_whole._scratches))
    assert os.waitpid(child, 0)[1] == 0  # noqa: ASYNC222 - it ends at once
    assert scratch.view[:4] == data[:4]
