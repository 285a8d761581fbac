"""`scandir`, `listdir` and `walk`, compared with ``os``, and what a `Listing` promises."""

# What the calls are compared with blocks, and that is fine here.
# ruff: noqa: ASYNC240

from __future__ import annotations

import contextlib
import gc
import os
import sys
from typing import TYPE_CHECKING, Any

import pytest
import trio
from anyio import CancelScope, create_task_group
from anyio.lowlevel import checkpoint
from trio.testing import assert_checkpoints

import trio_aio
from trio_aio import AIOContext, Path, current_context, open_directory, read_files, scandir, walk
from trio_aio.testing import FaultyContext

from ..support.tasks import busy, cancelled_while_blocked, until_idle
from ..support.trees import make_tree, outcome

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable

pytestmark = [pytest.mark.anyio, pytest.mark.backends("trio", "asyncio")]

MANY = 5000  # names: several requests for one directory


def tried(call: Any, *arguments: Any, **options: Any) -> Any:
    try:
        return call(*arguments, **options)
    except OSError as error:
        return outcome(error)


@pytest.mark.parametrize("as_bytes", [False, True])
@pytest.mark.parametrize("with_stat", [False, True])
async def test_scandir_equals_os(tmp_path: pathlib.Path, as_bytes: bool, with_stat: bool) -> None:
    top: Any = str(make_tree(tmp_path))
    if as_bytes:
        top = os.fsencode(top)
    ours = {entry.name: entry async for entry in scandir(top, stat=with_stat)}
    with os.scandir(top) as entries:
        theirs = {entry.name: entry for entry in entries}
    assert ours.keys() == theirs.keys()
    for name, wanted in theirs.items():
        got = ours[name]
        assert (got.path, got.inode(), got.is_symlink(), os.fspath(got)) == (wanted.path, wanted.inode(), wanted.is_symlink(), wanted.path)
        for follow in (True, False):
            assert tried(got.is_dir, follow_symlinks=follow) == tried(wanted.is_dir, follow_symlinks=follow)
            assert tried(got.is_file, follow_symlinks=follow) == tried(wanted.is_file, follow_symlinks=follow)
            expected = tried(wanted.stat, follow_symlinks=follow)
            if isinstance(expected, tuple) and not isinstance(expected, os.stat_result):
                with pytest.raises(expected[0]) as caught:
                    await got.stat(follow_symlinks=follow)
                assert outcome(caught.value) == expected
            else:
                found = await got.stat(follow_symlinks=follow)
                # Not the time of access: following a link may change it.
                assert (found[:7], found.st_mtime_ns, found.st_ctime_ns) == (expected[:7], expected.st_mtime_ns, expected.st_ctime_ns)
        assert not got.is_junction()


async def test_listing_of_many_names_is_complete(filesystem: pathlib.Path) -> None:
    for i in range(MANY):
        (filesystem / f"a name that is long enough to fill the memory of a request {i}").touch()
    wanted = sorted(os.listdir(filesystem))
    assert sorted(await trio_aio.os.listdir(filesystem)) == wanted
    assert sorted([entry.name async for entry in scandir(filesystem)]) == wanted
    assert sorted([path.name async for path in Path(filesystem).iterdir()]) == wanted
    assert sorted(entry.name for entry in await scandir(filesystem, stat=True)) == wanted


async def test_names_that_stay_are_listed_once_while_others_change(filesystem: pathlib.Path) -> None:
    for i in range(MANY):
        (filesystem / f"stays {i}").touch()
        if i % 2:
            (filesystem / f"goes {i}").touch()
    seen = []
    async for entry in scandir(filesystem):
        seen.append(entry.name)
        if len(seen) % 100 == 0:
            (filesystem / f"new {len(seen)}").touch()
            (filesystem / f"goes {len(seen) // 100 * 2 + 1}").unlink(missing_ok=True)
    assert sorted(name for name in seen if name.startswith("stays")) == sorted(f"stays {i}" for i in range(MANY))


