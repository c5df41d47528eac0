"""What to write for PyTorch's names that fastbp spells in another way: the hints of AttributeErrors."""
from fastbp_ext.tensor import add_method

_CONVERT = 'fb.tensor(x.numpy(), dtype="float32"); numbers of a bool tensor: fb.where(x, 1.0, 0.0)'
_COPY = "x.copy_(values)"
_LEAVE = "leave it out: all runs on the CPU"
_OUTSIDE = "NumPy's function of x.numpy()"

TENSOR = {
    "view": "x.reshape(...)", "view_as": "x.reshape(y.shape)", "contiguous": "x itself: gates take any layout",
    "numel": "x.size", "nelement": "x.size", "dim": "x.ndim", "unsqueeze": "x.expand_dims(axis)",
    "permute": "x.transpose(...)", "t": "x.T", "swapaxes": "x.transpose(...), a permutation of all axes",
    "mT": "x.transpose(...), a permutation of all axes", "expand": "x.broadcast_to(shape)",
    "repeat": "fb.concatenate([x] * n, axis)", "chunk": "slices: x[:, :n], x[:, n:]",
    "split": "slices: x[:, :n], x[:, n:]", "unbind": "for row in x",
    "clamp": "x.clip(low, high)", "clamp_min": "x.clip(low, None)", "clamp_max": "x.clip(None, high)",
    "masked_fill": "fb.where(mask, value, x)", "gather": "x[np.arange(len(x)), indices]",
    "index_select": "x[indices]", "norm": "fb.sqrt((x * x).sum())", "mm": "x @ y", "bmm": "x @ y", "dot": "x @ y",
    "float": _CONVERT, "double": 'fb.tensor(x.numpy(), dtype="float64")',
    "long": 'fb.tensor(x.numpy(), dtype="int64")', "int": 'fb.tensor(x.numpy(), dtype="int32")',
    "bool": "a comparison: x != 0", "to": _CONVERT, "type": _CONVERT, "astype": _CONVERT,
    "cpu": _LEAVE, "cuda": _LEAVE, "device": _LEAVE,
    "clone": "fb.tensor(x), a copy; x itself where nothing writes over it",
    "data": "x.detach(), which shares the memory, to read; x.copy_(values) to write",
    "tolist": "x.numpy().tolist()", "grad_fn": "x.gate",
    **dict.fromkeys(["any", "all", "isnan", "isfinite", "sort", "argsort", "topk", "cumsum"], _OUTSIDE),
    **dict.fromkeys(["zero_", "fill_", "add_", "sub_", "mul_", "div_", "clamp_"], _COPY),
    **dict.fromkeys(["normal_", "uniform_"], "nn.init's function of that name"),
}
FASTBP = {
    "cat": "fb.concatenate(tensors, axis)", "clamp": "fb.clip(x, low, high)", "unsqueeze": "fb.expand_dims(x, axis)",
    "permute": "fb.transpose(x, axes)", "mm": "fb.matmul(x, y)", "bmm": "fb.matmul(x, y)", "dot": "fb.matmul(x, y)",
    "zeros_like": "fb.zeros(x.shape)", "ones_like": "fb.ones(x.shape)", "randn_like": "fb.randn(x.shape)",
    "rand": 'fb.tensor(np.random.rand(...), dtype="float32")', "normal": "mean + std * fb.randn(shape)",
    "as_tensor": "fb.tensor(data)", "FloatTensor": "fb.tensor(data)",
    "LongTensor": 'fb.tensor(data, dtype="int64")', "empty": "fb.zeros(shape)",
    "norm": "fb.sqrt((x * x).sum())", "compile": "fb.staged", "inference_mode": "fb.no_grad",
    "set_grad_enabled": "fb.no_grad, around what needs none", "enable_grad": "fb.no_grad, around what needs none",
    "device": _LEAVE, "cuda": _LEAVE, "autograd": "fb.grad, fb.value_and_grad", "utils": "fb.data, fb.nn.utils",
    **{name: f'dtype="{name}"' for name in ("float32", "float64", "int64", "int32")},
    "float": 'dtype="float32"', "double": 'dtype="float64"', "long": 'dtype="int64"', "bool": 'dtype="bool"',
    "allclose": "np.allclose", "isnan": "np.isnan", "randint": "np.random.randint",
    "randperm": "np.random.permutation", "equal": "np.array_equal",
    **{name: f'fb.tensor(np.{name}(...), dtype="float32")' for name in ("eye", "linspace", "tril", "triu")},
}
NN = {
    "BCELoss": "nn.BCEWithLogitsLoss, of the scores before the sigmoid",
    "NLLLoss": "nn.CrossEntropyLoss, of the scores before the softmax",
    "SmoothL1Loss": "nn.HuberLoss, the same for beta=1",
    "ModuleDict": "nn.Sequential({name: module}), or an attribute for each",
    "ParameterList": "an attribute for each, by setattr", "ParameterDict": "an attribute for each, by setattr",
    **dict.fromkeys(["TransformerEncoderLayer", "TransformerEncoder"], "nn.MultiheadAttention, LayerNorm and Linear"),
}


def missing(owner, name, hints):
    """The AttributeError for `name`, with what to write for it where PyTorch has it."""
    hint = hints.get(name)
    return AttributeError(f"{owner} has no attribute {name!r}" + (f": write {hint}" if hint else ""))


class _Missing:
    """A name that a Tensor has not. (A `__getattr__` of the type would make every attribute slower.)"""

    def __init__(self, name):
        self.name = name

    def __get__(self, x, owner):
        raise missing(owner.__name__, self.name, TENSOR)

    def __set__(self, x, value):    # p.data = values would set an attribute of Python's
        raise missing(type(x).__name__, self.name, TENSOR)


for name in TENSOR:
    add_method(name, _Missing(name))
add_method("__dir__", lambda x: [name for name in object.__dir__(x) if name not in TENSOR])
