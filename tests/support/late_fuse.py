"""A whole filesystem whose answers are late on demand: FUSE over a real folder, with directories, links and attributes.

Two kinds of lateness, each in a filesystem of its own. *Answers*: the kernel keeps names and attributes for an hour, and whatever else the
server is asked takes long. *Attributes*: the kernel keeps nothing, and only names and attributes take long. `support.fuse` is the one whose
single requests fail, hang and are counted.

``python -m tests.support.late_fuse SOURCE MOUNTPOINT SWITCH KIND`` is the server. SWITCH is a file with the seconds, as a double. Both
sides map it, so that a change costs the event loop no system call.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import stat
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
KINDS = ("answers", "attributes")
_SECONDS = struct.Struct("d")
_KEPT = 3600.0  # seconds
_ATTRIBUTES = ("lookup", "getattr", "setattr", "access")


class LateFilesystem:
    """A mounted filesystem, in `folder`; what is in it lies in `source` too."""

    def __init__(self, base: Path, kind: str) -> None:
        self.source: Path = base / "source"
        self.folder: Path = base / "mounted"
        self.source.mkdir()
        self.folder.mkdir()
        switch = base / "switch"
        switch.write_bytes(_SECONDS.pack(0))
        with switch.open("r+b") as file:
            self._switch: mmap.mmap = mmap.mmap(file.fileno(), _SECONDS.size)
        arguments = [str(self.source), str(self.folder), str(switch), kind]
        command = [sys.executable, "-m", "tests.support.late_fuse", *arguments]
        self._process: subprocess.Popen[str] = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise RuntimeError("the filesystem did not start: see its stderr")

    def delay(self, seconds: float) -> None:
        """Let each answer that is asked for from now on be so late. No system call."""
        _SECONDS.pack_into(self._switch, 0, seconds)

    def end(self) -> None:
        """Unmount. A call that still waits for an answer fails."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._switch.close()
        subprocess.run(["umount", "-l", str(self.folder)], check=True)


# ---- the process


