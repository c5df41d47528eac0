"""Pass: a reduction over all of a large tensor comes in two steps."""
from fastbp.planner.arena import TILE
from fastbp.planner.plan import Stage
from fastbp_ext.gate import Blocks, Combine
from fastbp_ext.tensor import abstract_tensor


def split(plan):
    """A reduction over all of a large tensor is one of its blocks, which can join a group, and one of their results."""
    stages = []
    for stage in plan.stages:
        x, y = stage.inputs[0] if stage.inputs else None, stage.outputs[0] if stage.outputs else None
        if stage.form == "reduce" and y.size == 1 and x.size > TILE and x.is_contiguous:
            partial = abstract_tensor((-(-x.size // TILE),), x.dtype)
            stages.append(Stage.made(Blocks(stage.what), (partial,), (x,), stage.undoes))
            stage.what, stage.inputs = Combine(stage.what, x.size if stage.what.averages else 1.0), (partial,)
        stages.append(stage)
    plan.stages = stages
