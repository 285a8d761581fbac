"""`AsyncDirectory`: what it does below its directory, and that nothing leads out of it."""

# What the calls are compared with blocks, and that is fine here.
# ruff: noqa: ASYNC240

from __future__ import annotations

import errno
import gc
import itertools
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
from anyio import CancelScope

import trio_aio
from trio_aio import AIOContext, AsyncDirectory, AsyncFile, open_directory

from ..support.trees import make_tree

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable

pytestmark = [pytest.mark.anyio, pytest.mark.backends("trio", "asyncio")]

SECRET = b"secret"


@pytest.fixture
def tree(tmp_path: pathlib.Path) -> pathlib.Path:
    """Return a folder, with a file outside of it that no call may reach."""
    (tmp_path / "inside").mkdir()
    (tmp_path / "secret").write_bytes(SECRET)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_bytes(SECRET)
    return make_tree(tmp_path / "inside")


@pytest.mark.parametrize("beneath", [True, False])
async def test_calls_start_from_the_directory(tree: pathlib.Path, beneath: bool) -> None:
    async with open_directory(tree, beneath=beneath) as directory:
        assert isinstance(directory, AsyncDirectory)
        assert directory.name == tree
        for _ in range(3):
            assert await directory.stat() == os.stat(tree)
            assert await directory.stat("a/one.py") == os.stat(tree / "a/one.py")
            assert await directory.stat("link to file", follow_symlinks=False) == os.lstat(tree / "link to file")
            assert await directory.exists("a/../one.py")
            assert not await directory.exists("absent")
            assert await directory.readlink("link to file") == "one.py"
            assert await directory.read_bytes("a/one.py") == b"a/one.py"
            assert await directory.read_bytes(b"a/one.py", offset=2, size=3) == b"one"
            assert await directory.read_text("link to file") == "one.py"
        async with directory.open("a/one.py") as file:
            assert await file.read() == b"a/one.py"
        async with directory.open("made", "w", encoding="utf-8") as file:
            await file.write("täxt")
        assert (tree / "made").read_text(encoding="utf-8") == "täxt"
        assert await directory.write_bytes("made", b"x" * 10) == 10
        assert await directory.write_bytes("made", b"y", offset=3) == 1
        assert await directory.write_bytes("made", b"z", append=True) == 1
        assert (tree / "made").read_bytes() == b"xxxyxxxxxxz"
        assert await directory.write_text("made", "atomic", atomic=True, durable=True) == 6
        assert (tree / "made").read_text() == "atomic"
        with pytest.raises(FileExistsError):
            await directory.write_bytes("made", b"", exclusive=True)
        assert sorted(await directory.listdir()) == sorted(os.listdir(tree))
        assert sorted(await directory.listdir("a")) == sorted(os.listdir(tree / "a"))
        entries = {entry.name: entry async for entry in directory.scandir("a")}
        assert await entries["one.py"].stat() == os.stat(tree / "a/one.py")
        walked = [(path, sorted(dirs), sorted(files)) async for path, dirs, files in directory.walk("a")]
        theirs = [(os.path.relpath(path, tree), sorted(dirs), sorted(files)) for path, dirs, files in os.walk(tree / "a")]
        assert sorted(walked) == sorted(theirs)


