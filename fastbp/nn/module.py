"""Module: parameters, buffers and modules by the names of the attributes that hold them."""
import collections.abc
import contextlib
import difflib
from typing import NamedTuple

import numpy as np

from fastbp.data.batching import checked_batch_size, rows
from fastbp.differentiate import tree_map
from fastbp.errors import DtypeError, ShapeError, error
from fastbp.gates.row import Group
from fastbp.gates.shape import memory_order
from fastbp.serialization import as_array
from fastbp.staged import staged
from fastbp_ext.tensor import Tensor, adopt, empty, get_recorder, in_group, no_grad, tensor, touch


class Parameter(Tensor):
    """A tensor that a Module lists as its own and an optimizer updates.

    Parameter(data, requires_grad=True) shares a Tensor's memory and layout, and copies anything
    else, as `fastbp.tensor` does. TypeError: integers with requires_grad. ValueError: memory
    that can be read only.
    """

    def __new__(cls, data, requires_grad=True):
        self = adopt(super().__new__(cls), data if isinstance(data, Tensor) else tensor(data))
        self.requires_grad = requires_grad
        return self


def floating(name, dtype):
    """dtype as a NumPy dtype; DtypeError where it is neither float32 nor float64."""
    with contextlib.suppress(TypeError):    # a device, PyTorch's dtypes
        dtype = np.dtype(dtype)
    if dtype not in (np.float32, np.float64):
        raise error(DtypeError, f"{name}: parameters can't have this dtype", got=dtype,
                    expected="float32 or float64", fix='"float32"; leave a device out: all runs on the CPU')
    return dtype


def converted(x, dtype):
    """x's values in another dtype, laid out as x is; newer than any tape that used x."""
    order = memory_order(x)
    y = empty([x.shape[d] for d in order], dtype).transpose([order.index(d) for d in range(x.ndim)])
    return y.detach().copy_(x)


def settings(module):
    """An `extra_repr` that shows what __init__ was given."""
    return ", ".join(f"{name}={value!r}" for name, value in vars(module).items()
                     if name not in ("training", "_replayed"))


@contextlib.contextmanager
def evaluating(modules):
    """A context in which these modules are in eval mode, and no gradients are wanted."""
    changed = [m for m in modules if m.training]
    try:
        for m in changed:
            m.training = False
        with no_grad():
            yield
    finally:
        for m in changed:
            m.training = True


class LoadResult(NamedTuple):
    """What `load_state_dict(strict=False)` left out."""
    missing_keys: list
    unexpected_keys: list


