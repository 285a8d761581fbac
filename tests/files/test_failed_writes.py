"""Writes that fail half way: what the file has, where the cursor is, what the error says, and how to continue."""

from __future__ import annotations

import array
import errno
import os
import resource
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from trio_aio import AIOContext, open_aio
from trio_aio.testing import FaultyContext

from ..support.files import BLOCK

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.backends("trio", "asyncio")]

TEXT = "ä€\n" * 100_000


@contextmanager
def full_at(size: int) -> Iterator[None]:
    """Let no file grow beyond `size` bytes, as on a full disk."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@contextmanager
def opened_as(path: Path, how: str, mode: str) -> Iterator[tuple[Any, Any]]:
    """Yield what to pass to `open_aio` as file, and what to call when it is open: by its path, adopted, or given away."""
    if how == "adopted":
        flags = os.O_RDWR | os.O_CREAT | (os.O_APPEND if "a" in mode else 0)
        yield os.open(path, flags), lambda file: None
    else:
        yield path, (lambda file: file.fileno()) if how == "given away" else (lambda file: None)


HOW = pytest.mark.parametrize("how", ["path", "adopted", "given away"])


@HOW
@pytest.mark.parametrize("mode", ["wb", "ab"])
@pytest.mark.parametrize(("size", "count"), [(100_000, 60), pytest.param(7, 600_000, marks=pytest.mark.slow), (3_000_000, 2), (1 << 20, 4)])
async def test_failed_writelines_counts_bytes_of_all_lines(disk: Path, how: str, mode: str, size: int, count: int) -> None:
    path, limit = disk / "file", 3_456_789
    with opened_as(path, how, mode) as (name, prepare):
        async with open_aio(name, mode) as file:
            prepare(file)
            with full_at(limit), pytest.raises(OSError, match="File too large") as caught:
                await file.writelines([bytes(size)] * count)
            assert caught.value.characters_written == limit  # type: ignore[attr-defined]
            assert await file.tell() == limit
            assert await file.size() == limit
            await file.write(b"the rest")
    assert path.stat().st_size == limit + 8


@HOW
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-8-sig"])
@pytest.mark.parametrize("lines", [False, True], ids=["write", "writelines"])
@pytest.mark.parametrize("header", ["header\n", ""])
async def test_failed_text_write_leaves_cursor_and_can_be_repeated(disk: Path, how: str, encoding: str, lines: bool, header: str) -> None:
    path = disk / "file"
    with opened_as(path, how, "w") as (name, prepare):
        async with open_aio(name, "w", encoding=encoding, newline="") as file:
            prepare(file)
            await file.write(header)
            before = await file.tell()
            for limit in (100_001, 300_002):
                with full_at(limit), pytest.raises(OSError, match="File too large") as caught:
                    await (file.writelines(TEXT.splitlines(keepends=True)) if lines else file.write(TEXT))
                assert caught.value.characters_written == limit - len(header.encode(encoding))  # type: ignore[attr-defined]
                assert await file.tell() == before
            await file.write(TEXT)
    assert path.read_bytes() == (header + TEXT).encode(encoding)


@HOW
async def test_failed_text_append_can_be_repeated_after_truncate(disk: Path, how: str) -> None:
    path = disk / "file"
    path.write_text("old\n")
    with opened_as(path, how, "a") as (name, prepare):
        async with open_aio(name, "a", encoding="utf-8") as file:
            prepare(file)
            before = await file.tell()
            with full_at(100_001), pytest.raises(OSError, match="File too large"):
                await file.write(TEXT)
            assert path.stat().st_size == 100_001
            assert await file.tell() == before
            await file.truncate()
            await file.write(TEXT)
    assert path.read_text("utf-8") == "old\n" + TEXT


async def test_failed_text_write_behind_read_lines_keeps_them(disk: Path) -> None:
    path = disk / "file"
    path.write_text("".join(f"{i}\n" for i in range(1000)), "utf-8")
    async with FaultyContext() as context, open_aio(path, "r+", encoding="utf-8", context=context) as file:
        assert await file.readline() == "0\n"
        before = await file.tell()
        with context.fail(errno.ENOSPC, operation="write"), pytest.raises(OSError, match="No space left"):
            await file.write("lost")
        assert await file.tell() == before
        assert await file.readline() == "1\n"


async def test_text_writelines_that_fails_in_a_later_part_leaves_the_cursor(disk: Path) -> None:
    path = disk / "file"
    async with FaultyContext() as context, open_aio(path, "w", encoding="ascii", context=context) as file:
        with context.fail(errno.EIO, operation="write", turn=3), pytest.raises(OSError, match="Input/output error") as caught:
            await file.writelines("x" * 1000 for _ in range(5000))
        assert caught.value.characters_written == path.stat().st_size > 2 << 20  # type: ignore[attr-defined]
        assert await file.tell() == 0


# ---- long calls


@pytest.fixture
def _rests_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a long call run a checkpoint whenever it looks at the time."""
    monkeypatch.setattr("trio_aio._context.pace._LONGEST", 0)


