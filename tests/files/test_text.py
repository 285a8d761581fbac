"""Text files, compared with those of the built-in open()."""

from __future__ import annotations

import codecs
import errno
import io
import os
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import assert_checkpoints

from trio_aio import AIOContext, AsyncFile, AsyncTextFile, open_aio
from trio_aio._files.text_position import find_position
from trio_aio.testing import FaultyContext

from ..support.files import content
from ..support.page_cache import attempts, evict
from ..support.tasks import busy, cancelled_while_blocked

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


TEXT = "grün\nblau\r\nrot\rgelb\n\u2028\x0bend\U0001f600" * 400
NEWLINES = (None, "", "\n", "\r", "\r\n")
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-be", "cp1252", "shift_jis", "utf-7", "iso2022_jp")


# ---- opening


@pytest.mark.trio
@pytest.mark.parametrize("mode", ["r", "rt", "w", "x", "a", "r+", "w+", "x+", "a+", "tr+"])
async def test_open_in_text_mode_equals_built_in_open(tmp_path: Path, mode: str) -> None:
    seen = []
    for name in ("theirs", "ours"):
        path = tmp_path / name
        if "x" not in mode:
            path.write_bytes(b"content\n")
        if name == "theirs":
            with open(path, mode) as theirs:  # noqa: ASYNC230
                facts: Any = [theirs.readable(), theirs.writable(), theirs.seekable(), theirs.isatty(), theirs.tell()]
                facts += [theirs.mode, theirs.encoding, theirs.errors, theirs.newlines, theirs.line_buffering, theirs.closed]
                if theirs.writable():
                    facts.append(theirs.write("new\n"))
                facts.append(theirs.tell())
        else:
            async with open_aio(path, mode) as ours:
                assert isinstance(ours, AsyncTextFile)
                facts = [ours.readable(), ours.writable(), ours.seekable(), ours.isatty(), await ours.tell()]
                facts += [ours.mode, ours.encoding, ours.errors, ours.newlines, ours.line_buffering, ours.closed]
                if ours.writable():
                    facts.append(await ours.write("new\n"))
                facts.append(await ours.tell())
                assert (ours.name, ours.fileno(), ours.buffer.name) == (str(path), ours.buffer.fileno(), str(path))
                assert isinstance(ours.buffer, AsyncFile)
                assert repr(ours).startswith("<trio_aio.AsyncTextFile name=")
        seen.append((facts, path.read_bytes()))
    assert seen[0] == seen[1]
    assert ours.closed
    assert ours.buffer.closed


@pytest.mark.trio
async def test_text_open_with_invalid_arguments_raises_like_open_before_any_effect(tmp_path: Path) -> None:
    path = tmp_path / "file"
    bad: list[tuple[type[Exception], dict[str, Any]]] = [
        (LookupError, {"encoding": "no such"}),
        (LookupError, {"encoding": "hex"}),
        (LookupError, {"encoding": "utf-8", "errors": "no such"}),
        (ValueError, {"newline": "x"}),
        (ValueError, {"buffering": 0}),
        (TypeError, {"encoding": 1}),
        (TypeError, {"errors": 1}),
        (TypeError, {"newline": 1}),
        (ValueError, {"mode": "wb", "encoding": "utf-8"}),
    ]
    for kind, arguments in bad:
        if arguments.get("errors") != "no such":  # which open() only finds out in development mode
            with pytest.raises(kind):
                open(**{"file": path, "mode": "w"} | arguments)  # noqa: ASYNC230, SIM115
            path.unlink(missing_ok=True)
        with pytest.raises(kind):
            open_aio(**{"file": path, "mode": "w"} | arguments)
        assert not path.exists()


