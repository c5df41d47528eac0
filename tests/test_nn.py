"""Modules, layers, initial values: names, layouts, states, errors."""
import math

import numpy as np
import pytest

import fastbp as fb
from fastbp import nn, optim
from fastbp.nn import functional as F
from fastbp.nn import init
from fastbp_ext.tensor import Tensor, from_numpy


def bits(module):
    return {name: (x.dtype, x.numpy().tobytes()) for name, x in module.state_dict().items()}


def net(rng=0, dtype=None):
    rng = np.random.default_rng(rng)
    first, last = (nn.Linear(*size, dtype=dtype, rng=rng) for size in ((4, 5), (5, 3)))
    return nn.Sequential(first, nn.ReLU(), last)


class Tower(nn.Module):
    """A user's own module: parameters, a buffer, modules, a shared parameter, no super().__init__()."""

    def __init__(self):
        self.scale = nn.Parameter([1.0, 2.0, 3.0])
        self.register_buffer("mean", fb.zeros(3))
        self.register_buffer("cache", fb.zeros(3), persistent=False)
        self.body = net()
        self.heads = nn.ModuleList([nn.Linear(3, 2, rng=1), nn.Linear(3, 2, bias=False, rng=2)])
        self.heads[1].weight = self.heads[0].weight

    def forward(self, x):
        x = self.body(x) * self.scale - self.mean
        return self.heads[0](x) + self.heads[1](x)


# --- Parameter


def test_parameter_is_a_tensor():
    p = nn.Parameter([1.0, 2.0])
    assert isinstance(p, Tensor) and type(p) is nn.Parameter
    assert p.requires_grad and p.is_leaf and p.dtype == np.float32
    assert not nn.Parameter([1.0], requires_grad=False).requires_grad
    (p * p).sum().backward()
    assert p.grad.numpy().tolist() == [2, 4] and type(p * p) is Tensor
    x = fb.ones(2)
    assert [(x - p).numpy().tolist(), (p - x).numpy().tolist()] == [[0, -1], [0, 1]]
    assert [(1 - p).numpy().tolist(), (np.ones(2, "f") - p).numpy().tolist()] == [[0, -1], [0, -1]]
    assert p.mean().item() == 1.5 and p[1].item() == 2 and "2." in repr(p)


def test_parameter_shares_a_tensor_and_copies_an_array():
    base, array = fb.tensor(np.zeros((2, 3))), np.zeros(2)
    p = nn.Parameter(base.T)
    assert p.shape == (3, 2) and p.strides == base.T.strides and p._root is base
    p.copy_(np.ones((3, 2)))
    assert base.numpy().sum() == 6
    nn.Parameter(array).copy_([1.0, 1.0])
    assert array.sum() == 0


def test_parameter_over_a_recorded_tensor_is_a_leaf_and_disturbs_no_tape():
    x = fb.ones(2, requires_grad=True)
    y = x * x
    p = nn.Parameter(y)
    assert p.is_leaf
    y.sum().backward()
    assert x.grad.numpy().tolist() == [2, 2] and p.grad is None


def test_parameter_refuses():
    with pytest.raises(TypeError, match="floating"):
        nn.Parameter(np.arange(3))
    a = np.ones(2)
    a.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        nn.Parameter(from_numpy(a))


# --- listing


def test_names_in_pytorchs_order_and_shared_ones_once():
    tower = Tower()
    assert [n for n, _ in tower.named_parameters()] == [
        "scale", "body.0.weight", "body.0.bias", "body.2.weight", "body.2.bias",
        "heads.0.weight", "heads.0.bias"]
    assert len(list(tower.parameters())) == 7
    assert [n for n, _ in tower.named_parameters("t", recurse=False)] == ["t.scale"]
    assert [n for n, _ in tower.named_buffers()] == ["mean", "cache"] and len(list(tower.buffers())) == 2
    assert [n for n, _ in tower.named_modules()] == [
        "", "body", "body.0", "body.1", "body.2", "heads", "heads.0", "heads.1"]
    assert [n for n, _ in tower.named_children()] == ["body", "heads"]
    assert list(tower.children()) == [tower.body, tower.heads] and list(tower.modules())[0] is tower
    assert list(tower.state_dict()) == [
        "scale", "mean", "body.0.weight", "body.0.bias", "body.2.weight", "body.2.bias",
        "heads.0.weight", "heads.0.bias", "heads.1.weight"]


