"""The examples do what they say."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import trio

from trio_aio import open_aio
from trio_aio.testing import FaultyContext

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


@pytest.mark.slow
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


def append_log_module() -> Any:
    spec = importlib.util.spec_from_file_location("append_log", EXAMPLES / "append_log.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_append_log_has_every_record_once_and_in_its_tasks_order(disk: Path) -> None:
    log = disk / "log"
    assert "the log has 160" in run("append_log.py", log, "--tasks", 16, "--records", 10)
    module = append_log_module()
    records = [record.decode().split(":") for record in module.records(log)]
    for task in range(16):
        assert [number for owner, number in records if owner == str(task)] == [str(number) for number in range(10)]
    with log.open("ab") as file:
        file.write(b"\x05\0\0\0cut off")
    assert len(module.records(log)) == 160
    # What is appended behind a record that was cut off has to be found.
    assert "the log has 170" in run("append_log.py", log, "--tasks", 1, "--records", 10)


def test_append_log_acknowledges_no_record_behind_one_that_failed(tmp_path: Path) -> None:
    module = append_log_module()
    log = tmp_path / "log"
    acknowledged: list[bytes] = []

    async def append(to: Any, record: bytes) -> None:
        with contextlib.suppress(OSError):
            await to.append(record)
            acknowledged.append(record)

    async def main() -> None:
        async with FaultyContext() as context, open_aio(log, "ab", context=context) as file:
            made = module.Log(file)
            await append(made, b"first")
            with context.short(3, end=True, operation="write"):
                await append(made, b"second")
            await append(made, b"third")

    trio.run(main)
    assert acknowledged == [b"first"]
    assert log.stat().st_size == 8 + 5 + 3


def test_quickstart_cancels_and_leaves_nothing_in_flight(tmp_path: Path) -> None:
    assert "cancelled=True, still in flight: 0" in run("quickstart.py", "--size", "16", "--directory", tmp_path)
