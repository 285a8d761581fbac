"""Mount a folder a second time through FUSE: pyfuse3 takes the kernel's requests on trio, and trio_aio serves them.

python examples/fuse_passthrough.py FOLDER MOUNTPOINT

End it with Ctrl-C, or by `fusermount3 -u MOUNTPOINT`.
"""

from __future__ import annotations

import argparse
import errno
import functools
import os
import resource
import signal
from typing import TYPE_CHECKING, Any

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError

import trio_aio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

SECONDS = 1.0  # how long the kernel keeps names and attributes: a change past the mount shows after this time at the latest
COPIED = ("mode", "nlink", "uid", "gid", "rdev", "size", "blksize", "blocks", "atime_ns", "mtime_ns", "ctime_ns")


def reports_errors(operation: Callable[..., Any]) -> Callable[..., Any]:
    """Return an operation whose OSError becomes the errno of the system call. Any other exception ends the server."""

    @functools.wraps(operation)
    async def wrapped(*arguments: Any) -> Any:
        try:
            return await operation(*arguments)
        except OSError as error:
            raise FUSEError(error.errno) from None

    return wrapped


def hold(path: bytes | str, folder: int | None = None) -> tuple[int, os.stat_result]:
    """Return an O_PATH descriptor, and what it is of. It may sleep."""
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    return fd, os.fstat(fd)


class Inode:
    """A file that the kernel knows. The descriptor holds it, whatever becomes of its names."""

    def __init__(self, number: int, fd: int, identity: tuple[int, int]) -> None:
        self.number: int = number
        self.fd: int = fd
        self.path: str = f"/proc/self/fd/{fd}"
        self.identity: tuple[int, int] = identity
        self.lookups: int = 0  # how often the kernel was told of it; it says later how many of these it forgets