def test_shared_module_is_listed_once():
    layer = nn.Linear(2, 2)
    twice = nn.Sequential(layer, nn.ReLU(), layer)
    assert len(list(twice.parameters())) == 2 and len(list(twice.children())) == 2 and len(twice) == 3
    assert len(list(twice.modules())) == 3 and len(twice.state_dict()) == 4
    x = fb.ones(1, 2)
    np.testing.assert_array_equal(twice(x).numpy(), layer(layer(x).relu()).numpy())


def test_attributes_come_and_go():
    tower = Tower()
    tower.scale = nn.Parameter([0.0])
    assert [n for n, _ in tower.named_parameters()][0] == "scale" and tower.scale.size == 1
    for name in ("scale", "mean"):
        for bad in (np.ones(3), 1.0):
            with pytest.raises(TypeError, match=name):
                setattr(tower, name, bad)
    with pytest.raises(TypeError, match="scale"):
        tower.scale = fb.ones(3)
    tower.mean = fb.ones(3)
    assert dict(tower.named_buffers())["mean"].numpy().sum() == 3
    tower.scale = None
    tower.mean = None
    assert "scale" not in tower.state_dict() and "mean" not in tower.state_dict()
    del tower.body
    assert not any(n.startswith("body") for n in tower.state_dict())
    tower.plain = fb.ones(2)      # a tensor that is not registered
    assert "plain" not in tower.state_dict()


@pytest.mark.parametrize("name, value, kind", [
    ("a.b", fb.ones(1), ValueError), ("", fb.ones(1), ValueError), ("scale", fb.ones(1), ValueError),
    ("forward", fb.ones(1), ValueError), ("ok", np.ones(1), TypeError),
    ("ok", nn.Parameter([1.0]), TypeError)])
def test_register_buffer_refuses(name, value, kind):
    tower = Tower()
    before = bits(tower), dict(vars(tower))
    with pytest.raises(kind):
        tower.register_buffer(name, value)
    assert before == (bits(tower), vars(tower))


def test_buffers_of_one_module_are_not_anothers():
    a, b = nn.Module(), nn.Module()
    a.register_buffer("x", fb.ones(1))
    b.x = fb.ones(1)
    assert len(list(a.buffers())) == 1 and not list(b.buffers())


def test_train_eval_apply_requires_grad_zero_grad():
    tower = Tower()
    assert all(m.training for m in tower.modules())
    assert tower.eval() is tower and not any(m.training for m in tower.modules())
    assert tower.train() is tower and all(m.training for m in tower.modules())
    seen = []
    assert tower.apply(lambda m: seen.append(type(m).__name__)) is tower
    assert seen == ["Linear", "ReLU", "Linear", "Sequential", "Linear", "Linear", "ModuleList", "Tower"]
    tower(fb.ones(2, 4)).sum().backward()
    assert all(p.grad is not None for p in tower.parameters())
    tower.zero_grad()
    assert all(p.grad is None for p in tower.parameters())
    assert tower.requires_grad_(False) is tower and not tower(fb.ones(2, 4)).requires_grad


def test_pytorchs_arguments_that_change_nothing():
    x = fb.tensor([[-1.0, 2.0]])
    for layer in (nn.ReLU(inplace=True), nn.ReLU(True), nn.SiLU(inplace=True), nn.ELU(0.5, True),
                  nn.LeakyReLU(0.2, inplace=True), nn.Dropout(0.0, True), nn.Dropout(0.0, inplace=True)):
        layer(x)
        assert "inplace" not in repr(layer) and x.numpy().tolist() == [[-1, 2]]
    linear = nn.Linear(2, 1)
    for owner in (linear, optim.SGD(linear.parameters())):
        linear(x).sum().backward()
        owner.zero_grad(set_to_none=True)
        assert linear.weight.grad is None
        with pytest.raises(ValueError, match="zero_grad: gradients are set to None"):
            owner.zero_grad(set_to_none=False)
    assert nn.MaxPool2d(2, 1, 0, 1, False, True).ceil_mode
    with pytest.raises(ValueError, match="return_indices is not supported"):
        nn.MaxPool2d(2, return_indices=True)


