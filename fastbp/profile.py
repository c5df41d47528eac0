"""Profile: for each stage of a program how long it takes, and how near it comes to the machine's limits."""
from typing import NamedTuple

from fastbp import machine
from fastbp.limits import copy, multiply_adds
from fastbp.planner.cost import count_text
from fastbp.planner.listing import Listing

_UNITS = ((1, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))
_LEAST_BYTES = 1 << 12    # smaller stages are compared with the rate at which so much is copied


class Row(NamedTuple):
    """One stage, by one thread. flop: operations. bytes: what it reads and writes at least. limit: "fma" or
    "copy", whichever takes longer at the machine's rate; share: that time / the stage's, more than 1 where a stage
    reads more than it writes, which is cheaper than a copy, or fused stages find what they read in the L1 cache.
    """
    stage: str
    seconds: float
    flop: int
    bytes: int
    limit: str
    share: float


class Profile:
    """What `step.profile` returns: `rows`, and the seconds of a whole run, by all threads that it takes.

    Its str() is a table.
    """

    def __init__(self, rows, seconds, threads):
        self.rows, self.seconds, self.threads = rows, seconds, threads

    @property
    def flop(self):
        """The operations of a run."""
        return sum(row.flop for row in self.rows)

    def __str__(self):
        whole = "a whole run" if self.threads == 1 else f"a whole run, {self.threads} threads"
        width = max(len(text) for text in (whole, *(row.stage for row in self.rows)))
        total = sum(row.seconds for row in self.rows) or 1.0
        head = f"{'stage':<{width}} {'time':>9} {'part':>5} {'FLOP':>8} {'bytes':>8} {'GFLOP/s':>8} {'of the peak':>11}"
        lines = [head, "-" * len(head)]
        for row in self.rows:
            line = (f"{row.stage:<{width}} {time_text(row.seconds):>9} {row.seconds / total:>5.0%} "
                    f"{count_text(row.flop):>8} {count_text(row.bytes):>8} {_rate(row.flop, row.seconds):>8}")
            lines.append(line + (f" {row.share:>6.0%} {row.limit}" if row.limit else ""))
        lines.append(f"{whole:<{width}} {time_text(self.seconds):>9} {'':>5} {count_text(self.flop):>8} {'':>8} "
                     f"{_rate(self.flop, self.seconds):>8}")
        return "\n".join(lines)

    __repr__ = __str__


def profile_of(replay, times):
    """The Profile of a replay; `times` is what `Program.measure` returned."""
    with machine.one_thread():
        return Profile(_rows(replay, times), times[-1], replay.program.threads)


def _rows(replay, times):
    about = replay.about
    calls = replay.program.size[0]    # the times of stages of Python follow those of instructions
    seconds_of = {stage: sum(times[k] for k in code) + sum(times[calls + k] for k in python)
                  for stage, code, python in about.spans}
    rows = []
    for line in Listing(about.recording, about.plan).lines:
        stages = [s for s in line.stages if s.form != "view"]    # a view has no instruction
        if not stages:
            continue
        seconds = sum(seconds_of[s] for s in stages)
        rate = 2 * multiply_adds(dtype=_dtype(stages[-1]), numpy=False)
        limits = (line.flop / rate, "fma"), (_copy_seconds(line.bytes), "copy")
        limit, name = max(limits) if line.bytes and stages[0].form != "call" and seconds > 0 else (0.0, "")
        rows.append(Row(line.text, seconds, line.flop, line.bytes, name, limit / seconds if name else 0.0))
    return rows


def _copy_seconds(size):
    """Seconds that a copy of `size` bytes in all takes, at the rate of the next power of 4."""
    measured = _LEAST_BYTES
    while measured < size:
        measured *= 4
    return copy(min(measured, 1 << 28)) * size / min(measured, 1 << 28)


def _dtype(stage):
    found = [t.dtype.name for t in (*stage.outputs, *stage.inputs) if t.dtype.kind == "f"]
    return found[0] if found else "float32"


def time_text(seconds):
    """Three digits and a unit: 1.36 ms."""
    size, unit = next((u for u in _UNITS if seconds >= u[0]), _UNITS[-1])
    return f"{seconds / size:.3g} {unit}" if seconds / size < 999.5 else f"{seconds / size:.0f} {unit}"


def _rate(flop, seconds):
    return f"{flop / seconds / 1e9:.3g}" if flop and seconds > 0 else "-"
