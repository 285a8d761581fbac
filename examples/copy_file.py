"""Copy a file with read-ahead and write-behind, and show the progress.

python examples/copy_file.py SOURCE TARGET [--direct]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import trio
from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

from trio_aio import open_aio


async def copy(source: Path, target: Path, *, direct: bool, depth: int = 8) -> int:
    """Copy `source` to `target` and make it durable. Return the number of bytes. Memory: twice `depth` MiB, however large the file is."""
    copied = 0
    async with open_aio(source, direct=direct) as reading, open_aio(target, "wb", direct=direct) as writing:
        with Progress(BarColumn(), DownloadColumn(), TransferSpeedColumn()) as progress:
            bar = progress.add_task("copying", total=await reading.size())
            async with writing.writer(depth=depth) as writer:
                async for chunk in reading.chunks(depth=depth):
                    copied += await writer.write(chunk)
                    progress.update(bar, completed=copied)
        await writing.fsync()
    return copied


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--direct", action="store_true", help="bypass the page cache (O_DIRECT)")
    arguments = parser.parse_args()

    async def run() -> int:
        return await copy(arguments.source, arguments.target, direct=arguments.direct)

    print(f"{trio.run(run):,} bytes")


if __name__ == "__main__":
    main()
