"""One row of cases for each gate: how to call it, what it is in NumPy float64, and on what.

The suite reads this table; a gate without a row fails it.
"""
import math
from dataclasses import dataclass

import numpy as np

import fastbp as fb
from fastbp.nn import functional as F
from fastbp.random import stream

erf = np.vectorize(math.erf, otypes=[float])
erfc = np.vectorize(math.erfc, otypes=[float])


# --- where inputs are drawn from, away from the kinks that a central difference would straddle

def anywhere(rng, shape):
    return rng.uniform(-3, 3, shape)


def small(rng, shape):
    return rng.uniform(-0.5, 0.5, shape)


def positive(rng, shape):
    return rng.uniform(0.3, 3, shape)


def off_zero(rng, shape):
    x = rng.uniform(0.2, 3, shape)
    return np.where(rng.random(shape) < 0.5, x, -x)


def inside(rng, shape):
    return rng.uniform(-0.9, 2, shape)


def distinct(rng, shape):
    """Every two elements differ by 0.05 at least."""
    n = int(np.prod(shape, dtype=int))
    return (rng.permutation(n) * 0.11 - 0.05 * n + 0.017).reshape(shape)


@dataclass
class Case:
    """call(*tensors) against oracle(*float64 arrays), on inputs of `shapes` drawn by `draw`."""

    call: object
    oracle: object
    shapes: list
    draw: object = anywhere
    elementwise: bool = False
    gradient: bool = True
    second: bool = True

    def inputs(self, rng, dtype=np.float64, shapes=None):
        draws = self.draw if isinstance(self.draw, (tuple, list)) else [self.draw] * len(self.shapes)
        return [d(rng, s).astype(dtype) for d, s in zip(draws, shapes or self.shapes, strict=True)]


def unary(call, oracle, draw=anywhere, **options):
    return Case(call, oracle, [(3, 5)], draw, elementwise=True, **options)


def binary(call, oracle, draw=anywhere, **options):
    return Case(call, oracle, [(3, 5), (3, 5)], draw, elementwise=True, **options)


def sigmoid(x):
    t = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + t), t / (1 + t))


def softplus(x):
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def silu(x):
    return np.where(x == -np.inf, -0.0, x * sigmoid(x))


def gelu(x):
    return np.where(x == -np.inf, -0.0, 0.5 * x * erfc(-x / math.sqrt(2)))