def test_containers():
    a, b, c = nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)
    s = nn.Sequential(a, b).append(c)
    assert len(s) == 3 and list(s) == [a, b, c] and s[-1] is c and list(s[1:]) == [b, c]
    assert type(s[:2]) is nn.Sequential
    s[1] = nn.Tanh()
    assert isinstance(s[1], nn.Tanh) and [n for n, _ in s.named_children()] == ["0", "1", "2"]
    named = nn.Sequential({"fc": a, "act": b})
    assert list(named.state_dict()) == ["fc.weight", "fc.bias"] and named.fc is a
    many = nn.ModuleList([a]).extend([b, c])
    assert len(many) == 3 and many[2] is c and type(many[:1]) is nn.ModuleList
    with pytest.raises(IndexError):
        many[3]
    with pytest.raises(TypeError, match="nn.ReLU"):
        nn.Sequential(a, fb.relu)
    with pytest.raises(TypeError):
        many.extend([a, 3])
    assert len(many) == 3
    with pytest.raises(NotImplementedError, match="ModuleList"):
        many(fb.ones(1))


def test_repr_is_pytorchs():
    inner = nn.Sequential(nn.LeakyReLU(0.2), nn.Linear(3, 1, bias=False))
    assert repr(nn.Sequential(nn.Linear(4, 3), inner)) == (
        "Sequential(\n"
        "  (0): Linear(in_features=4, out_features=3, bias=True)\n"
        "  (1): Sequential(\n"
        "    (0): LeakyReLU(negative_slope=0.2)\n"
        "    (1): Linear(in_features=3, out_features=1, bias=False)\n"
        "  )\n"
        ")")
    assert repr(nn.GELU()) == "GELU(approximate='none')" and repr(nn.Softmax(dim=1)) == "Softmax(dim=1)"
    assert repr(nn.ReLU().eval()) == "ReLU()" and repr(nn.ELU().eval()) == "ELU(alpha=1.0)"


# --- Linear


def test_linear_layout_and_default_init():
    layer = nn.Linear(100, 300, rng=3)
    w = layer.weight
    assert w.shape == (300, 100) and w.strides == (4, 1200) and w.T.is_contiguous and w.dtype == np.float32
    assert layer.bias.shape == (300,)
    for p in layer.parameters():
        x = np.abs(p.numpy())
        assert 0.095 < x.max() <= np.float32(0.1) and 0.04 < x.mean() < 0.06
    state = layer.state_dict()
    assert state["weight"].is_contiguous and state["weight"].shape == (300, 100)
    np.testing.assert_array_equal(state["weight"].numpy(), w.numpy())
    (layer(fb.ones(2, 100)) ** 2).sum().backward()
    assert w.grad.strides == w.strides       # so that an update walks both in step


def test_linear_draws_weight_then_bias_from_one_rng():
    layer, stream = nn.Linear(4, 3, dtype="float64", rng=5), np.random.default_rng(5)
    np.testing.assert_array_equal(layer.weight.numpy(), stream.uniform(-0.5, 0.5, (3, 4)))
    np.testing.assert_array_equal(layer.bias.numpy(), stream.uniform(-0.5, 0.5, 3))


def test_seeds():
    assert bits(net(7)) == bits(net(7)) != bits(net(8))
    fb.manual_seed(1)
    first = bits(nn.Linear(3, 2))
    second = bits(nn.Linear(3, 2))
    fb.manual_seed(1)
    assert bits(nn.Linear(3, 2)) == first != second


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_sizes_may_be_numpys(kind):
    """As that of classes is: nn.Linear(64, y.max() + 1)."""
    n = kind(3)
    x = np.ones((4, 3), np.float32)
    for layer in (nn.Linear(3, n), nn.Linear(n, 3), nn.LayerNorm(n), nn.RMSNorm(n), nn.BatchNorm1d(n)):
        assert layer(x).shape == (4, 3)
    assert nn.Conv2d(1, n, n)(fb.ones(2, 1, 4, 4)).shape == (2, 3, 2, 2)
    assert nn.MultiheadAttention(n, n)(*3 * [fb.ones(2, 4, 3)])[0].shape == (2, 4, 3)
    assert F.layer_norm(x, n).shape == (4, 3) and repr(nn.RMSNorm(n)).startswith("RMSNorm((3,)")
    assert fb.full(n, 1).shape == fb.zeros(n).shape == (3,) and fb.full(np.array([n, 2]), 1).shape == (3, 2)


