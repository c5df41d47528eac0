"""The backward walk: the stages that led to a tensor, undone in reverse order.

Each tensor made by a gate is a stage: its gate, inputs and parameters, and a number that grows
in the order of recording. Where a tensor forks, the gradients add: the first one is stored, the
rest are added in the reverse of that order.
"""
import weakref

from fastbp.anomaly import check_gradient
from fastbp.errors import DtypeError, ShapeError, StagingError, error
from fastbp.gates.arithmetic import add
from fastbp.gates.shape import sum_to
from fastbp_ext.gate import clone
from fastbp_ext.tensor import OPERATORS, Tensor, empty, get_recorder, no_grad, set_checking, tensor


def stages_of(roots):
    """The stages that `roots` depend on, the last recorded first, and the leaves below them."""
    stages, leaves, seen, stack = [], [], set(), list(roots)
    while stack:
        t = stack.pop()
        if id(t) in seen or not t.requires_grad:
            continue
        seen.add(id(t))
        if t.is_leaf:
            leaves.append(t)
        else:
            stages.append(t)
            stack.extend(t._inputs)
    stages.sort(key=lambda t: t._serial, reverse=True)
    return stages, leaves


class _Changed:
    """Stands for a tensor whose values were changed after a stage used them.

    A vjp may still ask for its shape; where it needs the values, the gradient would be wrong.
    """
    __array_ufunc__ = None

    def __init__(self, t, stage):
        self.shape, self.ndim, self.size, self.dtype = t.shape, t.ndim, t.size, t.dtype
        self._stage, self._name = stage, t.name

    def _refuse(self, *args, **kwargs):
        name = f" {self._name!r}" if self._name else ""
        raise error(
            RuntimeError, f"backward: a value that {self._stage._gate.name} needs was changed in place",
            got=f"the tensor{name} of shape {self.shape} is newer than the stage that used it",
            expected="the values as they were when the stage ran",
            fix="run backward before the update, or change a copy")

    __getattr__ = _refuse


for _name in (
    *("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "pow", "rpow", "matmul", "rmatmul"),
    *("neg", "lt", "le", "gt", "ge", "eq", "ne", "getitem", "len", "float", "bool", "array"),
):
    setattr(_Changed, f"__{_name}__", _Changed._refuse)
_Changed.__hash__ = object.__hash__


def vjp_of(stage, which, dy):
    """The gradient for input `which` of a stage, from dy, the gradient for its output."""
    gate, inputs = stage._gate, stage._inputs
    if gate.variadic:
        vjp, extra = gate.vjp[0], {"which": which}
    else:
        vjp, extra = gate.vjp[which] if which < len(gate.vjp) else None, {}
    if vjp is None:
        return None
    y = stage
    if stage._stale:
        serial = stage._serial
        y = _Changed(stage, stage) if stage._version > serial else stage
        inputs = [_Changed(x, stage) if x._version > serial else x for x in inputs]
    dx = vjp(dy, y, *inputs, **stage._params, **extra)
    return None if dx is None else sum_to(dx, inputs[which].shape)


def walk(stages, gradients, follow=None):
    """Undo `stages`, last first; `gradients` maps id(tensor) to its gradient and is filled.

    `follow`: the ids of the tensors worth a gradient, where not all of them are. A recorder is told of
    each part of a gradient: the stage that is undone, its input, the part, and the gradient so far.
    """
    checks = set_checking(False)    # what a vjp's gates give is no gradient yet: a `where` may leave it out
    try:
        for stage in stages:
            dy = gradients.pop(id(stage), None)
            if dy is None:
                continue
            recorder = get_recorder()
            if recorder is not None:
                recorder.undoing = stage
            for which, x in enumerate(stage._inputs):
                if x.requires_grad and (follow is None or id(x) in follow):
                    dx = vjp_of(stage, which, dy)
                    if dx is not None:
                        before = gradients.get(id(x))
                        gradients[id(x)] = dx if before is None else add(before, dx)
                        if recorder is not None:
                            recorder.part(stage, dy, x, dx, gradients[id(x)])
                        elif checks:
                            check_gradient(stage, which, dy, gradients[id(x)])
            if recorder is not None:
                recorder.undoing = None
    finally:
        set_checking(checks)


def ones_like(t):
    y = empty(t.shape, t.dtype)
    y.numpy()[...] = 1
    return y


def backward(root, gradient, retain_graph):
    """What Tensor.backward does."""
    if root._abstract and get_recorder() is None:
        raise error(StagingError, "backward: a recorded tensor is used outside its staged function",
                    got="a tensor without values", expected="a result", fix="call backward inside the function")
    if not root.requires_grad:
        raise error(RuntimeError, "backward: nothing here requires a gradient", got=f"a tensor of shape {root.shape}",
                    expected="an input with requires_grad=True", fix="make the parameters with requires_grad=True")
    given = None
    if gradient is None:
        if root.size != 1:
            raise error(RuntimeError, "backward: a tensor of several elements needs the gradient of the loss for it",
                        got=f"shape {root.shape}", expected="one element, or gradient=",
                        fix="reduce it first: y.sum().backward()")
        gradient = ones_like(root)
    else:
        gradient = _seed(root, gradient)
        given = clone(gradient)    # as it is now, for `gate.upstream`
    stages, leaves = stages_of([root])
    if any(t._consumed for t in stages):
        raise error(RuntimeError, "backward: a second time through the same tape",
                    got="stages that an earlier backward used", expected="a tape of its own for each backward",
                    fix="compute the loss anew, or call the first with retain_graph=True")
    gradients = {id(root): gradient}
    with no_grad():
        walk(stages, gradients)
        sums = [(leaf, gradients.get(id(leaf))) for leaf in leaves]
        sums = [(leaf, g if leaf.grad is None else add(leaf.grad, g)) for leaf, g in sums if g is not None]
    for leaf, g in sums:
        if leaf.dtype != g.dtype:
            raise error(RuntimeError, "backward: a leaf changed its dtype after it was used", got=leaf.dtype,
                        expected=f"{g.dtype}, as when the tape was recorded", fix="compute the loss anew after to()")
    # A gradient is the leaf's own: no other tensor that anybody holds shares its memory.
    taken = {id(t._root) for t in (gradient, *stages, *leaves)}
    for leaf, g in sums:
        leaf.grad = g if g._is_whole and id(g._root) not in taken else clone(g)
        taken.add(id(leaf.grad._root))
    end = None if root._abstract else (weakref.ref(root), given)
    for t in stages:
        t._undone, t._consumed = end, not retain_graph


def _seed(root, gradient):
    if not isinstance(gradient, Tensor):
        gradient = tensor(gradient, dtype=root.dtype)
    if gradient.shape != root.shape:
        raise error(ShapeError, "backward: the gradient has another shape than the tensor", got=gradient.shape,
                    expected=root.shape, fix="give d loss / d tensor, element for element")
    if gradient.dtype != root.dtype:
        raise error(DtypeError, "backward: the gradient has another dtype than the tensor", got=gradient.dtype,
                    expected=root.dtype, fix="convert it: fb.tensor(g.numpy(), dtype=...)")
    return gradient


OPERATORS["backward"] = backward
