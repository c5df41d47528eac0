"""Pass: stages whose values nobody needs are dropped."""
from fastbp.planner.plan import reads, writes


def dead(plan):
    """Keep what a result or an update depends on."""
    needed = {id(t._root) for t in plan.results}
    kept = []
    for stage in reversed(plan.stages):
        update = hasattr(stage, "outputs")
        if update or stage._gate.form == "view" or any(id(t._root) in needed for t in writes(stage)):
            kept.append(stage)
            needed.update(id(t._root) for t in reads(stage))
    plan.stages = kept[::-1]