def test_a_size_is_an_integer():
    for call in (lambda: nn.Linear(4, 64 / 2), lambda: nn.Embedding(3.0, 2), lambda: nn.GRU(4, 5.5),
                 lambda: fb.zeros(2.0, 3), lambda: fb.ones(2.5), lambda: fb.full(None, 1)):
        with pytest.raises(TypeError, match=r"a size is no integer[^$]*where: +\S*test_nn.py[^$]*fix: "):
            call()


@pytest.mark.parametrize("leading", [(), (5,), (2, 3), (2, 1, 3), (0,)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_x_wt_plus_b(leading, bias):
    layer = nn.Linear(4, 3, bias=bias, dtype="float64", rng=0)
    x = np.random.default_rng(0).normal(size=(*leading, 4))
    expected = x @ layer.weight.numpy().T + (layer.bias.numpy() if bias else 0)
    y = layer(fb.tensor(x))
    assert y.shape == (*leading, 3)
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-13)
    np.testing.assert_array_equal(layer(x).numpy(), y.numpy())     # an array is taken too
    assert ("bias" in layer.state_dict()) is bias and (layer.bias is None) is not bias


def test_linear_gradients():
    for shapes in (((2, 5, 4), (3, 4), (3,)), ((4,), (3, 4))):
        assert fb.gradcheck(F.linear, [np.random.default_rng(0).normal(size=s) for s in shapes])


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (1, 3), (3, 1), (1, 1)])
def test_linear_of_thin_shapes(shape):
    layer = nn.Linear(*shape, rng=0)
    assert layer(fb.ones(2, shape[0])).shape == (2, shape[1])
    other = nn.Linear(*shape, rng=1)
    other.load_state_dict(layer.state_dict())
    assert bits(other) == bits(layer)


@pytest.mark.parametrize("bad, kind", [
    (dict(dtype="int64"), fb.DtypeError), (dict(dtype="float16"), fb.DtypeError), (dict(rng="a"), TypeError)])
def test_linear_refuses(bad, kind):
    with pytest.raises(kind):
        nn.Linear(2, 2, **bad)


def test_functional_linear_refuses():
    x, w, b = fb.ones(2, 4), fb.ones(3, 4), fb.ones(3)
    for args in ((x, w, fb.ones(4)), (x, w, fb.ones(1, 3)), (x, w, 1.0), (x, fb.ones(4), b),
                 (fb.ones(()), w, b), (fb.ones(2, 3), w, b)):
        with pytest.raises(fb.ShapeError, match="linear"):
            F.linear(*args)


# --- errors say which layer


def message(call, kind):
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    return str(caught.value)


def test_a_wrong_size_names_the_layer():
    text = message(lambda: net()(fb.ones(2, 7)), fb.ShapeError)
    assert "input (2, 7)" in text and "(..., 4)" in text and "fix: " in text and "test_nn.py" in text
    assert text.endswith("\n  layer:    0 (Linear(in_features=4, out_features=5, bias=True))")
    assert "x.reshape(-1, 4)" in message(lambda: net()(fb.ones(2, 2, 2)), fb.ShapeError)


def test_the_innermost_layer_is_named_once_with_its_path():
    tower = Tower()
    tower.body[2] = nn.Linear(6, 3)
    text = message(lambda: tower(fb.ones(2, 4)), fb.ShapeError)
    assert text.count("layer:") == 1 and "layer:    body.2 (Linear(in_features=6" in text
    text = message(lambda: tower.body[2](fb.ones(2, 4)), fb.ShapeError)
    assert text.endswith("layer:    Linear(in_features=6, out_features=3, bias=True)")


def test_dtype_and_index_errors_name_the_layer():
    assert "layer:    0 (" in message(lambda: net()(fb.ones(2, 4, dtype="float64")), fb.DtypeError)
    assert "layer:    CrossEntropyLoss()" in message(
        lambda: nn.CrossEntropyLoss()(fb.ones(2, 3), np.array([0, 3])), IndexError)