class Passthrough(pyfuse3.Operations):  # type: ignore[misc,unused-ignore]
    """Each operation is that of the folder. Tasks run them at the same time; the kernel keeps those apart that change one folder."""

    def __init__(self) -> None:
        super().__init__()
        self._inodes: dict[int, Inode] = {}
        self._known: dict[tuple[int, int], Inode] = {}  # by device and inode of the folder
        self._files: dict[int, trio_aio.AsyncFile] = {}
        self._listings: dict[int, tuple[int, list[str]]] = {}
        self._last: int = 0

    async def start(self, folder: str) -> None:
        """Take a folder as the root. Call it before `pyfuse3.init`."""
        self._tell(*await trio.to_thread.run_sync(hold, f"{folder}/."))

    async def aclose(self) -> None:
        """Close all files that the kernel did not release."""
        for file in self._files.values():
            await file.aclose()
        await trio.to_thread.run_sync(self._close, list(self._inodes.values()))

    # ---- names and inodes

    def _number(self) -> int:
        self._last += 1
        return self._last  # the first is 1, which is pyfuse3.ROOT_INODE

    def _tell(self, fd: int, found: os.stat_result) -> EntryAttributes:
        """Return the attributes of a file, and count that the kernel is told of it. The descriptor belongs to the inode now."""
        identity = found.st_dev, found.st_ino
        inode = self._known.get(identity)
        if inode is None:
            inode = Inode(self._number(), fd, identity)
            self._inodes[inode.number] = self._known[identity] = inode
        else:
            os.close(fd)  # not the last one of this file, so this does not sleep
        inode.lookups += 1
        return self._attributes(inode, found)

    def _attributes(self, inode: Inode, found: os.stat_result) -> EntryAttributes:
        attributes = EntryAttributes()
        for name in COPIED:
            setattr(attributes, f"st_{name}", getattr(found, f"st_{name}"))
        attributes.st_ino = inode.number
        attributes.entry_timeout = attributes.attr_timeout = SECONDS
        return attributes

    @staticmethod
    def _close(inodes: Sequence[Inode]) -> None:
        for inode in inodes:
            os.close(inode.fd)

    @reports_errors
    async def lookup(self, parent: int, name: bytes, context: object) -> EntryAttributes:
        # In a thread: `open_aio` is for files that are read or written, and a trio thread loses no result when its task is cancelled.
        return self._tell(*await trio.to_thread.run_sync(hold, name, self._inodes[parent].fd))

    async def forget(self, forgotten: Sequence[tuple[int, int]]) -> None:
        closing = []
        for number, lookups in forgotten:
            inode = self._inodes[number]
            inode.lookups -= lookups
            if inode.lookups == 0:
                del self._inodes[number], self._known[inode.identity]
                closing.append(inode)
        # The last descriptor of a removed file: the filesystem frees its blocks now, which may take a while.
        await trio.to_thread.run_sync(self._close, closing)

    @reports_errors
    async def mkdir(self, parent: int, name: bytes, mode: int, context: object) -> EntryAttributes:
        await trio_aio.os.mkdir(name, mode, dir_fd=self._inodes[parent].fd)
        return await self.lookup(parent, name, context)

    @reports_errors
    async def symlink(self, parent: int, name: bytes, target: bytes, context: object) -> EntryAttributes:
        await trio_aio.os.symlink(target, name, dir_fd=self._inodes[parent].fd)
        return await self.lookup(parent, name, context)

    @reports_errors
    async def link(self, number: int, parent: int, name: bytes, context: object) -> EntryAttributes:
        await trio_aio.os.link(self._inodes[number].path, os.fsdecode(name), dst_dir_fd=self._inodes[parent].fd)
        return await self.lookup(parent, name, context)

    @reports_errors
    async def unlink(self, parent: int, name: bytes, context: object) -> None:
        await trio_aio.os.unlink(name, dir_fd=self._inodes[parent].fd)

    @reports_errors
    async def rmdir(self, parent: int, name: bytes, context: object) -> None:
        await trio_aio.os.rmdir(name, dir_fd=self._inodes[parent].fd)

    @reports_errors
    async def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, context: object) -> None:
        await trio_aio.os.rename(
            name,
            new_name,
            src_dir_fd=self._inodes[parent].fd,
            dst_dir_fd=self._inodes[new_parent].fd,
            exclusive=bool(flags & pyfuse3.RENAME_NOREPLACE),
            exchange=bool(flags & pyfuse3.RENAME_EXCHANGE),
        )

    @reports_errors
    async def readlink(self, number: int, context: object) -> bytes:
        # An empty name is the link itself: readlinkat(2).
        return await trio.to_thread.run_sync(functools.partial(os.readlink, b"", dir_fd=self._inodes[number].fd))

    # ---- attributes

    @reports_errors
    async def getattr(self, number: int, context: object) -> EntryAttributes:
        inode = self._inodes[number]
        return self._attributes(inode, await trio_aio.os.stat(inode.fd))

    @reports_errors
    async def setattr(self, number: int, new: EntryAttributes, fields: Any, handle: int | None, context: object) -> EntryAttributes:
        inode = self._inodes[number]
        if fields.update_size:
            if handle is None:
                await trio_aio.os.truncate(inode.path, new.st_size)
            else:
                await self._files[handle].truncate(new.st_size)  # a file that is open for writing may have a mode that forbids it now
        if fields.update_uid or fields.update_gid:
            user, group = new.st_uid if fields.update_uid else -1, new.st_gid if fields.update_gid else -1
            await trio_aio.os.chown(inode.path, user, group)
        if fields.update_mode:
            await trio_aio.os.chmod(inode.path, new.st_mode & 0o7777)
        if fields.update_atime or fields.update_mtime:
            old = await trio_aio.os.stat(inode.fd)
            accessed = new.st_atime_ns if fields.update_atime else old.st_atime_ns
            modified = new.st_mtime_ns if fields.update_mtime else old.st_mtime_ns
            await trio_aio.os.utime(inode.path, ns=(accessed, modified))
        return await self.getattr(number, context)

    @reports_errors
    async def statfs(self, context: object) -> pyfuse3.StatvfsData:
        found = await trio_aio.os.statvfs(self._inodes[pyfuse3.ROOT_INODE].path)
        answer = pyfuse3.StatvfsData()
        for name in ("bsize", "frsize", "blocks", "bfree", "bavail", "files", "ffree", "favail", "namemax"):
            setattr(answer, f"f_{name}", getattr(found, f"f_{name}"))
        return answer

    # ---- files

    async def _open(self, path: bytes | str, flags: int, mode: int = 0, folder: int | None = None) -> int:
        # The rest is done by the kernel: it turns O_APPEND into offsets, for instance.
        flags &= os.O_ACCMODE | os.O_CREAT | os.O_EXCL | os.O_TRUNC | os.O_NOFOLLOW
        allowed = {os.O_RDONLY: "rb", os.O_WRONLY: "wb"}.get(flags & os.O_ACCMODE, "r+b")

        def opener(path: Any, _: int) -> int:
            return os.open(path, flags | os.O_CLOEXEC, mode, dir_fd=folder)

        handle = self._number()
        self._files[handle] = await trio_aio.open_aio(path, allowed, opener=opener)
        return handle

    @reports_errors
    async def open(self, number: int, flags: int, context: object) -> FileInfo:
        return FileInfo(fh=await self._open(self._inodes[number].path, flags & ~os.O_NOFOLLOW))

    @reports_errors
    async def create(self, parent: int, name: bytes, mode: int, flags: int, context: object) -> tuple[FileInfo, EntryAttributes]:
        handle = await self._open(name, flags | os.O_CREAT | os.O_NOFOLLOW, mode, self._inodes[parent].fd)
        try:
            return FileInfo(fh=handle), await self.lookup(parent, name, context)
        except BaseException:
            await self.release(handle)
            raise

    @reports_errors
    async def read(self, handle: int, offset: int, size: int) -> bytes:
        return await self._files[handle].pread(size, offset)

    @reports_errors
    async def write(self, handle: int, offset: int, data: bytes) -> int:
        return await self._files[handle].pwrite(data, offset)

    @reports_errors
    async def fsync(self, handle: int, data_only: bool) -> None:
        file = self._files[handle]
        await (file.fdatasync() if data_only else file.fsync())

    @reports_errors
    async def release(self, handle: int) -> None:
        await self._files.pop(handle).aclose()

    # ---- listings

    @reports_errors
    async def opendir(self, number: int, context: object) -> int:
        handle = self._number()
        self._listings[handle] = number, await trio_aio.os.listdir(self._inodes[number].path)
        return handle

    @reports_errors
    async def readdir(self, handle: int, start: int, token: Any) -> None:
        number, names = self._listings[handle]
        for position, name in enumerate(names[start:], start + 1):
            try:
                attributes = await self.lookup(number, os.fsencode(name), None)
            except FUSEError as error:
                if error.errno == errno.ENOENT:  # removed since it was listed
                    continue
                raise
            if not pyfuse3.readdir_reply(token, os.fsencode(name), attributes, position):
                # The answer is full. The kernel was not told of this one.
                await self.forget([(attributes.st_ino, 1)])
                return

    async def releasedir(self, handle: int) -> None:
        del self._listings[handle]


async def main(folder: str, mountpoint: str) -> None:
    """Serve until the filesystem is unmounted, or a signal comes."""
    # Each file that the kernel knows takes a descriptor.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    os.umask(0)  # the kernel has applied that of the caller
    filesystem = Passthrough()
    await filesystem.start(folder)
    pyfuse3.init(filesystem, mountpoint, {*pyfuse3.default_options, "fsname=passthrough"})
    try:
        print(f"{folder} is mounted at {mountpoint}", flush=True)
        async with trio.open_nursery() as nursery:
            with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                nursery.start_soon(end_at, signals)
                await pyfuse3.main()
                nursery.cancel_scope.cancel()
    finally:
        pyfuse3.close(unmount=True)
        await filesystem.aclose()


async def end_at(signals: AsyncIterator[int]) -> None:
    """Let `pyfuse3.main` return when a signal comes."""
    async for _ in signals:
        pyfuse3.terminate()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("mountpoint")
    arguments = parser.parse_args()
    trio.run(main, arguments.folder, arguments.mountpoint)
