"""`copy_file`, `copy_tree`, `remove_tree`, and the calls of `Path` that use them."""

# What the calls are compared with blocks, and that is fine here.

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import stat
import threading
from typing import TYPE_CHECKING, Any

import pytest
from anyio import CancelScope, create_task_group

import trio_aio
from trio_aio import AIOContext, Path, copy_file, copy_tree, remove_tree
from trio_aio.testing import FaultyContext

from ..support.files import content, make_file
from ..support.tasks import busy, cancelled_while_blocked
from ..support.trees import make_tree

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable

pytestmark = [pytest.mark.anyio, pytest.mark.backends("trio", "asyncio")]


def state(top: pathlib.Path, *, times: bool = False) -> dict[str, Any]:
    """Return what is in a tree: type, mode, contents or target, and if wanted the time of the last change."""
    found = {}
    for folder, directories, files in os.walk(top):
        for name in (*directories, *files):
            path = os.path.join(folder, name)
            status = os.lstat(path)
            held: Any = None
            if stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    held = file.read()
            elif stat.S_ISLNK(status.st_mode):
                held = os.readlink(path)
            found[os.path.relpath(path, top)] = (status.st_mode, held, status.st_mtime_ns if times else None)
    return found


# ---- copy_file


@pytest.mark.parametrize("size", [0, 1, 4096, 3_000_001])
async def test_copy_of_a_file_has_its_bytes(filesystem: pathlib.Path, size: int) -> None:
    path, data = make_file(filesystem, size)
    assert await copy_file(path, filesystem / "copy") == size
    assert (filesystem / "copy").read_bytes() == data
    (filesystem / "copy").write_bytes(b"old")
    assert await copy_file(path, filesystem / "copy", durable=True) == size
    assert (filesystem / "copy").read_bytes() == data
    with pytest.raises(FileExistsError):
        await copy_file(path, filesystem / "copy", exclusive=True)
    assert await copy_file(path, filesystem / "another", exclusive=True) == size
    assert sorted(os.listdir(filesystem)) == ["another", "copy", "file"]


async def test_copy_to_another_filesystem_has_its_bytes(on_filesystem: Callable[[str], pathlib.Path]) -> None:
    path, data = make_file(on_filesystem("ext4"), 3_000_001)
    for kind in ("tmpfs", "xfs", "overlay"):
        folder = on_filesystem(kind)
        assert await copy_file(path, folder / "copy") == len(data)
        assert (folder / "copy").read_bytes() == data


async def test_copy_of_a_file_without_a_size_has_its_bytes(disk: pathlib.Path) -> None:
    assert await copy_file("/proc/sys/kernel/ostype", disk / "copy") == 6
    assert (disk / "copy").read_bytes() == b"Linux\n"


async def test_copy_in_several_pieces_is_complete(disk: pathlib.Path) -> None:
    path = disk / "file"
    data = content(1 << 20) * 130
    path.write_bytes(data)
    assert await copy_file(path, disk / "copy") == len(data)
    assert (disk / "copy").read_bytes() == data


@pytest.mark.parametrize("kind", ["ext4", "xfs", "tmpfs"])
async def test_holes_stay_holes(on_filesystem: Callable[[str], pathlib.Path], kind: str) -> None:
    folder = on_filesystem(kind)
    with (folder / "sparse").open("wb") as file:
        file.seek(8 << 20)
        file.write(b"data")
        file.truncate(16 << 20)
    assert await copy_file(folder / "sparse", folder / "copy") == 16 << 20
    assert (folder / "copy").read_bytes() == (folder / "sparse").read_bytes()
    assert (folder / "copy").stat().st_blocks * 512 < 1 << 20


async def test_copy_preserves_metadata_if_wanted(disk: pathlib.Path) -> None:
    path, _ = make_file(disk)
    path.chmod(0o741)
    os.utime(path, ns=(1_500_000_000_123_456_789, 1_400_000_000_987_654_321))
    os.setxattr(path, "user.x", b"value")
    await copy_file(path, disk / "copy", preserve_metadata=True)
    got, wanted = (disk / "copy").stat(), path.stat()
    assert (got.st_mode, got.st_mtime_ns) == (wanted.st_mode, wanted.st_mtime_ns)
    assert os.getxattr(disk / "copy", "user.x") == b"value"
    await copy_file(path, disk / "plain")
    assert (disk / "plain").stat().st_mtime_ns != wanted.st_mtime_ns


