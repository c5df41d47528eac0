"""Rows of the table, from what was measured; as text, JSON and a picture."""
import os
import platform
from pathlib import Path

from bench.engines import ENGINES, OURS
from fastbp.profile import time_text

LIMITS = {"multiply-adds": "fma", "copy": "copy"}


def show_time(seconds):
    """Three digits and a unit, or a dash."""
    return "-" if seconds is None else time_text(seconds)


def rows_of(result):
    """One row for what is called step by step, one for the loop where the workload has it.

    A time is the best of the rounds. The peers of a call are all that are called step by step; the
    peers of a loop are all.
    """
    best = {name: min(seconds) for name, seconds in result.seconds.items()}
    rows = []
    loop = result.workload.loop
    for ours, by in zip(OURS, ("step" if loop else "call", loop), strict=True):
        if ours not in best:
            continue
        peers = {name: best[name] for name in ENGINES if name in best and name not in OURS
                 and (ours == "fastbp loop" or ENGINES[name][1] == "call")}
        peer = min(peers, key=peers.get, default=None)
        kind, seconds = result.limit or (None, None)
        rows.append({
            "workload": result.workload.name, "title": result.workload.title, "by": by, "seconds": best[ours],
            "peers": peers, "best_peer": peer, "ratio": peer and peers[peer] / best[ours],
            "alone": min(result.alone[ours]) if ours in result.alone else None,
            "limit": kind, "limit_seconds": seconds, "share_of_limit": kind and seconds / best[ours],
            "apart": max((d for name, d in result.apart.items() if name in (ours, *peers)), default=None),
            "rounds": {name: result.seconds[name] for name in (ours, *peers)},
        })
    return rows


class Table:
    """The table as text, a line at a time."""

    def __init__(self, engines, titles, threads=1):
        self.threads = threads
        self.peers = [name for name in ENGINES if name in engines and name not in OURS]
        self.width = max(map(len, titles))

    def line(self, title, by, cells, peer, ratio, share, apart, gain):
        times = "".join(f" {cell:>{max(8, len(name)) + 1}}" for name, cell in zip(["fastbp", *self.peers], cells,
                                                                              strict=True))
        return f"{title:<{self.width}} {by:<6}{times}  {peer:<13} {ratio:>6} {share:>9} {apart:>6}" + (
            f" {gain:>11}" if self.threads > 1 else "")

    def head(self):
        line = self.line("workload", "by", ["fastbp", *self.peers], "best peer", "ratio", "limit", "apart",
                         "of 1 thread")
        return f"{line}\n{'-' * len(line)}"

    def row(self, row):
        cells = [show_time(t) for t in (row["seconds"], *map(row["peers"].get, self.peers))]
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
        share = "-" if row["limit"] is None else f"{row['share_of_limit']:.0%} {LIMITS[row['limit']]}"
        apart = "-" if row["apart"] is None else f"{row['apart']:.0e}"
        gain = "-" if row["alone"] is None else f"{row['alone'] / row['seconds']:.2f}"
        return self.line(row["title"], row["by"], cells, row["best_peer"] or "-", ratio, share, apart, gain)


LEGEND = """\
ratio: the best peer's time / fastbp's. limit: the least time that the hardware needs / fastbp's. fma: of the
multiply-adds, at the rate of the best matrix product; copy: of what must be read and written, at the rate of a
copy. apart: the largest relative distance of any engine's loss (and gradients, where these are the result) from
the same steps in float64. of 1 thread: fastbp's time with one thread, on the same cores / its time."""


def machine(cores):
    """What the numbers were measured on."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    return {"cpu": model, "system": f"{platform.system()} {platform.machine()}", "python": platform.python_version(),
            "threads": len(cores), "pinned": hasattr(os, "sched_setaffinity")}


def plot(rows, path):
    """The ratio of each row as a bar, on a logarithmic axis."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    rows = [row for row in rows if row["ratio"]][::-1]
    figure, axes = pyplot.subplots(figsize=(9, 1 + 0.3 * len(rows)), layout="constrained")
    for i, row in enumerate(rows):
        ratio = row["ratio"]
        axes.barh(i, ratio - 1, left=1, color="tab:blue" if ratio >= 1 else "tab:red")
        axes.annotate(f"{ratio:.2f}  {row['best_peer']}", (max(ratio, 1), i), xytext=(4, 0),
                      textcoords="offset points", va="center")
    axes.set_yticks(range(len(rows)), [f"{row['title']}, {row['by']}" for row in rows])
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.margins(x=0.3, y=0.01)
    axes.set_xlabel("best peer's time / fastbp's")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
