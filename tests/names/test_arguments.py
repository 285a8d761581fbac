"""The arguments of calls on names: those of the modules that they are named after, checked before anything runs."""

# What the calls are compared with blocks, and that is fine here.

from __future__ import annotations

import errno
import gc
import inspect
import os
import pathlib
import sys
import tempfile
from typing import TYPE_CHECKING, Any

import pytest

import trio_aio
from trio_aio import AIOContext, Path, current_context, open_directory

from ..support.files import opened

if TYPE_CHECKING:
    from collections.abc import Callable

ADDED = {"context", "exclusive", "exchange", "direct", "offset", "append", "atomic", "durable", "size", "into", "stat"}
KEYWORDS_ONLY = {"walk", "TemporaryDirectory"}  # more of their parameters than of their models'
OWN_DEFAULT = {("scandir", "path")}


def signature(function: Any) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except ValueError:  # some builtins have none
        return None


def compare(name: str, model: Any, ours: Any) -> None:
    """Check that each parameter of the model is here, with its kind and default."""
    wanted, got = signature(model), inspect.signature(ours)
    if wanted is None:
        return
    theirs = [parameter for parameter in wanted.parameters.values() if parameter.name != "self"]
    own = [parameter for parameter in got.parameters.values() if parameter.name != "self"]
    for parameter in theirs:
        mine = got.parameters.get(parameter.name)
        assert mine is not None, f"{name} has no {parameter.name}"
        if (name, parameter.name) not in OWN_DEFAULT:
            assert mine.default == parameter.default, f"{name}: the default of {parameter.name}"
        assert mine.kind == parameter.kind or name in KEYWORDS_ONLY, f"{name}: the kind of {parameter.name}"
    names = [parameter.name for parameter in theirs]
    kept = [parameter.name for parameter in own if parameter.name in names]
    assert kept == names, name
    for parameter in own:
        if parameter.name not in names and sys.version_info >= (3, 13):
            assert parameter.name in ADDED | {"mode"}, f"{name}: {parameter.name} is not expected"
            assert parameter.kind is parameter.KEYWORD_ONLY, f"{name}: {parameter.name}"


def test_functions_have_the_parameters_of_their_models() -> None:
    for name in trio_aio.os.__all__:
        if name not in ("DirEntry", "path", "sync_directory"):
            compare(name, getattr(os, name), getattr(trio_aio.os, name))
    for name in trio_aio.os.path.__all__:
        compare(name, getattr(os.path, name), getattr(trio_aio.os.path, name))
    for name in ("TemporaryFile", "NamedTemporaryFile", "SpooledTemporaryFile", "TemporaryDirectory", "mkstemp", "mkdtemp"):
        if sys.version_info >= (3, 13):
            compare(name, getattr(tempfile, name), getattr(trio_aio, name))


def test_path_has_the_methods_and_parameters_of_pathlib() -> None:
    for name in dir(pathlib.Path):
        if not name.startswith("_") and name != "link_to":
            assert hasattr(Path, name), name
            model = getattr(pathlib.Path, name)
            if callable(model) and name not in dir(pathlib.PurePath):
                compare(name, model, getattr(Path, name))


def test_methods_of_path_are_named_as_users_know_them() -> None:
    for name, call in inspect.getmembers(Path, inspect.isfunction):
        if not name.startswith("_") and call.__module__.startswith("trio_aio"):
            assert call.__qualname__ == f"Path.{name}"
            assert call.__doc__


pytestmark = [pytest.mark.anyio, pytest.mark.backends("trio", "asyncio")]


async def test_descriptor_with_follow_symlinks_is_refused_as_by_os(disk: pathlib.Path) -> None:
    (disk / "file").write_bytes(b"")
    with opened(disk / "file", os.O_RDWR) as fd:
        calls: dict[str, tuple[Any, ...]] = {
            "stat": (),
            "chown": (-1, -1),
            "utime": (),
            "getxattr": ("user.x",),
            "setxattr": ("user.x", b""),
            "removexattr": ("user.x",),
            "listxattr": (),
        }
        for name, arguments in calls.items():
            for module in (os, trio_aio.os):
                with pytest.raises(ValueError, match="follow_symlinks"):
                    await getattr(module, name)(fd, *arguments, follow_symlinks=False)
        await trio_aio.os.chmod(fd, 0o600, follow_symlinks=False)  # as os.chmod takes it
    assert os.stat(disk / "file").st_mode & 0o777 == 0o600