async def test_changes_start_from_the_directory(tree: pathlib.Path) -> None:
    async with open_directory(tree) as directory, open_directory(tree / "b") as other:
        await directory.mkdir("x/y/z", parents=True)
        await directory.mkdir("x/y/z", parents=True, exist_ok=True)
        with pytest.raises(FileExistsError):
            await directory.mkdir("x")
        with pytest.raises(FileNotFoundError):
            await directory.mkdir("absent/x")
        assert (tree / "x/y/z").is_dir()
        await directory.rename("one.py", "x/moved")
        await directory.rename("x/moved", "moved", to=other)
        assert (tree / "b/moved").read_text() == "one.py"
        await directory.link("a/one.py", "same", to=other)
        assert (tree / "b/same").samefile(tree / "a/one.py")
        with pytest.raises(FileExistsError):
            await other.rename("moved", "same", exclusive=True)
        await other.rename("moved", "same", exchange=True)
        assert (tree / "b/same").read_text() == "one.py"
        await directory.symlink("any thing", "new link")
        assert os.readlink(tree / "new link") == "any thing"
        await directory.chmod("a/two.txt", 0o600)
        await directory.utime("a/two.txt", ns=(1, 2))
        assert (os.stat(tree / "a/two.txt").st_mode & 0o777, os.stat(tree / "a/two.txt").st_mtime_ns) == (0o600, 2)
        await directory.unlink("a/two.txt")
        await directory.unlink("a/two.txt", missing_ok=True)
        await directory.rmdir("x/y/z")
        assert await directory.remove_tree("a/e") == 5
        assert not (tree / "a/e").exists()
        await directory.sync()
        async with directory.open_directory("a") as below:
            assert sorted(await below.listdir()) == sorted(os.listdir(tree / "a"))


WAYS_OUT = ["../secret", "/etc/hostname", "a/../../secret", "out", "out/secret", "absolute", "a/link up/../secret", "deep/../../secret"]


def make_ways_out(tree: pathlib.Path) -> None:
    (tree / "out").symlink_to("../outside")
    (tree / "absolute").symlink_to(tree.parent / "secret")
    (tree / "deep").symlink_to("a")


@pytest.mark.parametrize("way", WAYS_OUT)
async def test_no_path_leads_out(tree: pathlib.Path, way: str) -> None:
    make_ways_out(tree)
    async with open_directory(tree) as directory:
        looks: list[Callable[[], Any]] = [
            lambda: directory.stat(way),
            lambda: directory.exists(way),
            lambda: directory.open(way),
            lambda: directory.open(way, "w"),
            lambda: directory.read_bytes(way),
            lambda: directory.read_text(way),
            lambda: directory.listdir(way),
            lambda: directory.scandir(way),
            lambda: directory.walk(way),
            lambda: directory.write_bytes(way, b"x"),
            lambda: directory.write_bytes(way, b"x", append=True),
            lambda: directory.open_directory(way)._open(),
        ]
        for call in looks:
            for _ in range(2):
                with pytest.raises(OSError, match="leads out of the directory") as caught:
                    await call()
                assert caught.value.errno == errno.EXDEV
        inner = f"{way}/new"
        changes: list[Callable[[], Any]] = [
            lambda: directory.mkdir(inner),
            lambda: directory.mkdir(inner, parents=True),
            lambda: directory.unlink(inner),
            lambda: directory.rename("one.py", inner),
            lambda: directory.rename(inner, "x"),
            lambda: directory.link("one.py", inner),
            lambda: directory.symlink("x", inner),
            lambda: directory.write_bytes(inner, b"x", atomic=True),
            lambda: directory.chmod(inner, 0o600),
            lambda: directory.utime(inner),
            lambda: directory.remove_tree(inner),
        ]
        for call in changes:
            with pytest.raises(OSError, match=r"leads out|File exists|Not a directory") as caught:
                await call()
            assert caught.value.errno in (errno.EXDEV, errno.EEXIST, errno.ENOTDIR)
    assert (tree.parent / "secret").read_bytes() == SECRET
    assert os.listdir(tree.parent / "outside") == ["secret"]


@pytest.mark.parametrize("way", WAYS_OUT)
async def test_second_path_leads_out_of_no_protected_directory(tree: pathlib.Path, way: str) -> None:
    make_ways_out(tree)
    async with open_directory(tree, beneath=False) as free, open_directory(tree) as protected:
        for call in (free.rename, free.link, protected.rename, protected.link):
            with pytest.raises(OSError, match=r"leads out|File exists|Not a directory") as caught:
                await call("one.py", f"{way}/new", to=protected)
            assert caught.value.errno in (errno.EXDEV, errno.EEXIST, errno.ENOTDIR)
            assert (caught.value.filename, caught.value.filename2) == ("one.py", f"{way}/new")
    assert os.listdir(tree.parent / "outside") == ["secret"]
    assert sorted(os.listdir(tree.parent)) == ["inside", "outside", "secret"]


