"""What the ring learns from the time that io_submit takes: a C program gives it calls of known sizes and times."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ..conftest import need

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "trio_aio" / "_native"
SLOTS = 128  # of the program's ring
UNKNOWN = -1
FIXED, EACH = 3000, 1000  # nanoseconds


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Iterable[tuple[int, int]]], float]:
    """Return a function: `taio_ring_fixed_cost` after calls of so many requests that took so many nanoseconds."""
    need(shutil.which("cc") is not None, "cc")
    program = tmp_path_factory.mktemp("cost") / "cost"
    sources = [path for path in sorted(NATIVE.glob("*.c")) if path.name != "ring.c"]
    command = ["cc", "-std=c11", "-Wall", "-Wextra", "-Werror", f"-I{NATIVE}", "-o", program, ROOT / "tests/native/cost.c", *sources]
    subprocess.run([*command, "-pthread"], check=True)

    def run(calls: Iterable[tuple[int, int]]) -> float:
        arguments = [f"{count}:{time}" for count, time in calls]
        return float(subprocess.run([program, *arguments], check=True, capture_output=True, text=True).stdout)

    return run


def calls(sizes: Iterable[int]) -> list[tuple[int, int]]:
    """Return calls that cost what they should."""
    return [(size, FIXED + EACH * size) for size in sizes]


# The first call is not counted.
@pytest.mark.parametrize("sizes", [[], [4], [1, 8], [4] * 2, [4] * 16, [4] * 300, [100, 101] * 50])
def test_fixed_cost_is_unknown_without_calls_of_several_sizes(learned: Callable[..., float], sizes: list[int]) -> None:
    assert learned(calls(sizes)) == UNKNOWN


@pytest.mark.parametrize(
    "sizes", [[1, 1, 8], [1, 2, 4, 8] * 4, [1, 2, 4, 8] * 400, [16, 64] * 8, [1] * 200 + [64], [64] * 20 + [1] * 20, [*range(1, 129)]]
)
def test_fixed_cost_is_exact_after_calls_of_several_sizes(learned: Callable[..., float], sizes: list[int]) -> None:
    assert learned(calls(sizes)) == pytest.approx(FIXED / EACH, rel=1e-6)


def test_fixed_cost_follows_when_calls_become_dearer(learned: Callable[..., float]) -> None:
    sizes = [1, 2, 4, 8]
    dearer = [(size, 20_000 + 2000 * size) for size in sizes * 250]
    assert learned(calls(sizes * 250) + dearer) == pytest.approx(10, rel=1e-3)


def test_first_call_is_not_counted(learned: Callable[..., float]) -> None:
    usual = calls([1, 2, 4, 8] * 4)
    assert learned([(1, 10**9), *usual]) == learned([(1, 1), *usual]) == pytest.approx(FIXED / EACH, rel=1e-6)


def test_preempted_call_counts_no_more_than_a_slow_one(learned: Callable[..., float]) -> None:
    usual = calls([1, 2, 4, 8] * 25)
    one, *others = (learned([*usual, (8, time), *usual]) for time in (10**6, 10**9, 10**12))
    assert [one, one] == others
    assert one != pytest.approx(FIXED / EACH, rel=1e-6)  # it does count


@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        (lambda size: 5000 * size, 0),  # nothing but the requests
        (lambda size: 100 * size * size, 0),  # even less than nothing
        (lambda size: 9000 - 1000 * size, SLOTS),  # the requests cost nothing
    ],
)
def test_fixed_cost_is_neither_negative_nor_more_than_the_slots(
    learned: Callable[..., float], cost: Callable[[int], int], expected: float
) -> None:
    assert learned((size, cost(size)) for size in [1, 2, 4, 8] * 10) == pytest.approx(expected, abs=1e-6)
