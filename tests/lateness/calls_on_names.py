"""The calls on whole files, names, trees and directories, and temporary files."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

import trio_aio
from trio_aio import open_directory

from .call import BLOCK, LINE, Place, add, all_of, mapped, opened_descriptor

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

# ---- whole files

add("read_bytes", lambda p: trio_aio.read_bytes(p / "whole", context=p.context))
add("read_bytes", lambda p: trio_aio.read_bytes(p / "small", context=p.context), "small")
add("read_bytes", lambda p: trio_aio.read_bytes(p / "whole", offset=BLOCK, size=100, context=p.context), "part")
add("read_bytes", lambda p: trio_aio.read_bytes(p / "small", into=p.other, context=p.context), "into mapped memory", before=mapped)
add("read_text", lambda p: trio_aio.read_text(p / "text", "utf-8", context=p.context))
add("write_bytes", lambda p: trio_aio.write_bytes(p / "whole", bytes(BLOCK), context=p.context))
add("write_bytes", lambda p: trio_aio.write_bytes(p / "new", p.other, context=p.context), "mapped", before=mapped)
for _option in ("append", "exclusive", "atomic", "durable"):
    _name = "new" if _option == "exclusive" else "whole"
    add("write_bytes", lambda p, o=_option, n=_name: trio_aio.write_bytes(p / n, bytes(BLOCK), **{o: True}, context=p.context), _option)
add("write_bytes", lambda p: trio_aio.write_bytes(p / "whole", b"x", offset=BLOCK, context=p.context), "offset")
add("write_text", lambda p: trio_aio.write_text(p / "text", LINE, "utf-8", context=p.context))
add("copy_file", lambda p: trio_aio.copy_file(p / "small", p / "new", context=p.context))
add("copy_tree", lambda p: trio_aio.copy_tree(p / "sub", p / "new", context=p.context))
add("remove_tree", lambda p: trio_aio.remove_tree(p / "sub", context=p.context))
add("read_files", lambda p: all_of(trio_aio.read_files([p / name for name in ("small", "whole", "link")], context=p.context)))
add("scandir", lambda p: all_of(trio_aio.scandir(p / "sub", context=p.context)))
add("scandir", lambda p: all_of(trio_aio.scandir(p / "sub", stat=True, context=p.context)), "with stat")
add("walk", lambda p: all_of(trio_aio.walk(p / "sub", context=p.context)))

# ---- temporary files


async def _temporary(place: Place, kind: Any, **options: Any) -> None:
    async with kind(dir=place.folder, context=place.context, **options) as made:
        if kind is not trio_aio.TemporaryDirectory:
            await made.write(b"x")


async def _make_temporary(place: Place) -> None:
    fd, _ = await trio_aio.mkstemp(dir=place.folder, context=place.context)
    place.later(lambda: os.close(fd))


async def _spool(place: Place) -> None:
    place.file = trio_aio.SpooledTemporaryFile(dir=place.folder, context=place.context)
    await place.file.write(b"some bytes\n" * 10)
    place.later(place.file.aclose)


async def _roll(place: Place) -> None:
    await _spool(place)
    await place.file.rollover()
    await place.file.seek(0)


async def _make_directory(place: Place) -> None:
    place.other = trio_aio.TemporaryDirectory(dir=place.folder, context=place.context)
    await place.other.__aenter__()


add("TemporaryFile", lambda p: _temporary(p, trio_aio.TemporaryFile))
add("TemporaryFile", lambda p: _temporary(p, trio_aio.TemporaryFile, direct=True), "direct")
add("NamedTemporaryFile", lambda p: _temporary(p, trio_aio.NamedTemporaryFile))
add("TemporaryDirectory", lambda p: _temporary(p, trio_aio.TemporaryDirectory))
add("TemporaryDirectory.cleanup", lambda p: p.other.cleanup(), before=_make_directory)
add("mkdtemp", lambda p: trio_aio.mkdtemp(dir=str(p.folder), context=p.context))
add("mkstemp", _make_temporary)
add("gettempdir", lambda p: trio_aio.gettempdir(context=p.context))
add("gettempdirb", lambda p: trio_aio.gettempdirb(context=p.context))
add("SpooledTemporaryFile.rollover", lambda p: p.file.rollover(), before=_spool)
for _name, _arguments in {
    "read": (),
    "read1": (5,),
    "readinto": (bytearray(5),),
    "readinto1": (bytearray(5),),
    "readline": (),
    "readlines": (),
    "write": (b"x",),
    "writelines": ([b"x", b"y"],),
    "seek": (0, os.SEEK_END),
    "tell": (),
    "truncate": (5,),
    "flush": (),
    "aclose": (),
}.items():
    add(f"SpooledTemporaryFile.{_name}", lambda p, n=_name, a=_arguments: getattr(p.file, n)(*a), before=_roll)  # type: ignore[misc]

# ---- paths


def _add_path(name: str, *arguments: Any, of: str = "small", how: str = "", **options: Any) -> None:
    add(f"Path.{name}", lambda p: getattr(p.path(of), name)(*arguments, **options), how)


for _name in ("stat", "lstat", "exists", "is_dir", "is_file", "is_symlink", "is_socket", "is_fifo", "is_block_device", "is_char_device"):
    _add_path(_name)
for _name in ("is_junction", "is_mount", "absolute", "resolve", "owner", "group", "read_bytes", "read_text", "touch", "unlink"):
    _add_path(_name)
_add_path("stat", of="link", how="a link")
_add_path("stat", of="sub/a/two.py", how="two directories deeper")
_add_path("exists", of="absent", how="no")
_add_path("resolve", of="link", how="a link")
_add_path("readlink", of="link")
_add_path("write_bytes", b"x")
_add_path("write_text", "x")
_add_path("touch", of="new", how="a new name")
_add_path("mkdir", of="new")
_add_path("rmdir", of="empty")
_add_path("chmod", 0o600)
_add_path("lchmod", 0o600)
_add_path("symlink_to", "small", of="new")
_add_path("remove_tree", of="sub")
add("Path.samefile", lambda p: p.path("small").samefile(p / "link"))
add("Path.rename", lambda p: p.path("small").rename(p / "new"))
add("Path.replace", lambda p: p.path("small").replace(p / "new"))
add("Path.hardlink_to", lambda p: p.path("new").hardlink_to(p / "small"))
add("Path.copy", lambda p: p.path("small").copy(p / "new"))
add("Path.copy_into", lambda p: p.path("small").copy_into(p / "empty"))
add("Path.move", lambda p: p.path("small").move(p / "new"))
add("Path.move_into", lambda p: p.path("small").move_into(p / "empty"))
add("Path.open", lambda p: p.keep(p.path("small").open("rb")))
for _name, _arguments in {"iterdir": (), "glob": ("*/*.py",), "rglob": ("*.py",), "walk": (), "scandir": ()}.items():
    add(f"Path.{_name}", lambda p, n=_name, a=_arguments: all_of(getattr(p.path("sub"), n)(*a)))  # type: ignore[misc]

# ---- os


def _add_os(name: str, *arguments: Any, of: str = "small", how: str = "", before: Any = None, **options: Any) -> None:
    add(f"os.{name}", lambda p: getattr(trio_aio.os, name)(p / of, *arguments, context=p.context, **options), how, before=before)


def _add_two(name: str, source: str, target: str) -> None:
    add(f"os.{name}", lambda p: getattr(trio_aio.os, name)(p / source, p / target, context=p.context))


async def _make_dirs(place: Place) -> None:
    (place / "sub/x/y").mkdir(parents=True)


async def _open_two(place: Place) -> None:
    place.other = [os.open(place / name, os.O_RDONLY) for name in ("file", "other")]
    for fd in place.other:
        place.later(partial(os.close, fd))


async def _entry(place: Place) -> None:
    place.other = (await all_of(trio_aio.os.scandir(place / "sub", context=place.context)))[0]


for _name in ("stat", "lstat", "statvfs", "remove", "unlink", "utime", "listxattr"):
    _add_os(_name)
_add_os("stat", of="link", how="a link")
_add_os("stat", of="absent/x", how="no such directory")
_add_os("access", os.R_OK)
_add_os("readlink", of="link")
_add_os("mkdir", of="new")
_add_os("makedirs", of="new/x/y")
_add_os("rmdir", of="empty")
_add_os("chmod", 0o600)
_add_os("chown", os.getuid(), -1)
_add_os("lchown", os.getuid(), -1)
_add_os("truncate", 10)
_add_os("mkfifo", of="new")
_add_os("mknod", of="new")
_add_os("sync_directory", of="sub")
_add_os("listdir", of="sub")
_add_os("getxattr", "user.name")
_add_os("setxattr", "user.other", b"x")
_add_os("removexattr", "user.name")
_add_two("rename", "small", "new")
_add_two("replace", "small", "new")
_add_two("renames", "sub/one.py", "newly/one.py")
_add_two("link", "small", "new")
add("os.symlink", lambda p: trio_aio.os.symlink("small", p / "new", context=p.context))
add("os.getcwd", lambda p: trio_aio.os.getcwd(context=p.context))
add("os.removedirs", lambda p: trio_aio.os.removedirs(p / "sub/x/y", context=p.context), before=_make_dirs)
add("os.scandir", lambda p: all_of(trio_aio.os.scandir(p / "sub", context=p.context)))
add("os.scandir", lambda p: p.other.stat(), "stat of an entry", before=_entry)
add("os.walk", lambda p: all_of(trio_aio.os.walk(p / "sub", context=p.context)))


def _add_os_path(name: str, how: str = "", of: str = "small") -> None:
    add(f"os.path.{name}", lambda p: getattr(trio_aio.os.path, name)(p / of, context=p.context), how)


for _name in ("abspath", "exists", "getatime", "getctime", "getmtime", "getsize", "isdir", "isfile", "ismount", "lexists", "realpath"):
    _add_os_path(_name)
_add_os_path("islink", of="link")
_add_os_path("realpath", "a link", of="link")
add("os.path.samefile", lambda p: trio_aio.os.path.samefile(p / "small", p / "link", context=p.context))
add("os.path.sameopenfile", lambda p: trio_aio.os.path.sameopenfile(*p.other, context=p.context), before=_open_two)
add("os.stat", lambda p: trio_aio.os.stat(p.other, context=p.context), "a descriptor", before=opened_descriptor)

# ---- directories


def _add_directory(name: str, make: Callable[[Place], Awaitable[Any]], how: str = "") -> None:
    async def before(place: Place) -> None:
        place.file = await place.keep(open_directory(place / "sub", context=place.context))

    add(f"AsyncDirectory.{name}", make, how, before=before)


add("open_directory", lambda p: p.keep(open_directory(p / "sub", context=p.context)))
_add_directory("stat", lambda p: p.file.stat())
_add_directory("stat", lambda p: p.file.stat("a/two.py"), "a name")
_add_directory("exists", lambda p: p.file.exists("a/two.py"))
_add_directory("open", lambda p: p.keep(p.file.open("one.py")))
_add_directory("read_bytes", lambda p: p.file.read_bytes("one.py"))
_add_directory("read_text", lambda p: p.file.read_text("one.py"))
_add_directory("write_bytes", lambda p: p.file.write_bytes("new", b"x"))
_add_directory("write_bytes", lambda p: p.file.write_bytes("one.py", b"x", atomic=True, durable=True), "atomic, durable")
_add_directory("write_text", lambda p: p.file.write_text("new", "x"))
_add_directory("listdir", lambda p: p.file.listdir("a"))
_add_directory("scandir", lambda p: all_of(p.file.scandir("a")))
_add_directory("walk", lambda p: all_of(p.file.walk()))
_add_directory("mkdir", lambda p: p.file.mkdir("x/y", parents=True))
_add_directory("unlink", lambda p: p.file.unlink("one.py"))
_add_directory("rename", lambda p: p.file.rename("one.py", "new"))
_add_directory("link", lambda p: p.file.link("one.py", "new"))
_add_directory("symlink", lambda p: p.file.symlink("one.py", "new"))
_add_directory("chmod", lambda p: p.file.chmod("one.py", 0o600))
_add_directory("utime", lambda p: p.file.utime("one.py"))
_add_directory("remove_tree", lambda p: p.file.remove_tree("a"))
_add_directory("open_directory", lambda p: p.keep(p.file.open_directory("a")))
_add_directory("sync", lambda p: p.file.sync())
_add_directory("aclose", lambda p: p.file.aclose())


async def _open_root(place: Place) -> None:
    place.file = await place.keep(open_directory(place.folder, context=place.context))


add("AsyncDirectory.readlink", lambda p: p.file.readlink("link"), before=_open_root)
add("AsyncDirectory.rmdir", lambda p: p.file.rmdir("empty"), before=_open_root)
