"""Other builds of trio_aio, which `bench --beside NAME=PYTHON` measures in the same rounds.

A build is an interpreter whose environment has some trio_aio installed. Rows and contenders are always those of this bench: in a process
of another build, `trio_aio._tools` is this folder and all else of `trio_aio` is the build's own. So a version that has no such row, or
no bench at all, can be measured, and both builds do the same work.

Processes start with `-I`: neither the current folder nor PYTHONPATH may decide which trio_aio is imported. Contenders of this build
start in the same way when there are others, with the `sys.path` of this process, so that all builds have equal conditions.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import trio_aio

__all__ = ("Build", "BuildError", "command", "find", "here")

_TOOLS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# Seconds until a build has answered which trio_aio it has.
_PATIENCE = 60

# What such a process does first. Its argument is JSON: this folder, sys.path (null: the build's own), and arguments for `begin`.
_PROGRAM = """
import json, sys, types
tools, path, arguments = json.loads(sys.argv[1])
if path is not None:
    sys.path[:] = path
import trio_aio
package = sys.modules["trio_aio._tools"] = trio_aio._tools = types.ModuleType("trio_aio._tools")
package.__path__ = [tools]
"""
_ASK = """
import importlib.metadata, os, platform
try:
    version = importlib.metadata.version("trio-aio")
except importlib.metadata.PackageNotFoundError:
    version = None
import trio_aio._tools.bench.rows
folder = os.path.dirname(os.path.abspath(trio_aio.__file__))
print(json.dumps({"version": version, "folder": folder, "python_version": platform.python_version()}))
"""
_SERVE = """
from trio_aio._tools.bench.children import serve_on
serve_on(*arguments)
"""


class BuildError(Exception):
    """Why a build cannot be measured."""


@dataclass(frozen=True)
class Build:
    """An interpreter, and the trio_aio that it imports."""

    name: str | None
    """None: this build."""
    python: str
    path: tuple[str, ...] | None = None
    """Its `sys.path`; None: what the interpreter has by itself."""
    version: str | None = None
    folder: str = ""
    """Where its trio_aio lies."""
    python_version: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the build for `json.dumps`."""
        return {
            "name": self.name,
            "python": self.python,
            "python_version": self.python_version,
            "version": self.version,
            "folder": self.folder,
        }


def here() -> Build:
    """Return this build, for processes that start in the same way as those of others. BuildError."""
    build = _asked(Build(None, sys.executable, tuple(sys.path)))
    ours = os.path.dirname(os.path.abspath(trio_aio.__file__))
    if build.folder != ours:
        raise BuildError(f"{build.python} must import trio_aio from {ours}, not from {build.folder}")
    return build


def find(name: str, python: str) -> Build:
    """Return the build of an interpreter or of an environment's folder. BuildError."""
    # Not its real path: the link in an environment's folder is what makes it that environment's interpreter.
    path = os.path.abspath(python)
    return _asked(Build(name, os.path.join(path, "bin", "python") if os.path.isdir(path) else path))


def command(build: Build, *arguments: object) -> list[str]:
    """Return the command of a process in which `build` serves a contender. arguments: those of `children.serve_on`."""
    return _command(build, _SERVE, arguments)


def _command(build: Build, program: str, arguments: tuple[object, ...] = ()) -> list[str]:
    return [build.python, "-I", "-c", _PROGRAM + program, json.dumps([_TOOLS, build.path, arguments])]


def _asked(build: Build) -> Build:
    try:
        done = subprocess.run(_command(build, _ASK), capture_output=True, text=True, check=False, timeout=_PATIENCE)
    except OSError as error:
        raise BuildError(f"{build.python} must be an interpreter that starts: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise BuildError(f"{build.python} must say which trio_aio it has within {_PATIENCE} seconds") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise BuildError(f"{build.python} must have a trio_aio that bench can use, with trio and anyio: {reason}")
    return Build(build.name, build.python, build.path, **json.loads(done.stdout))
