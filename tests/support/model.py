"""A file, a model of it, and several tasks that work on both at once. In the manner of fsx.

A plan is made from a source of chance and nothing else, so a seed repeats it, and so does hypothesis. In each of its steps the tasks have
ranges of the file that do not overlap, and their calls are cancelled at some moment or not; so the outcome of a call is certain
when it has returned: it happened, or it raised Cancelled and did not. The one exception is a writer's contiguous beginning, which is
looked up at once. After each step the file is compared with the model, and everything has to be at rest.

A step uses direct files or buffered ones, never both: the kernel does not promise that they are coherent at one time. What a direct file
does through the page cache by itself (unaligned writes, appends) is mixed with its direct requests all the same.
"""

from __future__ import annotations

import itertools
import mmap
import os
import random
from array import array
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import trio

from trio_aio import RWF, AIOContext, open_aio
from trio_aio._lanes.workers import Population
from trio_aio._requests.sync import Sync

from .files import BLOCK
from .page_cache import evict
from .tasks import until_idle

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from trio_aio import AsyncFile

MIB = 1 << 20

READS = ("pread", "preadinto", "preadv", "read_ranges", "read_blocks", "chunks")
WRITES = ("pwrite", "pwritev", "write_ranges", "writer", "fallocate")
CURSOR = ("cursor_read", "cursor_readinto", "cursor_write", "readall")
BY_DESCRIPTOR = ("context_pread", "context_preadinto", "context_pwrite", "context_fdatasync")
OTHERS = ("fsync", "fdatasync", "size", "flush", "own_file", *BY_DESCRIPTOR)
MANY = ("read_ranges", "read_blocks", "write_ranges", "preadv", "pwritev")


class Difference(AssertionError):
    """Something is not what the model says."""


class Failure(AssertionError):
    """Where in the plan something went wrong; what it was is its cause."""


@dataclass(frozen=True)
class Moment:
    """When something is cancelled: after so many ticks, or after some time."""

    ticks: int = 0
    microseconds: int = 0


@dataclass(frozen=True)
class Call:
    """One call, or a few that belong together, and the pieces (offset, size) of the file that it is about."""

    kind: str
    pieces: tuple[tuple[int, int], ...] = ()
    seed: int = 0  # of its data
    pad: int = 0  # how far its memory is from a page's beginning
    size: int = 0  # of chunks and of a writer's blocks; max_gap of read_ranges
    depth: int = 1
    cancelled: Moment | None = None

    @property
    def end(self) -> int:
        return max((offset + size for offset, size in self.pieces), default=0)


@dataclass(frozen=True)
class Step:
    """What tasks do at one time, each its calls one after the other."""

    kind: str  # "anywhere"; "truncate", "append": the first task does that, and others stay below; "turns": all with one cursor
    direct: bool
    tasks: tuple[tuple[Call, ...], ...]
    cold: bool = False  # nothing of the file is in the page cache at the beginning
    reopened: bool = False  # the files are closed and opened before
    cancelled: Moment | None = None  # all tasks


@dataclass(frozen=True)
class Plan:
    """All that is done to one file."""

    engine: str
    max_in_flight: int
    max_workers: int
    abandon: bool  # cancelled reads are not waited for
    base: int  # of the file before it is a hole
    length: int  # behind that, at the beginning
    steps: tuple[Step, ...]


# ---- plans


def _some(chance: random.Random, *values: Any) -> Any:
    return values[chance.randrange(len(values))]


