"""Pass: a stage whose values are there already is dropped."""
from fastbp.planner.dead import drop
from fastbp.planner.plan import EACH, moved, place_of
from fastbp_ext.tensor import with_recorder

_PURE = (*EACH, "reduce", "reduce one", "product", "rows", "moment", "combine")
# Their results hold no denormal where denormals are flushed: times 1 they are what they are, to the bit.
_FLUSHED = {"add", "sub", "mul", "div", "square", "sqrt", "matmul", "sum", "mean"}


def same(plan):
    """Readers of a stage that repeats an earlier one, or multiplies by 1, read what has the values already."""
    before, instead, made, dropped = {}, {}, {}, {}
    for stage in plan.stages:
        stage.inputs = tuple([_seen(t, instead) for t in stage.inputs])
        stage.undoes = dropped.get(stage.undoes, stage.undoes)
        if stage.form == "view":
            y = _seen(stage.outputs[0], instead)
            instead[id(stage.outputs[0])], stage.outputs = y, (y,)
        if stage.form not in _PURE or any(not t._abstract and id(t._root) not in plan.constants
                                          for t in stage.inputs):
            continue    # what others own may change in between
        key = id(stage.what), *map(place_of, stage.inputs), repr(stage.params)
        y, twin = stage.outputs[0], before.setdefault(key, stage)
        if id(y) in plan.fixed:
            continue
        if twin is not stage:
            instead[id(y)], dropped[stage] = twin.outputs[0], twin
            plan.within[id(y)] = twin
        elif stage.name == "mul" and (x := _times_one(plan, stage, made)) is not None:
            instead[id(y)], dropped[stage] = x, made[id(x)]
            plan.within[id(y)] = made[id(x)]
            del before[key]
        else:
            made[id(y)] = stage
    drop(plan, lambda stage: stage not in dropped)


def _seen(t, instead):
    return instead[id(t)] if id(t) in instead else moved(t, instead)


def _times_one(plan, stage, made):
    """The factor that a product by 1 leaves as it is, or None."""
    for one, x in (stage.inputs, stage.inputs[::-1]):
        if (id(one._root) in plan.constants and id(x) in made and made[id(x)].name in _FLUSHED
                and x.shape == stage.outputs[0].shape and x.strides == stage.outputs[0].strides
                and with_recorder(None, lambda one=one: (one.numpy() == 1).all())):
            return x
    return None
