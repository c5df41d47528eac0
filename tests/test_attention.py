"""Attention: masks, queries that see no key, and several heads, against PyTorch and in replays."""
import math

import numpy as np
import pytest
from test_gates import same_bits
from test_staged import assert_same

import fastbp as fb
from fastbp import nn, optim
from fastbp.nn import functional as F

DTYPES = ["float32", "float64"]
RNG = np.random.default_rng(0)
SEEN = RNG.random((2, 1, 6, 7)) > 0.4
SEEN[1, 0, 2] = False    # a query that sees nothing
KEYS = np.array([[1, 1, 1, 0, 0, 1, 0], [1, 0, 0, 0, 0, 0, 0]], bool)
ADDED = np.where(RNG.random((6, 7)) < 0.3, -np.inf, RNG.standard_normal((6, 7)))

MASKS = {
    "none": {}, "causal": dict(is_causal=True), "bools": dict(attn_mask=SEEN),
    "keys": dict(attn_mask=KEYS.reshape(2, 1, 1, 7)), "numbers": dict(attn_mask=ADDED), "scale": dict(scale=0.3)}


def inputs(dtype, queries=6, keys=7):
    rng = np.random.default_rng(1)
    return [rng.standard_normal((2, 3, n, size)).astype(dtype) for n, size in ((queries, 5), (keys, 5), (keys, 4))]


def given(mask, dtype, make):
    options = dict(MASKS[mask])
    if "attn_mask" in options:
        m = options["attn_mask"]
        options["attn_mask"] = make(m if m.dtype == bool else m.astype(dtype))
    return options


def close(a, b, dtype):
    limit = 1e-5 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=limit, atol=limit)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", MASKS)