@pytest.mark.parametrize("name", ["absent", "one.py", "", "loop"])
async def test_listing_error_equals_os(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(make_tree(tmp_path))
    wanted = tried(os.listdir, name)
    for call in (lambda: trio_aio.os.listdir(name), lambda: scandir(name)):
        with pytest.raises(OSError, match=r"\[Errno") as caught:
            await call()  # type: ignore[misc]
        assert outcome(caught.value) == wanted


class BytesPath:
    """An ``os.PathLike`` that stands for bytes."""

    def __init__(self, path: bytes) -> None:
        self._path: bytes = path

    def __fspath__(self) -> bytes:
        return self._path


async def test_path_like_that_stands_for_bytes_gives_bytes_as_with_os(tmp_path: pathlib.Path) -> None:
    top = BytesPath(os.fsencode(make_tree(tmp_path)))
    link = BytesPath(os.fsencode(tmp_path / "link to file"))
    assert sorted(await trio_aio.os.listdir(top)) == sorted(os.listdir(top))
    with os.scandir(top) as entries:
        theirs = {(entry.name, entry.path) for entry in entries}
    assert {(entry.name, entry.path) for entry in await scandir(top)} == theirs
    assert sorted(path for path, _, _ in await walk(top)) == sorted(path for path, _, _ in os.walk(top))
    assert await trio_aio.os.readlink(link) == os.readlink(link)
    assert await trio_aio.os.path.realpath(link) == os.path.realpath(link)
    assert await trio_aio.os.path.abspath(link) == os.path.abspath(link)
    async with open_directory(top) as directory:
        here = BytesPath(b".")
        assert sorted(await directory.listdir(here)) == sorted(os.listdir(top))
        assert {entry.name for entry in await directory.scandir(here)} == {name for name, _ in theirs}
        assert all(isinstance(path, bytes) for path, _, _ in await directory.walk(here))
        assert await directory.readlink(BytesPath(b"link to file")) == os.readlink(link)


@pytest.mark.parametrize("topdown", [True, False])
@pytest.mark.parametrize("followlinks", [True, False])
@pytest.mark.parametrize("as_bytes", [True, False])
async def test_walk_equals_os(tmp_path: pathlib.Path, topdown: bool, followlinks: bool, as_bytes: bool) -> None:
    (make_tree(tmp_path) / "a/link up").unlink()  # followed, it would go round and round
    top: Any = os.fsencode(tmp_path) if as_bytes else tmp_path
    ours = [(path, sorted(dirs), sorted(files)) async for path, dirs, files in walk(top, topdown=topdown, followlinks=followlinks)]
    theirs = [(path, sorted(dirs), sorted(files)) for path, dirs, files in os.walk(os.fspath(top), topdown, None, followlinks)]
    assert sorted(ours) == sorted(theirs)
    assert ours.index(next(v for v in ours if v[0] == os.fspath(top))) == (0 if topdown else len(ours) - 1)


async def test_walk_leaves_out_directories_that_were_removed_from_the_list(tmp_path: pathlib.Path) -> None:
    make_tree(tmp_path)
    seen = []
    async for path, dirs, _ in walk(tmp_path):
        seen.append(os.path.relpath(path, tmp_path))
        dirs[:] = [name for name in dirs if name != "e"]
    assert "a/d" in seen
    assert not [path for path in seen if path.startswith("a/e")]


async def test_walk_reports_errors(tmp_path: pathlib.Path) -> None:
    errors: list[OSError] = []
    assert await walk(tmp_path / "absent", onerror=errors.append) == []
    assert [(type(error), error.filename) for error in errors] == [(FileNotFoundError, str(tmp_path / "absent"))]
    assert await walk(tmp_path / "absent") == []

    def stop(error: OSError) -> None:
        raise error

    with pytest.raises(FileNotFoundError):
        await walk(tmp_path / "absent", onerror=stop)


async def test_walk_continues_in_the_tree_it_has_opened(tmp_path: pathlib.Path) -> None:
    for name in "abcdefgh":
        (tmp_path / "tree" / name / "inner").mkdir(parents=True)
    seen = []
    async for path, _, _ in walk(tmp_path / "tree"):
        if not seen:
            (tmp_path / "tree").rename(tmp_path / "moved")
            (tmp_path / "tree").mkdir()
        seen.append(os.path.relpath(path, tmp_path / "tree"))
    assert sorted(seen) == sorted([".", *"abcdefgh", *(f"{name}/inner" for name in "abcdefgh")])


async def test_walk_of_deep_tree_needs_few_descriptors(tmp_path: pathlib.Path) -> None:
    depth, name = 300, "directory " * 4  # 12 KB: longer than PATH_MAX
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=here)
        inner = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    before, most, seen = len(os.listdir("/proc/self/fd")), 0, 0
    async for _ in walk(tmp_path):
        seen += 1
        most = max(most, len(os.listdir("/proc/self/fd")))
    assert seen == depth + 1
    assert most - before <= 16 + 4  # and the context's own
    async for path, _, _ in Path(tmp_path).walk(False):
        assert len(path.parts) > depth
        break


