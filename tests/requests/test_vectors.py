"""Vectors of buffers."""

from __future__ import annotations

import itertools

from trio_aio._engine.descriptor import Descriptor
from trio_aio._memory.exports import export_vector
from trio_aio._requests.transfer import ReadVector


def test_skip_of_vector_advances_over_its_parts() -> None:
    parts = [bytearray(3), bytearray(5), bytearray(0), bytearray(4)]
    for done in range(12):
        vector = export_vector(parts, writable=True)
        request = ReadVector(Descriptor(0), vector, 100, 0)
        request.skip(done)
        assert (request.offset, request.nbytes) == (100 + done, 12 - done)
        assert request.parts == sum(1 for end in itertools.accumulate([3, 5, 0, 4]) if end > done)
