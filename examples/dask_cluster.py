"""Hash a table and an array with a Dask cluster of processes that read through fsspec and zarr, and survive the death of one of them.

python examples/dask_cluster.py FOLDER [--only table|array] [--lose-a-worker]

What is not in the folder yet is made there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import fsspec
import numpy
from dask.distributed import Client, LocalCluster, as_completed

if TYPE_CHECKING:
    from collections.abc import Iterator

PARTS = 6  # files of the table
GROUPS = 8  # row groups in each of them
COLUMNS = {"key": 4_000, "text": 400_000, "time": 60_000, "value": 60_000}  # bytes in a row group
WANTED = ("key", "time", "value")
GAP = 64 << 10  # it costs less to read a short gap than to make another request
LENGTH, WIDTH, CHUNK = 4000, 500, 250  # rows and columns of the array, and of a chunk


# ---- the data: as Parquet, each file of the table has its columns in row groups, and says at its end where they are


def make_table(folder: Path) -> None:
    """Write the files of the table."""
    random = numpy.random.default_rng(1)
    folder.mkdir(parents=True)
    for part in range(PARTS):
        places = []
        with (folder / f"part-{part}").open("wb") as file:
            for _ in range(GROUPS):
                group = {}
                for name, size in COLUMNS.items():
                    group[name] = (file.tell(), file.tell() + size)
                    file.write(random.bytes(size))
                places.append(group)
            footer = json.dumps(places).encode()
            file.write(footer + len(footer).to_bytes(8, "little"))


def make_array(path: Path) -> None:
    """Write the array."""
    import zarr

    from trio_aio.integrations.zarr import AioStore

    array = zarr.create_array(AioStore(path), shape=(LENGTH, WIDTH), chunks=(CHUNK, CHUNK), dtype="f8")
    array[:] = numpy.random.default_rng(2).random((LENGTH, WIDTH))


# ---- what the workers do


def hash_part(path: str, last_will: str | None = None) -> str:
    """Return the SHA-256 of the wanted columns of a file of the table.

    last_will: the first process to get here makes this file, and dies in the middle of its reading.
    """
    fs = fsspec.filesystem("aio")
    size = fs.size(path)
    length = int.from_bytes(fs.cat_file(path, start=size - 8), "little")
    groups = json.loads(fs.cat_file(path, start=size - 8 - length, end=size - 8))
    digest = hashlib.sha256()
    for number, group in enumerate(groups):
        if number == len(groups) // 2:
            die_once(last_will)
        starts, ends = zip(*(group[name] for name in WANTED), strict=True)
        # One call: the ranges of a file are in flight together, and those that lie near each other share a request.
        for data in fs.cat_ranges([path] * len(WANTED), list(starts), list(ends), max_gap=GAP):
            digest.update(data)
    return digest.hexdigest()


def hash_rows(path: str, start: int, last_will: str | None = None) -> str:
    """Return the SHA-256 of a row of chunks of the array."""
    import zarr

    from trio_aio.integrations.zarr import AioStore

    array = zarr.open_array(AioStore(path, read_only=True), mode="r")
    digest = hashlib.sha256(array[start : start + CHUNK // 2].tobytes())
    die_once(last_will)
    digest.update(array[start + CHUNK // 2 : start + CHUNK].tobytes())
    return digest.hexdigest()


def die_once(last_will: str | None) -> None:
    """Kill this process, unless another one has done so before."""
    if last_will is not None:
        try:
            Path(last_will).touch(exist_ok=False)
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)


# ---- what the client does


def digests(client: Client, folder: Path, kinds: tuple[str, ...], *, lose_a_worker: bool) -> Iterator[tuple[str, str]]:
    """Yield the name and the digest of each piece, as they are done. A piece whose worker dies is given to another one."""
    names = {}
    for kind in kinds:
        last_will = str(folder / f"{kind}.died") if lose_a_worker else None
        (folder / f"{kind}.died").unlink(missing_ok=True)
        if kind == "table":
            for part in range(PARTS):
                path = str(folder / "table" / f"part-{part}")
                names[client.submit(hash_part, path, last_will, pure=False)] = f"table {part}"
        else:
            for start in range(0, LENGTH, CHUNK):
                path = str(folder / "array.zarr")
                names[client.submit(hash_rows, path, start, last_will, pure=False)] = f"array {start}"
    for future, digest in as_completed(names, with_results=True):
        yield names[future], digest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=("table", "array"), help="the array needs Python 3.12")
    parser.add_argument("--lose-a-worker", action="store_true", help="for each kind of data, kill a worker in the middle of its reading")
    arguments = parser.parse_args()
    folder: Path = arguments.folder.absolute()
    kinds = (arguments.only,) if arguments.only else ("table", "array")
    if "table" in kinds and not (folder / "table").exists():
        make_table(folder / "table")
    if "array" in kinds and not (folder / "array.zarr").exists():
        make_array(folder / "array.zarr")
    with LocalCluster(n_workers=3, threads_per_worker=2, dashboard_address=None) as cluster, Client(cluster) as client:
        before = set(client.run(os.getpid).values())
        for name, digest in sorted(digests(client, folder, kinds, lose_a_worker=arguments.lose_a_worker)):
            print(f"{digest}  {name}")
        client.wait_for_workers(3)  # the cluster has replaced those that died
        print(f"{len(before - set(client.run(os.getpid).values()))} workers died")


if __name__ == "__main__":
    # The processes of the cluster import this file. Only the first one runs the program.
    main()
