"""Which files a copy of fsspec copies, and where to.

A call names paths, folders or patterns, and a target that may be a folder. fsspec decides what this means inside of `get`, `put` and
`copy`, and these call a method for each file. So they run on a filesystem whose method only notes the call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trio_aio.integrations import missing

try:
    from fsspec.implementations.local import LocalFileSystem
except ImportError as _error:
    raise missing("fsspec", _error) from _error

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("PROTOCOLS", "planned")

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