async def test_listing_left_early_closes_its_descriptors(tmp_path: pathlib.Path) -> None:
    for i in range(MANY):
        (tmp_path / f"{i}").touch()
    context = current_context()
    await trio_aio.os.listdir(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    async for _ in scandir(tmp_path):
        break
    async for _ in walk(tmp_path):
        break
    async with Path(tmp_path).iterdir() as listing:
        async for _ in listing:
            break
    listing = Path(tmp_path).rglob("*")
    await listing.__anext__()
    await listing.aclose()
    assert [entry async for entry in listing] == []
    gc.collect()
    await until_idle(context)
    while len(os.listdir("/proc/self/fd")) > before:
        await trio_aio.os.getcwd()
    del listing


async def test_listing_that_is_not_used_warns(tmp_path: pathlib.Path) -> None:
    listing = scandir(tmp_path)
    with pytest.warns(RuntimeWarning, match="never awaited or iterated"):
        del listing


async def test_listing_cancelled_in_the_queue_reads_nothing(tmp_path: pathlib.Path) -> None:
    async def walk_all() -> None:
        await walk(tmp_path, context=context)

    async with AIOContext(max_workers=1) as context, busy(context):
        assert await cancelled_while_blocked(lambda: trio_aio.os.listdir(tmp_path, context=context))
        assert await cancelled_while_blocked(walk_all)


async def test_cancelled_listing_is_a_checkpoint(tmp_path: pathlib.Path) -> None:
    with CancelScope() as scope:
        scope.cancel()
        await scandir(tmp_path)
    assert scope.cancelled_caught


@pytest.mark.parametrize("kind", ["scandir", "iterdir", "glob", "rglob", "walk", "read_files"])
async def test_listing_without_entries_or_after_its_end_is_a_checkpoint(tmp_path: pathlib.Path, kind: str) -> None:
    kinds: dict[str, Callable[[], Any]] = {
        "scandir": lambda: scandir(tmp_path),
        "iterdir": lambda: Path(tmp_path).iterdir(),
        "glob": lambda: Path(tmp_path).glob("*"),
        "rglob": lambda: Path(tmp_path / "absent").rglob("*"),
        "walk": lambda: walk(tmp_path / "absent"),
        "read_files": lambda: read_files([]),
    }
    make = kinds[kind]
    ended = make()
    await ended
    for call in (make, lambda: anext(make(), None), lambda: ended, lambda: anext(ended, None)):
        with CancelScope() as scope:
            scope.cancel()
            await call()
        assert scope.cancelled_caught
        if trio.lowlevel.in_trio_task():
            with assert_checkpoints():
                await call()


@pytest.mark.skipif(sys.version_info < (3, 12), reason="pathlib.Path.walk came with Python 3.12")
@pytest.mark.parametrize("top_down", [True, False])
@pytest.mark.parametrize("follow", [True, False])
async def test_path_walk_equals_pathlib(tmp_path: pathlib.Path, top_down: bool, follow: bool) -> None:
    (make_tree(tmp_path) / "a/link up").unlink()
    ours = [(path, sorted(dirs), sorted(files)) async for path, dirs, files in Path(tmp_path).walk(top_down, None, follow)]
    theirs = [(path, sorted(dirs), sorted(files)) for path, dirs, files in tmp_path.walk(top_down, None, follow)]
    assert sorted(ours) == sorted(theirs)


async def test_tree_stays_open_for_directories_that_are_still_being_read(tmp_path: pathlib.Path) -> None:
    # A request that starts from its descriptor must not start from another directory that has got the number.
    (tmp_path / "a/b").mkdir(parents=True)

    def is_open() -> bool:
        opened = []
        for fd in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):  # that of the listing itself
                opened.append(os.readlink(f"/proc/self/fd/{fd}"))
        return str(tmp_path) in opened

    async with FaultyContext() as context:
        with context.hang(operation="list", file=tmp_path / "a") as hang:
            listing = walk(tmp_path, context=context)
            assert (await anext(listing))[1] == ["a"]
            with CancelScope() as scope:
                async with create_task_group() as tasks:
                    tasks.start_soon(anext, listing)
                    while not hang.held:
                        await checkpoint()
                    scope.cancel()
            await listing.aclose()
            for _ in range(5):
                await trio_aio.os.getcwd()
            assert is_open()
            hang.release()
            while is_open():
                await trio_aio.os.getcwd()
