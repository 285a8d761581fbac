"""Which files a copy of fsspec copies, and where to; and what other arguments of its calls mean.

A call names paths, folders or patterns, and a target that may be a folder. fsspec decides what this means inside of `get`, `put` and
`copy`, and these call a method for each file. So they run on a filesystem whose method only notes the call.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from trio_aio.integrations import missing

try:
    from fsspec.implementations.local import LocalFileSystem
except ImportError as _error:
    raise missing("fsspec", _error) from _error

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("PROTOCOLS", "as_list", "path_error", "plain", "planned")

PROTOCOLS = ("aio", "file", "local")


def planned(call: Callable[..., None], sources: Any, targets: Any) -> tuple[list[tuple[Any, Any]], dict[str, Any]]:
    """Return the pairs (source, target) that `call`, one of LocalFileSystem's, would copy, and the options for each file."""
    plan = _Plan()
    call(plan, sources, targets)
    return plan.pairs, plan.kwargs


class _Plan(LocalFileSystem):
    """A LocalFileSystem that notes what it would copy."""

    protocol: str | tuple[str, ...] = PROTOCOLS
    cachable: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.pairs: list[tuple[Any, Any]] = []
        self.kwargs: dict[str, Any] = {}

    def cp_file(self, path1: Any, path2: Any, **options: Any) -> None:
        options.pop("callback", None)
        self.pairs.append((path1, path2))
        self.kwargs = options

    get_file = put_file = cp_file


def as_list(values: Any, count: int, name: str) -> list[Any]:
    """Return one value for each path. ValueError if there are more or fewer."""
    listed = list(values) if hasattr(values, "__iter__") else [values] * count
    if len(listed) != count:
        raise ValueError(f"{name} must have one number for each of the {count} paths, not {len(listed)}")
    return listed


def path_error(path: str) -> ValueError | None:
    """Return the error of a path that no file can have."""
    try:
        return ValueError(f"path must not contain a null byte: {path!r}") if b"\0" in os.fsencode(path) else None
    except UnicodeEncodeError as error:
        return error


def plain(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options without `batch_size`: `DEPTH` says how many files are open at once."""
    return {name: value for name, value in options.items() if name != "batch_size"}
