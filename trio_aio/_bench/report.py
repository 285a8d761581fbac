"""What the rounds came to: medians and spreads, ratios to what is wanted, who is quicker; as tables and as JSON."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import Console

    from trio_aio._bench.children import Failed
    from trio_aio._bench.contenders import Contender
    from trio_aio._bench.measure import Measured
    from trio_aio._bench.rows import Row, Wanted

__all__ = ("Outcome", "Result", "RowResult", "Spread", "as_json", "print_row")

MIB = 1 << 20
SAME = 1.02  # times as much is no difference
DISTURBED = 0.05  # of the time: from here on it is said


@dataclass(frozen=True)
class Spread:
    """Several rounds of one figure."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """Take the figures of all rounds; None if there are none."""
        return cls(statistics.median(values), min(values), max(values)) if values else None


@dataclass
class Result:
    """All rounds of one contender."""

    contender: Contender
    rounds: list[Measured] = field(default_factory=list)
    failed: Failed | None = None

    def rates(self) -> list[float]:
        """Operations a second; 0 for a round without any."""
        return [each.operations / each.seconds if each.operations else 0.0 for each in self.rounds]

    def cpus(self) -> list[float]:
        """CPU seconds of an operation."""
        return [each.cpu / each.operations for each in self.rounds if each.operations]

    @property
    def rate(self) -> float:
        """The median, 0 if there is none."""
        spread = Spread.of(self.rates())
        return spread.median if spread is not None else 0.0

    def late(self) -> tuple[float, float] | None:
        """Seconds by which ticks were late: the median of the rounds' 99th percentiles, and the most of all; None if none ticked."""
        rounds = [sorted(each.late) for each in self.rounds if each.late]
        return (
            (statistics.median(ticks[-1 - len(ticks) // 100] for ticks in rounds), max(ticks[-1] for ticks in rounds)) if rounds else None
        )

    @property
    def waited(self) -> float:
        """What share of the time its loop waited for a processor, which other processes had or its own threads; the median."""
        spread = Spread.of([each.waited / each.seconds for each in self.rounds if each.seconds])
        return spread.median if spread is not None else 0.0

    @property
    def peak(self) -> int:
        """Bytes resident at most, of all rounds."""
        return max((each.peak for each in self.rounds), default=0)


@dataclass(frozen=True)
class Outcome:
    """Whether something that is wanted was reached."""

    wanted: Wanted
    found: Spread | None
    against: str | None = None
    why_not: str = ""
    """It could not be found out."""

    @property
    def reached(self) -> bool | None:
        """None if it could not be found out."""
        if self.found is None:
            return None
        return self.found.median >= self.wanted.limit if self.wanted.at_least else self.found.median <= self.wanted.limit


@dataclass
class RowResult:
    """All contenders of one row."""

    row: Row
    piece: int
    results: list[Result]

    def outcomes(self) -> list[Outcome]:
        """Give what came of each thing that is wanted."""
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
            late = ours.late()
            if late is None:
                return Outcome(wanted, None, why_not="nothing ticked")
            return Outcome(wanted, Spread.of([late[wanted.measure == "late max"]]))
        # The quickest in rate, also for its CPU time: not the fastest of one and the cheapest of another.
        rivals = [by_name[name] for name in wanted.against if by_name[name].rounds]
        if not rivals:
            return Outcome(wanted, None, why_not=f"not here: {', '.join(wanted.against)}")
        rival = max(rivals, key=lambda result: result.rate)
        figures: dict[str, Callable[[Result], list[float]]] = {
            "rate": lambda result: result.rates(),
            "cost": lambda result: [1 / rate for rate in result.rates() if rate],
            "cpu": lambda result: result.cpus(),
            "peak": lambda result: [float(result.peak)],
        }
        of = figures[wanted.measure]
        # Round by round, because contenders of one round were measured one right after the other.
        ratios = [mine / theirs for mine, theirs in zip(of(ours), of(rival), strict=False) if theirs]
        return Outcome(wanted, Spread.of(ratios), rival.contender.name, "" if ratios else "nothing was measured")

    def winners(self) -> list[tuple[str, str, str, float]]:
        """Give (what, ours, peer, how many times) for each peer that does better at the same work."""
        found = []
        for ours in self.results:
            if not ours.contender.ours or not ours.rate:
                continue
            for peer in self.results:
                if peer.contender.ours or not peer.contender.same_work or not peer.rate:
                    continue
                if peer.rate > SAME * ours.rate:
                    found.append(("faster", ours.contender.name, peer.contender.name, peer.rate / ours.rate))
                mine, theirs = statistics.median(ours.cpus()), statistics.median(peer.cpus())
                if theirs and mine > SAME * theirs:
                    found.append(("less CPU", ours.contender.name, peer.contender.name, mine / theirs))
        return found


# ---- tables


def print_row(console: Console, result: RowResult) -> None:
    """Print one row's table, what is wanted, and who is better."""
    from rich.table import Table

    row = result.row
    table = Table(title=f"{row.name}: {row.title}", title_justify="left", title_style="bold")
    table.add_column("", no_wrap=True)
    for name in ("operations/s", "lowest-highest", "MiB/s", "CPU us/operation", "late p99 ms", "late max ms", "peak MiB"):
        table.add_column(name, justify="right")
    left_out = []
    for each in sorted(result.results, key=lambda each: -each.rate):
        if not each.rounds:
            left_out.append(each)
            continue
        table.add_row(each.contender.name, *_cells(each, result.piece), style="bold" if each.contender.ours else None)
    if table.row_count:
        console.print(table)
    else:
        console.print(f"{row.name}: {row.title}", style="bold")
    for each in left_out:
        assert each.failed is not None
        console.print(f"  {'left out' if each.failed.unavailable else 'FAILED'}: {each.contender.name}: {each.failed.reason}")
    disturbed = [f"{each.contender.name} {each.waited:.0%}" for each in result.results if each.waited > DISTURBED]
    if disturbed:
        console.print(f"  the loop waited for a processor, share of the time: {', '.join(disturbed)}", style="yellow")
    for outcome in result.outcomes():
        _print_outcome(console, outcome)
    winners = result.winners()
    for what, ours in dict.fromkeys(winner[:2] for winner in winners):
        peers = [f"{peer} {_number(times)} times" for *key, peer, times in winners if key == [what, ours]]
        console.print(f"  {what} than {ours} here: {', '.join(peers)}")
    console.print()


def _cells(result: Result, piece: int) -> list[str]:
    rates, cpu, late = Spread.of(result.rates()), Spread.of(result.cpus()), result.late()
    cells = ["", "", ""]
    if rates is not None and rates.median:
        cells = [_number(rates.median), f"{_number(rates.low)}-{_number(rates.high)}", _number(rates.median * piece / MIB)]
    cells.append(_number(cpu.median * 1e6) if cpu is not None else "")
    cells += [f"{seconds * 1000:.2f}" for seconds in late] if late is not None else ["", ""]
    cells.append(_number(result.peak / MIB) if result.peak else "")
    return cells


def _print_outcome(console: Console, outcome: Outcome) -> None:
    what = _described(outcome.wanted)
    if outcome.reached is None:
        if outcome.wanted.measure not in ("late p99", "late max"):
            console.print(f"  not known: {what} ({outcome.why_not})")
        return
    assert outcome.found is not None
    word, style = ("reached", "green") if outcome.reached else ("NOT REACHED", "red")
    found, against = outcome.found, ""
    if outcome.against is not None:
        against = f" of {outcome.against}"
        if found.low != found.high:
            against += f" ({_number(found.low)}-{_number(found.high)})"
    console.print(f"  {word}: {what}: {_shown(outcome.wanted, found.median)}{against}", style=style)


def _described(wanted: Wanted) -> str:
    names = {"rate": "rate", "cost": "time an operation", "cpu": "CPU time an operation", "peak": "memory"}
    name = names.get(wanted.measure, wanted.measure)
    limit = f"{'at least' if wanted.at_least else 'at most'} {_shown(wanted, wanted.limit)}"
    if len(wanted.against) > 1:
        return f"{wanted.ours}, {name} {limit} of the fastest of {', '.join(wanted.against)}"
    return f"{wanted.ours}, {name} {limit}" + (f" of {wanted.against[0]}" if wanted.against else "")


def _shown(wanted: Wanted, value: float) -> str:
    if wanted.against:
        return f"{_number(value)} times"
    return f"{value / MIB:.0f} MiB" if wanted.measure == "peak" else f"{value * 1000:.2f} ms"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


# ---- JSON


def as_json(result: RowResult) -> dict[str, Any]:
    """Give one row; seconds and bytes, operations a second."""
    return {
        "row": result.row.name,
        "title": result.row.title,
        "piece_bytes": result.piece,
        "tasks": result.row.tasks,
        "contenders": [_contender_as_json(each) for each in result.results],
        "wanted": [_outcome_as_json(outcome) for outcome in result.outcomes()],
        "better_peers": [{"what": what, "ours": ours, "peer": peer, "times": times} for what, ours, peer, times in result.winners()],
    }


def _contender_as_json(result: Result) -> dict[str, Any]:
    late = result.late()
    return {
        "name": result.contender.name,
        "loop": result.contender.loop,
        "ours": result.contender.ours,
        "rounds": len(result.rounds),
        "rate": _spread_as_json(Spread.of(result.rates())),
        "cpu_seconds": _spread_as_json(Spread.of(result.cpus())),
        "late_seconds": {"p99": late[0], "max": late[1]} if late is not None else None,
        "peak_bytes": result.peak or None,
        "waited_for_processor": result.waited,
        "left_out": result.failed.reason if result.failed is not None else None,
        "failed": result.failed is not None and not result.failed.unavailable,
    }


def _spread_as_json(spread: Spread | None) -> dict[str, float] | None:
    return None if spread is None else {"median": spread.median, "low": spread.low, "high": spread.high}


def _outcome_as_json(outcome: Outcome) -> dict[str, Any]:
    wanted = outcome.wanted
    return {
        "measure": wanted.measure,
        "ours": wanted.ours,
        "against": outcome.against,
        "at_least": wanted.limit if wanted.at_least else None,
        "at_most": None if wanted.at_least else wanted.limit,
        "found": _spread_as_json(outcome.found),
        "reached": outcome.reached,
        "not_known_because": outcome.why_not or None,
    }
