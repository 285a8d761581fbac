"""Whole files with options: parts, appending, exclusive, atomic and durable writes."""

from __future__ import annotations

import errno
import mmap
import os
import stat
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from trio_aio import AIOContext, Path, open_aio, open_directory, read_bytes, write_bytes, write_text

from ..support.files import make_file
from ..support.page_cache import evict
from ..support.tasks import busy, cancelled_while_blocked
from ..support.trees import outcome

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Awaitable, Callable

pytestmark = [pytest.mark.anyio, pytest.mark.backends("trio", "asyncio")]


@pytest.mark.parametrize("cold", [True, False])
@pytest.mark.parametrize(("offset", "size"), [(0, 0), (0, 10), (5, 10), (5, -1), (9_000, 2_000), (9_990, 100), (20_000, 5), (0, 1 << 40)])
async def test_part_of_a_file_equals_a_slice(disk: pathlib.Path, cold: bool, offset: int, size: int) -> None:
    path, data = make_file(disk, 10_000)
    wanted = data[offset:] if size < 0 else data[offset : offset + size]
    for _ in range(3):
        if cold:
            evict(path)
        assert await read_bytes(path, offset=offset, size=size) == wanted
        buffer = bytearray(b"\xff" * 3_000)
        n = await read_bytes(path, offset=offset, size=size, into=buffer)
        assert n == min(len(wanted), len(buffer))
        assert buffer == wanted[:n] + b"\xff" * (3_000 - n)
        assert await Path(path).read_bytes(offset=offset, size=size) == wanted


async def test_part_of_a_long_file_equals_a_slice(disk: pathlib.Path) -> None:
    path, data = make_file(disk, 3 << 20)
    assert await read_bytes(path, offset=7, size=2 << 20) == data[7 : 7 + (2 << 20)]
    assert await read_bytes(path, offset=7) == data[7:]


async def test_read_into_a_mapped_file_fills_it(disk: pathlib.Path) -> None:
    path, data = make_file(disk, 8192)
    with (disk / "mapped").open("w+b") as file:
        file.truncate(8192)
        with mmap.mmap(file.fileno(), 8192) as memory:
            assert await read_bytes(path, into=memory) == 8192
            assert memory[:] == data


async def test_wrong_ranges_are_refused(disk: pathlib.Path) -> None:
    path, _ = make_file(disk)
    for options in ({"offset": -1}, {"size": -2}):
        with pytest.raises(ValueError, match="negative"):
            await read_bytes(path, **options)  # type: ignore[call-overload]
    for options in ({"atomic": True, "offset": 0}, {"atomic": True, "append": True}, {"append": True, "offset": 0}):
        with pytest.raises(ValueError, match="must not"):
            await write_bytes(disk / "new", b"", **options)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        await read_bytes(path, into=b"read-only")  # type: ignore[call-overload]
    assert os.listdir(disk) == ["file"]


@pytest.mark.parametrize("durable", [True, False])
async def test_write_options_equal_what_they_say(filesystem: pathlib.Path, durable: bool) -> None:
    path = filesystem / "file"
    assert await write_bytes(path, b"0123456789", exclusive=True, durable=durable) == 10
    with pytest.raises(FileExistsError) as caught:
        await write_bytes(path, b"x", exclusive=True, durable=durable)
    assert caught.value.filename == str(path)
    assert await write_bytes(path, b"ab", offset=4, durable=durable) == 2
    assert path.read_bytes() == b"0123ab6789"
    assert await write_bytes(path, b"end", append=True, durable=durable) == 3
    assert path.read_bytes() == b"0123ab6789end"
    assert await write_bytes(filesystem / "sparse", b"x", offset=5, durable=durable) == 1
    assert (filesystem / "sparse").read_bytes() == b"\0\0\0\0\0x"
    assert await write_text(path, "tëxt", encoding="utf-8", append=True, durable=durable) == 4
    assert path.read_text(encoding="utf-8") == "0123ab6789endtëxt"
    assert await write_bytes(filesystem / "mode", b"", mode=0o600) == 0
    assert stat.S_IMODE((filesystem / "mode").stat().st_mode) == 0o600
    assert await write_bytes(path, b"new", durable=durable) == 3
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("durable", [True, False])
async def test_atomic_write_makes_a_new_file(filesystem: pathlib.Path, exclusive: bool, durable: bool) -> None:
    path, options = filesystem / "file", {"atomic": True, "exclusive": exclusive, "durable": durable}
    assert await write_bytes(path, b"first", **options) == 5
    assert path.read_bytes() == b"first"
    if exclusive:
        with pytest.raises(FileExistsError):
            await write_bytes(path, b"second", **options)
        assert path.read_bytes() == b"first"
    else:
        path.chmod(0o640)
        old = path.open("rb")
        assert await write_bytes(path, b"second", **options) == 6
        assert (path.read_bytes(), old.read()) == (b"second", b"first")
        old.close()
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(filesystem) == ["file"]


async def test_atomic_write_keeps_the_owner(disk: pathlib.Path) -> None:
    path, _ = make_file(disk)
    os.chown(path, 1234, 5678)
    await write_bytes(path, b"new", atomic=True)
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 5678)


async def test_atomic_write_replaces_what_a_link_points_to(disk: pathlib.Path) -> None:
    (disk / "folder").mkdir()
    (disk / "folder/target").write_bytes(b"old")
    (disk / "inner").symlink_to("folder/target")
    (disk / "outer").symlink_to(disk / "inner")
    await write_bytes(disk / "outer", b"new", atomic=True)
    assert (disk / "folder/target").read_bytes() == b"new"
    assert (disk / "outer").is_symlink()
    assert sorted(os.listdir(disk / "folder")) == ["target"]
    (disk / "broken").symlink_to("made")
    await write_bytes(disk / "broken", b"new", atomic=True)
    assert (disk / "made").read_bytes() == b"new"
    (disk / "loop").symlink_to("loop")
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        await write_bytes(disk / "loop", b"", atomic=True)


