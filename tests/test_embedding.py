"""Embedding, and shapes as layers: rows by their numbers, padding, what is out of range."""
import numpy as np
import pytest
from test_gates import same_bits
from test_staged import assert_same, training_step

import fastbp as fb
from fastbp import nn, optim
from fastbp.nn import functional as F

DTYPES = ["float32", "float64"]
WORDS = np.array([[3, 0, 3], [1, 4, 2]])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("padding", [None, 3, -1])
def test_it_is_pytorchs(padding, dtype):
    torch = pytest.importorskip("torch")
    ours = nn.Embedding(6, 4, padding, dtype=dtype, rng=0)
    theirs = torch.nn.Embedding(6, 4, padding).to(getattr(torch, dtype))
    assert repr(ours) == repr(theirs)
    if padding is not None:
        assert not ours.weight.numpy()[padding].any()
    ours.load_state_dict({k: v.numpy() for k, v in theirs.state_dict().items()})
    for words in (WORDS, WORDS[0], np.array(3), np.zeros((2, 0), int), np.array([5, 5])):
        ours.zero_grad(), theirs.zero_grad()
        y, z = ours(words), theirs(torch.tensor(words))
        g = np.random.default_rng(0).standard_normal(y.shape).astype(dtype)
        y.backward(g), z.backward(torch.tensor(g))
        np.testing.assert_array_equal(y, z.detach())
        np.testing.assert_allclose(ours.weight.grad, theirs.weight.grad, rtol=1e-6)
    theirs.load_state_dict({k: torch.tensor(v.numpy()) for k, v in ours.state_dict().items()})


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_integers_of_any_kind(kind):
    w = fb.randn(6, 4, rng=0)
    f = fb.staged(lambda x: F.embedding(x, w, padding_idx=3))
    words = WORDS.astype(kind)
    for given in (words, np.asfortranarray(words), fb.tensor(words), words.tolist() if kind == "int64" else words):
        assert same_bits(F.embedding(given, w), w.numpy()[WORDS])
        if not isinstance(given, list):
            assert same_bits(f(given), w.numpy()[WORDS])


def net(dtype="float32", padding=None):
    return nn.Sequential(nn.Embedding(50, 8, padding, dtype=dtype, rng=1), nn.Flatten(),
                         nn.Linear(48, 3, dtype=dtype, rng=2))


def step_of(model):
    return training_step(model, optim.Adam(model.parameters(), lr=0.05))


