"""Pass: a stage that goes element by element writes over an input that nobody needs after it."""
from fastbp.planner.plan import EACH, place_of


def in_place(plan):
    """Where the output and a dying input have one layout and size, they share memory."""
    last = {}
    for n, stage in enumerate(plan.stages):
        for t in stage.reads:
            last[id(t._root)] = n
    for n, stage in enumerate(plan.stages):
        if not _reads_first(stage) or id(stage.outputs[0]._root) in plan.fixed:
            continue
        y = stage.outputs[0]
        for x in stage.inputs:
            if _dies_here(plan, x, last, n) and _fits(y, x) and all(
                    other is x or plan.owner(other) is not plan.owner(x) or place_of(other) == place_of(x)
                    for other in stage.inputs):
                home = plan.owner(x)
                plan.shares[id(y)] = home
                last[id(home)] = max(last.get(id(home), n), last.get(id(y), n))
                break


def _reads_first(stage):
    """Whether an element of an input as large as the output is read last where its place is written."""
    return (stage.form in (*EACH, "scan")
            or stage.name == "max_pool_input" and stage.form == "windows" and stage.params["window"].cuts)


def _dies_here(plan, x, last, n):
    home = plan.owner(x)
    return home is not None and id(home) not in plan.fixed and last[id(home)] == n


def _fits(y, x):
    """x shows all of its memory as y shows its own, element for element."""
    return (x.dtype == y.dtype and x.shape == y.shape and x.strides == y.strides
            and x._root.size == x.size and not x._repeating)
