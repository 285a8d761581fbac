"""The rows: each is a load, the contenders that do it, and what is wanted of ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from trio_aio._tools.bench.contenders import fio, integrations, names, native, ours, peers
from trio_aio._tools.bench.contenders.contender import DEPTH, Contender
from trio_aio._tools.bench.contenders.minimal import MINIMAL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio_aio._tools.bench.contenders.contender import File

__all__ = ("ROWS", "Row", "Sizes", "Wanted", "rows_named")

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

Measure = Literal["rate", "cost", "cpu", "late p99", "late max", "peak"]


@dataclass(frozen=True)
class Sizes:
    """The sizes of the files, in bytes."""

    large: int
    written: int
    """What the row that writes most writes."""

    @property
    def small(self) -> int:
        """The size of a file that stays in the page cache."""
        return max(self.large // 16, MIB)

    def of(self, file: File) -> int:
        """Return the size of a file."""
        sizes: dict[File, int] = {
            "large": self.large,
            "overwritten": max(self.large // 4, MIB),
            "sparse": self.large,
            "long sparse": 8 * self.large,
            "none": self.written,
        }
        return sizes.get(file, self.small)


@dataclass(frozen=True)
class Wanted:
    """What is wanted of one of ours: a measure, divided by that of the fastest of `against` if there are any."""

    measure: Measure
    """rate: operations a second. cost, cpu: seconds and CPU seconds for each operation. peak: bytes. late: by how many seconds ticks were
    later than those of an idle loop in another process, at the same time."""
    limit: float
    against: tuple[str, ...] = ()
    ours: str = "trio_aio"
    instead: Wanted | None = None
    """What is wanted where the processor is the limit, and the one contender of `instead.against` misses `limit` for that reason."""

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
    """More rounds would wear the disk."""

    def rounds(self, asked: int) -> int:
        """Return how many rounds there are."""
        return asked if self.most_rounds is None else min(asked, self.most_rounds)

    @property
    def all_wanted(self) -> Iterator[Wanted]:
        """What is wanted of this row, and of the lateness in every row."""
        yield from self.wanted
        for contender in self.contenders:
            if contender.ours and contender.loop is not None:
                yield Wanted("late p99", 0.001, ours=contender.name)
                yield Wanted("late max", 0.010, ours=contender.name)


_CAIO = tuple(contender.name for contender in peers.CAIO_PREAD)
_FIO = fio.READ.name
_POSITIONAL = (*ours.on_both_loops(ours.pread), *peers.CAIO_PREAD, peers.AIOFILE)


def _direct_reads(tasks: int, cpu: float, rate: float, more: tuple[Contender, ...] = (), *wanted: Wanted) -> Row:
    """Return a row of direct random reads. cpu: of minimal's at most. rate: of fio's at least."""
    minimal = (MINIMAL.name,)
    return Row(
        f"direct-{tasks}",
        f"direct random reads of 4 KiB, {f'{tasks} at once' if tasks > 1 else 'one task'}",
        (*ours.on_both_loops(ours.pread), *more, MINIMAL, native.CHECKPOINT, peers.THREAD_PREAD, fio.READ),
        (Wanted("cpu", cpu, minimal), Wanted("rate", rate, (_FIO,), instead=Wanted("rate", 0.85, minimal)), *wanted),
        file="large",
        tasks=tasks,
        direct=True,
    )


def _direct_overwrites(tasks: int, rate: float) -> Row:
    """Return a row of direct random overwrites. rate: of fio's at least."""
    return Row(
        f"overwrite-{tasks}",
        f"direct random overwrites of 4 KiB, {f'{tasks} at once' if tasks > 1 else 'one task'}",
        (*ours.on_both_loops(ours.overwrite), native.CHECKPOINT, peers.THREAD_OVERWRITE, fio.WRITE),
        (Wanted("rate", rate, (fio.WRITE.name,)),),
        file="overwritten",
        tasks=tasks,
        direct=True,
    )


def _names(name: str, title: str, load: Any, rate: float) -> Row:
    """Return a row of calls on paths. rate: of anyio's paths at least, on each event loop."""
    return Row(
        f"names-{name}",
        title,
        names.paths(load),
        (
            Wanted("rate", rate, ("anyio.Path",)),
            Wanted("rate", rate, ("anyio.Path (asyncio)",), ours="trio_aio (asyncio)"),
        ),
        random=False,
    )


def _filesystem(name: str, title: str, load: Any, rate: float, **options: Any) -> Row:
    """Return a row of fsspec. rate: of its own filesystem's at least."""
    wanted = (Wanted("rate", rate, ("LocalFileSystem",)),)
    return Row(f"integrations-fsspec-{name}", f"fsspec: {title}", integrations.filesystems(load), wanted, **options)


