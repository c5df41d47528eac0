"""Pass: elementwise stages one behind the other run together, tile by tile, so that values stay in the L1 cache."""
from fastbp.planner.arena import TILE, group_ends, lives
from fastbp.planner.plan import Group


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
