"""A filesystem that misbehaves on demand: FUSE over a real folder, in a process of its own.

What the kernel answers to reads, writes and syncs of its files is what this says: an errno, a short count, an answer that is late, or one
that does not come until it is released. To the process under test that is a device. O_DIRECT goes through the kernel's AIO.

`Misbehaving` is the side of the tests, and tells the process (``python -m tests.support.fuse FOLDER MOUNTPOINT``) by lines of JSON.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
MOST_IN_THE_BACKGROUND = 12  # requests that the kernel lets be out at once, unless the filesystem says otherwise


class Misbehaving:
    """A mounted filesystem, in `folder`; what is in it lies in `source` too."""

    def __init__(self, base: Path) -> None:
        self.source: Path = base / "source"
        self.folder: Path = base / "mounted"
        self.source.mkdir()
        self.folder.mkdir()
        self._process: subprocess.Popen[str] = subprocess.Popen(
            [sys.executable, "-m", "tests.support.fuse", str(self.source), str(self.folder)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise RuntimeError("the filesystem did not start: see its stderr")

    def _tell(self, **command: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        return json.loads(self._process.stdout.readline())

    def answer(
        self,
        file: str,
        operation: str,
        *,
        error: int = 0,
        short: int | None = None,
        delay: float = 0,
        hang: bool = False,
        turn: int = 1,
        times: int | None = None,
        offset: int | None = None,
    ) -> None:
        """From the nth such request of the kernel on (`times` of them), answer so. `operation`: open, read, write, sync, flush, attributes.

        `offset`: only those whose bytes that offset is among.
        """
        self._tell(
            do="answer",
            file=file,
            operation=operation,
            error=error,
            short=short,
            delay=delay,
            hang=hang,
            turn=turn,
            times=times,
            offset=offset,
        )

    @contextmanager
    def hanging(self, operation: str, file: str = "file") -> Iterator[None]:
        """Let requests hang until the end of the block. Inside a nursery, that a test which fails ends."""
        self.answer(file, operation, hang=True)
        try:
            yield
        finally:
            self.release()

    def held(self) -> int:
        """Return how many requests hang now."""
        return self._tell(do="held")  # type: ignore[no-any-return]

    def count(self, file: str, operation: str) -> int:
        """Return how many such requests the kernel has made since the last `reset`."""
        return self._tell(do="count", file=file, operation=operation)  # type: ignore[no-any-return]

    def release(self) -> None:
        """Let all requests that hang continue, and let no more of them hang."""
        self._tell(do="release")

    def reset(self) -> None:
        """Release, and behave from now on."""
        self._tell(do="reset")

    async def until_held(self, number: int) -> None:
        """Wait until so many requests hang."""
        while self.held() < number:
            await trio.lowlevel.checkpoint()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Let the whole server stand still until the end of the block."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        """Unmount. A call that still waits for an answer fails with ENOTCONN or ECONNABORTED."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        subprocess.run(["umount", "-l", str(self.folder)], check=True)


# ---- the process