async def test_walk_ignores_other_errors_than_a_path_that_leads_out(tree: pathlib.Path) -> None:
    async with open_directory(tree) as directory, open_directory(tree, beneath=False) as free:
        for path in ("absent", "one.py", "loop"):
            assert await directory.walk(path) == []
        assert [os.path.basename(path) for path, _, _ in await free.walk("../outside")] == ["outside"]


@pytest.mark.parametrize("way", ["../x", "absent/x"])
async def test_failed_link_names_its_target_and_its_path_as_os_symlink(tree: pathlib.Path, way: str) -> None:
    with pytest.raises(FileNotFoundError) as theirs:
        os.symlink("any thing", tree / "absent/x")
    assert (theirs.value.filename, theirs.value.filename2) == ("any thing", os.fspath(tree / "absent/x"))
    async with open_directory(tree) as directory:
        for target, path in (("any thing", way), (b"any thing", way.encode())):
            with pytest.raises(OSError, match=r"leads out|No such file") as caught:
                await directory.symlink(target, path)
            assert (caught.value.filename, caught.value.filename2) == (target, path)


async def test_second_path_may_lead_out_of_a_directory_that_is_not_protected(tree: pathlib.Path) -> None:
    async with open_directory(tree, beneath=False) as free, open_directory(tree) as protected:
        await protected.link("one.py", "../outside/linked", to=free)
        await protected.rename("one.py", tree.parent / "outside/renamed", to=free)
        with pytest.raises(OSError, match="leads out"):
            await protected.rename("../outside/renamed", "one.py", to=free)
    assert sorted(os.listdir(tree.parent / "outside")) == ["linked", "renamed", "secret"]


@pytest.mark.parametrize("beneath", [True, False])
async def test_slash_behind_a_name_says_that_it_is_a_directory(tree: pathlib.Path, beneath: bool) -> None:
    for name in ("from/", "gone"):
        (tree / name).mkdir()
    before = sorted(os.listdir(tree))
    async with open_directory(tree, beneath=beneath) as directory:
        for call, error in (
            (lambda: directory.unlink("one.py/"), NotADirectoryError),
            (lambda: directory.unlink("link to file/"), NotADirectoryError),
            (lambda: directory.rename("one.py/", "new"), NotADirectoryError),
            (lambda: directory.rename("one.py", "new/"), NotADirectoryError),
            (lambda: directory.rename("one.py", "new/", to=directory), NotADirectoryError),
            (lambda: directory.link("one.py/", "new"), NotADirectoryError),
            (lambda: directory.link("one.py", "new/"), FileNotFoundError),
            (lambda: directory.symlink("one.py", "new/"), FileNotFoundError),
            (lambda: directory.chmod("one.py/", 0o600), NotADirectoryError),
            (lambda: directory.utime("one.py/"), NotADirectoryError),
            (lambda: directory.stat("one.py/"), NotADirectoryError),
            (lambda: directory.symlink("x", "one.py/"), FileExistsError),
            (lambda: directory.link("two", "one.py/"), (FileExistsError, FileNotFoundError)),
            (lambda: directory.rename("from", "one.py/", exchange=True), NotADirectoryError),
            (lambda: directory.write_bytes("one.py/", b"x", atomic=True), IsADirectoryError),
        ):
            with pytest.raises(error):
                await call()
        assert sorted(os.listdir(tree)) == before
        await directory.mkdir("new/")
        await directory.mkdir("new/of/two/", parents=True)
        await directory.chmod("new/", 0o700)
        await directory.rename("from/", "to/")
        await directory.rename("one.py", "to/", exchange=True)
        await directory.rename("one.py/", "to", exchange=True)
        await directory.rmdir("gone/")
    assert (tree / "new/of/two").is_dir()
    assert (tree / "to").is_dir()


