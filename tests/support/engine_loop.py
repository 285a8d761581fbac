"""An engine without an event loop: tests call it directly."""

from __future__ import annotations

import select
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from trio_aio._engine.descriptor import Descriptor, describe
from trio_aio._engine.engine import Engine

from .files import set_no_access_time

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio_aio._requests.base import Request


class Loop:
    """An engine and the plainest of event loops."""

    def __init__(self, max_in_flight: int = 8, max_workers: int = 4, *, use_kernel: bool = True, gather: bool = False) -> None:
        self.gather: bool = gather  # leave it to `turn` to submit what was prepared
        self.woken: list[Request] = []
        self.engine: Engine = Engine(
            max_in_flight, max_workers, use_kernel=use_kernel, insist=False, wake=self.woken.append, plug=self._plug
        )
        self._wants_flush: bool = False

    def _plug(self) -> None:
        self._wants_flush = True

    def submit(self, *requests: Request) -> None:
        for request in requests:
            request.waiter = self
            self.engine.submit(request)
        if not self.gather:
            self.flush()

    def flush(self) -> None:
        if self._wants_flush:
            self._wants_flush = False
            self.engine.flush()

    def turn(self, timeout: float = 60) -> None:
        """Wait for the eventfd and take what is complete."""
        self.flush()
        poll = select.poll()
        poll.register(self.engine.event_fd, select.POLLIN)
        assert poll.poll(timeout * 1000), "nothing came: a wake-up was missed"
        self.engine.reap(drain=True)
        self.flush()

    def run(self, *requests: Request) -> list[int]:
        """Submit requests, wait for all, and return their results."""
        self.submit(*requests)
        self.wait_for(*requests)
        return [request.result for request in requests]

    def wait_for(self, *requests: Request) -> None:
        self.flush()
        for request in requests:
            while not request.finished:
                self.turn()

    def settle(self) -> None:
        """Wait until nothing is outstanding."""
        while self.engine.outstanding:
            self.turn()

    def warm(self) -> None:
        """Have the memory for direct I/O made."""
        self.engine.buffers.prepare()
        self.settle()

    def descriptor(self, fd: int, *, known: bool = True) -> Descriptor:
        """Return a descriptor. `known`: its reads need no submitter.

        Its device is local, its map of blocks was read, and its time of access is set.
        """
        descriptor = Descriptor(fd, fd)
        descriptor.load(describe(fd).value)
        self.engine.learn(descriptor)
        if known:
            descriptor.read_device.note_place(local=True)
            set_no_access_time(fd)
            for offset in range(0, descriptor.size if descriptor.direct else 0, 1 << 20):
                descriptor.block_map.add(offset, 1)
        self.settle()
        return descriptor

    def close(self) -> None:
        self.settle()
        self.engine.stop()
        self.engine.close()


def fail_once(engine: Engine, error: Exception) -> None:
    """Let an engine raise an error, as a bug of ours would, behind the next completion that it serves in the general way."""
    finish, errors = engine.finish, iter([error])

    def finish_and_fail(request: Any, result: int) -> None:
        finish(request, result)
        for each in errors:
            raise each

    engine.finish = finish_and_fail  # type: ignore[method-assign]


@contextmanager
def loop(*arguments: Any, **options: Any) -> Iterator[Loop]:
    made = Loop(*arguments, **options)
    try:
        yield made
    finally:
        made.close()
