"""Pass: what can run with a product moves up to it."""
from fastbp.planner.fuse import heads_strips
from fastbp.planner.plan import EACH, Memories


def advance(plan):
    """Updates move up to behind the last stage that makes what they read, or touches what they write.

    A gradient then dies where it was made, and the update can run with the stage that makes it. Draws move up
    too, so that none stands between stages that can run together. Neither passes a stage of Python: where one
    fails, nothing must have changed yet. Elementwise stages and reductions move up where that stage is a
    product in strips, on which they can run: the mask of a gradient and the sums of its columns stand behind
    the other product of their layer.
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
        if stage.form in ("update", "draw", "reduce", *EACH):
            behind = max([barrier, *(written.get(m, barrier) for m in reads),
                          *(touched.get(m, barrier) for m in writes)])
            maker = plan.stages[behind[0]] if behind[0] >= 0 else None
            moves = maker is not None and maker.form == "product" and heads_strips(maker)
            if moves or stage.form in ("update", "draw"):
                place = (behind[0], n + 1)
        elif stage.form == "call":
            barrier = place
        for m in reads | writes:
            touched[m] = max(place, touched.get(m, place))
        for m in writes | {id(t) for t in stage.outputs}:    # a view is made too
            written[m] = place
        places.append(place)
    plan.stages = [stage for _, stage in sorted(zip(places, plan.stages, strict=True), key=lambda pair: pair[0])]
