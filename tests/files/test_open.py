"""What may be opened, how, and what is refused."""

from __future__ import annotations

import copy
import errno
import gc
import io
import os
import pty
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import trio
from anyio.lowlevel import checkpoint

from trio_aio import FileReadStream, current_context, open_aio

from ..conftest import need
from ..support.files import BLOCK, make_file, opened
from ..support.tasks import until_idle

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

pytestmark = [pytest.mark.anyio, pytest.mark.backends("trio", "asyncio")]

MODES = ("rb", "wb", "xb", "ab", "r+b", "w+b", "x+b", "a+b", "rb+", "+br")


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("mode", MODES)
async def test_open_in_binary_mode_equals_built_in_open(tmp_path: Path, mode: str, exists: bool) -> None:
    """The file afterwards, the attributes and the exceptions are compared with those of io.FileIO, which is under every open()."""
    seen = []
    for name in ("theirs", "ours"):
        path = tmp_path / name
        if exists:
            path.write_bytes(b"content")
        try:
            if name == "theirs":
                with open(path, mode, buffering=0) as file:  # noqa: ASYNC230
                    facts: Any = [file.mode, file.readable(), file.writable(), file.seekable(), file.tell()]
                    if file.writable():
                        file.write(b"new")
                    facts.append(file.tell())
            else:
                async with open_aio(path, mode) as file:
                    facts = [file.mode, file.readable(), file.writable(), file.seekable(), await file.tell()]
                    if file.writable():
                        await file.write(b"new")
                    facts.append(await file.tell())
        except OSError as error:
            facts = [type(error), error.errno, error.filename == str(path) or error.filename == path]
        seen.append((facts, path.read_bytes() if path.exists() else None))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("mode", ["", "b", "q", "rw", "rbb", "r++", "rbt", "ra", "wx", "r b"])
async def test_open_with_invalid_mode_raises_like_built_in_open(tmp_path: Path, mode: str) -> None:
    with pytest.raises(ValueError, match="mode"):
        open(tmp_path / "file", mode)  # noqa: ASYNC230, SIM115
    with pytest.raises(ValueError, match="mode"):
        open_aio(tmp_path / "file", mode)


async def test_open_with_invalid_arguments_raises_before_any_effect(tmp_path: Path) -> None:
    path = tmp_path / "file"
    bad: list[tuple[type[Exception], dict[str, Any]]] = [
        (TypeError, {"mode": 3}),
        (TypeError, {"file": 1.5}),
        (TypeError, {"file": None}),
        (ValueError, {"file": -1}),
        (ValueError, {"file": "a\0b"}),
        (ValueError, {"file": b"a\0b"}),
        (ValueError, {"mode": "wb", "closefd": False}),
        (ValueError, {"mode": "wb", "encoding": "utf-8"}),
        (ValueError, {"mode": "wb", "errors": "strict"}),
        (ValueError, {"mode": "wb", "newline": ""}),
        (ValueError, {"mode": "w", "buffering": 0}),
    ]
    for kind, arguments in bad:
        with pytest.raises(kind):
            open_aio(**{"file": path, "mode": "wb"} | arguments)
    assert not path.exists()


async def test_open_takes_every_kind_of_path(tmp_path: Path) -> None:
    path, data = make_file(tmp_path)
    for name in (str(path), os.fsencode(path), path, trio.Path(path), anyio.Path(path)):
        async with open_aio(name) as file:
            assert file.name == os.fspath(name)
            assert await file.read() == data


async def test_open_can_be_awaited(tmp_path: Path) -> None:
    path, data = make_file(tmp_path)
    file = await open_aio(path)
    async with file as same:
        assert same is file
        assert await file.read() == data
    assert file.closed
    with pytest.raises(ValueError, match="closed"):
        await file.__aenter__()


@pytest.mark.parametrize("closefd", [False, True])
async def test_open_of_descriptor_keeps_its_position(tmp_path: Path, closefd: bool) -> None:
    path, data = make_file(tmp_path)
    fd = os.open(path, os.O_RDONLY)
    os.lseek(fd, 100, os.SEEK_SET)
    async with open_aio(fd, closefd=closefd) as file:
        assert (file.name, file.fileno()) == (fd, fd)
        assert await file.tell() == 100
        assert await file.read(10) == data[100:110]
    if closefd:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
    else:
        os.close(fd)


async def test_opener_runs_in_a_thread_with_the_flags_of_open(tmp_path: Path) -> None:
    path, data = make_file(tmp_path)
    called: list[tuple[object, int]] = []

    def opener(name: str, flags: int) -> int:
        with pytest.raises(RuntimeError):
            trio.lowlevel.current_task()
        called.append((name, flags))
        return os.open(name, flags)

    async with open_aio(path, opener=opener) as file:
        assert not os.get_inheritable(file.fileno())
        assert await file.read() == data
    assert called == [(str(path), os.O_RDONLY | os.O_CLOEXEC)]


