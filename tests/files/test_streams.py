"""Files as anyio's byte streams: the same programs run with anyio's streams and with ours."""

from __future__ import annotations

import errno
import gzip
import io
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.streams.file
import pytest
from anyio import BrokenResourceError, CancelScope, ClosedResourceError, EndOfStream, TypedAttributeLookupError, create_task_group
from anyio.abc import ByteReceiveStream, ByteSendStream
from anyio.lowlevel import checkpoint
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.file import FileStreamAttribute
from anyio.streams.text import TextReceiveStream

import trio_aio
from trio_aio import FileReadStream, FileWriteStream, open_aio

from ..support.files import make_file

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.anyio, pytest.mark.backends("trio", "asyncio")]


@pytest.fixture(params=[anyio.streams.file, trio_aio], ids=["anyio", "trio_aio"])
def streams(request: pytest.FixtureRequest) -> Any:
    """Return the module that has the two classes."""
    return request.param


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "data.txt"
    path.write_bytes(b"Hello")
    return path


def content_of(path: Path) -> bytes:
    return path.read_bytes()


# ---- what anyio's have


@pytest.mark.parametrize("kind", [str, Path])
async def test_receive_returns_the_file_to_its_end(streams: Any, path: Path, kind: Callable[[Path], Any]) -> None:
    async with await streams.FileReadStream.from_path(kind(path)) as stream:
        assert isinstance(stream, ByteReceiveStream)
        assert await stream.receive(3) == b"Hel"
        assert await stream.receive(3) == b"lo"
        for _ in range(2):
            with pytest.raises(EndOfStream):
                await stream.receive(1)


async def test_receive_of_python_file_starts_at_its_position(streams: Any, path: Path) -> None:
    with path.open("rb") as file:
        assert file.read(1) == b"H"
        async with streams.FileReadStream(file) as stream:
            assert stream.extra(FileStreamAttribute.file) is file
            assert await stream.tell() == 1
            assert await stream.receive(2) == b"el"
            assert await stream.receive() == b"lo"
            with pytest.raises(EndOfStream):
                await stream.receive()
        assert file.closed


