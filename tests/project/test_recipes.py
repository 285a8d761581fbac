"""The recipes of docs/recipes.md do what they say."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import http.server
import importlib.util
import io
import json
import os
import shutil
import signal
import tarfile
import threading
import zipfile
import zlib
from typing import TYPE_CHECKING, Any

import h11
import numpy
import pytest
import trio
import trio.testing

from trio_aio import AsyncFile, open_aio
from trio_aio.testing import FaultyContext

from ..conftest import need
from ..support.examples import EXAMPLES, started
from ..support.files import content
from .test_examples import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ..support.examples import Started


def load(name: str) -> Any:
    """Return an example as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- content_store.py


def test_content_store_keeps_equal_contents_once(tmp_path: Path) -> None:
    paths = [tmp_path / f"file{i}" for i in range(20)]
    for i, path in enumerate(paths):
        path.write_bytes(content(1000 * (i % 5), seed=i % 5))
    expected = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path}" for path in paths]
    for _ in range(2):
        assert run("content_store.py", tmp_path / "store", *paths).splitlines() == expected
    kept = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert {path.parent.name + path.name for path in kept} == {line.split()[0] for line in expected}


def test_content_store_notices_damage_and_absence(tmp_path: Path) -> None:
    store = load("content_store").ContentStore(tmp_path)

    async def main() -> None:
        digest = await store.put(b"contents")
        assert await store.get(digest) == b"contents"
        store.path(digest).write_bytes(b"damaged!")
        with pytest.raises(ValueError, match="damaged"):
            await store.get(digest)
        with pytest.raises(KeyError):
            await store.get("0" * 64)

    trio.run(main)


# ---- read_tensors.py


@pytest.fixture
def tensors(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """Return a safetensors file, and what is in it."""
    arrays = {
        "bias": numpy.arange(10, dtype="<f4"),
        "weight": numpy.arange(300_000, dtype="<i8").reshape(300, 1000),
        "empty": numpy.zeros((0, 3), "<f8"),
        "mask": numpy.array([True, False]),
    }
    names = {"<f4": "F32", "<i8": "I64", "<f8": "F64", "|b1": "BOOL"}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, array in arrays.items():
        offsets = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": names[array.dtype.str], "shape": list(array.shape), "data_offsets": offsets}
        data += array.tobytes()
    encoded = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)
    return path, arrays


def test_read_tensors_returns_what_was_stored(tensors: tuple[Path, dict[str, Any]]) -> None:
    path, arrays = tensors
    module = load("read_tensors")
    for names in ((), ("mask", "bias"), ("weight",)):
        found = trio.run(module.read_tensors, path, names)
        assert list(found) == list(names or arrays)
        for name, array in found.items():
            assert array.dtype == arrays[name].dtype
            assert numpy.array_equal(array, arrays[name])
    with pytest.raises(KeyError):
        trio.run(module.read_tensors, path, ["other"])
    assert run("read_tensors.py", path, "bias") == "bias: float32 [10], sum 45.0\n"


def test_read_tensors_of_another_file_raises(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match="no safetensors file"):
        trio.run(load("read_tensors").read_tensors, tmp_path / "other")


# ---- list_archive.py


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_list_archive_prints_the_checksum_of_each_member(tmp_path: Path, kind: str) -> None:
    members = {f"folder/{i}": content(i * 10_000, seed=i) for i in range(5)}
    path = tmp_path / f"archive.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w") as archive_of_tape:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive_of_tape.addfile(info, io.BytesIO(data))
    assert run("list_archive.py", path) == "".join(f"{zlib.crc32(data):08x}  {name}\n" for name, data in members.items())


# ---- upload.py


