"""A file that others use too, compared with a model: one content, and one position that all share.

Each step is a call of ours, or a system call on another descriptor of the same open file, as a child process would make it.
"""

from __future__ import annotations

import os
import random
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from trio_aio import open_aio

from ..support.files import BLOCK

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.backends("trio", "asyncio")]

WORDS = ("", "a", "word", "äöü", "€uro", "x" * 100, "日本" * 50, "y" * 9000)


class Model:
    """The content of the file, and the position of the open file. An encoding of None: bytes."""

    def __init__(self, data: bytes, encoding: str | None, newline: str | None, *, append: bool) -> None:
        self.data: bytes = data
        self.position: int = 0
        self.encoding: str | None = encoding
        self.newline: str | None = newline
        self.append: bool = append

    def characters(self) -> Iterator[tuple[str, int]]:
        """Yield the characters from the position on, with their length in bytes. A line end is one character, as `newline` says."""
        assert self.encoding is not None
        text = self.data[self.position :].decode(self.encoding)
        at = 0
        while at < len(text):
            raw = text[at]
            if raw == "\r" and self.newline is None:
                raw = text[at : at + 2] if text[at + 1 : at + 2] == "\n" else raw
                yield "\n", len(raw.encode(self.encoding))
            else:
                yield raw, len(raw.encode(self.encoding))
            at += len(raw)

    def read(self, size: int) -> Any:
        """Return `size` bytes or characters; -1: all."""
        if self.encoding is None:
            end = len(self.data) if size < 0 else self.position + size
            found = self.data[self.position : end]
            self.position += len(found)
            return found
        text, length = [], 0
        for character, width in self.characters():
            if len(text) == size:
                break
            text.append(character)
            length += width
        self.position += length
        return "".join(text)

    def line(self, limit: int = -1) -> Any:
        """Return a line, at most `limit` bytes or characters of it."""
        if self.encoding is None:
            end = self.data.find(b"\n", self.position) + 1 or len(self.data)
            end = max(end, self.position)
            return self.read(end - self.position if limit < 0 else min(end - self.position, limit))
        count = 0
        for character, _ in self.characters():
            if count == limit:
                break
            count += 1
            if character == "\n":
                break
        return self.read(count)

    def write(self, data: bytes) -> None:
        if not data:
            return
        if self.append:
            self.position = len(self.data)
        self.data = self.data[: self.position].ljust(self.position, b"\0") + data + self.data[self.position + len(data) :]
        self.position += len(data)


class Play:
    """The steps: `file` is ours, `shared` is a descriptor of the same open file."""

    def __init__(self, file: Any, shared: int, model: Model, chance: random.Random, *, adopted: bool) -> None:
        self.file: Any = file
        self.shared: int = shared
        self.model: Model = model
        self.chance: random.Random = chance
        self.adopted: bool = adopted
        self.did: list[str] = []

    def text(self) -> str:
        ends = ("\n", "\r\n", "\r", "") if self.model.newline is None else ("\n", "")
        return "".join(self.chance.choice(WORDS) + self.chance.choice(ends) for _ in range(self.chance.randrange(1, 4)))

    def encoded(self, text: str) -> bytes:
        return text.encode(self.model.encoding or "utf-8")

    async def step(self) -> None:
        names = ("read", "readline", "limited", "loop", "loop", "lines", "write", "tell", "flush", "readall", "rewind", "end")
        name = self.chance.choice((*names, "truncate", "empty", "peek", "into", "theirs", "theirs", "theirs"))
        self.did.append(name)
        await getattr(self, f"do_{name}")()

    async def do_read(self) -> None:
        size = self.chance.choice((1, 5, 200, BLOCK, 20_000))
        assert await self.file.read(size) == self.model.read(size)

    async def do_readline(self) -> None:
        assert await self.file.readline() == self.model.line()

    async def do_limited(self) -> None:
        limit = self.chance.choice((0, 1, 50, 9000))
        assert await self.file.readline(limit) == self.model.line(limit)

    async def do_loop(self) -> None:
        count = self.chance.randrange(1, 6)
        got = []
        async for line in self.file:
            got.append(line)
            if len(got) == count:
                break
        wanted = [line for line in (self.model.line() for _ in range(count)) if line]
        assert got == wanted

    async def do_lines(self) -> None:
        got = await self.file.readlines(300)
        total, wanted = 0, []
        while total <= 300 and (line := self.model.line()):
            wanted.append(line)
            total += len(line)
        assert got == wanted

    async def do_write(self) -> None:
        text = self.text()
        data = self.encoded(text)
        assert await self.file.write(data if self.model.encoding is None else text) == len(data if self.model.encoding is None else text)
        self.model.write(data)
        assert os.lseek(self.shared, 0, os.SEEK_CUR) == self.model.position
        self.cut_torn_character()

    def cut_torn_character(self) -> None:
        """End the file here if a write has replaced a part of a character."""
        if self.model.encoding is not None:
            os.ftruncate(self.shared, self.model.position)
            self.model.data = self.model.data[: self.model.position]

    async def do_empty(self) -> None:
        await self.file.write(b"" if self.model.encoding is None else "")

    async def do_tell(self) -> None:
        position = await self.file.tell()
        assert position & (1 << 64) - 1 == self.model.position
        assert os.lseek(self.shared, 0, os.SEEK_CUR) == self.model.position

    async def do_flush(self) -> None:
        await self.file.flush()
        assert os.lseek(self.shared, 0, os.SEEK_CUR) == self.model.position

    async def do_readall(self) -> None:
        assert await self.file.read() == self.model.read(-1)

    async def do_rewind(self) -> None:
        assert await self.file.seek(0) == 0
        self.model.position = 0

    async def do_end(self) -> None:
        self.model.position = await self.file.seek(0, os.SEEK_END)
        assert self.model.position == len(self.model.data)

    async def do_truncate(self) -> None:
        if self.model.position >= len(self.model.data) // 2 and not self.model.append:
            await self.file.truncate()
            self.model.data = self.model.data[: self.model.position].ljust(self.model.position, b"\0")

    async def do_peek(self) -> None:
        if self.model.encoding is None:
            found = await self.file.peek()
            assert self.model.data[self.model.position :].startswith(found)
            assert bool(found) == (self.model.position < len(self.model.data))

    async def do_into(self) -> None:
        if self.model.encoding is None:
            memory = bytearray(self.chance.choice((0, 7, 3 * BLOCK)))
            n = await self.file.readinto(memory)
            assert bytes(memory[:n]) == self.model.read(len(memory))

    async def do_theirs(self) -> None:
        if self.adopted:
            await self.file.flush()
        assert os.lseek(self.shared, 0, os.SEEK_CUR) == self.model.position
        kind = self.chance.choice(("write", "read", "seek")) if not self.file_is_direct else self.chance.choice(("seek", "end"))
        if kind == "write":
            data = self.encoded(self.text())
            os.write(self.shared, data)
            self.model.write(data)
            self.cut_torn_character()
        elif kind == "read":
            before = self.model.position
            self.model.line()
            data = self.model.data[before : self.model.position]
            assert os.read(self.shared, len(data)) == data
        elif kind == "seek":
            self.model.position = os.lseek(self.shared, 0, os.SEEK_SET)
        else:
            self.model.position = os.lseek(self.shared, 0, os.SEEK_END)

    @property
    def file_is_direct(self) -> bool:
        return getattr(self.file, "buffer", self.file).direct


