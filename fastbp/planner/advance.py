"""Pass: an optimizer's update runs as soon as its gradient is there and the old values are no longer needed."""
from fastbp.planner.plan import Memories


def advance(plan):
    """Updates move up to behind the last stage that makes what they read, or touches what they write.

    A gradient then dies where it was made, and the update can run with the stage that makes it. No
    update passes a stage of Python: where one fails, nothing must have changed yet.
    """
    memory = Memories(plan)
    touched, written = {}, {}    # memory: the last place where it was touched, written
    barrier = (-1, 0)
    places = []
    for n, stage in enumerate(plan.stages):
        place = (n, 0)
        hyper = stage.what.hyper if stage.form == "update" else ()
        writes = {memory.of(t) for t in (*stage.writes, *(() if stage.outputs else hyper))}
        reads = {memory.of(t) for t in (*stage.reads, *hyper)} | {id(t) for t in stage.inputs}
        if stage.form == "update":
            behind = max([barrier, *(written.get(m, barrier) for m in reads),
                          *(touched.get(m, barrier) for m in writes)])
            place = (behind[0], n + 1)
        elif stage.form == "call":
            barrier = place
        for m in reads | writes:
            touched[m] = max(place, touched.get(m, place))
        for m in writes | {id(t) for t in stage.outputs}:    # a view is made too
            written[m] = place
        places.append(place)
    plan.stages = [stage for _, stage in sorted(zip(places, plan.stages, strict=True), key=lambda pair: pair[0])]