async def test_copy_of_links(disk: pathlib.Path) -> None:
    path, data = make_file(disk)
    (disk / "link").symlink_to("file")
    await copy_file(disk / "link", disk / "followed")
    assert (disk / "followed").read_bytes() == data
    assert not (disk / "followed").is_symlink()
    await copy_file(disk / "link", disk / "same", follow_symlinks=False)
    assert os.readlink(disk / "same") == "file"
    with pytest.raises(shutil.SameFileError):
        await copy_file(path, disk / "link")
    with pytest.raises(shutil.SameFileError):
        await copy_file(path, path)


async def test_copy_refuses_what_is_no_file_without_opening_it(disk: pathlib.Path) -> None:
    os.mkfifo(disk / "fifo")
    with pytest.raises(io.UnsupportedOperation, match="FIFO"):
        await copy_file(disk / "fifo", disk / "copy")
    with pytest.raises(IsADirectoryError) as caught:
        await copy_file(disk, disk / "copy")
    assert caught.value.filename == str(disk)
    with pytest.raises(FileNotFoundError) as caught:
        await copy_file(disk / "absent", disk / "copy")
    assert caught.value.filename == str(disk / "absent")
    path, _ = make_file(disk)
    with pytest.raises(io.UnsupportedOperation, match=r"replaced, and .*fifo"):
        await copy_file(path, disk / "fifo")
    with pytest.raises(FileNotFoundError) as caught:
        await copy_file(path, disk / "absent/copy")
    assert caught.value.filename == str(disk / "absent/copy")
    assert sorted(os.listdir(disk)) == ["fifo", "file"]


async def test_failed_copy_leaves_nothing(on_filesystem: Callable[[str], pathlib.Path]) -> None:
    path, _ = make_file(on_filesystem("ext4"), 4 << 20)
    small = on_filesystem("small_tmpfs")
    (small / "copy").write_bytes(b"old")
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        await copy_file(path, small / "copy")
    assert (small / "copy").read_bytes() == b"old"
    assert os.listdir(small) == ["copy"]


@pytest.mark.parametrize("copy", [copy_file, copy_tree])
async def test_copy_cancelled_between_two_pieces_leaves_nothing(disk: pathlib.Path, copy: Any) -> None:
    (disk / "source").mkdir()
    path = disk / "source/file"
    path.write_bytes(content(1 << 20) * 65)  # two pieces
    (disk / "copies").mkdir()
    async with FaultyContext() as context:
        with context.hang(operation="change", file=path) as hang, CancelScope() as scope:
            async with create_task_group() as tasks:
                tasks.start_soon(lambda: copy(path if copy is copy_file else path.parent, disk / "copies/copy", context=context))
                while not hang.held:
                    await trio_aio.os.getcwd()
                scope.cancel()
                hang.release()
    assert scope.cancelled_caught
    assert os.listdir(disk / "copies") == []


async def test_copy_cancelled_in_the_queue_leaves_nothing(disk: pathlib.Path) -> None:
    path, _ = make_file(disk)
    async with AIOContext(max_workers=1) as context, busy(context):
        assert await cancelled_while_blocked(lambda: copy_file(path, disk / "copy", context=context))
    assert os.listdir(disk) == ["file"]


# ---- copy_tree