CALLS = {
    "writelines": ("wb", lambda file: file.writelines(b"%d\n" % i for i in range(100_000))),
    "text writelines": ("w", lambda file: file.writelines(f"{i}\n" for i in range(100_000))),
    "text write": ("w", lambda file: file.write("x" * (20 << 20))),
    "text write, newlines": ("w", lambda file: file.write("x\n" * (10 << 20))),
    "readlines": ("rb", lambda file: file.readlines()),
    "readlines(hint)": ("rb", lambda file: file.readlines(1_000_000)),
    "text readlines": ("r", lambda file: file.readlines()),
    "text read": ("r", lambda file: file.read()),
}


@pytest.mark.usefixtures("_rests_at_once")
@pytest.mark.parametrize("name", CALLS)
async def test_long_call_lets_other_tasks_run(disk: Path, name: str) -> None:
    mode, call = CALLS[name]
    path = disk / "file"
    path.write_bytes(b"some line\n" * (1 << 18 if name == "text readlines" else 2 << 20))  # text readlines checks after few lines
    options = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n" if "newlines" not in name else "\r\n"}
    async with AIOContext() as context, open_aio(path, mode, context=context, **options) as file:  # type: ignore[call-overload]
        backend = context._core.backend
        assert backend is not None
        count = 0
        checkpoint = backend.cancel_shielded_checkpoint

        async def counted() -> None:
            nonlocal count
            count += 1
            await checkpoint()

        backend.cancel_shielded_checkpoint = counted  # type: ignore[method-assign]
        try:
            await call(file)
        finally:
            del backend.cancel_shielded_checkpoint
    assert count >= 50


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32", "latin-1", "utf-7", "iso2022_jp", "shift_jis", "gb18030"])
async def test_large_text_is_encoded_and_decoded_as_one(disk: Path, encoding: str) -> None:
    word = "äöü " if encoding in ("latin-1", "utf-7") else "日本 " if encoding in ("iso2022_jp", "shift_jis") else "ä日😀 "
    text = (word * 7 + "\r\n\r\n\n") * 40_000
    with (disk / "model").open("w", encoding=encoding, newline="\n") as model:
        model.write(text)
    async with open_aio(disk / "file", "w", encoding=encoding, newline="\n") as file:
        assert await file.write(text) == len(text)
    assert (disk / "file").read_bytes() == (disk / "model").read_bytes()
    async with open_aio(disk / "file", "r", encoding=encoding) as file:
        assert await file.read(5) + await file.read() == text.replace("\r\n", "\n")
    async with open_aio(disk / "file", "r", encoding=encoding) as file:
        assert await file.read(700_000) == text.replace("\r\n", "\n")[:700_000]
        position = await file.tell()
        rest = await file.read()
        await file.seek(position)
        assert await file.read() == rest == text.replace("\r\n", "\n")[700_000:]


async def test_error_in_large_text_names_its_place(disk: Path) -> None:
    text = "x" * 1_000_000 + "ä" + "y" * 1000
    async with open_aio(disk / "file", "w", encoding="ascii") as file:
        with pytest.raises(UnicodeEncodeError) as caught:
            await file.write(text)
        assert (caught.value.object, caught.value.start, caught.value.end) == (text, 1_000_000, 1_000_001)
        assert await file.tell() == 0
    data = b"x" * 999_999 + "ä".encode()[:1] + b"y" * BLOCK
    (disk / "file").write_bytes(data)
    async with open_aio(disk / "file", "r", encoding="utf-8") as file:
        with pytest.raises(UnicodeDecodeError) as wrong:
            await file.read()
        assert (wrong.value.object, wrong.value.start) == (data, 999_999)
        assert await file.tell() == 0


class Stopped(Exception):
    """What the iterable of lines raises."""


@pytest.mark.parametrize(
    ("what", "mode"),
    [(what, mode) for what in ("type", "encoding", "iterable") for mode in ("wb", "ab", "w", "a") if what != "encoding" or "b" not in mode],
)
async def test_line_that_cannot_be_written_says_how_much_was_before(tmp_path: Path, mode: str, what: str) -> None:
    path = tmp_path / "file"
    binary = "b" in mode
    line: Any = b"a" * 1023 + b"\n" if binary else "a" * 1023 + "\n"

    def lines() -> Iterator[Any]:
        for _ in range(1500):
            yield line
        if what == "iterable":
            raise Stopped
        yield 7 if what == "type" else "\xe9"

    raised = {"type": TypeError, "encoding": UnicodeEncodeError, "iterable": Stopped}[what]
    async with open_aio(path, mode, **({} if binary else {"encoding": "ascii"})) as file:
        with pytest.raises(raised) as caught:
            await file.writelines(lines())
        written = path.stat().st_size
        assert written == caught.value.characters_written == 1 << 20  # type: ignore[attr-defined]


async def test_line_that_is_not_contiguous_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    path = tmp_path / "file"
    async with open_aio(path, "wb") as file:
        for data in (b"abcd", bytearray(b"abcd"), array.array("B", b"abcd")):
            with pytest.raises(BufferError, match="contiguous"):
                await file.writelines([b"x", memoryview(data)[::2], b"y"])
        assert await file.tell() == 0
        await file.writelines([memoryview(b"ab"), memoryview(bytearray(b"cd"))[1:], memoryview(b"ef").cast("H")])
    assert path.read_bytes() == b"abdef"
