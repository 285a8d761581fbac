"""Callers' memory that belongs to a mapped file: it may be gone, and the first touch of a page may take as long as its disk does.

Nothing here looks at a clock. The pages of a mapping hang until the test releases them. Meanwhile a thread asks the event loop for a sign
of life; if none comes, the event loop's thread is waiting for a page.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import importlib.util
import mmap
import os
import shutil
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy
import pytest
import sniffio
import trio

from tests.conftest import need
from tests.context.test_limits import FILTER
from tests.support.files import make_file
from tests.support.fuse import Misbehaving
from tests.support.page_cache import pinned
from tests.support.programs import run as run_program
from trio_aio import FileWriteStream, open_aio, write_bytes
from trio_aio._memory import exports

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from trio_aio import AsyncFile

BLOCK = 4096
SIZE = 1 << 20
A_LONG_TIME = 20  # seconds that a hanging event loop may take before the test fails

# Every call that takes a buffer. Each gets a file of `SIZE` bytes, and mapped memory of 16 blocks.
READS: dict[str, Callable[[AsyncFile, memoryview], Awaitable[Any]]] = {
    "preadinto": lambda file, memory: file.preadinto(memory[:BLOCK], 0),
    "preadinto unaligned": lambda file, memory: file.preadinto(memory[1:BLOCK], 5),
    "preadinto large": lambda file, memory: file.preadinto(memory[3:], 7),
    "preadv": lambda file, memory: file.preadv([memory[:BLOCK], bytearray(10), memory[BLOCK:9000]], 3),
    "preadv aligned": lambda file, memory: file.preadv([memory[:BLOCK], memory[2 * BLOCK : 3 * BLOCK]], BLOCK),
    "readinto": lambda file, memory: file.readinto(memory[:100]),
    "readinto1": lambda file, memory: file.readinto1(memory[:100]),
    "readinto behind read": lambda file, memory: _after(file.read(10), lambda: file.readinto(memory[:100])),
    "readinto, much, behind read": lambda file, memory: _after(file.read(10), lambda: file.readinto(memory)),
    "read_blocks": lambda file, memory: file.read_blocks([0, 9000, 5], 5000, into=memory[:15000]),
    "read_blocks aligned": lambda file, memory: file.read_blocks([0, 2 * BLOCK], BLOCK, into=memory[: 2 * BLOCK]),
    "NumPy": lambda file, memory: file.preadinto(numpy.frombuffer(memory, "u1")[10:2000], 1),
    "NumPy dates": lambda file, memory: file.preadinto(numpy.frombuffer(memory, "M8[s]"), 1),
}
WRITES: dict[str, Callable[[AsyncFile, memoryview], Awaitable[Any]]] = {
    "pwrite": lambda file, memory: file.pwrite(memory[:BLOCK], 0),
    "pwrite unaligned memory": lambda file, memory: file.pwrite(memory[1 : BLOCK + 1], 0),
    "pwrite large": lambda file, memory: file.pwrite(memory[1:-4095], BLOCK),
    "pwrite part of a block": lambda file, memory: file.pwrite(memory[3:1000], 5),
    "pwrite behind the end": lambda file, memory: file.pwrite(memory[:BLOCK], SIZE),
    "pwritev": lambda file, memory: file.pwritev([memory[1 : BLOCK + 1], bytes(BLOCK)], BLOCK),
    "pwritev part of a block": lambda file, memory: file.pwritev([memory[1:100], b"abc"], 9),
    "write": lambda file, memory: file.write(memory[:1000]),
    "writelines": lambda file, memory: file.writelines([b"abc", memory[:100], memory[5000:5100]]),
    "writelines, one": lambda file, memory: file.writelines([memory]),
    "write_ranges": lambda file, memory: file.write_ranges([(0, memory[1 : BLOCK + 1]), (9000, memory[5000:5100])]),
    "writer": lambda file, memory: _through_writer(file, memory[:1000]),
    "writer, many blocks": lambda file, memory: _through_writer(file, memory[1:]),
    "NumPy": lambda file, memory: file.pwrite(numpy.frombuffer(memory, "i4")[10:2000], 1),
    "NumPy dates": lambda file, memory: file.write(numpy.frombuffer(memory, "M8[s]")),
    "offsets": lambda file, memory: file.read_blocks(numpy.frombuffer(memory, "i8")[:100], 10),
    "narrow offsets": lambda file, memory: file.read_blocks(numpy.frombuffer(memory, "i4")[:100], 10),
    "stream": lambda file, memory: FileWriteStream(file).send(memory[:1000]),  # type: ignore[arg-type]
}
CALLS = {**READS, **WRITES}


async def _after(first: Awaitable[Any], then: Callable[[], Awaitable[Any]]) -> Any:
    await first
    return await then()


async def _through_writer(file: AsyncFile, data: memoryview) -> int:
    async with file.writer(size=3 * BLOCK) as writer:
        return await writer.write(data)


# ---- pages that are gone


@pytest.mark.parametrize("direct", [False, True], ids=["buffered", "direct"])
@pytest.mark.parametrize("loop", ["trio", pytest.param("asyncio", marks=pytest.mark.slow)])
def test_memory_that_is_gone_is_efault(disk: Path, direct: bool, loop: str) -> None:
    path, _ = make_file(disk, SIZE)
    program = """
        import anyio, mmap, pathlib
        from tests.files.test_mapped import CALLS, SIZE, BLOCK
        from trio_aio import write_bytes
        folder, direct, loop = pathlib.Path(path).parent, sys.argv[2] == "True", sys.argv[3]

        async def outcome(call):
            try:
                await call
            except (OSError, anyio.BrokenResourceError) as error:
                error = error.__cause__ or error
                return error.errno == errno.EFAULT or repr(error)
            return "no error"

        async def main():
            for name, call in CALLS.items():
                pathlib.Path(path).write_bytes(data)
                (folder / "mapped").write_bytes(bytes(16 * BLOCK))
                with open(folder / "mapped", "r+b") as mapped:
                    memory = memoryview(mmap.mmap(mapped.fileno(), 16 * BLOCK))
                    mapped.truncate(0)
                adopted = os.open(path, os.O_RDWR | (os.O_DIRECT if direct else 0))
                for opened in (path, adopted):
                    async with open_aio(opened, "r+b", direct=direct) as file:
                        answer = await outcome(call(file, memory))
                        if answer is not True or (not file.closed and await file.pread(10, 0) != data[:10]):
                            print(name, opened, answer)
            answer = await outcome(write_bytes(folder / "other", memory))
            if answer is not True:
                print("write_bytes", answer)

        anyio.run(main, backend=loop)
        """
    assert not run_program(program, path, direct, loop, harmless=r"Executing .* took .* seconds\n")


@pytest.mark.trio
@pytest.mark.parametrize("direct", [False, True], ids=["buffered", "direct"])
async def test_a_call_that_failed_keeps_no_buffer(disk: Path, direct: bool) -> None:
    path, _ = make_file(disk, SIZE)
    (disk / "mapped").write_bytes(bytes(16 * BLOCK))
    for name, call in CALLS.items():
        if name == "stream":  # anyio's exception has the error for its cause, and the frame has both
            continue
        with open(disk / "mapped", "r+b") as mapped:  # noqa: ASYNC230
            mapped.truncate(16 * BLOCK)
            memory = mmap.mmap(mapped.fileno(), 16 * BLOCK)
            mapped.truncate(0)
        async with open_aio(path, "r+b", direct=direct) as file:
            gc.disable()
            try:
                with memoryview(memory) as view, pytest.raises(OSError, match="Bad address"):
                    await call(file, view)
                memory.close()
            except BufferError as error:
                raise AssertionError(f"{name} keeps its buffer") from error
            finally:
                gc.enable()


@pytest.mark.trio
async def test_a_write_of_memory_that_is_partly_gone_says_how_much(disk: Path) -> None:
    path, _ = make_file(disk, SIZE)
    (disk / "mapped").write_bytes(b"x" * 16 * BLOCK)
    with open(disk / "mapped", "r+b") as mapped:  # noqa: ASYNC230
        memory = mmap.mmap(mapped.fileno(), 16 * BLOCK)
        mapped.truncate(3 * BLOCK)
    for direct in (False, True):
        async with open_aio(path, "w+b", direct=direct) as file:
            with pytest.raises(OSError, match="Bad address") as caught:
                await file.pwrite(memory, 0)
            written = caught.value.characters_written  # type: ignore[attr-defined]
            assert written == path.stat().st_size
            assert path.read_bytes() == b"x" * written
            async with file.writer(size=2 * BLOCK) as writer:
                with pytest.raises(OSError, match="Bad address") as caught:
                    await writer.write(memory)
                assert caught.value.characters_written == 2 * BLOCK  # type: ignore[attr-defined]
                await writer.write(b"go on")
            assert path.read_bytes().startswith(b"x" * 2 * BLOCK + b"go on")


def test_a_sandbox_without_process_vm_readv_gets_efault_and_the_right_bytes(disk: Path) -> None:
    path, _ = make_file(disk, SIZE)
    program = """