def test_it_is_pytorchs(mask, dtype):
    torch = pytest.importorskip("torch")
    xs = inputs(dtype)
    ours, theirs = [fb.tensor(x, requires_grad=True) for x in xs], [torch.tensor(x, requires_grad=True) for x in xs]
    y = F.scaled_dot_product_attention(*ours, **given(mask, dtype, fb.tensor))
    z = torch.nn.functional.scaled_dot_product_attention(*theirs, **given(mask, dtype, torch.tensor))
    g = np.random.default_rng(2).standard_normal(y.shape).astype(dtype)
    y.backward(g), z.backward(torch.tensor(g))
    close(y, z.detach(), dtype)
    for a, b in zip(ours, theirs, strict=True):
        close(a.grad, b.grad, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", MASKS)
def test_replays_threads_and_layouts_give_the_same_bits(mask, dtype):
    """Forward and backward, of queries as they lie behind a product that is cut in heads too."""
    options = given(mask, dtype, lambda m: m)

    def f(q, k, v):
        def loss(q, k, v):
            y = F.scaled_dot_product_attention(q, k, v, **options)
            return (y * y).sum(), y
        return fb.grad(loss, argnums=(0, 1, 2), has_aux=True)(q, k, v)

    xs = [fb.tensor(x) for x in inputs(dtype)]
    turned = [fb.from_numpy(np.ascontiguousarray(x.numpy().transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)) for x in xs]
    staged = fb.staged(f)
    whole = f(*xs)
    assert_same(staged(*xs), whole)
    assert_same(f(*turned), whole)
    made = staged(*xs)
    for number in (2, 3, 4):
        for t in (*made[0], made[1]):
            t.numpy()[...] = 0
        assert staged.replays[0].program.run_in_threads(number)
        assert_same(made, whole)


def test_masks_as_arguments_and_both_at_once():
    """A mask may be given to a staged function; with is_causal both hold."""
    xs = [fb.tensor(x) for x in inputs("float32", 7, 7)]
    f = fb.staged(lambda m, *xs: F.scaled_dot_product_attention(*xs, attn_mask=m, is_causal=True))
    for keys in (KEYS, ~KEYS):
        m = keys.reshape(2, 1, 1, 7)
        y = f(m, *xs)
        assert same_bits(y, f.eager(m, *xs))
        assert same_bits(y, F.scaled_dot_product_attention(*xs, attn_mask=m & np.tri(7, dtype=bool)))
    assert f.recordings == 1


@pytest.mark.parametrize("mask", [SEEN, np.where(SEEN, 0, -np.inf)])
def test_a_query_that_sees_no_key_gives_zero_and_no_gradient(mask):
    xs = [fb.tensor(x, requires_grad=True) for x in inputs("float64")]
    y = F.scaled_dot_product_attention(*xs, mask)
    assert not y.numpy()[1, :, 2].any() and y.numpy()[1, :, 1].all()
    y.sum().backward()
    assert all(np.isfinite(x.grad.numpy()).all() for x in xs) and not xs[0].grad.numpy()[1, :, 2].any()


def test_dropout_of_weights():
    q, k, v = (fb.tensor(x) for x in inputs("float32"))
    fb.manual_seed(4)
    y = F.scaled_dot_product_attention(q, k, fb.ones(2, 3, 7, 1), dropout_p=0.5)
    assert len(np.unique(y.numpy().round(4))) > 5    # the weights that are left add up to something else than 1
    fb.manual_seed(4)
    assert same_bits(y, fb.staged(lambda *xs: F.scaled_dot_product_attention(*xs, dropout_p=0.5))(
        q, k, fb.ones(2, 3, 7, 1)))
    with pytest.raises(ValueError, match="probability"):
        F.scaled_dot_product_attention(q, k, v, dropout_p=2)


@pytest.mark.parametrize("shapes, mask, words", [
    (((2, 6, 5), (2, 7, 4), (2, 7, 4)), None, "query, key and value do not fit"),
    (((2, 6, 5), (2, 7, 5), (2, 6, 4)), None, "query, key and value do not fit"),
    (((5,), (7, 5), (7, 5)), None, "query, key and value do not fit"),
    (((2, 6, 5), (2, 7, 5), (2, 7, 4)), np.ones((6, 6), bool), r"mask \(6, 6\)"),
    (((2, 6, 5), (2, 7, 5), (2, 7, 4)), np.ones((5, 2, 6, 7), bool), r"mask \(5, 2, 6, 7\)"),
    (((2, 3, 6, 5), (2, 3, 7, 5), (2, 3, 7, 4)), np.ones((2, 7), bool), r"fix: +.*mask.reshape\(2, 1, 1, -1\)")])
def test_shapes_that_do_not_fit(shapes, mask, words):
    with pytest.raises(fb.ShapeError, match=words):
        F.scaled_dot_product_attention(*(fb.ones(s) for s in shapes), mask)


def test_masks_of_another_dtype():
    xs = [fb.tensor(x) for x in inputs("float32")]
    for mask in (np.zeros((6, 7)), np.zeros((6, 7), np.int64)):
        with pytest.raises(fb.DtypeError):
            F.scaled_dot_product_attention(*xs, mask)


# --- several heads

HEADS = {
    "self": {}, "batch first": dict(batch_first=True), "no bias": dict(bias=False), "cross": {}, "causal": {},
    "padding": {}, "numbers": {}, "of each head": dict(batch_first=True)}


def call(layer, kind, make, **options):
    """What a layer of 12 features and 3 heads returns for each kind of input; its gradients are left behind."""
    rng = np.random.default_rng(3)
    dtype = str(layer.out_proj.weight.dtype).rpartition(".")[2]
    first = getattr(layer, "batch_first", False)
    x = make(rng.standard_normal((2, 5, 12) if first else (5, 2, 12)).astype(dtype))
    other = make(rng.standard_normal((4, 2, 12)).astype(dtype)) if kind == "cross" else x
    padding, causal = rng.random((2, 5)) < 0.4, ~np.tri(5, dtype=bool)
    padding[:, 0] = False
    masks = {"causal": dict(attn_mask=make(causal)), "padding": dict(key_padding_mask=make(padding)),
             "numbers": dict(attn_mask=make(rng.standard_normal((5, 5)).astype(dtype)),
                             key_padding_mask=make(np.where(padding, -np.inf, 0.5).astype(dtype))),
             "of each head": dict(attn_mask=make(rng.random((6, 5, 5)) < 0.3))}.get(kind, {})
    y, weights = layer(x, other, other, need_weights=True, **masks, **options)
    (y * y).sum().backward()
    return y, weights


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", HEADS)
def test_several_heads_are_pytorchs(kind, dtype):
    """Outputs, weights, gradients; state dicts go both ways."""
    torch = pytest.importorskip("torch")
    ours = nn.MultiheadAttention(12, 3, dtype=dtype, rng=0, **HEADS[kind])
    theirs = torch.nn.MultiheadAttention(12, 3, **HEADS[kind]).to(getattr(torch, dtype))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict({k: torch.tensor(v.numpy()) for k, v in ours.state_dict().items()})
    for _ in range(2):
        ours.zero_grad(), theirs.zero_grad()
        (y, w), (z, u) = call(ours, kind, fb.tensor), call(theirs, kind, torch.tensor)
        close(y, z.detach(), dtype)
        close(w, u.detach(), dtype)
        for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            limit = (1e-5 if dtype == "float32" else 1e-12) * (1 + q.grad.abs().max().item())
            np.testing.assert_allclose(p.grad, q.grad, rtol=0, atol=limit, err_msg=name)
        for p in theirs.parameters():
            p.data.copy_(torch.tensor(np.random.default_rng(4).standard_normal(p.shape)) / 3)
        ours.load_state_dict({k: v.numpy() for k, v in theirs.state_dict().items()})


def test_training_of_several_heads():
    """Staged and gate by gate, with dropout: the same bits; and it learns which number comes first."""
    def run(eager):
        fb.manual_seed(5)
        rng = np.random.default_rng(6)
        embed = nn.Embedding(8, 16, rng=rng)
        attention = nn.MultiheadAttention(16, 4, dropout=0.1, batch_first=True, rng=rng)
        norm, head = nn.LayerNorm(16), nn.Linear(16, 8, rng=rng)
        opt = optim.Adam([p for m in (embed, attention, norm, head) for p in m.parameters()], lr=0.01)
        places = fb.randn(6, 16, rng=7)

        @fb.staged
        def step(x, y):
            h = embed(x) + places
            h = norm(h + attention(h, h, h, is_causal=True)[0])
            loss = fb.cross_entropy(head(h[:, -1]), y)
            opt.zero_grad()
            loss.backward()
            opt.step()
            return loss

        x = rng.integers(0, 8, (64, 6))
        return [(step.eager if eager else step)(x, x[:, 0]).item() for _ in range(60)]
    losses = run(False)
    assert losses == run(True)
    assert losses[-1] < 0.5 < 1.5 < losses[0]


def test_what_several_heads_refuse_and_drop():
    with pytest.raises(ValueError, match="can't share"):
        nn.MultiheadAttention(10, 3)
    layer, x = nn.MultiheadAttention(6, 2), fb.ones(3, 2, 6)
    assert layer(x, x, x)[1] is None and repr(layer).startswith("MultiheadAttention(\n  6, 2, dropout=0.0")
    for arguments, words in (((fb.ones(3, 6), x, x), "query does not fit"),
                             ((x, fb.ones(3, 2, 5), x), "key does not fit"),
                             ((x, x, x, np.ones((3, 2), bool)), r"\(2, 3\): \(N, S\)")):
        with pytest.raises(fb.ShapeError, match=words):
            layer(*arguments)
    with pytest.raises(fb.ShapeError, match="mask does not fit"):
        layer(x, x, x, attn_mask=np.ones((2, 2), bool))
    for samples in (2, 3):    # 2 samples of 2 heads
        with pytest.raises(fb.ShapeError, match=r"attn_mask does not fit[^$]*\(4, 3, 3\): \(N num_heads, L, S\)"):
            layer(x, x, x, attn_mask=np.zeros((samples, 3, 3), bool))
    layer = nn.MultiheadAttention(6, 2, dropout=0.5)
    assert not same_bits(layer(x, x, x)[0], layer(x, x, x)[0])
    layer.eval()
    assert same_bits(layer(x, x, x)[0], layer(x, x, x)[0])
    assert math.isclose(layer.in_proj_weight.numpy().std(), (2 / 24)**0.5, rel_tol=0.2)
