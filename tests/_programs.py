"""Programs of their own, for what a test must not do to its own process: limits, filters, signals, fork."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
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


def arguments(program: str, *values: object) -> list[str]:
    return [sys.executable, "-X", "dev", "-c", PROLOGUE + textwrap.dedent(program), *map(str, values)]


def run(program: str, *values: object) -> str:
    """Run a program, which must succeed and say nothing on stderr; give what it printed. The first value is the path of a file."""
    # `dev` mode warns of all that is left unclosed. The tests' helpers can be imported.
    done = subprocess.run(
        arguments(program, *values), capture_output=True, text=True, timeout=120, check=False, cwd=Path(__file__).parents[1], env=os.environ
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr, done.stderr
    return done.stdout