@pytest.mark.parametrize(("given", "kind"), [(-1, ValueError), ("x", TypeError), (None, TypeError)])
async def test_opener_that_returns_no_descriptor_is_refused(tmp_path: Path, given: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        await open_aio(tmp_path / "file", opener=lambda *_: given)


async def test_opener_descriptor_that_is_no_file_is_closed() -> None:
    reader, writer = os.pipe()
    with pytest.raises(io.UnsupportedOperation, match="a FIFO"):
        await open_aio("pipe", opener=lambda *_: reader)
    os.close(writer)
    while await _is_open(reader):
        pass


async def _is_open(fd: int) -> bool:
    await checkpoint()
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


async def test_descriptors_are_not_inherited_and_creation_obeys_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        async with open_aio(tmp_path / "file", "wb") as file:
            assert not os.get_inheritable(file.fileno())
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


# ---- what is no file


@pytest.fixture
def special(tmp_path: Path) -> Iterator[dict[str, Path]]:
    os.mkfifo(tmp_path / "fifo")
    leader, follower = pty.openpty()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        yield {
            "a FIFO": tmp_path / "fifo",
            "a socket": tmp_path / "socket",
            "a character device": Path("/dev/zero"),
            "terminal": Path(os.ttyname(follower)),
        }
    os.close(leader)
    os.close(follower)


@pytest.mark.parametrize("mode", ["rb", "wb", "r+b"])
@pytest.mark.parametrize("kind", ["a FIFO", "a socket", "a character device", "terminal"])
async def test_open_of_special_file_names_it_and_never_blocks(special: dict[str, Path], kind: str, mode: str) -> None:
    with pytest.raises(io.UnsupportedOperation, match=kind if kind != "terminal" else "a character device") as caught:
        await open_aio(special[kind], mode)
    assert "FdStream" in str(caught.value)
    assert str(special[kind]) in str(caught.value)


async def test_open_of_descriptor_that_is_no_file_names_it_and_leaves_it_open() -> None:
    reader, writer = os.pipe()
    for fd in (reader, writer):
        with pytest.raises(io.UnsupportedOperation, match="a FIFO"):
            await open_aio(fd)
        os.close(fd)


@pytest.mark.parametrize("mode", ["rb", "wb", "r+b"])
async def test_open_of_directory_raises_is_a_directory(tmp_path: Path, mode: str) -> None:
    with pytest.raises(IsADirectoryError) as caught:
        await open_aio(tmp_path, mode)
    assert caught.value.filename == str(tmp_path)
    with opened(tmp_path, os.O_RDONLY) as fd, pytest.raises(IsADirectoryError):
        await open_aio(fd)


# ---- errors of open(2)


async def test_open_error_has_errno_and_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    cases: list[tuple[str, str, type[OSError], int]] = [
        ("missing", "rb", FileNotFoundError, errno.ENOENT),
        ("missing/file", "wb", FileNotFoundError, errno.ENOENT),
        ("file", "xb", FileExistsError, errno.EEXIST),
        ("file/below", "rb", NotADirectoryError, errno.ENOTDIR),
        ("loop", "rb", OSError, errno.ELOOP),
        ("n" * 300, "rb", OSError, errno.ENAMETOOLONG),
    ]
    for name, mode, kind, code in cases:
        path = tmp_path / name
        with pytest.raises(kind) as caught:
            await open_aio(path, mode)
        assert (caught.value.errno, caught.value.filename) == (code, str(path))
    with pytest.raises(OSError, match="Bad file descriptor") as caught_fd:
        await open_aio(1 << 20)
    assert (caught_fd.value.errno, caught_fd.value.filename) == (errno.EBADF, "<fd 1048576>")


def _as_nobody(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    # The package lies where nobody may look, so it is imported before the privileges go.
    prologue = "import os, sys, trio, trio_aio\nos.setgid(65534); os.setuid(65534)\n"
    return subprocess.run([sys.executable, "-c", prologue + program, *arguments], capture_output=True, text=True, check=False, timeout=60)


OPEN_REFUSED = """
async def main():
    for mode in ("rb", "r+b", "wb"):
        try:
            await trio_aio.open_aio(sys.argv[1], mode)
        except PermissionError as error:
            assert (error.errno, error.filename) == (13, sys.argv[1])
        else:
            raise AssertionError(mode)
trio.run(main)
"""


@pytest.mark.anyio
async def test_open_without_permission_raises(disk: Path) -> None:
    need(os.geteuid() == 0, "root, to become nobody")
    path, _ = make_file(disk)
    path.chmod(0)
    done = await anyio.to_thread.run_sync(_as_nobody, OPEN_REFUSED, str(path))
    # tmp_path's parents keep nobody out: that is EACCES as well.
    assert done.returncode == 0, done.stderr


# ---- files of other kinds


@pytest.mark.parametrize(
    "name", ["/proc/self/maps", "/proc/self/status", "/proc/version", "/proc/filesystems", "/sys/kernel/mm/transparent_hugepage/enabled"]
)
async def test_read_of_file_with_unknown_size_is_complete(name: str) -> None:
    async with open_aio(name) as file:
        ours = await file.read()
    theirs = Path(name).read_bytes()  # noqa: ASYNC240
    # What a process does changes its own files: whole lines, and most of them the same.
    assert ours
    assert ours.endswith(b"\n")
    assert len(set(ours.splitlines()) & set(theirs.splitlines())) > len(theirs.splitlines()) // 2


@pytest.mark.parametrize("direct", [False, True])
async def test_block_device_is_opened_like_a_file(disk: Path, direct: bool) -> None:
    need(os.geteuid() == 0, "root, for a loop device")
    path, data = make_file(disk, 1 << 20)
    device = subprocess.run(["losetup", "--find", "--show", str(path)], check=True, capture_output=True, text=True).stdout.strip()  # noqa: ASYNC221
    try:
        async with open_aio(device, "r+b", direct=direct) as file:
            assert await file.size() == 1 << 20
            assert await file.pread(BLOCK, 8 * BLOCK) == data[8 * BLOCK : 9 * BLOCK]
            assert await file.pwrite(data[:BLOCK], 8 * BLOCK) == BLOCK
            await file.fsync()
            assert await file.pread(BLOCK, 8 * BLOCK) == data[:BLOCK]
            assert await file.seek(0, os.SEEK_END) == 1 << 20
            assert await file.read(10 * BLOCK) == b""
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)  # noqa: ASYNC221


async def test_direct_open_without_direct_io_support_raises() -> None:
    with pytest.raises(OSError, match="O_DIRECT") as caught:
        await open_aio("/proc/self/status", direct=True)
    assert (caught.value.errno, caught.value.filename) == (errno.EINVAL, "/proc/self/status")
    with opened(Path("/proc/self/status"), os.O_RDONLY) as fd, pytest.raises(ValueError, match="O_DIRECT"):
        await open_aio(fd, direct=True)


@pytest.mark.backends("trio")
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
async def test_interrupt_at_any_line_of_open_leaves_no_descriptor(disk: Path) -> None:
    path, _ = make_file(disk)
    interrupted = 0

    def interrupt_at(number: int) -> Any:
        left = number

        def trace(frame: FrameType, event: str, argument: object) -> Any:
            nonlocal left
            # `TrioBackend.perform` is protected from KeyboardInterrupt, what is around it is not. Finalizers cannot raise.
            file, function = Path(frame.f_code.co_filename), frame.f_code.co_name
            if function == "__del__" or (
                (file.parent.name, file.name) not in (("_files", "open.py"), ("_files", "positional.py")) and function != "_submit_and_wait"
            ):
                return None
            if event == "line":
                left -= 1
                if not left:
                    raise KeyboardInterrupt
            return trace

        return trace

    before = sys.gettrace()
    while True:
        try:
            sys.settrace(interrupt_at(interrupted + 1))
            try:
                file = await open_aio(path)
            finally:
                sys.settrace(before)
        except KeyboardInterrupt:
            interrupted += 1
        else:
            break
        gc.collect(0)
        engine = current_context()._core.engine
        assert engine is not None
        while engine.drops:  # a file that was made already and dropped
            await trio.lowlevel.checkpoint()
        await until_idle(current_context())
        assert str(path) not in [os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.exists()]  # noqa: ASYNC240
    assert interrupted > 20
    await file.aclose()


@pytest.mark.parametrize("number", [1 << 31, 1 << 40, 1 << 70])
async def test_number_outside_descriptor_range_is_refused_at_once(number: int) -> None:
    with pytest.raises(OverflowError):
        open_aio(number)


async def test_open_with_wrong_argument_types_raises_at_once(disk: Path) -> None:
    path, _ = make_file(disk)
    with pytest.raises(TypeError, match="context must be an AIOContext, not int"):
        open_aio(path, context=5)  # type: ignore[call-overload]
    async with open_aio(path) as file, open_aio(path, "r") as text:
        assert isinstance(file.context, trio.abc.AsyncResource)
        for each in (file, text):
            assert isinstance(each, anyio.abc.AsyncResource)
            assert isinstance(each, trio.abc.AsyncResource)
            with pytest.raises(TypeError, match="cannot copy or pickle"):
                copy.copy(each)
        with pytest.raises(ValueError, match="negative size"):
            await file.read(-2)
        with pytest.raises(OverflowError, match="does not fit 64 bits"):
            await file.pread(1, 1 << 63)
        opener = open_aio(path)
        for wrong in (text, opener, 5):
            with pytest.raises(TypeError, match="a stream needs"):
                FileReadStream(wrong)  # type: ignore[arg-type]
        opener.close()