class Receiver(http.server.ThreadingHTTPServer):
    """A server that takes uploads, and says 503 to the first ones."""

    busy = 0
    received: list[tuple[str | None, bytes]]


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers PUT."""

    server: Receiver

    def do_PUT(self) -> None:
        length = self.headers["Content-Length"]
        self.server.received.append((self.headers["Transfer-Encoding"], self.rfile.read(int(length))))
        self.server.busy -= 1
        self.send_response(503 if self.server.busy >= 0 else 404 if self.path == "/refused" else 201)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver(("127.0.0.1", 0), Handler) as server:
        server.received = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_upload_sends_the_file_again_while_the_server_is_busy(receiver: Receiver, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content((3 << 20) + 5))
    receiver.busy = 1
    assert run("upload.py", path, f"http://127.0.0.1:{receiver.server_port}/x") == "201\n"
    assert receiver.received == [(None, path.read_bytes())] * 2


def test_upload_raises_what_the_server_says_at_last(receiver: Receiver, tmp_path: Path) -> None:
    module = load("upload")
    path = tmp_path / "file"
    path.write_bytes(b"data")
    url = f"http://127.0.0.1:{receiver.server_port}"

    async def main(to: str, attempts: int) -> None:
        async with module.httpx.AsyncClient() as client:
            await module.upload(client, str(path), to, attempts=attempts, pause=0)

    with pytest.raises(module.httpx.HTTPStatusError, match="404"):
        trio.run(main, f"{url}/refused", 3)
    receiver.busy = 100
    with pytest.raises(module.httpx.HTTPStatusError, match="503"):
        trio.run(main, f"{url}/x", 3)
    assert len(receiver.received) == 4


def test_upload_of_a_file_that_shrinks_is_refused(receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("upload")
    path = tmp_path / "file"
    path.write_bytes(content(1000))

    original = AsyncFile.chunks

    def shrunk(*arguments: Any, **options: Any) -> Any:
        os.truncate(path, 10)
        return original(*arguments, **options)

    monkeypatch.setattr(AsyncFile, "chunks", shrunk)

    async def main() -> None:
        async with module.httpx.AsyncClient() as client:
            await module.upload(client, str(path), f"http://127.0.0.1:{receiver.server_port}/x", attempts=1, pause=0)

    with pytest.raises(h11.LocalProtocolError, match="Too little data"):
        trio.run(main)


# ---- spilling_cache.py


def test_spilling_cache_returns_every_block(disk: Path) -> None:
    printed = run("spilling_cache.py", disk / "cache", "--blocks", 20, "--in-memory", 3)
    assert printed == "20 blocks, 17 places on the disk, 0 wrong\n"


def test_spilling_cache_uses_places_again(disk: Path) -> None:
    module = load("spilling_cache")

    async def main() -> None:
        async with open_aio(disk / "cache", "w+b", direct=True) as file:
            cache = module.SpillingCache(file, 1)
            blocks = {f"{i}": os.urandom(module.BLOCK) for i in range(4)}
            for _ in range(5):
                for key, block in blocks.items():
                    await cache.put(key, block)
                for key, block in blocks.items():
                    assert await cache.get(key) == block
            assert len(cache) == 4
            assert await file.size() <= 4 * module.BLOCK
            with pytest.raises(KeyError):
                await cache.get("other")

    trio.run(main)


# ---- page_server.py


def number_of(line: str) -> int:
    """Return the port that the server has printed."""
    return int(line.split()[-1])


async def acknowledged_until(module: Any, port: int, enough: int, stop: Callable[[], None]) -> tuple[dict[int, int], dict[int, int]]:
    """Let 8 clients write until `enough` pages were acknowledged; then `stop` the server.

    Return the last version of each page that was acknowledged, and the last that was sent.
    """
    sent: dict[int, int] = {}
    known: dict[int, int] = {}
    count = 0

    async def write(client_number: int) -> None:
        nonlocal count
        async with module.connect(port) as client:
            for version in range(1_000_000):
                page = client_number * 4 + version % 4
                sent[page] = version
                try:
                    await client.put(page, version.to_bytes(4, "little") * 1000)
                except trio.BrokenResourceError:
                    return  # the server is dead
                known[page] = version
                count += 1
                if count == enough:
                    stop()

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(write, number)
    return known, sent


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--direct",)])
def test_page_server_keeps_acknowledged_pages_when_it_is_killed(disk: Path, options: tuple[str, ...]) -> None:
    module = load("page_server")
    known: dict[int, int] = {}

    async def check(port: int, expected: dict[int, int], sent: dict[int, int]) -> None:
        async with module.connect(port) as client:
            for page, version in expected.items():
                found = await client.get(page)
                assert found in {number.to_bytes(4, "little") * 1000 + bytes(84) for number in (version, sent[page])}
            with pytest.raises(KeyError):
                await client.get(1000)

    for _ in range(3):
        with started("page_server.py", "serve", disk / "pages", "--port", 0, *options) as server:
            known, sent = trio.run(acknowledged_until, module, number_of(server.line()), 200, server.process.kill)
            assert server.process.wait() == -signal.SIGKILL
        assert len(known) == 32
        with started("page_server.py", "serve", disk / "pages", "--port", 0, *options) as server:
            trio.run(check, number_of(server.line()), known, sent)


def test_page_server_is_used_from_the_command_line(disk: Path) -> None:
    with started("page_server.py", "serve", disk / "pages", "--port", 0) as server:
        port = number_of(server.line())
        assert run("page_server.py", "put", 3, "a text", "--port", port) == ""
        assert run("page_server.py", "get", 3, "--port", port) == "a text\n"
        with pytest.raises(AssertionError, match="Resource temporarily unavailable"):
            run("page_server.py", "serve", disk / "pages", "--port", 0)


def test_page_server_refuses_strange_requests(disk: Path) -> None:
    module = load("page_server")

    async def main() -> None:
        async with await module.open_pages(str(disk / "pages")) as file:
            pages = module.PageFile(file)
            for request in (b"x" + bytes(8), b"g" + b"\xff" * 8, b"p" + bytes(100)):
                ours, theirs = trio.testing.memory_stream_pair()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(module.serve_client, pages, theirs)
                    await ours.send_all(request)
                    await ours.send_eof()
                await theirs.aclose()
                assert await ours.receive_some() == b""
            assert await file.size() == 0

    trio.run(main)


def test_page_server_writes_of_many_clients_share_a_sync(disk: Path) -> None:
    module = load("page_server")
    written = 0

    async def main() -> None:
        nonlocal written
        async with FaultyContext() as context, await module.open_pages(str(disk / "pages"), context=context) as file:
            pages = module.PageFile(file)
            put = pages.put

            async def counted(number: int, data: bytes) -> None:
                nonlocal written
                await put(number, data)
                written += 1

            pages.put = counted
            answers: list[bytes] = []

            def submitted() -> int:
                statistics = context.statistics()
                return statistics.submitted_inline + statistics.submitted_kernel + statistics.submitted_workers

            before = submitted()

            async def request(number: int) -> None:
                answers.append(await module.answer(pages, module.PUT, number, bytes(module.DATA)))

            with context.hang(operation="sync") as hang:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(request, 0)
                    while hang.hits < 1:
                        await trio.lowlevel.checkpoint()
                    for number in range(1, 20):
                        nursery.start_soon(request, number)
                    while written < 20:
                        await trio.lowlevel.checkpoint()
                    assert not answers
                    hang.release()
            assert submitted() - before == 20 + 2  # the writes, the sync of the first, and that of all others
            assert answers == [module.OK] * 20

    trio.run(main)


def test_page_server_ends_when_a_sync_fails(disk: Path) -> None:
    module = load("page_server")

    async def main() -> None:
        async with FaultyContext() as context, await module.open_pages(str(disk / "pages"), context=context) as file:
            ours, theirs = trio.testing.memory_stream_pair()
            await ours.send_all(module.REQUEST.pack(module.PUT, 1) + bytes(module.DATA))
            with context.fail(errno.EIO, operation="sync"), pytest.raises(OSError, match="Input/output"):
                await module.serve_client(module.PageFile(file), theirs)
            await theirs.aclose()
            assert await ours.receive_some() == b""

    trio.run(main)


def test_page_server_reports_a_write_that_fails(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = load("page_server")

    async def main() -> None:
        async with FaultyContext() as context, await module.open_pages(str(disk / "pages"), context=context) as file:
            pages = module.PageFile(file)
            with context.fail(errno.ENOSPC, operation="write"):
                assert await module.answer(pages, module.PUT, 1, bytes(module.DATA)) == module.FAILED
            assert await module.answer(pages, module.PUT, 1, bytes(module.DATA)) == module.OK

    trio.run(main)
    assert "No space left" in capsys.readouterr().err


def swapped(data: bytes) -> bytes:
    return data[4096:8192] + data[:4096] + data[8192:]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:2048] + bytes(2048) + data[4096:],  # torn
        lambda data: data[:5] + bytes([data[5] ^ 1]) + data[6:],
        lambda data: data[:4095] + bytes([data[4095] ^ 1]) + data[4096:],
        swapped,
        lambda data: data[:4000],
    ],
    ids=["torn", "number", "last byte", "swapped", "cut off"],
)
def test_page_server_notices_damage(disk: Path, damage: Callable[[bytes], bytes]) -> None:
    module = load("page_server")

    async def main() -> None:
        async with await module.open_pages(str(disk / "pages")) as file:
            pages = module.PageFile(file)
            for number in range(3):
                await pages.put(number, b"%d" % number * module.DATA)
                assert await pages.get(number) == b"%d" % number * module.DATA
            (disk / "pages").write_bytes(damage((disk / "pages").read_bytes()))
            with pytest.raises(module.DamagedPageError, match="page 0"):
                await pages.get(0)
            assert await module.answer(pages, module.GET, 0, b"") == module.DAMAGED
            with pytest.raises(ValueError, match="must have 4084 bytes"):
                await pages.put(0, b"short")

    trio.run(main)


# ---- tail_log.py


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def test_tail_log_follows_a_log_through_truncation_and_rotation(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with started("tail_log.py", log, "--interval", 0.01, "--from-start") as tail:
        log.write_bytes(b"one\ntwo\nthr")  # it did not exist
        assert [tail.line(), tail.line()] == ["one", "two"]
        append(log, b"ee\n")
        assert tail.line() == "three"

        log.write_bytes(b"new\n")  # truncated
        assert tail.line() == "new"

        log.rename(tmp_path / "log.1")
        append(tmp_path / "log.1", b"late\n")
        assert tail.line() == "late"
        log.touch()
        append(tmp_path / "log.1", b"later\nlast")  # the writer has not yet opened the new one
        assert tail.line() == "later"
        append(log, b"next\n")
        assert [tail.line(), tail.line()] == ["last", "next"]

        (tmp_path / "other").write_bytes(b"replaced\n")
        (tmp_path / "other").rename(log)
        assert tail.line() == "replaced"
        log.unlink()
        log.write_bytes(b"x" * 3_000_000 + b"\nend\n")
        long = 0
        while (line := tail.line()) != "end":
            long += len(line)
        assert long == 3_000_000


def test_tail_log_starts_at_the_end(tmp_path: Path) -> None:
    module = load("tail_log")
    log = tmp_path / "log"
    log.write_bytes(b"old\n")
    lines = []

    async def main() -> None:
        async def handle(line: bytes) -> None:
            lines.append(line)
            if line == b"new":
                nursery.cancel_scope.cancel()

        tail = module.Tail(str(log), handle, interval=0.001)
        read = tail._read

        async def then_append(file: AsyncFile) -> None:
            await read(file)
            tail._read = read
            append(log, b"new\n")

        tail._read = then_append
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tail.run)

    trio.run(main)
    assert lines == [b"new"]


def test_tail_log_follows_a_replaced_log_until_the_new_one_is_written_to(tmp_path: Path) -> None:
    module = load("tail_log")
    log, old = tmp_path / "log", tmp_path / "log.1"
    log.write_bytes(b"first\n")
    looks = 0
    lines = []

    async def handle(line: bytes) -> None:
        lines.append(line)
        if line == b"new":
            raise EOFError

    tail = module.Tail(str(log), handle, interval=0.001)
    is_replaced = tail._is_replaced

    async def is_replaced_meanwhile(file: AsyncFile) -> bool:
        nonlocal looks
        looks += 1
        if looks == 1:
            log.rename(old)
            log.touch()
        elif looks == 2:
            append(old, b"after the rotation\n")
        elif looks == 3:
            append(old, b"after the last read\n")
            append(log, b"new\n")
        return bool(await is_replaced(file))

    tail._is_replaced = is_replaced_meanwhile
    with pytest.raises(EOFError):
        trio.run(functools.partial(tail.run, from_start=True))
    assert lines == [b"first", b"after the rotation", b"after the last read", b"new"]
    assert looks == 3


@pytest.mark.parametrize("exists", [True, False])
def test_tail_log_looks_no_more_often_than_it_says(tmp_path: Path, exists: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("tail_log")
    log = tmp_path / "log"
    if exists:
        log.touch()
    looks = 0
    opened, is_replaced = module.open_aio, module.Tail._is_replaced

    def counted_open(path: str) -> Any:
        nonlocal looks
        looks += 1
        return opened(path)

    async def counted_check(*arguments: Any) -> bool:
        nonlocal looks
        looks += 1
        return bool(await is_replaced(*arguments))

    monkeypatch.setattr(module, "open_aio", counted_open)
    monkeypatch.setattr(module.Tail, "_is_replaced", counted_check)

    async def main() -> None:
        with trio.move_on_after(100):
            await module.Tail(str(log), None, interval=1).run()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert 2 <= looks <= 102


# ---- fuse_passthrough.py


@pytest.fixture
def passthrough(disk: Path) -> Iterator[tuple[Path, Path, Started]]:
    """Yield a folder, where it is mounted a second time, and the program that serves it."""
    need(os.geteuid() == 0 and os.path.exists("/dev/fuse"), "root and /dev/fuse, to mount a folder")
    need(shutil.which("fusermount3") is not None and importlib.util.find_spec("pyfuse3") is not None, "fuse3 and pyfuse3")
    folder, mounted = disk / "folder", disk / "mounted"
    folder.mkdir()
    mounted.mkdir()
    with started("fuse_passthrough.py", folder, mounted) as server:
        assert server.line() == f"{folder} is mounted at {mounted}"
        try:
            yield folder, mounted, server
        finally:
            server.process.send_signal(signal.SIGTERM)
            server.process.wait()
    assert server.process.returncode == 0
    assert not os.path.ismount(mounted)


def test_fuse_passthrough_reads_and_writes_files(passthrough: tuple[Path, Path, Started]) -> None:
    folder, mounted, _ = passthrough
    data = content((3 << 20) + 5)
    (mounted / "file").write_bytes(data)
    assert (folder / "file").read_bytes() == (mounted / "file").read_bytes() == data
    with (mounted / "file").open("r+b") as file:
        file.seek(1000)
        file.write(b"changed")
        file.flush()
        os.fsync(file.fileno())
    append(mounted / "file", b"end")
    assert (folder / "file").read_bytes() == data[:1000] + b"changed" + data[1007:] + b"end"
    os.truncate(mounted / "file", 10)
    (mounted / "file").chmod(0o640)
    os.utime(mounted / "file", ns=(1, 2))
    found = (folder / "file").stat()
    assert (found.st_size, found.st_mode & 0o777, found.st_atime_ns, found.st_mtime_ns) == (10, 0o640, 1, 2)
    with pytest.raises(FileExistsError):
        (mounted / "file").open("xb")
    with pytest.raises(FileNotFoundError):
        (mounted / "other").read_bytes()


def test_fuse_passthrough_changes_names(passthrough: tuple[Path, Path, Started]) -> None:
    folder, mounted, _ = passthrough
    (mounted / "one").mkdir()
    (mounted / "one" / "file").write_bytes(b"contents")
    with (mounted / "one" / "file").open("r+b") as file:
        (mounted / "one").rename(mounted / "two")
        assert (mounted / "two" / "file").read_bytes() == b"contents"
        os.link(mounted / "two" / "file", mounted / "hard")
        (mounted / "link").symlink_to("two/file")
        assert os.path.samefile(mounted / "hard", mounted / "link")
        assert os.readlink(folder / "link") == os.readlink(mounted / "link") == "two/file"
        with pytest.raises(OSError, match="not empty"):
            (mounted / "two").rmdir()
        (mounted / "hard").unlink()
        (mounted / "two" / "file").unlink()
        # It has no name any more, but it is open.
        assert os.fstat(file.fileno()).st_nlink == 0
        file.write(b"C")
        file.seek(0)
        assert file.read() == b"Contents"


def held(server: Started, folder: Path) -> list[str]:
    """Return the removed files of a folder that a program holds."""
    found = []
    for descriptor in os.scandir(f"/proc/{server.process.pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed since it was listed
            found.append(os.readlink(descriptor.path))
    return [name for name in found if name.startswith(f"{folder}/") and name.endswith(" (deleted)")]


def test_fuse_passthrough_lists_large_folders_and_forgets_their_files(passthrough: tuple[Path, Path, Started]) -> None:
    folder, mounted, server = passthrough
    (mounted / "two").mkdir()
    names = {f"{i:03}" * 20 for i in range(300)}
    for name in names:
        (mounted / "two" / name).touch()
    assert set(os.listdir(mounted / "two")) == set(os.listdir(folder / "two")) == names
    shutil.rmtree(mounted / "two")
    assert os.listdir(folder) == []
    for _ in range(5_000):
        if not held(server, folder):
            break
        os.listdir(mounted)  # meanwhile the kernel tells the server what it has forgotten
    assert not held(server, folder)
    assert os.statvfs(mounted).f_blocks == os.statvfs(folder).f_blocks