import mmap, pathlib
for number in {"x86_64": (310, 311), "aarch64": (270, 271)}[platform.machine()]:  # process_vm_readv, process_vm_writev
    refuse(number, errno.EPERM)
other = pathlib.Path(path).with_name("mapped")

async def main():
    async with open_aio(path, "r+b", direct=True) as file:
        for gone in (False, True):
            other.write_bytes(data[:16 * BLOCK])
            with open(other, "r+b") as mapped:
                memory = memoryview(mmap.mmap(mapped.fileno(), 16 * BLOCK))
                mapped.truncate(0 if gone else 16 * BLOCK)
            if not gone:
                assert await file.preadinto(memory[1:9000], 20000) == 8999
                assert memory[1:9000] == data[20000:28999]
                assert await file.pwrite(memory[1:1 + 3 * BLOCK], BLOCK) == 3 * BLOCK
                assert await file.pread(8999, BLOCK) == data[20000:28999]
                continue
            write, lines = file.pwrite(memory[1:1 + 3 * BLOCK], BLOCK), file.writelines([b"a", memory])
            for call in (file.preadinto(memory[1:9000], 20000), write, lines):
                try:
                    await call
                except OSError as error:
                    assert error.errno == errno.EFAULT, error
                else:
                    raise AssertionError("it should fail")

