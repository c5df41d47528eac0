"""Pass: stages whose values nobody needs are dropped."""


def dead(plan):
    """Keep what a result or memory that outlives the program depends on."""
    needed = {id(t._root) for t in plan.results}

    def keep(stage):
        found = stage.lasts or any(id(t._root) in needed for t in stage.outputs)
        if found:
            needed.update(id(t._root) for t in stage.reads)
        return found

    drop(plan, keep)


def drop(plan, keep=lambda stage: True):
    """Drop the stages that `keep` does not, the last asked first, and views that none of the rest looks through."""
    seen = {id(t) for t in plan.results}
    kept = []
    for stage in reversed(plan.stages):
        if id(stage.outputs[0]) in seen if stage.form == "view" else keep(stage):
            kept.append(stage)
            seen.update(id(t) for t in stage.inputs)
    plan.stages = kept[::-1]
