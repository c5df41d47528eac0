"""Expressions: what a gate computes, as Python writes it, with no bracket too many."""
from fastbp.planner.plan import EACH

COMPARE, SUM, PRODUCT, SIGN, POWER, ATOM = range(6)    # how tightly a text binds

_INFIX = {"+": SUM, "-": SUM, "*": PRODUCT, "/": PRODUCT, "@": PRODUCT, "**": POWER,
          "<": COMPARE, "<=": COMPARE, ">": COMPARE, ">=": COMPARE, "==": COMPARE, "!=": COMPARE}


def expression(gate, params, inputs, output):
    """(text, how tightly it binds) of a gate on inputs, such pairs too; `output` is the tensor that it makes."""
    if gate.operator in _INFIX and len(inputs) == 2:
        level = _INFIX[gate.operator]
        left, right = inputs
        sign = gate.operator if level == POWER else f" {gate.operator} "
        return f"{within(left, level + (level == POWER))}{sign}{within(right, level + (level < POWER))}", level
    if gate.template is not None:
        return gate.template.format(**{name: within(x, POWER) for name, x in zip(gate.inputs, inputs, strict=True)}
                                    ), PRODUCT
    if gate.name == "neg":
        return f"-{within(inputs[0], SIGN)}", SIGN
    if gate.name == "square":
        return f"{within(inputs[0], ATOM)}**2", POWER
    if gate.name == "transpose":
        x = output._inputs[0]
        if (x.shape, x.strides) == (output.shape, output.strides):
            return inputs[0]
        if output.ndim == 2:
            return f"{within(inputs[0], ATOM)}.T", ATOM
    texts = [text for text, _ in inputs]
    if gate.form == "reduce":
        ndim = len(params["axes"]) + output.ndim if not params["keepdims"] else output.ndim
        if len(params["axes"]) < ndim:
            texts.append(f"axis={params['axes'][0] if len(params['axes']) == 1 else params['axes']}")
    texts += [f"{name}={params[name]:.6g}" for name, default in gate.constants.items()
              if gate.form in EACH and params[name] != default]
    return f"{gate.name}({', '.join(texts)})", ATOM


def within(part, level):
    """The text of a part in a place that wants it to bind at least so tightly."""
    text, has = part
    return text if has >= level else f"({text})"


def number(x):
    """A number as a part."""
    text = f"{x:.6g}"
    return text, SIGN if text.startswith("-") else ATOM
