"""Trees of files for tests of names."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ("make_tree", "outcome")


def make_tree(top: Path) -> Path:
    """Make a small tree: directories, files, hidden ones, odd names, and links to files, to directories, to nothing and to themselves."""
    for directory in ("a/d", "a/e/f", "b/d", ".hidden", "empty", "a/e/with space"):
        (top / directory).mkdir(parents=True)
    for file in (
        "one.py",
        "a/one.py",
        "a/two.txt",
        "a/d/three.py",
        "a/e/f/four.py",
        "b/d/five",
        ".hidden/six.py",
        ".seven",
        "a/e/with space/eight.py",
    ):
        (top / file).write_text(file)
    (top / os.fsdecode(b"not utf-8 \xff")).write_text("")
    (top / "link to file").symlink_to("one.py")
    (top / "link to directory").symlink_to("a/e")
    (top / "a/link up").symlink_to("..")
    (top / "broken").symlink_to("nothing")
    (top / "loop").symlink_to("loop")
    os.mkfifo(top / "fifo")
    return top


def outcome(error: BaseException) -> tuple[Any, ...]:
    """Return what two errors are compared by: type, errno and names, with paths as text."""
    names = (getattr(error, "filename", None), getattr(error, "filename2", None))
    return (type(error), getattr(error, "errno", None), *(None if name is None else os.fsdecode(name) for name in names))
