"""What the doctor found, as an object, as text and as JSON.

The other modules fill in a `Report`; a field that stays None could not be found out. Names in the JSON are those of the fields.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ("Report", "Tried", "Waits")


@dataclass
class Tried:
    """How many trials of one kind of request showed that it is asynchronous."""

    asynchronous: int = 0
    tries: int = 0
    error: str | None = None
    """What ended the trials early."""

    @property
    def verdict(self) -> str:
        """The result in a few words."""
        if self.error is not None:
            return self.error
        if not self.tries:
            return "unknown: the machine is too busy"
        if self.asynchronous in (0, self.tries):
            return "yes" if self.asynchronous else "no"
        return f"yes, seen in {self.asynchronous} of {self.tries} tries"


@dataclass
class Waits:
    """In how many trials `io_submit` slept before it returned."""

    slept: int = 0
    tries: int = 0
    error: str | None = None
    """What ended the trials early."""

    @property
    def always(self) -> bool:
        """Whether it slept in most trials: then it was not by accident."""
        return self.slept > self.tries / 2

    @property
    def verdict(self) -> str:
        """The result in a few words."""
        if self.error is not None:
            return self.error
        return f"yes, in {self.slept} of {self.tries} tries" if self.slept else "no"


@dataclass
class Report:
    """What was found. None: it could not be found out."""

    kernel: str = ""
    python: str = ""
    engine: Literal["aio", "workers"] | None = None
    engine_because: str = ""
    aio_nr: int | None = None
    aio_max_nr: int | None = None
    completions: Literal["ring", "io_getevents"] | None = None
    """How completions are taken: from the ring in user space, or by a system call."""
    path: str = ""
    filesystem: str | None = None
    mount_point: str | None = None
    device: str | None = None
    tried_on: str | None = None
    """The file of the trials, or "a temporary file"; None: nothing could be tried."""
    not_tried_because: str | None = None
    direct: Literal["accepted", "ignored", "refused"] | None = None
    """What becomes of O_DIRECT; ignored: the page cache is used all the same."""
    alignment_offset: int | None = None
    alignment_memory: int | None = None
    alignment_enforced: bool | None = None
    """Whether a direct read that is not aligned is an error."""
    requests: dict[str, Tried] = field(default_factory=dict)
    waits: dict[str, Waits] = field(default_factory=dict)
    """Where `io_submit` sleeps, for one request and for many."""
    nowait: dict[str, bool | None] = field(default_factory=dict)
    cached_reads: Literal["RWF_NOWAIT", "cachestat", "mincore", "workers"] | None = None
    """How the event loop's thread sees that bytes are in the page cache; workers: it does not read."""
    cachestat: bool = False
    names: Literal["inline", "workers"] | None = None
    """Which lane answers for names that the kernel has in memory."""
    advice: list[str] = field(default_factory=list)

    @property
    def status(self) -> int:
        """The exit status: 0 if native AIO is used."""
        return 0 if self.engine == "aio" else 1

    def as_json(self) -> dict[str, Any]:
        """Return the report for `json.dumps`."""
        requests = {name: asdict(tried) | {"verdict": tried.verdict} for name, tried in self.requests.items()}
        waits = {name: asdict(found) | {"verdict": found.verdict} for name, found in self.waits.items()}
        return {"version": 1, **asdict(self), "requests": requests, "waits": waits, "status": self.status}

    def lines(self) -> Iterator[str]:
        """Return the report as lines of text."""
        yield _row("kernel", f"{self.kernel}, Python {self.python}")
        yield _row("engine", f"{self.engine or 'none'}: {self.engine_because}")
        yield _row("fs.aio-nr", f"{_shown(self.aio_nr)} of {_shown(self.aio_max_nr)} (fs.aio-max-nr)")
        if self.completions is not None:
            how = {"ring": "from the ring, without a system call", "io_getevents": "by io_getevents"}
            yield _row("completions", how[self.completions])
        yield _row("cachestat", _yes(self.cachestat))
        yield ""
        yield _row("path", self.path)
        yield _row("filesystem", f"{self.filesystem or 'unknown'} on {self.device}, mounted at {self.mount_point}")
        yield _row("tried on", self.tried_on or "nothing")
        if self.names is not None:
            yield _row("names in memory", "answered inline" if self.names == "inline" else "answered by workers")
        yield _row("O_DIRECT", self._direct_in_words())
        for name, answer in self.nowait.items():
            yield _row(f"RWF_NOWAIT, {name}", _yes(answer))
        if self.cached_reads is not None:
            yield _row("cached reads", "by workers" if self.cached_reads == "workers" else f"inline, by {self.cached_reads}")
        for name, tried in self.requests.items():
            yield _row(f"asynchronous: {name}", tried.verdict)
        for name, waits in self.waits.items():
            yield _row(f"io_submit waits: {name}", waits.verdict)
        if any("write" in name for name in self.waits):
            yield _row("io_submit waits: writes to a frozen filesystem", "yes, always: a thread calls it")
        yield ""
        if not self.advice:
            yield "Nothing is wrong."
        for line in self.advice:
            yield f"- {line}"

    def _direct_in_words(self) -> str:
        if self.direct is None and self.alignment_offset is None:
            return "not tried"
        text: str = self.direct or "accepted; whether it takes effect cannot be seen"
        if self.alignment_offset is not None and self.direct != "ignored":
            text += f"; offsets and sizes in multiples of {self.alignment_offset} bytes, memory of {self.alignment_memory}"
            text += " (that of aligned_buffer() is; other memory is copied)"
            if self.alignment_enforced is False:
                text += ", but others are accepted too"
        return text


def _row(name: str, text: str) -> str:
    return f"{name:<52}{text}"


def _shown(number: int | None) -> str:
    return "unknown" if number is None else str(number)


def _yes(answer: bool | None) -> str:
    return "unknown" if answer is None else "yes" if answer else "no"
