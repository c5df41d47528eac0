"""Profile: for each stage of a program how long it takes, and how near it comes to the machine's limits."""
from math import prod
from typing import NamedTuple

from fastbp import machine
from fastbp.limits import copy, multiply_adds
from fastbp.planner.listing import Listing

# Operations for each element; all other stages but products count one.
_OPERATIONS = {"mul_add": 2, "sgd": 4, "momentum": 7, "adam": 15}
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
                    f"{_count(row.flop):>8} {_count(row.bytes):>8} {_rate(row.flop, row.seconds):>8}")
            lines.append(line + (f" {row.share:>6.0%} {row.limit}" if row.limit else ""))
        lines.append(f"{whole:<{width}} {time_text(self.seconds):>9} {'':>5} {_count(self.flop):>8} {'':>8} "
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
    rows = []
    for (stage, code, python), text in zip(about.spans, Listing(about.recording, about.plan).texts, strict=True):
        if stage.form == "view":    # no instruction
            continue
        seconds = sum(times[k] for k in code) + sum(times[calls + k] for k in python)
        flop, moved = _flop(stage), _bytes(stage)
        rate = 2 * multiply_adds(dtype=_dtype(stage), numpy=False)
        limits = (flop / rate, "fma"), (_copy_seconds(moved), "copy")
        limit, name = max(limits) if moved and stage.form != "call" and seconds > 0 else (0.0, "")
        rows.append(Row(text, seconds, flop, moved, name, limit / seconds if name else 0.0))
    return rows


def _flop(stage):
    """2 m n k for a product, an optimizer's formula, else one operation for each element of the largest operand."""
    if stage.form == "product":
        return stage.outputs[0].size * (2 * stage.inputs[0].shape[-1] + len(stage.inputs) - 2)    # + a bias
    if stage.form in ("call", "copy", "assign", "take", "place", "join", "convert"):
        return 0
    elements = max([t.size for t in (*stage.outputs, *stage.inputs)], default=1)
    return elements * _OPERATIONS.get(stage.name, 1)


def _bytes(stage):
    """What must be read and written: each element of memory once; a broadcast operand is as large as its memory."""
    return sum(prod(n for n, step in zip(t.shape, t.strides, strict=True) if step or n == 1) * t.dtype.itemsize
               for t in (*stage.reads, *stage.writes))


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


def _count(n):
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n}"


def _rate(flop, seconds):
    return f"{flop / seconds / 1e9:.3g}" if flop and seconds > 0 else "-"