def _serve(source: Path, mountpoint: Path) -> None:
    import pyfuse3

    # If the tests die while requests hang, the kernel keeps their process until those have an answer, and our pipe is not closed before.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG

    class Rule:
        def __init__(self, command: dict[str, Any]) -> None:
            self.file: str = command["file"]
            self.operation: str = command["operation"]
            self.error: int = command["error"]
            self.short: int | None = command["short"]
            self.delay: float = command["delay"]
            self.hang: trio.Event | None = trio.Event() if command["hang"] else None
            self.first: int = command["turn"]
            self.times: int | None = command["times"]
            self.offset: int | None = command["offset"]
            self.seen: int = 0

        def is_due(self, name: str, operation: str, offset: int, size: int) -> bool:
            if (self.file, self.operation) != (name, operation):
                return False
            if self.offset is not None and not offset <= self.offset < offset + size:
                return False
            self.seen += 1
            return self.first <= self.seen and (self.times is None or self.seen < self.first + self.times)

    class Filesystem(pyfuse3.Operations):  # type: ignore[misc]
        """One flat folder. Inode 1 is that, others are numbered as they are looked up."""

        def __init__(self) -> None:
            super().__init__()
            self.names: dict[int, str] = {}
            self.rules: list[Rule] = []
            self.counts: dict[tuple[str, str], int] = {}
            self.held: int = 0

        # what is asked of it on the pipe

        def obey(self, command: dict[str, Any]) -> Any:
            do = command["do"]
            if do == "answer":
                self.rules.append(Rule(command))
            elif do == "held":
                return self.held
            elif do == "count":
                return self.counts.get((command["file"], command["operation"]), 0)
            else:
                for rule in self.rules:
                    if rule.hang is not None:
                        rule.hang.set()
                self.rules = [rule for rule in self.rules if rule.hang is None and do == "release"]
                if do == "reset":
                    self.counts.clear()
            return None

        async def misbehave(self, inode: int, operation: str, offset: int = 0, size: int = 1) -> int:
            """Do what the first rule that is due says, and return how many bytes may be moved."""
            name = self.names[inode]
            self.counts[name, operation] = self.counts.get((name, operation), 0) + 1
            due = [rule for rule in self.rules if rule.is_due(name, operation, offset, size)]
            if not due:
                return size
            rule = due[0]
            if rule.delay:
                await trio.sleep(rule.delay)
            if rule.hang is not None:
                self.held += 1
                try:
                    await rule.hang.wait()
                finally:
                    self.held -= 1
            if rule.error:
                raise pyfuse3.FUSEError(rule.error)
            return size if rule.short is None else min(rule.short, size)

        # what the kernel asks

        def attributes(self, inode: int) -> pyfuse3.EntryAttributes:
            made = pyfuse3.EntryAttributes()
            found = (source / self.names[inode] if inode != pyfuse3.ROOT_INODE else source).stat()
            for name in ("st_mode", "st_nlink", "st_uid", "st_gid", "st_rdev", "st_size", "st_atime_ns", "st_mtime_ns", "st_ctime_ns"):
                setattr(made, name, getattr(found, name))
            made.st_blksize, made.st_blocks = 4096, found.st_blocks
            made.st_ino = inode
            made.entry_timeout = made.attr_timeout = 0
            return made

        def number(self, name: bytes) -> int:
            text = os.fsdecode(name)
            for inode, known in self.names.items():
                if known == text:
                    return inode
            inode = len(self.names) + 2
            self.names[inode] = text
            return inode

        async def lookup(self, parent: int, name: bytes, context: object) -> pyfuse3.EntryAttributes:
            if not (source / os.fsdecode(name)).is_file():
                raise pyfuse3.FUSEError(errno.ENOENT)
            return self.attributes(self.number(name))

        async def getattr(self, inode: int, context: object) -> pyfuse3.EntryAttributes:
            if inode != pyfuse3.ROOT_INODE:
                await self.misbehave(inode, "attributes")
            return self.attributes(inode)

        async def setattr(
            self, inode: int, attr: pyfuse3.EntryAttributes, fields: Any, handle: int | None, context: object
        ) -> pyfuse3.EntryAttributes:
            if fields.update_size:
                os.truncate(source / self.names[inode], attr.st_size)
            return self.attributes(inode)

        async def open(self, inode: int, flags: int, context: object) -> pyfuse3.FileInfo:
            await self.misbehave(inode, "open")
            fd = os.open(source / self.names[inode], os.O_RDWR | flags & os.O_TRUNC)
            return pyfuse3.FileInfo(fh=fd, keep_cache=False)

        async def create(
            self, parent: int, name: bytes, mode: int, flags: int, context: object
        ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
            fd = os.open(source / os.fsdecode(name), os.O_RDWR | os.O_CREAT | flags & (os.O_TRUNC | os.O_EXCL), mode)
            return pyfuse3.FileInfo(fh=fd, keep_cache=False), self.attributes(self.number(name))

        def inode_of(self, handle: int) -> int:
            return self.number(os.path.basename(os.readlink(f"/proc/self/fd/{handle}")).encode())

        async def read(self, handle: int, offset: int, size: int) -> bytes:
            return os.pread(handle, await self.misbehave(self.inode_of(handle), "read", offset, size), offset)

        async def write(self, handle: int, offset: int, data: bytes) -> int:
            return os.pwrite(handle, data[: await self.misbehave(self.inode_of(handle), "write", offset, len(data))], offset)

        async def statfs(self, context: object) -> pyfuse3.StatvfsData:
            self.counts["", "statfs"] = self.counts.get(("", "statfs"), 0) + 1
            return pyfuse3.StatvfsData()

        async def fsync(self, handle: int, data_only: bool) -> None:
            await self.misbehave(self.inode_of(handle), "sync")
            os.fsync(handle)

        async def flush(self, handle: int) -> None:  # close(2)
            await self.misbehave(self.inode_of(handle), "flush")

        async def release(self, handle: int) -> None:
            os.close(handle)

        async def unlink(self, parent: int, name: bytes, context: object) -> None:
            inode = self.number(name)  # it may be open, and is then opened again by its inode
            self.names[inode] = f".unlinked-{inode}"
            os.rename(source / os.fsdecode(name), source / self.names[inode])

    async def main() -> None:
        filesystem = Filesystem()
        pyfuse3.init(filesystem, str(mountpoint), {*pyfuse3.default_options, "fsname=misbehaving"})
        print("ready", flush=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_obey, filesystem.obey)
            await pyfuse3.main()

    trio.run(main)


async def _obey(obey: Callable[[dict[str, Any]], Any]) -> None:
    rest = b""
    async with trio.lowlevel.FdStream(os.dup(0)) as commands:
        async for piece in commands:
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                print(json.dumps(obey(json.loads(line))), flush=True)
    os._exit(0)  # the tests have gone; requests that hang must not outlive them


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), Path(sys.argv[2]))
