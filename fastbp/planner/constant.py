"""Pass: stages of nothing but constants are computed now."""
from fastbp.gates.shape import copy
from fastbp.planner.plan import moved, place_of
from fastbp_ext.tensor import no_grad, with_recorder

_SMALL = 4096    # elements
_FORMS = ("elementwise", "copy", "reduce", "convert")


def constant(plan):
    """What a stage makes of numbers that the function itself made takes its place among them."""
    known = {}    # id of a recorded tensor: its values
    dense = {}    # place of a constant in others: a copy of it, each element in its place
    kept = []
    for stage in plan.stages:
        stage.inputs = tuple([moved(t, known) for t in stage.inputs])
        if (stage.form in _FORMS and id(stage.outputs[0]) not in plan.fixed
                and all(id(t._root) in plan.constants for t in stage.inputs)):
            y = known[id(stage.outputs[0])] = with_recorder(None, _value, stage)
            plan.within[id(stage.outputs[0])] = None
            plan.constants[id(y)] = y
        else:
            if stage.form == "elementwise":
                stage.inputs = tuple([_dense(plan, t, dense) for t in stage.inputs])
            kept.append(stage)
    plan.stages = kept


def _dense(plan, t, dense):
    """A small constant as its reader's loop likes it best: each element in its place."""
    if id(t._root) not in plan.constants or t.is_contiguous or t.size > _SMALL:
        return t
    place = place_of(t)
    if place not in dense:
        dense[place] = y = with_recorder(None, copy, t)
        plan.constants[id(y)] = y
    return dense[place]


def _value(stage):
    with no_grad():
        if stage.form == "reduce":
            return stage.what(*stage.inputs, axis=stage.params["axes"], keepdims=stage.params["keepdims"])
        return stage.what(*stage.inputs, **(stage.params or {}))
