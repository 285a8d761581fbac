"""``python -m trio_aio run``: a program, with our files in the places of trio's and anyio's."""

from __future__ import annotations

import os
import runpy
import sys
from typing import TYPE_CHECKING

from trio_aio._dropin.install import install

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ("run",)


def run(program: str, arguments: Sequence[str], *, is_module: bool) -> None:
    """Install all that can be replaced, and run a script or a module as Python would. It raises what the program raises."""
    install(streams=True, whole=True, names=True)
    sys.argv = [program, *arguments]
    if is_module:
        sys.path[0] = os.getcwd()
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = os.path.dirname(os.path.abspath(program))
        runpy.run_path(program, run_name="__main__")