def test_other_errors_pass_as_they_are():
    class Odd(nn.Module):
        def forward(self, x):
            raise x

    for problem in (ValueError("a"), KeyError("k"), IndexError(), IndexError("a", 2)):
        args = problem.args
        with pytest.raises(type(problem)) as caught:
            nn.Sequential(Odd())(problem)
        assert caught.value is problem and problem.args == args


def test_a_module_that_is_no_attribute_is_named_too():
    inner = nn.Linear(3, 2)

    class Hidden(nn.Module):
        def forward(self, x):
            return inner(x)

    assert message(lambda: Hidden()(fb.ones(1, 2)), fb.ShapeError).endswith(
        "layer:    Linear(in_features=3, out_features=2, bias=True)")


# --- states


def test_state_dict_is_a_copy():
    tower = Tower()
    state = tower.state_dict()
    assert type(state) is dict and not any(x.requires_grad for x in state.values())
    assert all(type(x) is Tensor and x.is_contiguous for x in state.values())
    before = bits(tower)
    for x in state.values():
        x.copy_(9.0)
    assert bits(tower) == before


@pytest.mark.parametrize("as_array", [
    lambda x: x, lambda x: x.numpy().copy(), lambda x: x.numpy().astype(">f8"), lambda x: memoryview(x)])
def test_load_state_dict_round_trip_in_place(as_array):
    a, b = Tower(), Tower()
    for p in a.parameters():
        p.copy_(np.random.default_rng(0).normal(size=p.shape))
    view, objects = b.body[0].weight.T, list(b.parameters())
    strides = [p.strides for p in objects]
    result = b.load_state_dict({n: as_array(x) for n, x in a.state_dict().items()})
    assert result == ([], []) and result.missing_keys == []
    assert bits(a) == bits(b)
    np.testing.assert_array_equal(view.numpy(), a.body[0].weight.numpy().T)
    assert all(p is q for p, q in zip(b.parameters(), objects, strict=True))
    assert strides == [p.strides for p in b.parameters()] and b.heads[1].weight is b.heads[0].weight


def test_load_state_dict_converts_floats_and_is_seen_by_backward():
    a, b = net(0), net(1, "float64")
    loss = b(fb.ones(2, 4, dtype="float64")).sum()
    b.load_state_dict(a.state_dict())
    assert b[0].weight.dtype == np.float64
    np.testing.assert_array_equal(b[0].weight.numpy(), a[0].weight.numpy())
    with pytest.raises(RuntimeError, match="in place"):
        loss.backward()


def wrong(state):
    first = next(iter(state))
    rest = {n: x for n, x in state.items() if n != first}
    return {"missing": ({**rest}, first), "unexpected": ({**state, "extra.w": np.ones(1)}, "extra.w"),
            "number": ({**state, 3: np.ones(1)}, "3"),
            "shape": ({**state, "body.2.bias": np.ones(4)}, r"body.2.bias: float64 \(4,\) for .*\(3,\)"),
            "broadcast": ({**state, "body.2.bias": np.ones(1)}, "misfitting"),
            "transposed": ({**state, "body.0.weight": np.ones((4, 5))}, "body.0.weight"),
            "integers": ({**state, "body.2.bias": np.ones(3, int)}, "int64"),
            "text": ({**state, "body.2.bias": np.array(["a", "b", "c"])}, "misfitting"),
            "all": ({**rest, "x": 1, "mean": np.ones(9)}, "missing: scale; unexpected: x; misfitting: mean")}


@pytest.mark.parametrize("case", wrong(dict.fromkeys(["a"])))
def test_refused_state_changes_nothing(case):
    tower, other = Tower(), Tower()
    for p in other.parameters():
        p.copy_(1.0)
    before = bits(tower)
    state, text = wrong(other.state_dict())[case]
    with pytest.raises(ValueError, match=text):
        tower.load_state_dict(state)
    assert bits(tower) == before


@pytest.mark.parametrize("wrong", ["w.npz", None, [1], nn.ReLU()])
def test_a_state_is_a_dict(wrong):
    with pytest.raises(TypeError, match=f"(?s)this is no state.*got: +{type(wrong).__name__}\n.*fix"):
        nn.ReLU().load_state_dict(wrong)