@contextmanager
def told(play: Play) -> Iterator[None]:
    """Print the steps of a play that fails."""
    try:
        yield
    except BaseException:
        print(" ".join(play.did), "at", play.model.position)
        raise


async def play(path: Path, seed: int, encoding: str | None, newline: str | None, *, append: bool, direct: bool, adopted: bool) -> None:
    chance = random.Random(seed)
    start = "".join(chance.choice(WORDS) + chance.choice(("\n", "\r\n", "\r") if newline is None else ("\n",)) for _ in range(40))
    model = Model(start.encode(encoding or "utf-8"), encoding, newline, append=append)
    path.write_bytes(model.data)  # noqa: ASYNC240
    mode = ("a+" if append else "r+") + ("b" if encoding is None else "")
    options: dict[str, Any] = {} if encoding is None else {"encoding": encoding, "newline": newline}
    flags = os.O_RDWR | (os.O_APPEND if append else 0) | (os.O_DIRECT if direct else 0)
    file: Any = await open_aio(os.open(path, flags), mode, **options) if adopted else await open_aio(path, mode, direct=direct, **options)
    model.position = len(model.data) if append else 0
    async with file:
        if not adopted:
            for _ in range(3):
                assert await file.readline() == model.line()
        shared = os.dup(file.fileno())
        try:
            if not adopted:
                assert os.lseek(shared, 0, os.SEEK_CUR) == model.position
            steps = Play(file, shared, model, chance, adopted=adopted)
            with told(steps):
                for _ in range(60):
                    await steps.step()
                await file.aclose()
                assert os.lseek(shared, 0, os.SEEK_CUR) == model.position
            assert path.read_bytes() == model.data  # noqa: ASYNC240
        finally:
            os.close(shared)


@pytest.mark.parametrize(("encoding", "newline"), [(None, "\n"), ("utf-8", "\n"), ("utf-8", None), ("utf-16-le", None)])
@pytest.mark.parametrize("append", [False, True], ids=["", "append"])
@pytest.mark.parametrize("direct", [False, True], ids=["buffered", "direct"])
@pytest.mark.parametrize("adopted", [True, False], ids=["adopted", "given_away"])
@pytest.mark.parametrize("seeds", [range(1), pytest.param(range(1, 5), marks=pytest.mark.slow)], ids=["one", "more"])
async def test_shared_file_is_as_its_model(
    disk: Path, encoding: str | None, newline: str | None, append: bool, direct: bool, adopted: bool, seeds: range
) -> None:
    for seed in seeds:
        await play(disk / "file", seed, encoding, newline, append=append, direct=direct, adopted=adopted)
