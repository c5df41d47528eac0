"""Dropout: the words of a counter, the same for any threads and instruction set, on from call to call."""
import copy
import hashlib
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from cases import drawn, philox
from test_gates import same_bits
from test_staged import assert_same, training_step

import fastbp as fb
from fastbp import data, nn, optim
from fastbp.nn import functional as F
from fastbp.random import counter, stream
from fastbp_ext import cpu

SHAPES = [(0,), (1,), (63,), (64,), (65,), (3, 100), (2, 5, 7, 9), (40, 1030)]


def key():
    return counter.numpy().copy()


@pytest.mark.parametrize("counted, keyed, words", [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1")])
def test_the_published_words(counted, keyed, words):
    """The known answers of Random123, the authors' own code."""
    def numbers(text):
        return [int(word, 16) for word in text.split()]
    assert philox(np.array(numbers(counted))[:, None], numbers(keyed))[:, 0].tolist() == numbers(words)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES)
def test_an_element_is_dropped_as_its_word_says(shape, dtype):
    n, ones = int(np.prod(shape)), fb.ones(shape, dtype=dtype)
    own = stream(5)
    own.numpy()[1] = 2**33 + 7    # every word of the counter counts
    words = drawn(n, own.numpy()).reshape(shape)
    for p in (1e-9, 0.1, 0.5, 0.9, 1 - 1e-9):
        own.numpy()[1] = 2**33 + 7
        y = F.dropout(ones, p, rng=own).numpy()
        assert same_bits(y, np.where(words < round(p * 2**32), 0, 1 / (1 - p)).astype(dtype)) and y.dtype == dtype
    assert own.numpy()[1] == 2**33 + 8


def test_how_many_are_dropped():
    fb.manual_seed(0)
    for p in (0.1, 0.5, 0.75):
        y = fb.dropout(fb.ones(1000, 1000), p).numpy()
        assert abs((y == 0).mean() - p) < 2e-3 and abs(y.mean() - 1) < 5e-3
        assert abs((y[1:] * y[:-1]).mean() - 1) < 1e-2 and abs((y[:, 64:] * y[:, :-64]).mean() - 1) < 1e-2


def test_none_all_and_not_training():
    x, before = fb.randn(4, 5, rng=0), key()
    assert F.dropout(x, 0) is x and F.dropout(x, 0.5, training=False) is x
    assert F.dropout1d(fb.ones(1, 2, 3), 0.0).numpy().all() and same_bits(key(), before)
    assert not F.dropout(x, 1).numpy().any() and key()[1] == before[1] + 1
    layer = nn.Dropout(0.5).eval()
    f = fb.staged(layer)
    assert layer(x) is x and same_bits(f(x), x) and "dropout" not in str(f.stages())
    layer.train()
    assert (f(x).numpy() == 0).any() and f.recordings == 2


@pytest.mark.parametrize("p", [-0.1, 1.1, np.nan, "0.5", None, True])
def test_p_is_a_probability(p):
    for call in (nn.Dropout, nn.Dropout2d, lambda p: F.dropout(fb.ones(2), p), lambda p: F.dropout2d(fb.ones(2), p)):
        with pytest.raises(ValueError, match="probability"):
            call(p)


def test_whole_channels():
    x = fb.randn(20, 30, 4, 5, rng=0).requires_grad_()
    y = nn.Dropout2d(0.4, rng=0)(x)
    kept = y.numpy() != 0
    assert (kept.all((2, 3)) | ~kept.any((2, 3))).all() and 0.5 < kept.mean() < 0.7
    np.testing.assert_allclose(y.numpy()[kept], x.numpy()[kept] / 0.6, rtol=1e-6)
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy() != 0, kept)
    y = nn.Dropout1d(0.5, rng=1)(fb.ones(8, 9, 10)).numpy()
    assert (y == y[..., :1]).all() and set(np.unique(y)) == {0, 2}
    for layer, ndim in ((nn.Dropout1d(), 3), (nn.Dropout2d(), 4)):
        with pytest.raises(fb.ShapeError, match=f"(?s){ndim}: .*layer: +{type(layer).__name__}"):
            layer(fb.ones(3, 3))
    assert repr(nn.Dropout2d(0.25)) == "Dropout2d(p=0.25)"


def test_layouts_and_gradients_have_the_same_mask():
    x = np.random.default_rng(0).standard_normal((30, 50), np.float32)
    plain, turned = fb.tensor(x, requires_grad=True), fb.from_numpy(np.asfortranarray(x)).requires_grad_()
    y, z = (F.dropout(t, 0.5, rng=7) for t in (plain, turned))
    assert same_bits(y, z)
    for out in (y, z):
        out.backward(fb.ones(30, 50).T.numpy().T)
    assert same_bits(plain.grad, turned.grad) and same_bits(plain.grad, np.where(y.numpy() == 0, 0, 2).astype("f"))