@pytest.mark.parametrize("depth", [1, 16])
async def test_copy_of_a_tree_equals_it(filesystem: pathlib.Path, depth: int) -> None:
    (filesystem / "source").mkdir()
    make_tree(filesystem / "source")
    os.mknod(filesystem / "source/socket", stat.S_IFSOCK | 0o600)
    made = await copy_tree(filesystem / "source", filesystem / "copy", depth=depth)
    (filesystem / "source/socket").unlink()  # sockets are left out
    wanted = state(filesystem / "source", times=True)
    got = state(filesystem / "copy", times=True)
    fifos = {path for path, (mode, *_) in wanted.items() if stat.S_ISFIFO(mode)}
    assert {path: held for path, held in got.items() if path not in fifos} == {
        path: held for path, held in wanted.items() if path not in fifos
    }
    assert fifos <= got.keys()
    assert made == len(wanted) + 1
    assert sorted(os.listdir(filesystem)) == ["copy", "source"]


async def test_copy_of_a_tree_follows_links_if_wanted(tmp_path: pathlib.Path) -> None:
    (tmp_path / "source").mkdir()
    source, target = make_tree(tmp_path / "source"), tmp_path / "copy"
    for name in ("broken", "loop", "a/link up"):
        (source / name).unlink()
    await copy_tree(source, target, follow_symlinks=True)
    assert (target / "link to file").read_text() == "one.py"
    assert not (target / "link to directory").is_symlink()
    assert (target / "link to directory/f/four.py").read_text() == "a/e/f/four.py"


async def test_copy_of_a_tree_needs_a_new_target(tmp_path: pathlib.Path) -> None:
    (tmp_path / "source").mkdir()
    source = make_tree(tmp_path / "source")
    (tmp_path / "target").mkdir()
    (tmp_path / "target/kept").write_text("kept")
    (tmp_path / "target/one.py").write_text("old")
    with pytest.raises(FileExistsError):
        await copy_tree(source, tmp_path / "target")
    await copy_tree(source, tmp_path / "target", exist_ok=True)
    assert (tmp_path / "target/kept").read_text() == "kept"
    assert (tmp_path / "target/one.py").read_text() == "one.py"
    assert state(source).items() <= state(tmp_path / "target").items()
    for inside in (source / "a/copy", source, tmp_path / "target/../source/x"):
        with pytest.raises(ValueError, match="inside the source"):
            await copy_tree(source, inside)
    with pytest.raises(FileNotFoundError):
        await copy_tree(tmp_path / "absent", tmp_path / "copy")
    with pytest.raises(NotADirectoryError):
        await copy_tree(source / "one.py", tmp_path / "copy")
    assert sorted(os.listdir(tmp_path)) == ["source", "target"]


async def test_copy_of_a_tree_reports_errors_and_continues(tmp_path: pathlib.Path) -> None:
    (tmp_path / "source").mkdir()
    source = make_tree(tmp_path / "source")
    errors: list[OSError] = []
    async with FaultyContext() as context:
        with context.fail(errno.EIO, operation="change", file=source / "one.py"):
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                await copy_tree(source, tmp_path / "first", context=context)
            assert os.listdir(tmp_path) == ["source"]
            await copy_tree(source, tmp_path / "second", on_error=errors.append, context=context)
    assert [(error.errno, error.filename) for error in errors] == [(errno.EIO, str(source / "one.py"))]
    assert set(state(source)) - set(state(tmp_path / "second")) == {"one.py"}


async def test_cancelled_copy_of_a_tree_leaves_nothing(tmp_path: pathlib.Path) -> None:
    (tmp_path / "source").mkdir()
    source = make_tree(tmp_path / "source")
    async with FaultyContext() as context:
        with context.hang(operation="change", file=source / "a/one.py") as hang, CancelScope() as scope:
            async with create_task_group() as tasks:
                tasks.start_soon(lambda: copy_tree(source, tmp_path / "copy", context=context))
                while not hang.held:
                    await trio_aio.os.getcwd()
                scope.cancel()
                hang.release()
    assert scope.cancelled_caught
    assert os.listdir(tmp_path) == ["source"]


# ---- remove_tree


