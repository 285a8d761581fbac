"""Forks a child for each program of a test: the child has trio and trio_aio, and needs no 0.4 s of CPU time to import them.

`programs.run` starts one server for each test process, with ``-X dev``. The server has imported what programs need, and has opened no
file and started no thread: its child is as a new interpreter is after these imports. The child ends as any interpreter does.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import select
import signal
import socket
import sys
import types
from typing import Any

import trio  # noqa: F401

import trio_aio  # noqa: F401

_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Return a request, and the descriptors that are to be its standard output and error."""
    first, descriptors, _, _ = socket.recv_fds(connection, 1 << 16, 2)
    parts = [first]
    while parts[-1]:
        parts.append(connection.recv(1 << 16))
    return json.loads(b"".join(parts)), descriptors


def _wait(child: int, connection: socket.socket) -> int:
    """Wait for a child. Kill it when the test is gone, which waits no longer."""
    ended = os.pidfd_open(child)
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    poll.register(connection, 0)  # POLLHUP comes unasked
    if all(fd != ended for fd, _ in poll.poll()):
        os.kill(child, signal.SIGKILL)
    os.close(ended)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def serve(listener: socket.socket) -> str:
    """Fork a child for each request, one after the other. Return in the child, with its program."""
    while True:
        connection, _ = listener.accept()
        request, descriptors = _receive(connection)
        child = os.fork()
        if child == 0:
            _end_with_parent()
            listener.close()
            connection.close()
            for target, descriptor in enumerate(descriptors, 1):
                os.dup2(descriptor, target)
                os.close(descriptor)
            os.environ.clear()
            os.environ.update(request["environment"])
            os.chdir(request["folder"])
            sys.argv = ["-c", *request["values"]]
            return request["program"]
        for descriptor in descriptors:
            os.close(descriptor)
        status = _wait(child, connection)
        try:
            connection.sendall(str(status).encode())
        except BrokenPipeError:
            continue
        finally:
            connection.close()


def _run(program: str) -> None:
    """Run a program as ``__main__``. Nothing else refers to its names, so they die first at the end, as those of any program."""
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    exec(compile(program, "<string>", "exec"), main.__dict__)


if __name__ == "__main__":
    _end_with_parent()
    gc.freeze()
    _run(serve(socket.socket(fileno=int(sys.argv[1]))))
