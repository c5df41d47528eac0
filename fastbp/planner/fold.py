"""Pass: copies that only change how values lie are dropped, where their reader can walk the original.

A transpose or a broadcast is a view and costs nothing; a reshape of one, and a gate that wants
its rows dense, first copy. What reads the copy once can mostly read the original in its own order.
"""
from fastbp.planner.dead import drop
from fastbp_ext.tensor import view_of


def fold(plan):
    """Readers of a copy read a view of what was copied."""
    readers = {}
    for n, stage in enumerate(plan.stages):
        for k, t in enumerate(stage.inputs if stage.form != "view" else ()):
            readers.setdefault(id(t._root), []).append((n, k, t))
    folded = set()
    for n, stage in enumerate(plan.stages):
        if stage.form != "copy" or id(stage.outputs[0]) in plan.fixed:
            continue
        x, uses = stage.inputs[0], readers.get(id(stage.outputs[0]), [])
        if not uses or not x.size or len(uses) > 1 and not x._repeating:
            continue
        if not x._abstract and plan.changes(n, uses[-1][0]):
            continue
        views = [_through(t, x) for _, _, t in uses]
        if all(v is not None and _walks(plan.stages[m], k, v) for (m, k, _), v in zip(uses, views, strict=True)):
            for (m, k, _), view in zip(uses, views, strict=True):
                inputs = plan.stages[m].inputs
                plan.stages[m].inputs = (*inputs[:k], view, *inputs[k + 1:])
                readers.setdefault(id(view._root), []).append((m, k, view))
            folded.add(stage)
    drop(plan, lambda stage: stage not in folded)


def _through(t, x):
    """The view of x that shows what t, a view of a copy of x in C order, shows; or None.

    Dimensions of x that lie one behind the other are taken together first; then each step of t
    has to be a multiple of the step of one dimension, and to stay inside it.
    """
    item = x.dtype.itemsize
    dims = []    # (size, step in x, in bytes, step in the copy, in elements)
    step = x.size
    for size, stride in zip(x.shape, x.strides, strict=True):
        step //= size or 1
        if size == 1:
            continue
        if dims and dims[-1][1] == stride * size:
            dims[-1] = (dims[-1][0] * size, stride, step)
        else:
            dims.append((size, stride, step))
    place, rest = [], t._offset // item
    for _, _, step in dims:
        place.append(rest // step)
        rest %= step
    reach = [[at, at] for at in place]    # the places in each dimension of x that t reaches
    strides = []
    for size, stride in zip(t.shape, t.strides, strict=True):
        elements = stride // item
        d = next((d for d, (_, _, step) in enumerate(dims) if step <= abs(elements)), None)
        if size == 1 or stride == 0:
            strides.append(0)
            continue
        if d is None or elements % dims[d][2]:
            return None
        steps = elements // dims[d][2]
        reach[d][0 if steps < 0 else 1] += steps * (size - 1)
        strides.append(steps * dims[d][1])
    if any(low < 0 or high >= dims[d][0] for d, (low, high) in enumerate(reach)):
        return None
    return view_of(x, t.shape, strides, sum(at * d[1] for at, d in zip(place, dims, strict=True)))


def _walks(stage, k, x):
    """Whether input k of a stage can be read as x lies; these are the rules of fastbp_ext/lower.pyx."""
    if stage.form in ("elementwise", "convert", "copy", "join", "place", "reduce", "reduce one", "assign"):
        return True
    if stage.form == "product":
        return any(x.shape[d] == 1 or x.strides[d] == x.dtype.itemsize for d in (-2, -1))
    if stage.form == "rows" and x.dtype.kind == "f":
        whole = x.ndim == max(t.ndim for t in (*stage.outputs, *stage.inputs))
        rows = [(n, step) for n, step in zip(x.shape, x.strides, strict=True)][:x.ndim - whole]
        rows = [(n, step) for n, step in rows if n != 1]
        even = all(a == n * b for (_, a), (n, b) in zip(rows, rows[1:], strict=False))
        return even and (not whole or x.shape[-1] == 1 or x.strides[-1] == x.dtype.itemsize)
    return stage.form == "take" and k == 0