async def test_removed_tree_is_gone(filesystem: pathlib.Path) -> None:
    (filesystem / "tree").mkdir()
    make_tree(filesystem / "tree")
    (filesystem / "outside").mkdir()
    (filesystem / "outside/kept").write_text("kept")
    (filesystem / "tree/a/leads out").symlink_to(filesystem / "outside")
    expected = len(state(filesystem / "tree")) + 1
    assert await remove_tree(filesystem / "tree") == expected
    assert os.listdir(filesystem) == ["outside"]
    assert (filesystem / "outside/kept").read_text() == "kept"
    with pytest.raises(FileNotFoundError):
        await remove_tree(filesystem / "tree")
    assert await remove_tree(filesystem / "tree", missing_ok=True) == 0


async def test_removal_of_a_large_directory_is_complete(disk: pathlib.Path) -> None:
    (disk / "tree").mkdir()
    for i in range(5000):
        (disk / f"tree/file {i}").touch()
        if i % 10 == 0:
            (disk / f"tree/directory {i}").mkdir()
    assert await remove_tree(disk / "tree") == 5501
    assert os.listdir(disk) == []


async def test_removal_refuses_links_and_files(tmp_path: pathlib.Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/kept").write_text("")
    (tmp_path / "link").symlink_to("tree")
    for name in ("link", "tree/kept"):
        with pytest.raises(NotADirectoryError):
            await remove_tree(tmp_path / name)
    assert (tmp_path / "tree/kept").exists()


async def test_removal_of_a_deep_tree_needs_few_descriptors(tmp_path: pathlib.Path) -> None:
    depth, name = 600, "directory " * 4  # 24 KB: longer than PATH_MAX
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=here)
        inner = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    assert await remove_tree(tmp_path / name) == depth
    assert os.listdir(tmp_path) == []


async def test_removal_follows_no_link_that_appears_meanwhile(tmp_path: pathlib.Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for i in range(20):
        (outside / f"{i}").write_text("")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            try:
                os.rename(tmp_path / "tree/a", tmp_path / "aside")
                os.symlink(outside, tmp_path / "tree/a")
                os.unlink(tmp_path / "tree/a")
                os.rename(tmp_path / "aside", tmp_path / "tree/a")
            except OSError:
                continue

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(50):
            (tmp_path / "fresh/a/b").mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):  # what the thread has put aside comes back into a tree that was removed
                os.rename(tmp_path / "fresh", tmp_path / "tree")
            await remove_tree(tmp_path / "tree", on_error=lambda _: None)
    finally:
        stop.set()
        thread.join()
    assert len(os.listdir(outside)) == 20


async def test_removal_reports_errors_and_continues(tmp_path: pathlib.Path) -> None:
    (tmp_path / "tree").mkdir()
    make_tree(tmp_path / "tree")
    errors: list[OSError] = []
    async with FaultyContext() as context:
        with context.fail(errno.EIO, operation="list", file=tmp_path / "tree/a"):
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                await remove_tree(tmp_path / "tree", context=context)
            await remove_tree(tmp_path / "tree", on_error=errors.append, context=context)
    assert {error.errno for error in errors} == {errno.EIO, errno.ENOTEMPTY}
    assert os.listdir(tmp_path / "tree") == ["a"]


@pytest.mark.parametrize("end", ["/", "//", "/.", "/./"])
async def test_removal_does_not_follow_a_link_with_more_behind_its_name(tmp_path: pathlib.Path, end: str) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/kept").write_text("")
    (tmp_path / "link").symlink_to("tree")
    errors: list[OSError] = []
    refused = NotADirectoryError if "." not in end else OSError
    for path in (f"{tmp_path}/link{end}", os.fsencode(f"{tmp_path}/link{end}")):
        with pytest.raises(refused) as caught:
            await remove_tree(path)
        assert caught.value.filename == path
        await remove_tree(path, on_error=errors.append)
        async with trio_aio.open_directory(tmp_path) as directory:
            with pytest.raises(refused):
                await directory.remove_tree(f"link{end}")
    assert [type(error) for error in errors] == [refused] * 2
    assert (tmp_path / "tree/kept").exists()
    assert (tmp_path / "link").is_symlink()


