"""The examples do what they say."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from ..support.examples import EXAMPLES
from ..support.files import content

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def run(name: str, *arguments: object) -> str:
    command: Sequence[str] = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("options", [(), ("--direct",)])
def test_copy_file_copies(disk: Path, options: tuple[str, ...]) -> None:
    source, target = disk / "source", disk / "target"
    for size in (0, 300, (5 << 20) + 77):
        source.write_bytes(content(size))
        assert f"{size:,} bytes" in run("copy_file.py", source, target, *options)
        assert target.read_bytes() == source.read_bytes()


def test_parallel_checksum_prints_what_sha256sum_prints(disk: Path) -> None:
    paths = [disk / f"{i}" for i in range(20)]
    for i, path in enumerate(paths):
        path.write_bytes(content(i * 100_000, seed=i))
    expected = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path}\n" for path in paths)
    assert run("parallel_checksum.py", *paths) == expected


def test_append_log_has_every_record_once_and_in_its_tasks_order(disk: Path) -> None:
    log = disk / "log"
    assert "the log has 160" in run("append_log.py", log, "--tasks", 16, "--records", 10)
    spec = importlib.util.spec_from_file_location("append_log", EXAMPLES / "append_log.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    records = [record.decode().split(":") for record in module.records(log)]
    for task in range(16):
        assert [number for owner, number in records if owner == str(task)] == [str(number) for number in range(10)]
    with log.open("ab") as file:
        file.write(b"\x05\0\0\0cut off")
    assert len(module.records(log)) == 160


def test_quickstart_cancels_and_leaves_nothing_in_flight(tmp_path: Path) -> None:
    assert "cancelled=True, still in flight: 0" in run("quickstart.py", "--size", "16", "--directory", tmp_path)
