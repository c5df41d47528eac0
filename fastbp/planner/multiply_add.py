"""Pass: a sum takes in the product that it alone reads, of numbers or of matrices.

One stage does both, with the roundings of both: gradients that add up at a fork, dx += dy w, and a
layer's bias, which is added while the product's tile is in registers.
"""
from collections import Counter

from fastbp.planner.dead import drop
from fastbp_ext.gate import Gate

_MUL_ADD = Gate("mul_add", "z = a b + x", form="elementwise", kernel="mul_add", inputs=["a", "b", "x"], vjp=[None] * 3)
_LAYER = Gate("matmul_add", "y = x @ w + b", form="product", kernel="matmul", inputs=["x", "w", "b"], vjp=[None] * 3)


def multiply_add(plan):
    """A product and the sum of it and something else become one stage, at the sum's place."""
    reads = Counter(id(t._root) for stage in plan.stages for t in stage.inputs)
    made, instead = {}, {}    # id of a product: the place of its stage
    for n, stage in enumerate(plan.stages):
        if stage.name in ("mul", "matmul") and stage.form in ("elementwise", "product"):
            made[id(stage.outputs[0])] = n
        if stage.name != "add" or stage.form != "elementwise":
            continue
        for k, t in enumerate(stage.inputs):
            at, other = made.get(id(t)), stage.inputs[1 - k]
            if at is None or reads[id(t)] > 1 or id(t) in plan.fixed or plan.changes(at, n):
                continue
            product = plan.stages[at]
            both = _both(product, k, stage.outputs[0], other)
            if both is not None:
                stage.what, stage.inputs = both, (*product.inputs, other)
                instead[product] = plan.within[id(t)] = stage
                break
    for stage in plan.stages:
        stage.undoes = instead.get(stage.undoes, stage.undoes)
    drop(plan, lambda stage: stage not in instead)


def _both(product, k, y, other):
    """The gate for a product, summand k of y, and the other summand; None where no kernel does both."""
    if product.form == "product":    # of the layers' form only: x @ w + b
        fits = k == 0 and y.ndim == 2 and product.outputs[0].shape == y.shape
        return _LAYER if fits and other.shape == y.shape[1:] and other.is_contiguous else None
    return _MUL_ADD if all(t.is_contiguous and t.shape == y.shape for t in (*product.inputs, other)) else None
