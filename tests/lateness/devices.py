"""Devices that keep a call waiting: frozen filesystems, filesystems whose server is late, and a filesystem on a slow disk.

Each of them thaws, or answers, by itself: if the event loop's thread waits for it, the loop continues after that.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from ..support.frozen import FREEZABLE, freezable
from ..support.late_fuse import KINDS, LateFilesystem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

FROZEN = 0.15  # seconds that a filesystem is frozen
LATE = 0.05  # seconds that each answer is late
SLOW_DISKS = ("ext4", "xfs", "btrfs")
_IMAGE = 400 << 20

# The freezer is a process of its own, which thaws by itself. linux/fs.h: FIFREEZE, FITHAW.
_FREEZER = f"""
import fcntl, os, signal, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
fd = os.open(sys.argv[1], os.O_RDONLY)
for _ in sys.stdin:
    fcntl.ioctl(fd, 0xC0045877, 0)
    print(flush=True)
    time.sleep({FROZEN})
    fcntl.ioctl(fd, 0xC0045878, 0)
    print(flush=True)
"""


class Device:
    """A place for the calls. Calls may wait between `start` and `stop`."""

    def __init__(self, folder: Path) -> None:
        self.folder: Path = folder
        self.made_in: Path = folder  # another way to the same folder, on which the files of the calls are made

    def make_cold(self) -> None:
        """Let the kernel forget what it can of names, attributes and contents."""
        libc = ctypes.CDLL(None, use_errno=True)
        fd = os.open(self.folder, os.O_RDONLY)
        try:
            if libc.syncfs(fd):
                raise OSError(ctypes.get_errno(), "syncfs")
        finally:
            os.close(fd)
        for folder, _, names in os.walk(self.folder):
            for name in names:
                path = os.path.join(folder, name)
                if os.path.islink(path) or not os.path.isfile(path):
                    continue
                fd = os.open(path, os.O_RDONLY)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(fd)

    def start(self) -> None:
        """Begin to keep calls waiting."""

    def stop(self) -> None:
        """Keep none waiting."""


class Frozen(Device):
    """A filesystem that is frozen for a while."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        pipe = subprocess.PIPE
        self._process: subprocess.Popen[str] = subprocess.Popen(
            [sys.executable, "-c", _FREEZER, str(folder)], stdin=pipe, stdout=pipe, text=True, bufsize=1
        )

    def _read(self) -> None:
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise RuntimeError("the filesystem cannot be frozen: see above")

    def start(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._read()

    def stop(self) -> None:
        self._read()

    def end(self) -> None:
        self._process.communicate()


class Late(Device):
    """A filesystem with a server that is late."""

    def __init__(self, filesystem: LateFilesystem) -> None:
        super().__init__(filesystem.folder)
        self.made_in = filesystem.source
        self._filesystem: LateFilesystem = filesystem

    def start(self) -> None:
        self._filesystem.delay(LATE)

    def stop(self) -> None:
        self._filesystem.delay(0)


class SlowDisk(Device):
    """A filesystem in a file of a filesystem whose server is late: a loop device. Mounted anew, nothing of it is in memory."""

    def __init__(self, filesystem: LateFilesystem, kind: str, folder: Path) -> None:
        super().__init__(folder)
        self._filesystem: LateFilesystem = filesystem
        image = filesystem.source / "image"
        with image.open("wb") as file:
            file.truncate(_IMAGE)
        subprocess.run([f"mkfs.{kind}", "-q", "-F" if kind == "ext4" else "-f", str(image)], check=True, capture_output=True)
        self.mount()

    def mount(self) -> None:
        subprocess.run(["mount", "-o", "loop", str(self._filesystem.folder / "image"), str(self.folder)], check=True)

    def unmount(self) -> None:
        subprocess.run(["umount", str(self.folder)], check=True)

    def make_cold(self) -> None:
        self.unmount()
        self.mount()

    def start(self) -> None:
        self._filesystem.delay(LATE)

    def stop(self) -> None:
        self._filesystem.delay(0)


@contextmanager
def _on_tmpfs(base: Path) -> Iterator[Device]:
    folder = base / "tmpfs"
    folder.mkdir()
    yield Device(folder)
    shutil.rmtree(folder)


@contextmanager
def _frozen(kind: str, base: Path) -> Iterator[Device]:
    with freezable(kind, base) as folder:
        device = Frozen(folder)
        try:
            yield device
        finally:
            device.end()


@contextmanager
def _late(kind: str, base: Path) -> Iterator[Device]:
    folder = base / f"late {kind}"
    folder.mkdir()
    filesystem = LateFilesystem(folder, kind)
    try:
        yield Late(filesystem)
    finally:
        filesystem.end()


@contextmanager
def _slow_disk(kind: str, base: Path) -> Iterator[Device]:
    folder = base / f"slow {kind}"
    mounted = folder / "disk"
    mounted.mkdir(parents=True)
    filesystem = LateFilesystem(folder, "answers")
    try:
        device = SlowDisk(filesystem, kind, mounted)
        try:
            yield device
        finally:
            filesystem.delay(0)
            device.unmount()
    finally:
        filesystem.end()


# By name, what makes it in a folder of this machine. "tmpfs" keeps nothing waiting: there the calls are tried.
DEVICES: dict[str, Callable[[Path], AbstractContextManager[Device]]] = {
    "tmpfs": _on_tmpfs,
    **{f"frozen {kind}": partial(_frozen, kind) for kind in FREEZABLE},
    **{f"FUSE, late {kind}": partial(_late, kind) for kind in KINDS},
    **{f"slow disk, {kind}": partial(_slow_disk, kind) for kind in SLOW_DISKS},
}
