"""`poll` where the kernel's AIO does not do it: epoll(7) for descriptors that signal readiness, a thread for files whose poll may
ask a server first.

The thread also serves what epoll(7) refuses (EPERM): devices that are always ready.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

from trio_aio._errors import os_error
from trio_aio._lanes.threads import Background

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio_aio._backends import Backend

__all__ = ("poll",)


async def poll(backend: Backend, watches: set[int], fd: int, mode: int, events: int) -> int:
    """Wait until one of `events` is ready on `fd`, and return those that are.

    watches: gets the descriptor that is waited for; what is closed by `notify_closing` meanwhile ends the wait with ECANCELED.
    """
    try:
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISBLK(mode)):
            try:
                return await _poll_by_epoll(backend, watches, fd, events)
            except PermissionError:
                pass  # the device has no poll: poll(2) then says that it is ready
        ready = await _poll_by_thread(backend, watches, fd, events)
        if ready & select.POLLNVAL:  # a descriptor that only names a file (O_PATH)
            raise OSError(errno.EBADF, "")
        return ready
    except OSError as error:
        raise os_error(error.errno or 0, fd) from None


@contextmanager
def _among(watches: set[int], watch: int) -> Iterator[None]:
    watches.add(watch)
    try:
        yield
    finally:
        watches.discard(watch)


async def _poll_by_epoll(backend: Backend, watches: set[int], fd: int, events: int) -> int:
    with select.epoll() as watch:
        watch.register(fd, events)
        with _among(watches, watch.fileno()):
            while not (ready := watch.poll(0, 1)):  # another task may have been faster
                if not await backend.wait_readable(watch.fileno()):
                    raise OSError(errno.ECANCELED, "")
        return ready[0][1]


async def _poll_by_thread(backend: Backend, watches: set[int], fd: int, events: int) -> int:
    """Let a thread call poll(2): a file of FUSE asks its server, and a server may hang.

    Task and thread have an end each of a connection, and each shuts it down: that is how either tells the other to stop waiting. To close
    an end would not do: a child of fork has copies of both. A thread whose server hangs closes its end, and its copy of `fd`, when it is
    answered.
    """
    copy = os.dup(fd)
    try:
        end, thread_end = socket.socketpair()
    except OSError:
        os.close(copy)
        raise
    ready: list[int] = []
    with end:
        try:
            Background("trio_aio poll", _poll_blocking, copy, events, thread_end, ready).start()
        except BaseException:
            os.close(copy)
            thread_end.close()
            raise
        try:
            with _among(watches, end.fileno()):
                if not await backend.wait_readable(end.fileno()):
                    raise OSError(errno.ECANCELED, "")
        finally:
            end.shutdown(socket.SHUT_RDWR)
    return ready[0]


def _poll_blocking(fd: int, events: int, end: socket.socket, ready: list[int]) -> None:
    try:
        waiting = select.poll()
        waiting.register(fd, events)
        waiting.register(end, 0)  # POLLHUP is always reported: the task has shut down its end
        found = dict(waiting.poll())
        ready.append(found.get(fd, 0))
    finally:
        os.close(fd)
        with end:
            end.shutdown(socket.SHUT_RDWR)
