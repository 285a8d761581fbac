"""`PathInfo`: what a listing saw of a path."""

from __future__ import annotations

from trio_aio._names.listing import DT_DIR, DT_LNK, DT_REG

__all__ = ("PathInfo",)


class PathInfo:
    """What a listing saw of a path, as ``pathlib.types.PathInfo``. Its methods make no system call."""

    __slots__ = ("_kind", "_target")

    def __init__(self, kind: int, target: int) -> None:
        self._kind: int = kind
        self._target: int = target

    def __repr__(self) -> str:
        return f"<PathInfo {'link' if self._kind == DT_LNK else 'directory' if self._kind == DT_DIR else 'file'}>"

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        """Return whether it exists: False for a broken link that is followed."""
        return self._kind != DT_LNK or not follow_symlinks or 0 < self._target < 128

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Return whether it is a directory."""
        return self._is(DT_DIR, follow_symlinks)

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Return whether it is a regular file."""
        return self._is(DT_REG, follow_symlinks)

    def is_symlink(self) -> bool:
        """Return whether it is a symbolic link."""
        return self._kind == DT_LNK

    def _is(self, wanted: int, follow_symlinks: bool) -> bool:
        return (self._target if self._kind == DT_LNK and follow_symlinks else self._kind) == wanted
