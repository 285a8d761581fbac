"""Reads on the event loop's thread: those of cached pages, and devices that do not know RWF_NOWAIT."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from trio_aio._memory.exports import export_buffer

from ..support.files import BLOCK, make_file, opened
from ..support.page_cache import attempts, evict, pinned

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ..support.engine_loop import Loop


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
