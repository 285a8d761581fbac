"""The doctor where it is easily misled: an overlay on tmpfs, and sparse files that it can only read."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from trio_aio._tools.doctor import asynchronous
from trio_aio._tools.doctor.cachestat import cached_pages
from trio_aio._tools.doctor.place import LENGTH
from trio_aio.lowlevel import IOCB

from ..conftest import need
from ..support.files import make_file
from ..support.page_cache import evict
from .test_doctor import examined

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PAGE = 4096


def _mount(request: pytest.FixtureRequest, folder: Path, *arguments: str) -> None:
    done = subprocess.run(["mount", *arguments, str(folder)], capture_output=True, text=True, check=False)
    need(done.returncode == 0, f"root, and `mount {' '.join(arguments)}`: {done.stderr}")
    request.addfinalizer(lambda: subprocess.run(["umount", str(folder)], check=True))


@pytest.fixture
def overlay_on_tmpfs(disk: Path, request: pytest.FixtureRequest) -> Path:
    layers, folder = disk / "layers", disk / "overlay"
    layers.mkdir()
    folder.mkdir()
    _mount(request, layers, "-t", "tmpfs", "tmpfs")
    options = []
    for name in ("lower", "upper", "work"):
        (layers / name).mkdir()
        options.append(f"{name}dir={layers / name}")
    _mount(request, folder, "-t", "overlay", "-o", ",".join(options), "overlay")
    return folder


def test_doctor_of_overlay_on_tmpfs_says_direct_is_ignored(overlay_on_tmpfs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert examined(overlay_on_tmpfs, capsys)["direct"] == "ignored"


def test_cached_pages_on_each_filesystem(filesystem: Path) -> None:
    path, data = make_file(filesystem, 64 * PAGE)
    assert path.read_bytes() == data
    fd = os.open(path, os.O_RDONLY)
    try:
        assert cached_pages(fd, 0, 64 * PAGE) == 64
        assert cached_pages(fd, 32 * PAGE, 32 * PAGE) == 32
        if filesystem.parent.name != "tmpfs":
            evict(path)
            assert cached_pages(fd, 0, 64 * PAGE) == 0
    finally:
        os.close(fd)


@pytest.fixture
def read_only(on_filesystem: Callable[[str], Path]) -> Iterator[Callable[..., Path]]:
    """Return a function that makes a file of parts (bytes, or the size of a hole), then makes its folder read-only."""
    bound: list[Path] = []

    def make(kind: str, *parts: bytes | int) -> Path:
        need(os.geteuid() == 0, "root, to mount")
        folder = on_filesystem(kind)
        path = folder / "file"
        with path.open("wb") as file:
            for part in parts:
                if isinstance(part, int):
                    file.seek(part, os.SEEK_CUR)
                else:
                    file.write(part)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        evict(path)
        subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
        bound.append(folder)
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        return path

    yield make
    for folder in bound:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
@pytest.mark.parametrize(
    "parts", [(2 * LENGTH,), (os.urandom(LENGTH // 2), LENGTH, os.urandom(LENGTH // 2)), (LENGTH, os.urandom(LENGTH // 2))], ids=len
)
def test_doctor_of_sparse_file_tries_nothing(
    read_only: Callable[..., Path], capsys: pytest.CaptureFixture[str], kind: str, parts: tuple[bytes | int, ...]
) -> None:
    report = examined(read_only(kind, *parts, 4096), capsys)
    assert report["requests"] == {}
    assert report["alignment_enforced"] is None
    assert [line for line in report["advice"] if "sparse" in line]
    assert not [line for line in report["advice"] if "not asynchronous" in line]


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
@pytest.mark.parametrize("before", [0, LENGTH, 3 * LENGTH + 8192])
def test_doctor_of_partly_sparse_file_tries_its_data(
    read_only: Callable[..., Path], capsys: pytest.CaptureFixture[str], kind: str, before: int
) -> None:
    report = examined(read_only(kind, before, os.urandom(LENGTH), LENGTH), capsys)
    assert list(report["requests"]) == ["direct read", "buffered read, cached"]
    assert report["alignment_enforced"] is True
    assert report["direct"] == "accepted"


def test_doctor_looks_for_sleeps_where_the_file_has_data(
    read_only: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = read_only("ext4", 3 * LENGTH, os.urandom(LENGTH), LENGTH)
    offsets: list[int] = []
    make = IOCB.pread

    def noting(fd: int, buffer: Any, offset: int) -> IOCB:
        offsets.append(offset)
        return make(fd, buffer, offset)

    monkeypatch.setattr(asynchronous.IOCB, "pread", noting)
    assert examined(path, capsys)["waits"]
    assert min(offsets) >= 3 * LENGTH
    assert max(offsets) < 4 * LENGTH
