"""Threads that are started without waiting for them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NoReturn

import pytest

from tests.support.engine_loop import loop
from trio_aio._lanes import threads
from trio_aio._lanes.threads import Background, living

if TYPE_CHECKING:
    from collections.abc import Callable


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
