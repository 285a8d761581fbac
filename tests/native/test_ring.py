"""The kernel's ring: only what the kernel says is one is read as memory."""

from __future__ import annotations

import ctypes
import mmap
from typing import TYPE_CHECKING

import pytest

from trio_aio._native import ffi, lib
from trio_aio.lowlevel import io_destroy, io_setup

if TYPE_CHECKING:
    from collections.abc import Iterator

# Of the kernel's struct aio_ring: id, nr, head, tail, magic, compatible and incompatible features, length of the header.
HEADER = (0, 64, 0, 0, 0xA10A10A1, 1, 0, 32)


def _is_mapped(context: int) -> bool:
    ring = lib.taio_ring_new(context, 4, -1)
    assert ring != ffi.NULL
    try:
        return bool(lib.taio_ring_is_mapped(ring))
    finally:
        lib.taio_ring_free(ring)


@pytest.fixture
def memory() -> Iterator[mmap.mmap]:
    with mmap.mmap(-1, mmap.PAGESIZE) as memory:
        yield memory


def _address(memory: mmap.mmap) -> int:
    return int(ffi.cast("uintptr_t", ffi.from_buffer(memory)))


def test_kernels_ring_is_mapped() -> None:
    context = io_setup(1)
    try:
        assert _is_mapped(context)
    finally:
        io_destroy(context)


@pytest.mark.parametrize("context", [0, 1, 0x1234, (1 << 64) - 1, 1 << 63, 0xA10A10A1])
def test_id_that_is_no_address_is_no_ring(context: int) -> None:
    assert not _is_mapped(context)


def test_address_that_cannot_be_read_is_no_ring(memory: mmap.mmap) -> None:
    address = _address(memory)
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    assert protect(address, mmap.PAGESIZE, 0) == 0
    assert not _is_mapped(address)
    assert protect(address, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE) == 0


@pytest.mark.parametrize(("field", "value"), [(4, 0xA10A10A2), (6, 1), (7, 36)], ids=["magic", "incompatible features", "header length"])
def test_memory_of_another_layout_is_no_ring(memory: mmap.mmap, field: int, value: int) -> None:
    header = [*HEADER]
    memory[:32] = b"".join(number.to_bytes(4, "little") for number in header)
    assert _is_mapped(_address(memory))
    header[field] = value
    memory[:32] = b"".join(number.to_bytes(4, "little") for number in header)
    assert not _is_mapped(_address(memory))
