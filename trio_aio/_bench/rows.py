"""The rows: loads, who competes in them, and what is wanted of ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from trio_aio._bench import contenders as c
from trio_aio._bench.contenders import Contender, File

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ("ROWS", "Row", "Sizes", "Wanted")

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

Measure = Literal["rate", "cost", "cpu", "late p99", "late max", "peak"]


@dataclass(frozen=True)
class Sizes:
    """How large the files are, in bytes."""

    large: int
    written: int
    """By the row that writes much."""

    @property
    def small(self) -> int:
        """Of what lies in the page cache all the time."""
        return max(self.large // 16, MIB)

    def of(self, file: File) -> int:
        """Give the size of a file."""
        return {"large": self.large, "sparse": self.large, "long sparse": 8 * self.large, "none": self.written}.get(file, self.small)


@dataclass(frozen=True)
class Wanted:
    """What is wanted: a measure of ours divided by that of the quickest of `against`, or as it is if there are none."""

    measure: Measure
    """Operations a second; seconds, CPU seconds an operation; seconds late; bytes."""
    limit: float
    against: tuple[str, ...] = ()
    ours: str = "trio_aio"

    @property
    def at_least(self) -> bool:
        """Whether more is better."""
        return self.measure == "rate"


@dataclass(frozen=True)
class Row:
    """One load."""

    name: str
    title: str
    contenders: tuple[Contender, ...]
    wanted: tuple[Wanted, ...] = ()
    file: File = "small"
    piece: int = 4 * KIB
    tasks: int = 1
    random: bool = True
    direct: bool = False
    cold: bool = False
    whole: bool = False
    most_rounds: int | None = None
    """More would be hard on the disk."""

    def rounds(self, asked: int) -> int:
        """Give how often each contender has its turn."""
        return asked if self.most_rounds is None else min(asked, self.most_rounds)

    @property
    def all_wanted(self) -> Iterator[Wanted]:
        """What is wanted of the rate and so on, and of the lateness: that everywhere."""
        yield from self.wanted
        ours = [contender for contender in self.contenders if contender.ours and contender.loop is not None]
        for contender in ours:
            yield Wanted("late p99", 0.001, ours=contender.name)
            yield Wanted("late max", 0.010, ours=contender.name)


_CAIO = tuple(contender.name for contender in c.CAIO_PREAD)
_POSITIONAL = (*c.ours(c.pread), *c.CAIO_PREAD, c.AIOFILE)
_FIO = Contender("fio libaio", c.fio)

ROWS: tuple[Row, ...] = (
    Row(
        "cached-1",
        "pread(4096), cached, one task",
        (*_POSITIONAL, *c.cursor_files(), Contender("bare checkpoint", c.checkpoint, "trio", same_work=False), c.PREAD_LOOP),
        (Wanted("cost", 1.8, ("bare checkpoint",)), Wanted("rate", 20, ("trio.open_file",))),
    ),
    Row(
        "cached-16",
        "pread(4096), cached, 16 tasks",
        (*_POSITIONAL, *c.cursor_files(), c.PREAD_LOOP),
        (Wanted("rate", 1, _CAIO), Wanted("cpu", 2 / 3, _CAIO)),
        tasks=16,
    ),
    *(
        Row(
            f"cold-{tasks}",
            f"pread(4096), not cached, {tasks} tasks",
            (*_POSITIONAL, c.THREAD_PREAD, *c.cursor_files()[:1]),
            (Wanted("rate", 1, _CAIO),),
            file="large",
            tasks=tasks,
            cold=True,
        )
        for tasks in (16, 64)
    ),
    Row(
        "direct-64",
        "direct random reads of 4 KiB, 64 at once",
        (*c.ours(c.pread), *c.ours(c.read_blocks, " read_blocks"), c.THREAD_PREAD, _FIO),
        (Wanted("rate", 0.9, ("fio libaio",)), Wanted("rate", 0.97, ("fio libaio",), ours="trio_aio read_blocks")),
        file="large",
        tasks=64,
        direct=True,
    ),
    Row(
        "blocks-cached",
        "read_blocks of 4 KiB, cached",
        (*c.ours(c.read_blocks), Contender("os.preadv loop", c.preadv_loop)),
        (Wanted("rate", 1.5, ("os.preadv loop",)),),
        tasks=128,
    ),
    Row(
        "chunks-direct",
        "a file in pieces of 1 MiB, direct, 8 ahead",
        (*c.ours(c.chunks), _FIO),
        (Wanted("rate", 0.95, ("fio libaio",)),),
        file="large",
        piece=MIB,
        tasks=c.DEPTH,
        direct=True,
    ),
    Row(
        "chunks-cold",
        "a file in pieces of 1 MiB, not cached",
        (*c.ours(c.chunks), *c.cursor_files(), Contender("blocking loop", c.readinto_loop)),
        (Wanted("rate", 1, ("blocking loop",)),),
        file="large",
        piece=MIB,
        cold=True,
        whole=True,
    ),
    Row(
        "sequential-8k",
        "a cached file from one end to the other, 8 KiB a read",
        (*c.CURSOR_OURS, *c.cursor_files(buffering=-1)),
        (
            Wanted("rate", 5, ("anyio.open_file",)),
            Wanted("rate", 5, ("anyio.open_file (asyncio)",), ours="trio_aio (asyncio)"),
        ),
        piece=8 * KIB,
        random=False,
    ),
    Row(
        "sequential-64k",
        "a cached file from one end to the other, 64 KiB a read",
        (*c.CURSOR_OURS, *c.cursor_files(buffering=-1)),
        (
            Wanted("rate", 5, ("anyio.open_file",)),
            Wanted("rate", 5, ("anyio.open_file (asyncio)",), ours="trio_aio (asyncio)"),
        ),
        piece=64 * KIB,
        random=False,
    ),
    *(
        Row(
            name,
            title,
            c.line_readers(mode),
            (
                Wanted("rate", 5, ("anyio.open_file",)),
                Wanted("rate", 0.5, ("built-in open",)),
                Wanted("rate", 0.5, ("built-in open",), ours="trio_aio (asyncio)"),
            ),
            file="lines",
            piece=64,
            random=False,
        )
        for name, title, mode in (("lines", "a file by lines, bytes", "rb"), ("lines-text", "a file by lines, text", "r"))
    ),
    *(
        Row(
            f"whole-{name}",
            f"a cached file of {size} in one call",
            (*c.ours(c.whole), *c.THREAD_WHOLE),
            (
                Wanted("rate", 1, ("trio.to_thread Path.read_bytes",)),
                Wanted("rate", 1, ("anyio.to_thread Path.read_bytes (asyncio)",), ours="trio_aio (asyncio)"),
            ),
            piece=piece,
            random=False,
        )
        for name, size, piece in (("1k", "1 KiB", KIB), ("1m", "1 MiB", MIB), ("64m", "64 MiB", 64 * MIB))
    ),
    Row(
        "append",
        "4 KiB appended and fdatasync, 16 tasks",
        (*c.ours(c.append), *c.THREAD_APPEND, *c.CAIO_APPEND),
        (Wanted("rate", 3, ("trio.to_thread",)),),
        tasks=16,
    ),
    Row(
        "big-reads",
        "64 MiB a read, not cached, 2 tasks",
        (*c.ours(c.pread), *c.ours(c.preadinto, " preadinto"), c.THREAD_PREAD, *c.CAIO_PREAD, *c.IDLE),
        file="large",
        piece=64 * MIB,
        tasks=2,
        cold=True,
        whole=True,
    ),
    Row(
        "big-writes",
        "buffered writes of 1 MiB, more than the disk takes at once, 4 tasks",
        (*c.ours(c.pwrite), c.THREAD_PWRITE, *c.CAIO_PWRITE, *c.IDLE),
        file="none",
        piece=MIB,
        tasks=4,
        whole=True,
        most_rounds=3,
    ),
    Row(
        "queued",
        "direct random reads of 4 KiB, 2048 at once",
        (*c.ours(c.pread), c.THREAD_PREAD, *c.IDLE),
        file="large",
        tasks=2048,
        direct=True,
    ),
    Row(
        "closing",
        "a context and a file opened, 16 reads, both closed; 4 tasks",
        (*c.ours(c.close), c.THREAD_CLOSE, *c.IDLE),
        file="large",
        tasks=4,
        direct=True,
    ),
    Row(
        "faults",
        "reads of 4 KiB, not cached, 16 tasks, beside requests that hang or fail",
        (*c.BESIDE_FAULTS, *c.IDLE),
        file="large",
        tasks=16,
        cold=True,
    ),
    Row(
        "memory",
        "a file in pieces of 1 MiB, 8 ahead: memory",
        (
            Contender("trio_aio", c.chunks, "trio", ours=True),
            Contender("trio_aio, 8 times the file", c.chunks, "trio", ours=True, file="long sparse"),
            Contender("trio_aio, into writer", c.copy, "trio", ours=True),
            Contender("blocking loop", c.readinto_loop),
        ),
        (
            Wanted("peak", 1.1, ("trio_aio",), ours="trio_aio, 8 times the file"),
            Wanted("peak", 100 * MIB, ours="trio_aio, 8 times the file"),
            Wanted("peak", 100 * MIB, ours="trio_aio, into writer"),
        ),
        file="sparse",
        piece=MIB,
        whole=True,
        most_rounds=1,
    ),
)
