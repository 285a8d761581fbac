"""Copies of trees: FIFOs, devices, sockets and links, and what happens meanwhile."""

# What the calls are compared with blocks, and that is fine here.
# ruff: noqa: ASYNC240

from __future__ import annotations

import asyncio
import errno
import io
import os
import pathlib
import shutil
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from anyio import create_task_group
from anyio.lowlevel import checkpoint

import trio_aio
from trio_aio import Path, copy_file, copy_tree
from trio_aio.testing import FaultyContext

from ..conftest import need
from ..support.tasks import until_blocked
from ..support.trees import make_tree

if TYPE_CHECKING:
    from collections.abc import Callable

both = [pytest.mark.anyio, pytest.mark.backends("trio", "asyncio")]


def marked(test: Any) -> Any:
    for mark in both:
        test = mark(test)
    return test


@pytest.fixture
def source(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "source").mkdir()
    return make_tree(tmp_path / "source")


@marked
@pytest.mark.parametrize("exist_ok", [False, True])
async def test_copy_is_made_where_it_was_wanted_although_the_working_directory_changes(
    source: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, exist_ok: bool
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    async with FaultyContext() as context, create_task_group() as tasks:
        with context.hang(operation="change") as hang:
            tasks.start_soon(lambda: copy_tree("source", "copy", exist_ok=exist_ok, context=context))
            while not hang.held:
                await trio_aio.os.getcwd()
            monkeypatch.chdir(tmp_path / "elsewhere")
    assert os.listdir(tmp_path / "elsewhere") == []
    assert sorted(os.listdir(tmp_path / "copy")) == sorted(os.listdir(source))


@marked
async def test_absolute_paths_need_no_working_directory(
    source: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert await copy_tree(source, tmp_path / "copy") > 5
    with pytest.raises(FileNotFoundError):
        await copy_tree(source, "copy")


@marked
async def test_empty_path_does_not_exist(source: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(source)
    before = sorted(os.listdir(source))
    for call in (
        lambda: copy_tree("a", ""),
        lambda: copy_tree("", "new"),
        lambda: copy_tree("a", b"", exist_ok=True),
        lambda: copy_file("one.py", ""),
        lambda: copy_file("", "new"),
    ):
        with pytest.raises(FileNotFoundError) as caught:
            await call()
        assert caught.value.filename in ("", b"")
    assert sorted(os.listdir(source)) == before


@marked
async def test_fifos_devices_and_links_keep_their_metadata(disk: pathlib.Path) -> None:
    (disk / "source").mkdir()
    os.mkfifo(disk / "source/fifo")
    os.chmod(disk / "source/fifo", 0o622)
    (disk / "source/link").symlink_to("nowhere")
    for name in ("fifo", "link"):
        os.utime(disk / "source" / name, ns=(-1_500_000_000, -2_500_000_000), follow_symlinks=False)
    await copy_tree(disk / "source", disk / "copy")
    await copy_tree(disk / "source", disk / "copy", exist_ok=True)
    assert sorted(os.listdir(disk / "copy")) == ["fifo", "link"]
    for name in ("fifo", "link"):
        wanted, got = os.lstat(disk / "source" / name), os.lstat(disk / "copy" / name)
        assert (got.st_mode, got.st_mtime_ns) == (wanted.st_mode, wanted.st_mtime_ns)
    await copy_file(disk / "source/link", disk / "durable", follow_symlinks=False, durable=True)
    assert os.readlink(disk / "durable") == "nowhere"
    with pytest.raises(FileExistsError):
        await copy_file(disk / "source/link", disk / "durable", follow_symlinks=False, exclusive=True)
    with pytest.raises(IsADirectoryError):
        await copy_file(disk / "source/link", disk / "copy", follow_symlinks=False)
    assert sorted(os.listdir(disk)) == ["copy", "durable", "source"]


def _run_as_nobody(folder: pathlib.Path, program: str, *arguments: str) -> None:
    # Nobody may not look into the folders above. So the process has this one as working directory before its privileges go.
    program = "import os, sys, trio, trio_aio\nos.setgid(65534); os.setuid(65534)\n" + program
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


NOT_MADE = """
async def main():
    errors = []
    await trio_aio.copy_tree(sys.argv[1], sys.argv[2], exist_ok=True, on_error=errors.append)
    assert [(error.errno, error.filename) for error in errors] == [(1, sys.argv[2] + "/device")], errors
trio.run(main)
"""


def test_file_stays_if_what_should_replace_it_cannot_be_made(disk: pathlib.Path) -> None:
    need(os.geteuid() == 0, "root, to make a device and become nobody")
    for name in ("source", "target"):
        (disk / name).mkdir()
    os.mknod(disk / "source/device", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (disk / "target/device").write_bytes(b"kept")
    for path in (disk / "target", disk / "target/device"):
        os.chown(path, 65534, 65534)
    _run_as_nobody(disk, NOT_MADE, "source", "target")
    assert (disk / "target/device").read_bytes() == b"kept"


@marked
async def test_copies_in_flight_keep_the_source_open_when_a_copy_ends(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    # Otherwise its descriptor is another directory's, and a file of that with the same name is copied.
    (tmp_path / "target").mkdir()
    async with FaultyContext() as context, create_task_group() as tasks:
        with context.hang(operation="change", file=source / "one.py") as hang:

            async def copy() -> None:
                with pytest.raises(OSError, match=os.strerror(errno.EDQUOT)):
                    await copy_tree(source, tmp_path / "target", exist_ok=True, context=context)

            context.fail(errno.EDQUOT, operation="list", file=source / "a")
            tasks.start_soon(copy)
            while not hang.held:
                await trio_aio.os.getcwd()
            await until_blocked()
            opened = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]
            assert str(source) in opened
            hang.release()
    assert (tmp_path / "target/one.py").read_text() == "one.py"


@marked
async def test_exclusive_copy_follows_no_link(source: pathlib.Path) -> None:
    (source / "dangling").symlink_to("victim")
    for target in ("dangling", "one.py", "link to file"):
        with pytest.raises(FileExistsError) as caught:
            await copy_file(source / "a/one.py", source / target, exclusive=True)
        assert caught.value.filename == str(source / target)
    assert not (source / "victim").exists()
    assert (source / "one.py").read_text() == "one.py"


@marked
async def test_exclusive_copy_onto_what_is_no_file_says_that_it_exists(source: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(source)
    before = sorted(os.listdir(source))
    for target in ("a", ".", "a/..", "fifo", "link to directory", "broken"):
        for name, options in (("one.py", {}), ("link to file", {"follow_symlinks": False})):
            with pytest.raises(FileExistsError) as caught:
                await copy_file(name, target, exclusive=True, **options)  # type: ignore[arg-type]
            assert caught.value.filename == target
    assert sorted(os.listdir(source)) == before


@marked
async def test_copy_of_a_file_that_is_shorter_than_its_size_says_has_no_more_bytes(tmp_path: pathlib.Path) -> None:
    path = "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size"
    need(os.path.exists(path), "a kernel with large pages")
    wanted = pathlib.Path(path).read_bytes()
    assert os.stat(path).st_size > len(wanted)
    assert await copy_file(path, tmp_path / "copy") == len(wanted)
    assert (tmp_path / "copy").read_bytes() == wanted


@marked
async def test_error_of_the_data_names_both_files(on_filesystem: Callable[[str], pathlib.Path], tmp_path: pathlib.Path) -> None:
    full = on_filesystem("small_tmpfs")
    (tmp_path / "source").mkdir()
    (tmp_path / "source/file").write_bytes(bytes(4 << 20))
    for call, target in (
        (lambda: copy_file(tmp_path / "source/file", full / "copy"), full / "copy"),
        (lambda: copy_tree(tmp_path / "source", full / "tree"), full / "tree/file"),
    ):
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as caught:
            await call()
        assert (str(caught.value.filename), str(caught.value.filename2)) == (str(tmp_path / "source/file"), str(target))
    assert os.listdir(full) == []


@marked
async def test_errors_in_a_tree_are_those_of_a_single_copy(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "target").mkdir()
    os.link(source / "one.py", tmp_path / "target/one.py")
    os.mkfifo(tmp_path / "target/two.txt")
    (source / "two.txt").write_text("two")
    errors: list[OSError] = []
    await copy_tree(source, tmp_path / "target", exist_ok=True, on_error=errors.append)
    assert {type(error) for error in errors} == {shutil.SameFileError, io.UnsupportedOperation}


@marked
async def test_links_to_sockets_are_left_out_if_links_are_followed(tmp_path: pathlib.Path) -> None:
    (tmp_path / "source").mkdir()
    os.mknod(tmp_path / "source/socket", stat.S_IFSOCK | 0o600)
    (tmp_path / "source/link").symlink_to("socket")
    await copy_tree(tmp_path / "source", tmp_path / "copy", follow_symlinks=True)
    assert os.listdir(tmp_path / "copy") == []
    await copy_tree(tmp_path / "source", tmp_path / "links")
    assert os.listdir(tmp_path / "links") == ["link"]


@marked
@pytest.mark.parametrize("name", ["tree", "file"])
async def test_move_removes_what_it_has_copied_although_the_working_directory_changes(
    tmp_path: pathlib.Path, on_filesystem: Callable[[str], pathlib.Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder / "tree/inner").mkdir(parents=True)
        (tmp_path / folder / "file").write_text(folder)
    monkeypatch.chdir(tmp_path / "one")
    target = on_filesystem("tmpfs") / "moved"
    async with create_task_group() as tasks:
        tasks.start_soon(lambda: Path(name).move(target))
        while os.getcwd() == str(tmp_path / "one"):
            await checkpoint()
            if target.exists():
                monkeypatch.chdir(tmp_path / "two")
            elif not (tmp_path / "one" / name).exists():
                break
    assert target.exists()
    assert not (tmp_path / "one" / name).exists()
    assert (tmp_path / "two" / name).exists()


NOTHING_LEFT = """
from trio_aio.testing import FaultyContext
async def main():
    async with FaultyContext() as context:
        for turn in range(1, 9):
            try:
                with context.fail(5, operation="change", file="copy", turn=turn):
                    await trio_aio.copy_tree("source", "copy", context=context)
            except OSError as error:
                assert error.errno == 5
                assert os.listdir(".") == ["source"], (turn, os.listdir("."))
            else:
                assert turn > 2
                break
        else:
            raise AssertionError
trio.run(main)
"""


def test_failed_copy_of_directories_that_forbid_their_removal_leaves_nothing(disk: pathlib.Path) -> None:
    need(os.geteuid() == 0, "root, to become nobody")
    (disk / "source/closed").mkdir(parents=True)
    (disk / "source/closed/file").write_text("x")
    (disk / "source/closed").chmod(0o555)
    os.chown(disk, 65534, 65534)
    _run_as_nobody(disk, NOTHING_LEFT)


@marked
async def test_move_to_another_filesystem_takes_sockets_along(source: pathlib.Path, on_filesystem: Callable[[str], pathlib.Path]) -> None:
    os.mknod(source / "a/socket", stat.S_IFSOCK | 0o600)
    moved = await Path(source).move(on_filesystem("tmpfs") / "moved")
    assert stat.S_ISSOCK(os.stat(moved / "a/socket").st_mode)
    assert not source.exists()


@marked
@pytest.mark.parametrize("kind", [stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR])
@pytest.mark.parametrize("before", ["nothing", "a file", "a link"])
async def test_move_to_another_filesystem_makes_what_is_no_file_anew(
    tmp_path: pathlib.Path, on_filesystem: Callable[[str], pathlib.Path], kind: int, before: str
) -> None:
    need(kind != stat.S_IFCHR or os.geteuid() == 0, "root, to make a device")
    path, target = tmp_path / "special", on_filesystem("tmpfs") / "moved"
    os.mknod(path, kind | 0o600, os.makedev(1, 3))
    os.chmod(path, 0o621)
    os.utime(path, ns=(1_500_000_000, 2_500_000_000))
    if before == "a file":
        target.write_text("old")
    elif before == "a link":
        target.symlink_to(path)
    wanted = path.stat()
    if before == "a link":
        with pytest.raises(shutil.SameFileError):
            await Path(path).move(target)
        assert path.exists()
        assert target.is_symlink()
        return
    assert await Path(path).move(target) == target
    got = target.lstat()
    assert (got.st_mode, got.st_rdev, got.st_mtime_ns) == (wanted.st_mode, wanted.st_rdev, wanted.st_mtime_ns)
    assert os.listdir(target.parent) == ["moved"]
    assert not path.exists()


@marked
async def test_failed_move_of_a_socket_to_another_filesystem_leaves_it(
    tmp_path: pathlib.Path, on_filesystem: Callable[[str], pathlib.Path]
) -> None:
    os.mknod(tmp_path / "socket", stat.S_IFSOCK | 0o600)
    folder = on_filesystem("tmpfs")
    (folder / "directory").mkdir()
    for target in ("directory", "absent/new"):
        with pytest.raises(OSError, match=f"{target}"):
            await Path(tmp_path / "socket").move(folder / target)
    assert os.listdir(folder) == ["directory"]
    assert (tmp_path / "socket").is_socket()


def test_native_cancellation_at_any_moment_leaves_no_temporary_name(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    async def main(ticks: int) -> bool:
        task = asyncio.create_task(copy_tree(source, tmp_path / "copy"))
        for _ in range(ticks):
            await asyncio.sleep(0)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            return False
        return True

    ticks, done = 0, False
    while not done:
        done = asyncio.run(main(ticks))
        left = sorted(os.listdir(tmp_path))
        assert left in (["source"], ["copy", "source"])
        if len(left) == 2:
            assert len(list((tmp_path / "copy").rglob("*"))) == len(list(source.rglob("*")))
            asyncio.run(trio_aio.remove_tree(tmp_path / "copy"))
        ticks += 1 + ticks // 20
