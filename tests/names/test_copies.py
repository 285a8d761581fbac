"""Copies of trees: FIFOs, devices, sockets and links, and what happens meanwhile."""

# What the calls are compared with blocks, and that is fine here.
# ruff: noqa: ASYNC240

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from anyio import create_task_group

import trio_aio
from trio_aio import Path, copy_file, copy_tree
from trio_aio.testing import FaultyContext

from ..conftest import need
from ..support.trees import make_tree

if TYPE_CHECKING:
    import pathlib
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
    # Nobody may not look into the folders above. So the process has them as working directory before its privileges go.
    program = "import os, sys, trio, trio_aio\nos.setgid(65534); os.setuid(65534)\n" + NOT_MADE
    command = [sys.executable, "-c", program, "source", "target"]
    done = subprocess.run(command, cwd=disk, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert (disk / "target/device").read_bytes() == b"kept"


@marked
async def test_move_to_another_filesystem_takes_sockets_along(source: pathlib.Path, on_filesystem: Callable[[str], pathlib.Path]) -> None:
    os.mknod(source / "a/socket", stat.S_IFSOCK | 0o600)
    moved = await Path(source).move(on_filesystem("tmpfs") / "moved")
    assert stat.S_ISSOCK(os.stat(moved / "a/socket").st_mode)
    assert not source.exists()


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