# --- replays

def net(rng=None, dtype="float32"):
    init = np.random.default_rng(0)
    return nn.Sequential(nn.Dropout(0.2, rng=rng), nn.Linear(64, 300, rng=init, dtype=dtype), nn.ReLU(),
                         nn.Dropout(0.5, rng=rng), nn.Linear(300, 10, rng=init, dtype=dtype))


def values(model):
    return [p.numpy().tobytes() for p in model.parameters()]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_training_is_that_of_gate_by_gate(dtype):
    """Calls, repeats and epochs whose last batch is short; the streams stand at the same place at the end."""
    X, y = data.load_digits()
    X, y = X[:250].astype(dtype), y[:250]
    found = []
    for eager in (False, True):
        fb.manual_seed(3)
        model = net(dtype=dtype)
        step = training_step(model, optim.Adam(model.parameters(), lr=0.01))
        call = step.eager if eager else step
        losses = [call(X[:100], y[:100]).item() for _ in range(3)]
        losses += [step.repeat(4, X[:100], y[:100]).item()] if not eager else [
            [call(X[:100], y[:100]).item() for _ in range(4)][-1]]
        if eager:
            batches = [call(*batch) for batch in data.batches(X, y, batch_size=100, shuffle=True, rng=1)]
            losses.append(sum(a.item() * b for a, b in zip(batches, (100, 100, 50), strict=True)) / 250)
        else:
            losses.append(step.epoch(X, y, batch_size=100, shuffle=True, rng=1))
            assert step.recordings == 2
        found.append((losses, values(model), fb.get_rng_state()["counter"]))
    assert found[0] == found[1] and found[0][2]["count"] == 20


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_threads(number):
    before = fb.get_num_threads()
    X, y = data.load_digits()
    try:
        found = []
        for threads in (1, number):
            fb.set_num_threads(threads)
            model = net(rng=11)
            step = training_step(model, optim.Adam(model.parameters(), lr=0.01))
            losses = [step(X[:500], y[:500]).item() for _ in range(8)]
            found.append((losses, values(model)))
        assert found[0] == found[1]
        f = fb.staged(lambda x: fb.dropout(x.tanh(), 0.3, rng=2).sigmoid())
        x = fb.randn(300, 301, rng=0)
        whole = f(x).numpy().copy()
        made = f(x)
        made.numpy()[...] = 0
        assert all(f.replays[0].program.run_in_threads(number + 1)) and same_bits(made, whole)
        for order in (1, -1):
            made.numpy()[...] = 0
            f.replays[0].program.run_in_chunks(order)
            assert same_bits(made, whole)
    finally:
        fb.set_num_threads(before)


PRINT = """
import hashlib, numpy as np, fastbp as fb
x = fb.tensor(np.linspace(-2, 2, 5003).astype(np.{dtype}))
fb.manual_seed(8)
print(hashlib.sha256(b"".join(fb.dropout(x, p).numpy().tobytes() for p in (0.1, 0.5, 0.77))).hexdigest())
"""


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_instruction_sets_give_the_same_bits(dtype):
    x = np.linspace(-2, 2, 5003).astype(dtype)
    fb.manual_seed(8)
    state, bits = key(), hashlib.sha256()
    for n, p in enumerate((0.1, 0.5, 0.77)):
        kept = drawn(x.size, state + [0, n]) >= round(p * 2**32)
        bits.update((x * (kept * np.array(1 / (1 - p), dtype))).tobytes())
    for isa in cpu.supported():
        done = subprocess.run([sys.executable, "-c", PRINT.format(dtype=dtype)], capture_output=True, text=True,
                              env={**os.environ, "FASTBP_ISA": isa})
        assert done.stdout.strip() == bits.hexdigest(), (isa, done.stderr)


def test_the_planner_keeps_draws_apart_and_in_their_order(monkeypatch):
    """Two masks are two, the key of each is drawn once, and the chain around one runs in one group."""
    x = fb.randn(100, 200, rng=0)

    def f(x):
        a, b = fb.dropout(x, 0.5), fb.dropout(x, 0.5)
        return a, b, fb.grad(lambda x: (fb.dropout(x * 2, 0.5) * 3).sum())(x), x + 0

    for off in ("", "dead,constant,same,fold,join,multiply_add,advance,split,postpone,in_place,fuse"):
        monkeypatch.setenv("FASTBP_PASSES_OFF", off)
        staged = fb.staged(f)
        for _ in range(3):
            fb.manual_seed(1)
            made = [staged(x), staged(x)]
            fb.manual_seed(1)
            assert_same(made, [f(x), f(x)])
            assert fb.get_rng_state()["counter"]["count"] == 6
        assert not same_bits(made[0][0], made[0][1]) and not same_bits(made[0][0], made[1][0])
    monkeypatch.undo()
    chain = fb.staged(lambda x: fb.dropout(x.tanh(), 0.5).sigmoid())
    chain(x)
    assert str(chain.stages()).count("fused A") == 3


