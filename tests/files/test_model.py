"""A file and its model stay the same, whatever tasks do and whenever they are cancelled. `make soak` does it for longer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ..support import model

if TYPE_CHECKING:
    import random
    from pathlib import Path


@pytest.mark.parametrize("examples", [15, pytest.param(40, marks=pytest.mark.slow)])
def test_random_calls_leave_the_file_equal_to_the_model(filesystem: Path, examples: int) -> None:
    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(chance=st.randoms(use_true_random=False))
    def play(chance: random.Random) -> None:
        model.run(model.make_plan(chance, steps=6), filesystem)

    play()


@pytest.mark.parametrize("seed", range(3))
def test_plan_of_a_seed_is_always_the_same(seed: int) -> None:
    assert model.plan_of_seed(seed) == model.plan_of_seed(seed)