@pytest.mark.parametrize("options", [[], ["-X", "utf8=1"], ["-X", "utf8=0"], ["-X", "warn_default_encoding"]])
def test_default_encoding_equals_that_of_open(tmp_path: Path, options: list[str]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    code = (
        "import sys, trio, trio_aio, warnings\n"
        "warnings.simplefilter('always')\n"
        "async def main():\n"
        "    for encoding in (None, 'locale'):\n"
        "        with open(sys.argv[1], 'r', encoding=encoding) as file: theirs = file.encoding\n"
        "        async with trio_aio.open_aio(sys.argv[1], 'r', encoding=encoding) as file: print(theirs, file.encoding)\n"
        "trio.run(main)\n"
    )
    done = subprocess.run(
        [sys.executable, *options, "-c", code, str(path)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"},
    )
    for line in done.stdout.splitlines():
        theirs, ours = line.split()
        assert ours == theirs
    warned = [line for line in done.stderr.splitlines() if "EncodingWarning" in line]
    expected = ["<string>:5", "<string>:6"] if "warn_default_encoding" in options else []
    assert [":".join(line.split(":")[:2]) for line in warned] == expected


# ---- coding


@pytest.mark.trio
@pytest.mark.parametrize("newline", NEWLINES)
@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_every_encoding_and_newline_equals_open(tmp_path: Path, encoding: str, newline: str | None) -> None:
    text = TEXT.encode(encoding, "ignore").decode(encoding)
    paths = tmp_path / "theirs", tmp_path / "ours"
    with open(paths[0], "w", encoding=encoding, newline=newline) as theirs:  # noqa: ASYNC230
        for part in (text[:1000], text[1000:], ""):
            theirs.write(part)
    async with open_aio(paths[1], "w", encoding=encoding, newline=newline) as ours:
        for part in (text[:1000], text[1000:], ""):
            assert await ours.write(part) == len(part)
    assert paths[1].read_bytes() == paths[0].read_bytes()
    with open(paths[0], "a", encoding=encoding, newline=newline) as theirs:  # noqa: ASYNC230
        theirs.writelines(["more\n", "end"])
    async with open_aio(paths[1], "a", encoding=encoding, newline=newline) as ours:
        await ours.writelines(["more\n", "end"])
    assert paths[1].read_bytes() == paths[0].read_bytes()
    with open(paths[0], encoding=encoding, newline=newline) as theirs:  # noqa: ASYNC230
        lines = theirs.readlines()
        newlines = theirs.newlines
    async with open_aio(paths[1], "r", encoding=encoding, newline=newline) as ours:
        assert [line async for line in ours] == lines
        assert ours.newlines == newlines
        await ours.seek(0)
        assert await ours.readlines() == lines
        await ours.seek(0)
        assert await ours.read() == "".join(lines)
        await ours.seek(0)
        parts = []
        while part := await ours.read(777):
            parts.append(part)
        assert "".join(parts) == "".join(lines)
        assert {len(part) for part in parts[:-1]} == {777}
        await ours.seek(0)
        places = []
        for line in lines[:200]:
            places.append(await ours.tell())
            assert await ours.readline() == line
        for place, line in zip(places[::17], lines[::17], strict=False):
            assert await ours.seek(place) == place
            assert await ours.readline() == line


@pytest.mark.trio
@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-32"])
async def test_byte_order_mark_is_written_once(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "file"
    mark = "".encode(encoding)
    async with open_aio(path, "w", encoding=encoding) as file:
        await file.write("a")
        await file.write("b")
        assert path.read_bytes().count(mark) == 1
        await file.seek(0)
        await file.write("c")
        assert path.read_bytes().count(mark) == 1
        await file.seek(0, os.SEEK_END)
        await file.write("d")
    for _ in range(2):
        async with open_aio(path, "a", encoding=encoding) as file:
            await file.write("e")
    assert path.read_bytes().count(mark) == 1
    assert path.read_text(encoding) == "cbdee"


@pytest.mark.trio
async def test_errors_argument_selects_the_error_handler(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for errors in ("ignore", "replace", "surrogateescape", "backslashreplace"):
        path.write_bytes(b"a\xffb\n" * 4000)
        async with open_aio(path, "r", encoding="utf-8", errors=errors) as file:
            assert await file.read() == path.read_text("utf-8", errors)
            await file.seek(0)
            assert "".join([line async for line in file]) == path.read_text("utf-8", errors)
    async with open_aio(path, "w", encoding="ascii", errors="xmlcharrefreplace") as file:
        assert await file.write("ü") == 1
    assert path.read_bytes() == b"&#252;"


@pytest.mark.trio
async def test_coding_error_leaves_the_position(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"first\n" + b"x" * 9000 + b"\xff")
    async with open_aio(path, "r+", encoding="utf-8") as file:
        assert await file.readline() == "first\n"
        place = await file.tell()
        for call in (file.read, file.readline, file.readlines, file.__anext__, lambda: file.read(9001)):
            with pytest.raises(UnicodeDecodeError):
                await call()
            assert await file.tell() == place
        assert await file.read(8000) == "x" * 8000
        with pytest.raises(UnicodeEncodeError):
            await file.write("\ud800")
        with pytest.raises(UnicodeEncodeError):
            await file.writelines(["good", "\ud800"])
    assert path.read_bytes() == b"first\n" + b"x" * 9000 + b"\xff"


# ---- lines and memory


@pytest.mark.trio
async def test_text_line_in_memory_needs_no_system_call(tmp_path: Path) -> None:
    path = tmp_path / "file"
    lines = [f"{i}\n" for i in range(20_000)]
    path.write_text("".join(lines), "utf-8")
    async with open_aio(path, "r", encoding="utf-8") as file:
        count = file.buffer.context.statistics
        assert await file.readline() == lines[0]
        before = count().completed
        for line in lines[1:1000]:
            assert await file.readline() == line
        assert count().completed == before
        async for line in file:
            assert line == lines[1000]
            break
        assert await file.tell() == sum(map(len, lines[:1001]))
        assert [line async for line in file] == lines[1001:]
        assert count().completed - before < 10


@pytest.mark.trio
async def test_line_end_split_over_two_chunks_is_found(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for before in range(8180, 8200):
        data = "x" * before + "\r\nnext\r\r\n" + "y" * 20_000 + "\r\n"
        path.write_bytes(data.encode())
        for newline in NEWLINES:
            with open(path, newline=newline, encoding="utf-8") as theirs:  # noqa: ASYNC230
                lines = theirs.readlines()
            async with open_aio(path, "r", newline=newline, encoding="utf-8") as ours:
                assert [line async for line in ours] == lines
                await ours.seek(0)
                assert await ours.readlines() == lines


@pytest.mark.trio
async def test_text_write_has_reached_the_kernel_on_return(tmp_path: Path) -> None:
    path = tmp_path / "file"
    async with open_aio(path, "w") as file:
        assert file.write_through
        await file.write("a")
        assert path.read_bytes() == b"a"
        await file.writelines(c for c in "bcd")
        assert path.read_bytes() == b"abcd"


@pytest.mark.trio
async def test_every_text_call_but_a_loop_line_is_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("line\n" * 30_000, "utf-8")
    async with open_aio(path, "r+", encoding="utf-8") as file:
        calls: list[Callable[[], Any]] = [
            lambda: file.read(0),
            lambda: file.read(5),
            lambda: file.read(9000),
            file.readline,
            lambda: file.readline(0),
            lambda: file.readlines(10),
            file.tell,
            lambda: file.seek(0),
            lambda: file.seek(0, os.SEEK_CUR),
            lambda: file.seek(0, os.SEEK_END),
            lambda: file.write(""),
            lambda: file.write("x"),
            lambda: file.writelines([]),
            file.flush,
            file.truncate,
            file.read,
            file.__anext__,
        ]
        for call in calls:
            for _ in range(2):
                with assert_checkpoints():
                    try:
                        await call()
                    except StopAsyncIteration:
                        assert call == file.__anext__


@pytest.mark.trio
async def test_text_calls_of_several_tasks_run_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "file"
    lines = [f"{i}\n" for i in range(5000)]
    path.write_text("".join(lines), "utf-8")
    seen: list[str] = []

    async def read(file: AsyncTextFile) -> None:
        while line := await file.readline():
            seen.append(line)

    async def loop(file: AsyncTextFile) -> None:
        async for line in file:
            seen.append(line)
            if len(seen) % 100 == 0:
                await trio.lowlevel.checkpoint()

    async with open_aio(path, "r", encoding="utf-8") as file, trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(read, file)
            nursery.start_soon(loop, file)
    assert seen == lines


# ---- failing and cancelling


@pytest.mark.trio
async def test_text_call_in_wrong_mode_of_wrong_type_or_closed_raises(tmp_path: Path) -> None:
    path = tmp_path / "file"
    async with open_aio(path, "w") as file:
        for read in (file.read, file.readline, file.readlines, file.__anext__):
            with pytest.raises(io.UnsupportedOperation):
                await read()
        for bad in (b"bytes", None, 1):
            with pytest.raises(TypeError):
                await file.write(bad)  # type: ignore[arg-type]
            with pytest.raises(TypeError):
                await file.writelines([bad])  # type: ignore[list-item]
        assert path.read_bytes() == b""
    async with open_aio(path, "r") as reader:
        for write in (lambda: reader.write("x"), lambda: reader.writelines(["x"]), reader.truncate):
            with pytest.raises(io.UnsupportedOperation):
                await write()
    calls: list[Callable[[], Any]] = [
        reader.read,
        reader.readline,
        reader.readlines,
        reader.__anext__,
        reader.tell,
        reader.flush,
        reader.truncate,
        lambda: reader.seek(0),
        lambda: reader.write("x"),
        lambda: reader.writelines([]),
        reader.__aenter__,
    ]
    for call in calls:
        with pytest.raises(ValueError, match="closed"):
            await call()
    for plain in (reader.fileno, reader.readable, reader.writable, reader.seekable, reader.isatty, reader.__aiter__):
        with pytest.raises(ValueError, match="closed"):
            plain()


@pytest.mark.trio
async def test_text_write_on_full_disk_reports_bytes_written(on_filesystem: Callable[[str], Path]) -> None:
    path = on_filesystem("small_tmpfs") / "file"
    async with open_aio(path, "w", encoding="utf-16") as file:
        with pytest.raises(OSError, match="No space left") as caught:
            await file.write("x" * (2 << 20))
        written = caught.value.characters_written  # type: ignore[attr-defined]
        assert (caught.value.errno, await file.tell(), await file.buffer.size()) == (errno.ENOSPC, 0, written)
        await file.truncate()
        await file.write("y")
    assert path.read_text("utf-16") == "y"


@pytest.mark.trio
@pytest.mark.parametrize("name", ["read", "readline", "readlines", "read some", "__anext__"])
async def test_cancelled_text_read_leaves_the_position(disk: Path, name: str) -> None:
    path = disk / "file"
    data = content(100_000).replace(b"\n", b" ").replace(b"\r", b" ").decode("latin-1")
    path.write_text("first\n" + data, "latin-1")
    for _ in attempts("a call that had to wait"):
        async with AIOContext(max_workers=1) as context, open_aio(path, "r", encoding="latin-1", context=context) as file:
            assert await file.readline() == "first\n"
            assert await file.read(10) == data[:10]
            evict(path)
            call: Any = partial(file.read, 50_000) if name == "read some" else getattr(file, name)
            async with busy(context):
                if not await cancelled_while_blocked(call):
                    continue
            assert await file.tell() == 16
            assert await file.read(20) == data[10:30]
            assert await file.read() == data[30:]
            break


@pytest.mark.trio
async def test_cancelled_text_write_writes_nothing_and_keeps_the_byte_order_mark(disk: Path) -> None:
    path = disk / "file"
    async with AIOContext(max_workers=1) as context, open_aio(path, "w", encoding="utf-16", context=context) as file:
        for call in (lambda: file.write("lost"), lambda: file.writelines(["lost", "too"])):
            async with busy(context):
                assert await cancelled_while_blocked(call)
        assert await file.tell() == 0
        await file.write("kept")
    assert path.read_text("utf-16") == "kept"


@pytest.mark.trio
async def test_cancelled_text_seek_leaves_the_position(disk: Path) -> None:
    path = disk / "file"
    path.write_bytes("äöü\n".encode("utf-7") * 3000)
    for _ in attempts("a call that had to wait"):
        async with AIOContext(max_workers=1) as context, open_aio(path, "r", encoding="utf-7", context=context) as file:
            await file.read(2)
            inside = await file.tell()
            await file.readline()
            place = await file.tell()
            evict(path)
            async with busy(context):
                cancelled = await cancelled_while_blocked(partial(file.seek, inside))
            assert await file.tell() == (place if cancelled else inside)
            assert await file.seek(inside) == inside
            assert await file.readline() == "ü\n"
            if cancelled:
                break


def _next(action: str, file: Any) -> Any:
    """Return the call that comes after a loop."""
    calls: dict[str, Callable[[], Any]] = {
        "tell": file.tell,
        "read": lambda: file.read(100),
        "readline": lambda: file.readline(7),
        "write": lambda: file.write("new\n"),
        "truncate": lambda: file.truncate(),
        "stay": lambda: file.seek(0, 1),
        "rest": file.read,
    }
    return calls[action]()


@pytest.mark.trio
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", pytest.param("cp1252", marks=pytest.mark.slow)])
@pytest.mark.parametrize("odd", ["", "é", "\r"])
@pytest.mark.parametrize("action", ["tell", "read", "readline", "write", "truncate", "stay", "rest"])
async def test_text_loop_in_memory_can_be_left_at_any_line(tmp_path: Path, encoding: str, odd: str, action: str) -> None:
    lines = [f"{i} {'x' * (i % 90)}\n" for i in range(6000)]
    lines[3000] = odd + lines[3000]
    for count in (1, 170, 171, 700, 1500, 2999, 3001, 5900):
        files = []
        for name in ("theirs", "ours"):
            path = tmp_path / name
            path.write_bytes("".join(lines).encode(encoding))
            files.append(path)
        with open(files[0], "r+", encoding=encoding) as theirs:  # noqa: ASYNC230
            expected: list[Any] = [[theirs.readline() for _ in range(count)]]
            result = _next(action, theirs)
            theirs.flush()
            expected.append(result if action not in ("tell", "stay", "truncate") else None)
            expected.append(theirs.readline())
        async with open_aio(files[1], "r+", encoding=encoding) as ours:
            given: list[Any] = [[]]
            async for line in ours:
                given[0].append(line)
                if len(given[0]) == count:
                    break
            result = await _next(action, ours)
            given.append(result if action not in ("tell", "stay", "truncate") else None)
            given.append(await ours.readline())
        assert given == expected, count
        assert files[1].read_bytes() == files[0].read_bytes()


@pytest.mark.trio
async def test_tell_in_a_loop_returns_a_position_to_seek_to(tmp_path: Path) -> None:
    lines = [f"{i} {'x' * (i % 90)}\n" for i in range(6000)]
    path = tmp_path / "file"
    path.write_text("".join(lines))
    places = []
    async with open_aio(path, "r", encoding="utf-8") as file:
        async for line in file:
            if int(line.split()[0]) % 500 == 499:
                places.append(await file.tell())
        for number, place in reversed([*enumerate(places)]):
            await file.seek(place)
            assert [line async for line in file] == lines[500 * (number + 1) :]


@pytest.mark.trio
@pytest.mark.parametrize("newline", [None, "", "\n"])
async def test_carriage_return_at_the_end_of_a_chunk_does_not_shift_later_lines(tmp_path: Path, newline: str | None) -> None:
    path = tmp_path / "file"
    for before in (b"abcdefg\r", b"abcdefg\n", b"abcdef\r\n"):
        path.write_bytes(b"0123456\n" * 1023 + before + b"XYZ456\nnext\n" * 2000)
        with open(path, encoding="utf-8", newline=newline) as theirs:  # noqa: ASYNC230
            expected = list(theirs)
        async with open_aio(path, "r", encoding="utf-8", newline=newline) as ours:
            assert [line async for line in ours] == expected


@pytest.mark.trio
@pytest.mark.parametrize("by_loop", [False, True])
async def test_chunk_that_ends_behind_what_is_in_memory_is_a_whole_one(tmp_path: Path, by_loop: bool) -> None:
    path = tmp_path / "file"
    path.write_text(("0" * 40 + "\r") * 300, encoding="utf-16", newline="")
    with open(path, encoding="utf-16") as theirs:  # noqa: ASYNC230
        async with open_aio(path, "r", encoding="utf-16") as ours:
            assert await ours.read(8191) == theirs.read(8191)
            assert (await ours.__anext__() if by_loop else await ours.readline()) == theirs.readline()
            assert await ours.buffer.tell() == theirs.buffer.tell()


async def _leave_after(count: int, file: AsyncTextFile) -> None:
    async for _ in file:
        count -= 1
        if not count:
            break


@pytest.mark.trio
@pytest.mark.parametrize("place", [0, 50_000])
async def test_cursor_moved_on_the_buffer_after_a_loop_stays(tmp_path: Path, place: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456\n" * 20_000)
    async with open_aio(path, "r+", encoding="utf-8") as file:
        await _leave_after(3200, file)
        await file.buffer.seek(place)
        await file.tell()
        assert await file.buffer.tell() == place
        await file.buffer.write(b"#")
        assert path.read_bytes().index(b"#") == place


@pytest.mark.trio
async def test_buffer_read_after_a_text_loop_returns_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("".join(f"{i:07d}\n" for i in range(60_000)))
    async with open_aio(path, "r", encoding="utf-8") as file:
        await _leave_after(16_000, file)
        taken = int(await file.buffer.read(8))
        rest = [int(line) for line in (await file.read()).split()]
        assert rest == [i for i in range(16_000, 60_000) if i != taken]


class _Counted:
    """A decoder that counts how often it is called, and how many bytes it gets."""

    def __init__(self, decoder: Any) -> None:
        self._decoder: Any = decoder
        self.calls: int = 0
        self.fed: int = 0
        self.getstate, self.setstate = decoder.getstate, decoder.setstate

    def decode(self, data: bytes, final: bool = False) -> str:
        self.calls += 1
        self.fed += len(data)
        text: str = self._decoder.decode(data, final)
        return text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "shift_jis"])
@pytest.mark.parametrize("wide", [1_000, 60_000, 99_999])
def test_position_in_a_long_chunk_is_found_in_few_steps(encoding: str, wide: int) -> None:
    text = "漢" * wide + "a" * 200_000
    data = text.encode(encoding)
    for skipped in (1, wide, 100_000):
        decoder = _Counted(codecs.getincrementaldecoder(encoding)())
        found = find_position(decoder, 0, 0, data, skipped, len(data) / len(text))
        assert (found.position, found.to_skip) == (len(text[:skipped].encode(encoding)), 0)
        assert decoder.calls < 200
        assert decoder.fed < 4 * len(data)


# ---- a position that cannot be worked out


def fails_the_second_time() -> str:
    """Return the name of an error handler that decodes the first error as "?", and raises for others."""
    errors = []

    def handle(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeDecodeError)
        errors.append(error)
        if len(errors) > 1:
            raise ValueError("too many errors")
        return "?", error.end

    codecs.register_error("trio_aio tests: second", handle)
    return "trio_aio tests: second"


@pytest.mark.trio
@pytest.mark.parametrize("kind", ["punycode", "handler"])
@pytest.mark.parametrize("way", ["fileno", "adopted"])
@pytest.mark.parametrize("body", ["ends", "raises"])
async def test_shared_text_file_without_a_position_is_closed_and_its_lock_is_free(tmp_path: Path, kind: str, way: str, body: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"bbk9-" if kind == "punycode" else b"\xffabc")
    options: Any = {"encoding": "punycode", "errors": "replace"} if kind == "punycode" else {"encoding": "ascii"}
    if kind == "handler":
        options["errors"] = fails_the_second_time()
    file: AsyncTextFile = await open_aio(os.open(path, os.O_RDONLY) if way == "adopted" else path, "r", **options)
    fd = file.fileno()
    try:
        async with file:
            assert await file.read(2) == ("bb" if kind == "punycode" else "?a")
            assert file.buffer._lock.free
            async with trio.open_nursery() as nursery:
                nursery.start_soon(file.buffer.tell)
            if body == "raises":
                raise KeyError
    except KeyError:
        assert body == "raises"
    assert file.closed
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    await file.aclose()


@pytest.mark.trio
async def test_text_that_has_no_position_stays_for_the_next_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"bbk9-")
    options: Any = {"encoding": "punycode", "errors": "replace"}
    with open(path, **options) as plain:  # noqa: ASYNC230
        wanted = plain.read()
    async with open_aio(path, "r", **options) as file:
        file.fileno()
        assert await file.read(2) + await file.read(1) + await file.read() == wanted


@pytest.mark.trio
@pytest.mark.parametrize("way", ["plain", "shared"])
@pytest.mark.parametrize("call", ["readline", "read"])
async def test_write_after_a_read_of_nothing_goes_where_that_of_io_goes(tmp_path: Path, way: str, call: str) -> None:
    path = tmp_path / "file"
    path.write_text("a\nb\nc\n")
    async with open_aio(path, "r+", encoding="ascii") as file:
        if way == "shared":
            file.fileno()
        assert await getattr(file, call)(0) == ""
        await file.write("W")
    # io.TextIOWrapper has read a chunk for `readline`; a shared file gives it back.
    assert path.read_text() == ("a\nb\nc\nW" if call == "readline" and way == "plain" else "W\nb\nc\n")


@pytest.mark.trio
async def test_shared_text_read_whose_rest_cannot_be_given_back_leaves_the_position(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("one two")
    async with FaultyContext() as context, open_aio(path, "r", encoding="ascii", context=context) as file:
        file.fileno()
        with context.fail(errno.EIO, operation="seek", turn=1), pytest.raises(OSError, match="Input/output"):
            await file.read(3)
        assert await file.read(3) == "one"
        assert await file.read() == " two"


@pytest.mark.trio
async def test_text_call_whose_codec_raises_at_its_start_leaves_the_lock_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_text("one two")

    class Broken:
        def getstate(self) -> Any:
            raise MemoryError

    async with open_aio(path, "r", encoding="ascii") as file:
        with monkeypatch.context() as patch:
            patch.setattr(file, "_decoder", Broken())
            with pytest.raises(MemoryError):
                await file.read(3)
        assert file.buffer._lock.free
        assert await file.read(3) == "one"
