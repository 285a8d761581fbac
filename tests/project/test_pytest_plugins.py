"""The examples for pytest, run as a user would, and what they say of the clock."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import trio
import trio.testing

from trio_aio import AIOContext

from ..support.pipes import full_pipe

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(("name", "passed"), [("test_with_pytest_trio.py", 2), ("test_with_anyio.py", 2)])
def test_pytest_examples_pass(tmp_path: Path, name: str, passed: int) -> None:
    shutil.copy(EXAMPLES / name, tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", name], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert f"{passed} passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("threshold", [0, 1000])
def test_autojump_clock_waits_for_a_request_for_its_threshold(threshold: float) -> None:
    async def main() -> None:
        async with AIOContext(max_workers=1) as context:
            with full_pipe() as pipe, trio.move_on_after(60) as scope:
                async with trio.open_nursery() as nursery:

                    @nursery.start_soon
                    async def release() -> None:
                        with trio.CancelScope(shield=True):
                            while not pipe.begun:
                                await trio.lowlevel.checkpoint()
                            if threshold == 0:
                                await trio.sleep(60)  # no time at all
                            pipe.release()

                    with pytest.raises(OSError, match="Illegal seek"):
                        await context._submit_and_wait(pipe.request())
                    assert scope.cancel_called == (threshold == 0)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=threshold))