def test_a_draw_that_nobody_reads_counts():
    f = fb.staged(lambda x: (fb.dropout(x, 0.5), x + 1)[1])
    before = key()[1]
    f(fb.ones(3))
    f(fb.ones(3))
    assert key()[1] == before + 2


def test_a_layer_with_a_stream_of_its_own():
    x, before = fb.ones(50, 50), key()
    a, b, c = nn.Dropout(rng=1), nn.Dropout(rng=1), nn.Dropout(rng=np.random.default_rng(1))
    first, second = a(x).numpy(), a(x).numpy()
    assert same_bits(key(), before) and not same_bits(first, second)
    assert same_bits(fb.staged(b)(x), first) and same_bits(b(x), second) and not same_bits(c(x), first)
    assert not a.state_dict() and [n for n, _ in a.named_buffers()] == ["stream"]
    for twin in (copy.deepcopy(a), pickle.loads(pickle.dumps(a))):
        b.stream.copy_(a.stream)
        assert same_bits(twin(x), b(x))


def test_rng_of_the_function_begins_at_each_call():
    x, rng = fb.ones(50), np.random.default_rng(0)
    for f in (lambda x: F.dropout(x, 0.5, rng=4), lambda x: F.dropout(x, 0.5, rng=rng)):
        staged = fb.staged(f)
        made = []
        for call in (staged, f):
            rng.bit_generator.state = np.random.default_rng(9).bit_generator.state
            made.append([call(x).numpy() for _ in range(3)])
        assert_same([fb.tensor(a) for a in made[0]], [fb.tensor(a) for a in made[1]])
    assert same_bits(F.dropout(x, 0.5, rng=4), F.dropout(x, 0.5, rng=4))
    with pytest.raises(TypeError, match="rng is not a seed"):
        F.dropout(x, 0.5, rng="4")
    kept = np.zeros(6, np.int64)
    for wrong in (kept[:1], kept[:4:2], kept[:2].astype(np.float32), kept):    # memory that is no stream's stays
        with pytest.raises(TypeError, match="rng is a tensor, but no stream"):
            F.dropout(x, 0.5, rng=fb.from_numpy(wrong))
    assert not kept.any()
    with pytest.raises(fb.StagingError, match="stream of random numbers is made inside"):
        fb.staged(lambda x: nn.Dropout(rng=1)(x))(x)


def test_the_seed_and_the_state():
    x = fb.ones(40)
    fb.manual_seed(12)
    first = [F.dropout(x).numpy() for _ in range(3)]
    fb.manual_seed(12)
    F.dropout(x)
    state = fb.get_rng_state()
    assert same_bits(F.dropout(x), first[1])
    f = fb.staged(lambda x: F.dropout(x))
    f(x)
    fb.set_rng_state(state)    # seen by programs that were recorded before
    assert same_bits(f(x), first[1]) and same_bits(f(x), first[2])
    for wrong in ({"counter": state["counter"]}, {**state, "counter": 3}, {**state, "counter": {"key": 1, "count": -1}},
                  {**state, "counter": {"key": 2**70, "count": 1}}, {**state, "counter": {"key": 0.5, "count": 1}}):
        before = fb.get_rng_state()
        with pytest.raises(ValueError, match="set_rng_state"):
            fb.set_rng_state(wrong)
        assert fb.get_rng_state() == before


def test_what_is_measured_or_fails_draws_nothing():
    """Profiles, healths and steps that raise within detect_anomaly put the stream back."""
    model = net()
    step = training_step(model, optim.Adam(model.parameters(), lr=0.01))
    X, y = data.load_digits()
    step(X[:64], y[:64])
    before = key()
    step.profile(X[:64], y[:64], seconds=0.01)
    step.health(X[:64], y[:64])
    with fb.detect_anomaly(), pytest.raises(fb.AnomalyError):
        step(X[:64] * np.float32(np.nan), y[:64])
    assert same_bits(key(), before)


def test_second_gradients_go_through_the_mask():
    x = fb.tensor(np.linspace(-1, 1, 30), requires_grad=True)
    f = lambda x: (F.dropout(x**3, 0.5, rng=0)).sum()
    kept = F.dropout(fb.ones(30, dtype="float64"), 0.5, rng=0).numpy()
    second = fb.grad(lambda x: fb.grad(f)(x).sum())(x)
    np.testing.assert_allclose(second, 6 * x.numpy() * kept, rtol=1e-12)
