"""Processes that are killed: what was acknowledged is in the file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ..support.files import make_file
from ..support.programs import run

pytestmark = pytest.mark.slow

ROUNDS = int(os.environ.get("TRIO_AIO_ROUNDS", "1"))  # so many times more repetitions

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("direct", [False, True])
def test_acknowledged_records_survive_kill_9(disk: Path, direct: bool) -> None:
    """Eight tasks append to a log and sync it until the process is killed at an arbitrary moment.

    The machine keeps running, so this is about the order of writes, syncs and acknowledgements, and not about the disk's cache.
    """
    make_file(disk, 0)
    run(
        f"""
        import random, struct
        sys.path.insert(0, {str(EXAMPLES)!r})
        from append_log import Log, records

        log_path = sys.argv[2]
        ACKNOWLEDGED = struct.Struct("<II")

        async def write(acknowledgements, generation):
            async with open_aio(log_path, "ab", direct={direct}) as file:
                log = Log(file)
                async def append(task):
                    number = task
                    while True:
                        await log.append(f"{{generation}}:{{number}}:".encode() + bytes(number % 5000))
                        os.write(acknowledgements, ACKNOWLEDGED.pack(generation, number))
                        number += 8
                async with trio.open_nursery() as nursery:
                    for task in range(8):
                        nursery.start_soon(append, task)

        acknowledged = set()
        for generation in range({50 * ROUNDS}):
            reader, writer = os.pipe()
            pid = os.fork()  # no thread and no event loop are here
            if not pid:
                try:
                    trio.run(write, writer, generation)
                finally:
                    os._exit(1)
            os.close(writer)
            wanted = random.randrange(1, 60)
            told = b""
            while len(told) < wanted * ACKNOWLEDGED.size:
                piece = os.read(reader, 1 << 16)
                assert piece, "it ended by itself"
                told += piece
            os.kill(pid, signal.SIGKILL)
            while piece := os.read(reader, 1 << 16):
                told += piece
            os.close(reader)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
            acknowledged.update(ACKNOWLEDGED.iter_unpack(told[: len(told) // ACKNOWLEDGED.size * ACKNOWLEDGED.size]))

            found = records(__import__("pathlib").Path(log_path))
            there = {{tuple(map(int, record.split(b":", 2)[:2])) for record in found}}
            assert acknowledged <= there, sorted(acknowledged - there)
            assert len(there) == len(found), "a record is there twice"
            for record in found:
                generation_, number, rest = record.split(b":", 2)
                assert rest == bytes(int(number) % 5000)
            whole = sum(8 + len(record) for record in found)
            os.truncate(log_path, whole)  # as a database would: what was cut off by the kill was never acknowledged
        print(len(acknowledged))
        """,
        disk / "file",
        disk / "log",
    )
