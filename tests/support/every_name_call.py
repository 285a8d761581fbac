"""A program that makes every kind of call on names, and compares the results with os and pathlib: where the kernel lacks something.

``python -m tests.support.every_name_call FOLDER [--refuse NUMBER ERRNO] [--without-openat2]``. It fails at the first difference.
"""

# What the calls are compared with blocks, and that is fine here.
# ruff: noqa: ASYNC240

from __future__ import annotations

import argparse
import errno
import os
import pathlib
import shutil
import stat
from typing import TYPE_CHECKING, Any

import trio

import trio_aio
from trio_aio import Path, current_context, open_aio, open_directory

from .seccomp import refuse
from .trees import make_tree

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

MANY = 3000  # names of a directory that takes several requests


async def fails(codes: tuple[int, ...], call: Callable[[], Awaitable[Any]]) -> None:
    try:
        await call()
    except OSError as error:
        assert error.errno in codes, error  # noqa: PT017
    else:
        raise AssertionError("it should have failed")


async def look(tree: pathlib.Path) -> None:
    for name in (*os.listdir(tree), "absent", "one.py/x"):
        path = tree / name
        for follow in (True, False):
            try:
                wanted = os.stat(path, follow_symlinks=follow)
            except OSError as error:
                await fails((error.errno or 0,), lambda path=path, follow=follow: Path(path).stat(follow_symlinks=follow))  # type: ignore[misc]
            else:
                for _ in range(3):
                    status = await Path(path).stat(follow_symlinks=follow)
                    assert status == wanted
                    assert status.st_mtime_ns == wanted.st_mtime_ns
        assert await trio_aio.os.path.exists(path) == os.path.exists(path)
        assert await trio_aio.os.access(path, os.R_OK) == os.access(path, os.R_OK)
        assert await Path(path).is_symlink() == path.is_symlink()
        if path.is_symlink():
            assert await trio_aio.os.readlink(path) == os.readlink(path)
            assert await trio_aio.os.path.realpath(path) == os.path.realpath(path)


async def list_all(tree: pathlib.Path, many: pathlib.Path) -> None:
    theirs = {entry.name: entry for entry in os.scandir(tree)}
    for with_stat in (False, True):
        entries = await trio_aio.scandir(tree, stat=with_stat)
        assert sorted(entry.name for entry in entries) == sorted(theirs)
        for entry in entries:
            other = theirs[entry.name]
            assert entry.inode() == other.inode()
            assert entry.is_symlink() == other.is_symlink()
            if entry.name != "loop":
                assert (entry.is_dir(), entry.is_file()) == (other.is_dir(), other.is_file())
            assert await entry.stat(follow_symlinks=False) == other.stat(follow_symlinks=False)
    assert sorted(await trio_aio.os.listdir(many)) == sorted(os.listdir(many))
    assert sorted(await Path(tree).rglob("*")) == sorted(pathlib.Path(tree).rglob("*"))
    assert sorted(await Path(tree).glob("**/*.py")) == sorted(pathlib.Path(tree).glob("**/*.py"))
    for follow in (False,):
        walked = [(path, sorted(dirs), sorted(files)) async for path, dirs, files in trio_aio.walk(tree, followlinks=follow)]
        assert sorted(walked) == sorted((p, sorted(d), sorted(f)) for p, d, f in os.walk(tree, followlinks=follow))


async def use_files(folder: pathlib.Path) -> None:
    path = Path(folder / "made")
    for options in ({}, {"atomic": True}, {"durable": True}, {"atomic": True, "durable": True}, {"append": True}, {"offset": 0}):
        assert await path.write_bytes(b"some bytes", **options) == 10  # type: ignore[arg-type]
        for _ in range(3):
            assert (await path.read_bytes())[:10] == b"some bytes"
            assert await path.read_bytes(offset=5, size=3) == b"byt"
    async with await path.open("rb") as file:
        assert (await file.read())[:10] == b"some bytes"
    async with open_aio(path, "r+b") as file:
        await file.write(b"SOME")
    assert (await path.read_text())[:10] == "SOME bytes"
    names = [folder / f"small {number}" for number in range(100)]
    for number, name in enumerate(names):
        await trio_aio.write_bytes(name, b"%d" % number, exclusive=True)
    assert await trio_aio.read_files(names) == [b"%d" % number for number in range(100)]
    async with trio_aio.TemporaryFile(dir=folder) as temporary, trio_aio.NamedTemporaryFile(dir=folder) as named:
        await temporary.write(b"x")
        await named.write(b"y")
        assert pathlib.Path(named.name).exists()
    async with trio_aio.TemporaryDirectory(dir=folder) as directory:
        await Path(directory, "a/b").mkdir(parents=True)
    assert not pathlib.Path(directory).exists()


