"""Descriptors that others use too: adopted ones, and those of files whose `fileno()` was given away."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import resource
import signal
import subprocess
import sys
import tempfile
import textwrap
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio import CancelScope, create_task_group, to_thread
from anyio.lowlevel import checkpoint

from trio_aio import AIOContext, FileReadStream, FileWriteStream, open_aio
from trio_aio.testing import FaultyContext

from ..conftest import need
from ..support.files import BLOCK, content, make_file, opened
from ..support.tasks import busy, cancelled_while_blocked, until_blocked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.anyio, pytest.mark.backends("trio", "asyncio")]

LINES = b"".join(b"line %04d\n" % i for i in range(3000))
CHILD = ["echo", "child"]
FIRST_LINE = ["dd", "bs=10", "count=1", "status=none"]


def position(fd: int) -> int:
    """Return the kernel's file position."""
    return os.lseek(fd, 0, os.SEEK_CUR)


def lines_file(folder: Path, data: bytes = LINES) -> Path:
    path = folder / "lines"
    path.write_bytes(data)
    return path


@pytest.fixture
def shared(disk: Path) -> Iterator[int]:
    """Open a file with 3000 lines for reading and writing, as a shell does for its programs."""
    with opened(lines_file(disk), os.O_RDWR) as fd:
        yield fd


async def child(command: list[str], **streams: Any) -> bytes:
    """Run a command in a thread, and return what it printed if its output is a pipe."""
    done = await to_thread.run_sync(lambda: subprocess.run(command, check=True, **streams))
    printed: bytes = done.stdout
    return printed


# ---- programs of a shell


@pytest.mark.parametrize("redirect", [">", ">>"])
@pytest.mark.parametrize("mode", ["wb", "a", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("ab", "r+b", "w"))])
def test_output_of_a_program_is_in_order_with_print_and_children(disk: Path, redirect: str, mode: str) -> None:
    program = disk / "program.py"
    program.write_text(
        textwrap.dedent(
            f"""
            import os, subprocess, sys, trio
            from trio_aio import open_aio
            async def main():
                text = (lambda line: line) if "b" not in {mode!r} else str.encode
                print("printed", flush=True)
                async with open_aio(1, {mode!r}, closefd=False) as out:
                    await out.write(text("ours\\n"))
                    os.write(1, b"written\\n")
                    await out.write(text("ours again\\n"))
                    await trio.run_process(["echo", "child"], stdout=out if {mode!r}[-1] == "b" else out.buffer)
                    await out.writelines([text("more\\n"), text("lines\\n")])
                print("last")
            trio.run(main)
            """
        )
    )
    out = disk / "out"
    out.write_text("old\n")
    # In the shell's file there is a line before and behind it.
    write_mode = "read-write" if mode == "r+b" and redirect == ">" else redirect
    operator = "1<>" if write_mode == "read-write" else redirect
    start = "" if operator == ">" else "old\n"
    command = f"(echo first; '{sys.executable}' '{program}'; echo end) {operator} '{out}'"
    subprocess.run(["sh", "-c", command], check=True)
    wanted = "first\nprinted\nours\nwritten\nours again\nchild\nmore\nlines\nlast\nend\n"
    if operator == "1<>":
        start = ""  # it overwrites the old line
        assert len("old\n") < len(wanted)
    assert out.read_text() == start + wanted


