"""Reads on the event loop's thread: those of cached pages, and devices that do not know RWF_NOWAIT."""

from __future__ import annotations

import array
import os
from typing import TYPE_CHECKING

import pytest

from trio_aio._lanes.devices import SLEEP_BACKOFF
from trio_aio._memory.exports import export_buffer
from trio_aio._native import lib
from trio_aio._requests.pieces import Pieces

from ..support.files import BLOCK, make_file, opened
from ..support.page_cache import attempts, cached_pages, evict, pinned

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ..support.engine_loop import Loop


@pytest.mark.usefixtures("no_read_slept")
def test_inline_read_returns_cached_pages_and_misses_uncached_ones(engine_loop: Loop, file: tuple[Path, bytes]) -> None:
    path, data = file
    inline = engine_loop.engine.inline
    with opened(path, os.O_RDONLY) as fd:
        descriptor = engine_loop.descriptor(fd)
        with pinned(path):
            assert inline.read(descriptor, 5000, 100) == data[100:5100]
            assert inline.read(descriptor, 5000, len(data) - 10) == data[-10:]
            assert inline.read(descriptor, 5000, len(data)) == b""
            memory = bytearray(100)
            export = export_buffer(memory, writable=True)
            assert inline.read_into(descriptor, export.address, 100, 50) == 100
            assert memory == data[50:150]
            assert (inline.hits, inline.misses) == (4, 0)
        still_cached = 0
        for _ in attempts("a read of a page that was not cached"):
            evict(path)
            found = inline.read(descriptor, BLOCK, 32 * BLOCK)
            if found is None:
                break
            assert found == data[32 * BLOCK : 33 * BLOCK]
            still_cached += 1
        assert (inline.hits, inline.misses) == (4 + still_cached, 1)


@pytest.mark.parametrize("kind", ["tmpfs", "overlay"])
def test_device_without_nowait_is_not_tried_again(engine_loop: Loop, on_filesystem: Callable[[str], Path], kind: str) -> None:
    path, _ = make_file(on_filesystem(kind))
    with opened(path, os.O_RDONLY) as fd:
        descriptor = engine_loop.descriptor(fd)
        assert engine_loop.engine.inline.read(descriptor, BLOCK, 0) is None
        assert descriptor.read_device is not None
        assert not descriptor.read_device.nowait
    with opened(path, os.O_RDONLY) as fd:
        other = engine_loop.descriptor(fd)
        assert other.read_device is descriptor.read_device


@pytest.mark.usefixtures("no_read_slept")
def test_inline_read_of_missing_page_starts_no_read_ahead(engine_loop: Loop, file: tuple[Path, bytes]) -> None:
    path, _ = file
    inline = engine_loop.engine.inline
    memory = bytearray(BLOCK)
    export = export_buffer(memory, writable=True)
    with opened(path, os.O_RDONLY) as fd:
        descriptor = engine_loop.descriptor(fd)
        for _ in attempts("a file that was not cached before and behind two reads"):
            evict(path)
            before = cached_pages(path)
            found = inline.read(descriptor, BLOCK, 32 * BLOCK), inline.read_into(descriptor, export.address, BLOCK, 16 * BLOCK)
            if before == 0 and found == (None, -1) and cached_pages(path) == 0:
                break


@pytest.mark.usefixtures("no_read_slept")
def test_blocks_that_are_missing_start_no_read_ahead_inline(file: tuple[Path, bytes], engine_loop: Loop) -> None:
    path, _ = file
    offsets = array.array("q", [32 * BLOCK, 5 * BLOCK])
    with opened(path, os.O_RDONLY) as fd:
        descriptor = engine_loop.descriptor(fd)
        for _ in attempts("a file that was not cached before and behind the call"):
            evict(path)
            before = cached_pages(path)
            pieces = Pieces.blocks(descriptor, offsets, BLOCK, export_buffer(bytearray(2 * BLOCK), writable=True))
            if before == 0 and pieces.read_inline(1 << 20) < 0 and cached_pages(path) == 0:
                break


@pytest.mark.usefixtures("no_read_slept")
def test_inline_read_at_the_edge_of_a_cached_window_is_left_to_a_worker(engine_loop: Loop, disk: Path) -> None:
    path, data = make_file(disk, 256 * BLOCK)
    inline = engine_loop.engine.inline
    with opened(path, os.O_RDONLY) as fd:
        descriptor = engine_loop.descriptor(fd)
        for _ in attempts("a file of which only a window was cached"):
            evict(path)
            with pinned(path, 0, 64 * BLOCK):
                if cached_pages(path) != 64:
                    continue
                assert inline.read(descriptor, BLOCK, 0) == data[:BLOCK]
                assert inline.read(descriptor, BLOCK, 50 * BLOCK) is None  # it may carry the mark of the read-ahead
                assert cached_pages(path) == 64
                break


@pytest.mark.usefixtures("no_read_slept")
def test_inline_read_of_a_page_that_is_cached_alone_is_a_hit(engine_loop: Loop, disk: Path) -> None:
    path, data = make_file(disk, 256 * BLOCK)
    with opened(path, os.O_RDONLY) as fd:
        descriptor = engine_loop.descriptor(fd)
        for _ in attempts("a file of which only one page was cached"):
            evict(path)
            with pinned(path, 100 * BLOCK, BLOCK):
                if cached_pages(path) != 1:
                    continue
                assert engine_loop.engine.inline.read(descriptor, BLOCK, 100 * BLOCK) == data[100 * BLOCK : 101 * BLOCK]
                break


def test_device_where_a_read_slept_is_left_to_the_workers_for_a_while(
    engine_loop: Loop, file: tuple[Path, bytes], request: pytest.FixtureRequest
) -> None:
    path, data = file
    inline = engine_loop.engine.inline
    with opened(path, os.O_RDONLY) as fd, pinned(path):
        descriptor = engine_loop.descriptor(fd)
        assert inline._without_sleep(descriptor, BLOCK + lib.TAIO_SLEPT) == BLOCK
        request.getfixturevalue("no_read_slept")  # from here on
        skipped = 0
        while inline.read(descriptor, BLOCK, 0) is None:
            skipped += 1
        assert skipped == SLEEP_BACKOFF
        assert inline.read(descriptor, BLOCK, 0) == data[:BLOCK]