class Module:
    """A layer or a net: subclasses set attributes in __init__ and define `forward`.

    A Parameter, Module or (with `register_buffer`) tensor that is an attribute is listed under
    its name, "fc.weight" for `self.fc.weight`, in the order of assignment. `super().__init__()`
    is welcome and not needed.

    >>> class Net(nn.Module):
    ...     def __init__(self):
    ...         self.fc = nn.Linear(64, 10)
    ...     def forward(self, x):
    ...         return self.fc(x).relu()
    """
    training = True
    _replayed = None    # the module, staged by `predict`
    _buffers = {}    # name: whether a state dict has it; replaced, never changed

    def forward(self, *args, **kwargs):
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def __call__(self, *args, **kwargs):
        recorder = get_recorder()
        if recorder is not None:
            recorder.met(self)
        group = Group(type(self).__name__, module=self)
        try:
            result = in_group(group, self.forward, args, kwargs)
            if recorder is not None:
                recorder.calls.append((group, result))
            return result
        except (ShapeError, DtypeError, IndexError) as problem:
            self._name_layer(problem)
            raise

    def _name_layer(self, problem):
        """Add a line that names the innermost layer; each module around it makes the path longer."""
        if not hasattr(problem, "_layer") and len(problem.args) == 1:
            problem._layer, problem._message = self, problem.args[0]
        inner = getattr(problem, "_layer", None)
        path = next((path for path, module in self.named_modules() if module is inner), None)
        if path is not None:
            name = f"{type(inner).__name__}({inner.extra_repr()})"
            problem.args = (f"{problem._message}\n  layer:    {f'{path} ({name})' if path else name}",)

    def __setattr__(self, name, value):
        before = vars(self).get(name)
        kind = Parameter if isinstance(before, Parameter) else Tensor if name in self._buffers else None
        if kind is not None and value is not None and not isinstance(value, kind):
            raise TypeError(f"{type(self).__name__}.{name} is a parameter or buffer: assign "
                            f"a {kind.__name__} or None, not {type(value).__name__}, or del it first")
        object.__setattr__(self, name, value)
        if name == "training" or name in self._buffers or isinstance(value, (Parameter, Module)) or isinstance(
                before, (Parameter, Module)):
            touch()
            recorder = get_recorder()
            if name == "training" and recorder is not None:
                recorder.switched[id(self)] = self

    def __delattr__(self, name):
        object.__delattr__(self, name)
        touch()

    def predict(self, *inputs, batch_size=256):
        """self(*inputs) in batches of rows, in eval mode and without gradients; modes are put back.

        inputs: arrays or Tensors of as many rows. Returns what `forward` does, one Tensor or a nest of them, with all
        rows. Replayed: one program for each shape of a batch. ShapeError: no rows, other numbers of rows, or a result
        that has not a row for each of the input.
        """
        n, size = rows(inputs), checked_batch_size(batch_size)
        if self._replayed is None:
            self._replayed = staged(self)
        made = None
        with evaluating(self.modules()):
            for start in range(0, n, size):
                result = self._replayed(*[x[start:start + size] for x in inputs])
                if made is None:
                    made = tree_map(lambda y: _room(y, min(size, n), n), result)
                    whole = [y.numpy() for y in _tensors(made)]
                for y, part in zip(whole, _tensors(result), strict=True):
                    y[start:start + size] = part.numpy()
        return made

    # --- what is in it

    def register_buffer(self, name, tensor, persistent=True):
        """A tensor (or None) that belongs to the state but is not trained: self.name.

        TypeError: no tensor. ValueError: a name that an attribute has, or no plain name.
        """
        if tensor is not None and (not isinstance(tensor, Tensor) or isinstance(tensor, Parameter)):
            raise TypeError(f"register_buffer: {name!r} is a Tensor and no Parameter, "
                            f"not {type(tensor).__name__}")
        taken = name not in self._buffers and hasattr(self, name)
        if taken or not name or "." in name:
            raise ValueError(f"register_buffer: {name!r} is no free name without dots")
        self._buffers = {**self._buffers, name: persistent}
        setattr(self, name, tensor)

    def _own(self, kind):
        return [(name, value) for name, value in vars(self).items() if isinstance(value, kind)]

    def _own_buffers(self):
        return [(name, value) for name, value in self._own(Tensor)
                if name in self._buffers and not isinstance(value, Parameter)]

    def _own_state(self):
        kept = [(name, value) for name, value in self._own_buffers() if self._buffers[name]]
        return self._own(Parameter) + kept

    def _members(self, own, prefix="", recurse=True, remove_duplicate=True):
        seen = set()
        modules = self.named_modules(prefix, remove_duplicate) if recurse else [(prefix, self)]
        for path, module in modules:
            for name, value in own(module):
                if not (remove_duplicate and id(value) in seen):
                    seen.add(id(value))
                    yield f"{path}.{name}" if path else name, value

    def named_modules(self, prefix="", remove_duplicate=True):
        """(path, module) of this module, path "", and of all below it; each once."""
        seen = set()

        def walk(module, path):
            if not (remove_duplicate and id(module) in seen):
                seen.add(id(module))
                yield path, module
                for name, child in module._own(Module):
                    yield from walk(child, f"{path}.{name}" if path else name)
        return walk(self, prefix)

    def modules(self):
        """This module and all below it, each once."""
        return (module for _, module in self.named_modules())

    def named_children(self):
        """(name, module) of the modules that are attributes, each once."""
        seen = set()
        for name, module in self._own(Module):
            if id(module) not in seen:
                seen.add(id(module))
                yield name, module

    def children(self):
        """The modules that are attributes, each once."""
        return (module for _, module in self.named_children())

    def named_parameters(self, prefix="", recurse=True, remove_duplicate=True):
        """(path, parameter), a module's own before those of its children; a shared one once."""
        return self._members(lambda module: module._own(Parameter), prefix, recurse, remove_duplicate)

    def parameters(self, recurse=True):
        """The parameters, in the order of `named_parameters`."""
        return (p for _, p in self.named_parameters(recurse=recurse))

    def named_buffers(self, prefix="", recurse=True, remove_duplicate=True):
        """(path, tensor) of the registered buffers; a shared one once."""
        return self._members(Module._own_buffers, prefix, recurse, remove_duplicate)

    def buffers(self, recurse=True):
        """The buffers, in the order of `named_buffers`."""
        return (b for _, b in self.named_buffers(recurse=recurse))

    # --- its state

    def __getstate__(self):
        """What is pickled and copied; the staged module is made again where it is needed."""
        return {name: value for name, value in vars(self).items() if name != "_replayed"}

    def _state(self):
        return dict(self._members(Module._own_state, remove_duplicate=False))

    def state_dict(self):
        """{path: a contiguous copy} of all parameters and buffers, PyTorch's names and shapes.

        A shared parameter stands under each of its names.
        """
        return {name: tensor(value.numpy()) for name, value in self._state().items()}

    def load_state_dict(self, state_dict, strict=True):
        """Copy the values of {path: tensor or array} in place; views and captures stay valid.

        PyTorch's tensors are taken as they are; floats of other sizes are converted. All is
        checked first: ValueError that lists the names that are missing, unexpected (with strict)
        or do not fit in shape or kind of dtype, and then nothing was changed. TypeError: no dict.
        Returns (missing_keys, unexpected_keys).
        """
        if not isinstance(state_dict, collections.abc.Mapping):
            raise error(TypeError, "load_state_dict: this is no state", got=type(state_dict).__name__,
                        expected="a dict", fix="give what state_dict() returned, or fb.load(path)")
        own = self._state()
        missing = [name for name in own if name not in state_dict]
        unexpected = [name for name in state_dict if name not in own]
        values = {name: as_array(state_dict[name]) for name in own if name in state_dict}
        unfit = [f"{name}: {value.dtype} {value.shape} for {own[name].dtype} {own[name].shape}"
                 for name, value in values.items() if not _fits(value, own[name])]
        faults = {"missing": strict and missing, "unexpected": strict and unexpected, "misfitting": unfit}
        if any(faults.values()):
            raise error(ValueError, f"load_state_dict: the state does not fit {type(self).__name__}",
                        got="; ".join(f"{what}: {_some(x)}" for what, x in faults.items() if x),
                        expected="the names and shapes of state_dict()",
                        fix=_alike(missing, unexpected) + "make the model as it was saved, or pass strict=False to "
                        "pass over names")
        for name, value in values.items():
            own[name].copy_(value)
        return LoadResult(missing, unexpected)

    def to(self, dtype):
        """Convert parameters, gradients and floating buffers to float32 or float64.

        Parameters stay the same objects over new memory, laid out as before; buffers are
        replaced. Optimizers with momentum are made after it. DtypeError: another dtype.
        """
        dtype = floating("to", dtype)
        for p in self.parameters():
            if p.dtype.kind == "f" and p.dtype != dtype:
                grad, p.grad = p.grad, None
                adopt(p, converted(p, dtype))
                p.grad = grad if grad is None else converted(grad, dtype)
        for module in self.modules():
            for name, buffer in module._own_buffers():
                if buffer.dtype.kind == "f" and buffer.dtype != dtype:
                    setattr(module, name, converted(buffer, dtype))
        return self

    def train(self, mode=True):
        """Set `training` here and in all modules below; returns self."""
        for module in self.modules():
            module.training = bool(mode)
        return self

    def eval(self):
        """train(False)"""
        return self.train(False)

    def requires_grad_(self, requires_grad=True):
        """Set requires_grad of all parameters; returns self."""
        for p in self.parameters():
            p.requires_grad_(requires_grad)
        return self

    def zero_grad(self, set_to_none=True):
        """Set .grad of all parameters to None. ValueError: set_to_none, PyTorch's, is False."""
        if not set_to_none:
            raise error(ValueError, "zero_grad: gradients are set to None", got=f"set_to_none={set_to_none!r}",
                        expected="True", fix="zero_grad()")
        for p in self.parameters():
            p.grad = None

    def apply(self, fn):
        """Call fn(module) on all modules below and on this one, children first; returns self."""
        for child in self.children():
            child.apply(fn)
        fn(self)
        return self

    # --- how it looks

    def extra_repr(self):
        """What stands in the brackets of the repr."""
        return ""

    def __repr__(self):
        lines = [f"({name}): {module!r}".replace("\n", "\n  ") for name, module in self._own(Module)]
        extra = self.extra_repr()
        if not lines:
            return f"{type(self).__name__}({extra})"
        return "\n  ".join([f"{type(self).__name__}(", *([extra] if extra else []), *lines]) + "\n)"


