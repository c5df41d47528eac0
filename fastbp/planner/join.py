"""Pass: two gates that a kernel computes in one sweep run together, where the first of them stands."""
from fastbp.planner.plan import Stage


def join(plan):
    """Pairs that have a kernel for both (`Joint`), where what the second needs is there when the first runs.

    These are a gate and its gradient, whose dy is a constant or given from outside; or two gradients of one gate.
    """
    known = {*plan.constants, *(id(t._root) for t in plan.inputs)}
    firsts, joined = {}, set()    # (a gate, what its inputs begin with): the place of its stage
    for n, stage in enumerate(plan.stages):
        joint = getattr(stage.what, "joint", None)
        ids = tuple(map(id, stage.inputs))
        firsts.update(((id(stage.what), *ids[:k + 1]), n) for k in range(len(ids) if joint is None else 0))
        at = firsts.get((id(joint.first), *map(id, joint.first_inputs(*stage.inputs)))) if joint is not None else None
        if at is None or plan.stages[at].params != stage.params:
            continue
        first = plan.stages[at]
        if all(id(t._root) in known or any(t is x for x in first.inputs) for t in stage.inputs):
            plan.stages[at] = Stage.made(joint, (*first.outputs, *stage.outputs),
                                         max(stage.inputs, first.inputs, key=len), first.undoes)
            plan.stages[at].params = stage.params
            joined.add(stage)
    plan.stages = [s for s in plan.stages if s not in joined]