async def use_trees(tree: pathlib.Path, folder: pathlib.Path) -> None:
    copy, outside = folder / "copy", folder / "outside"
    outside.mkdir()
    (outside / "kept").write_bytes(b"kept")
    await trio_aio.copy_tree(tree, copy)
    assert sorted(os.path.relpath(p, copy) for p in copy.rglob("*")) == sorted(os.path.relpath(p, tree) for p in tree.rglob("*"))
    for path in tree.rglob("*"):
        if path.is_file():
            assert (copy / path.relative_to(tree)).read_bytes() == path.read_bytes()
    (copy / "way out").symlink_to(outside)
    await trio_aio.remove_tree(copy)
    assert not copy.exists()
    assert (outside / "kept").read_bytes() == b"kept"
    await Path(folder / "made").rename(folder / "renamed")
    await Path(folder / "renamed").copy(folder / "made")
    await Path(folder / "renamed").unlink()


async def use_directory(tree: pathlib.Path, *, links: bool) -> None:
    (tree.parent / "secret").write_bytes(b"secret")
    (tree / "out").symlink_to("../secret")
    async with open_directory(tree) as directory:
        for _ in range(3):
            assert await directory.read_bytes("a/one.py") == b"a/one.py"
            assert await directory.read_bytes("a/../a/./one.py") == b"a/one.py"
            assert await directory.stat("a/one.py") == os.stat(tree / "a/one.py")
            assert await directory.stat("link to file", follow_symlinks=False) == os.lstat(tree / "link to file")
            assert await directory.readlink("link to file") == "one.py"
            assert await directory.exists("a")
            assert not await directory.exists("absent")
        async with directory.open("new", "w+b") as file:
            await file.write(b"new")
        assert sorted(await directory.listdir("a")) == sorted(os.listdir(tree / "a"))
        assert {entry.name: entry.is_dir() async for entry in directory.scandir("a")} == {
            entry.name: entry.is_dir() for entry in os.scandir(tree / "a")
        }
        await directory.mkdir("x/y", parents=True)
        await directory.write_bytes("x/y/z", b"z", atomic=True, durable=True)
        await directory.rename("x/y/z", "x/z")
        await directory.link("x/z", "x/same")
        await directory.symlink("z", "x/link")
        await directory.chmod("x/z", 0o600)
        await directory.utime("x/z", ns=(1, 2))
        assert stat.S_IMODE(os.stat(tree / "x/z").st_mode) == 0o600
        await directory.unlink("x/same")
        assert await directory.remove_tree("x") == 4
        async with directory.open_directory("a/e") as below:
            assert sorted(await below.listdir()) == sorted(os.listdir(tree / "a/e"))
        # What leads out is refused; without openat2 so is every link.
        for way in ("../secret", "/etc/hostname", "a/../../secret", "out"):
            codes = (errno.EXDEV,) if way != "out" or links else (errno.ELOOP,)
            calls: list[Callable[[str], Awaitable[Any]]] = [directory.open, directory.stat, directory.read_bytes, directory.listdir]
            for call in calls:
                await fails(codes, lambda call=call, way=way: call(way))  # type: ignore[misc]
            await fails(codes, lambda way=way: directory.write_bytes(way, b""))  # type: ignore[misc]
        if links:
            assert await directory.read_bytes("link to file") == b"one.py"
            assert await directory.read_bytes("link to directory/f/four.py") == b"a/e/f/four.py"
        else:
            for through in ("link to file", "link to directory/f/four.py"):
                await fails((errno.ELOOP,), lambda through=through: directory.read_bytes(through))  # type: ignore[misc]
            await fails((errno.ELOOP,), lambda: directory.mkdir("link to directory/new"))
    (tree / "out").unlink()
    assert (tree.parent / "secret").read_bytes() == b"secret"


async def main(folder: pathlib.Path, *, links: bool) -> None:
    tree, many = folder / "tree", folder / "many"
    tree.mkdir()
    many.mkdir()
    make_tree(tree)
    for number in range(MANY):
        (many / f"name {number}").touch()
    await look(tree)
    await list_all(tree, many)
    await use_files(folder)
    await use_directory(tree, links=links)
    await use_trees(tree, folder)
    names = current_context()._core.names
    print("inline" if names.on else "workers", "local" if names.local_mounts else "none")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--refuse", type=int, nargs=2)
    parser.add_argument("--without-openat2", action="store_true")
    arguments = parser.parse_args()
    if arguments.refuse:
        refuse(*arguments.refuse)
    top = arguments.folder / "every name call"
    top.mkdir()
    try:
        trio.run(lambda: main(top, links=not arguments.without_openat2))
    finally:
        shutil.rmtree(top)
