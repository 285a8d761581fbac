"""The C of this package and of the kernel's headers: `ffi` and `lib` of the extension, and `CData`, the type of C objects.

In a clone the Python code may be newer than the extension, after a pull for example. Then some name would be missing in `lib`, far from
here. So the extension knows the digest of the declarations that it was built from, and it is compared once, here. An installed package has
no file of declarations, and needs no comparison: wheels contain both parts.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from trio_aio._native._ext import ffi, lib

if TYPE_CHECKING:
    from trio_aio._native._ext import CData as CData

__all__ = ("ffi", "lib")

_DECLARATIONS = os.path.join(os.path.dirname(__file__), "native.cdef.txt")


def _check_extension() -> None:
    """Raise ImportError if the extension was built from other declarations than those in this folder."""
    try:
        with open(_DECLARATIONS, "rb") as file:
            declarations = file.read()
    except FileNotFoundError:
        return
    import hashlib  # not needed by installed packages

    built_from = ffi.string(lib.taio_declarations()) if hasattr(lib, "taio_declarations") else b""
    if built_from != hashlib.sha256(declarations).hexdigest().encode():
        raise ImportError("the extension of trio_aio is older than the Python code: run `make env`")


_check_extension()
