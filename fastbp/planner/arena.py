"""The arena: one block of memory in which buffers whose lives do not meet share places."""
import bisect

LINE = 64    # bytes: buffers begin on cache lines


def lives(plan):
    """For each recorded buffer its tensor, and the first and last stage that touch it."""
    found = {}
    for n, stage in enumerate(plan.stages):
        for t in (*stage.writes, *stage.reads):
            home = plan.owner(t)
            if home is not None and id(home) not in plan.fixed:
                first = found.get(id(home), (home, n, n))[1]
                found[id(home)] = (home, first, n)
    return found


def bytes_of(t):
    return -(-t.size * t.dtype.itemsize // LINE) * LINE or LINE


def lay_out(plan):
    """Give each buffer an offset: the largest first, each in the lowest gap that is free for its life."""
    placed = []    # (offset, end, first stage, last stage), ascending
    for home, first, last in sorted(lives(plan).values(), key=lambda life: -life[0].size * life[0].dtype.itemsize):
        size, at = bytes_of(home), 0
        for start, end, a, b in placed:
            if a <= last and first <= b:
                if at + size <= start:
                    break
                at = max(at, end)
        bisect.insort(placed, (at, at + size, first, last))
        plan.offsets[id(home)] = at
        plan.arena_size = max(plan.arena_size, at + size)
