"""The kernel context that one engine leaves to the next."""

from __future__ import annotations

import subprocess
import sys
import textwrap

from trio_aio._lanes import kernel_context as _kernel_context

from ..support.engine_loop import loop


def test_drained_kernel_context_serves_the_next_engine() -> None:
    used = set()
    for _ in range(5):
        with loop() as made:
            assert made.engine.has_kernel_lane()
            assert made.engine.kernel is not None
            used.add(made.engine.kernel.context.id)
    assert len(used) == 1


def test_larger_kernel_context_replaces_the_spare() -> None:
    spare = _kernel_context._spare  # of a test before: perhaps a large one
    room = 1000 + (0 if spare is None else spare.nr_events)
    small, large = _kernel_context.acquire(4), _kernel_context.acquire(room)
    _kernel_context.release(small)
    _kernel_context.release(large)
    acquired = _kernel_context.acquire(room - 500)
    _kernel_context.release(acquired)
    assert acquired is large


def test_smaller_spare_is_not_used_nor_inherited_by_a_child() -> None:
    program = """
    import os
    from trio_aio._lanes import kernel_context as contexts
    spare = contexts.acquire(4)
    contexts.release(spare)
    pid = os.fork()
    if not pid:
        os._exit(contexts._spare is not None)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert contexts.acquire(4) is spare
    contexts.release(spare)
    larger = contexts.acquire(1000)
    assert larger is not spare and larger.nr_events == 1000
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
