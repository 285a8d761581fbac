"""The one door to C: ``ffi`` and ``lib``, and nothing else, for ``lowlevel``, ``_buffers`` and ``_engine``."""

from __future__ import annotations

from trio_aio._native._ext import ffi, lib

__all__ = ("ffi", "lib")
