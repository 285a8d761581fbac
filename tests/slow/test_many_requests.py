"""A hundred thousand requests at once."""

from __future__ import annotations

import os
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from trio_aio._requests.transfer import Read

from ..support.engine_loop import Loop, loop
from ..support.files import BLOCK, make_file, opened

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trio_aio._requests.base import Request


pytestmark = pytest.mark.slow

MANY = 100_000


@pytest.mark.parametrize("direct", [False, True], ids=["workers", "kernel"])
def test_hundred_thousand_requests_complete_in_order_in_bounded_memory(disk: Path, direct: bool) -> None:
    path, _ = make_file(disk)
    with loop(128, 1, gather=True) as made, opened(path, os.O_RDONLY | (os.O_DIRECT if direct else 0)) as fd:
        descriptor = made.descriptor(fd)
        made.warm()
        memory = made.engine.buffers.take(BLOCK)
        made.settle()
        requests = [Read(descriptor, memory.address, 512, i % 512 * 512, 0, None) for i in range(MANY)]
        started = _record_starts(made)
        tracemalloc.start()
        try:
            made.submit(*requests)
            # The kernel lane submits, and takes what is complete, while it is being filled.
            assert made.engine.queued + made.engine.completed >= MANY - 256
            made.wait_for(*requests)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert {request.result for request in requests} == {512}
        assert started == requests
        assert (made.engine.occupied, made.engine.queued, made.engine.outstanding) == (0, 0, 0)
        assert peak < 1000 * MANY  # bytes: what the engine adds to a request, its place in the queue above all
        made.engine.buffers.return_slab(memory)


def _record_starts(made: Loop) -> list[Request]:
    """Return the list of requests in the order in which they get their slots."""
    started: list[Request] = []
    seen: set[Request] = set()
    lanes = [made.engine.workers]
    if made.engine.has_kernel_lane():
        assert made.engine.kernel is not None
        lanes.append(made.engine.kernel)  # type: ignore[arg-type]
    for lane in lanes:

        def start(request: Request, slot: int, start: Callable[[Request, int], None] = lane.begin) -> None:
            if request not in seen:  # else the kernel lane could not do it at once
                seen.add(request)
                started.append(request)
            start(request, slot)

        lane.begin = start  # type: ignore[method-assign]
    return started