def _store(name: str, title: str, load: Any, rate: float, **options: Any) -> Row:
    """Return a row of zarr. rate: of its own store's at least."""
    wanted = (Wanted("rate", rate, ("LocalStore",)),)
    return Row(f"integrations-zarr-{name}", f"zarr: {title}", integrations.stores(load), wanted, **options)


def _response(name: str, title: str, load: Any, rate: float, **options: Any) -> Row:
    """Return a row of Starlette. rate: of its own response's at least, on each event loop."""
    return Row(
        f"integrations-starlette-{name}",
        f"Starlette: {title}",
        integrations.responses(load),
        (
            Wanted("rate", rate, ("Starlette",)),
            Wanted("rate", rate, ("Starlette (asyncio)",), ours="trio_aio (asyncio)"),
        ),
        random=False,
        **options,
    )


ROWS: tuple[Row, ...] = (
    Row(
        "cached-1",
        "pread(4096), cached, one task",
        (*_POSITIONAL, *peers.cursor_files(), native.CHECKPOINT, native.PREAD_LOOP),
        (Wanted("cost", 1.8, (native.CHECKPOINT.name,)), Wanted("rate", 20, ("trio.open_file",))),
    ),
    Row(
        "cached-16",
        "pread(4096), cached, 16 tasks",
        (*_POSITIONAL, *peers.cursor_files(), native.PREAD_LOOP),
        (Wanted("rate", 1, _CAIO), Wanted("cpu", 2 / 3, _CAIO)),
        tasks=16,
    ),
    *(
        Row(
            f"cold-{tasks}",
            f"pread(4096), not cached, {tasks} tasks",
            (*_POSITIONAL, peers.THREAD_PREAD, *peers.cursor_files()[:1]),
            (Wanted("rate", 1, _CAIO),),
            file="large",
            tasks=tasks,
            cold=True,
        )
        for tasks in (16, 64)
    ),
    _direct_reads(1, 1.2, 0.6),
    _direct_reads(16, 1.3, 0.8),
    _direct_reads(
        64,
        1.3,
        0.9,
        ours.on_both_loops(ours.read_blocks, " read_blocks"),
        Wanted("rate", 0.97, (_FIO,), ours="trio_aio read_blocks"),
    ),
    _direct_overwrites(1, 0.4),
    _direct_overwrites(16, 0.7),
    _direct_overwrites(64, 0.8),
    Row(
        "blocks-cached",
        "read_blocks of 4 KiB, cached",
        (*ours.on_both_loops(ours.read_blocks), native.PREADV_LOOP),
        (Wanted("rate", 1.5, ("os.preadv loop",)),),
        tasks=128,
    ),
    Row(
        "chunks-direct",
        "a file in pieces of 1 MiB, direct, 8 ahead",
        (*ours.on_both_loops(ours.chunks), fio.READ),
        (Wanted("rate", 0.95, (_FIO,)),),
        file="large",
        piece=MIB,
        tasks=DEPTH,
        direct=True,
    ),
    Row(
        "chunks-cold",
        "a file in pieces of 1 MiB, not cached",
        (*ours.on_both_loops(ours.chunks), *peers.cursor_files(), native.BLOCKING_LOOP),
        (Wanted("rate", 1, ("blocking loop",)),),
        file="large",
        piece=MIB,
        cold=True,
        whole=True,
    ),
    Row(
        "sequential-8k",
        "a cached file from one end to the other, 8 KiB a read",
        (*ours.sequential_readers(), *peers.cursor_files(buffering=-1)),
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
        (*ours.sequential_readers(), *peers.cursor_files(buffering=-1)),
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
            (*ours.line_readers(mode), *native.line_readers(mode), *peers.line_readers(mode)),
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
            (*ours.on_both_loops(ours.whole), *peers.THREAD_WHOLE),
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
        (*ours.on_both_loops(ours.append), *peers.THREAD_APPEND, *peers.CAIO_APPEND),
        (Wanted("rate", 3, ("trio.to_thread",)),),
        tasks=16,
    ),
    Row(
        "big-reads",
        "64 MiB a read, not cached, 2 tasks",
        (
            *ours.on_both_loops(ours.pread),
            *ours.on_both_loops(ours.preadinto, " preadinto"),
            peers.THREAD_PREAD,
            *peers.CAIO_PREAD,
            *native.IDLE,
        ),
        file="large",
        piece=64 * MIB,
        tasks=2,
        cold=True,
        whole=True,
    ),
    Row(
        "big-writes",
        "buffered writes of 1 MiB, more than the disk takes at once, 4 tasks",
        (*ours.on_both_loops(ours.pwrite), peers.THREAD_PWRITE, *peers.CAIO_PWRITE, *native.IDLE),
        file="none",
        piece=MIB,
        tasks=4,
        whole=True,
        most_rounds=3,
    ),
    Row(
        "queued",
        "direct random reads of 4 KiB, 2048 at once",
        (*ours.on_both_loops(ours.pread), peers.THREAD_PREAD, *native.IDLE),
        file="large",
        tasks=2048,
        direct=True,
    ),
    Row(
        "closing",
        "a context and a file opened, 16 reads, both closed; 4 tasks",
        (*ours.on_both_loops(ours.close), peers.THREAD_CLOSE, *native.IDLE),
        file="large",
        tasks=4,
        direct=True,
    ),
    Row(
        "faults",
        "reads of 4 KiB, not cached, 16 tasks, beside requests that hang or fail",
        (*ours.BESIDE_FAULTS, *native.IDLE),
        file="large",
        tasks=16,
        cold=True,
    ),
    _names("stat", "stat of a name in memory", names.stat, 10),
    _names("exists", "exists of a name in memory", names.exists, 10),
    _names("file", "read_bytes of a cached file of 4 KiB", names.read_small, 8),
    _names("open", "a cached file of 4 KiB opened, read and closed", names.open_read_close, 8),
    _names("iterdir", "iterdir of 1,000 names, by entry", names.iterdir, 30),
    _names("rglob", "rglob of 900 files in 30 directories, by match", names.rglob, 20),
    _names("write", "write_bytes of 4 KiB", names.write_small, 2),
    Row(
        "names-files",
        "read_files of 500 cached files of 4 KiB, by file",
        names.READ_FILES,
        (Wanted("rate", 2, ("blocking loop",)),),
        random=False,
    ),
    _filesystem("file", "cat_file of a cached file of 4 KiB", integrations.cat_file, 1, random=False),
    _filesystem("ranges", "cat_ranges of 256 ranges of 4 KiB of a cached file, by range", integrations.cat_ranges, 2),
    _filesystem(
        "ranges-cold", "cat_ranges of 256 ranges of 4 KiB, not cached, by range", integrations.cat_ranges, 4, file="large", cold=True
    ),
    _filesystem("files", "cat of 1,000 cached files of 4 KiB, by file", integrations.cat, 1.5, random=False),
    _filesystem("files-cold", "cat of 1,000 files of 4 KiB, not cached, by file", integrations.cat, 1.5, random=False, cold=True),
    _store("chunks", "an array of 256 chunks of 4 KiB, cached, by chunk", integrations.read_array, 1.3, random=False),
    _store("chunks-cold", "an array of 256 chunks of 4 KiB, not cached, by chunk", integrations.read_array, 1.3, random=False, cold=True),
    _store("points", "an element of an array after the other, cached", integrations.read_points, 1.3, random=False),
    _response("small", "a cached file of 4 KiB after the other", integrations.serve, 1),
    _response("small-16", "cached files of 4 KiB, 16 at once", integrations.serve, 1.5, tasks=16),
    _response("large", "a large cached file, by 64 KiB", integrations.serve_large, 5, piece=64 * KIB),
    _response("ranges", "10 ranges of 4 KiB of a large cached file in a request, by range", integrations.serve_ranges, 3),
    Row(
        "names-stat-cold",
        "stat of 1,000 names that are not in memory, 16 tasks",
        names.paths(names.stat_cold),
        (Wanted("rate", 2, ("anyio.Path",)),),
        tasks=16,
        whole=True,
    ),
    Row(
        "names-files-cold",
        "read_files of 500 files of 4 KiB that are not cached, by file",
        names.READ_FILES,
        (Wanted("rate", 2, ("blocking loop",)),),
        whole=True,
    ),
    Row(
        "names-walk-cold",
        "walk of a tree of up to 30,000 files that is not in memory, by file",
        names.WALKS,
        (Wanted("rate", 1, ("os.walk in a thread",)),),
        whole=True,
        most_rounds=3,
    ),
    Row(
        "memory",
        "a file in pieces of 1 MiB, 8 ahead: memory",
        (
            Contender("trio_aio", ours.chunks, "trio", ours=True),
            Contender("trio_aio, 8 times the file", ours.chunks, "trio", ours=True, file="long sparse"),
            Contender("trio_aio, into writer", ours.copy, "trio", ours=True),
            native.BLOCKING_LOOP,
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


def rows_named(name: str) -> list[Row]:
    """Return the row of that name, or otherwise the group of rows whose names begin with it and a hyphen."""
    return [row for row in ROWS if row.name == name] or [row for row in ROWS if row.name.startswith(f"{name}-")]
