"""Pass: a gate and its gradient run in one sweep, where the gradient of its result is known before."""
from fastbp.planner.plan import Stage


def join(plan):
    """Pairs that have a kernel for both (`Joint`), and whose dy is a constant or given from outside."""
    known = {*plan.constants, *(id(t._root) for t in plan.inputs)}
    forwards, joined = {}, set()
    for n, stage in enumerate(plan.stages):
        joint = getattr(stage.what, "joint", None)
        if joint is None:
            forwards[(id(stage.what), *map(id, stage.inputs))] = n
            continue
        dy, *inputs = stage.inputs
        at = forwards.get((id(joint.forward), *map(id, inputs)))
        if at is not None and id(dy._root) in known and plan.stages[at].params == stage.params:
            forward = plan.stages[at]
            plan.stages[at] = Stage.made(joint, (*forward.outputs, *stage.outputs), stage.inputs, None)
            plan.stages[at].params = stage.params
            joined.add(stage)
    plan.stages = [s for s in plan.stages if s not in joined]
