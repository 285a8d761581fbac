"""`trio_aio.os` and `trio_aio.os.path`, compared with the modules that they are named after."""

# What the calls are compared with blocks, and that is fine here.
# ruff: noqa: ASYNC240

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import trio_aio
from trio_aio import current_context

from ..conftest import need
from ..support.files import opened
from ..support.tasks import busy, cancelled_while_blocked
from ..support.trees import make_tree, outcome

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

pytestmark = [pytest.mark.anyio, pytest.mark.backends("trio", "asyncio")]

NAMES = (
    "one.py",
    "a",
    "link to file",
    "link to directory",
    "broken",
    "loop",
    "fifo",
    "absent",
    "absent/x",
    "one.py/x",
    "",
    "a/",
    "./a/../a",
)


async def result(call: Callable[..., Awaitable[Any]], *arguments: Any, **options: Any) -> Any:
    try:
        return await call(*arguments, **options)
    except Exception as error:
        return outcome(error)


def plain_result(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    try:
        return call(*arguments, **options)
    except Exception as error:
        return outcome(error)


def all_of(status: os.stat_result) -> dict[str, Any]:
    return {name: getattr(status, name) for name in dir(status) if name.startswith("st_") and name not in ("st_atime", "st_atime_ns")}


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return make_tree(tmp_path)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("as_bytes", [False, True])
async def test_looking_equals_os(tree: Path, name: str, as_bytes: bool) -> None:
    path: Any = os.fsencode(name) if as_bytes else name
    for _ in range(3):  # by a worker, then inline
        for call in ("stat", "lstat"):
            wanted, got = plain_result(getattr(os, call), path), await result(getattr(trio_aio.os, call), path)
            assert got == wanted
            if isinstance(wanted, os.stat_result):
                assert all_of(got) == all_of(wanted)
        assert await result(trio_aio.os.readlink, path) == plain_result(os.readlink, path)
        for mode in (os.F_OK, os.R_OK, os.W_OK, os.X_OK):
            assert await trio_aio.os.access(path, mode) == os.access(path, mode)
        for call in ("exists", "lexists", "isfile", "isdir", "islink", "ismount", "getsize", "getmtime", "getctime"):
            wanted = plain_result(getattr(os.path, call), path)
            assert await result(getattr(trio_aio.os.path, call), path) == wanted, call
        assert await trio_aio.os.path.realpath(path) == os.path.realpath(path)
        assert await trio_aio.os.path.abspath(path) == os.path.abspath(path)


async def test_readlink_of_an_empty_name_is_that_of_the_descriptor(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    with opened(tmp_path / "link", os.O_PATH | os.O_NOFOLLOW) as fd, opened(tmp_path, os.O_PATH) as folder:
        for name in ("", b""):
            assert await trio_aio.os.readlink(name, dir_fd=fd) == os.readlink(name, dir_fd=fd)
            for dir_fd in (None, folder):
                assert await result(trio_aio.os.readlink, name, dir_fd=dir_fd) == plain_result(os.readlink, name, dir_fd=dir_fd)


async def test_stat_on_each_filesystem_equals_os(filesystem: Path) -> None:
    make_tree(filesystem)
    for _ in range(3):
        for name in ("one.py", "a", "link to file", "broken", "absent", "a/e/f/four.py"):
            path = filesystem / name
            for follow in (True, False):
                wanted = plain_result(os.stat, path, follow_symlinks=follow)
                got = await result(trio_aio.os.stat, path, follow_symlinks=follow)
                assert got == wanted
                if isinstance(wanted, os.stat_result):
                    assert all_of(got) == all_of(wanted)


async def test_stat_of_descriptor_and_relative_to_one_equals_os(tree: Path) -> None:
    fd = os.open(tree / "a", os.O_RDONLY)
    try:
        assert await trio_aio.os.stat(fd) == os.stat(fd)
        assert await trio_aio.os.stat("one.py", dir_fd=fd) == os.stat("one.py", dir_fd=fd)
        assert sorted(await trio_aio.os.listdir(fd)) == sorted(os.listdir(fd))
        assert await trio_aio.os.path.sameopenfile(fd, fd)
        await trio_aio.os.mkdir("made", dir_fd=fd)
        await trio_aio.os.rename("made", "moved", src_dir_fd=fd, dst_dir_fd=fd)
        assert (tree / "a/moved").is_dir()
        await trio_aio.os.rmdir("moved", dir_fd=fd)
        ours, theirs = await trio_aio.os.statvfs(fd), os.statvfs(fd)  # what is free changes all the time
        for field in ("f_bsize", "f_frsize", "f_blocks", "f_files", "f_flag", "f_namemax", "f_fsid"):
            assert getattr(ours, field) == getattr(theirs, field)
    finally:
        os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        await trio_aio.os.stat(fd)


CHANGES: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("mkdir", ("new",), {"mode": 0o750}),
    ("mkdir", ("a",), {}),
    ("mkdir", ("absent/new",), {}),
    ("makedirs", ("a/new/er/est",), {}),
    ("makedirs", ("a/d",), {}),
    ("makedirs", ("a/d",), {"exist_ok": True}),
    ("makedirs", ("one.py",), {"exist_ok": True}),
    ("makedirs", ("one.py/x/y",), {}),
    ("makedirs", ("deep//er/",), {}),
    ("makedirs", ("dot/.",), {}),
    ("makedirs", ("one.py/.",), {}),
    ("makedirs", ("a/" + "x" * 256 + "/new",), {}),
    ("makedirs", ("loop/new/er",), {}),
    ("rmdir", ("empty",), {}),
    ("rmdir", ("a",), {}),
    ("rmdir", ("one.py",), {}),
    ("removedirs", ("b/d",), {}),
    ("removedirs", ("empty",), {}),
    ("unlink", ("one.py",), {}),
    ("unlink", ("broken",), {}),
    ("unlink", ("a",), {}),
    ("remove", ("absent",), {}),
    ("rename", ("one.py", "moved"), {}),
    ("rename", ("one.py", "a/two.txt"), {}),
    ("rename", ("absent", "x"), {}),
    ("rename", ("one.py", "a"), {}),
    ("replace", ("a/one.py", "one.py"), {}),
    ("renames", ("b/d/five", "new/place/five"), {}),
    ("renames", ("absent", "new/place"), {}),
    ("renames", ("one.py", "a/two.txt/x"), {}),
    ("link", ("one.py", "same"), {}),
    ("link", ("link to file", "same"), {}),
    ("link", ("one.py", "a"), {}),
    ("symlink", ("any thing", "new link"), {}),
    ("symlink", ("x", "broken"), {}),
    ("chmod", ("one.py", 0o640), {}),
    ("chmod", ("link to file", 0o600), {}),
    ("chmod", ("absent", 0o600), {}),
    ("utime", ("one.py",), {"ns": (123456789, -987654321)}),
    ("utime", ("one.py", (1.5, 2.25)), {}),
    ("utime", ("one.py", (-1.5, 7)), {}),
    ("utime", ("link to file",), {"ns": (1, 2), "follow_symlinks": False}),
    ("utime", ("absent",), {}),
    ("truncate", ("one.py", 2), {}),
    ("truncate", ("one.py", 100), {}),
    ("truncate", ("a", 1), {}),
    ("mkfifo", ("new fifo",), {}),
    ("mkfifo", ("fifo",), {}),
    ("mknod", ("new file",), {}),
    ("chown", ("one.py", -1, -1), {}),
    ("lchown", ("absent", 0, 0), {}),
]


def snapshot(top: Path) -> dict[str, Any]:
    found = {}
    for folder, directories, files in os.walk(top):
        for name in (*directories, *files):
            path = os.path.join(folder, name)
            status = os.lstat(path)
            whole = stat.S_ISREG(status.st_mode) and Path(path).read_bytes()
            # Times that a call has set. The kernel changes the access time of a link that is followed.
            access = None if stat.S_ISLNK(status.st_mode) else status.st_atime_ns
            times = (access, status.st_mtime_ns) if status.st_mtime_ns < 10**18 else None
            found[os.path.relpath(path, top)] = (status.st_mode, status.st_nlink, whole, times, os.path.islink(path) and os.readlink(path))
    return found


@pytest.mark.parametrize(("call", "arguments", "options"), CHANGES, ids=lambda value: value if isinstance(value, str) else None)
async def test_change_equals_os(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for top in (ours, theirs):
        top.mkdir()
        make_tree(top)
    monkeypatch.chdir(theirs)
    wanted = plain_result(getattr(os, call), *arguments, **options)
    monkeypatch.chdir(ours)
    got = await result(getattr(trio_aio.os, call), *arguments, **options)
    if wanted is not None and wanted[2] is None:  # the error of os.mkfifo, and up to Python 3.10 of os.utime, has no name
        wanted = (*wanted[:2], arguments[0], None)
    assert got == wanted
    assert snapshot(ours) == snapshot(theirs)


async def test_rename_exclusive_leaves_an_existing_target(filesystem: Path) -> None:
    (filesystem / "a").write_text("a")
    (filesystem / "b").write_text("b")
    with pytest.raises(FileExistsError) as caught:
        await trio_aio.os.rename(filesystem / "a", filesystem / "b", exclusive=True)
    assert (caught.value.filename, caught.value.filename2) == (str(filesystem / "a"), str(filesystem / "b"))
    assert (filesystem / "b").read_text() == "b"
    await trio_aio.os.rename(filesystem / "a", filesystem / "b", exchange=True)
    assert ((filesystem / "a").read_text(), (filesystem / "b").read_text()) == ("b", "a")
    await trio_aio.os.rename(filesystem / "a", filesystem / "c", exclusive=True)
    assert (filesystem / "c").read_text() == "b"


async def test_rename_refuses_both_flags(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must not both"):
        await trio_aio.os.rename(tmp_path, tmp_path, exclusive=True, exchange=True)


async def test_extended_attributes_equal_os(on_filesystem: Callable[[str], Path]) -> None:
    path = on_filesystem("ext4") / "file"
    path.write_text("")
    for value in (b"", b"short", b"long" * 800):
        await trio_aio.os.setxattr(path, "user.name", value)
        assert await trio_aio.os.getxattr(path, "user.name") == os.getxattr(path, "user.name") == value
    await trio_aio.os.setxattr(path, b"user.other", bytearray(b"x"))
    assert sorted(await trio_aio.os.listxattr(path)) == sorted(os.listxattr(path))
    with pytest.raises(FileExistsError):
        await trio_aio.os.setxattr(path, "user.name", b"", os.XATTR_CREATE)
    await trio_aio.os.removexattr(path, "user.name")
    with pytest.raises(OSError, match=os.strerror(errno.ENODATA)):
        await trio_aio.os.getxattr(path, "user.name")


async def test_sync_directory_takes_directories_only(tmp_path: Path) -> None:
    await trio_aio.os.sync_directory(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        await trio_aio.os.sync_directory(tmp_path / "file")


async def test_wrong_arguments_are_refused_before_anything_runs(tmp_path: Path) -> None:
    calls: list[tuple[type[Exception], Callable[[], Any]]] = [
        (ValueError, lambda: trio_aio.os.stat("a\0b")),
        (ValueError, lambda: trio_aio.os.mkdir(b"a\0b")),
        (ValueError, lambda: trio_aio.os.rename(tmp_path / "x", "a\0b")),
        (ValueError, lambda: trio_aio.os.truncate(tmp_path, -1)),
        (ValueError, lambda: trio_aio.os.stat(1, dir_fd=2)),
        (ValueError, lambda: trio_aio.os.utime(tmp_path, (1, 2), ns=(1, 2))),
        (TypeError, lambda: trio_aio.os.lstat(3)),  # type: ignore[arg-type]
        (TypeError, lambda: trio_aio.os.stat(None)),  # type: ignore[arg-type]
        (OverflowError, lambda: trio_aio.os.stat(1 << 40)),
    ]
    for kind, call in calls:
        with pytest.raises(kind):
            await call()
    assert list(tmp_path.iterdir()) == []


async def test_getcwd_equals_os() -> None:
    assert await trio_aio.os.getcwd() == os.getcwd()


async def test_change_cancelled_in_the_queue_has_no_effect(tmp_path: Path) -> None:
    async with trio_aio.AIOContext(max_workers=1) as context, busy(context):
        assert await cancelled_while_blocked(lambda: trio_aio.os.mkdir(tmp_path / "new", context=context))
    assert list(tmp_path.iterdir()) == []


async def test_truncate_is_seen_by_an_open_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"line\n" * 1000)
    async with trio_aio.open_aio(path) as file:
        assert await file.readline() == b"line\n"
        await trio_aio.os.truncate(path, 7)
        assert await file.readall() == b"li"


async def test_many_calls_leave_no_descriptor(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    before = len(os.listdir("/proc/self/fd"))
    context = current_context()
    for _ in range(2000):
        await trio_aio.os.stat(tmp_path / "file")
        await trio_aio.os.path.exists(tmp_path / "absent")
    for _ in range(200):
        await trio_aio.os.listdir(tmp_path)
    assert len(os.listdir("/proc/self/fd")) <= before + 3  # the context's own
    assert context.statistics().in_flight == 0


async def test_makedirs_names_the_directory_that_a_user_may_not_make(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need(os.geteuid() == 0, "root, to become nobody for a while")
    (disk / "closed/inner").mkdir(parents=True)
    (disk / "closed").chmod(0o700)
    (disk / "read only").mkdir()
    monkeypatch.chdir(disk)
    os.seteuid(65534)  # of all threads
    try:
        for name in ("closed/new/er", "closed/inner/new", "read only/new/er", "closed/.", "closed/inner/."):
            for exist_ok in (False, True):
                wanted = plain_result(os.makedirs, name, exist_ok=exist_ok)
                assert isinstance(wanted, tuple)
                assert await result(trio_aio.os.makedirs, name, exist_ok=exist_ok) == wanted
    finally:
        os.seteuid(0)


# ---- names in errors


PLAIN = {
    "stat": (),
    "lstat": (),
    "unlink": (),
    "rmdir": (),
    "readlink": (),
    "chmod": (0o600,),
    "mkdir": (),
    "listdir": (),
    "scandir": (),
    "truncate": (3,),
    "statvfs": (),
    "removedirs": (),
    "chown": (1, 1),
}


@pytest.mark.parametrize("call", PLAIN)
async def test_error_has_the_path_as_text_as_with_os(tmp_path: Path, call: str) -> None:
    for path in (tmp_path / "absent/x", trio_aio.Path(tmp_path / "absent/x"), os.fsencode(tmp_path / "absent/x")):
        with pytest.raises(FileNotFoundError) as wanted:
            getattr(os, call)(path, *PLAIN[call])
        with pytest.raises(FileNotFoundError) as caught:
            await getattr(trio_aio.os, call)(path, *PLAIN[call])
        assert caught.value.filename == wanted.value.filename
        assert type(caught.value.filename) is type(wanted.value.filename)


@pytest.mark.parametrize("call", ["rename", "replace", "link", "symlink", "renames"])
async def test_error_has_both_paths_as_text_as_with_os(tmp_path: Path, call: str) -> None:
    paths = tmp_path / "absent/x", tmp_path / "nowhere/y"
    if call == "renames":
        (tmp_path / "nowhere").mkdir()
    with pytest.raises(FileNotFoundError) as wanted:
        getattr(os, call)(*paths)
    with pytest.raises(FileNotFoundError) as caught:
        await getattr(trio_aio.os, call)(*paths)
    assert (caught.value.filename, caught.value.filename2) == (wanted.value.filename, wanted.value.filename2)


@pytest.mark.parametrize("call", ["stat", "chmod", "statvfs", "chown"])
async def test_error_of_a_descriptor_has_its_number_as_with_os(call: str) -> None:
    with pytest.raises(OSError, match="Bad file descriptor") as wanted:
        getattr(os, call)(1 << 20, *PLAIN[call])
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        await getattr(trio_aio.os, call)(1 << 20, *PLAIN[call])
    assert caught.value.filename == wanted.value.filename == 1 << 20


async def test_error_of_a_path_has_it_as_text_as_with_pathlib(tmp_path: Path) -> None:
    ours, theirs = trio_aio.Path(tmp_path / "absent/x"), tmp_path / "absent/x"

    async def listed() -> None:
        async for _ in ours.iterdir():
            pass

    for call in ("stat", "unlink", "rmdir", "readlink", "mkdir", "touch", "read_bytes", "open", "iterdir", "owner"):
        with pytest.raises(FileNotFoundError) as wanted:
            list(theirs.iterdir()) if call == "iterdir" else getattr(theirs, call)()
        with pytest.raises(FileNotFoundError) as caught:
            await (listed() if call == "iterdir" else getattr(ours, call)())
        assert caught.value.filename == wanted.value.filename == str(theirs)


# ---- arguments and answers that os refuses


@pytest.mark.parametrize("call", ["stat", "unlink", "mkdir", "access", "readlink", "chmod"])
async def test_directory_must_be_an_integer(tree: Path, call: str) -> None:
    with opened(tree, os.O_RDONLY) as fd, pytest.raises(TypeError, match="integer"):
        await getattr(trio_aio.os, call)("one.py", *({"access": (0,), "chmod": (0o600,)}.get(call, ())), dir_fd=fd + 0.5)
    assert (tree / "one.py").exists()


async def test_mode_of_a_link_is_refused_as_os_does(tree: Path) -> None:
    path: Any = "link to file"
    with opened(tree, os.O_RDONLY) as fd:
        for options, error in (({}, NotImplementedError), ({"dir_fd": fd}, ValueError)):
            with pytest.raises(error):
                os.chmod(path, 0o600, follow_symlinks=False, **options)  # type: ignore[arg-type]
            with pytest.raises(error):
                await trio_aio.os.chmod(path, 0o600, follow_symlinks=False, **options)  # type: ignore[arg-type]
    for attempt in (trio_aio.Path(path).lchmod(0o600), trio_aio.Path(path).chmod(0o600, follow_symlinks=False)):
        with pytest.raises(NotImplementedError):
            await attempt
    await trio_aio.Path("one.py").chmod(0o640, follow_symlinks=False)
    assert stat.S_IMODE(os.stat("one.py").st_mode) == 0o640


@pytest.mark.parametrize("target", ["broken/x", "broken/x/y", "loop/x", "one.py/x", "absent/deep/x"])
async def test_renames_below_a_link_that_leads_nowhere_equals_os(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    outcomes = []
    for name in ("theirs", "ours"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(make_tree(tmp_path / name))
        if name == "theirs":
            outcomes.append(plain_result(os.renames, "a", target))
        else:
            outcomes.append(await result(trio_aio.os.renames, "a", target))
    assert outcomes[0] == outcomes[1]