def test_not_strict_passes_over_names_but_not_over_shapes():
    tower = Tower()
    result = tower.load_state_dict({"scale": np.full(3, 5.0), "x": np.ones(1)}, strict=False)
    assert tower.scale.numpy().tolist() == [5] * 3
    assert "body.0.weight" in result.missing_keys and result.unexpected_keys == ["x"]
    with pytest.raises(ValueError, match="misfitting: scale"):
        tower.load_state_dict({"scale": np.full(4, 5.0), "mean": np.ones(3)}, strict=False)
    assert tower.mean.numpy().sum() == 0


def test_read_only_buffer_is_refused_before_anything_is_copied():
    a = np.zeros(2)
    a.flags.writeable = False
    module = nn.Sequential(nn.Linear(2, 2))
    module.register_buffer("b", from_numpy(a))
    module[0].register_buffer("n", from_numpy(np.zeros(2, "int64")))
    before = bits(module)
    with pytest.raises(ValueError, match="misfitting: b"):
        module.load_state_dict({n: np.ones(x.shape, x.dtype) for n, x in module.state_dict().items()})
    assert bits(module) == before


# --- to


def test_to_keeps_parameters_layouts_and_converts_gradients():
    tower = Tower()
    tower.register_buffer("count", from_numpy(np.zeros((), "int64")))
    tower(fb.ones(2, 4)).sum().backward()
    objects = list(tower.parameters())
    before = [(p.numpy().copy(), p.grad.numpy().copy()) for p in objects]
    assert tower.to("float64") is tower
    for p, q, (value, gradient) in zip(tower.parameters(), objects, before, strict=True):
        assert p is q and p.dtype == p.grad.dtype == np.float64 and p.is_leaf and p.requires_grad
        np.testing.assert_array_equal(p.numpy(), value)
        np.testing.assert_array_equal(p.grad.numpy(), gradient)
    assert tower.body[0].weight.T.is_contiguous and tower.heads[1].weight is tower.heads[0].weight
    assert tower.mean.dtype == np.float64 and tower.count.dtype == np.int64
    assert tower(fb.ones(2, 4, dtype="float64")).dtype == np.float64
    tower.to(np.float32)
    assert all(np.array_equal(p.numpy(), v) for p, (v, _) in zip(tower.parameters(), before, strict=True))


def test_to_leaves_lent_memory_alone():
    layer = nn.Linear(50, 40, rng=0)
    array, buffer, view = layer.weight.numpy(), memoryview(layer.weight), layer.weight.T
    expected = array.copy()
    layer.to("float64")
    fb.zeros(40, 50)      # takes the memory if it was released
    np.testing.assert_array_equal(array, expected)
    np.testing.assert_array_equal(np.asarray(buffer), expected)
    np.testing.assert_array_equal(view.numpy(), expected.T)


def test_to_is_seen_by_an_older_tape():
    layer = nn.Linear(3, 2)
    y = layer(fb.ones(1, 3)).sum()
    layer.to("float64")      # the tape has a view of the old memory: its gradient fits no more
    with pytest.raises(RuntimeError, match="changed its dtype"):
        y.backward()
    assert all(p.grad is None for p in layer.parameters())
    tower = Tower()
    y = tower(fb.ones(1, 4)).sum()
    tower.to("float64")
    tower.scale.copy_([9.0, 9.0, 9.0])
    tower.to("float32")
    with pytest.raises(RuntimeError, match="in place"):
        y.backward()


def test_to_refuses():
    layer = nn.Linear(2, 2)
    before = bits(layer)
    for bad in ("int64", "float16", bool):
        with pytest.raises(fb.DtypeError):
            layer.to(bad)
    assert bits(layer) == before


# --- activations and losses as modules are the functions


