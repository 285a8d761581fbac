"""What the rounds came to: medians and spreads, ratios to what is wanted, and which contender is faster.

Ratios are taken round by round, because contenders of one round were measured one right after the other, and a disturbance of the
machine hits both. What is shown is the median of the rounds' ratios, with the lowest and the highest.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from trio_aio._tools.bench.contenders.native import CHECKPOINT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trio_aio._tools.bench.children import Failed
    from trio_aio._tools.bench.contenders.contender import Contender
    from trio_aio._tools.bench.measure import Measured
    from trio_aio._tools.bench.rows import Row, Wanted

__all__ = ("Beside", "Outcome", "Result", "RowResult", "Spread", "Winner", "beside_name")

# A ratio below this is no difference.
SAME = 1.02


@dataclass(frozen=True)
class Spread:
    """One figure of several rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """Return the spread of the rounds' figures, None if there are none."""
        return cls(statistics.median(values), min(values), max(values)) if values else None


@dataclass
class Result:
    """All rounds of one contender."""

    contender: Contender
    rounds: list[Measured] = field(default_factory=list)
    failed: Failed | None = None

    def rates(self) -> list[float]:
        """Return the operations a second of each round, 0 for a round without operations."""
        return [each.operations / each.seconds if each.operations else 0.0 for each in self.rounds]

    def cpus(self) -> list[float]:
        """Return the CPU seconds of an operation, of each round that has operations."""
        return [each.cpu / each.operations for each in self.rounds if each.operations]

    @property
    def rate(self) -> float:
        """The median of operations a second, 0 if there are no rounds."""
        spread = Spread.of(self.rates())
        return spread.median if spread is not None else 0.0

    def late(self) -> tuple[float, float] | None:
        """Return by how many seconds ticks were late: the median of the rounds' 99th percentiles, and the maximum. None without ticks."""
        return _late([each.late for each in self.rounds])

    def late_beside(self) -> tuple[float, float] | None:
        """Return the same of the idle loop in another process."""
        return _late([each.beside for each in self.rounds])

    @property
    def waited(self) -> float:
        """The share of the time in which its loop waited for a processor, which other processes or its own threads had; the median."""
        spread = Spread.of([each.waited / each.seconds for each in self.rounds if each.seconds])
        return spread.median if spread is not None else 0.0

    @property
    def peak(self) -> int:
        """The most bytes that were resident in any round."""
        return max((each.peak for each in self.rounds), default=0)


@dataclass(frozen=True)
class Outcome:
    """Whether what is wanted was reached."""

    wanted: Wanted
    found: Spread | None
    against: str | None = None
    why_not: str = ""
    """Why it could not be found out."""
    instead_of: Outcome | None = None
    """What was wanted otherwise, where the processor is the limit."""
    yardstick: Spread | None = None
    """What the contender of `Wanted.instead` reaches of the same rival. None if there is no such contender or no figure."""

    @property
    def reached(self) -> bool | None:
        """Whether it was reached; None if that could not be found out."""
        if self.found is None:
            return None
        return self.found.median >= self.wanted.limit if self.wanted.at_least else self.found.median <= self.wanted.limit


class Winner(NamedTuple):
    """A peer that does better than one of ours."""

    what: str
    ours: str
    peer: str
    times: float


class Beside(NamedTuple):
    """A contender of ours, divided by the same one of another build. None: one of them has no figures."""

    ours: str
    build: str
    rate: Spread | None
    cpu: Spread | None


