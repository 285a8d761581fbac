"""Examples as programs: those that run until they are ended, and those that take long."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import select
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLES = Path(__file__).parents[2] / "examples"
LONGEST = 50  # seconds without a line; less than pytest's own limit, so that the program is ended


def may_take_long() -> None:
    """Switch off pytest's limit for this test. What it runs has to have limits of its own."""
    faulthandler.cancel_dump_traceback_later()


class Started:
    """An example that runs."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process: subprocess.Popen[bytes] = process
        self._printed: bytes = b""

    def line(self) -> str:
        """Return the next line that it prints."""
        assert self.process.stdout is not None
        while b"\n" not in self._printed:
            assert select.select([self.process.stdout], [], [], LONGEST)[0], f"nothing more was printed after {self._printed!r}"
            part = os.read(self.process.stdout.fileno(), 1 << 20)
            assert part, f"the program ended, and printed {self._printed!r}"
            self._printed += part
        line, _, self._printed = self._printed.partition(b"\n")
        return line.decode()


_libc = ctypes.CDLL(None)


def _die_with_the_tests() -> None:
    """If the tests are killed, for instance by pytest's limit, the program must not stay."""
    _libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


@contextmanager
def started(name: str, *arguments: object, python: str = sys.executable, folder: Path = EXAMPLES) -> Iterator[Started]:
    """Start an example, and kill it at the end."""
    command = [python, str(folder / name), *map(str, arguments)]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, preexec_fn=_die_with_the_tests)
    assert process.stdout is not None
    with process.stdout:
        try:
            yield Started(process)
        finally:
            process.kill()
            process.wait()
