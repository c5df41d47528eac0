"""Pass: reductions wait for their readers, so that elementwise stages come together."""
from fastbp.planner.plan import EACH

_PATIENT = (*EACH, "blocks", "reduce", "combine", "view")


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