def gelu_tanh(x):
    return np.where(x == -np.inf, -0.0, x * sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def softmax(x, axis=-1):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def logsumexp(x, axis=None, keepdims=False):
    m = x.max(axis, keepdims=True)
    y = np.log(np.exp(x - m).sum(axis, keepdims=True)) + m
    return y if keepdims else y.squeeze(axis)


def extreme(name, axis, keepdims=False):
    return Case(lambda x: getattr(fb, name)(x, axis, keepdims),
                lambda x: getattr(x, name)(axis, keepdims=keepdims), [(4, 3, 5)], distinct)


def reduction(name, axis, keepdims=False, draw=anywhere, **options):
    return Case(lambda x: getattr(fb, name)(x, axis=axis, keepdims=keepdims, **options),
                lambda x: getattr(np, name)(x, axis=axis, keepdims=keepdims, **options), [(4, 3, 5)], draw)


def comparison(name, oracle):
    both = binary(getattr(fb, name), oracle, gradient=False)
    both.draw = lambda rng, shape: rng.integers(-2, 3, shape).astype(float)
    return both


def loss(call, oracle, **options):
    """A loss of two tensors, for each reduction."""
    rows = []
    for reduction_, reduce in (("mean", np.mean), ("sum", np.sum), ("none", lambda x: x)):
        rows.append(Case(
            lambda x, t, how=reduction_: call(x, t, reduction=how),
            lambda x, t, fold=reduce: fold(oracle(x, t)), [(4, 3), (4, 3)], **options))
    return rows


LABELS = np.array([2, 0, 1, 2])
WEIGHTS = np.array([0.5, 1.5, 2.0])


def cross_entropy(x, labels, weight=None, ignored=-100, smoothing=0.0, reduction="mean"):
    n = x.shape[1]
    x = np.moveaxis(x, 1, -1).reshape(-1, n)
    shape, labels = labels.shape, labels.reshape(-1)
    kept = labels != ignored
    y = np.where(kept, labels, 0)
    w = np.ones(n) if weight is None else weight
    logp = x - logsumexp(x, 1, True)
    rows = (1 - smoothing) * -logp[np.arange(len(y)), y] * w[y] + smoothing / n * (-logp * w).sum(1)
    rows = rows * kept
    if reduction == "none":
        return rows.reshape(shape)
    return rows.sum() / (w[y] * kept).sum() if reduction == "mean" else rows.sum()


def crossed(labels=LABELS, shape=(4, 3), **options):
    names = {"ignored": "ignore_index", "smoothing": "label_smoothing"}
    given = {names.get(k, k): v for k, v in options.items()}
    if "weight" in given:
        return Case(lambda x: fb.cross_entropy(x, labels, **{**given, "weight": fb.tensor(WEIGHTS.astype(x.dtype))}),
                    lambda x: cross_entropy(x, labels, **options), [shape])
    return Case(lambda x: fb.cross_entropy(x, labels, **given), lambda x: cross_entropy(x, labels, **options), [shape])


def hinge(s):
    margins = np.maximum(0, s - s[np.arange(4), LABELS][:, None] + 1)
    margins[np.arange(4), LABELS] = 0
    return margins.sum(1)


def huber(x, t, delta=1.0):
    d = np.abs(x - t)
    return np.where(d <= delta, d * d / 2, delta * (d - delta / 2))


def windows(x, kernel, stride, padding, dilation, fill, out):
    """The windows (N, C, OH, OW, KH, KW) of images, `fill` outside of them; padding before, size of the map: out."""
    n, c, h, w = x.shape
    reach = [(o - 1) * s + d * (k - 1) + 1 for o, s, d, k in zip(out, stride, dilation, kernel, strict=True)]
    wide = np.full((n, c, *(max(r, p + size) for r, p, size in zip(reach, padding, (h, w), strict=True))), fill)
    wide[:, :, padding[0]:padding[0] + h, padding[1]:padding[1] + w] = x
    rows, columns = [np.arange(o)[:, None] * s + np.arange(k) * d
                     for o, s, k, d in zip(out, stride, kernel, dilation, strict=True)]
    return wide[:, :, rows[:, None, :, None], columns[None, :, None, :]]


def pair(x):
    return x if isinstance(x, tuple) else (x, x)


def map_size(shape, kernel, stride, padding, dilation):
    return [(n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(shape, kernel, stride, padding, dilation, strict=True)]


def conv2d(x, w, b=0, stride=1, padding=0, dilation=1, groups=1, out=None):
    stride, padding, dilation = pair(stride), pair(padding), pair(dilation)
    out = out or map_size(x.shape[2:], w.shape[2:], stride, padding, dilation)
    seen = windows(x, w.shape[2:], stride, padding, dilation, 0.0, out)
    parts = [np.einsum("nchwkl,ockl->nohw", s, v)
             for s, v in zip(np.split(seen, groups, 1), np.split(w, groups), strict=True)]
    return np.concatenate(parts, 1) + np.reshape(b, (-1, 1, 1))


def convolved(shapes, draw=anywhere, **options):
    return Case(lambda *xs: F.conv2d(*xs, **options), lambda *xs: conv2d(*xs, **options), shapes, draw)


def max_pool2d(x, kernel, stride=None, padding=0, dilation=1, out=None):
    kernel, padding, dilation = pair(kernel), pair(padding), pair(dilation)
    stride = pair(stride or kernel)
    out = out or map_size(x.shape[2:], kernel, stride, padding, dilation)
    return windows(x, kernel, stride, padding, dilation, -np.inf, out).max((-2, -1))


def avg_pool2d(x, kernel, stride, padding, padded=True):
    kernel, stride, padding = pair(kernel), pair(stride), pair(padding)
    out = map_size(x.shape[2:], kernel, stride, padding, (1, 1))
    sums = windows(x, kernel, stride, padding, (1, 1), 0.0, out).sum((-2, -1))
    ones = windows(np.ones_like(x), kernel, stride, padding, (1, 1), 0.0, out).sum((-2, -1))
    return sums / (kernel[0] * kernel[1] if padded else ones)


def pooled(call, oracle, shape=(3, 2, 6, 7)):
    return Case(call, oracle, [shape], distinct)


PLACES = np.array([[2, 0], [1, 2]])


def philox(counter, key):
    """Philox4x32-10 of counters (4, n) and a key of two words: four random words of each."""
    x0, x1, x2, x3 = np.asarray(counter, np.uint64)
    k0, k1 = int(key[0]), int(key[1])
    for _ in range(10):
        a, b = x0 * np.uint64(0xD2511F53), x2 * np.uint64(0xCD9E8D57)
        low = np.uint64(2**32 - 1)
        x0, x1, x2, x3 = (b >> 32) ^ x1 ^ np.uint64(k0), b & low, (a >> 32) ^ x3 ^ np.uint64(k1), a & low
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return np.array([x0, x1, x2, x3])


def drawn(n, state):
    """The words of n elements by a stream's key and count."""
    key, count = (int(word) % 2**64 for word in state)
    block = np.arange(-(-n // 64) * 16, dtype=np.uint64)
    words = philox([block, block * 0, block * 0 + count % 2**32, block * 0 + count // 2**32],
                   (key % 2**32, key // 2**32))
    return words.reshape(4, -1, 16).transpose(1, 0, 2).reshape(-1)[:n]


def normalized(x, axes, eps, center=True):
    d = x - x.mean(axes, keepdims=True) * center
    return d / np.sqrt(np.square(d).mean(axes, keepdims=True) + eps)


def batch_norm(x, w=1.0, b=0.0, axes=None, eps=1e-5):
    shape = (1, -1, *(1,) * (x.ndim - 2))
    return normalized(x, (0, *range(2, x.ndim)), eps) * np.reshape(w, shape) + np.reshape(b, shape)


def running(x, w, b):
    shape = (1, 3, *(1,) * (x.ndim - 2))
    return (x - RUNNING[0].reshape(shape)) / np.sqrt(RUNNING[1] + 1e-3).reshape(shape) * w.reshape(shape) + b.reshape(
        shape)


RUNNING = np.array([[0.5, -1.0, 0.25], [2.0, 0.5, 1.5]])


def attention(q, k, v, seen=True, added=0.0, scale=None):
    scores = q @ k.swapaxes(-1, -2) * (q.shape[-1]**-0.5 if scale is None else scale) + added
    e = np.exp(scores - scores.max(-1, keepdims=True)) * seen
    return np.divide(e, e.sum(-1, keepdims=True), out=np.zeros_like(e), where=e.sum(-1, keepdims=True) > 0) @ v


SEEN = np.array([[True, False, True], [True, True, True], [False, False, False], [False, True, False]])


def of_dtype(values, x):
    return fb.tensor(values.astype(x.dtype))


def dropped(x, p, seed):
    kept = drawn(x.size, stream(seed).numpy()).reshape(x.shape) >= round(p * 2**32)
    return x * kept / (1 - p)

CASES = {
    # arithmetic
    "add": [binary(fb.add, np.add)],
    "sub": [binary(fb.sub, np.subtract)],
    "mul": [binary(fb.mul, np.multiply)],
    "div": [binary(fb.div, np.divide, [anywhere, off_zero])],
    "neg": [unary(fb.neg, np.negative)],
    "pow": [binary(fb.pow, np.power, [positive, anywhere]),
            unary(lambda x: fb.pow(x, 2), np.square), unary(lambda x: x**-1, np.reciprocal, off_zero),
            unary(lambda x: x**3, lambda x: np.power(x, 3), off_zero),
            unary(lambda x: 2.5**x, lambda x: np.power(2.5, x))],
    "reciprocal": [unary(fb.reciprocal, np.reciprocal, off_zero)],
    "square": [unary(fb.square, np.square)],
    "sqrt": [unary(fb.sqrt, np.sqrt, positive)],
    "abs": [unary(fb.abs, np.abs, off_zero)],
    "sign": [unary(fb.sign, np.sign, off_zero)],
    "exp": [unary(fb.exp, np.exp)],
    "expm1": [unary(fb.expm1, np.expm1)],
    "log": [unary(fb.log, np.log, positive)],
    "log1p": [unary(fb.log1p, np.log1p, inside)],
    "erf": [unary(fb.erf, erf)],
    "maximum": [binary(fb.maximum, np.maximum)],
    "minimum": [binary(fb.minimum, np.minimum)],
    "where": [binary(lambda x, y: fb.where(x > y, x, 2 * y), lambda x, y: np.where(x > y, x, 2 * y)),
              Case(lambda x, y: fb.where(fb.tensor(np.arange(5) % 2 == 0), x, y),
                   lambda x, y: np.where(np.arange(5) % 2 == 0, x, y), [(3, 5), (5,)])],
    "clip": [unary(lambda x: fb.clip(x, -1.0, 1.5), lambda x: np.clip(x, -1.0, 1.5)),
             unary(lambda x: x.clip(low=0.1), lambda x: np.maximum(x, 0.1)),
             Case(fb.clip, np.clip, [(3, 5), (5,), ()],
                  [distinct, lambda r, s: distinct(r, s) * 0.3 - 1.003, lambda r, s: np.full(s, 1.234)])],
    "lt": [comparison("lt", np.less)],
    "le": [comparison("le", np.less_equal)],
    "gt": [comparison("gt", np.greater)],
    "ge": [comparison("ge", np.greater_equal)],
    "eq": [comparison("eq", np.equal)],
    "ne": [comparison("ne", np.not_equal)],
    # activations
    "sigmoid": [unary(fb.sigmoid, sigmoid)],
    "tanh": [unary(fb.tanh, np.tanh)],
    "relu": [unary(fb.relu, lambda x: np.maximum(x, 0), off_zero)],
    "leaky_relu": [unary(fb.leaky_relu, lambda x: np.where(x > 0, x, 0.01 * x), off_zero),
                   unary(lambda x: fb.leaky_relu(x, negative_slope=0.3), lambda x: np.where(x > 0, x, 0.3 * x),
                         off_zero)],
    "elu": [unary(fb.elu, lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))), off_zero),
            unary(lambda x: x.elu(alpha=0.7), lambda x: np.where(x > 0, x, 0.7 * np.expm1(np.minimum(x, 0))),
                  off_zero)],
    "softplus": [unary(fb.softplus, softplus)],
    "silu": [unary(fb.silu, silu)],
    "gelu": [unary(fb.gelu, gelu), unary(lambda x: fb.gelu(x, approximate="tanh"), gelu_tanh)],
    # reductions
    "sum": [reduction("sum", None), reduction("sum", 0), reduction("sum", (0, -1), True), reduction("sum", 1)],
    "mean": [reduction("mean", None), reduction("mean", -1, True), reduction("mean", (1, 0))],
    "prod": [reduction("prod", None, draw=off_zero), reduction("prod", 1), reduction("prod", (0, 2), True)],
    "max": [extreme("max", None), extreme("max", 1), extreme("max", (0, 2), True)],
    "min": [extreme("min", None), extreme("min", -1), extreme("min", (0, 1))],
    "argmax": [Case(lambda x, a=a: fb.argmax(x, a), lambda x, a=a: np.argmax(x, a), [(4, 3, 5)], distinct,
                    gradient=False) for a in (None, 0, 1, -1)],
    "argmin": [Case(lambda x, a=a: fb.argmin(x, a, keepdims=True), lambda x, a=a: np.argmin(x, a, keepdims=True),
                    [(4, 3, 5)], distinct, gradient=False) for a in (None, 0, 2)],
    "var": [reduction("var", None), reduction("var", 0, ddof=1), reduction("var", (1, 2), True)],
    "std": [reduction("std", None), reduction("std", -1, ddof=1)],
    "logsumexp": [Case(lambda x, a=a, k=k: fb.logsumexp(x, a, k), lambda x, a=a, k=k: logsumexp(x, a, k), [(4, 3, 5)])
                  for a, k in ((None, False), (-1, False), (0, True), ((0, 2), False))],
    "softmax": [Case(fb.softmax, softmax, [(4, 3, 5)]),
                Case(lambda x: x.softmax(axis=0), lambda x: softmax(x, 0), [(4, 3)])],
    "log_softmax": [Case(fb.log_softmax, lambda x: x - logsumexp(x, -1, True), [(4, 3, 5)]),
                    Case(lambda x: fb.log_softmax(x, 1), lambda x: x - logsumexp(x, 1, True), [(4, 3, 5)])],
    # linear
    "matmul": [Case(fb.matmul, np.matmul, shapes) for shapes in (
        [(4, 3), (3, 5)], [(3,), (3,)], [(3,), (3, 5)], [(4, 3), (3,)], [(2, 4, 3), (3, 5)], [(2, 4, 3), (2, 3, 5)],
        [(3, 1, 4, 3), (2, 3, 5)], [(4, 3), (2, 3, 5)], [(1, 1), (1, 1)], [(2, 4, 3), (3,)], [(3,), (2, 3, 5)])],
    # shapes
    "reshape": [Case(lambda x: fb.reshape(x, (5, -1)), lambda x: x.reshape(5, -1), [(4, 5)]),
                Case(lambda x: x.T.reshape(2, 10), lambda x: x.T.reshape(2, 10), [(4, 5)])],
    "flatten": [Case(lambda x: fb.flatten(x, 1), lambda x: x.reshape(len(x), -1), [(4, 3, 5)]),
                Case(lambda x: x.flatten(0, 1), lambda x: x.reshape(-1, 5), [(4, 3, 5)])],
    "transpose": [Case(fb.transpose, np.transpose, [(4, 3, 5)]),
                  Case(lambda x: x.transpose(2, 0, 1), lambda x: x.transpose(2, 0, 1), [(4, 3, 5)]),
                  Case(lambda x: fb.transpose(x, (1, 0)), lambda x: x.T, [(4, 3)])],
    "expand_dims": [Case(lambda x: fb.expand_dims(x, (0, -1)), lambda x: np.expand_dims(x, (0, -1)), [(4, 3)])],
    "squeeze": [Case(fb.squeeze, np.squeeze, [(4, 1, 3, 1)]),
                Case(lambda x: x.squeeze(1), lambda x: x.squeeze(1), [(4, 1, 3, 1)])],
    "broadcast_to": [Case(lambda x: fb.broadcast_to(x, (2, 4, 3)), lambda x: np.broadcast_to(x, (2, 4, 3)), [(4, 1)])],
    "concatenate": [Case(lambda *x: fb.concatenate(x), lambda *x: np.concatenate(x), [(2, 3), (1, 3), (4, 3)]),
                    Case(lambda *x: fb.concatenate(x, axis=-1), lambda *x: np.concatenate(x, -1), [(2, 3), (2, 1)])],
    "stack": [Case(lambda *x: fb.stack(x), lambda *x: np.stack(x), [(2, 3), (2, 3)]),
              Case(lambda *x: fb.stack(x, -1), lambda *x: np.stack(x, -1), [(2, 3)] * 3)],
    "getitem": [Case(lambda x, k=k: x[k], lambda x, k=k: x[k], [(4, 3, 5)]) for k in (
        1, -1, slice(1, 3), (slice(None), 1), (..., 0), (slice(None, None, -2), slice(2, 0, -1)), (None, 2, ..., None),
        np.array([0, 2, 2, -1]), (slice(None), PLACES), (np.array([3, 1]), np.array([0, 2])),
        (np.array([3, 1]), slice(None), np.array([0, 4])), (0, np.array([1, 1])), (slice(1, 3), np.array([0, 2]), 1),
        (slice(0, 0),), np.arange(60).reshape(4, 3, 5) % 7 == 0, [0, 3])],
    # normalization
    "batch_norm": [
        *(Case(lambda x, w, b: fb.batch_norm(x, None, None, w, b, True), batch_norm, [shape, (3,), (3,)])
          for shape in ((5, 3), (4, 3, 5), (2, 3, 4, 3), (1, 3, 2, 2, 5))),
        Case(lambda x: fb.batch_norm(x.transpose(3, 0, 1, 2), training=True, eps=0.1),    # the batch lies last
             lambda x: batch_norm(x.transpose(3, 0, 1, 2), eps=0.1), [(3, 4, 3, 5)]),
        *(Case(lambda x, w, b: fb.batch_norm(x, *(of_dtype(s, x) for s in RUNNING), w, b, eps=1e-3), running,
               [shape, (3,), (3,)]) for shape in ((4, 3), (2, 3, 4, 5)))],
    "layer_norm": [
        Case(lambda x, w, b: fb.layer_norm(x, w.shape, w, b), lambda x, w, b: normalized(x, -1, 1e-5) * w + b,
             [(4, 3, 5), (5,), (5,)]),
        Case(lambda x, w: fb.layer_norm(x, (3, 5), w, eps=0.1), lambda x, w: normalized(x, (-2, -1), 0.1) * w,
             [(4, 3, 5), (3, 5)]),
        Case(lambda x: fb.layer_norm(x, 67), lambda x: normalized(x, -1, 1e-5), [(3, 67)])],
    "rms_norm": [
        Case(lambda x, w: fb.rms_norm(x, w.shape, w, 1e-3), lambda x, w: normalized(x, -1, 1e-3, False) * w,
             [(4, 3, 5), (5,)]),
        Case(lambda x: fb.rms_norm(x, x.shape[1:]), lambda x: normalized(x, (1, 2), 0, False), [(4, 3, 5)])],
    # random
    "dropout": [Case(lambda x, p=p: fb.dropout(x, p, rng=3), lambda x, p=p: dropped(x, p, 3), [shape])
                for p, shape in ((0.3, (7, 5)), (0.5, (4, 3, 50)))],
    "dropout1d": [Case(lambda x: F.dropout1d(x, 0.4, rng=3), lambda x: x * dropped(np.ones((3, 5, 1)), 0.4, 3),
                       [(3, 5, 4)])],
    "dropout2d": [Case(lambda x: F.dropout2d(x, 0.4, rng=3), lambda x: x * dropped(np.ones((3, 5, 1, 1)), 0.4, 3),
                       [(3, 5, 4, 2)])],
    # embedding
    "embedding": [Case(lambda w: F.embedding(PLACES, w), lambda w: w[PLACES], [(4, 5)])],
    # attention
    "scaled_dot_product_attention": [
        Case(fb.scaled_dot_product_attention, attention, [(2, 4, 5), (2, 3, 5), (2, 3, 6)]),
        Case(lambda q, k, v: fb.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.7),
             lambda q, k, v: attention(q, k, v, np.tri(4, 3), scale=0.7), [(4, 5), (3, 5), (3, 5)]),
        Case(lambda q, k, v: fb.scaled_dot_product_attention(q, k, v, SEEN), lambda q, k, v: attention(q, k, v, SEEN),
             [(2, 1, 4, 5), (3, 3, 5), (1, 1, 3, 2)]),
        Case(fb.scaled_dot_product_attention, lambda q, k, v, m: attention(q, k, v, added=m),
             [(2, 4, 5), (2, 3, 5), (2, 3, 5), (4, 3)])],
    # losses
    "mse_loss": loss(fb.mse_loss, lambda x, t: (x - t)**2),
    "l1_loss": loss(fb.l1_loss, lambda x, t: np.abs(x - t)),
    "huber_loss": [*loss(fb.huber_loss, huber),
                   Case(lambda x, t: fb.huber_loss(x, t, delta=0.7), lambda x, t: huber(x, t, 0.7).mean(),
                        [(4, 3)] * 2)],
    "binary_cross_entropy_with_logits": loss(fb.binary_cross_entropy_with_logits, lambda x, t: softplus(x) - x * t),
    "cross_entropy": [
        crossed(), crossed(reduction="sum"), crossed(reduction="none"), crossed(weight=WEIGHTS),
        crossed(weight=WEIGHTS, smoothing=0.1), crossed(smoothing=0.2, reduction="none"), crossed(ignored=2),
        crossed(ignored=2, reduction="none"), crossed(ignored=0, weight=WEIGHTS, smoothing=0.3),
        crossed(labels=PLACES, shape=(2, 3, 2)), crossed(labels=LABELS.astype(np.uint8)),
        crossed(labels=PLACES, shape=(2, 3, 2), weight=WEIGHTS, reduction="none"),
        Case(lambda x: fb.cross_entropy(x, np.array(1)), lambda x: cross_entropy(x[None], np.array([1])), [(3,)])],
    "hinge_loss": [Case(lambda s: fb.hinge_loss(s, LABELS), lambda s: hinge(s).mean(), [(4, 3)]),
                   Case(lambda s: fb.hinge_loss(s, LABELS, reduction="none"), hinge, [(4, 3)])],
    # nn.functional's own
    "linear": [Case(F.linear, lambda x, w, b: x @ w.T + b, [(4, 3), (5, 3), (5,)]),
               Case(F.linear, lambda x, w: x @ w.T, [(2, 4, 3), (5, 3)])],
    "conv2d": [convolved([(3, 2, 6, 7), (5, 2, 3, 2), (5,)]), convolved([(1, 1, 4, 4), (1, 1, 4, 4)]),
               convolved([(17, 3, 5, 5), (2, 3, 2, 2)], padding=1),
               convolved([(2, 4, 7, 8), (6, 2, 3, 3), (6,)], stride=(2, 3), padding=(2, 1), groups=2),
               convolved([(2, 3, 9, 8), (3, 1, 3, 2)], dilation=(2, 3), padding=2, groups=3),
               convolved([(5, 2, 6, 5), (3, 2, 3, 3)], stride=2, dilation=2, padding=2),
               convolved([(2, 1, 3, 40), (1, 1, 1, 600)], padding=(0, 290)),
               convolved([(2, 70, 3, 3), (9, 70, 3, 3), (9,)], small, padding=1),
               Case(lambda x, w: F.conv2d(x, w, padding="same", dilation=(1, 2)),
                    lambda x, w: conv2d(x, w, padding=(0, 2), dilation=(1, 2), out=(5, 6)),
                    [(2, 2, 5, 6), (3, 2, 2, 3)]),
               Case(F.conv2d, lambda x, w: conv2d(x[None], w)[0], [(2, 5, 6), (3, 2, 2, 3)])],
    "conv1d": [Case(F.conv1d, lambda x, w, b: conv2d(x[:, :, None], w[:, :, None], b)[:, :, 0],
                    [(3, 2, 9), (4, 2, 3), (4,)]),
               Case(lambda x, w: F.conv1d(x, w, stride=2, padding=3, dilation=2, groups=2),
                    lambda x, w: conv2d(x[:, :, None], w[:, :, None], 0, (1, 2), (0, 3), (1, 2), 2)[:, :, 0],
                    [(3, 4, 9), (4, 2, 3)])],
    "max_pool2d": [pooled(lambda x: F.max_pool2d(x, 2), lambda x: max_pool2d(x, 2)),
                   pooled(lambda x: F.max_pool2d(x, 2), lambda x: max_pool2d(x, 2), (17, 1, 4, 6)),
                   pooled(lambda x: F.max_pool2d(x, 3, 2, 1), lambda x: max_pool2d(x, 3, 2, 1)),
                   pooled(lambda x: F.max_pool2d(x, (3, 2), 1, dilation=(2, 3)),
                          lambda x: max_pool2d(x, (3, 2), 1, 0, (2, 3))),
                   pooled(lambda x: F.max_pool2d(x, 2, ceil_mode=True), lambda x: max_pool2d(x, 2, out=(3, 4))),
                   pooled(lambda x: F.max_pool2d(x, 1, 2), lambda x: max_pool2d(x[None], 1, 2)[0], (2, 5, 4))],
    "avg_pool2d": [pooled(lambda x: F.avg_pool2d(x, 2), lambda x: avg_pool2d(x, 2, 2, 0)),
                   pooled(lambda x: F.avg_pool2d(x, 3, 2, 1), lambda x: avg_pool2d(x, 3, 2, 1)),
                   pooled(lambda x: F.avg_pool2d(x, (3, 2), 1, 1, count_include_pad=False),
                          lambda x: avg_pool2d(x, (3, 2), 1, 1, False)),
                   pooled(lambda x: F.avg_pool2d(x, 3, divisor_override=2), lambda x: avg_pool2d(x, 3, 3, 0) * 4.5)],
    "adaptive_avg_pool2d": [
        pooled(lambda x: F.adaptive_avg_pool2d(x, 1), lambda x: x.mean((2, 3), keepdims=True)),
        pooled(lambda x: F.adaptive_avg_pool2d(x, (3, None)), lambda x: avg_pool2d(x, (2, 1), (2, 1), 0)),
        pooled(lambda x: F.adaptive_avg_pool2d(x, (6, 3)), lambda x: np.stack(
            [x[..., :3].mean(-1), x[..., 2:5].mean(-1), x[..., 4:].mean(-1)], -1))],
}

ALL = [(name, k) for name, rows in CASES.items() for k in range(len(rows))]
EACH_ELEMENT = [(name, k) for name, k in ALL if CASES[name][k].elementwise]


def tolerance(dtype):
    return {"rtol": 3e-6, "atol": 3e-6} if dtype == np.float32 else {"rtol": 1e-12, "atol": 1e-13}
