"""Whose memory a buffer is, and whether it belongs to a mapped file."""

from __future__ import annotations

import array
import ctypes
import errno
import gc
import io
import mmap
import os
from typing import TYPE_CHECKING, Any

import numpy
import pytest

from tests.conftest import need
from trio_aio._engine.callers_memory import inspect
from trio_aio._memory import exports
from trio_aio._memory.exports import Export, export_buffer, export_vector
from trio_aio._memory.mappings import owner_of
from trio_aio._native import lib
from trio_aio._requests.gather import gather

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.engine_loop import Loop

SIZE = 3 * mmap.PAGESIZE


class Pair(ctypes.Structure):
    """Two arrays, one after the other."""

    _fields_ = (("first", ctypes.c_int * 4), ("second", ctypes.c_int * 4))


@pytest.fixture
def mapped(tmp_path: Path) -> Iterator[mmap.mmap]:
    """Yield a mapped file."""
    (tmp_path / "mapped").write_bytes(bytes(range(256)) * (SIZE // 256))
    with open(tmp_path / "mapped", "r+b") as file:
        made = mmap.mmap(file.fileno(), SIZE)
    yield made
    gc.collect()  # a ctypes array is part of a reference cycle
    made.close()


@pytest.mark.parametrize(
    "make",
    [
        lambda: b"bytes",
        lambda: bytearray(9),
        lambda: memoryview(memoryview(bytearray(9))[3:])[1:],
        lambda: array.array("d", [1, 2]),
        lambda: io.BytesIO(b"bytes").getbuffer(),
        lambda: numpy.zeros(9),
        lambda: numpy.zeros((4, 4))[1:3].reshape(-1)[2:],
        lambda: numpy.zeros(9, "M8[s]"),
        lambda: numpy.frombuffer(memoryview(bytearray(8))),
        lambda: numpy.float64(1),
        lambda: (ctypes.c_char * 9)(),
        lambda: Pair().second,
        lambda: memoryview(Pair()),
    ],
)
def test_memory_of_the_heap_has_no_owner(make: Callable[[], Any]) -> None:
    buffer = make()
    assert owner_of(buffer) is None
    assert not export_buffer(buffer, writable=False).mapped


@pytest.mark.parametrize(
    "make",
    [
        lambda mapped: mapped,
        lambda mapped: memoryview(mapped)[5:],
        lambda mapped: numpy.frombuffer(mapped, "u1")[7:],
        lambda mapped: numpy.frombuffer(memoryview(mapped), "M8[s]"),
        lambda mapped: numpy.frombuffer(mapped, [("a", "i4"), ("b", "M8[s]")])[1],
        lambda mapped: memoryview(numpy.asarray(numpy.frombuffer(mapped, "i4").reshape(2, -1)[1])),
    ],
)
def test_memory_of_a_mapping_belongs_to_it(mapped: mmap.mmap, make: Callable[[mmap.mmap], Any]) -> None:
    buffer = make(mapped)
    assert owner_of(buffer) is mapped
    assert export_buffer(buffer, writable=False).mapped


def test_a_memmap_and_a_ctypes_array_of_a_mapping_count_as_mapped(mapped: mmap.mmap, tmp_path: Path) -> None:
    memmap = numpy.memmap(tmp_path / "mapped", "u1", "r+")
    for buffer in (memmap, memmap[3:], numpy.asarray(memmap)[3:], memoryview(memmap), (ctypes.c_char * 9).from_buffer(mapped)):
        assert export_buffer(buffer, writable=True).mapped  # type: ignore[arg-type]


@pytest.fixture
def _old_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the kernel not know the ioctl of Linux 6.11."""
    monkeypatch.setattr(exports, "_query", lambda address, length: -errno.ENOTTY)


@pytest.mark.parametrize("flags", [mmap.MAP_SHARED, mmap.MAP_PRIVATE])
@pytest.mark.parametrize("size", [1, SIZE, 4 << 20])
def test_the_kernel_says_that_a_mapping_is_anonymous(flags: int, size: int) -> None:
    need(lib.taio_memory_query(id(flags), 1) != -errno.ENOTTY, "Linux 6.11")
    memory = mmap.mmap(-1, size, flags=flags | mmap.MAP_ANONYMOUS)
    assert not export_buffer(memory, writable=True).mapped
    assert not export_buffer(numpy.frombuffer(memory, "u1"), writable=True).mapped


def test_the_kernel_says_that_a_mapping_is_of_a_file(mapped: mmap.mmap, tmp_path: Path) -> None:
    address = export_buffer(mapped, writable=True).address
    assert lib.taio_memory_query(address + 10, SIZE - 10) in (1, -errno.ENOTTY)
    private = numpy.memmap(tmp_path / "mapped", "u1", "c")
    assert export_buffer(private, writable=True).mapped


def test_memory_that_is_not_there_is_no_mapping() -> None:
    assert lib.taio_memory_query(0, 10) < 0


def _learn(loop: Loop, export: Export) -> None:
    inspect(loop.engine, (export,))
    loop.settle()


@pytest.mark.parametrize("flags", [mmap.MAP_SHARED, mmap.MAP_PRIVATE])
@pytest.mark.usefixtures("_old_kernel")
def test_a_worker_finds_out_that_a_mapping_is_anonymous(engine_loop: Loop, flags: int) -> None:
    memory = mmap.mmap(-1, SIZE, flags=flags | mmap.MAP_ANONYMOUS)
    export = export_buffer(memory, writable=True)
    assert export.mapped
    del export
    _learn(engine_loop, export_buffer(memoryview(memory)[10:20], writable=True))
    assert not export_buffer(memory, writable=True).mapped
    assert not export_buffer(memoryview(memory)[5000:], writable=True).mapped
    assert not export_vector([memory, bytearray(3)], writable=True).mapped


@pytest.mark.usefixtures("_old_kernel")
def test_a_worker_finds_out_that_a_mapping_is_of_a_file(engine_loop: Loop, mapped: mmap.mmap, tmp_path: Path) -> None:
    private = numpy.memmap(tmp_path / "mapped", "u1", "c")
    for buffer in (mapped, private, (ctypes.c_char * 9).from_buffer(mapped)):
        _learn(engine_loop, export_buffer(buffer, writable=True))  # type: ignore[arg-type]
        export = export_buffer(buffer, writable=True)  # type: ignore[arg-type]
        assert export.mapped
        assert export.question is None  # type: ignore[attr-defined]  # it is known


@pytest.mark.usefixtures("_old_kernel")
def test_one_object_is_asked_about_once(engine_loop: Loop, mapped: mmap.mmap) -> None:
    parts = [export_buffer(memoryview(mapped)[i:], writable=True) for i in range(10)]
    before = engine_loop.engine.outstanding
    inspect(engine_loop.engine, parts)
    inspect(engine_loop.engine, parts)
    assert engine_loop.engine.outstanding == before + 1
    engine_loop.settle()


@pytest.mark.usefixtures("_old_kernel")
def test_a_mapping_may_be_closed_while_a_worker_looks(engine_loop: Loop, tmp_path: Path) -> None:
    (tmp_path / "mapped").write_bytes(bytes(SIZE))
    with open(tmp_path / "mapped", "r+b") as file:
        memory = mmap.mmap(file.fileno(), SIZE)
    export = export_buffer(memory, writable=True)
    inspect(engine_loop.engine, (export,))
    del export
    memory.close()
    engine_loop.settle()


def test_what_was_found_ends_with_the_object(engine_loop: Loop, tmp_path: Path) -> None:
    for _ in range(20):  # the next one may have the same identity and the same addresses
        anonymous = mmap.mmap(-1, SIZE)
        _learn(engine_loop, export_buffer(anonymous, writable=True))
        del anonymous
        (tmp_path / "mapped").write_bytes(bytes(SIZE))
        with open(tmp_path / "mapped", "r+b") as file:
            assert export_buffer(mmap.mmap(file.fileno(), SIZE), writable=True).mapped


def test_gather_copies_parts_in_order(engine_loop: Loop, mapped: mmap.mmap, tmp_path: Path) -> None:
    target = bytearray(30)
    with open(tmp_path / "mapped", "rb") as file:
        parts = [export_buffer(part, writable=False) for part in (memoryview(mapped)[3:10], b"", b"abc", memoryview(mapped)[4090:4100])]
        request = gather(engine_loop.descriptor(file.fileno()), parts, export_buffer(target, writable=True), 5)
        assert engine_loop.run(request) == [20]
    engine_loop.woken.clear()  # they hold the mapping
    expected = mapped[3:10] + b"abc" + mapped[4090:4100]
    assert target == bytes(5) + expected + bytes(5)


def test_gather_of_pages_that_are_gone_is_efault(engine_loop: Loop, mapped: mmap.mmap, tmp_path: Path) -> None:
    os.truncate(tmp_path / "mapped", 100)
    with open(tmp_path / "mapped", "rb") as file:
        descriptor = engine_loop.descriptor(file.fileno())
        request = gather(descriptor, [export_buffer(mapped, writable=False)], export_buffer(bytearray(SIZE), writable=True))
        (result,) = engine_loop.run(request)
        with pytest.raises(OSError, match="Bad address"):
            raise request.error()
    engine_loop.woken.clear()
    assert result < 0
