"""Pass: a max pool takes in the ReLU before it, and its gradient the ReLU's mask."""
from functools import partial

from fastbp.planner.dead import drop
from fastbp.planner.plan import moved, place_of
from fastbp_ext.tensor import view_of


def pool_relu(plan):
    """A ReLU whose values only a max pool needs is computed by the pool, as it reads x.

    Where the pool gives 0, its gradient gives nothing: just what the mask holds back.
    """
    readers = {}
    for stage in plan.stages:
        for t in stage.inputs if stage.form != "view" else ():
            readers.setdefault(id(t._root), []).append(stage)
    moves, gone = {}, set()
    for stage in plan.stages:
        if stage.name != "relu" or stage.form != "elementwise" or id(stage.outputs[0]) in plan.fixed:
            continue
        (x,), (y,) = stage.inputs, stage.outputs
        uses = readers.get(id(y), [])
        pools, back, masks = [[s for s in uses if s.name == name and s.form in ("windows", "elementwise")]
                              for name in ("max_pool", "max_pool_input", "relu_grad")]
        if (not pools or len(back) != len(masks) or len(uses) > 1 + 2 * len(back)
                or plan.owner(x) is None or not _lie_alike(x, y)
                or not all(map(partial(_is_gradient, plan, readers, y), back, masks))):
            continue
        for pool, k in (*((s, 0) for s in pools), *((s, 1) for s in back)):
            shown = view_of(x, pool.inputs[k].shape, pool.inputs[k].strides, pool.inputs[k]._offset)
            pool.inputs = (*pool.inputs[:k], shown, *pool.inputs[k + 1:])
            pool.params = {**pool.params, "window": pool.params["window"]._replace(relu=True)}
        plan.within[id(y)] = pools[0]
        gone.add(stage)
        for pool, mask in zip(back, masks, strict=True):
            plan.within[id(mask.outputs[0])] = pool
            moves[id(mask.outputs[0])] = pool.outputs[0]
            gone.add(mask)
    for stage in plan.stages:
        stage.inputs = tuple([moved(t, moves) for t in stage.inputs])
    drop(plan, lambda stage: stage not in gone)


def _is_gradient(plan, readers, y, pool, mask):
    """Whether a pool's gradient goes to the mask of the ReLU that made y alone, and both lie as y does."""
    dx, (dy, by), z = pool.outputs[0], mask.inputs, mask.outputs[0]
    return (readers[id(dx)] == [mask] and dy._root is dx and place_of(by) == place_of(y)
            and dy._offset == 0 and _lie_alike(dy, y) and _lie_alike(z, y) and not {id(dx), id(z)} & plan.fixed)


def _lie_alike(a, b):
    """Whether what views of one of two memories show, the same views of the other show in the same places."""
    return a.shape == b.shape and all(n == 1 or s == t for n, s, t in zip(a.shape, a.strides, b.strides, strict=True))
