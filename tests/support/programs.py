"""Programs of their own, for what a test must not do to its own process: limits, filters, signals, fork."""

from __future__ import annotations

import functools
import json
import os
import re
import select
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

PROLOGUE = """
import errno, os, resource, select, signal, sys, threading, time, warnings
import trio
from trio_aio import AIOContext, current_context, open_aio
BLOCK = 4096
path = sys.argv[1]
with open(path, "rb") as plain:
    data = plain.read()
"""
LONGEST = 120  # seconds
_ROOT = Path(__file__).parents[2]


def run(program: str, *values: object, harmless: str = "") -> str:
    """Run a program in a fork of a process with ``-X dev``, and return what it printed. The first value is the path of a file."""
    return _judge(*_fork(PROLOGUE + textwrap.dedent(program), [*map(str, values)]), harmless)


def check(command: list[str], *, harmless: str = "") -> str:
    """Run a command that has to succeed and to say nothing on stderr but what is `harmless` (a regular expression).

    ``dev`` mode complains of all that is left unclosed.
    """
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, check=False)
    return _judge(done.returncode, done.stdout, done.stderr, harmless)


def _judge(status: int, printed: str, complaints: str, harmless: str) -> str:
    assert status == 0, f"status {status}: {printed}{complaints}"
    said = re.sub(harmless, "", complaints) if harmless else complaints
    assert not said, said
    return printed


@functools.cache
def _server() -> str:
    """Start the server of forks, once in a process. Return its address. It ends with this process, and leaves no descriptor here."""
    address = f"\0trio_aio tests {os.getpid()} {time.monotonic_ns()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        command = [sys.executable, "-X", "dev", "-m", "tests.support.program_server", str(listener.fileno())]
        _processes.append(subprocess.Popen(command, pass_fds=[listener.fileno()], stdin=subprocess.DEVNULL, cwd=_ROOT))
    return address


_processes: list[subprocess.Popen[bytes]] = []


def end_server() -> None:
    """End the server, if there is one: its CPU time then counts as that of this process's children."""
    for process in _processes:
        process.kill()
        process.wait()
    _processes.clear()
    _server.cache_clear()


def _fork(program: str, values: list[str]) -> tuple[int, str, str]:
    """Have a program run in a fork of the server. Return its status, and what it wrote to its standard output and error."""
    request = {"program": program, "values": values, "environment": dict(os.environ), "folder": os.getcwd()}
    pipes = os.pipe(), os.pipe()
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(_server())
            data = json.dumps(request).encode()
            sent = socket.send_fds(connection, [data], [pipe[1] for pipe in pipes])
            connection.sendall(data[sent:])
            connection.shutdown(socket.SHUT_WR)
        finally:
            for pipe in pipes:
                os.close(pipe[1])
        try:
            status, printed, complaints = _read_all([connection.fileno(), *(pipe[0] for pipe in pipes)])
        finally:
            for pipe in pipes:
                os.close(pipe[0])
    return int(status), printed, complaints


def _read_all(descriptors: list[int]) -> list[str]:
    """Read several descriptors to their ends."""
    parts: dict[int, list[bytes]] = {descriptor: [] for descriptor in descriptors}
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    unread, end = set(descriptors), time.monotonic() + LONGEST
    while unread:
        ready = poll.poll(max(0, end - time.monotonic()) * 1000)
        assert ready, f"the program has not ended after {LONGEST} s; it wrote {parts}"
        for descriptor, _ in ready:
            parts[descriptor].append(os.read(descriptor, 1 << 16))
            if not parts[descriptor][-1]:
                poll.unregister(descriptor)
                unread.remove(descriptor)
    return [b"".join(parts[descriptor]).decode() for descriptor in descriptors]
