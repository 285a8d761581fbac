"""Exceptions between the lines of the package: MemoryError may come before any of them."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import trio_aio

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

ROOT = os.path.dirname(trio_aio.__file__)


class Fault:
    """A MemoryError before the n-th line of the package that this thread runs."""

    def __init__(self, before: int) -> None:
        self.left: int = before
        self.where: str | None = None

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        # What a finalizer raises Python only prints.
        if not frame.f_code.co_filename.startswith(ROOT) or frame.f_code.co_name == "__del__":
            return None
        if event == "line":
            self.left -= 1
            if not self.left:
                self.where = f"{os.path.relpath(frame.f_code.co_filename, ROOT)}:{frame.f_lineno}"
                raise MemoryError(self.where)
        return self.trace


@contextmanager
def error_before_line(number: int) -> Iterator[Fault]:
    """Raise MemoryError before a line of the package, once."""
    fault, former = Fault(number), sys.gettrace()
    sys.settrace(fault.trace)
    try:
        yield fault
    finally:
        sys.settrace(former)
