"""From recorded stages to a program: passes, each in a file of its own, then the arena.

A pass takes a `Plan` and changes it; each can be switched off by name
(`FASTBP_PASSES_OFF=dead,in_place`), and each leaves the bits as they were.
"""
import os

from fastbp.planner.advance import advance
from fastbp.planner.arena import bytes_of, lay_out, lives
from fastbp.planner.constant import constant
from fastbp.planner.dead import dead
from fastbp.planner.fold import fold
from fastbp.planner.fuse import fuse
from fastbp.planner.in_place import in_place
from fastbp.planner.join import join
from fastbp.planner.multiply_add import multiply_add
from fastbp.planner.plan import Plan
from fastbp.planner.pool_relu import pool_relu
from fastbp.planner.postpone import postpone
from fastbp.planner.same import same
from fastbp.planner.split import split
from fastbp.planner.verify import verify

PASSES = {"dead": dead, "constant": constant, "same": same, "fold": fold, "join": join,
          "multiply_add": multiply_add, "pool_relu": pool_relu, "advance": advance, "split": split,
          "postpone": postpone, "in_place": in_place, "fuse": fuse}


def plan(recording):
    """The plan of a recording, after all passes, with an offset for every buffer."""
    made = Plan(recording)
    made.whole_size = sum(bytes_of(made, home) for home, _, _ in lives(made).values())
    verify(made)
    off = os.environ.get("FASTBP_PASSES_OFF", "").split(",")
    for name, change in PASSES.items():
        if name not in off:
            change(made)
            verify(made)
    lay_out(made)
    verify(made)
    return made


__all__ = ["PASSES", "Plan", "plan"]
