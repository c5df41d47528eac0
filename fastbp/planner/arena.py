"""The arena: one block of memory in which buffers whose lives do not meet share places."""
import bisect

LINE = 64     # bytes: buffers begin on cache lines
TILE = 1024   # elements: FB_FUSED of fastbp_ext/kernels/abi.h


def group_ends(stages):
    """For each group the first and the last of its stages, by number."""
    ends = {}
    for n, stage in enumerate(stages):
        if stage.group is not None:
            ends[stage.group] = ends.get(stage.group, (n, n))[0], n
    return ends


def lives(plan):
    """For each recorded buffer its tensor, and the first and last stage that touch it.

    Stages of a group take turns, tile by tile: what one of them touches is in use from the first
    to the last, but for what lives for a tile only.
    """
    ends = group_ends(plan.stages)
    found = {}
    for n, stage in enumerate(plan.stages):
        for t in (*stage.writes, *stage.reads):
            home = plan.owner(t)
            if home is not None and id(home) not in plan.fixed:
                start, stop = (n, n) if stage.group is None or id(home) in plan.tiled else ends[stage.group]
                _, first, last = found.get(id(home), (home, start, stop))
                found[id(home)] = (home, min(first, start), max(last, stop))
    return found


def bytes_of(plan, t):
    """The bytes that a recorded buffer takes, in whole lines."""
    elements = min(t.size, plan.tiled[id(t)].tile) if id(t) in plan.tiled else t.size
    return -(-elements * t.dtype.itemsize // LINE) * LINE or LINE


def lay_out(plan):
    """Give each buffer an offset: the largest first, each in the lowest gap that is free for its life."""
    placed = []    # (offset, end, first stage, last stage), ascending
    for home, first, last in sorted(lives(plan).values(), key=lambda life: -bytes_of(plan, life[0])):
        size, at = bytes_of(plan, home), 0
        for start, end, a, b in placed:
            if a <= last and first <= b:
                if at + size <= start:
                    break
                at = max(at, end)
        bisect.insort(placed, (at, at + size, first, last))
        plan.offsets[id(home)] = at
        plan.arena_size = max(plan.arena_size, at + size)
