"""The C of this package and of the kernel's headers: `ffi` and `lib`, and the type of what they return."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio_aio._native._ext import ffi, lib

if TYPE_CHECKING:
    from trio_aio._native._ext import CData as CData

__all__ = ("ffi", "lib")
