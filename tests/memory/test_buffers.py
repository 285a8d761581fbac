"""Aligned memory and its pool, and the addresses of callers' buffers."""

from __future__ import annotations

import array
import itertools
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from trio_aio._memory.exports import export_buffer, export_vector, new_bytearray, new_bytes
from trio_aio._memory.slabs import HUGE_PAGE, LARGEST_SLAB, PAGE, BufferPool, HugePage, Slab

if TYPE_CHECKING:
    from collections.abc import Iterator


class WarmPool(BufferPool):
    """A pool whose pages are made at once; it remembers which."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit, self._warm)
        self.made: list[HugePage] = []

    def _warm(self, page: HugePage) -> None:
        page.warm = True
        self.made.append(page)


@pytest.fixture
def pool() -> Iterator[WarmPool]:
    made = WarmPool(HUGE_PAGE)
    yield made
    made.clear()


@pytest.mark.parametrize("size", [0, 1, PAGE, PAGE + 1, 3 * PAGE, LARGEST_SLAB - 1, LARGEST_SLAB, LARGEST_SLAB + 1, 3 * HUGE_PAGE + 5])
def test_slab_is_aligned_and_large_enough(pool: WarmPool, size: int) -> None:
    slab = pool.take(size)
    assert slab.address % PAGE == 0
    assert slab.capacity >= size
    export = export_buffer(bytes([7]) * size, writable=False)
    slab.gather([export])
    assert slab.copy_out(size) == bytes([7]) * size
    pool.return_slab(slab)


def test_slabs_do_not_overlap_and_are_reused(pool: WarmPool) -> None:
    slabs = [pool.take(size) for size in (PAGE, 3 * PAGE, LARGEST_SLAB) * 20]
    spans = sorted((slab.address, slab.address + slab.capacity) for slab in slabs)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    pool.return_slab(slabs[0])
    assert pool.take(PAGE) is slabs[0]
    assert set(Counter(map(id, pool.made)).values()) == {1}  # each page was made once


def test_pool_keeps_no_more_than_its_limit(pool: WarmPool) -> None:
    slabs = [pool.take(LARGEST_SLAB) for _ in range(8)]
    pages = list({id(slab.page): slab.page for slab in slabs}.values())
    assert [page.warm for page in pages] == [True] * 4
    for slab in slabs:
        pool.return_slab(slab)
    assert sum(page.warm for page in pages) == 1
    again = [pool.take(LARGEST_SLAB) for _ in range(8)]
    assert len({slab.address for slab in again}) == 8


def test_prepare_twice_allocates_memory_once(pool: WarmPool) -> None:
    pool.prepare()
    pool.prepare()
    slab = pool.take(PAGE)
    assert pool.made == [slab.page]
    assert slab.page.warm


def test_page_released_before_it_is_warm_is_populated_once() -> None:
    asked: list[HugePage] = []
    pool = BufferPool(0, asked.append)  # keeps nothing
    pool.prepare()
    slab = pool.take(PAGE)
    page = slab.page
    assert asked == [page]
    pool.return_slab(slab)
    taken = []
    while page not in [slab.page for slab in taken]:  # it is the last to be used again
        taken.append(pool.take(LARGEST_SLAB))
    assert Counter(map(id, asked)).most_common(1)[0][1] == 1
    page.warm = True  # the worker has touched it
    for slab in taken:
        pool.return_slab(slab)
    assert not page.warm
    while pool.take(LARGEST_SLAB).page is not page:
        pass
    assert asked.count(page) == 2  # its memory was returned to the kernel
    pool.clear()


def test_gather_and_scatter_keep_the_order_of_bytes(pool: WarmPool) -> None:
    slab: Slab = pool.take(PAGE)
    slab.gather(export_vector([b"abc", b"", b"defg"], writable=False).exports)
    assert (slab.copy_out(7), slab.copy_out(3, 2)) == (b"abcdefg", b"cde")
    parts = [bytearray(b"--"), bytearray(), bytearray(b"----")]
    slab.scatter(export_vector(parts, writable=True).exports, 4, 1)
    assert parts == [b"bc", b"", b"de--"]


def test_export_locks_the_size_of_its_object() -> None:
    memory = bytearray(10)
    export = export_buffer(memory, writable=True)
    with pytest.raises(BufferError):
        memory.append(1)
    assert export.length == 10
    del export
    memory.append(1)


@pytest.mark.parametrize("buffer", [b"1234", bytearray(4), array.array("i", [1]), memoryview(bytearray(9))[5:]])
def test_export_length_is_in_bytes(buffer: Any) -> None:
    assert export_buffer(buffer, writable=False).length == 4
    vector = export_vector([buffer, buffer], writable=False)
    assert (vector.length, vector.held[1].iov_len) == (8, 4)


@pytest.mark.parametrize(
    ("buffer", "writable", "error"),
    [("text", False, TypeError), (5, False, TypeError), (b"1", True, TypeError), (memoryview(bytes(9))[::2], False, BufferError)],
)
def test_invalid_buffer_is_refused(buffer: Any, writable: bool, error: type[Exception]) -> None:
    with pytest.raises(error):
        export_buffer(buffer, writable=writable)


def _may_be_of_huge_pages(address: int) -> bool:
    found = False
    for line in Path("/proc/self/smaps").read_text(encoding="ascii", errors="replace").splitlines():
        name, _, rest = line.partition(" ")
        if "-" in name and not name.endswith(":"):
            start, end = (int(part, 16) for part in name.split("-"))
            found = start <= address < end
        elif found and name == "VmFlags:":
            return "hg" in rest.split()
    raise AssertionError(f"{address:#x} is not mapped")


def test_only_memory_populated_by_workers_is_of_huge_pages() -> None:
    size = 64 << 20  # more than malloc serves from its heap
    kinds = {True: new_bytes(size, for_worker=True), False: new_bytes(size), "bytearray": new_bytearray(size)}
    huge = {kind: _may_be_of_huge_pages(export_buffer(made, writable=False).address + size // 2) for kind, made in kinds.items()}
    assert huge == {True: Path("/sys/kernel/mm/transparent_hugepage").exists(), False: False, "bytearray": False}


def test_slab_can_be_released_to_a_cleared_pool(pool: WarmPool) -> None:
    slabs = [pool.take(PAGE), pool.take(LARGEST_SLAB + 1)]
    pool.clear()
    for slab in slabs:
        pool.return_slab(slab)
