"""trio-asyncio: asyncio's tasks inside of a trio run. The cases are in `support.two_sides`."""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING

import pytest

from ..conftest import need
from ..support.files import make_file
from ..support.programs import check

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    "case",
    [
        *("both_at_once", "trio_inside_of_asyncio", "cancelled_by_asyncio", "cancelled_by_trio"),
        *(pytest.param(case, marks=pytest.mark.slow) for case in ("only_asyncio", "two_loops", "file_of_trio", "file_of_asyncio")),
    ],
)
def test_files_on_both_sides(disk: Path, case: str) -> None:
    need(importlib.util.find_spec("trio_asyncio") is not None, "trio-asyncio")
    path, data = make_file(disk)
    program = [sys.executable, "-X", "dev", "-W", "ignore::DeprecationWarning", "-m", "tests.support.two_sides", case, str(path)]
    check(program, harmless=r"Executing <.*> took .* seconds\n")  # what asyncio says in dev mode where the machine is busy
    assert path.read_bytes() == data
