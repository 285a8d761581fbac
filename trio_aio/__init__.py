"""Asynchronous file I/O for trio and anyio on Linux native AIO.

``async with open_aio(path) as file: data = await file.pread(4096, 0)``
"""

from __future__ import annotations

import sys

if sys.platform != "linux":
    raise ImportError(f"trio_aio works on Linux only: it is built on the Linux kernel's native AIO, which {sys.platform} does not have")

from trio_aio import os as os
from trio_aio._backends import load_backends
from trio_aio._bulk.chunks import Chunks
from trio_aio._bulk.writer import Writer
from trio_aio._context.context import AIOContext
from trio_aio._context.shared import current_context
from trio_aio._context.statistics import AIOStatistics
from trio_aio._dropin.install import install, uninstall
from trio_aio._dropin.open_file import open_file, wrap_file
from trio_aio._engine.descriptor import Alignment
from trio_aio._files.binary import AsyncFile
from trio_aio._files.open import open_aio
from trio_aio._files.opener import FileOpener
from trio_aio._files.streams import FileReadStream, FileWriteStream
from trio_aio._files.text import AsyncTextFile
from trio_aio._files.whole import read_bytes, read_text, write_bytes, write_text
from trio_aio._memory.aligned import aligned_buffer
from trio_aio._names.copying import copy_file, copy_tree
from trio_aio._names.directory import AsyncDirectory, DirectoryOpener, open_directory
from trio_aio._names.info import PathInfo
from trio_aio._names.listing import DirEntry, Listing, scandir
from trio_aio._names.many import FileContents, read_files
from trio_aio._names.path import Path
from trio_aio._names.removing import remove_tree
from trio_aio._names.spooled import SpooledTemporaryFile
from trio_aio._names.temporary import (
    NamedTemporaryFile,
    TemporaryDirectory,
    TemporaryFile,
    gettempdir,
    gettempdirb,
    mkdtemp,
    mkstemp,
)
from trio_aio._names.walk import walk
from trio_aio.lowlevel import RWF

# Not `os`: ``from trio_aio import *`` must leave the program's own.
__all__ = (
    "RWF",
    "AIOContext",
    "AIOStatistics",
    "Alignment",
    "AsyncDirectory",
    "AsyncFile",
    "AsyncTextFile",
    "Chunks",
    "DirEntry",
    "DirectoryOpener",
    "FileContents",
    "FileOpener",
    "FileReadStream",
    "FileWriteStream",
    "Listing",
    "NamedTemporaryFile",
    "Path",
    "PathInfo",
    "SpooledTemporaryFile",
    "TemporaryDirectory",
    "TemporaryFile",
    "Writer",
    "aligned_buffer",
    "copy_file",
    "copy_tree",
    "current_context",
    "gettempdir",
    "gettempdirb",
    "install",
    "mkdtemp",
    "mkstemp",
    "open_aio",
    "open_directory",
    "open_file",
    "read_bytes",
    "read_files",
    "read_text",
    "remove_tree",
    "scandir",
    "uninstall",
    "walk",
    "wrap_file",
    "write_bytes",
    "write_text",
)

# Last: the backends find all classes that they must know.
load_backends()
del load_backends
