"""Programs of their own, for what a test must not do to its own process: limits, filters, signals, fork."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap

PROLOGUE = """
import errno, os, resource, select, signal, sys, threading, time, warnings
import trio
from trio_aio import AIOContext, current_context, open_aio
BLOCK = 4096
path = sys.argv[1]
with open(path, "rb") as plain:
    data = plain.read()
"""


def run(program: str, *values: object, harmless: str = "") -> str:
    """Run a program, and return what it printed. The first value is the path of a file."""
    return check([sys.executable, "-X", "dev", "-c", PROLOGUE + textwrap.dedent(program), *map(str, values)], harmless=harmless)


def check(command: list[str], *, harmless: str = "") -> str:
    """Run a command that has to succeed and to say nothing on stderr but what is `harmless` (a regular expression).

    ``dev`` mode complains of all that is left unclosed.
    """
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    said = re.sub(harmless, "", done.stderr) if harmless else done.stderr
    assert not said, said
    return done.stdout
