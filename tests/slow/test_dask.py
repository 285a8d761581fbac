"""A Dask cluster that reads through fsspec and zarr, and loses a process meanwhile, has the digests that a plain read has."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from ..support.examples import EXAMPLES, may_take_long

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


def digests_of_table(path: Path) -> dict[str, str]:
    """Return what a plain read of the table's files says."""
    found = {}
    parts = sorted(path.iterdir())
    for number, part in enumerate(parts):
        data = part.read_bytes()
        length = int.from_bytes(data[-8:], "little")
        digest = hashlib.sha256()
        for group in json.loads(data[-8 - length : -8]):
            for name in ("key", "time", "value"):
                start, end = group[name]
                digest.update(data[start:end])
        found[f"table {number}"] = digest.hexdigest()
    assert len(found) == 6
    return found


def digests_of_array(path: Path) -> dict[str, str]:
    """Return what zarr's own LocalStore says."""
    import zarr
    from zarr.storage import LocalStore

    array = zarr.open_array(LocalStore(path), mode="r")[:]
    return {f"array {start}": hashlib.sha256(array[start : start + 250].tobytes()).hexdigest() for start in range(0, 4000, 250)}


def run_cluster(folder: Path, *options: str) -> tuple[dict[str, str], int]:
    """Run the example. Return the digests, and how many processes died."""
    command = [sys.executable, str(EXAMPLES / "dask_cluster.py"), str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    return {name: digest for digest, name in (line.split("  ") for line in lines)}, int(last.split()[0])


@pytest.mark.parametrize("kind", ["table", "array"])
def test_cluster_that_loses_a_process_has_the_digests_of_a_plain_read(tmp_path: Path, kind: str, request: pytest.FixtureRequest) -> None:
    may_take_long()
    if kind == "array":
        request.getfixturevalue("zarr_loop")
    found, died = run_cluster(tmp_path, "--only", kind, "--lose-a-worker")
    assert died == 1
    assert (tmp_path / f"{kind}.died").exists()
    assert found == (digests_of_table(tmp_path / "table") if kind == "table" else digests_of_array(tmp_path / "array.zarr"))