@pytest.mark.parametrize("module, function", [
    (nn.ReLU(), fb.relu), (nn.LeakyReLU(0.3), lambda x: fb.leaky_relu(x, 0.3)),
    (nn.ELU(2.0), lambda x: fb.elu(x, 2.0)), (nn.Sigmoid(), fb.sigmoid), (nn.Tanh(), fb.tanh),
    (nn.SiLU(), fb.silu), (nn.Softplus(), fb.softplus),
    (nn.Softplus(2.0), lambda x: fb.log1p(fb.exp(2 * x)) / 2),
    (nn.GELU(), fb.gelu), (nn.GELU("tanh"), lambda x: fb.gelu(x, "tanh")), (nn.Identity(7), lambda x: x),
    (nn.Softmax(0), lambda x: fb.softmax(x, 0)), (nn.LogSoftmax(dim=0), lambda x: fb.log_softmax(x, 0)),
    (F.softmax, fb.softmax), (F.log_softmax, fb.log_softmax)])
def test_activations(module, function):
    x = fb.tensor(np.linspace(-2, 2, 12).reshape(3, 4))
    np.testing.assert_allclose(module(x).numpy(), function(x).numpy(), rtol=1e-14)


def test_softplus_beta_is_positive():
    for bad in (0, -1, math.nan):
        with pytest.raises(ValueError, match="beta"):
            F.softplus(fb.ones(1), bad)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_losses(reduction):
    rng = np.random.default_rng(0)
    x, t = fb.tensor(rng.normal(size=(5, 3))), fb.tensor(rng.uniform(size=(5, 3)))
    y, weight = np.array([0, 2, 1, 1, 2]), np.array([1.0, 2.0, 3.0])
    for module, expected in (
            (nn.MSELoss(reduction), fb.mse_loss(x, t, reduction)),
            (nn.L1Loss(reduction), fb.l1_loss(x, t, reduction)),
            (nn.HuberLoss(reduction, delta=0.5), fb.huber_loss(x, t, reduction, 0.5)),
            (nn.BCEWithLogitsLoss(reduction), fb.binary_cross_entropy_with_logits(x, t, reduction))):
        np.testing.assert_array_equal(module(x, t).numpy(), expected.numpy())
    for options in ({}, dict(weight=weight), dict(ignore_index=2), dict(weight=weight, label_smoothing=0.1)):
        np.testing.assert_array_equal(nn.CrossEntropyLoss(reduction=reduction, **options)(x, y).numpy(),
                                      fb.cross_entropy(x, y, reduction=reduction, **options).numpy())


def test_cross_entropy_weight_is_a_buffer():
    loss = nn.CrossEntropyLoss(weight=[1, 2, 3])
    assert list(loss.state_dict()) == ["weight"] and not list(loss.parameters())
    assert loss.to("float64").weight.dtype == np.float64
    assert list(nn.CrossEntropyLoss().state_dict()) == []


def test_functional_has_pytorchs_names():
    assert all(callable(getattr(F, name)) for name in F.__all__)
    assert set(F.__all__) >= set(
        ["relu", "leaky_relu", "elu", "sigmoid", "tanh", "softplus", "silu", "gelu", "softmax", "log_softmax", "linear",
         "cross_entropy", "mse_loss", "l1_loss", "huber_loss", "binary_cross_entropy_with_logits", "hinge_loss",
         "conv1d", "conv2d", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d",
         "dropout", "dropout1d", "dropout2d", "batch_norm", "layer_norm", "rms_norm", "embedding",
         "scaled_dot_product_attention"])


# --- initial values


def test_init_ranges():
    w = fb.zeros(200, 300)     # fan_in 300, fan_out 200
    for fill, options, bound in (
            (init.uniform_, dict(a=-2, b=2), 2), (init.xavier_uniform_, {}, math.sqrt(6 / 500)),
            (init.xavier_uniform_, dict(gain=2), 2 * math.sqrt(6 / 500)),
            (init.kaiming_uniform_, {}, math.sqrt(6 / 300)),
            (init.kaiming_uniform_, dict(a=math.sqrt(5)), 300 ** -0.5),
            (init.kaiming_uniform_, dict(mode="fan_out", nonlinearity="relu"), math.sqrt(6 / 200))):
        assert fill(w, rng=0, **options) is w
        assert 0.99 * bound < np.abs(w.numpy()).max() <= bound * (1 + 1e-6)
        assert abs(w.numpy().mean()) < 0.02 * bound
    for fill, options, std in (
            (init.normal_, dict(std=3), 3), (init.xavier_normal_, {}, math.sqrt(2 / 500)),
            (init.kaiming_normal_, {}, math.sqrt(2 / 300)),
            (init.kaiming_normal_, dict(mode="fan_out", nonlinearity="tanh"), 5 / 3 / math.sqrt(200))):
        fill(w, rng=0, **options)
        assert w.numpy().std() == pytest.approx(std, rel=0.02)
    assert init.zeros_(w, rng=0).numpy().max() == 0 and init.ones_(w).numpy().min() == 1
    assert init.constant_(w, 2.5).numpy().max() == 2.5
    assert init.normal_(w, mean=5, std=0).numpy().min() == 5