def _tensors(tree):
    """The tensors of a nest, in its order."""
    found = []
    tree_map(lambda x: isinstance(x, Tensor) and found.append(x), tree)
    return found


def _room(y, batch, n):
    """An empty tensor for n rows as those of y, a result for a batch; what is no tensor stays."""
    if not isinstance(y, Tensor):
        return y
    if y.ndim == 0 or y.shape[0] != batch:
        raise error(ShapeError, "predict: a result has not a row for each row of the input", got=y.shape,
                    expected=f"({batch}, ...)", fix="call the model itself, or return what belongs to rows alone")
    return empty((n, *y.shape[1:]), y.dtype)


class _List(Module):
    """Modules by number: the attributes "0", "1", ..."""

    def __init__(self, modules=()):
        self.extend(modules)

    def append(self, module):
        """Put a module at the end; returns self. TypeError: it is no Module."""
        return self.extend([module])

    def extend(self, modules):
        """Put modules at the end; returns self. TypeError: one is no Module."""
        for at, module in enumerate([_checked(self, m) for m in modules], len(self)):
            setattr(self, str(at), module)
        return self

    def _names(self):
        return [name for name, _ in self._own(Module)]

    def __len__(self):
        return len(self._names())

    def __iter__(self):
        return iter([module for _, module in self._own(Module)])

    def __getitem__(self, index):
        found = list(self)[index]
        return self._of(found) if isinstance(index, slice) else found

    def __setitem__(self, index, module):
        setattr(self, self._names()[index], _checked(self, module))


