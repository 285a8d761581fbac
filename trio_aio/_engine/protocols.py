"""What the engine asks of a request, of a group of requests and of a test's faults.

The engine knows no kind of request by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from trio_aio._lanes.protocols import State

__all__ = ("CloseRequest", "Group", "Hook", "Request", "SyncRequest", "WriteRequest")


class Group(Protocol):
    """Several requests that one task waits for."""

    waiter: Any

    @property
    def finished(self) -> bool:
        """Whether nothing is in flight and nothing will be."""

    def ended(self, request: Any) -> None:
        """Note that one of its requests has ended."""

    def tear(self, error: BaseException) -> None:
        """Start no more requests: an exception came in the middle of a step."""

    def resume(self) -> None:
        """Submit more of its requests, after other tasks had their tick."""


class Request(Protocol):
    """A request as the engine sees it. `_requests.base.Request` says what each part means."""

    changes: bool
    syncs: bool
    closes: bool
    ordered: bool
    gated: bool
    kernel_can_cancel: bool
    is_batch: bool
    descriptor: Any
    state: State
    token: int
    result: int
    transferred: int
    waiter: Any
    group: Group | None
    cancel_requested: bool
    cancel_accepted: bool
    abandoned: bool
    outstanding: bool
    counted: bool

    @property
    def nbytes(self) -> int: ...
    @property
    def probing(self) -> bool: ...
    @property
    def count(self) -> int: ...
    @property
    def finished(self) -> bool: ...
    @property
    def has_moved_bytes(self) -> bool: ...

    def admit(self, engine: Any) -> None: ...
    def can_submit(self, engine: Any) -> bool | None: ...
    def start(self, engine: Any) -> None: ...
    def start_worker(self) -> None: ...
    def prepare(self, lane: Any, slot: int) -> None: ...
    def fill_slot(self, lane: Any, slot: int, before: int) -> None: ...
    def chain_key(self) -> Any: ...
    def note_slept(self) -> None: ...
    def note_submitted(self, engine: Any, result: int | None) -> None: ...
    def complete_kernel(self, engine: Any, token: int, result: int) -> None: ...
    def complete_worker(self, engine: Any, result: int, transferred: int) -> None: ...
    def settle(self, engine: Any) -> None: ...
    def release_memory(self, engine: Any) -> None: ...
    def let_go(self, engine: Any) -> None: ...
    def cancel(self, engine: Any) -> bool: ...
    def withdraw(self, engine: Any) -> bool: ...
    def withdraw_held(self) -> None: ...
    def note_abandoned(self, engine: Any) -> None: ...
    def leave_kernel(self, engine: Any, result: int) -> None: ...


class WriteRequest(Request, Protocol):
    """A write, as the gate of its file sees it."""

    buffered: bool
    passed_gate: bool


class CloseRequest(Request, Protocol):
    """A close, as the order of its descriptor sees it."""

    may_be_left: bool


class SyncRequest(Request, Protocol):
    """A sync, as the order of its descriptor sees it."""

    data_only: bool
    has_waited: bool
    waits_for: set[Request]
    leader: SyncRequest | None
    followers: list[SyncRequest]


class Hook(Protocol):
    """A test's faults, at the places where they can meet a request (`testing`). Called by the engine if it has one."""

    def install(self, engine: Any) -> None:
        """Note that the engine is made. The hook may put itself between a lane and its requests: `Lane.begin`."""

    def install_kernel(self, engine: Any) -> None:
        """Note that the engine has made its kernel lane."""

    def submitted(self, request: Any) -> None:
        """Note that a request comes in."""

    def allows_kernel(self, request: Any) -> bool:
        """Return whether a request may take the kernel lane."""

    def completed(self, token: int, result: int, transferred: int) -> tuple[int, int] | None:
        """Return result and bytes moved that a completion shall have. None: the request is not complete."""

    def withdraws(self, request: Any) -> bool:
        """Take a prepared request back that the hook, not the ring, holds. False: the ring has it."""

    def holds(self, request: Any) -> bool:
        """Return whether the hook holds a request back that has a slot."""

    def released(self, request: Any) -> None:
        """Note that a request has ended."""

    def reaped(self, engine: Any) -> None:
        """Complete what the hook answers itself, after the completions of the lanes."""

    def close(self) -> None:
        """End with the engine."""