@dataclass
class RowResult:
    """All contenders of one row."""

    row: Row
    piece: int
    results: list[Result]

    def outcomes(self) -> list[Outcome]:
        """Return the outcome of each thing that is wanted."""
        return [self._outcome(wanted) for wanted in self.row.all_wanted]

    def _outcome(self, wanted: Wanted) -> Outcome:
        by_name = {result.contender.name: result for result in self.results}
        ours = by_name[wanted.ours]
        if not ours.rounds:
            assert ours.failed is not None
            return Outcome(wanted, None, why_not=ours.failed.reason)
        if not wanted.against:
            if wanted.measure == "peak":
                return Outcome(wanted, Spread.of([float(ours.peak)]))
            late, beside = ours.late(), ours.late_beside()
            if late is None or beside is None:
                return Outcome(wanted, None, why_not="nothing ticked")
            which = wanted.measure == "late max"
            return Outcome(wanted, Spread.of([late[which] - beside[which]]))
        rivals = [by_name[name] for name in wanted.against if by_name[name].rounds]
        if not rivals:
            return Outcome(wanted, None, why_not=f"not here: {', '.join(wanted.against)}")
        # The fastest in rate, also for its CPU time: not the fastest of one and the cheapest of another.
        rival = max(rivals, key=lambda result: result.rate)
        found = _ratio(wanted.measure, ours, rival)
        outcome = Outcome(wanted, found, rival.contender.name, "" if found is not None else "nothing was measured")
        if wanted.instead is None:
            return outcome
        (name,) = wanted.instead.against
        outcome = replace(outcome, yardstick=_ratio(wanted.measure, by_name[name], rival))
        if not _processor_is_the_limit(by_name[name], rival, wanted.limit):
            return outcome
        return replace(self._outcome(wanted.instead), instead_of=outcome)

    def winners(self) -> list[Winner]:
        """Return each peer that does better than one of ours at the same work."""
        found = []
        for ours in self.results:
            if not ours.contender.ours or ours.contender.build is not None or not ours.rate:
                continue
            for peer in self.results:
                if peer.contender.ours or not peer.contender.same_work or not peer.rate:
                    continue
                if peer.rate > SAME * ours.rate:
                    found.append(Winner("faster", ours.contender.name, peer.contender.name, peer.rate / ours.rate))
                mine, theirs = statistics.median(ours.cpus()), statistics.median(peer.cpus())
                if theirs and mine > SAME * theirs:
                    found.append(Winner("less CPU", ours.contender.name, peer.contender.name, mine / theirs))
        return found

    def checkpoints(self, result: Result) -> Spread | None:
        """Return the CPU time of an operation in bare checkpoints, None if the row has none of them."""
        for each in self.results:
            if each.contender == CHECKPOINT and result is not each:
                return _ratio("cpu", result, each)
        return None

    def beside(self) -> list[Beside]:
        """Return how each contender of ours compares with the same one of each other build."""
        found = []
        for result in self.results:
            build = result.contender.build
            if build is None:
                continue
            (ours,) = (
                each
                for each in self.results
                if each.contender.build is None and beside_name(each.contender.name, build) == result.contender.name
            )
            found.append(Beside(ours.contender.name, build, _ratio("rate", ours, result), _ratio("cpu", ours, result)))
        return found


def _late(of_rounds: Sequence[list[float]]) -> tuple[float, float] | None:
    rounds = [sorted(late) for late in of_rounds if late]
    return (statistics.median(ticks[-1 - len(ticks) // 100] for ticks in rounds), max(ticks[-1] for ticks in rounds)) if rounds else None


def beside_name(contender: str, build: str) -> str:
    """Return the name of a contender of another build."""
    return f"{contender} [{build}]"


def _ratio(measure: str, ours: Result, other: Result) -> Spread | None:
    figures: dict[str, Callable[[Result], list[float]]] = {
        "rate": lambda result: result.rates(),
        "cost": lambda result: [1 / rate for rate in result.rates() if rate],
        "cpu": lambda result: result.cpus(),
        "peak": lambda result: [float(result.peak)],
    }
    of = figures[measure]
    return Spread.of([mine / theirs for mine, theirs in zip(of(ours), of(other), strict=False) if theirs])


def _processor_is_the_limit(yardstick: Result, rival: Result, limit: float) -> bool:
    """Return whether `yardstick` misses `limit` times the rate of `rival`, and would reach it if it needed no CPU time.

    At any depth an operation takes a share of the wall-clock time; without its CPU time it would take that much less. If even this is too
    long, the device or something else is the limit.
    """
    reached, without_cpu = [], []
    for mine, theirs in zip(yardstick.rounds, rival.rounds, strict=False):
        if mine.operations and theirs.operations:
            allowed = theirs.seconds / theirs.operations / limit
            reached.append(allowed / (mine.seconds / mine.operations))
            without_cpu.append((mine.seconds - mine.cpu) / mine.operations / allowed)
    return bool(reached) and statistics.median(reached) < 1 and statistics.median(without_cpu) <= 1
