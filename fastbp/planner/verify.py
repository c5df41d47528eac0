"""The check of a plan after every pass."""
from fastbp.planner.plan import reads, writes


def verify(plan):
    """RuntimeError where a stage reads what no stage wrote, or what was overwritten since.

    No stage writes to an input: a user's arrays are read only.
    """
    inputs = {id(t._root) for t in plan.inputs}
    holds = {}    # id of the memory's tensor: the recorded tensor whose values are in it
    for n, stage in enumerate(plan.stages):
        for t in reads(stage):
            root, home = t._root, plan.owner(t)
            if home is None or id(root) in inputs:
                continue
            if holds.get(id(home)) is not root:
                raise RuntimeError(f"plan: stage {n}, {stage!r}, reads {root!r}, which is not there")
        for t in writes(stage):
            home = plan.owner(t)
            if home is not None:
                if id(home) in inputs:
                    raise RuntimeError(f"plan: stage {n}, {stage!r}, writes to an input")
                holds[id(home)] = t._root
    for t in plan.results:
        home = plan.owner(t)
        if home is not None and id(t._root) not in inputs and holds.get(id(home)) is not t._root:
            raise RuntimeError(f"plan: the result {t!r} is not there at the end")