async def test_last_component_of_a_change_is_not_followed(tree: pathlib.Path) -> None:
    make_ways_out(tree)
    async with open_directory(tree) as directory:
        with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
            await directory.chmod("absolute", 0o777)
        await directory.utime("absolute", ns=(1, 2))
        await directory.write_bytes("absolute", b"new", atomic=True)
        await directory.unlink("out")
    assert (tree.parent / "secret").read_bytes() == SECRET
    assert os.stat(tree.parent / "secret").st_mtime_ns != 2
    assert (tree / "absolute").read_bytes() == b"new"


async def test_no_byte_comes_from_outside_while_components_are_renamed(tree: pathlib.Path) -> None:
    (tree / "a/b/c").mkdir(parents=True)
    (tree / "a/b/c/secret").write_bytes(b"inside")
    outside = tree.parent / "outside"
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            os.rename(tree / "a/b", tree.parent / "aside")
            os.symlink(outside.parent, tree / "a/b")
            os.unlink(tree / "a/b")
            os.symlink("../../outside", tree / "a/b")
            os.unlink(tree / "a/b")
            os.rename(tree.parent / "aside", tree / "a/b")

    (outside / "c").mkdir()
    (outside / "c/secret").write_bytes(SECRET)
    thread = threading.Thread(target=swap)
    thread.start()
    read = 0
    try:
        async with open_directory(tree) as directory:
            for i in itertools.count():
                if i >= 2000 and read:
                    break
                try:
                    if i % 2:
                        data = await directory.read_bytes("a/b/c/secret")
                    else:
                        async with directory.open("a/b/c/../c/secret") as file:
                            data = await file.read()
                except OSError as error:
                    assert error.errno in (errno.EXDEV, errno.ENOENT, errno.ENOTDIR, errno.EAGAIN)  # noqa: PT017
                    continue
                read += 1
                assert data == b"inside"
    finally:
        stop.set()
        thread.join()


async def test_closed_directory_refuses_calls(tree: pathlib.Path) -> None:
    directory = await open_directory(tree)
    fd = directory.fileno()
    with CancelScope() as scope:
        scope.cancel()
        await directory.aclose()
    assert directory.closed
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    await directory.aclose()
    for call in (directory.stat, directory.listdir, directory.sync, lambda: directory.read_bytes("x")):
        with pytest.raises(ValueError, match="closed"):
            await call()
    with pytest.raises(ValueError, match="closed"):
        directory.fileno()


async def fail_inside(manager: Any, scope: CancelScope) -> None:
    async with manager:
        scope.cancel()
        raise KeyError


async def test_close_in_a_cancelled_scope_closes_and_raises_cancelled(tree: pathlib.Path) -> None:
    directory = await open_directory(tree)
    with CancelScope() as scope:
        scope.cancel()
        await directory.aclose()
    assert scope.cancelled_caught
    assert directory.closed
    with CancelScope() as scope:
        async with open_directory(tree) as directory:
            scope.cancel()
    assert scope.cancelled_caught
    assert directory.closed
    with CancelScope() as scope, pytest.raises(KeyError):  # what the body raised leaves as it is
        await fail_inside(open_directory(tree), scope)


async def test_open_is_a_context_manager(tree: pathlib.Path) -> None:
    async with open_directory(tree) as directory:
        async with directory.open("a/one.py") as file:
            assert await file.read() == b"a/one.py"
        assert file.closed
        with pytest.raises(ValueError, match="mode"):
            directory.open("one.py", "nonsense")


async def test_listings_of_a_closed_directory_are_refused(tree: pathlib.Path) -> None:
    directory = await open_directory(tree)
    entry = (await directory.scandir())[0]
    listings: list[Any] = [directory.scandir(), directory.walk(), directory.scandir("a")]
    fd = directory.fileno()
    await directory.aclose()
    other = os.open("/etc", os.O_RDONLY)  # takes the number
    assert other == fd
    try:
        for listing in listings:
            with pytest.raises(ValueError, match="closed"):
                await listing
        with pytest.raises(ValueError, match="closed"):
            await entry.stat()
    finally:
        os.close(other)


async def test_listing_that_has_started_outlives_its_directory(tree: pathlib.Path) -> None:
    for number in range(3000):
        (tree / f"name {number:05}").touch()
    wanted = sorted(os.listdir(tree))
    directory = await open_directory(tree)
    async with directory.scandir() as listing:
        names = [(await anext(listing)).name]
        await directory.aclose()
        names += [entry.name async for entry in listing]
    assert sorted(names) == wanted


