"""Read some tensors of a safetensors file: the wanted ones only, in one call, as NumPy arrays.

python examples/read_tensors.py FILE [NAME...]
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

import numpy
import trio

from trio_aio import open_aio

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?"}
# It costs less to read a short gap than to make another request.
GAP = 64 << 10


async def read_tensors(path: Path | str, names: Iterable[str] = ()) -> dict[str, Any]:
    """Return tensors by name; without names, all. KeyError for a name or a type that is not there."""
    async with open_aio(path) as file:
        length = int.from_bytes(await file.pread(8, 0), "little")
        if length > await file.size():
            raise ValueError(f"{path} is no safetensors file: its header would be longer than the file")
        header = json.loads(await file.pread(length, 8))
        header.pop("__metadata__", None)
        wanted = list(names) or list(header)
        ranges = []
        for name in wanted:
            start, end = header[name]["data_offsets"]
            ranges.append((8 + length + start, end - start))
        parts = await file.read_ranges(ranges, max_gap=GAP)
    return {
        name: numpy.frombuffer(part, TYPES[header[name]["dtype"]]).reshape(header[name]["shape"])
        for name, part in zip(wanted, parts, strict=True)
    }


async def main(path: str, names: list[str]) -> None:
    """Print what the tensors are."""
    for name, tensor in (await read_tensors(path, names)).items():
        print(f"{name}: {tensor.dtype} {list(tensor.shape)}, sum {tensor.sum()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    trio.run(main, arguments.file, arguments.names)
