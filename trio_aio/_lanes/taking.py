"""Completions of both lanes, taken in one C call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio_aio._native import ffi, lib

if TYPE_CHECKING:
    from trio_aio._lanes.kernel import KernelLane
    from trio_aio._lanes.workers import WorkerLane
    from trio_aio._native import CData

__all__ = ("CompletionBuffer",)

_reap = lib.taio_reap
_unpack = ffi.unpack


class CompletionBuffer:
    """Memory for as many completions as there are slots."""

    def __init__(self, slots: int) -> None:
        self._room: int = slots
        self._taken: int = 0  # completions in `_out`
        self._out: CData = ffi.new("struct taio_completion[]", slots)
        self._flat: CData = ffi.cast("int64_t *", self._out)

    def take(self, kernel: KernelLane | None, workers: WorkerLane, drain_fd: int, into: list[int]) -> None:
        """Add token, result and bytes moved of each completion to a list. drain_fd: an eventfd to empty first, or -1."""
        if not self._taken:
            self._taken = _reap(ffi.NULL if kernel is None else kernel.ring, workers.pool, drain_fd, self._out, self._room)
        if self._taken:  # without memory they stay for the next call; in one line, so that none can be lost or come twice
            into[len(into) :], self._taken = _unpack(self._flat, 3 * self._taken), 0

    def has(self, token: int) -> bool:
        """Return whether a completion with this token is still here."""
        return any(self._out[i].token == token for i in range(self._taken))