async def test_each_call_is_one_request(tree: pathlib.Path) -> None:
    async with AIOContext() as context, open_directory(tree, context=context) as directory:
        context._core.names.on = False  # workers only
        calls: list[Callable[[], Any]] = [
            lambda: directory.stat("a/one.py"),
            lambda: directory.exists("a/one.py"),
            lambda: directory.readlink("link to file"),
            lambda: directory.read_bytes("a/one.py"),
            lambda: directory.read_bytes("a/one.py", offset=2),
            lambda: directory.read_bytes("a/one.py", into=bytearray(3)),
            lambda: directory.read_text("a/one.py"),
            lambda: directory.write_bytes("new", b"data"),
            lambda: directory.write_bytes("new", b"data", atomic=True, durable=True),
            lambda: directory.listdir(),
            lambda: directory.mkdir("x/y", parents=True),
            lambda: directory.rename("x/y", "x/z"),
            lambda: directory.chmod("new", 0o600),
            lambda: directory.utime("new"),
            lambda: directory.symlink("new", "linked"),
            lambda: directory.unlink("linked"),
            lambda: directory.sync(),
            lambda: directory.open("new", "r+b"),
        ]
        for call in calls:
            before = context.statistics().submitted_workers
            result = await call()
            assert context.statistics().submitted_workers == before + 1
            if isinstance(result, AsyncFile):
                await result.aclose()


async def test_long_file_that_is_replaced_meanwhile_is_read_as_one(tree: pathlib.Path) -> None:
    contents = [bytes([number]) * (2 << 20) for number in (1, 2)]
    (tree / "long").write_bytes(contents[0])
    stop = threading.Event()

    def replace() -> None:
        for data in itertools.cycle(contents):
            if stop.is_set():
                return
            (tree / "other").write_bytes(data)
            os.replace(tree / "other", tree / "long")

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        async with open_directory(tree) as directory:
            for size in (-1, 2 << 20, -1, 3 << 20) * 8:
                assert await directory.read_bytes("long", size=size) in contents
            assert await directory.read_bytes("long", offset=1 << 20, size=3 << 20) in [data[1 << 20 :] for data in contents]
    finally:
        stop.set()
        thread.join()


async def test_fifo_below_a_directory_is_refused_and_not_opened(tree: pathlib.Path) -> None:
    async with open_directory(tree) as directory:
        calls: list[Callable[[], Any]] = [
            lambda: directory.read_bytes("fifo"),
            lambda: directory.read_bytes("fifo", into=bytearray(10)),
            lambda: directory.read_text("fifo"),
            lambda: directory.write_bytes("fifo", b""),
            lambda: directory.open("fifo"),
        ]
        for call in calls:
            with pytest.raises(OSError, match="FIFO"):
                await call()
            # No reader ever opened it: a writer still finds none.
            with pytest.raises(OSError, match=os.strerror(errno.ENXIO)):
                os.open(tree / "fifo", os.O_WRONLY | os.O_NONBLOCK)


async def test_dropped_directory_warns_and_is_closed(tree: pathlib.Path) -> None:
    directory = await open_directory(tree)
    fd = directory.fileno()
    with pytest.warns(ResourceWarning, match="unclosed directory"):
        del directory
    gc.collect()
    while os.path.exists(f"/proc/self/fd/{fd}"):
        await trio_aio.os.getcwd()


async def test_opening_what_is_no_directory_fails(tree: pathlib.Path) -> None:
    with pytest.raises(NotADirectoryError):
        await open_directory(tree / "one.py")
    with pytest.raises(FileNotFoundError) as caught:
        await open_directory(tree / "absent")
    assert caught.value.filename == str(tree / "absent")
    async with open_directory(tree) as directory:
        with pytest.raises(OSError, match="FIFO"):
            await directory.open("fifo")
        with pytest.raises(IsADirectoryError):
            await directory.open("a")