def test_init_fans_of_more_dimensions_and_layouts():
    w = fb.zeros(8, 4, 5, 5)
    init.kaiming_uniform_(w, rng=0)
    assert np.abs(w.numpy()).max() == pytest.approx(math.sqrt(6 / 100), rel=0.02)
    a, b = fb.zeros(3, 4), fb.zeros(4, 3).T
    np.testing.assert_array_equal(init.normal_(a, rng=1).numpy(), init.normal_(b, rng=1).numpy())
    p = nn.Parameter(fb.zeros(2, 2))
    assert init.normal_(p) is p and p.is_leaf


def test_calculate_gain():
    gains = {"linear": 1, "sigmoid": 1, "tanh": 5 / 3, "relu": math.sqrt(2), "selu": 0.75,
             "leaky_relu": math.sqrt(2 / 1.0001)}
    for name, gain in gains.items():
        assert init.calculate_gain(name) == pytest.approx(gain, rel=1e-15)
    assert init.calculate_gain("leaky_relu", 1) == 1


@pytest.mark.parametrize("call", [
    lambda w: init.uniform_(w, 1, 0), lambda w: init.uniform_(w, math.nan),
    lambda w: init.uniform_(w, 0, math.inf), lambda w: init.normal_(w, 0, -1),
    lambda w: init.normal_(w, 0, math.nan), lambda w: init.normal_(w, rng=-1),
    lambda w: init.calculate_gain("x"), lambda w: init.kaiming_normal_(w, mode="fan"),
    lambda w: init.kaiming_normal_(w, nonlinearity="x"), lambda w: init.xavier_normal_(w[0]),
    lambda w: init.kaiming_uniform_(w[0])])
def test_init_refuses(call):
    w = fb.ones(2, 3)
    with pytest.raises(ValueError):
        call(w)
    assert w.numpy().min() == w.numpy().max() == 1


# --- learning


@pytest.mark.parametrize("kind, lr", [(optim.SGD, 0.5), (optim.Adam, 0.05), (optim.AdamW, 0.05)])
def test_two_layers_learn_xor(kind, lr):
    rng = np.random.default_rng(0)
    model = nn.Sequential(nn.Linear(2, 8, rng=rng), nn.Tanh(), nn.Linear(8, 2, rng=rng))
    opt, loss = kind(model.parameters(), lr=lr), nn.CrossEntropyLoss()
    x, y = fb.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]), np.array([0, 1, 1, 0])
    for _ in range(500):
        opt.zero_grad()
        value = loss(model(x), y)
        value.backward()
        opt.step()
    assert value.item() < 0.05 and (model(x).numpy().argmax(1) == y).all()


def test_names_and_values_against_pytorch():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    theirs = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
    ours = net()
    assert repr(ours) == repr(theirs)
    assert ours.load_state_dict(theirs.state_dict()) == ([], [])
    x = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
    expected = theirs(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(ours(x).numpy(), expected, rtol=1e-5, atol=1e-6)
    back = {n: torch.from_numpy(p.numpy()) for n, p in net(5).state_dict().items()}
    assert not theirs.load_state_dict(back).missing_keys
    w = torch.zeros(30, 40)
    for name in ("relu", "tanh", "linear", "sigmoid", "selu", "leaky_relu"):
        assert init.calculate_gain(name) == pytest.approx(torch.nn.init.calculate_gain(name), rel=1e-15)
    for fill in ("kaiming_normal_", "xavier_normal_", "kaiming_uniform_", "xavier_uniform_"):
        std = getattr(torch.nn.init, fill)(w).std().item()
        assert getattr(init, fill)(fb.zeros(30, 40), rng=0).numpy().std() == pytest.approx(std, rel=0.1)