trio.run(main)
"""
    assert not run_program(FILTER + program, path)


# ---- pages that take their time


@pytest.fixture(scope="module")
def _filesystem(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Misbehaving]:
    need(os.geteuid() == 0 and os.path.exists("/dev/fuse"), "root and /dev/fuse, to mount a filesystem of its own")
    need(shutil.which("fusermount3") is not None and importlib.util.find_spec("pyfuse3") is not None, "fuse3 and pyfuse3")
    filesystem = Misbehaving(tmp_path_factory.mktemp("slow"))
    yield filesystem
    filesystem.end()


@pytest.fixture
def slow(_filesystem: Misbehaving) -> Iterator[Misbehaving]:
    _filesystem.reset()
    (_filesystem.source / "mapped").write_bytes(bytes(16 * BLOCK))
    yield _filesystem
    _filesystem.reset()


class Witness:
    """A thread that lets a mapping's pages come as soon as they hang, and sees whether the event loop runs meanwhile."""

    def __init__(self, device: Misbehaving, run_soon: Callable[[Callable[[], object]], object]) -> None:
        self._device: Misbehaving = device
        self._run_soon: Callable[[Callable[[], object]], object] = run_soon
        self._stop: threading.Event = threading.Event()
        self.waited: bool = False  # for a page
        self.alive: bool = False  # the event loop meanwhile
        self._thread: threading.Thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._stop.is_set():
            if self._device.held():
                self.waited = True
                seen = threading.Event()
                self._run_soon(seen.set)
                self.alive = seen.wait(A_LONG_TIME)
                break
        self._device.release()

    @contextmanager
    def watching(self) -> Iterator[None]:
        self._device.answer("mapped", "read", hang=True)
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join()


@contextmanager
def slowly_mapped(device: Misbehaving) -> Iterator[memoryview]:
    with open(device.folder / "mapped", "r+b") as file:
        yield memoryview(mmap.mmap(file.fileno(), 16 * BLOCK))


def make_witness(device: Misbehaving) -> Witness:
    if sniffio.current_async_library() == "trio":
        return Witness(device, trio.lowlevel.current_trio_token().run_sync_soon)
    return Witness(device, asyncio.get_running_loop().call_soon_threadsafe)


@pytest.mark.backends("trio", "asyncio")
@pytest.mark.parametrize("direct", [False, True], ids=["buffered", "direct"])
@pytest.mark.parametrize("name", CALLS)
def test_the_event_loop_does_not_wait_for_a_page(run: Any, slow: Misbehaving, disk: Path, name: str, direct: bool) -> None:
    path, _ = make_file(disk, SIZE)

    async def main() -> None:
        async with open_aio(path, "r+b", direct=direct) as file:
            await file.pread(4 * BLOCK, 0)
            await file.seek(0)
            with slowly_mapped(slow) as memory:
                witness = make_witness(slow)
                with witness.watching():
                    await CALLS[name](file, memory)
                assert witness.waited, "no page was read: the call did not touch the memory"
                assert witness.alive, "the event loop's thread waited for a page"

    run(main)


