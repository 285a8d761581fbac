"""All calls, and whether they are all: `missing` and `unknown` compare them with what the package exports."""

from __future__ import annotations

import inspect

import trio_aio

from . import calls_on_files, calls_on_names
from .call import CALLS

__all__ = ("CALLS", "missing", "public_calls", "unknown")

PARTS = (calls_on_files, calls_on_names)  # importing them has filled `CALLS`

# What does not ask the kernel for anything of the filesystem, or is made of calls that are here.
WITHOUT: dict[str, str] = {
    "aligned_buffer": "memory",
    "current_context": "memory",
    "install": "replaces functions",
    "uninstall": "replaces functions",
    "wrap_file": "that of anyio",
    "RWF": "an enumeration",
    "AIOStatistics": "numbers",
    "Alignment": "numbers",
    "PathInfo": "what a listing saw",
    "DirEntry": "os.scandir",
    "FileOpener": "open_aio",
    "DirectoryOpener": "open_directory",
    "FileContents": "read_files",
    "Listing": "scandir, walk, glob",
    "Chunks": "AsyncFile.chunks",
    "Writer": "AsyncFile.writer",
    "AIOContext.statistics": "numbers",
    **{
        f"{kind}.{name}": "memory"
        for kind in ("AsyncFile", "AsyncTextFile", "SpooledTemporaryFile")
        for name in ("readable", "writable", "seekable", "isatty")
    },
    "AsyncFile.blocking": "blocks, and refuses to on the loop's thread",
    "AsyncTextFile.blocking": "blocks, and refuses to on the loop's thread",
    "AsyncTextFile.fileno": "AsyncFile.fileno",
    "AsyncDirectory.fileno": "memory",
    "SpooledTemporaryFile.fileno": "AsyncFile.fileno",
    "Path.from_uri": "text",
    "Path.cwd": "os.getcwd",
    "Path.home": "text",
    "Path.expanduser": "text, or the users of the system, in a thread",
}


MANAGERS = ("TemporaryFile", "NamedTemporaryFile", "TemporaryDirectory")  # classes that are called themselves


def public_calls() -> set[str]:
    """Return the names of what the package exports and users call."""
    found = set()
    for name in trio_aio.__all__:
        value = getattr(trio_aio, name)
        if not inspect.isclass(value) or name in WITHOUT or name in MANAGERS:
            found.add(name)
        if inspect.isclass(value) and name not in WITHOUT:
            for kind in value.__mro__:
                if kind.__module__.startswith("trio_aio"):
                    found |= {f"{name}.{key}" for key, member in vars(kind).items() if key[0] != "_" and _is_call(member)}
    for prefix, module in (("os", trio_aio.os), ("os.path", trio_aio.os.path)):
        found |= {f"{prefix}.{key}" for key, value in vars(module).items() if key[0] != "_" and inspect.isfunction(value)}
    return found - {"os"}


def _is_call(member: object) -> bool:
    return inspect.isfunction(member) or isinstance(member, classmethod)


def missing() -> set[str]:
    """Return the public calls that are neither in `CALLS` nor in `WITHOUT`."""
    return public_calls() - {call.api for call in CALLS} - WITHOUT.keys()


def unknown() -> set[str]:
    """Return the names in `CALLS` and `WITHOUT` that the package does not have."""
    return ({call.api for call in CALLS} | WITHOUT.keys()) - public_calls()
