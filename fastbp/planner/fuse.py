"""Passes: elementwise stages one behind the other run together, tile by tile, so that values stay in the L1 cache."""
from fastbp.planner.arena import TILE, group_ends, lives
from fastbp.planner.plan import Group, Stage
from fastbp_ext.gate import Blocks, Combine
from fastbp_ext.tensor import abstract_tensor


def split(plan):
    """A reduction over all of a large tensor is one of its blocks, which can join a group, and one of their results."""
    stages = []
    for stage in plan.stages:
        x, y = stage.inputs[0] if stage.inputs else None, stage.outputs[0] if stage.outputs else None
        if stage.form == "reduce" and y.size == 1 and x.size > TILE and x.is_contiguous:
            partial = abstract_tensor((-(-x.size // TILE),), x.dtype)
            stages.append(Stage.made(Blocks(stage.what), (partial,), (x,), stage.undoes))
            stage.what, stage.inputs = Combine(stage.what, x.size if stage.what.averages else 1.0), (partial,)
        stages.append(stage)
    plan.stages = stages


_PATIENT = ("elementwise", "blocks", "reduce", "combine", "view")


def postpone(plan):
    """Reductions wait until their result is needed, so that the elementwise stages around them come together."""
    stages, waiting, results = [], [], set()
    for stage in plan.stages:
        needed = any(id(t._root) in results for t in stage.inputs)
        if waiting and (needed or stage.form not in _PATIENT):
            stages += waiting
            waiting, results = [], set()
        if stage.form in ("reduce", "combine"):
            waiting.append(stage)
            results.add(id(stage.outputs[0]))
        else:
            stages.append(stage)
    plan.stages = stages + waiting


def fuse(plan):
    """Groups of stages; what is made and read within one takes the memory of a tile."""
    group, groups, views = None, [], []
    for stage in plan.stages:
        if stage.form == "view":    # no instruction: it may stand between two stages of a group
            views.append(stage)
            continue
        if group is None or not _joins(plan, group, stage):
            group = Group(stage.outputs[0].size if stage.outputs and stage.form == "elementwise" else 0)
            views = []
            if group.size <= TILE or not _joins(plan, group, stage):
                group = None
                continue
            groups.append(group)
        group.stages += [*views, stage]
        views = []
        if stage.form == "elementwise":
            group.written.add(id(plan.owner(stage.outputs[0])))
        group.elsewhere.update(id(plan.owner(t)) for t in stage.inputs
                               if plan.owner(t) is not None and not _is_whole(group, t))
    for group in groups:
        if len(group.stages) > 1:
            for stage in group.stages:
                stage.group = group
    _find_tiled(plan)


def _is_whole(group, t):
    """t shows all of its memory in the order in which the group walks."""
    return t.is_contiguous and t.size == group.size and t._offset == 0 and t._root.size == t.size


def _joins(plan, group, stage):
    """Whether a stage may run with the group: no memory that they write is read at another place."""
    if stage.form == "blocks":
        return _is_whole(group, stage.inputs[0])
    if stage.form != "elementwise" or not _is_whole(group, stage.outputs[0]):
        return False
    written = group.written | {id(plan.owner(stage.outputs[0]))}
    return id(plan.owner(stage.outputs[0])) not in group.elsewhere and all(
        _is_whole(group, t) or id(plan.owner(t)) not in written for t in stage.inputs if plan.owner(t) is not None)


def _find_tiled(plan):
    """What is made and dies within a group."""
    ends = group_ends(plan.stages)
    made = {id(plan.owner(t)): stage.group for stage in plan.stages if stage.group is not None for t in stage.writes}
    for home, first, last in lives(plan).values():
        if made.get(id(home)) is not None:
            start, stop = ends[made[id(home)]]
            if start <= first and last <= stop:
                plan.tiled[id(home)] = made[id(home)]
