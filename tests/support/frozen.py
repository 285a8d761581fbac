"""A filesystem of a test's own that can be frozen, as a snapshot does it (fsfreeze(8))."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..conftest import need

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FREEZABLE = ("ext4", "xfs", "btrfs")
LONGEST = 50  # seconds after which a filesystem is thawed, whatever the test does
_SIZES = {"ext4": 64 << 20, "xfs": 320 << 20, "btrfs": 128 << 20}
_FORCE = {"ext4": "-F", "xfs": "-f", "btrfs": "-f"}


@contextmanager
def freezable(kind: str, folder: Path) -> Iterator[Path]:
    """Make a filesystem in a file, and give where it is mounted."""
    need(shutil.which("fsfreeze") is not None, "fsfreeze")
    need(shutil.which(f"mkfs.{kind}") is not None, f"mkfs.{kind}")
    image, mounted = folder / f"{kind}.img", folder / kind
    with image.open("wb") as file:
        file.truncate(_SIZES[kind])
    mounted.mkdir()
    subprocess.run([f"mkfs.{kind}", "-q", _FORCE[kind], str(image)], check=True, capture_output=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(mounted)], check=True)
    try:
        yield mounted
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


class Freeze:
    """A frozen filesystem. A process of its own thaws it, also if this one dies or stands still."""

    def __init__(self, mounted: Path) -> None:
        script = f'fsfreeze -f "$1" && echo frozen && timeout {LONGEST} cat > /dev/null; fsfreeze -u "$1"'
        command = ["sh", "-c", script, "sh", str(mounted)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "frozen\n"

    def thaw(self) -> None:
        """Let writes continue. A second call does nothing."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@contextmanager
def frozen(mounted: Path) -> Iterator[Freeze]:
    """Keep a filesystem frozen until the end of the block, or until `thaw`. Put it outside a nursery, or a failing test never ends."""
    freeze = Freeze(mounted)
    try:
        yield freeze
    finally:
        freeze.thaw()
