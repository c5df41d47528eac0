"""Pass: stages one behind the other run together, tile by tile, so that values stay in the cache.

Elementwise stages of one size do, and so do those behind a matrix product: they run on a strip of
its rows while that is in the cache: the activation of a layer, whose bias the product adds itself, the
mask of a gradient, or the update of the weights.
"""
from fastbp.gates.reduction import LANES, QUARTER
from fastbp.planner.arena import TILE, group_ends, lives
from fastbp.planner.plan import EACH, Group, Memories, Stage
from fastbp_ext.gate import Columns, Combine
from fastbp_ext.tensor import abstract_tensor

PARTIAL = ("blocks", "columns")    # the first step of a reduction: it reads the group's elements, and writes others

_SMALL = 4 * TILE     # elements: such values lie in the L1 cache as they are
_ROWS = 48            # of a strip: as fast as the whole product, and its result stays in the caches
_STRIPS = 4           # at least
_WHOLE = 768          # rows: whole strips and whole quarters
_SHARES = 4           # of whole quarters, at least
_LARGE = 1 << 16      # elements: smaller results stay in the L2 cache whole
_SHARED = 1 << 19     # bytes of the matrix that each strip reads, so that it stays there too


def fuse(plan):
    """Groups of stages; what is made and read within one takes the memory of a tile.

    A sum over the rows of what strips make, a bias's gradient, comes in two steps: sums of a few
    rows, strip by strip, and behind the group their sum.
    """
    memory = Memories(plan)
    group, groups, views, stages, second = None, [], [], [], []
    for stage in plan.stages:
        if second and {id(s.outputs[0]) for s in second} & {id(t) for t in stage.inputs}:
            group = None
        if group is None:
            stages += second
            second = []
        if stage.form == "view":    # no instruction: it may stand between two stages of a group
            views.append(stage)
            stages.append(stage)
            continue
        if group is not None and _is_sum_of_rows(group, stage):
            second.append(stage)
            stage = _first_step(stage)
        elif group is None or not _joins(memory, group, stage):
            group, views = _begun_by(memory, stage), []
            stages += second
            second = []
            if group is not None:
                groups.append(group)
        stages.append(stage)
        if group is not None:
            group.stages += [*views, stage]
            views = []
            if stage.form in PARTIAL:
                group.grain = TILE if stage.form == "blocks" else _WHOLE
            else:
                group.written.update(memory.of(t) for t in stage.writes)
            group.elsewhere.update(memory.of(t) for t in stage.inputs
                                   if stage.form == "product" or not _is_whole(group, t))
    plan.stages = stages + second
    for group in groups:
        if len(group.stages) > 1:
            for stage in group.stages:
                stage.group = group
    _find_tiled(plan)


def _begun_by(memory, stage):
    """The group that a stage begins, or None."""
    if stage.form == "product":
        if heads_strips(stage):
            y = stage.outputs[0]
            return Group(y.size, _ROWS, _ROWS * y.shape[1], strips=True)
    elif stage.form in EACH and stage.outputs[0].size > _SMALL:
        y = stage.outputs[0]
        group = Group(y.size, TILE, TILE, False, None if y.is_contiguous else (y.shape, y.strides))
        return group if _joins(memory, group, stage) else None
    return None


def heads_strips(product):
    """Whether a product runs in strips of rows, for those behind it."""
    y, w = product.outputs[0], product.inputs[1]
    return (y.ndim == 2 and y.size > _LARGE and y.shape[0] >= _STRIPS * _ROWS
            and w.size * w.dtype.itemsize <= _SHARED)


def _is_whole(group, t):
    """t shows all of its memory in the order in which the group walks."""
    return t.size == group.size and t._offset == 0 and t._root.size == t.size and in_order(group, t)


def in_order(group, t):
    """Whether t's elements lie one behind the other as the group walks them."""
    return t.is_contiguous if group.order is None else (t.shape, t.strides) == group.order and not t._repeating


def _joins(memory, group, stage):
    """Whether a stage may run with the group: no memory that they write is read at another place."""
    if stage.form == "blocks":
        return not group.strips and _is_whole(group, stage.inputs[0])
    if group.strips and not any(memory.of(t) in group.written for t in stage.inputs):
        return False    # the product is made in strips for those who read it
    writes = {memory.of(t) for t in stage.writes}
    if stage.form == "update":    # of memory that others own: what shares it in part is read at another place
        return (bool(writes) and not writes & (group.elsewhere | group.written) and not writes & memory.partly
                and walks_in_order(group, stage))
    return (stage.form in EACH and _is_whole(group, stage.outputs[0]) and not writes & group.elsewhere
            and all(_is_whole(group, t) or memory.of(t) not in group.written | writes for t in stage.inputs))


def _is_sum_of_rows(group, stage):
    """A sum over the rows of what strips make, of so many rows that threads can share them in whole quarters."""
    x = stage.inputs[0]
    return (group.strips and stage.form == "reduce" and stage.what.kernel == "sum" and _is_whole(group, x)
            and x.ndim == 2 and x.shape[0] >= _SHARES * _WHOLE and tuple(stage.params["axes"]) == (0,)
            and x.shape[1] > 1)


def _first_step(stage):
    """The first step of a sum over rows, made a stage; the stage becomes the second."""
    x, rows = stage.inputs[0], stage.inputs[0].shape[0]
    lanes = abstract_tensor((-(-rows // QUARTER), LANES, x.shape[1]), x.dtype)
    first = Stage.made(Columns(stage.what), (lanes,), (x,), stage.undoes)
    stage.what, stage.inputs = Combine(stage.what, rows if stage.what.averages else 1.0), (lanes,)
    return first


def walks_in_order(group, update):
    """Whether an update walks its tensors' memory from the first element on; they may be transposed, all alike."""
    g = update.inputs[0]
    return (g.size == g._root.size == group.size and g._root.is_contiguous and all(step >= 0 for step in g.strides)
            and all(t.shape == g.shape and t.strides == g.strides for t in update.outputs))


def _find_tiled(plan):
    """What is made and dies within a group."""
    ends = group_ends(plan.stages)
    made = {id(plan.owner(t)): stage.group for stage in plan.stages if stage.group is not None for t in stage.writes}
    for home, first, last in lives(plan).values():
        if made.get(id(home)) is not None:
            start, stop = ends[made[id(home)]]
            if start <= first and last <= stop:
                plan.tiled[id(home)] = made[id(home)]
