"""`python -m trio_aio doctor`: each filesystem's report is what is certain of that filesystem, and no file is left behind.

The tests run the doctor as a user does, and read its JSON. Only `io_setup` is replaced, in the one test of a kernel that refuses it.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from trio_aio.__main__ import main

from ..support.files import make_file
from ..support.page_cache import attempts, evict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DIRECT = ("direct read", "direct overwrite", "direct append", "direct write into a fallocated range")
# Whether these four are asynchronous on each filesystem. These are certain.
ASYNCHRONOUS = {
    "ext4": (True, True, False, True),
    "xfs": (True, True, True, True),
    "btrfs": (True, False, False, False),
    "overlay": (True, True, False, True),
    "tmpfs": (False, False, False, False),
}


def examined(path: Path | str, capsys: pytest.CaptureFixture[str], *, status: int = 0) -> dict[str, Any]:
    assert main(["doctor", str(path), "--json"]) == status
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert report["status"] == status
    return report


def test_doctor_on_each_filesystem_reports_asynchronous_requests(filesystem: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kind = filesystem.parent.name
    expected = {name for name, found in zip(DIRECT, ASYNCHRONOUS[kind], strict=True) if found}
    # A sync on tmpfs has nothing to do and completes at once.
    if kind != "tmpfs":
        expected |= {"fsync", "fdatasync"}
    found: set[str] = set()
    for _ in attempts("each request that is asynchronous here seen in flight", most=20):
        report = examined(filesystem, capsys)
        assert (report["filesystem"], report["mount_point"]) == (kind, str(filesystem.parent))
        requests = report["requests"]
        assert not [tried for tried in requests.values() if tried["error"]]
        assert {"buffered read, cached", "buffered read, not cached", *DIRECT} <= set(requests)
        # A request that is seen in flight is proof. That none is seen is not: where other processes have the processors, all may have
        # completed by then.
        found |= {name for name, tried in requests.items() if tried["asynchronous"]}
        assert found - {"fsync", "fdatasync"} <= expected
        assert not list(filesystem.iterdir())
        if found >= expected:
            break


def test_doctor_on_each_filesystem_reports_direct_and_nowait(filesystem: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = examined(filesystem, capsys)
    kind = filesystem.parent.name
    assert report["direct"] == ("ignored" if kind == "tmpfs" else "accepted")
    assert report["alignment_enforced"] == (kind not in ("tmpfs", "btrfs"))
    assert report["alignment_offset"] >= 512
    assert report["nowait"]["buffered read"] == (kind not in ("tmpfs", "overlay"))
    assert [line for line in report["advice"] if "RWF_NOWAIT" in line] == []
    assert report["cached_reads"] == {"tmpfs": "cachestat", "overlay": "mincore"}.get(kind, "RWF_NOWAIT")
    for _ in attempts("an append seen in flight where it is asynchronous", most=20):
        appends = [line for line in report["advice"] if "appends are not asynchronous" in line]
        assert appends or kind not in ("ext4", "overlay")
        if bool(appends) == (kind in ("ext4", "overlay")):
            break
        report = examined(filesystem, capsys)  # on a busy machine all may be complete when io_submit returns


def test_doctor_of_file_tries_on_temporary_file(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, data = make_file(disk)
    report = examined(path, capsys)
    assert report["tried_on"] == "a temporary file"
    assert report["requests"]["direct append"]["tries"] > 0
    assert path.read_bytes() == data
    assert list(disk.iterdir()) == [path]


@pytest.fixture
def read_only(disk: Path) -> Iterator[Path]:
    """Return a read-only folder with a file."""
    path, _ = make_file(disk, 2 << 20)
    evict(path)
    subprocess.run(["mount", "--bind", str(disk), str(disk)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(disk)], check=True)
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_doctor_of_file_in_read_only_folder_only_reads_it(read_only: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = examined(read_only / "file", capsys)
    assert report["tried_on"] == str(read_only / "file")
    assert list(report["requests"]) == ["direct read", "buffered read, cached"]
    assert report["direct"] == "accepted"
    assert [line for line in report["advice"] if "Read-only file system" in line]


def test_doctor_of_read_only_folder_tries_nothing(read_only: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = examined(read_only, capsys)
    assert (report["tried_on"], report["requests"], report["direct"]) == (None, {}, None)
    assert [line for line in report["advice"] if "Read-only file system" in line]


def test_doctor_of_short_file_says_that_it_is_too_small(read_only: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = examined("/proc/self/status", capsys)
    assert report["requests"] == {}
    assert [line for line in report["advice"] if "smaller than" in line]


def test_doctor_on_full_disk_says_no_space(on_filesystem: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = on_filesystem("small_tmpfs")
    with (folder / "filler").open("wb") as filler:
        os.posix_fallocate(filler.fileno(), 0, shutil.disk_usage(folder).free)
    report = examined(folder, capsys)
    assert report["requests"] == {}
    assert [line for line in report["advice"] if "No space left" in line]
    assert [path.name for path in folder.iterdir()] == ["filler"]


def test_doctor_with_engine_workers_returns_1(disk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIO_AIO_ENGINE", "workers")
    report = examined(disk, capsys, status=1)
    assert report["engine"] == "workers"
    assert "TRIO_AIO_ENGINE=workers" in report["advice"][0]


@pytest.mark.parametrize(
    ("code", "words"), [(errno.EAGAIN, "sysctl fs.aio-max-nr="), (errno.EPERM, "seccomp"), (errno.ENOSYS, "no native AIO")]
)
def test_doctor_without_io_setup_returns_1_with_advice(
    code: int, words: str, disk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from trio_aio import lowlevel
    from trio_aio._lanes import kernel_context as _kernel_context

    class Refusing:
        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def taio_io_setup(self, *_: object) -> int:
            return -code

    real = lowlevel.lib
    monkeypatch.setattr(lowlevel, "lib", Refusing())
    monkeypatch.setattr(_kernel_context, "lib", Refusing())
    monkeypatch.setattr(_kernel_context, "_spares", [])
    report = examined(disk, capsys, status=1)
    assert (report["engine"], report["completions"], report["requests"]) == ("workers", None, {})
    assert words in report["advice"][0]
    # O_DIRECT can be tried without native AIO.
    assert report["direct"] == "accepted"
    assert not list(disk.iterdir())


def test_doctor_with_invalid_engine_setting_reports_it(
    disk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIO_AIO_ENGINE", "fast")
    report = examined(disk, capsys, status=1)
    assert report["engine"] is None
    assert "TRIO_AIO_ENGINE must be" in report["advice"][0]


def test_doctor_of_missing_path_returns_2(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(disk / "none")]) == 2
    assert "No such file or directory" in capsys.readouterr().err


def test_doctor_of_path_below_a_file_returns_2(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = make_file(disk)
    assert main(["doctor", str(path / "below")]) == 2
    assert "Not a directory" in capsys.readouterr().err


def test_doctor_as_text_has_line_for_each_finding(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(disk)]) == 0
    text = capsys.readouterr().out
    for words in (
        "engine  ",
        "fs.aio-nr  ",
        "ext4 on /dev/loop",
        "names in memory                                     answered inline",
        "multiples of",
        "RWF_NOWAIT, buffered read",
        "asynchronous: direct read  ",
    ):
        assert words in text
    assert "\n- Direct appends are not asynchronous here" in text


def test_doctor_without_privileges_works(disk: Path) -> None:
    program = [sys.executable, "-m", "trio_aio", "doctor", str(disk), "--json"]
    if os.geteuid() == 0:
        program = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *program]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["requests"]["direct append"]["tries"] > 0
    assert not list(disk.iterdir())


def test_doctor_of_mount_point_with_space_finds_it(disk: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> None:
    folder = disk / "with space"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=True)
    request.addfinalizer(lambda: subprocess.run(["umount", str(folder)], check=True))
    report = examined(folder, capsys)
    assert (report["filesystem"], report["mount_point"]) == ("tmpfs", str(folder))
