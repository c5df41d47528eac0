"""The check of a plan after every pass, and after it is laid out."""
from fastbp.planner.arena import bytes_of, lives
from fastbp.planner.fuse import PARTIAL, in_order, walks_in_order
from fastbp.planner.plan import Memories


def verify(plan):
    """RuntimeError where a stage reads what no stage wrote, or what was overwritten since.

    No stage writes to an input: a user's arrays are read only. In the arena no two buffers that
    are needed at one time overlap.
    """
    inputs = {id(t._root) for t in plan.inputs}
    holds = {}    # id of the memory's tensor: the recorded tensor whose values are in it
    for n, stage in enumerate(plan.stages):
        for t in stage.reads:
            root, home = t._root, plan.owner(t)
            if home is None or id(root) in inputs:
                continue
            if holds.get(id(home)) is not root:
                raise RuntimeError(f"plan: stage {n}, {stage!r}, reads {root!r}, which is not there")
        for t in stage.writes:
            home = plan.owner(t)
            if home is not None:
                if id(home) in inputs:
                    raise RuntimeError(f"plan: stage {n}, {stage!r}, writes to an input")
                holds[id(home)] = t._root
    for t in plan.results:
        home = plan.owner(t)
        if home is not None and id(t._root) not in inputs and holds.get(id(home)) is not t._root:
            raise RuntimeError(f"plan: the result {t!r} is not there at the end")
    groups = {stage.group for stage in plan.stages} - {None}
    if groups:
        memory = Memories(plan)
        for group in groups:
            _verify_group(memory, group)
    if plan.offsets:
        _verify_arena(plan)


def _verify_group(memory, group):
    """Memory that a group writes is read and written by its stages in the group's order, by a product only written."""
    written = {memory.of(y) for s in group.stages if s.form not in PARTIAL for y in s.writes}
    for stage in group.stages:
        for t in (*stage.writes, *stage.reads):
            whole = t.size == group.size and memory.of(t) not in memory.partly and (
                walks_in_order(group, stage) if stage.form == "update" else in_order(group, t) and t._offset == 0)
            if memory.of(t) in written and not (whole and (stage.form != "product" or t is stage.outputs[0])):
                raise RuntimeError(f"plan: {stage!r} is in a group that writes what it reads at other places")


def _verify_arena(plan):
    """Walk the stages: what is written must be free of what is still needed."""
    places = []
    for home, first, last in lives(plan).values():
        start = plan.offsets[id(home)]
        if start % 64 or start + bytes_of(plan, home) > plan.arena_size:
            raise RuntimeError(f"plan: {home!r} does not lie in the arena")
        places.append((first, last, start, start + bytes_of(plan, home)))
    places.sort()
    alive = []
    for first, last, start, stop in places:
        alive = [other for other in alive if other[1] >= first]
        if any(start < end and begin < stop for _, _, begin, end in alive):
            raise RuntimeError(f"plan: two buffers that are needed at stage {first} overlap")
        alive.append((first, last, start, stop))