def _serve(source: str, mountpoint: str, switch: str, kind: str) -> None:
    import pyfuse3
    import trio

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    with open(switch, "r+b") as file:
        seconds = mmap.mmap(file.fileno(), _SECONDS.size)
    kept = _KEPT if kind == "answers" else 0.0

    def call(function: Any, *arguments: Any, **options: Any) -> Any:
        """Call a function of `os`, and report its errno to the kernel."""
        try:
            return function(*arguments, **options)
        except OSError as error:
            raise pyfuse3.FUSEError(error.errno) from None

    async def late(operation: str) -> None:
        if (operation in _ATTRIBUTES) == (kind == "attributes"):
            (delay,) = _SECONDS.unpack_from(seconds)
            if delay:
                await trio.sleep(delay)

    class Filesystem(pyfuse3.Operations):  # type: ignore[misc]
        """Each inode that the kernel knows has a descriptor (O_PATH) here, as long as it knows it."""

        def __init__(self) -> None:
            super().__init__()
            self.paths: dict[int, int] = {pyfuse3.ROOT_INODE: os.open(source, os.O_PATH | os.O_DIRECTORY)}
            self.known: dict[int, int] = {}  # how often the kernel has looked an inode up

        # numbers

        def attributes_of(self, found: os.stat_result) -> pyfuse3.EntryAttributes:
            made = pyfuse3.EntryAttributes()
            for name in ("st_mode", "st_nlink", "st_uid", "st_gid", "st_rdev", "st_size", "st_atime_ns", "st_mtime_ns", "st_ctime_ns"):
                setattr(made, name, getattr(found, name))
            made.st_blksize, made.st_blocks = 4096, found.st_blocks
            made.st_ino = found.st_ino + 1000
            made.entry_timeout = made.attr_timeout = kept
            return made

        def attributes(self, inode: int) -> pyfuse3.EntryAttributes:
            made = self.attributes_of(os.fstat(self.paths[inode]))
            made.st_ino = inode
            return made

        def entry(self, parent: int, name: bytes) -> pyfuse3.EntryAttributes:
            """Return the attributes of a name, and remember its inode."""
            fd = call(os.open, name, os.O_PATH | os.O_NOFOLLOW, dir_fd=self.paths[parent])
            made = self.attributes_of(os.fstat(fd))
            if made.st_ino in self.paths:
                os.close(fd)
            else:
                self.paths[made.st_ino] = fd
            self.known[made.st_ino] = self.known.get(made.st_ino, 0) + 1
            return made

        def by_number(self, inode: int) -> str:
            return f"/proc/self/fd/{self.paths[inode]}"

        async def forget(self, inode_list: Any) -> None:
            for inode, times in inode_list:
                self.known[inode] -= times
                if not self.known[inode]:
                    del self.known[inode]
                    os.close(self.paths.pop(inode))

        # names and attributes

        async def lookup(self, parent: int, name: bytes, ctx: object) -> pyfuse3.EntryAttributes:
            await late("lookup")
            return self.entry(parent, name)

        async def getattr(self, inode: int, ctx: object) -> pyfuse3.EntryAttributes:
            await late("getattr")
            return self.attributes(inode)

        async def setattr(self, inode: int, attr: Any, fields: Any, fh: int | None, ctx: object) -> pyfuse3.EntryAttributes:
            await late("setattr")
            path = self.by_number(inode)
            if fields.update_size:
                call(os.truncate, path, attr.st_size)
            if fields.update_mode:
                call(os.chmod, path, stat.S_IMODE(attr.st_mode))
            if fields.update_uid or fields.update_gid:
                call(os.chown, path, attr.st_uid if fields.update_uid else -1, attr.st_gid if fields.update_gid else -1)
            if fields.update_atime or fields.update_mtime:
                found = os.fstat(self.paths[inode])
                times = [attr.st_atime_ns if fields.update_atime else found.st_atime_ns]
                times.append(attr.st_mtime_ns if fields.update_mtime else found.st_mtime_ns)
                if not stat.S_ISLNK(found.st_mode):
                    call(os.utime, path, ns=tuple(times))
            return self.attributes(inode)

        async def access(self, inode: int, mode: int, ctx: object) -> bool:
            await late("access")
            return True

        async def readlink(self, inode: int, ctx: object) -> bytes:
            await late("readlink")
            return call(os.readlink, b"", dir_fd=self.paths[inode])  # type: ignore[no-any-return]

        async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: object) -> pyfuse3.EntryAttributes:
            await late("mknod")
            call(os.mknod, name, mode, rdev, dir_fd=self.paths[parent_inode])
            return self.entry(parent_inode, name)

        async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: object) -> pyfuse3.EntryAttributes:
            await late("mkdir")
            call(os.mkdir, name, mode, dir_fd=self.paths[parent_inode])
            return self.entry(parent_inode, name)

        async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: object) -> pyfuse3.EntryAttributes:
            await late("symlink")
            call(os.symlink, target, name, dir_fd=self.paths[parent_inode])
            return self.entry(parent_inode, name)

        async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: object) -> pyfuse3.EntryAttributes:
            await late("link")
            call(os.link, self.by_number(inode), new_name, dst_dir_fd=self.paths[new_parent_inode], follow_symlinks=True)
            return self.entry(new_parent_inode, new_name)

        async def rename(
            self, parent_inode_old: int, name_old: bytes, parent_inode_new: int, name_new: bytes, flags: int, ctx: object
        ) -> None:
            await late("rename")
            if flags:
                raise pyfuse3.FUSEError(errno.EINVAL)
            call(os.rename, name_old, name_new, src_dir_fd=self.paths[parent_inode_old], dst_dir_fd=self.paths[parent_inode_new])

        async def unlink(self, parent_inode: int, name: bytes, ctx: object) -> None:
            await late("unlink")
            call(os.unlink, name, dir_fd=self.paths[parent_inode])

        async def rmdir(self, parent_inode: int, name: bytes, ctx: object) -> None:
            await late("rmdir")
            call(os.rmdir, name, dir_fd=self.paths[parent_inode])

        async def statfs(self, ctx: object) -> pyfuse3.StatvfsData:
            await late("statfs")
            made, found = pyfuse3.StatvfsData(), os.statvfs(source)
            for name in ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail", "f_namemax"):
                setattr(made, name, getattr(found, name))
            return made

        async def getxattr(self, inode: int, name: bytes, ctx: object) -> bytes:
            await late("getxattr")
            return call(os.getxattr, self.by_number(inode), name)  # type: ignore[no-any-return]

        async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: object) -> None:
            await late("setxattr")
            call(os.setxattr, self.by_number(inode), name, value)

        async def listxattr(self, inode: int, ctx: object) -> list[bytes]:
            await late("listxattr")
            return [os.fsencode(name) for name in call(os.listxattr, self.by_number(inode))]

        async def removexattr(self, inode: int, name: bytes, ctx: object) -> None:
            await late("removexattr")
            call(os.removexattr, self.by_number(inode), name)

        # files and directories that are open

        async def open(self, inode: int, flags: int, ctx: object) -> pyfuse3.FileInfo:
            await late("open")
            access = os.O_RDONLY if flags & os.O_ACCMODE == os.O_RDONLY else os.O_RDWR
            return pyfuse3.FileInfo(fh=call(os.open, self.by_number(inode), access | flags & os.O_TRUNC), keep_cache=False)

        async def create(
            self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: object
        ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
            await late("create")
            more = os.O_RDWR | os.O_CREAT | flags & (os.O_TRUNC | os.O_EXCL)
            fd = call(os.open, name, more, mode, dir_fd=self.paths[parent_inode])
            return pyfuse3.FileInfo(fh=fd, keep_cache=False), self.entry(parent_inode, name)

        async def read(self, fh: int, off: int, size: int) -> bytes:
            await late("read")
            return call(os.pread, fh, size, off)  # type: ignore[no-any-return]

        async def write(self, fh: int, off: int, buf: bytes) -> int:
            await late("write")
            return call(os.pwrite, fh, buf, off)  # type: ignore[no-any-return]

        async def fsync(self, fh: int, datasync: bool) -> None:
            await late("fsync")
            call(os.fsync, fh)

        async def flush(self, fh: int) -> None:
            await late("flush")

        async def release(self, fh: int) -> None:
            await late("release")
            os.close(fh)

        async def opendir(self, inode: int, ctx: object) -> int:
            await late("opendir")
            return call(os.open, self.by_number(inode), os.O_RDONLY | os.O_DIRECTORY)  # type: ignore[no-any-return]

        async def readdir(self, fh: int, start_id: int, token: Any) -> None:
            await late("readdir")
            inode = os.fstat(fh).st_ino
            parent = next(number for number, path in self.paths.items() if os.fstat(path).st_ino == inode)
            for number, name in enumerate(sorted(os.listdir(fh)), 1):
                if number > start_id:
                    made = self.entry(parent, os.fsencode(name))
                    if not pyfuse3.readdir_reply(token, os.fsencode(name), made, number):
                        await self.forget([(made.st_ino, 1)])
                        break

        async def fsyncdir(self, fh: int, datasync: bool) -> None:
            await late("fsyncdir")

        async def releasedir(self, fh: int) -> None:
            await late("releasedir")
            os.close(fh)

    async def main() -> None:
        pyfuse3.init(Filesystem(), mountpoint, {*pyfuse3.default_options, "fsname=late"})
        print("ready", flush=True)
        await pyfuse3.main()

    trio.run(main)


if __name__ == "__main__":
    _serve(*sys.argv[1:5])
