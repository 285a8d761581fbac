"""The recipes of docs/recipes.md do what they say."""

from __future__ import annotations

import hashlib
import http.server
import importlib.util
import io
import json
import os
import tarfile
import threading
import zipfile
import zlib
from typing import TYPE_CHECKING, Any

import h11
import numpy
import pytest
import trio

from trio_aio import AsyncFile, open_aio

from ..support.files import content
from .test_examples import EXAMPLES, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


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
