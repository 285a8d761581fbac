"""The engine, as its parts and the requests see it.

They get the engine as an argument, and `Engine` imports its parts. So they know this Protocol, and not the class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_aio._engine.protocols import Hook
    from trio_aio._lanes.kernel import KernelLane
    from trio_aio._lanes.workers import WorkerLane
    from trio_aio._memory.slabs import BufferPool

__all__ = ("Host",)


class Host(Protocol):
    """`Engine` says what each part means."""

    max_in_flight: int
    event_fd: int
    outstanding: int
    ready: list[Any]
    earlier_submit_calls: int
    abandoned: int
    completed: int
    cancelled: int
    ever_abandoned: int
    retried: int
    submitted_kernel: int
    submitted_workers: int
    bytes_read: int
    bytes_written: int
    bounced_bytes: int
    orphaned: bool
    plugged: bool
    plug: Callable[[], None]
    wake: Callable[[Any], None]
    may_use_kernel: bool
    workers: WorkerLane
    kernel: KernelLane | None
    buffers: BufferPool
    hook: Hook | None
    drops: Any
    syncs: Any
    files: Any
    completions: Any

    def submit(self, request: Any) -> bool: ...
    def refuse(self, request: Any, result: int) -> None: ...
    def cancel(self, request: Any) -> bool: ...
    def complete(self, token: int, result: int, transferred: int) -> None: ...
    def dispatch(self, request: Any) -> None: ...
    def finish(self, request: Any, result: int) -> None: ...
    def end_request(self, request: Any) -> None: ...
    def wake_loop(self) -> None: ...
    def to_workers(self, request: Any) -> None: ...
    def ask_for_flush(self) -> None: ...
    def start_queued(self) -> None: ...
    def flush(self) -> None: ...
    def reap(self, *, drain: bool) -> None: ...
    def stop(self) -> None: ...
    def close(self) -> None: ...