AT_THE_CURSOR = (
    *("readinto", "readinto1", "readinto behind read", "readinto, much, behind read"),
    *("write", "writelines", "writelines, one", "stream"),
)


@pytest.mark.trio
@pytest.mark.parametrize("direct", [False, True], ids=["buffered", "direct"])
@pytest.mark.parametrize("name", AT_THE_CURSOR)
async def test_an_adopted_descriptor_does_not_wait_for_a_page(slow: Misbehaving, disk: Path, name: str, direct: bool) -> None:
    path, _ = make_file(disk, SIZE)
    async with open_aio(os.open(path, os.O_RDWR | (os.O_DIRECT if direct else 0)), "r+b", direct=direct) as file:
        with slowly_mapped(slow) as memory:
            witness = make_witness(slow)
            with witness.watching():
                await CALLS[name](file, memory)
            assert (witness.waited, witness.alive) == (True, True)


@pytest.mark.trio
async def test_an_appended_and_a_whole_file_do_not_wait_for_a_page(slow: Misbehaving, disk: Path) -> None:
    calls: dict[str, Callable[[memoryview], Awaitable[Any]]] = {
        "append": lambda memory: _append(disk / "new", memory, direct=False),
        "append, direct": lambda memory: _append(disk / "new", memory, direct=True),
        "write_bytes": lambda memory: write_bytes(disk / "new", memory),
    }
    for name, call in calls.items():
        slow.reset()
        (slow.source / "mapped").write_bytes(bytes([7]) * 16 * BLOCK)
        with slowly_mapped(slow) as memory:
            witness = make_witness(slow)
            with witness.watching():
                await call(memory)
            assert (witness.waited, witness.alive) == (True, True), name
        assert (disk / "new").read_bytes() == bytes([7]) * 16 * BLOCK
        (disk / "new").unlink()


async def _append(path: Path, memory: memoryview, *, direct: bool) -> None:
    async with open_aio(path, "ab", direct=direct) as file:
        await file.write(memory)


@pytest.mark.trio
@pytest.mark.parametrize("direct", [False, True], ids=["buffered", "direct"])
@pytest.mark.parametrize("adopted", [False, True], ids=["opened", "adopted"])
async def test_mapped_memory_gets_and_gives_the_right_bytes(disk: Path, direct: bool, adopted: bool) -> None:
    path, data = make_file(disk, SIZE)
    for name, call in CALLS.items():
        results = []
        for mapped in (True, False):
            path.write_bytes(data)
            (disk / "mapped").write_bytes(bytes(range(16)) * 4 * 1024)
            with open(disk / "mapped", "r+b") as other:  # noqa: ASYNC230
                memory = memoryview(mmap.mmap(other.fileno(), 16 * BLOCK) if mapped else bytearray(other.read()))
            opened: Any = os.open(path, os.O_RDWR | (os.O_DIRECT if direct else 0)) if adopted else path
            async with open_aio(opened, "r+b", direct=direct) as file:
                try:
                    result = await call(file, memory)
                except EOFError as error:  # the bytes are no useful offsets
                    result = str(error)
                position = None if file.closed else await file.tell()
            results.append((bytes(result) if isinstance(result, memoryview) else result, position, bytes(memory), path.read_bytes()))
        assert results[0] == results[1], name


@pytest.mark.trio
async def test_anonymous_mappings_are_read_into_by_the_event_loop_once_they_are_known(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "_query", lambda address, length: -errno.ENOTTY)
    path, data = make_file(disk, SIZE)
    # Of a file that is cached in part, a page may carry the mark of the read-ahead, so it may always be read by a worker.
    with pinned(path):
        async with open_aio(path) as file:
            memory = mmap.mmap(-1, BLOCK)
            await file.pread(BLOCK, 0)
            while (before := file.context.statistics()).submitted_inline < 2:  # the cached read above is one
                assert await file.preadinto(memory, 0) == BLOCK
            assert memory[:] == data[:BLOCK]
            assert before.submitted_workers > 0