def _checked(owner, module):
    if not isinstance(module, Module):
        raise TypeError(f"{type(owner).__name__} holds Modules, not {type(module).__name__}"
                        + (": write nn.ReLU() for a function" if callable(module) else ""))
    return module


class ModuleList(_List):
    """A list of modules that are parts of this one: [i], [i:j], [i] = m, len, for, append, extend."""
    _of = classmethod(lambda cls, modules: cls(modules))


class Sequential(_List):
    """y = the modules one after the other: Sequential(a, b, c), or of one dict {name: module}."""
    _of = classmethod(lambda cls, modules: cls(*modules))

    def __init__(self, *modules):
        if len(modules) == 1 and isinstance(modules[0], dict):
            for name, module in modules[0].items():
                setattr(self, name, _checked(self, module))
        else:
            super().__init__(modules)

    def forward(self, x):
        for module in self:
            x = module(x)
        return x


def _some(names):
    """The first names, and how many more there are."""
    return ", ".join(map(str, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _alike(missing, unexpected):
    """A question after a name that was perhaps only spelt in another way."""
    for name in missing[:5]:
        for other in difflib.get_close_matches(name, map(str, unexpected), 1):
            return f"is {other!r} meant for {name!r}? rename it; or "
    return ""


def _fits(value, own):
    """Whether a state's array can be copied to a tensor: shape, kind of dtype, writable memory."""
    kinds = {value.dtype.kind.replace("u", "i"), own.dtype.kind.replace("u", "i")}
    return value.shape == own.shape and len(kinds) == 1 and own.numpy().flags.writeable