@pytest.mark.parametrize("call", ["readline()", "__anext__()", pytest.param("read(10)", marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", ["rb", "r"])
def test_input_of_a_program_is_read_on_by_the_next(disk: Path, call: str, mode: str) -> None:
    program = f"""
import trio
from trio_aio import open_aio
async def main():
    async with open_aio(0, {mode!r}, closefd=False) as file:
        line = await file.{call}
    print(line if isinstance(line, str) else line.decode(), end="", flush=True)
trio.run(main)
"""
    (disk / "program.py").write_text(program)
    path = lines_file(disk)
    command = f"(head -c 10; '{sys.executable}' '{disk}/program.py'; '{sys.executable}' '{disk}/program.py'; cat) < '{path}'"
    assert subprocess.run(["sh", "-c", command], check=True, capture_output=True).stdout == LINES


# ---- files given to children


@pytest.mark.parametrize("mode", ["wb", "r+b", "w", "xb", "ab", "w+"])
async def test_child_writes_behind_what_was_written_and_is_not_overwritten(disk: Path, mode: str) -> None:
    path = disk / "out"
    if "x" not in mode:
        path.write_bytes(b"")
    code: Callable[[str], Any] = (lambda text: text) if "b" not in mode else str.encode  # type: ignore[assignment]
    async with open_aio(path, mode) as file:
        await file.write(code("header\n"))
        for _ in range(2):
            await child(CHILD, stdout=file)
            await file.write(code("between\n"))
    assert path.read_text() == "header\n" + "child\nbetween\n" * 2


@pytest.mark.parametrize("mode", ["rb", "r"])
@pytest.mark.parametrize("direct", [False, True])
async def test_child_reads_on_where_the_cursor_is_and_so_do_we(disk: Path, mode: str, direct: bool) -> None:
    path = lines_file(disk)
    code: Callable[[bytes], Any] = (lambda data: data) if "b" in mode else bytes.decode  # type: ignore[assignment]
    async with open_aio(path, mode, direct=direct) as file:
        assert await file.readline() == code(LINES[:10])
        if not direct:
            assert await child(FIRST_LINE, stdin=file, stdout=subprocess.PIPE) == LINES[10:20]
            assert await file.readline() == code(LINES[20:30])
        else:
            file.fileno()
            assert await file.readline() == code(LINES[10:20])
            assert await file.readline() == code(LINES[20:30])
        async for line in file:
            assert line == code(LINES[30:40])
            break
        assert position(file.fileno()) == 40
        assert await file.read() == code(LINES[40:])
        assert await file.tell() == len(LINES) == position(file.fileno())


async def test_first_fileno_sets_the_position_and_later_ones_do_nothing(disk: Path) -> None:
    async with open_aio(lines_file(disk), "r+b") as file:
        assert await file.read(7) == LINES[:7]
        fd = file.fileno()
        assert position(fd) == 7
        os.lseek(fd, 20, os.SEEK_SET)
        assert position(file.fileno()) == 20
        assert await file.readline() == LINES[20:30]
        assert position(fd) == 30


async def test_cursor_of_a_path_costs_no_system_call_until_fileno(disk: Path) -> None:
    async with open_aio(lines_file(disk), "r+b") as file:
        fd = file._descriptor.fd
        await file.read(100)
        await file.seek(500)
        await file.write(b"x")
        before = file.context.statistics()
        assert await file.tell() == 501
        assert file.context.statistics() == before
        assert position(fd) == 0


async def test_positional_calls_leave_the_position(shared: int) -> None:
    async with open_aio(shared, "r+b", closefd=False) as file:
        await file.pread(10, 20)
        await file.pwrite(b"x", 0)
        await file.read_ranges([(0, 5), (100, 5)])
        async with file.writer(20) as writer:
            await writer.write(b"y")
        async for _ in file.chunks(1000):
            pass
    assert position(shared) == 0


# ---- lines that are read ahead


@pytest.mark.parametrize("mode", ["rb", "r"])
async def test_lines_of_an_adopted_descriptor_are_read_ahead_and_given_back(shared: int, mode: str) -> None:
    async with AIOContext() as context:
        file: Any = await open_aio(shared, mode, closefd=False, context=context)
        assert len(await file.readline()) == 10
        before = context.statistics().completed
        for _ in range(20):
            await file.readline()
        assert context.statistics().completed == before
        assert position(shared) > 210
        await file.flush()
        assert position(shared) == 210
        await file.readline()
        assert await file.tell() == position(shared) == 220
        await file.readline()
        await file.aclose()
        assert position(shared) == 230


@pytest.mark.parametrize("mode", ["rb", "r"])
@pytest.mark.parametrize("closefd", [True, False])
async def test_close_in_a_cancelled_scope_gives_back_what_was_read_ahead(shared: int, mode: str, closefd: bool) -> None:
    file: Any = await open_aio(os.dup(shared), mode, closefd=closefd)
    fd = file._buffer._descriptor.fd if mode == "r" else file._descriptor.fd
    async for _ in file:
        break
    with CancelScope() as scope:
        scope.cancel()
        await file.aclose()
    assert position(shared) == 10
    if not closefd:
        os.close(fd)


async def test_position_that_another_has_moved_meanwhile_stays(shared: int) -> None:
    async with open_aio(shared, "rb", closefd=False) as file:
        assert await file.readline() == LINES[:10]
        os.lseek(shared, 1000, os.SEEK_SET)
        await file.flush()
        assert position(shared) == 1000
        assert await file.read(10) == LINES[1000:1010]
        assert await file.readline() == LINES[1010:1020]
        os.lseek(shared, 2000, os.SEEK_SET)
    assert position(shared) == 2000


async def test_line_longer_than_what_is_read_at_once_is_whole(disk: Path) -> None:
    data = b"x" * 300_000 + b"\n" + b"y" * 300_000
    with opened(lines_file(disk, data), os.O_RDONLY) as fd:
        async with open_aio(fd, closefd=False) as file:
            assert await file.readline(100) == data[:100]
            assert await file.readline() == data[100:300_001]
            await file.flush()
            assert position(fd) == 300_001
            assert await file.readline() == data[300_001:]
            assert await file.readline() == b""
        assert position(fd) == len(data)
    async with open_aio(disk / "lines") as file:
        file.fileno()
        assert await file.readline() == data[:300_001]
        assert position(file.fileno()) == 300_001


@pytest.mark.parametrize("size", [100, 1 << 20, (1 << 20) + 1, 5 << 20, -1])
async def test_reads_of_every_size_are_whole(disk: Path, size: int) -> None:
    path, data = make_file(disk, (3 << 20) + 5)
    with opened(path, os.O_RDONLY) as fd:
        os.lseek(fd, 3, os.SEEK_SET)
        async with open_aio(fd, closefd=False) as file:
            wanted = data[3:] if size < 0 else data[3 : 3 + size]
            assert await file.read(size) == wanted
            assert position(fd) == 3 + len(wanted)
            assert await file.read() == data[3 + len(wanted) :]
            assert await file.read() == b""
            assert position(fd) == len(data)


async def test_files_without_a_size_are_read_to_their_end() -> None:
    with opened(Path("/proc/self/mountinfo"), os.O_RDONLY) as fd:
        async with open_aio(fd, closefd=False) as file:
            assert await file.read() == Path("/proc/self/mountinfo").read_bytes()  # noqa: ASYNC240
            await file.seek(0)
            assert await file.read(3 << 20) == Path("/proc/self/mountinfo").read_bytes()  # noqa: ASYNC240


# ---- where the cursor starts


async def test_adopted_descriptor_starts_where_it_is_and_appends_at_the_end(shared: int) -> None:
    os.lseek(shared, 50, os.SEEK_SET)
    async with open_aio(shared, "rb", closefd=False) as file:
        assert await file.tell() == 50
    async with open_aio(shared, "ab", closefd=False) as file:  # the descriptor itself has no O_APPEND
        assert await file.tell() == position(shared) == len(LINES)
        await file.write(b"more")
    assert os.pread(shared, 10, len(LINES)) == b"more"


@pytest.mark.parametrize(("mode", "wanted"), [("r+b", 5), ("ab", len(LINES)), ("r", 5)])
async def test_descriptor_of_an_opener_starts_where_open_starts(disk: Path, mode: str, wanted: int) -> None:
    def opener(path: str, flags: int) -> int:
        fd = os.open(path, flags)
        os.lseek(fd, 5, os.SEEK_SET)
        return fd

    path = lines_file(disk)
    with open(path, mode, opener=opener) as plain:  # noqa: ASYNC230
        assert plain.tell() == wanted
    async with open_aio(path, mode, opener=opener) as file:
        assert await file.tell() == wanted


async def test_two_files_of_one_open_file_take_turns(shared: int) -> None:
    async with open_aio(shared, "r+b", closefd=False) as one, open_aio(os.dup(shared), "r+b") as other:
        for i in range(0, 100, 20):
            assert await one.read(10) == LINES[i : i + 10]
            assert await other.read(10) == LINES[i + 10 : i + 20]
        await one.seek(0, os.SEEK_END)
        await other.write(b"one\n")
        await one.write(b"two\n")
        assert await other.tell() == len(LINES) + 8
    assert os.pread(shared, 20, len(LINES)) == b"one\ntwo\n"


async def test_descriptor_that_cannot_seek_is_refused() -> None:
    reader, writer = os.pipe()
    try:
        for fd, mode in ((reader, "rb"), (writer, "wb")):
            with pytest.raises(OSError, match="a FIFO"):
                await open_aio(fd, mode, closefd=False)
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize("direct", [False, True])
async def test_block_device_has_a_position_too(disk: Path, direct: bool) -> None:
    need(os.geteuid() == 0, "root, for a loop device")
    path, data = make_file(disk, 1 << 20)
    device = subprocess.run(["losetup", "--find", "--show", str(path)], check=True, capture_output=True, text=True).stdout.strip()  # noqa: ASYNC221
    try:
        with opened(Path(device), os.O_RDWR | (os.O_DIRECT if direct else 0)) as fd:
            async with open_aio(fd, "r+b", closefd=False) as file:
                assert await file.read(BLOCK + 5) == data[: BLOCK + 5]
                await file.write(b"here")
                assert position(fd) == BLOCK + 9
                assert await file.seek(0, os.SEEK_END) == position(fd) == 1 << 20
                await file.seek(BLOCK)
                assert await file.read(12) == data[BLOCK : BLOCK + 5] + b"here" + data[BLOCK + 9 : BLOCK + 12]
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)  # noqa: ASYNC221


# ---- direct files


@pytest.mark.parametrize("append", [False, True])
async def test_adopted_direct_descriptor_is_read_and_written_at_any_offset(disk: Path, append: bool) -> None:
    path, data = make_file(disk)
    model = bytearray(data)
    with opened(path, os.O_RDWR | os.O_DIRECT | (os.O_APPEND if append else 0)) as fd:
        async with open_aio(fd, "r+b", closefd=False) as file:
            for size in (5, BLOCK, 3 * BLOCK, BLOCK - 5, 2 * BLOCK, 1):
                at = len(model) if append else position(fd)
                piece = content(size, seed=size)
                assert await file.write(piece) == size
                model[at : at + size] = piece
                assert position(fd) == at + size
            await file.seek(3)
            assert await file.read(BLOCK) == model[3 : 3 + BLOCK]
            assert await file.readline() == model[3 + BLOCK : model.index(b"\n", 3 + BLOCK) + 1]
            assert await file.read() == model[model.index(b"\n", 3 + BLOCK) + 1 :]
    assert path.read_bytes() == model


async def test_direct_cursor_writes_pass_the_gate_alone(disk: Path) -> None:
    path, data = make_file(disk)
    async with open_aio(path, "r+b", direct=True) as file:
        file.fileno()
        async with create_task_group() as tasks:
            for i in range(50):
                tasks.start_soon(file.pwrite, b"%02d" % i, 2 * i)
                tasks.start_soon(file.pwrite, bytes(BLOCK), (i + 1) * BLOCK)
                tasks.start_soon(file.write, b"")
            await file.seek(200)
            tasks.start_soon(file.write, b"x" * 7)
    found = path.read_bytes()
    assert found[:100] == b"".join(b"%02d" % i for i in range(50))
    assert found[100:BLOCK] == data[100:200] + b"x" * 7 + data[207:BLOCK]
    assert found[BLOCK : 51 * BLOCK] == bytes(50 * BLOCK)


# ---- others at the same moment


async def test_writes_of_others_at_the_same_moment_are_not_overwritten(disk: Path) -> None:
    path = disk / "out"
    program = "import os\nfor i in range(3000): os.write(1, b'theirs\\n')"
    async with open_aio(path, "wb") as file, create_task_group() as tasks:
        tasks.start_soon(partial(child, [sys.executable, "-c", program], stdout=file))
        while not path.stat().st_size:
            await checkpoint()
        for _ in range(500):
            await file.write(b"ours\n")
    lines = path.read_bytes().splitlines()
    assert (lines.count(b"ours"), lines.count(b"theirs"), len(lines)) == (500, 3000, 3500)


# ---- cancellation


@pytest.mark.parametrize(
    "name", ["read", "readall", "readline", "readlines", "readinto", "peek", "__anext__", "tell", "seek", "write", "truncate"]
)
@pytest.mark.parametrize("adopted", [True, False])
async def test_cancelled_call_leaves_file_and_position(disk: Path, name: str, adopted: bool) -> None:
    path = lines_file(disk)
    arguments: dict[str, list[Any]] = {"read": [100], "readinto": [bytearray(10)], "readlines": [50], "seek": [5], "write": [b"lost"]}
    async with AIOContext(max_workers=1) as context:
        fd = os.open(path, os.O_RDWR)
        file = await open_aio(fd if adopted else path, "r+b", context=context)
        async with file, busy(context) as pipe:
            try:
                os.lseek(file.fileno(), 10, os.SEEK_SET)
                assert await cancelled_while_blocked(partial(getattr(file, name), *arguments.get(name, [])))
            finally:
                pipe.release()
            assert position(file.fileno()) == 10
        if not adopted:
            os.close(fd)
    assert path.read_bytes() == LINES


@pytest.mark.backends("asyncio")
async def test_native_cancel_of_a_read_leaves_the_position(shared: int) -> None:
    async with FaultyContext() as context, open_aio(shared, "rb", closefd=False, context=context) as file:
        with context.hang(operation="read") as hang:
            task = asyncio.ensure_future(file.read(10))
            while not hang.held:
                await checkpoint()
            task.cancel()
            await checkpoint()
            hang.release()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert await file.tell() == 0
        assert await file.read(10) == LINES[:10]


async def test_abandoned_read_does_not_move_the_position_later(shared: int) -> None:
    async with FaultyContext() as context, open_aio(shared, "rb", closefd=False, context=context, abandon_on_cancel=True) as file:
        with context.hang(operation="read", times=1) as hang:
            with anyio.move_on_after(0.01) as scope:
                await file.read(100)
            assert scope.cancelled_caught
            assert await file.read(10) == LINES[:10]
            hang.release()
            while context.statistics().in_flight:
                await checkpoint()
            assert position(shared) == 10
            assert await file.readline() == LINES[10:20]


async def test_cancel_that_comes_when_a_worker_is_about_to_move_the_position_waits_for_that(shared: int) -> None:
    pending, committed = 0, 1  # native.h
    found: list[bytes] = []
    async with FaultyContext() as context, open_aio(shared, "rb", closefd=False, context=context, abandon_on_cancel=True) as file:
        engine: Any = context._core.engine
        scope = CancelScope()

        async def read() -> None:
            with scope:
                found.append(await file.read(100))

        with context.hang(operation="read", times=1) as hang:
            async with create_task_group() as group:
                group.start_soon(read)
                while not hang.held:
                    await checkpoint()
                (request,) = engine.workers.requests()
                request.position.record.state = committed  # as the worker does that has the bytes
                scope.cancel()
                for _ in range(3):
                    await checkpoint()
                abandoned = request.abandoned
                request.position.record.state = pending
                hang.release()
        assert (abandoned, found) == (False, [LINES[:100]])
        assert position(shared) == await file.tell() == 100


# ---- errors


@pytest.mark.parametrize(
    ("name", "adopted"),
    # A line ends before the failure, if nothing is read ahead.
    [*((name, adopted) for name in ("read", "readinto", "readall", "peek") for adopted in (True, False)), ("readline", True)],
)
async def test_read_that_fails_half_way_leaves_the_position(disk: Path, adopted: bool, name: str) -> None:
    path = lines_file(disk)
    arguments: dict[str, list[Any]] = {"read": [10_000], "readinto": [bytearray(10_000)]}
    async with FaultyContext() as context:
        fd = os.open(path, os.O_RDWR)
        file = await open_aio(fd if adopted else path, "r+b", context=context)
        async with file:
            shared = os.dup(file.fileno())
            await file.seek(10)
            with context.fail(errno.EIO, after=1000, operation="read", turn=1), pytest.raises(OSError, match="Input/output error"):
                await getattr(file, name)(*arguments.get(name, []))
            assert await file.tell() == 10
            assert position(shared) == 10
            assert await file.read(10) == LINES[10:20]
        os.close(shared)
        if not adopted:
            os.close(fd)


async def test_read_of_several_requests_whose_second_fails_leaves_the_position(shared: int) -> None:
    os.ftruncate(shared, 4 << 20)
    async with FaultyContext() as context, open_aio(shared, "r+b", closefd=False, context=context) as file:
        await file.seek(7)
        with context.fail(errno.EIO, operation="read", turn=2), pytest.raises(OSError, match="Input/output error"):
            await file.read()
        assert position(shared) == 7
    async with FaultyContext() as context, open_aio(shared, "r", closefd=False, context=context) as text:
        await text.seek(0)
        with context.fail(errno.EIO, operation="read", turn=2), pytest.raises(OSError, match="Input/output error"):
            await text.readlines()
        await text.flush()
        assert position(shared) == 0


@pytest.mark.parametrize("adopted", [True, False])
async def test_write_across_the_largest_size_leaves_the_position_behind_what_was_written(disk: Path, adopted: bool) -> None:
    path = lines_file(disk)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    fd = os.open(path, os.O_RDWR)
    file = await open_aio(fd if adopted else path, "r+b")
    async with file:
        shared = os.dup(file.fileno())
        await file.seek(40_000)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
        try:
            with pytest.raises(OSError, match="File too large") as caught:
                await file.write(bytes(20_000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, ignored)
        assert caught.value.characters_written == 10_000  # type: ignore[attr-defined]
        assert position(shared) == await file.tell() == 50_000
    os.close(shared)
    if not adopted:
        os.close(fd)


@pytest.mark.parametrize("adopted", [True, False])
async def test_seek_before_the_start_says_so_and_leaves_the_position(disk: Path, adopted: bool) -> None:
    path = lines_file(disk)
    fd = os.open(path, os.O_RDWR)
    async with open_aio(fd if adopted else path, "r+b") as file:
        os.lseek(file.fileno(), 30, os.SEEK_SET)
        for offset, whence in ((-1, os.SEEK_SET), (-31, os.SEEK_CUR), (-len(LINES) - 1, os.SEEK_END)):
            with pytest.raises(OSError, match="Invalid argument"):
                await file.seek(offset, whence)
        assert await file.tell() == 30
        assert await file.seek(-10, os.SEEK_CUR) == 20
    if not adopted:
        os.close(fd)


async def test_call_after_close_is_refused(shared: int) -> None:
    async with open_aio(shared, "r+b", closefd=False) as file:
        pass
    for call in (file.read, file.readline, file.tell, file.flush, partial(file.seek, 0), partial(file.write, b"x"), file.truncate):
        with pytest.raises(ValueError, match="closed file"):
            await call()
    assert position(shared) == 0


async def test_dropped_file_closes_its_adopted_descriptor(disk: Path) -> None:
    fd = os.open(lines_file(disk), os.O_RDONLY)
    file = await open_aio(fd)
    await file.readline()
    with pytest.warns(ResourceWarning):  # noqa: PT031
        del file
        gc.collect()
    while True:
        try:
            os.fstat(fd)
        except OSError:
            break
        await checkpoint()


# ---- text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-32-be", "cp1252", "iso2022_jp", "shift_jis", "utf-7"])
async def test_position_is_between_characters_after_each_text_call(disk: Path, encoding: str) -> None:
    text = "".join(f"{i} äé\r\n" if encoding in ("utf-8", "utf-16-le", "utf-32-be", "cp1252") else f"{i} 日本\r\n" for i in range(500))
    text = text if encoding != "utf-7" else "".join(f"{i} +-\r\n" for i in range(500))
    path = lines_file(disk, text.encode(encoding))
    plain_lines = text.replace("\r\n", "\n").splitlines(keepends=True)
    with opened(path, os.O_RDONLY) as fd:
        async with open_aio(fd, "r", encoding=encoding, closefd=False) as file:
            for line in plain_lines[:250]:
                assert await file.readline() == line
                await file.flush()
                rest = os.pread(fd, 1 << 20, position(fd)).decode(encoding)
                assert rest.replace("\r\n", "\n").splitlines(keepends=True)[0] == plain_lines[plain_lines.index(line) + 1]
            assert await file.read(2) == plain_lines[250][:2]
            await file.flush()
            assert await file.read() == "".join(plain_lines[250:])[2:]


async def test_characters_of_which_a_part_was_returned_stay_in_memory(disk: Path) -> None:
    with opened(lines_file(disk, b"a\xffb\nnext\n"), os.O_RDONLY) as fd:
        async with open_aio(fd, "r", encoding="utf-8", errors="backslashreplace", closefd=False) as file:
            assert await file.read(3) == "a\\x"
            assert position(fd) == 2  # behind the byte of which two of four characters were returned
            assert await file.read(3) == "ffb"
            assert position(fd) == 3
            assert await file.readline() == "\n"
            assert await file.readline() == "next\n"


async def test_text_that_cannot_be_decoded_leaves_the_position(disk: Path) -> None:
    with opened(lines_file(disk, b"good\n" * 10_000 + b"\xff bad\n"), os.O_RDONLY) as fd:
        async with open_aio(fd, "r", encoding="utf-8", closefd=False) as file:
            assert await file.readline() == "good\n"
            with pytest.raises(UnicodeDecodeError):
                await file.read()
            assert position(fd) == 5
            assert await file.readline() == "good\n"


# Programs that move the cursor of `buffer` while the file has text in memory. `open()` keeps that text, and reads on from the new cursor.
MOVES: dict[str, list[tuple[str, tuple[Any, ...]]]] = {
    "sniffed": [("readline", ()), ("buffer.seek", (0,)), ("read", (5,)), ("readline", ()), ("seek", (0,)), ("readline", ())],
    "lines": [("readline", ()), ("buffer.seek", (0,)), ("readline", ()), ("readline", ()), ("seek", (0,)), ("read", ())],
    "bytes between": [("readline", ()), ("buffer.read", (10,)), ("read", ())],
    "far away": [("readline", ()), ("buffer.seek", (25_000,)), ("readline", ()), ("read", ()), ("seek", (0,)), ("read", (3,))],
}


@pytest.mark.parametrize("adopted", [False, True])
@pytest.mark.parametrize("name", MOVES)
async def test_text_in_memory_outlasts_a_move_of_the_binary_cursor(disk: Path, adopted: bool, name: str) -> None:
    path = lines_file(disk)

    def made(file: Any, call: str) -> Any:
        return getattr(file.buffer, call.removeprefix("buffer.")) if call.startswith("buffer.") else getattr(file, call)

    with path.open("r+", encoding="utf-8") as theirs:
        wanted = [made(theirs, call)(*arguments) for call, arguments in MOVES[name]]
    async with open_aio(os.open(path, os.O_RDWR) if adopted else path, "r+", encoding="utf-8") as ours:
        got = [await made(ours, call)(*arguments) for call, arguments in MOVES[name]]
    assert got == wanted


async def test_child_reads_from_where_the_binary_cursor_was_moved(disk: Path) -> None:
    async with open_aio(lines_file(disk, b"head\nbody\n"), "r", encoding="utf-8") as file:
        assert await file.readline() == "head\n"
        await file.buffer.seek(0)
        assert await child(["cat"], stdin=file.fileno(), stdout=subprocess.PIPE) == b"head\nbody\n"


@pytest.mark.backends("asyncio")
@pytest.mark.parametrize("adopted", [True, False])
@pytest.mark.parametrize(("call", "size"), [("read", 9), ("readline", 3)])
async def test_native_cancel_of_a_text_read_leaves_the_position(disk: Path, adopted: bool, call: str, size: int) -> None:
    path = lines_file(disk)
    async with open_aio(os.open(path, os.O_RDONLY) if adopted else path, "r", encoding="utf-8") as file:
        file.fileno()
        await file.read(0)
        for steps in range(40):
            task = asyncio.ensure_future(getattr(file, call)(size))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            result = (await asyncio.gather(task, return_exceptions=True))[0]
            if isinstance(result, asyncio.CancelledError):
                assert await file.readline() == "line 0000\n"
            else:
                assert result == "line 0000\n"[:size]
            await file.seek(0)


# ---- streams


async def test_streams_over_ordinary_files_keep_their_position(disk: Path) -> None:
    path = disk / "out"
    with path.open("wb") as plain:
        plain.write(b"plain\n")
        shared = os.dup(plain.fileno())
        async with FileWriteStream(plain) as stream:
            await stream.send(b"stream\n")
            await child(CHILD, stdout=shared)
            await stream.send(b"again\n")
    os.write(shared, b"last\n")
    os.close(shared)
    assert path.read_bytes() == b"plain\nstream\nchild\nagain\nlast\n"
    with path.open("rb") as plain:
        assert plain.readline() == b"plain\n"
        shared = os.dup(plain.fileno())
        async with FileReadStream(plain) as reading:
            assert await reading.receive(7) == b"stream\n"
            assert os.read(shared, 6) == b"child\n"
            assert await reading.receive(100) == b"again\nlast\n"
    os.close(shared)


async def test_temporary_file_without_a_name_is_adopted() -> None:
    with tempfile.TemporaryFile() as plain:
        plain.write(b"one\ntwo\n")
        plain.flush()
        plain.seek(4)
        async with open_aio(plain.fileno(), "r+b", closefd=False) as file:
            assert await file.read() == b"two\n"
            await file.write(b"three\n")
        assert plain.tell() == 14


async def test_call_that_waits_for_another_is_not_before_it(shared: int) -> None:
    async with open_aio(shared, "r+b", closefd=False) as file:
        results: list[bytes] = []

        async def read() -> None:
            results.append(await file.read(10))

        async with create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(read)
            await until_blocked()
    assert sorted(results) == [LINES[i : i + 10] for i in range(0, 200, 10)]