async def test_descriptor_where_os_takes_none_is_a_type_error(disk: pathlib.Path) -> None:
    with opened(disk, os.O_RDONLY) as fd:
        calls: list[Callable[[], Any]] = [
            lambda: trio_aio.os.access(fd, os.F_OK),  # type: ignore[arg-type]
            lambda: trio_aio.os.path.lexists(fd),  # type: ignore[arg-type]
            lambda: trio_aio.os.path.islink(fd),  # type: ignore[arg-type]
            lambda: trio_aio.os.path.ismount(fd),  # type: ignore[arg-type]
        ]
        for call in calls:
            with pytest.raises(TypeError):
                await call()


async def test_descriptor_that_is_not_open_is_ebadf() -> None:
    calls: list[Callable[[int], Any]] = [
        trio_aio.os.stat,
        trio_aio.os.statvfs,
        trio_aio.os.listxattr,
        trio_aio.os.listdir,
        trio_aio.os.sync_directory,
        lambda fd: trio_aio.os.getxattr(fd, "user.x"),
        lambda fd: trio_aio.os.setxattr(fd, "user.x", b""),
        lambda fd: trio_aio.os.removexattr(fd, "user.x"),
        lambda fd: trio_aio.os.truncate(fd, 0),
        lambda fd: trio_aio.os.utime(fd),
        lambda fd: trio_aio.os.chmod(fd, 0o600),
        lambda fd: trio_aio.os.chown(fd, -1, -1),
        trio_aio.os.scandir,
        trio_aio.os.path.getsize,
        trio_aio.os.path.getmtime,
        lambda fd: trio_aio.os.path.samefile(fd, "."),
        lambda fd: trio_aio.os.path.sameopenfile(fd, fd),
    ]
    # -100 is AT_FDCWD: as a `dir_fd` it means the working directory, and as a descriptor nothing.
    for fd in (-1, -100, 999_999):
        for call in calls:
            with pytest.raises(OSError, match="Bad file descriptor") as caught:
                await call(fd)
            assert caught.value.errno == errno.EBADF
        for look in (trio_aio.os.path.exists, trio_aio.os.path.isdir):
            assert await look(fd) is False