@pytest.mark.parametrize("padding", [None, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_training_is_that_of_gate_by_gate(dtype, padding):
    rng = np.random.default_rng(0)
    X, y = rng.integers(0, 50, (70, 6)), rng.integers(0, 3, 70)
    X[:, 0] = 3
    a, b = net(dtype, padding), net(dtype, padding)
    before = a[0].weight.numpy()[3].copy()
    eager = step_of(b).eager
    losses = [(eager(X[k:k + 20], y[k:k + 20]).item(), len(X[k:k + 20])) for k in range(0, 70, 20)]
    assert step_of(a).epoch(X, y, batch_size=20) == sum(loss * n for loss, n in losses) / 70
    assert_same(list(a.parameters()), list(b.parameters()))
    assert same_bits(before, a[0].weight.numpy()[3]) == (padding == 3)


@pytest.mark.parametrize("padding", [None, 1])
def test_second_gradients(padding):
    w = np.random.default_rng(0).standard_normal((6, 4))
    first = fb.grad(lambda w: (F.embedding(WORDS, w, padding) ** 3).sum())
    count = np.bincount(WORDS.reshape(-1), minlength=6)[:, None] * np.ones(4)
    if padding is not None:
        count[padding] = 0
    np.testing.assert_allclose(fb.grad(lambda w: (first(w) ** 2).sum())(w), 36 * w**3 * count**2, rtol=1e-12)


def test_numbers_out_of_range_name_place_value_and_layer():
    """At a call, at a replay, before the first batch of an epoch; nothing is changed then."""
    model = nn.Sequential(nn.Embedding(6, 4, rng=0), nn.Flatten(), nn.Linear(8, 3, rng=0))
    step = step_of(model)
    good, labels = np.array([[1, 2], [3, 4]]), np.array([0, 1])
    step(good, labels)
    before = [p.numpy().tobytes() for p in model.parameters()]
    for bad, value in ((6, 6), (-1, -1), (2**40, 2**40)):
        x = good.copy()
        x[1, 0] = bad
        for call in (model, lambda x: step(x, labels), lambda x: step.epoch(x, labels, batch_size=1),
                     lambda x: step.eager(x, labels)):
            with pytest.raises(IndexError, match=rf"(?s)Embedding\(6, 4\).*got: +{value} at place .*, 0\).*0 to 5"):
                call(x)
    with pytest.raises(IndexError, match="layer: +0 "):
        model(np.array([[9, 1]]))
    assert before == [p.numpy().tobytes() for p in model.parameters()]


def test_what_is_refused():
    with pytest.raises(fb.DtypeError, match="integers"):
        F.embedding(fb.ones(3), fb.ones(2, 2))
    with pytest.raises(fb.DtypeError, match="^embedding: .*int64"):    # exchanged
        F.embedding(fb.ones(2, 2), np.array([0, 1]))
    with pytest.raises(fb.ShapeError, match="weight is a matrix"):
        F.embedding(WORDS, fb.ones(5))
    with pytest.raises(ValueError, match="max_norm"):
        nn.Embedding(3, 4, max_norm=1.0)
    for padding in (3, -4):
        with pytest.raises(IndexError, match="padding_idx"):
            nn.Embedding(3, 4, padding)
    with pytest.raises(fb.DtypeError, match="Embedding"):
        nn.Embedding(3, 4, dtype="int64")


def test_initial_values_and_pretrained_ones():
    w = nn.Embedding(300, 200, rng=1).weight.numpy()
    assert abs(w.mean()) < 0.02 and abs(w.std() - 1) < 0.02
    assert same_bits(w, nn.Embedding(300, 200, rng=1).weight)
    table = np.arange(6.0).reshape(3, 2)
    frozen = nn.Embedding.from_pretrained(table)
    free = nn.Embedding.from_pretrained(table, freeze=False, padding_idx=-1)
    assert not frozen.weight.requires_grad and free.weight.requires_grad and free.padding_idx == 2
    table[0] = 9
    assert frozen([2, 0]).numpy().tolist() == [[4, 5], [0, 1]] and repr(free) == "Embedding(3, 2, padding_idx=2)"
    with pytest.raises(fb.ShapeError, match="matrix"):
        nn.Embedding.from_pretrained(np.ones(3))


# --- shapes as layers

def test_flatten_and_back():
    x = fb.randn(2, 3, 4, 5, rng=0)
    for start, end in ((1, -1), (0, -1), (1, 2), (-2, -1), (2, 2)):
        a, b = start % 4, end % 4
        shape = x.shape[:a] + (int(np.prod(x.shape[a:b + 1])),) + x.shape[b + 1:]
        y = nn.Flatten(start, end)(x)
        assert y.shape == shape and same_bits(y, x.numpy().reshape(shape))
        assert_same(fb.staged(nn.Flatten(start, end))(x), y)
    assert same_bits(nn.Unflatten(1, (3, 4, -1))(nn.Flatten()(x)), x) and x.flatten().shape == (120,)
    assert fb.flatten(fb.tensor(2.0)).shape == (1,) and nn.Flatten()(fb.zeros(0, 3, 4)).shape == (0, 12)
    assert same_bits(nn.Flatten()(fb.from_numpy(np.asfortranarray(x.numpy()))), nn.Flatten()(x))
    assert repr(nn.Flatten()) == "Flatten(start_dim=1, end_dim=-1)"
    for given in (x.numpy(), x.numpy().tolist()):    # what a Linear behind it takes too
        y = nn.Sequential(nn.Flatten(), nn.Unflatten(1, (3, 4, 5)), nn.Flatten())(given)
        assert y.dtype == np.float32 and same_bits(y, x.numpy().reshape(2, 60))
    assert same_bits(nn.Unflatten(1, (3, 1))(x.numpy()), x.numpy().reshape(2, 3, 1, 4, 5))
    with pytest.raises(fb.ShapeError, match="Unflatten: the sizes"):
        nn.Unflatten(1, (2, 5))(x.numpy())
    for call, words in ((lambda: fb.flatten(x, 2, 1), "start_dim comes after"),
                        (lambda: fb.flatten(x, 4), "no such axis"),
                        (lambda: nn.Unflatten(1, (2, 5))(x), "Unflatten: the sizes"),
                        (lambda: nn.Unflatten(7, (2, 5))(x), "no such axis")):
        with pytest.raises(fb.ShapeError, match=words):
            call()
