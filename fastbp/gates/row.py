"""What a row is made with, and the table of all rows.

A gate is one row: `elementwise(...)`, or `@gate(...)` over its shape rule. A row gives the
function, the Tensor method, the operator, the line in the README's table. A public function
that is written in gates is a `composite`: one box in drawings and listings.
"""
import ast
import functools
import inspect

from fastbp_ext.gate import Gate
from fastbp_ext.tensor import OPERATORS, Tensor, add_method, in_group

GATES = {}      # name: the gate or composite; what fastbp exports, in the order of the README
INTERNAL = {}   # gates that only gradients and composites use

_OPERATORS = {"+": "__add__", "-": "__sub__", "*": "__mul__", "/": "__truediv__", "**": "__pow__",
              "@": "__matmul__", "-x": "__neg__", "|x|": "__abs__", "<": "__lt__", "<=": "__le__",
              ">": "__gt__", ">=": "__ge__", "==": "__eq__", "!=": "__ne__"}


def _enter(function, name, *, public, method, operator):
    (GATES if public else INTERNAL)[name] = function
    function.operator = operator
    if public and isinstance(function, Gate):
        function.__module__ = "fastbp"    # where pickle finds it
    if public and method:
        add_method(name, function)
    if operator is not None:
        OPERATORS[_OPERATORS[operator]] = function
    return function


def _make(signature, formula, *, form, kernel, public, method, operator, doc, parts=None, template=None, **options):
    """A row from a signature such as "leaky_relu(x, negative_slope=0.01)"."""
    name, _, rest = signature.partition("(")
    parameters = [
        inspect.Parameter(key.strip(), inspect.Parameter.POSITIONAL_OR_KEYWORD,
                          default=ast.literal_eval(default) if default else inspect.Parameter.empty)
        for key, _, default in (part.partition("=") for part in rest.rstrip(")").split(","))
    ]
    if form == "elementwise":
        options["constants"] = {p.name: p.default for p in parameters if p.default is not p.empty}
    row = Gate(name, formula, form=form, kernel=kernel or name,
               inputs=[p.name for p in parameters if p.default is p.empty], **options)
    row.__name__ = name
    row.__signature__ = inspect.Signature(parameters)
    row.__doc__ = f"{formula}\n\n{doc}".strip()
    row.parts, row.template = parts, template
    return _enter(row, name, public=public, method=method, operator=operator)


def elementwise(signature, formula, *, vjp, kernel=None, operator=None, method=True, public=True,
                result=None, compares=False, first=0, doc="", parts=None, template=None):
    """A gate that acts on each element, with NumPy broadcasting.

    signature: "leaky_relu(x, negative_slope=0.01)"; parameters with a default are constants of
    the kernel, in their order. vjp: for each input `(dy, y, *inputs, **constants) -> dx` before
    broadcasting is undone, or None. parts: the same in simpler gates, for those who want to
    see them. template: how listings write it, of factors, by the names of the inputs.
    """
    return _make(signature, formula, form="elementwise", kernel=kernel, vjp=vjp, result=result, compares=compares,
                 first=first, public=public, method=method, operator=operator, doc=doc, parts=parts, template=template)


def reduction(name, formula, *, vjp, kernel=None, one_axis=False, result=None, averages=False, of_none=True, doc=""):
    """A gate `name(x, axis=None, keepdims=False)` that folds the elements along axes.

    axis is None (all), a number or, unless `one_axis`, a tuple. The vjp gets `axes`, ascending,
    and `keepdims`. averages: the fold is divided by the number of elements. of_none: there is a
    value where there are no elements.
    """
    return _make(f"{name}(x, axis=None, keepdims=False)", formula, form="reduce one" if one_axis else "reduce",
                 kernel=kernel, vjp=vjp, result=result, averages=averages, of_none=of_none, public=True, method=True,
                 operator=None, doc=doc)


def product(signature, formula, *, vjp):
    """A gate that multiplies matrices: two inputs of two dimensions or more."""
    return _make(signature, formula, form="product", kernel=None, vjp=vjp, public=False, method=False, operator="@",
                 doc="")


def gate(form, *, vjp, kernel=None, operator=None, method=True, public=True, constants=(), name=None, template=None,
         **options):
    """A gate whose shape rule is the function below; its docstring begins with the formula.

    The rule gets the call's arguments, inputs as tensors, checks them, and returns the output's
    shape and a dict of parameters (a view: shape, strides, offset in bytes, parameters). The
    vjps get these parameters by name.
    """
    def decorate(rule):
        label = name or rule.__name__
        signature = inspect.signature(rule)
        row = Gate(
            label, rule.__doc__.strip().splitlines()[0], form=form, kernel=kernel, vjp=vjp, rule=rule,
            inputs=[*signature.parameters][:max(len(vjp), 1)], constants=dict.fromkeys(constants, 0.0), **options)
        row.__name__ = label
        row.__signature__ = signature
        row.__doc__ = rule.__doc__
        row.parts, row.template = None, template
        return _enter(row, label, public=public, method=method, operator=operator)
    return decorate


class Group:
    """One call of a composite, or of a module: the box that its stages belong to."""

    def __init__(self, name, formula="", module=None, given=()):
        self.name, self.formula, self.module = name, formula, module
        self.given = [x for x in given if isinstance(x, Tensor)]    # the arguments that are tensors
        self.parent = None


def grouped(function, name=None):
    """`function` with the stages of each of its calls in one group."""
    name = name or function.__name__
    formula = (function.__doc__ or "").strip().partition("\n")[0]

    @functools.wraps(function)
    def call(*args, **kwargs):
        return in_group(Group(name, formula, given=(*args, *kwargs.values())), function, args, kwargs)
    return call


def composite(function=None, *, method=True, operator=None, boxed=True):
    """A public function of gates; its docstring begins with the formula."""
    if function is None:
        return functools.partial(composite, method=method, operator=operator, boxed=boxed)
    call = grouped(function) if boxed else function
    return _enter(call, function.__name__, public=True, method=method, operator=operator)