async def test_directory_descriptor_that_is_at_fdcwd_is_the_working_directory_as_in_os(
    disk: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(disk)
    assert os.stat(".", dir_fd=-100) == os.stat(disk)
    assert await trio_aio.os.stat(".", dir_fd=-100) == os.stat(disk)
    await trio_aio.os.mkdir("made", dir_fd=-100)
    assert os.listdir(disk) == ["made"]


async def test_negative_number_is_a_value_error_before_anything_runs(disk: pathlib.Path) -> None:
    path = disk / "new"
    context = current_context()
    await Path(disk).exists()
    async with open_directory(disk) as directory:
        before = context.statistics()
        calls: list[Callable[[], Any]] = [
            lambda: trio_aio.os.mkdir(path, -1),
            lambda: trio_aio.os.makedirs(path, -1),
            lambda: trio_aio.os.mkfifo(path, -1),
            lambda: trio_aio.os.mknod(path, -1),
            lambda: trio_aio.os.mknod(path, 0o600, -1),
            lambda: trio_aio.os.chmod(path, -1),
            lambda: trio_aio.os.access(path, -1),
            lambda: trio_aio.os.truncate(path, -1),
            lambda: trio_aio.write_bytes(path, b"", mode=-1),
            lambda: trio_aio.write_bytes(path, b"", offset=-1),
            lambda: trio_aio.write_text(path, "", mode=-1),
            lambda: trio_aio.read_bytes(path, offset=-1),
            lambda: trio_aio.read_bytes(path, size=-2),
            lambda: Path(path).touch(-1),
            lambda: Path(path).mkdir(-1),
            lambda: Path(path).chmod(-1),
            lambda: Path(path).write_bytes(b"", mode=-1),
            lambda: directory.mkdir("new", -1),
            lambda: directory.chmod("new", -1),
            lambda: directory.write_bytes("new", b"", mode=-1),
        ]
        for call in calls:
            with pytest.raises(ValueError, match="negative"):
                await call()
        assert context.statistics() == before
    assert not path.exists()


async def test_wrong_context_is_a_type_error_at_the_call(disk: pathlib.Path) -> None:
    calls: list[Callable[[Any], Any]] = [
        lambda context: trio_aio.scandir(disk, context=context),
        lambda context: trio_aio.walk(disk, context=context),
        lambda context: trio_aio.read_files([], context=context),
        lambda context: trio_aio.open_directory(disk, context=context),
        lambda context: trio_aio.TemporaryFile(context=context),
        lambda context: trio_aio.NamedTemporaryFile(context=context),
        lambda context: trio_aio.SpooledTemporaryFile(context=context),
        lambda context: trio_aio.TemporaryDirectory(context=context),
        lambda context: trio_aio.open_aio(disk / "file", context=context),
        lambda context: trio_aio.open_file(disk / "file", context=context),
    ]
    for call in calls:
        for context in (3, "context", AIOContext):
            with pytest.raises(TypeError, match="context must be an AIOContext"):
                call(context)
    gc.collect()  # an object that was made in part would fail in its finalizer, and that fails the test


async def test_number_that_fits_no_c_int_is_an_overflow_error_as_in_os(disk: pathlib.Path) -> None:
    path, new = disk / "file", disk / "new"
    path.write_bytes(b"")
    path.chmod(0o640)
    calls: list[Callable[[Any, int], Any]] = [
        lambda module, number: module.mkdir(new, number),
        lambda module, number: module.makedirs(new, number),
        lambda module, number: module.mkfifo(new, number),
        lambda module, number: module.mknod(new, number),
        lambda module, number: module.chmod(path, number),
        lambda module, number: module.access(path, number),
        lambda module, number: module.setxattr(path, "user.x", b"", number),
    ]
    async with open_directory(disk) as directory:
        ours: list[Callable[[int], Any]] = [
            lambda number: trio_aio.write_bytes(new, b"", mode=number),
            lambda number: trio_aio.write_text(new, "", mode=number),
            lambda number: Path(new).touch(number),
            lambda number: Path(new).mkdir(number),
            lambda number: Path(path).chmod(number),
            lambda number: directory.mkdir("new", number),
            lambda number: directory.chmod("file", number),
            lambda number: directory.write_bytes("new", b"", mode=number),
        ]
        for number in (1 << 31, (1 << 32) - 1, 1 << 32, 1 << 40, 1 << 64):
            for compared in calls:
                with pytest.raises(OverflowError):
                    compared(os, number)
                with pytest.raises(OverflowError):
                    await compared(trio_aio.os, number)
            for call in ours:
                with pytest.raises(OverflowError):
                    await call(number)
    for number in (1 << 32, -2):
        with pytest.raises(OverflowError):
            await trio_aio.os.chown(path, number, -1)
    for number in (1 << 63, 1 << 64):
        with pytest.raises(OverflowError):
            await trio_aio.os.truncate(path, number)
    assert path.stat().st_mode & 0o7777 == 0o640
    assert not new.exists()
    assert os.listxattr(path) == []


async def test_mode_with_the_bits_of_another_kind_makes_no_fifo_as_in_os(disk: pathlib.Path) -> None:
    for module in (os, trio_aio.os):
        with pytest.raises(OSError, match="Invalid argument"):
            await module.mkfifo(disk / "new", 0o100600)  # type: ignore[func-returns-value]
    assert os.listdir(disk) == []


async def test_times_in_nanoseconds_must_not_be_none_as_in_os(disk: pathlib.Path) -> None:
    for module in (os, trio_aio.os):
        with pytest.raises(TypeError, match="ns"):
            await module.utime(disk, None, ns=None)  # type: ignore[arg-type,func-returns-value]


async def test_times_in_nanoseconds_must_be_integers(disk: pathlib.Path) -> None:
    for ns in ((1.5, 2), ("a", 1), (float("nan"), 1), (1e300, 1)):
        with pytest.raises(TypeError):
            await trio_aio.os.utime(disk, ns=ns)  # type: ignore[arg-type]
