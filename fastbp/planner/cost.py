"""What a stage costs: operations, and bytes read and written."""
from math import prod

# Operations for each element; all other stages but products count one.
_OPERATIONS = {"mul_add": 2, "sgd": 4, "momentum": 7, "adam": 15, "nadam": 17, "radam": 15, "rmsprop": 11,
               "adagrad": 9, "average": 3}


def flop_of(stage):
    """2 m n k for a product or those of a scan, an optimizer's formula, else one an element of the largest operand.

    A window counts whole, with what lies in the padding.
    """
    if stage.form == "product":
        return stage.outputs[0].size * (2 * stage.inputs[0].shape[-1] + len(stage.inputs) - 2)    # + a bias
    if stage.form == "scan":
        w = stage.inputs[2]
        return 2 * stage.params["steps"] * stage.outputs[0].shape[1] * w.size
    if stage.form == "windows":
        return prod(stage.params["window"].space[:8]) * (1 if stage.name.startswith("max_pool") else 2)
    if stage.form in ("view", "call", "copy", "assign", "take", "place", "join", "convert", "draw"):
        return 0
    elements = max([t.size for t in (*stage.outputs, *stage.inputs)], default=1)
    return elements * _OPERATIONS.get(stage.name, 1)


def bytes_of(stage):
    """What must be read and written: each element of memory once; a broadcast operand is as large as its memory."""
    return sum(prod(n for n, step in zip(t.shape, t.strides, strict=True) if step or n == 1) * t.dtype.itemsize
               for t in (*stage.reads, *stage.writes))


def count_text(n):
    """Three digits and a unit: 13.8 M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n}"
