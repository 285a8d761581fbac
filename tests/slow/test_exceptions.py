"""MemoryError before every single line of submit, flush and reap."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ..engine.test_exceptions import KINDS, run_sweep

if TYPE_CHECKING:
    from pathlib import Path

    from ..engine.test_exceptions import Make

pytestmark = pytest.mark.slow


@KINDS
def test_memory_error_before_each_line_of_a_step_loses_nothing(disk: Path, make: Make, short: bool) -> None:
    assert run_sweep(disk, make, short, 1) > 100