async def test_first_receives_of_several_tasks_open_the_file_once(streams: Any, tmp_path: Path) -> None:
    path, data = make_file(tmp_path)
    parts: list[bytes] = []
    async with streams.FileReadStream(path.open("rb")) as stream:

        async def receive() -> None:
            parts.append(await stream.receive(len(data) // 8))

        async with create_task_group() as group:
            for _ in range(8):
                group.start_soon(receive)
    assert sorted(parts) == sorted(data[i : i + len(data) // 8] for i in range(0, len(data), len(data) // 8))


async def test_seek_and_tell_of_stream_move_and_return_the_position(streams: Any, path: Path) -> None:
    async with await streams.FileReadStream.from_path(path) as stream:
        assert await stream.seek(2) == 2
        assert await stream.tell() == 2
        assert await stream.receive() == b"llo"
        assert await stream.tell() == 5
        assert await stream.seek(-1, os.SEEK_END) == 4
        assert await stream.receive() == b"o"
    with pytest.raises(ValueError, match="closed file"):
        await stream.tell()


@pytest.mark.parametrize("max_bytes", [0, -1])
async def test_receive_with_max_bytes_below_1_is_refused(streams: Any, path: Path, max_bytes: int) -> None:
    async with await streams.FileReadStream.from_path(path) as stream:
        with pytest.raises(ValueError, match="max_bytes"):
            await stream.receive(max_bytes)


async def test_call_of_closed_stream_raises(streams: Any, path: Path) -> None:
    async with await streams.FileReadStream.from_path(path) as reader:
        pass
    with pytest.raises(ClosedResourceError):
        await reader.receive()
    async with await streams.FileWriteStream.from_path(path, True) as writer:
        pass
    with pytest.raises(ClosedResourceError):
        await writer.send(b"x")
    await writer.aclose()
    assert content_of(path) == b"Hello"


@pytest.mark.parametrize("append", [False, True])
async def test_send_writes_all_data(streams: Any, path: Path, append: bool) -> None:
    async with await streams.FileWriteStream.from_path(path, append) as stream:
        assert isinstance(stream, ByteSendStream)
        await stream.send(b", ")
        await stream.send(b"World!")
    assert content_of(path) == (b"Hello, World!" if append else b", World!")


async def test_send_to_python_file_follows_its_buffered_data(streams: Any, path: Path) -> None:
    file = path.open("r+b")
    file.write(b"J")
    async with streams.FileWriteStream(file) as stream:
        await stream.send(b"a")
    assert file.closed
    assert content_of(path) == b"Jallo"


async def test_stream_attributes_are_file_path_and_fileno(streams: Any, path: Path) -> None:
    for stream in (await streams.FileReadStream.from_path(path), await streams.FileWriteStream.from_path(path)):
        async with stream:
            assert stream.extra(FileStreamAttribute.path) == path
            assert stream.extra(FileStreamAttribute.fileno) > 2
            assert stream.extra(FileStreamAttribute.file).fileno() == stream.extra(FileStreamAttribute.fileno)
            assert set(stream.extra_attributes) == {FileStreamAttribute.path, FileStreamAttribute.fileno, FileStreamAttribute.file}


async def test_stream_open_error_equals_that_of_open(streams: Any, path: Path) -> None:
    for call in (streams.FileReadStream.from_path, streams.FileWriteStream.from_path):
        with pytest.raises(FileNotFoundError) as caught:
            await call(path.parent / "missing" / "file")
        assert caught.value.filename in (path.parent / "missing" / "file", str(path.parent / "missing" / "file"))


async def test_disk_error_breaks_the_stream(streams: Any, on_filesystem: Callable[[str], Path]) -> None:
    async with await streams.FileWriteStream.from_path(on_filesystem("small_tmpfs") / "file") as stream:
        with pytest.raises(BrokenResourceError) as caught:
            await stream.send(bytes(4 << 20))
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == errno.ENOSPC


async def test_anyio_wrappers_accept_the_streams(streams: Any, tmp_path: Path) -> None:
    path, data = make_file(tmp_path, 300_000)
    async with await streams.FileReadStream.from_path(path) as stream:
        assert b"".join([part async for part in stream]) == data
    async with BufferedByteReceiveStream(await streams.FileReadStream.from_path(path)) as buffered:
        assert await buffered.receive_exactly(200_001) == data[:200_001]
        assert buffered.extra(FileStreamAttribute.path) == path
    path.write_text("fünf")
    async with TextReceiveStream(await streams.FileReadStream.from_path(path)) as text:
        assert "".join([part async for part in text]) == "fünf"


async def test_stream_closes_in_cancelled_scope(streams: Any, path: Path) -> None:
    with CancelScope() as scope:
        async with await streams.FileReadStream.from_path(path) as stream:
            file = stream.extra(FileStreamAttribute.file)
            scope.cancel()
    assert file.closed


# ---- what is ours


async def test_stream_of_our_file_uses_it_directly(path: Path) -> None:
    async with open_aio(path, "r+b") as file:
        await file.seek(1)
        reader, writer = FileReadStream(file), FileWriteStream(file)
        assert reader.extra(FileStreamAttribute.file) is file  # type: ignore[comparison-overlap]
        assert await reader.receive(1) == b"e"
        await writer.send(b"LL")
        assert await reader.receive() == b"o"
        await writer.aclose()
        with pytest.raises(ClosedResourceError):
            await reader.receive()
    assert content_of(path) == b"HeLLo"


async def test_stream_without_a_path_has_no_path_attribute(path: Path) -> None:
    async with open_aio(os.open(path, os.O_RDONLY)) as file:
        with pytest.raises(TypedAttributeLookupError):
            FileReadStream(file).extra(FileStreamAttribute.path)


async def test_stream_whose_file_was_not_opened_for_this_raises_closed_resource(streams: Any, path: Path) -> None:
    with path.open("rb") as plain, pytest.raises(ClosedResourceError):
        await streams.FileWriteStream(plain).send(b"x")
    with path.open("ab") as plain, pytest.raises(ClosedResourceError):
        await streams.FileReadStream(plain).receive()


async def test_receive_in_cancelled_scope_consumes_nothing(path: Path) -> None:
    async with await FileReadStream.from_path(path) as stream:
        with CancelScope() as scope:
            scope.cancel()
            await stream.receive(2)
        assert scope.cancelled_caught
        assert await stream.receive() == b"Hello"


async def test_receives_of_several_tasks_share_the_bytes(tmp_path: Path) -> None:
    path, data = make_file(tmp_path)
    parts: list[bytes] = []
    async with await FileReadStream.from_path(path) as stream:

        async def receive() -> None:
            async for part in stream:
                parts.append(part)

        async with create_task_group() as group:
            for _ in range(8):
                group.start_soon(receive)
    assert sorted(parts) == sorted(data[i : i + 65536] for i in range(0, len(data), 65536))


@pytest.mark.parametrize("turns", range(12))
async def test_stream_closed_while_opening_writes_to_no_other_file(tmp_path: Path, turns: int) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    mine.write_bytes(b"")
    other.write_bytes(b"kept")
    stream = FileWriteStream(mine.open("r+b"))
    sent = []

    async def send() -> None:
        try:
            await stream.send(b"XXXX")
        except ClosedResourceError:
            return
        sent.append(b"XXXX")

    async with create_task_group() as group:
        group.start_soon(send)
        for _ in range(turns):
            await checkpoint()
        await stream.aclose()
        stranger = other.open("r+b")
    stranger.close()
    assert other.read_bytes() == b"kept"
    assert mine.read_bytes() == b"".join(sent)


# ---- files that are not those of their descriptors


async def test_stream_of_a_compressed_file_has_its_content(streams: Any, tmp_path: Path) -> None:
    path = tmp_path / "file.gz"
    async with streams.FileWriteStream(gzip.open(path, "wb")) as writer:
        await writer.send(b"hello ")
        await writer.send(b"world")
    assert gzip.decompress(path.read_bytes()) == b"hello world"
    async with streams.FileReadStream(gzip.open(path, "rb")) as reader:
        assert await reader.receive(5) == b"hello"
        assert await reader.tell() == 5
        assert await reader.receive() == b" world"
        with pytest.raises(EndOfStream):
            await reader.receive()


async def test_stream_of_memory_has_neither_path_nor_descriptor(streams: Any) -> None:
    memory = io.BytesIO(b"abc")
    async with streams.FileReadStream(memory) as stream:
        assert set(stream.extra_attributes) == {FileStreamAttribute.file}
        assert stream.extra(FileStreamAttribute.file) is memory
        assert await stream.receive(2) == b"ab"
        assert await stream.seek(0) == 0
        assert await stream.receive() == b"abc"
        writer = streams.FileWriteStream(memory)
        await writer.send(b"d")
        assert memory.getvalue() == b"abcd"
    assert memory.closed
    with pytest.raises(ClosedResourceError):
        await stream.receive()


async def test_stream_of_a_pipe_reads_and_writes_it(streams: Any, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    async with streams.FileWriteStream(os.fdopen(writer, "wb", 0)) as sender:
        await sender.send(b"abc")
    async with streams.FileReadStream(os.fdopen(reader, "rb")) as receiver:
        assert await receiver.receive() == b"abc"
        with pytest.raises(EndOfStream):
            await receiver.receive()


async def test_stream_from_the_path_of_a_fifo_or_device(streams: Any, tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    os.write(fd, b"abc")
    try:
        async with await streams.FileReadStream.from_path(path) as stream:
            assert await stream.receive(3) == b"abc"
            assert stream.extra(FileStreamAttribute.path) == path
    finally:
        os.close(fd)
    async with await streams.FileReadStream.from_path("/dev/null") as stream:
        with pytest.raises(EndOfStream):
            await stream.receive()
    async with await streams.FileWriteStream.from_path("/dev/full") as stream:
        with pytest.raises(BrokenResourceError) as caught:
            await stream.send(bytes(1 << 20))
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == errno.ENOSPC
        with suppress(OSError):  # anyio's stream writes what its buffer holds
            await stream.aclose()


async def test_stream_of_temporary_files_reads_what_was_written(streams: Any) -> None:
    for make in (tempfile.TemporaryFile, tempfile.NamedTemporaryFile, tempfile.SpooledTemporaryFile):
        file: Any = make()
        file.write(b"content")
        file.seek(0)
        async with streams.FileReadStream(file) as stream:
            assert await stream.receive() == b"content"


async def test_stream_of_a_subclass_uses_its_methods(streams: Any, path: Path) -> None:
    class Upper(io.FileIO):
        def read(self, size: int | None = -1) -> bytes:
            return (super().read(-1 if size is None else size) or b"").upper()

    async with streams.FileReadStream(Upper(path)) as stream:
        assert await stream.receive() == b"HELLO"


async def test_stream_of_what_is_no_binary_file_is_refused(path: Path) -> None:
    for kind in (FileReadStream, FileWriteStream):
        for wrong in (3, b"bytes", None, path, io.StringIO()):
            with pytest.raises(TypeError, match="stream needs"):
                kind(wrong)  # type: ignore[arg-type]
        with path.open("r+") as text, pytest.raises(TypeError, match="binary file"):
            kind(text)  # type: ignore[arg-type]
