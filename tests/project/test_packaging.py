"""What is installed: one abi3 wheel that needs no other library, also from the sdist; and off Linux a clear ImportError."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import trio_aio
from trio_aio._native import _ext


def test_import_off_linux_raises_import_error() -> None:
    program = "import sys; sys.platform = 'darwin'; import trio_aio"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert re.search(r"ImportError: trio_aio works on Linux only.*darwin", done.stderr)


def test_public_names_exist_and_have_docstrings() -> None:
    for name in trio_aio.__all__:
        assert getattr(trio_aio, name).__doc__


def test_extension_needs_only_libc() -> None:
    # The loader's own list would do, but nothing guarantees readelf: the names stand in the file.
    needed = set(re.findall(rb"\0(lib[\w+-]+\.so[.\d]*)(?=\0)", Path(_ext.__file__).read_bytes()))
    assert {b"libc.so.6"} <= needed <= {b"libc.so.6", b"libpthread.so.0"}