def _edge(chance: random.Random, low: int, high: int) -> int:
    """Return a number from `low` to `high`, often one where a block ends."""
    unit = _some(chance, BLOCK, 512, 1)
    at = chance.randrange(low, high + 1)
    return max(low, min(high, -(-at // unit) * unit))


def _piece(chance: random.Random, low: int, high: int) -> tuple[int, int]:
    start = _edge(chance, low, high)
    return start, _edge(chance, start, high) - start


def _moment(chance: random.Random, one_in: int) -> Moment | None:
    if chance.randrange(one_in):
        return None
    if chance.randrange(2):
        return Moment(ticks=_some(chance, 0, 1, 2, 3, 4, 6, 10, 20, 50))
    return Moment(microseconds=_some(chance, 20, 50, 100, 200, 500, 1000))


def _call(chance: random.Random, kinds: tuple[str, ...], low: int, high: int) -> Call:
    kind = _some(chance, *kinds)
    pieces = [_piece(chance, low, high)]
    if kind in MANY:
        edges = sorted(_edge(chance, low, high) for _ in range(2 * chance.randrange(1, 9)))
        pairs = itertools.pairwise(edges) if kind in ("preadv", "pwritev") else zip(edges[::2], edges[1::2], strict=True)
        pieces = [(start, end - start) for start, end in pairs]
    if kind == "read_blocks":
        size = _some(chance, BLOCK, 512, 1, 1000)
        pieces = [(offset, size) for offset, _ in pieces if offset + size <= high]
    backwards = chance.randrange(2) and kind in ("read_ranges", "read_blocks", "write_ranges")
    return Call(
        kind,
        tuple(reversed(pieces) if backwards else pieces),
        seed=chance.randrange(1 << 16),
        pad=_some(chance, 0, 1, 512),
        size=_some(chance, BLOCK, 1000, 512, 3 * BLOCK, 128 << 10),
        depth=_some(chance, 2, 1, 4, 8),
        cancelled=_moment(chance, 3),
    )


def _step(chance: random.Random, base: int, space: int) -> Step:
    kind = _some(chance, "anywhere", "anywhere", "anywhere", "anywhere", "truncate", "append", "turns")
    low, high = base, base + space
    first: list[tuple[Call, ...]] = []
    if kind == "truncate":
        first.append((Call("truncate", ((_edge(chance, low, high), 0),), cancelled=_moment(chance, 3)),))
    elif kind == "append":
        for _ in range(_some(chance, 1, 2, 4)):
            append = Call(
                _some(chance, "append", "append_pwrite", "append_flag"),
                seed=chance.randrange(1 << 16),
                pad=_some(chance, 0, 1),
                size=_some(chance, BLOCK, 1, 300, 512, 3 * BLOCK + 5),
                cancelled=_moment(chance, 3),
            )
            first.append((append,))
        if len(first) == 1 and chance.randrange(2):
            first = [(Call("append_writer", ((0, _some(chance, 1, 3 * BLOCK, 10_000)),), size=_some(chance, 1000, BLOCK), depth=3),)]
    if kind == "turns":
        for _ in range(chance.randrange(1, 7)):
            first.append((_call(chance, ("read", "readinto", "write"), low, low + min(space, 8 * BLOCK)),))
        tasks = first
    else:
        cuts = sorted({low, high, *(_edge(chance, low, high) for _ in range(chance.randrange(_some(chance, 8, 4, 30))))})
        tasks = first
        for number, (start, end) in enumerate(itertools.pairwise(cuts)):
            kinds = (*READS, *WRITES, *OTHERS, *CURSOR * (number == 0))
            tasks.append(tuple(_call(chance, kinds, start, end) for _ in range(chance.randrange(1, 4))))
    return Step(
        kind,
        bool(chance.randrange(2)),
        tuple(tasks),
        cold=not chance.randrange(4),
        reopened=not chance.randrange(10),
        cancelled=_moment(chance, 6),
    )


def make_plan(chance: random.Random, steps: int) -> Plan:
    """Return a plan of at most so many steps."""
    space = _some(chance, 16 * BLOCK, 3 * BLOCK, 64 * BLOCK, 3 * MIB)
    base = _some(chance, 0, 0, 0, (4 << 30) - 5 * BLOCK)
    return Plan(
        _some(chance, "aio", "workers"),
        _some(chance, 128, 1, 2, 3, 8),
        _some(chance, 8, 1, 2),
        not chance.randrange(4),
        base,
        _edge(chance, 0, space),
        tuple(_step(chance, base, space) for _ in range(chance.randrange(1, steps + 1))),
    )


# ---- the model


class Model:
    """What must be in the file, from `base` on. Before it there are zeros."""

    def __init__(self, base: int, data: bytes) -> None:
        self.base: int = base
        self.data: bytearray = bytearray(data)

    @property
    def end(self) -> int:
        """The size of the file."""
        return self.base + len(self.data)

    def padded(self, offset: int, size: int) -> bytes:
        """Return the bytes at `offset`, and zeros behind the end of the file."""
        at = offset - self.base
        return bytes(self.data[at : at + size]).ljust(size, b"\0")

    def write(self, offset: int, data: bytes) -> None:
        if data:
            self.truncate(max(self.end, offset + len(data)))
            at = offset - self.base
            self.data[at : at + len(data)] = data

    def truncate(self, size: int) -> None:
        size -= self.base
        del self.data[size:]
        self.data.extend(bytes(size - len(self.data)))


def filling(size: int, seed: int) -> bytes:
    """Return bytes that identify their writer. None of them is 0, as in a hole."""
    return random.Random(seed).randbytes(size).replace(b"\0", b"\1")


def _memory(size: int, pad: int) -> memoryview:
    """Return writable memory `pad` bytes behind the beginning of a page."""
    return memoryview(mmap.mmap(-1, size + pad + 1))[pad : pad + size]


def compare(what: str, found: bytes | memoryview, expected: bytes, offset: int) -> None:
    if found == expected:
        return
    wrong = [i for i, (a, b) in enumerate(itertools.zip_longest(found, expected)) if a != b]
    at = wrong[0]
    raise Difference(
        f"{what}: {len(found)} bytes, expected {len(expected)}, at offset {offset}; {len(wrong)} differ, from {offset + at} "
        f"to {offset + wrong[-1]}; there are {bytes(found[at : at + 16])!r}, expected {expected[at : at + 16]!r}"
    )


# ---- tasks


@dataclass
class Tally:
    """What a run did."""

    steps: int = 0
    calls: int = 0
    cancelled: int = 0  # raised Cancelled
    finished_though_cancelled: int = 0
    kinds: dict[str, int] = field(default_factory=dict)


class Runner:
    """One plan, on a file of its own."""

    def __init__(self, plan: Plan, path: Path, progress: Callable[..., None] | None = None) -> None:
        self.plan: Plan = plan
        self.path: Path = path
        self.tally: Tally = Tally()
        self._progress: Callable[..., None] | None = progress
        data = filling(plan.length, 1)
        with path.open("wb") as file:
            file.truncate(plan.base)
            file.seek(plan.base)
            file.write(data)
        self.model: Model = Model(plan.base, data)
        self._cursors: dict[AsyncFile, int] = {}
        self._files: dict[bool, list[AsyncFile]] = {}
        self._at_rest: list[tuple[Call, memoryview, bytes]] = []  # memory of reads that were cancelled, and what was then in it
        # of the step
        self._cut: int = 0  # where it may be truncated
        self._ceiling: int = 0  # it never gets longer
        self._appended: list[tuple[AsyncFile, Call, bytes]] = []
        self._asked: list[list[Any]] = []  # of "turns": calls in the order in which they asked, and what they gave
        self._nursery: Any = None

    async def run(self) -> Tally:
        plan = self.plan
        async with (
            AIOContext(plan.max_in_flight, max_workers=plan.max_workers, engine=plan.engine) as context,  # type: ignore[arg-type]
            AsyncExitStack() as stack,
        ):
            self._context = context
            await self._open()
            stack.push_async_callback(self._close)
            for number, step in enumerate(plan.steps):
                if self._progress is not None:
                    self._progress(context)
                try:
                    if step.reopened:
                        await self._close()
                        await self._open()
                    if step.cold:
                        evict(self.path)
                    await self._run_step(step)
                    await self._check(step)
                except Exception as error:
                    failure = Failure(f"step {number} of {len(plan.steps)}, {step}")
                    failure.__cause__ = error
                    if self._progress is not None:
                        self._progress(context, failure)  # closing may hang now
                    raise failure from error
                self.tally.steps += 1
        return self.tally

    async def _open(self) -> None:
        for direct in (False, True):
            modes = ("r+b", "r+b", "a+b")
            self._files[direct] = [await self._open_one(mode, direct) for mode in modes]
            for file in self._files[direct]:
                self._cursors[file] = await file.tell()

    async def _open_one(self, mode: str, direct: bool) -> AsyncFile:
        return await open_aio(self.path, mode, direct=direct, abandon_on_cancel=self.plan.abandon, context=self._context)

    async def _close(self) -> None:
        for files in self._files.values():
            for file in files:
                await file.aclose()
        self._cursors.clear()

    # ---- a step

    async def _run_step(self, step: Step) -> None:
        model = self.model
        tasks = step.tasks
        self._cut = self._ceiling = model.end
        if step.kind == "truncate":
            ((at, _),) = tasks[0][0].pieces
            self._cut, self._ceiling = min(at, self._cut), max(at, self._ceiling)
        if step.kind == "append":
            self._ceiling += sum(call.size + sum(size for _, size in call.pieces) for calls in tasks for call in calls if is_append(call))
        if step.kind in ("truncate", "append"):
            tasks = tuple(tuple(call for call in calls if is_first(call) or call.end <= self._cut) for calls in tasks)
        else:
            self._ceiling = max(self._ceiling, *(call.end for calls in tasks for call in calls))
        if step.kind != "truncate":
            self._cut = self._ceiling
        files = self._files[step.direct]
        if step.kind == "turns":
            self._ceiling += sum(call.pieces[0][1] for calls in tasks for call in calls)
            self._cursors[files[0]] = await files[0].seek(self.plan.base)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._cancel(scope, step.cancelled)
                for number, calls in enumerate(tasks):
                    file = files[0] if step.kind == "turns" or any(call.kind in CURSOR for call in calls) else files[number % 2]
                    nursery.start_soon(self._run_task, step, file, calls)

    def _cancel(self, scope: trio.CancelScope, moment: Moment | None) -> None:
        if moment == Moment():
            scope.cancel()
        elif moment is not None:
            self._nursery.start_soon(_cancel_at, scope, moment)

    async def _run_task(self, step: Step, file: AsyncFile, calls: tuple[Call, ...]) -> None:
        for call in calls:
            if is_append(call) and call.kind != "append_flag":
                file = self._files[step.direct][2]
            perform: Callable[[AsyncFile, Call], Awaitable[None]] = getattr(self, f"_{call.kind}")
            self.tally.calls += 1
            self.tally.kinds[call.kind] = self.tally.kinds.get(call.kind, 0) + 1
            with trio.CancelScope() as scope:
                self._cancel(scope, call.cancelled)
                try:
                    await perform(file, call)
                    self.tally.finished_though_cancelled += scope.cancel_called
                except trio.Cancelled:
                    self.tally.cancelled += 1
                    raise
                except Exception as error:
                    raise Failure(f"{call} on {file}") from error

    async def _check(self, step: Step) -> None:
        model = self.model
        if step.kind == "turns":
            self._replay_turns(self._files[step.direct][0])
        await until_idle(self._context)
        fd = os.open(self.path, os.O_RDONLY)
        try:
            size = os.fstat(fd).st_size
            found = os.pread(fd, max(self._ceiling - model.base, 0) + 1, model.base)
        finally:
            os.close(fd)
        if step.kind == "append":
            await self._match_appends(found[len(model.data) :])
        if size != model.end:
            raise Difference(f"the file has {size} bytes, expected {model.end}")
        compare("the file", found, bytes(model.data), model.base)
        for file, cursor in self._cursors.items():
            if await file.tell() != cursor:
                raise Difference(f"the cursor of {file} is at {await file.tell()}, expected {cursor}")
        for call, memory, before in self._at_rest:
            compare(f"memory of {call}, which was cancelled, later", memory, before, 0)
        self._at_rest.clear()
        while any(isinstance(request, Sync) and request.counted for request in self._in_flight()):
            await trio.lowlevel.checkpoint()  # all tasks that shared it have left
        self._check_rest()
        assert not self._context._by_fd

    def _in_flight(self) -> list[Any]:
        engine: Any = self._context._core.engine
        kernel = [] if engine.kernel is None else [request for request in engine.kernel.holders if request is not None]
        return [*engine.workers.requests(), *engine.workers.waiting(), *kernel]

    def _check_rest(self) -> None:
        """Nothing is in flight, and nothing is owned by what is not."""
        engine: Any = self._context._core.engine
        # A worker may still make memory that those waited for who were cancelled.
        left = self._in_flight()
        making_memory = [request for request in left if isinstance(request, Population) and request.counted]
        assert engine.outstanding == len(making_memory), left
        assert engine.abandoned == 0
        for files in self._files.values():
            for file in files:
                order = file._descriptor.order
                assert (order.leases, order.writes, order._syncing, list(order._syncs)) == (0, set(), None, []), file
                assert order.gate is None or (order.gate._in_flight, list(order.gate.waiting)) == (0, []), file
        in_use = [slab for slabs in engine.buffers._free.values() for slab in slabs if slab.page.in_use]
        assert not in_use, in_use

    # ---- reads

    def _check_read(self, what: object, found: bytes | memoryview, offset: int, size: int, end: int) -> None:
        """Check what a read gave that began when the file had `end` bytes; it may have become longer meanwhile."""
        least = max(0, min(size, end - offset, self._cut - offset))
        most = max(0, min(size, self._ceiling - offset))
        if not least <= len(found) <= most:
            raise Difference(f"{what} gave {len(found)} bytes at offset {offset}, expected {least} to {most}")
        compare(str(what), found, self.model.padded(offset, len(found)), offset)

    def _note_rest(self, call: Call, memory: memoryview) -> None:
        """Note what is in the memory of a read that was cancelled: from now on no thread may write to it."""
        if not self.plan.abandon:
            self._at_rest.append((call, memory, bytes(memory)))

    async def _pread(self, file: AsyncFile, call: Call) -> None:
        ((offset, size),) = call.pieces
        end = self.model.end
        self._check_read(call, await file.pread(size, offset), offset, size, end)

    async def _preadinto(self, file: AsyncFile, call: Call) -> None:
        ((offset, size),) = call.pieces
        end = self.model.end
        memory = _memory(size, call.pad)
        try:
            n = await file.preadinto(memory, offset)
        except trio.Cancelled:
            self._note_rest(call, memory)
            raise
        self._check_read(call, memory[:n], offset, size, end)
        compare(f"{call}, behind what was read", memory[n:], bytes(size - n), offset + n)

    async def _preadv(self, file: AsyncFile, call: Call) -> None:
        end = self.model.end
        offset = call.pieces[0][0] if call.pieces else 0
        size = sum(size for _, size in call.pieces)
        memory = _memory(size, call.pad)
        ends = list(itertools.accumulate((size for _, size in call.pieces), initial=0))
        try:
            n = await file.preadv([memory[a:b] for a, b in itertools.pairwise(ends)], offset)
        except trio.Cancelled:
            self._note_rest(call, memory)
            raise
        self._check_read(call, memory[:n], offset, size, end)

    async def _read_ranges(self, file: AsyncFile, call: Call) -> None:
        end = self.model.end
        found = await file.read_ranges(call.pieces, max_gap=call.size)
        assert len(found) == len(call.pieces)
        for data, (offset, size) in zip(found, call.pieces, strict=True):
            self._check_read(call, data, offset, size, end)

    async def _read_blocks(self, file: AsyncFile, call: Call) -> None:
        end = self.model.end
        size = call.pieces[0][1] if call.pieces else 1
        memory: Any = _memory(size * len(call.pieces), call.pad)
        offsets = [offset for offset, _ in call.pieces]
        try:
            if call.seed % 3:
                assert await file.read_blocks(offsets, size, into=memory) is memory
            else:
                memory = memoryview(await file.read_blocks(array("q", offsets), size))
        except EOFError:
            if call.end <= min(end, self._cut):
                raise
            return
        except trio.Cancelled:
            self._note_rest(call, memory)
            raise
        for i, (offset, _) in enumerate(call.pieces):
            block = memory[i * size : (i + 1) * size]
            if offset + size > self._ceiling:
                raise Difference(f"{call}: no EOFError for {offset}, the file has at most {self._ceiling} bytes")
            compare(str(call), block, self.model.padded(offset, size), offset)

    async def _chunks(self, file: AsyncFile, call: Call) -> None:
        ((offset, size),) = call.pieces
        end = self.model.end
        found = []
        leave_after = call.seed % 8  # else to the end
        async with file.chunks(call.size, start=offset, stop=offset + size, depth=call.depth) as chunks:
            while True:
                data = None
                with trio.CancelScope() as scope:  # a step that is cancelled loses no chunk
                    if call.seed % 3 == 0:
                        self._nursery.start_soon(_cancel_at, scope, Moment(ticks=1 + call.seed % 5))
                    try:
                        data = await chunks.__anext__()
                    except StopAsyncIteration:
                        break
                if data is not None:
                    found.append(data)
                if len(found) == leave_after:
                    size = min(size, leave_after * call.size)
                    break
        self._check_read(call, b"".join(found), offset, size, end)
        assert all(len(data) == call.size for data in found[:-1])

    async def _size(self, file: AsyncFile, call: Call) -> None:
        end = self.model.end
        size = await file.size()
        if not min(end, self._cut) <= size <= self._ceiling:
            raise Difference(f"size() is {size}, expected {min(end, self._cut)} to {self._ceiling}")

    async def _fsync(self, file: AsyncFile, call: Call) -> None:
        await file.fsync()

    async def _fdatasync(self, file: AsyncFile, call: Call) -> None:
        await file.fdatasync()

    async def _flush(self, file: AsyncFile, call: Call) -> None:
        await file.flush()

    # ---- writes

    def _data(self, call: Call, size: int, number: int = 0) -> tuple[bytes, memoryview]:
        """Return what is written, and the memory that it is written from, which is overwritten when the call has ended."""
        data = filling(size, call.seed + number)
        memory = _memory(size, call.pad)
        memory[:] = data
        return data, memory

    async def _pwrite(self, file: AsyncFile, call: Call) -> None:
        ((offset, size),) = call.pieces
        data, memory = self._data(call, size)
        try:
            assert await file.pwrite(memory, offset) == size
        finally:
            memory[:] = b"\xee" * size
        self.model.write(offset, data)

    async def _pwritev(self, file: AsyncFile, call: Call) -> None:
        offset = call.pieces[0][0] if call.pieces else 0
        size = sum(size for _, size in call.pieces)
        data, memory = self._data(call, size)
        ends = list(itertools.accumulate((size for _, size in call.pieces), initial=0))
        try:
            assert await file.pwritev([memory[a:b] for a, b in itertools.pairwise(ends)], offset) == size
        finally:
            memory[:] = b"\xee" * size
        self.model.write(offset, data)

    async def _write_ranges(self, file: AsyncFile, call: Call) -> None:
        data = [self._data(call, size, i) for i, (_, size) in enumerate(call.pieces)]
        ranges = [(offset, memory) for (offset, _), (_, memory) in zip(call.pieces, data, strict=True)]
        try:
            assert await file.write_ranges(ranges) == sum(size for _, size in call.pieces)
        finally:
            for _, memory in ranges:
                memory[:] = b"\xee" * len(memory)
        for (offset, _), (new, _) in zip(call.pieces, data, strict=True):
            self.model.write(offset, new)

    async def _fallocate(self, file: AsyncFile, call: Call) -> None:
        ((offset, size),) = call.pieces
        if size:
            await file.fallocate(offset, size)
            self.model.truncate(max(self.model.end, offset + size))

    async def _truncate(self, file: AsyncFile, call: Call) -> None:
        ((size, _),) = call.pieces
        assert await file.truncate(size) == size
        self.model.truncate(size)

    async def _writer(self, file: AsyncFile, call: Call) -> None:
        ((offset, size),) = call.pieces
        data = filling(size, call.seed)
        taken = 0
        try:
            async with file.writer(offset, size=call.size, depth=call.depth) as writer:
                while taken < size:
                    taken += await writer.write(data[taken : taken + 1 + (call.seed + taken) % (2 * call.size)])
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                found = (await file.pread(size, offset)).ljust(size, b"\0")
            old = self.model.padded(offset, size)
            reached = next((i for i in range(taken) if found[i] != data[i]), taken)
            if reached <= taken - call.size:
                raise Difference(f"{call}: {taken} bytes were taken, and only the first {reached} written") from None
            compare(f"what {call} left when it was cancelled", found, data[:reached] + old[reached:], offset)
            self.model.write(offset, data[:reached])
            raise
        self.model.write(offset, data)

    # ---- appends

    async def _append(self, file: AsyncFile, call: Call) -> None:
        data, memory = self._data(call, call.size)
        try:
            assert await file.write(memory) == call.size
        finally:
            memory[:] = b"\xee" * call.size
        self._appended.append((file, call, data))

    async def _append_flag(self, file: AsyncFile, call: Call) -> None:
        await self._append_pwrite(file, call, RWF.APPEND)

    async def _append_pwrite(self, file: AsyncFile, call: Call, flags: int = 0) -> None:
        data, memory = self._data(call, call.size)
        try:
            assert await file.pwrite(memory, 0, flags=flags) == call.size
        finally:
            memory[:] = b"\xee" * call.size
        self._appended.append((file, call, data))

    async def _append_writer(self, file: AsyncFile, call: Call) -> None:
        before = self.model.end
        ((_, size),) = call.pieces
        data = filling(size, call.seed)
        try:
            async with file.writer(size=call.size, depth=call.depth) as writer:
                await writer.write(data)
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                data = data[: await file.size() - before]
            self._appended.append((file, call, data))
            raise
        self._appended.append((file, call, data))

    async def _match_appends(self, tail: bytes) -> None:
        """Find an order of the appends that gives what is now at the end of the file."""
        appended, self._appended = self._appended, []
        possible: list[dict[AsyncFile, int]] = []  # where the cursors are then: some that were appended may be alike
        for order in itertools.permutations(appended):
            if b"".join(data for _, _, data in order) == tail:
                end, cursors = self.model.end, {}
                for file, call, data in order:
                    end += len(data)
                    if call.kind == "append":
                        cursors[file] = end
                possible.append(cursors)
        if not possible:
            raise Difference(f"{len(tail)} bytes were appended, which are not those of {[call for _, call, _ in appended]}")
        told = {file: await file.tell() for file in possible[0]}
        self._cursors.update(told if told in possible else possible[0])
        self.model.write(self.model.end, tail)

    # ---- with the cursor

    async def _seek(self, file: AsyncFile, offset: int) -> None:
        self._cursors[file] = await file.seek(offset)

    async def _cursor_read(self, file: AsyncFile, call: Call) -> None:
        ((offset, size),) = call.pieces
        await self._seek(file, offset)
        end = self.model.end
        data = await file.read(size)
        self._cursors[file] += len(data)
        self._check_read(call, data, offset, size, end)

    async def _cursor_readinto(self, file: AsyncFile, call: Call) -> None:
        ((offset, size),) = call.pieces
        await self._seek(file, offset)
        end = self.model.end
        memory = _memory(size, call.pad)
        n = await file.readinto(memory)
        self._cursors[file] += n
        self._check_read(call, memory[:n], offset, size, end)

    async def _cursor_write(self, file: AsyncFile, call: Call) -> None:
        ((offset, size),) = call.pieces
        await self._seek(file, offset)
        data, memory = self._data(call, size)
        try:
            assert await file.write(memory) == size
        finally:
            memory[:] = b"\xee" * size
        self._cursors[file] += size
        self.model.write(offset, data)

    async def _readall(self, file: AsyncFile, call: Call) -> None:
        ((offset, size),) = call.pieces
        await self._seek(file, offset)
        end = self.model.end
        data = await file.read()
        self._cursors[file] += len(data)
        if not max(0, min(end, self._cut) - offset) <= len(data) <= max(0, self._ceiling - offset):
            raise Difference(f"{call} gave {len(data)} bytes, the file has {min(end, self._cut)} to {self._ceiling}")
        self._check_read(call, data[:size], offset, size, end)

    async def _read(self, file: AsyncFile, call: Call) -> None:
        asked: list[Any] = [call, None]
        self._asked.append(asked)
        asked[1] = await file.read(call.pieces[0][1])

    async def _readinto(self, file: AsyncFile, call: Call) -> None:
        asked: list[Any] = [call, None]
        self._asked.append(asked)
        memory = _memory(call.pieces[0][1], call.pad)
        n = await file.readinto(memory)
        asked[1] = bytes(memory[:n])

    async def _write(self, file: AsyncFile, call: Call) -> None:
        asked: list[Any] = [call, None]
        self._asked.append(asked)
        data, memory = self._data(call, call.pieces[0][1])
        await file.write(memory)
        asked[1] = data

    def _replay_turns(self, file: AsyncFile) -> None:
        """Check that calls that share a cursor were served in the order in which they were made, and cancelled ones not at all."""
        asked, self._asked = self._asked, []
        for call, data in asked:
            if data is None:
                continue
            at = self._cursors[file]
            if call.kind == "write":
                self.model.write(at, data)
            else:
                size = max(0, min(call.pieces[0][1], self.model.end - at))
                compare(str(call), data, self.model.padded(at, size), at)
            self._cursors[file] += len(data)

    # ---- by descriptor

    async def _context_pread(self, file: AsyncFile, call: Call) -> None:
        ((offset, size),) = call.pieces
        end = self.model.end
        self._check_read(call, await self._context.pread(file.fileno(), size, offset), offset, size, end)

    async def _context_preadinto(self, file: AsyncFile, call: Call) -> None:
        ((offset, size),) = call.pieces
        end = self.model.end
        memory = _memory(size, call.pad)
        n = await self._context.preadinto(file.fileno(), memory, offset)
        self._check_read(call, memory[:n], offset, size, end)

    async def _context_pwrite(self, file: AsyncFile, call: Call) -> None:
        ((offset, size),) = call.pieces
        data, memory = self._data(call, size)
        try:
            assert await self._context.pwrite(file.fileno(), memory, offset, flags=RWF.DSYNC if call.seed % 8 == 0 else RWF(0)) == size
        finally:
            memory[:] = b"\xee" * size
        self.model.write(offset, data)

    async def _context_fdatasync(self, file: AsyncFile, call: Call) -> None:
        await self._context.fdatasync(file.fileno())

    # ---- files

    async def _own_file(self, file: AsyncFile, call: Call) -> None:
        """Open the file once more, and close it while it is used."""
        context = self._context if call.seed % 3 else None  # the one of this run, which ends with it
        abandon = self.plan.abandon
        async with (
            open_aio(self.path, direct=file.direct, abandon_on_cancel=abandon, context=context) as own,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(_close_after, own, call.seed % 4)
            try:
                await self._pread(own, call)
            except ValueError:
                if not own.closed:
                    raise


def is_append(call: Call) -> bool:
    return call.kind in ("append", "append_pwrite", "append_flag", "append_writer")


def is_first(call: Call) -> bool:
    return is_append(call) or call.kind == "truncate"


async def _close_after(file: AsyncFile, ticks: int) -> None:
    for _ in range(ticks):
        await trio.lowlevel.checkpoint()
    await file.aclose()


async def _cancel_at(scope: trio.CancelScope, moment: Moment) -> None:
    with trio.CancelScope(shield=True):
        for _ in range(moment.ticks):
            await trio.lowlevel.checkpoint()
        if moment.microseconds:
            await trio.sleep(moment.microseconds / 1e6)
    scope.cancel()


def run(plan: Plan, folder: Path, progress: Callable[..., None] | None = None) -> Tally:
    """Run a plan on a new file in `folder`; Difference, or whatever else went wrong."""
    path = folder / "file"
    try:
        return trio.run(Runner(plan, path, progress).run)
    finally:
        path.unlink()


def plan_of_seed(seed: int) -> Plan:
    """Return the plan that a soak run makes of a seed."""
    return make_plan(random.Random(seed), steps=16)
