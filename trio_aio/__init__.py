"""Asynchronous file I/O for trio and anyio on Linux native AIO.

``async with open_aio(path) as file: data = await file.pread(4096, 0)``
"""

from __future__ import annotations

import sys

if sys.platform != "linux":
    raise ImportError(f"trio_aio works on Linux only: it is built on the Linux kernel's native AIO, which {sys.platform} does not have")

from trio_aio._context import AIOContext, AIOStatistics, current_context
from trio_aio._descriptor import Alignment
from trio_aio._file import AsyncFile
from trio_aio._open import FileOpener, open_aio
from trio_aio._pipeline import Chunks, Writer
from trio_aio._streams import FileReadStream, FileWriteStream
from trio_aio._text import AsyncTextFile
from trio_aio._whole import read_bytes, read_text, write_bytes, write_text
from trio_aio.lowlevel import RWF

__all__ = (
    "RWF",
    "AIOContext",
    "AIOStatistics",
    "Alignment",
    "AsyncFile",
    "AsyncTextFile",
    "Chunks",
    "FileOpener",
    "FileReadStream",
    "FileWriteStream",
    "Writer",
    "current_context",
    "open_aio",
    "read_bytes",
    "read_text",
    "write_bytes",
    "write_text",
)
