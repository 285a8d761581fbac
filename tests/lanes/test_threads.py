"""Threads that are started without waiting for them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NoReturn

import pytest

from tests.support.engine_loop import loop
from tests.support.programs import run
from trio_aio._lanes import threads
from trio_aio._lanes.threads import Background, living

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_workers_are_started_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: threading.Thread) -> NoReturn:
        raise AssertionError("Thread.start waits for the new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    with loop(4, 4) as made:
        assert len(made.engine.workers.threads) == 1


def test_join_waits_for_the_function() -> None:
    go, done = threading.Event(), []

    def work(value: int) -> None:
        go.wait()
        done.append(value)

    thread = Background("worker", work, 7)
    thread.start()
    assert thread in living
    go.set()
    thread.join()
    assert done == [7]
    assert thread not in living


def test_thread_that_cannot_be_had_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(function: Callable[[], None], args: tuple[()]) -> NoReturn:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads, "start_new_thread", refuse)
    thread = Background("worker", int)
    with pytest.raises(RuntimeError, match="new thread"):
        thread.start()
    assert thread not in living


def test_thread_has_memory_to_begin_or_is_an_error(file: tuple[Path, bytes]) -> None:
    # glibc ends the process if a thread finds no memory for a library's thread-local data, as cffi has it.
    run(
        """
        from trio_aio._lanes.threads import Background
        from trio_aio._native import lib

        def use_up():
            kept = []
            for size in (1 << 20, 1 << 16, 1 << 12, 1 << 10):
                try:
                    while True:
                        kept.append(bytearray(size))
                except MemoryError:
                    pass
            return kept

        def used():
            with open("/proc/self/statm") as statm:
                return int(statm.read().split()[0]) * resource.getpagesize()

        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        refused = begun = 0
        for room in range(0, 32 << 20, 1 << 20):
            done = []
            # The first leaves its stack to the second, which then needs nothing but what it takes itself.
            first, second = Background("first", int), Background("second", lambda: done.append(lib.taio_io_destroy(0)))
            first.start()
            first.join()
            full = used()
            little, limit = (full, hard), (full + room, hard)
            resource.setrlimit(resource.RLIMIT_AS, little)
            kept = use_up()
            resource.setrlimit(resource.RLIMIT_AS, limit)
            try:
                second.start()
            except RuntimeError:
                refused += 1
            else:
                second.join()
                assert len(done) == 1
                begun += 1
            finally:
                resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        assert refused and begun
        """,
        file[0],
    )
