"""`fastbp circuit`: an expression as a circuit of gates, forward and backward, every number in float64."""
import ast
import math
import re

import numpy as np

from fastbp.gates import GATES
from fastbp.show.terminal import WIDTH, colored, cut, write_json
from fastbp.show.trace import Trace, expanded
from fastbp_ext.tensor import Tensor, tensor

_LONGEST = 20_000    # characters of an expression
_DEEPEST = 100       # brackets within brackets
_OPERATORS = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "div", ast.Pow: "pow"}


class Circuit:
    """A parsed expression: statements, separated by ; or lines; `name = ...` names a value, the last is the output.

    Names, numbers, + - * / ** and calls of gates; nothing else is evaluated. ValueError: anything else.
    """

    def __init__(self, expression):
        self.statements = _statements(expression)
        self.inputs, self.known = [], set()
        for name, value in self.statements:
            for node in _names(value):
                if node not in self.known and node not in self.inputs:
                    self.inputs.append(node)
            if name is not None:
                if name in self.inputs or name in self.known:
                    raise ValueError(f"{name} is used or set before it is set here; take another name")
                self.known.add(name)

    def run(self, values, expand=False):
        """The output for {input: number}: a tensor, its inputs and stages named. expand: gates in their parts."""
        missing = [name for name in self.inputs if name not in values]
        if missing:
            raise ValueError(f"{missing[0]} is used before it is set: give it a value, {missing[0]}=1")
        unused = [name for name in values if name not in self.inputs]
        if unused:
            raise ValueError(f"{unused[0]} is not in the expression; its inputs are {', '.join(self.inputs) or 'none'}")
        scope = {name: tensor(np.float64(values[name]), requires_grad=True, name=name) for name in self.inputs}
        out = None
        for name, node in self.statements:
            try:
                out = _value(node, scope)
            except RecursionError:
                raise ValueError("the expression nests too deeply: name its parts, a = ...; b = ...") from None
            if name is not None:
                scope[name] = out
                if isinstance(out, Tensor) and out.name is None:
                    out.name = name
        if not isinstance(out, Tensor) or out._gate is None:
            raise ValueError("the expression's last value comes from no gate of its inputs: there is nothing to undo")
        if out.size != 1:
            raise ValueError(f"the expression's last value has the shape {out.shape}: reduce it, with sum(...)")
        return expanded(out) if expand else out

    def differences(self, values, expand=False):
        """{input: (the central difference of the output, f(x + h) - f(x - h) over 2 h, how far it may be off)}.

        It may be off by its own rounding, and by what a difference over 4 h says of the curve.
        """
        eps, found = np.finfo(np.float64).eps, {}

        def over(name, h):
            high, low = values[name] + h, values[name] - h
            up, down = (self.run({**values, name: v}, expand).item() for v in (high, low))
            return (up - down) / (high - low), 16 * eps * max(abs(up), abs(down)) / h

        for name in self.inputs:
            h = np.cbrt(eps) * max(1.0, abs(values[name]))
            with np.errstate(all="ignore"):
                (near, rounding), (far, _) = over(name, h), over(name, 2 * h)
                found[name] = near, rounding + 2 * abs(far - near) + 1e-6 * abs(near)
        return found


def _statements(expression):
    """[(name or None, node)]"""
    if len(expression) > _LONGEST:
        raise ValueError(f"the expression has {len(expression):,} characters; {_LONGEST:,} are the most")
    depth = 0
    for c in expression:
        depth += (c in "([{") - (c in ")]}")
        if depth > _DEEPEST:
            raise ValueError(f"more than {_DEEPEST} brackets within each other")
    try:
        body = ast.parse(expression.strip()).body
    except SyntaxError as problem:
        raise ValueError(f"the expression can't be read: {_reason(expression, problem)}") from None
    except (RecursionError, MemoryError, ValueError):
        raise ValueError("the expression can't be read: it nests too deeply, or a number is too long") from None
    found = []
    for statement in body:
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1 and isinstance(
                statement.targets[0], ast.Name):
            found.append((statement.targets[0].id, statement.value))
        elif isinstance(statement, ast.Expr):
            found.append((None, statement.value))
        else:
            raise ValueError(f"only expressions and name = expression are read, not {_source(statement)}")
    if not found:
        raise ValueError("the expression is empty")
    return found


def _reason(expression, problem):
    if re.search(r"\d{400}", expression):
        return "a number is too long"
    return f"{problem.msg}, at character {problem.offset}" if problem.offset else problem.msg


def _source(node):
    return repr(cut(" ".join(ast.unparse(node).split()), 40))


def _names(node):
    """The names that an expression reads, in their order; ValueError: what no expression here may hold."""
    found, todo = [], [node]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Name):
            found.append(node.id)
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
            pass
        elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            todo += [node.right, node.left]
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            todo.append(node.operand)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id not in GATES:
                raise ValueError(f"there is no gate {cut(node.func.id, 40)!r}; {_like(node.func.id)}")
            if any(isinstance(a, ast.Starred) for a in node.args) or any(k.arg is None for k in node.keywords):
                raise ValueError(f"* is not read in {_source(node)}")
            todo += [*(k.value for k in node.keywords), *node.args][::-1]
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitXor):
            raise ValueError(f"{_source(node)}: a power is written **")
        else:
            raise ValueError(f"only names, numbers, + - * / ** and calls of gates are read, not {_source(node)}")
    return found


def _like(name):
    import difflib
    near = difflib.get_close_matches(name, GATES, 3, 0.5)
    return f"there are {', '.join(near)}" if near else "the README lists the gates"


