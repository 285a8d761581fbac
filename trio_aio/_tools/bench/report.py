"""Rows as tables and as JSON. In JSON times are in seconds, sizes in bytes, and rates in operations a second."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trio_aio._tools.bench.results import Spread

if TYPE_CHECKING:
    from rich.console import Console

    from trio_aio._tools.bench.results import Beside, Outcome, Result, RowResult
    from trio_aio._tools.bench.rows import Wanted

__all__ = ("as_json", "print_row")

MIB = 1 << 20
# The share of the time that a loop waited for a processor. More than this is reported.
DISTURBED = 0.05
COLUMNS = (
    *("operations/s", "lowest-highest", "MiB/s", "CPU us/operation", "checkpoints"),
    *("late p99 ms", "beside", "late max ms", "beside", "peak MiB"),
)


# ---- tables


def print_row(console: Console, result: RowResult) -> None:
    """Print one row's table, what is wanted, how other builds compare, and which peers are better."""
    from rich.table import Table

    row = result.row
    table = Table(title=f"{row.name}: {row.title}", title_justify="left", title_style="bold")
    table.add_column("", no_wrap=True)
    for name in COLUMNS:
        table.add_column(name, justify="right")
    left_out = []
    for each in sorted(result.results, key=lambda each: -each.rate):
        if not each.rounds:
            left_out.append(each)
            continue
        table.add_row(each.contender.name, *_cells(each, result), style="bold" if each.contender.ours else None)
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
    for beside in result.beside():
        console.print(f"  beside {beside.build}: {beside.ours}: {_beside_in_words(beside)}")
    winners = result.winners()
    for what, ours in dict.fromkeys((winner.what, winner.ours) for winner in winners):
        peers = [f"{each.peer} {_number(each.times)} times" for each in winners if (each.what, each.ours) == (what, ours)]
        console.print(f"  {what} than {ours} here: {', '.join(peers)}")
    console.print()


def _cells(result: Result, row: RowResult) -> list[str]:
    rates, cpu, late, checkpoints = Spread.of(result.rates()), Spread.of(result.cpus()), result.late(), row.checkpoints(result)
    cells = ["", "", ""]
    if rates is not None and rates.median:
        cells = [_number(rates.median), f"{_number(rates.low)}-{_number(rates.high)}", _number(rates.median * row.piece / MIB)]
    cells.append(_number(cpu.median * 1e6) if cpu is not None else "")
    cells.append(_number(checkpoints.median) if checkpoints is not None else "")
    for which in (0, 1):
        cells += [f"{each[which] * 1000:.2f}" if each is not None else "" for each in (late, result.late_beside())]
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
    found = outcome.found
    if outcome.against is None:
        shown = _shown(outcome.wanted, found.median)
    else:
        shown = f"{_times(found, f' of {outcome.against}')}{_limit_in_words(outcome)}"
    console.print(f"  {word}: {what}: {shown}", style=style)


def _limit_in_words(outcome: Outcome) -> str:
    """Return which of two things that are wanted applied, and why; nothing where there is only one."""
    original = outcome.instead_of
    if original is not None:
        assert original.yardstick is not None
        return (
            f"; the processor is the limit: {outcome.against} itself reaches {_times(original.yardstick, f' of {original.against}')}, "
            f"not {_number(original.wanted.limit)}, so its own rate counts"
        )
    if outcome.wanted.instead is not None and outcome.yardstick is not None:
        return f"; {outcome.wanted.instead.against[0]} reaches {_number(outcome.yardstick.median)} times"
    return ""


def _times(found: Spread, what: str = "") -> str:
    spread = f" ({_number(found.low)}-{_number(found.high)})" if found.low != found.high else ""
    return f"{_number(found.median)} times{what}{spread}"


def _beside_in_words(beside: Beside) -> str:
    if beside.rate is None or beside.cpu is None:
        return "no figures"
    return f"rate {_times(beside.rate)}, CPU {_times(beside.cpu)}"


def _described(wanted: Wanted) -> str:
    names = {"rate": "rate", "cost": "time an operation", "cpu": "CPU time an operation", "peak": "memory"}
    names |= {"late p99": "late more than beside, p99", "late max": "late more than beside, at worst"}
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
    """Return one row for `json.dumps`."""
    return {
        "row": result.row.name,
        "title": result.row.title,
        "piece_bytes": result.piece,
        "tasks": result.row.tasks,
        "contenders": [_contender_as_json(each, result) for each in result.results],
        "wanted": [_outcome_as_json(outcome) for outcome in result.outcomes()],
        "better_peers": [winner._asdict() for winner in result.winners()],
        "beside": [
            {"ours": each.ours, "build": each.build, "rate": _spread_as_json(each.rate), "cpu": _spread_as_json(each.cpu)}
            for each in result.beside()
        ],
    }


def _contender_as_json(result: Result, row: RowResult) -> dict[str, Any]:
    late, beside = result.late(), result.late_beside()
    return {
        "name": result.contender.name,
        "loop": result.contender.loop,
        "ours": result.contender.ours,
        "build": result.contender.build,
        "rounds": len(result.rounds),
        "rate": _spread_as_json(Spread.of(result.rates())),
        "cpu_seconds": _spread_as_json(Spread.of(result.cpus())),
        "checkpoints": _spread_as_json(row.checkpoints(result)),
        "late_seconds": {"p99": late[0], "max": late[1]} if late is not None else None,
        "late_seconds_beside": {"p99": beside[0], "max": beside[1]} if beside is not None else None,
        "peak_bytes": result.peak or None,
        "waited_for_processor": result.waited,
        "left_out": result.failed.reason if result.failed is not None else None,
        "failed": result.failed is not None and not result.failed.unavailable,
    }


def _spread_as_json(spread: Spread | None) -> dict[str, float] | None:
    return None if spread is None else {"median": spread.median, "low": spread.low, "high": spread.high}


def _outcome_as_json(outcome: Outcome) -> dict[str, Any]:
    wanted, original = outcome.wanted, outcome.instead_of
    return {
        "measure": wanted.measure,
        "ours": wanted.ours,
        "against": outcome.against,
        "at_least": wanted.limit if wanted.at_least else None,
        "at_most": None if wanted.at_least else wanted.limit,
        "found": _spread_as_json(outcome.found),
        "reached": outcome.reached,
        "not_known_because": outcome.why_not or None,
        "yardstick": _spread_as_json(outcome.yardstick),
        "instead_of": _outcome_as_json(original) if original is not None else None,
    }
