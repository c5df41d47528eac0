"""Module.predict: the bits of the call, in batches; what it leaves as it was."""
import copy
import gc
import pickle
import weakref

import numpy as np
import pytest
from test_gates import same_bits

import fastbp as fb
from fastbp import nn

X = np.random.default_rng(0).standard_normal((103, 6)).astype(np.float32)


def net(dtype="float32"):
    return nn.Sequential(nn.Linear(6, 8, rng=0, dtype=dtype), nn.Tanh(), nn.Linear(8, 3, rng=1, dtype=dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1, 10, 103, 1000])
def test_it_gives_the_bits_of_a_call(dtype, size):
    model, x = net(dtype), X.astype(dtype)
    y = model.predict(x, batch_size=size)
    assert isinstance(y, fb.Tensor) and same_bits(y, model(x)) and not y.requires_grad and y.is_contiguous
    assert model._replayed.recordings == (2 if size == 10 else 1), "one program for each shape"
    model.predict(x, batch_size=size)
    assert model._replayed.recordings == (2 if size == 10 else 1)


@pytest.mark.parametrize("given", [
    lambda: fb.tensor(X), lambda: fb.tensor(X, requires_grad=True), lambda: np.asfortranarray(X),
    lambda: np.repeat(X, 2, 0)[::2], lambda: X.astype(">f4"), lambda: fb.tensor(X.T.copy()).T,
])
def test_inputs_of_any_kind(given):
    model = net()
    assert same_bits(model.predict(given(), batch_size=25), model(X))


class Both(nn.Module):
    """Two inputs; a nest of results."""

    def forward(self, x, i):
        return x * 2, {"sum": x.sum(1), "none": None}, [x[np.arange(len(x)), i]]


def test_several_inputs_and_nests_of_results():
    i = np.arange(103) % 6
    whole, parts = Both()(fb.tensor(X), i), Both().predict(X, i, batch_size=10)
    assert type(parts) is tuple and parts[1]["none"] is None and type(parts[2]) is list
    for a, b in zip((whole[0], whole[1]["sum"], whole[2][0]), (parts[0], parts[1]["sum"], parts[2][0]), strict=True):
        assert same_bits(a, b)
    with pytest.raises(IndexError, match="6"):
        Both().predict(X, i + 2, batch_size=10)


class Moded(nn.Module):
    def __init__(self):
        self.inner, self.frozen = nn.Identity(), nn.Identity()
        self.frozen.eval()
        self.w = nn.Parameter(fb.ones(6))
        self.seen = []

    def forward(self, x):
        self.seen.append((self.training, self.inner.training, self.frozen.training, (self.w * 1).requires_grad))
        return self.inner(x) * self.w * (2 if self.training else 1)


def test_modes_and_gradients_are_put_back():
    model = Moded()
    modes = lambda: (model.training, model.inner.training, model.frozen.training, (model.w * 1).requires_grad)
    assert same_bits(model.predict(X, batch_size=50), fb.tensor(X)) and model.seen == [(False, False, False, False)] * 2
    assert modes() == (True, True, False, True)
    with pytest.raises(fb.DtypeError):
        model.predict(X.astype(np.float64))
    assert modes() == (True, True, False, True)
    assert model(X).numpy()[0, 0] == 2 * X[0, 0]
    assert same_bits(model.predict(X, batch_size=50), fb.tensor(X))


def test_results_are_their_own():
    for model in (nn.Identity(), net()):
        for size in (50, 200):
            x = X.copy()
            y = model.predict(x, batch_size=size)
            before = y.numpy().copy()
            x[...] = 0
            model.predict(x, batch_size=size)
            assert same_bits(y, fb.tensor(before))
            with fb.detect_anomaly():
                x[...] = X
                checked = model.predict(x, batch_size=size)
                assert same_bits(checked, y) and not np.may_share_memory(checked.numpy(), x)


def test_it_follows_the_weights():
    model, other = net(), net()
    other.load_state_dict({k: v.numpy() * 2 for k, v in model.state_dict().items()})
    model.predict(X)
    model.load_state_dict(other.state_dict())
    assert same_bits(model.predict(X), other(X))
    model.to("float64")
    other.to("float64")
    assert same_bits(model.predict(X.astype(np.float64)), other(X.astype(np.float64)))


def test_a_model_that_predicted_is_copied_shown_and_freed_as_before():
    model = net()
    before, keys = repr(model), list(model.state_dict())
    y = model.predict(X)
    assert repr(model) == before and list(model.state_dict()) == keys
    act = nn.LeakyReLU()
    shown = repr(act)
    act.predict(X)
    assert repr(act) == shown
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert same_bits(other.predict(X), y) and other._replayed is not model._replayed
        other[0].weight.copy_(0.0)
        assert not same_bits(other.predict(X), y) and same_bits(model.predict(X), y)
    alive = weakref.ref(model)
    del model, other
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("call, kind, says", [
    (lambda m: m.predict(X[:0]), fb.ShapeError, "empty"), (lambda m: m.predict(), ValueError, "no arrays"),
    (lambda m: m.predict(X, X[:5]), fb.ShapeError, "lengths differ"), (lambda m: m.predict([1.0]), TypeError, "array"),
    (lambda m: m.predict(X, batch_size=0), ValueError, "batch_size"),
    (lambda m: m.predict(X[:, :5]), fb.ShapeError, "Linear"),
])
def test_what_can_not_be_predicted(call, kind, says):
    with pytest.raises(kind, match=says):
        call(net())


def test_results_that_belong_to_no_row():
    class Mean(nn.Module):
        def forward(self, x):
            return x.mean(0) if self.axis else x.mean()

    for Mean.axis in (True, False):
        with pytest.raises(fb.ShapeError, match="a row for each row"):
            Mean().predict(X, batch_size=10)
