"""The calls on files that are open, and those that open them."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

import anyio

import trio_aio
from trio_aio import RWF, AIOContext, open_aio

from .call import BLOCK, END, FAR, LINE, Place, add, aligned, mapped, opened_descriptor

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

# ---- files: positional


async def _chunks(place: Place) -> None:
    async with contextlib.aclosing(place.file.chunks(BLOCK, start=FAR, stop=FAR + 8 * BLOCK)) as chunks:
        async for _ in chunks:
            pass


async def _writer(place: Place) -> None:
    async with place.file.writer(FAR, size=BLOCK) as writer:
        await writer.write(bytes(8 * BLOCK))


async def _dirty(place: Place) -> None:
    await place.file.pwrite(bytes(2 * BLOCK), FAR)


async def _first_blocks(place: Place) -> None:
    for at in (0, 2 * BLOCK):
        await place.file.pread(BLOCK, at)


async def _close(place: Place) -> None:
    await place.file.aclose()


FILE = "AsyncFile."
for _direct in (False, True):
    _word = "direct" if _direct else "buffered"

    def _add(
        name: str,
        make: Callable[[Place], Awaitable[Any]],
        how: str = "",
        mode: str = "r+b",
        of: str = "file",
        before: Any = None,
        _direct: bool = _direct,
        _word: str = _word,
    ) -> None:
        add(FILE + name, make, f"{how}, {_word}" if how else _word, opens=(of, mode, {"direct": _direct}), before=before)

    _add("pread", lambda p: p.file.pread(BLOCK, FAR))
    _add("pread", lambda p: p.file.pread(1000, FAR + 7), "unaligned")
    _add("pread", lambda p: p.file.pread(64 * BLOCK, FAR), "256 KiB")
    _add("pread", lambda p: p.file.pread(300 * BLOCK, 2 * BLOCK + 1), "1.2 MiB")
    _add("pread", lambda p: p.file.pread(BLOCK, 4 * BLOCK), "behind what was read", before=_first_blocks)
    _add("pread", lambda p: p.file.pread(BLOCK, 0), "what was read", before=_first_blocks)
    _add("pread", lambda p: p.file.pread(BLOCK, FAR + BLOCK), "a hole")
    _add("pread", lambda p: p.file.pread(BLOCK, END + BLOCK), "beyond the end")
    _add("pread", lambda p: p.file.pread(BLOCK, FAR, flags=RWF.HIPRI), "flags")
    _add("preadinto", lambda p: p.file.preadinto(aligned(BLOCK), FAR))
    _add("preadinto", lambda p: p.file.preadinto(bytearray(5000), FAR + 3), "unaligned")
    _add("preadinto", lambda p: p.file.preadinto(p.other, FAR), "into mapped memory", before=mapped)
    _add("preadv", lambda p: p.file.preadv([aligned(BLOCK), bytearray(100)], FAR))
    _add("preadv", lambda p: p.file.preadv([aligned(BLOCK), memoryview(p.other)[:100]], FAR), "mapped", before=mapped)
    _add("pwrite", lambda p: p.file.pwrite(aligned(BLOCK), FAR))
    _add("pwrite", lambda p: p.file.pwrite(b"x" * 1000, FAR + 7), "unaligned")
    _add("pwrite", lambda p: p.file.pwrite(bytes(300 * BLOCK), 2 * BLOCK), "1.2 MiB")
    _add("pwrite", lambda p: p.file.pwrite(bytes(BLOCK), FAR + BLOCK), "into a hole")
    _add("pwrite", lambda p: p.file.pwrite(bytes(BLOCK), END), "beyond the end")
    _add("pwrite", lambda p: p.file.pwrite(bytes(BLOCK), FAR, flags=RWF.DSYNC), "DSYNC")
    _add("pwrite", lambda p: p.file.pwrite(p.other, FAR), "mapped", before=mapped)
    _add("pwritev", lambda p: p.file.pwritev([aligned(BLOCK), bytes(100)], FAR))
    _add("pwritev", lambda p: p.file.pwritev([aligned(BLOCK), p.other], FAR), "mapped", before=mapped)
    _add("read_ranges", lambda p: p.file.read_ranges([(0, 100), (FAR, BLOCK), (FAR + 8 * BLOCK, 7)]))
    _add("read_blocks", lambda p: p.file.read_blocks(range(0, 32 * BLOCK, 2 * BLOCK), BLOCK))
    _add("read_blocks", lambda p: p.file.read_blocks([FAR, 0], BLOCK, into=memoryview(p.other)[: 2 * BLOCK]), "mapped", before=mapped)
    _add("write_ranges", lambda p: p.file.write_ranges([(0, b"x"), (FAR, bytes(BLOCK)), (FAR + BLOCK, bytes(BLOCK))]))
    _add("chunks", _chunks)
    _add("writer", _writer)

    # with the cursor

    _add("read", lambda p: p.file.read(), "all", of="whole")
    _add("read", lambda p: p.file.read(1000), "1000 bytes")
    _add("read1", lambda p: p.file.read1(1000))
    _add("readall", lambda p: p.file.readall(), of="whole")
    _add("readinto", lambda p: p.file.readinto(bytearray(1000)))
    _add("readinto", lambda p: p.file.readinto(p.other), "into mapped memory", before=mapped)
    _add("readinto1", lambda p: p.file.readinto1(bytearray(1000)))
    _add("peek", lambda p: p.file.peek(10))
    _add("readline", lambda p: p.file.readline())
    _add("readlines", lambda p: p.file.readlines(), of="text")
    _add("write", lambda p: p.file.write(bytes(BLOCK)))
    _add("write", lambda p: p.file.write(b"x" * 10), "unaligned")
    _add("write", lambda p: p.file.write(p.other), "mapped", before=mapped)
    _add("write", lambda p: p.file.write(b"x" * 10), "appending", mode="ab")
    _add("writelines", lambda p: p.file.writelines([b"one\n", b"two\n"] * 100))
    _add("seek", lambda p: p.file.seek(0, os.SEEK_END), "to the end")
    _add("seek", lambda p: p.file.seek(0, os.SEEK_DATA), "to data")
    _add("seek", lambda p: p.file.seek(0, os.SEEK_HOLE), "to a hole")
    _add("seek", lambda p: p.file.seek(FAR))
    _add("tell", lambda p: p.file.tell())
    _add("truncate", lambda p: p.file.truncate(FAR), "shorter")
    _add("truncate", lambda p: p.file.truncate(END + BLOCK), "longer")
    _add("flush", lambda p: p.file.flush())

    # the file

    _add("size", lambda p: p.file.size())
    _add("stat", lambda p: p.file.stat())
    _add("fsync", lambda p: p.file.fsync())
    _add("fsync", lambda p: p.file.fsync(), "after a write", before=_dirty)
    _add("fdatasync", lambda p: p.file.fdatasync())
    _add("fdatasync", lambda p: p.file.fdatasync(), "after a write", before=_dirty)
    _add("fallocate", lambda p: p.file.fallocate(END, BLOCK))
    _add("aclose", _close)
    _add("aclose", _close, "after a write", before=_dirty)

    async def _shared_read(place: Place) -> None:
        place.file.fileno()
        await place.file.read(100)

    async def _shared_write(place: Place) -> None:
        place.file.fileno()
        await place.file.write(b"x" * 100)

    async def _dropped(place: Place) -> None:
        file = await open_aio(place / "warm", context=place.context)
        await file.pread(10, 0)
        place.other = file

    async def _drop(place: Place) -> None:
        place.other = None

    _add("fileno", _shared_read, "then read")
    _add("fileno", _shared_write, "then write")
    _add("aclose", _drop, "dropped instead", before=_dropped)

    # opening

    def _open(mode: str, direct: bool = _direct) -> Callable[[Place], Awaitable[Any]]:
        return lambda p: p.keep(open_aio(p / ("new" if mode[0] in "wx" else "file"), mode, direct=direct, context=p.context))

    for _mode in ("rb", "r+b", "ab", "wb", "xb"):
        add("open_aio", _open(_mode), f"{_mode}, {_word}")


async def _open_descriptor(place: Place) -> None:
    place.other = os.open(place / "file", os.O_RDWR)


add("open_aio", lambda p: p.keep(open_aio(p.other, "r+b", context=p.context)), "a descriptor", before=_open_descriptor)
add("open_aio", lambda p: p.keep(open_aio(p / "file", opener=os.open, context=p.context)), "an opener")
add("open_aio", lambda p: p.keep(open_aio(p / "truncated", "wb", context=p.context)), "a new name")
add("open_file", lambda p: p.keep(trio_aio.open_file(p / "text", encoding="utf-8", context=p.context)))


async def _adopt(place: Place) -> None:
    await _open_descriptor(place)
    place.file = await place.keep(open_aio(place.other, "r+b", context=place.context))


add(FILE + "read", lambda p: p.file.read(100), "an adopted descriptor", before=_adopt)
add(FILE + "readline", lambda p: p.file.readline(), "an adopted descriptor", before=_adopt)
add(FILE + "write", lambda p: p.file.write(b"x" * 100), "an adopted descriptor", before=_adopt)
add(FILE + "seek", lambda p: p.file.seek(100), "an adopted descriptor", before=_adopt)
add(FILE + "tell", lambda p: p.file.tell(), "an adopted descriptor", before=_adopt)

# ---- text

TEXT = "AsyncTextFile."


def _add_text(name: str, make: Callable[[Place], Awaitable[Any]], how: str = "", before: Any = None) -> None:
    add(TEXT + name, make, how, opens=("text", "r+", {"encoding": "utf-8"}), before=before)


async def _tell(place: Place) -> None:
    await place.file.read(10)
    place.other = await place.file.tell()


_add_text("read", lambda p: p.file.read())
_add_text("read", lambda p: p.file.read(100), "100 characters")
_add_text("readline", lambda p: p.file.readline())
_add_text("readlines", lambda p: p.file.readlines())
_add_text("write", lambda p: p.file.write(LINE))
_add_text("writelines", lambda p: p.file.writelines([LINE] * 10))
_add_text("tell", lambda p: p.file.tell(), before=_tell)
_add_text("seek", lambda p: p.file.seek(p.other), before=_tell)
_add_text("seek", lambda p: p.file.seek(0, os.SEEK_END), "to the end")
_add_text("truncate", lambda p: p.file.truncate(10))
_add_text("flush", lambda p: p.file.flush())
_add_text("aclose", _close)

# ---- streams


async def _open_streams(place: Place) -> None:
    place.file = await place.keep(trio_aio.FileReadStream.from_path(place / "file", context=place.context))
    place.other = await place.keep(trio_aio.FileWriteStream.from_path(place / "new", context=place.context))


add("FileReadStream.from_path", lambda p: p.keep(trio_aio.FileReadStream.from_path(p / "file", context=p.context)))
add("FileReadStream.receive", lambda p: p.file.receive(), before=_open_streams)
add("FileReadStream.seek", lambda p: p.file.seek(0, os.SEEK_END), before=_open_streams)
add("FileReadStream.tell", lambda p: p.file.tell(), before=_open_streams)
add("FileReadStream.aclose", lambda p: p.file.aclose(), before=_open_streams)
add("FileWriteStream.from_path", lambda p: p.keep(trio_aio.FileWriteStream.from_path(p / "new", context=p.context)))
add("FileWriteStream.send", lambda p: p.other.send(bytes(BLOCK)), before=_open_streams)
add("FileWriteStream.aclose", lambda p: p.other.aclose(), before=_open_streams)

# ---- contexts


async def _abandon(place: Place) -> None:
    """Leave a context while an abandoned read is in flight."""
    async with AIOContext() as context:
        file = await open_aio(place / "file", abandon_on_cancel=True, context=context)
        with anyio.move_on_after(0.01):
            await file.pread(BLOCK, FAR)
        await file.aclose()


add("AIOContext.pread", lambda p: p.context.pread(p.other, BLOCK, FAR), before=opened_descriptor)
add("AIOContext.preadinto", lambda p: p.context.preadinto(p.other, bytearray(100), FAR), before=opened_descriptor)
add("AIOContext.pwrite", lambda p: p.context.pwrite(p.other, bytes(BLOCK), FAR), before=opened_descriptor)
add("AIOContext.fsync", lambda p: p.context.fsync(p.other), before=opened_descriptor)
add("AIOContext.fdatasync", lambda p: p.context.fdatasync(p.other), before=opened_descriptor)
add("AIOContext.poll", lambda p: p.context.poll(p.other, 1), before=opened_descriptor)
add("AIOContext.aclose", _abandon, "after an abandoned read")