def _value(node, scope):
    """The value of a checked node: a tensor, or a number where no input is in it."""
    if isinstance(node, ast.Name):
        return scope[node.id]
    if isinstance(node, ast.Constant):
        try:
            return float(node.value)
        except OverflowError:
            raise ValueError("a number is too large for float64") from None
    if isinstance(node, ast.UnaryOp):
        x = _value(node.operand, scope)
        return x if isinstance(node.op, ast.UAdd) else -x
    if isinstance(node, ast.BinOp):
        x, y = _value(node.left, scope), _value(node.right, scope)
        name = _OPERATORS[type(node.op)]
        if not isinstance(x, Tensor) and not isinstance(y, Tensor):
            return _of_numbers(name, x, y)
        if name == "pow" and y == 2.0 and not isinstance(y, Tensor):
            y = 2
        return GATES[name](x, y)
    name = node.func.id
    args = [_value(a, scope) for a in node.args]
    options = {k.arg: _value(k.value, scope) for k in node.keywords}
    if not any(isinstance(x, Tensor) for x in (*args, *options.values())):
        args = [tensor(np.float64(x)) for x in args]
    try:
        out = GATES[name](*args, **options)
    except (TypeError, ValueError, RuntimeError, IndexError) as problem:
        raise ValueError(f"{_source(node)}: {str(problem).splitlines()[0]}") from None
    if not isinstance(out, Tensor) or out.dtype != np.float64:
        raise ValueError(f"{_source(node)} gives no float64 value")
    return out


def _of_numbers(name, x, y):
    with np.errstate(all="ignore"):
        return float({"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide,
                      "pow": np.power}[name](x, y))


# --- what is printed and written

def show(expression, values, expand=False, to_json=None, to_svg=None):
    """Print the circuit's stages forward and backward, and the check of its gradients; write what is asked for."""
    circuit = Circuit(expression)
    out = circuit.run(values, expand)
    trace = Trace(out, whole=not expand)
    differences = circuit.differences(values, expand)
    found = {x.name: trace.gradient(x).item() for x in trace.inputs if trace.gradient(x) is not None}
    inputs = {name: (values[name], found.get(name, 0.0), *differences[name]) for name in values}
    print("\n".join(lines_of(trace, inputs)))
    if to_json is not None:
        write_json(to_json, as_data(trace, inputs))
    if to_svg is not None:
        from fastbp.show.draw import drawing
        drawing(trace, to_svg)


def lines_of(trace, inputs):
    """The table of a circuit of scalars, in lines.

    inputs: {name: (value, gradient, central difference, how far that may be off)}.
    """
    number = f"({len(trace.stages)})"
    texts = [f"{trace.name(s.output)} = {s.text(trace.name)}" for s in trace.stages]
    wide = min(max(map(len, texts)), WIDTH - len(number) - 14)
    yield "forward"
    for stage, text in zip(trace.stages, texts, strict=True):
        label = f"({stage.number})"
        yield (f"{label:>{len(number)}} {cut(text, wide):<{wide}} "
               + colored(f"{number_text(stage.output.item()):>12}", "green"))
    yield ""
    names = [trace.name(part.input) for s in trace.stages for part in s.parts]
    wide = max(4, min(max(map(len, names), default=0) + 1, WIDTH - len(number) - 47))
    yield f"{'backward':<{len(number) + wide + 4}} {'upstream':>12}   {'local':>12}   {'product':>12}"
    for stage in reversed(trace.stages):
        for part in stage.parts:
            label, name = f"({stage.number})", cut(f"d{trace.name(part.input)}", wide)
            product = colored(f"{number_text(part.product.item()):>12}", "red")
            yield (f"{label:>{len(number)}} {name:<{wide}} {'+=' if part.adds else ' ='} "
                   f"{number_text(stage.upstream.item()):>12} * {number_text(part.local):>12} = {product}")
    yield ""
    wide = min(max([len("gradients"), *(len(name) + 1 for name in inputs)]), WIDTH - 58)
    yield f"{'gradients':<{wide}} {'at':>12}  {'gradient':>12}  {'difference':>12}"
    for name, (value, found, expected, off) in inputs.items():
        yield (f"{cut(f'd{name}', wide):<{wide}} " + colored(f"{number_text(value):>12}", "green") + "  "
               + colored(f"{number_text(found):>12}", "red")
               + f"  {number_text(expected):>12}  {verdict(found, expected, off)}")


def verdict(gradient, difference, off):
    """How a gradient compares with a central difference that may be `off` by so much."""
    if not (math.isfinite(gradient) and math.isfinite(difference)):
        return "not finite"
    return "agrees" if abs(gradient - difference) <= off else "differs: a kink?"


def number_text(x):
    """Six digits, as short as they can be."""
    return f"{x:.6g}" if x == 0 or not math.isfinite(x) or 1e-4 <= abs(x) < 1e6 else f"{x:.5e}"


def as_data(trace, inputs):
    """What --json writes."""
    return {
        "output": trace.name(trace.root),
        "forward": [{"stage": s.number, "name": trace.name(s.output), "gate": s.name, "formula": s.formula,
                     "text": s.text(trace.name), "inputs": [trace.name(x) for x in s.inputs],
                     "value": s.output.item(), "gradient": s.upstream.item() if s.upstream is not None else 0.0}
                    for s in trace.stages],
        "backward": [{"undoes": s.number, "input": trace.name(p.input), "upstream": s.upstream.item(),
                      "local": p.local, "product": p.product.item(), "adds": p.adds}
                     for s in reversed(trace.stages) for p in s.parts],
        "inputs": [{"name": name, "value": value, "gradient": found, "central_difference": expected}
                   for name, (value, found, expected, _) in inputs.items()],
    }