async def test_write_to_what_is_no_file_is_refused(disk: pathlib.Path) -> None:
    os.mkfifo(disk / "fifo")
    for options in ({"atomic": True}, {"append": True}, {"durable": True}):
        with pytest.raises(OSError, match="FIFO"):
            await write_bytes(disk / "fifo", b"x", **options)  # type: ignore[arg-type]
        with pytest.raises(IsADirectoryError):
            await write_bytes(disk, b"x", **options)  # type: ignore[arg-type]
        with pytest.raises(FileNotFoundError):
            await write_bytes(disk / "absent/file", b"x", **options)  # type: ignore[arg-type]
    assert os.listdir(disk) == ["fifo"]


async def test_readers_of_an_atomic_write_see_no_part(disk: pathlib.Path) -> None:
    path = disk / "file"
    contents = {bytes([i]) * 300_000 for i in range(10)}
    path.write_bytes(min(contents))
    seen: set[Any] = set()
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.add(path.read_bytes())

    thread = threading.Thread(target=read)
    thread.start()
    try:
        for data in sorted(contents):
            await write_bytes(path, data, atomic=True)
    finally:
        stop.set()
        thread.join()
    assert seen <= contents


async def test_failed_atomic_write_leaves_the_old_file(on_filesystem: Callable[[str], pathlib.Path]) -> None:
    small = on_filesystem("small_tmpfs")
    (small / "file").write_bytes(b"old")
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as caught:
        await write_bytes(small / "file", bytes(4 << 20), atomic=True)
    assert caught.value.characters_written == 0
    assert (small / "file").read_bytes() == b"old"
    assert os.listdir(small) == ["file"]


async def test_failed_append_says_how_much_was_written(on_filesystem: Callable[[str], pathlib.Path]) -> None:
    small = on_filesystem("small_tmpfs")
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as caught:
        await write_bytes(small / "file", bytes(4 << 20), append=True)
    assert 0 < caught.value.characters_written == (small / "file").stat().st_size


async def test_cancelled_atomic_write_has_no_effect(disk: pathlib.Path) -> None:
    path, data = make_file(disk)
    async with AIOContext(max_workers=1) as context, busy(context):
        assert await cancelled_while_blocked(lambda: write_bytes(path, b"new", atomic=True, context=context))
    assert path.read_bytes() == data
    assert os.listdir(disk) == ["file"]


async def test_write_by_path_is_seen_by_an_open_file(disk: pathlib.Path) -> None:
    path = disk / "file"
    path.write_bytes(b"line\n" * 1000)
    async with open_aio(path) as file:
        assert await file.readline() == b"line\n"
        await write_bytes(path, b"LINE\n", offset=5)
        assert await file.readline() == b"LINE\n"


async def test_context_of_another_run_is_refused(disk: pathlib.Path) -> None:
    path, _ = make_file(disk)
    context = AIOContext()
    with pytest.raises(RuntimeError):
        await read_bytes(path, context=context)
    with pytest.raises(TypeError, match="AIOContext"):
        await read_bytes(path, context=1)  # type: ignore[call-overload]


async def refused(call: Callable[[], Awaitable[Any]]) -> Any:
    """Return what the error of a call is compared by."""
    with pytest.raises(OSError) as caught:  # noqa: PT011 -- the caller compares it
        await call()
    return outcome(caught.value)


ENDS = ["", "/", "//", "/.", "/./", "/..", "/../."]


@pytest.mark.parametrize(
    "name", ["directory", "link to directory", "file", "link to file", "dangling", "absent", "absent/x", "fifo", "loop"]
)
async def test_atomic_write_is_refused_as_a_plain_one(disk: pathlib.Path, name: str) -> None:
    (disk / "directory").mkdir()
    (disk / "file").write_bytes(b"old")
    os.mkfifo(disk / "fifo")
    for link, target in {"link to directory": "directory", "link to file": "file", "dangling": "made", "loop": "loop"}.items():
        (disk / link).symlink_to(target)
    before = sorted(os.listdir(disk))

    async with open_directory(disk) as directory:
        for path in (f"{disk}/{name}{end}" for end in ENDS):
            for each in (path, os.fsencode(path)):
                for durable in (False, True):
                    if path.endswith("absent"):
                        assert await write_bytes(each, b"new", exclusive=True, atomic=True, durable=durable) == 3
                        os.unlink(path)
                        continue
                    call = partial(write_bytes, each, b"new", exclusive=True, durable=durable)
                    assert await refused(partial(call, atomic=True)) == await refused(call)
            if not path.endswith("absent"):
                call = partial(directory.write_bytes, path.removeprefix(f"{disk}/"), b"new")
                assert await refused(partial(call, exclusive=True, atomic=True)) == await refused(partial(call, exclusive=True))
    assert sorted(os.listdir(disk)) == before
    assert (disk / "file").read_bytes() == b"old"


@pytest.mark.parametrize("path", [".", "..", "/", "//", "./"])
async def test_exclusive_write_to_a_directory_without_a_name_says_that_it_exists(
    disk: pathlib.Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.chdir(disk)
    for options in ({}, {"atomic": True}, {"atomic": True, "durable": True}):
        with pytest.raises(FileExistsError) as caught:
            await write_bytes(path, b"x", exclusive=True, **options)  # type: ignore[arg-type]
        assert caught.value.filename == path
        with pytest.raises(IsADirectoryError):
            await write_bytes(path, b"x", **options)  # type: ignore[arg-type]
    assert os.listdir(disk) == []