async def test_removal_of_a_directory_whose_name_ends_with_slashes_is_complete(tmp_path: pathlib.Path) -> None:
    (tmp_path / "tree/a").mkdir(parents=True)
    assert await remove_tree(f"{tmp_path}/tree//") == 2
    (tmp_path / "tree/a").mkdir(parents=True)
    async with trio_aio.open_directory(tmp_path) as directory:
        assert await directory.remove_tree("tree/") == 2
    assert os.listdir(tmp_path) == []


async def test_removal_of_dots_is_refused_as_by_rmdir_before_anything_is_removed(tmp_path: pathlib.Path) -> None:
    (tmp_path / "tree/a").mkdir(parents=True)
    for end, text in ((".", "Invalid"), ("a/..", "not empty")):
        with pytest.raises(OSError, match=text) as wanted:
            os.rmdir(f"{tmp_path}/tree/{end}")
        with pytest.raises(OSError, match=text) as caught:
            await remove_tree(f"{tmp_path}/tree/{end}")
        assert (caught.value.errno, caught.value.filename) == (wanted.value.errno, wanted.value.filename)
    assert os.listdir(tmp_path / "tree") == ["a"]


@pytest.mark.parametrize(
    ("top", "operation", "file"),
    [("tree", "list", "tree/a"), ("tree", "change", "tree/a"), ("empty", "change", "empty"), ("empty", "open", "empty")],
    ids=["listing", "names in a directory", "the top", "opening the top"],
)
async def test_error_that_on_error_raises_ends_the_removal(tmp_path: pathlib.Path, top: str, operation: Any, file: str) -> None:
    (tmp_path / "tree").mkdir()
    make_tree(tmp_path / "tree")
    (tmp_path / "empty").mkdir()
    given: list[tuple[int | None, str]] = []

    def stop(error: OSError) -> None:
        given.append((error.errno, os.fspath(error.filename)))
        raise BlockingIOError(errno.EAGAIN, "that of on_error") from error

    async with FaultyContext() as context:
        failing = context.fail(errno.EIO, operation=operation, file=tmp_path / file)
        with failing, pytest.raises(BlockingIOError, match="that of on_error"):
            await remove_tree(tmp_path / top, on_error=stop, context=context)
    assert given == [(errno.EIO, str(tmp_path / file))]
    assert (tmp_path / file).exists()


async def test_cancelled_removal_can_be_called_again(tmp_path: pathlib.Path) -> None:
    (tmp_path / "tree").mkdir()
    make_tree(tmp_path / "tree")
    async with AIOContext(max_workers=1) as context:
        async with busy(context):
            assert await cancelled_while_blocked(lambda: remove_tree(tmp_path / "tree", context=context))
        await remove_tree(tmp_path / "tree", context=context)
    assert os.listdir(tmp_path) == []


# ---- Path


async def test_path_copies_moves_and_removes(tmp_path: pathlib.Path, on_filesystem: Callable[[str], pathlib.Path]) -> None:
    (tmp_path / "tree").mkdir()
    tree = Path(make_tree(tmp_path / "tree"))
    (tmp_path / "into").mkdir()
    assert await (tree / "one.py").copy(tmp_path / "copy") == tmp_path / "copy"
    assert (tmp_path / "copy").read_text() == "one.py"
    assert await (tree / "one.py").copy_into(tmp_path / "into") == tmp_path / "into/one.py"
    wanted = state(tmp_path / "tree")
    copied = await tree.copy(tmp_path / "second", follow_symlinks=False)
    assert type(copied) is Path
    assert {name: held[1] for name, held in state(tmp_path / "second").items()} == {name: held[1] for name, held in wanted.items()}
    before = state(tmp_path / "second", times=True)
    moved = await copied.move_into(tmp_path / "into")
    assert state(tmp_path / "into/second", times=True) == before
    assert not (tmp_path / "second").exists()
    away = await moved.move(on_filesystem("tmpfs") / "away")
    assert not (tmp_path / "into/second").exists()
    assert {name: held[1] for name, held in state(away).items()} == {name: held[1] for name, held in wanted.items()}  # type: ignore[arg-type]
    assert await (await away.parent.iterdir())[0].remove_tree() > 5
    with pytest.raises(ValueError, match="empty name"):
        await Path("/").copy_into(tmp_path)
