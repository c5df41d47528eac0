"""NumPy by hand, as a careful person writes it: buffers made once, out= and in-place operations.

With dtype=float64 it is what all engines are checked against.
"""
import math

import numpy as np

from bench.engines import case, digest
from bench.gates import GateCall
from bench.workloads import AdamUpdate, CrossEntropy, Elementwise, LeNet, Net, Recurrent, ThreePoints

VERSION = np.__version__


# --- activations: (h in place, d *= the derivative, which may write over their output h)

def relu(shape):
    mask = np.empty(shape, bool)

    def forward(h):
        np.maximum(h, 0, out=h)

    def backward(d, h):
        d *= np.greater(h, 0, out=mask)
    return forward, backward


def tanh(shape):
    def forward(h):
        np.tanh(h, out=h)

    def backward(d, h):
        np.multiply(h, h, out=h)
        d *= np.subtract(1, h, out=h)
    return forward, backward


def softplus(shape):
    def forward(h):
        np.log1p(np.exp(h, out=h), out=h)

    def backward(d, h):
        np.exp(np.negative(h, out=h), out=h)
        d *= np.subtract(1, h, out=h)         # 1 - e^-softplus(x) = sigmoid(x)
    return forward, backward


ACTIVATIONS = {"relu": relu, "tanh": tanh, "softplus": softplus}


# --- losses (s, target) -> loss: the gradient is written over the scores s

def squares(shape, dtype, mean):
    scale = 1 / math.prod(shape) if mean else 1.0

    def loss(s, y):
        s -= y
        flat = s.ravel()
        value = scale * np.dot(flat, flat)
        s *= 2 * scale
        return value
    return loss


def softmax_loss(shape, dtype):
    n, classes = shape
    first = np.arange(n) * classes              # of each row, in the flat scores
    ones, each = np.ones(classes, dtype), np.full(n, 1 / n, dtype)
    place, total, value = np.empty(n, np.int64), np.empty(n, dtype), np.empty(n, dtype)
    few = classes <= 32                         # then NumPy is faster down the columns

    def loss(s, labels):
        s -= np.maximum.reduce(s.T.copy(), 0)[:, None] if few else np.maximum.reduce(s, 1, keepdims=True)
        np.add(first, labels, out=place)
        flat = s.ravel()
        at_labels = flat[place]
        np.exp(s, out=s)
        np.dot(s, ones, out=total)
        np.log(total, out=value)
        np.subtract(value, at_labels, out=value)
        np.divide(1 / n, total, out=total)
        s *= total[:, None]
        flat[place] -= 1 / n
        return np.dot(value, each)
    return loss


LOSSES = {
    "mse": lambda shape, dtype: squares(shape, dtype, mean=True),
    "ssr": lambda shape, dtype: squares(shape, dtype, mean=False),
    "cross_entropy": softmax_loss,
}


# --- updates of a flat vector p by its gradient g, which they may write over

def sgd(p, w):
    def update(g):
        nonlocal p
        g *= w.lr
        p -= g
    return update


def momentum(p, w):
    v = np.zeros_like(p)

    def update(g):
        nonlocal p, v
        v *= w.momentum
        v += g
        p -= np.multiply(v, w.lr, out=g)
    return update


def adam(p, w):
    m, v, scratch, t = np.zeros_like(p), np.zeros_like(p), np.empty_like(p), 0

    def update(g):
        nonlocal p, m, v, scratch, t
        t += 1
        m *= w.beta1
        m += np.multiply(g, 1 - w.beta1, out=scratch)
        v *= w.beta2
        np.multiply(g, g, out=scratch)
        scratch *= 1 - w.beta2
        v += scratch
        np.sqrt(v, out=scratch)
        scratch *= (1 - w.beta2**t)**-0.5
        scratch += w.eps
        np.divide(m, scratch, out=scratch)
        scratch *= w.lr / (1 - w.beta1**t)
        p -= scratch
    return update


UPDATES = {"sgd": sgd, "momentum": momentum, "adam": adam}


def views(w, flat):
    """[(weight (in, out), bias (out,) or None), ...] over the memory of one vector."""
    made, at = [], 0
    for i, o in zip(w.sizes, w.sizes[1:], strict=False):
        weight, at = flat[at:at + i * o].reshape(i, o), at + i * o
        made.append((weight, flat[at:at + o] if w.bias else None))
        at += o * w.bias
    return made


def net(w, form, dtype=np.float32):
    """All parameters lie in one vector, as do their gradients: one update for all."""
    p, g = np.empty(w.parameters, dtype), np.empty(w.parameters, dtype)
    weights, gradients = views(w, p), views(w, g)
    for mine, given in zip(weights, w.weights(), strict=True):
        for x, value in zip(mine, given, strict=True):
            if x is not None:
                x[...] = value
    hidden = [np.empty((w.batch, o), dtype) for o in w.sizes[1:-1]]
    top = np.empty((w.batch, w.sizes[-1]), dtype)
    activations = [ACTIVATIONS[w.activation](h.shape) for h in hidden]
    below = list(zip(hidden, map(np.empty_like, hidden), (back for _, back in activations), strict=True))
    upwards = list(zip(weights, [*hidden, top], [*(act for act, _ in activations), None], strict=True))
    downwards = list(zip(weights, gradients, [(None, None, None), *below], strict=True))[::-1]
    update, loss_of = UPDATES[w.optimizer](p, w), LOSSES[w.loss](top.shape, dtype)
    ones = np.ones(w.batch, dtype)

    def step(x, y):
        a = x
        for (weight, bias), h, activate in upwards:
            np.dot(a, weight, out=h)
            if bias is not None:
                h += bias
            if activate is not None:
                activate(h)
            a = h
        loss, d = loss_of(top, y), top
        for (weight, _), (dweight, dbias), (h, dh, back) in downwards:
            np.dot((x if h is None else h).T, d, out=dweight)
            if dbias is not None:
                np.dot(ones, d, out=dbias)
            if h is not None:
                d = np.dot(d, weight.T, out=dh)
                back(d, h)
        update(g)
        return loss

    ring = [tuple(a.astype(dtype) if a.dtype.kind == "f" else a for a in batch) for batch in w.ring()]
    if form == "call":
        return case(step, ring, float)
    if w.loop == "epoch":
        return case(lambda: np.mean([step(x, y) for x, y in ring]), [()], float, steps=w.steps_of_loop)
    return case(lambda x, y: [step(x, y) for _ in range(w.repeats)][-1], ring, float, steps=w.repeats)


def recurrent(w, form, dtype=np.float32):
    """The products of the inputs, and those for the gradients of the weights, are one each for all steps."""
    n, steps = w.hidden, w.steps
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    wi, wh, bi, bh = parameters = [np.ascontiguousarray(w.weights()[name].T, dtype) for name in names]
    h = np.zeros((steps + 1, w.batch, n), dtype)
    gates, recurrent = (np.empty((steps, w.batch, 3 * n), dtype) for _ in range(2))
    di, dh = np.empty_like(gates), np.empty_like(gates)

    def rows(x):
        return x.reshape(-1, x.shape[-1])

    def step(x, y):
        np.dot(rows(x), wi, out=rows(gates))
        np.add(gates, bi, out=gates)
        for k, g, before, after in zip(gates, recurrent, h, h[1:], strict=False):
            np.dot(before, wh, out=g)
            g += bh
            k[:, :2 * n] = 1 / (1 + np.exp(-(k[:, :2 * n] + g[:, :2 * n])))
            k[:, 2 * n:] = np.tanh(k[:, 2 * n:] + k[:, :n] * g[:, 2 * n:])
            r, z, a = k[:, :n], k[:, n:2 * n], k[:, 2 * n:]
            np.add(a, z * (before - a), out=after)
        d = h[1:] - y
        loss = np.dot(d.ravel(), d.ravel()) / d.size
        d *= 2 / d.size
        carry = np.zeros((w.batch, n), dtype)
        for t in reversed(range(steps)):
            r, z, a = gates[t, :, :n], gates[t, :, n:2 * n], gates[t, :, 2 * n:]
            carry += d[t]
            di[t, :, 2 * n:] = carry * (1 - z) * (1 - a * a)
            di[t, :, n:2 * n] = carry * (h[t] - a) * z * (1 - z)
            di[t, :, :n] = di[t, :, 2 * n:] * recurrent[t, :, 2 * n:] * r * (1 - r)
            dh[t] = di[t]
            dh[t, :, 2 * n:] *= r
            carry = carry * z + dh[t] @ wh.T
        for p, g in zip(parameters, (rows(x).T @ rows(di), rows(h[:-1]).T @ rows(dh), rows(di).sum(0), rows(dh).sum(0)),
                        strict=True):
            p -= w.lr * g
        return loss

    return case(step, [tuple(a.astype(dtype) for a in batch) for batch in w.ring()], float)


# --- convolution: windows (N, OH, OW, C, 5, 5) copied to rows, and one product; maps lie channels last

def rows_of(x, side):
    seen = np.lib.stride_tricks.sliding_window_view(x, (side, side), (1, 2))
    return seen.reshape(-1, x.shape[3] * side * side)


def convolution(x, w, b):
    """(y (N, OH, OW, O), the rows) of x (N, H, W, C)."""
    rows, out = rows_of(x, w.shape[2]), x.shape[1] - w.shape[2] + 1
    y = rows @ w.reshape(len(w), -1).T
    y += b
    return y.reshape(len(x), out, out, len(w)), rows


def convolution_input(dy, w):
    """dx (N, H, W, C): the windows of dy, with zeros around it, times the turned filters."""
    k = w.shape[2] - 1
    wide = np.pad(dy, ((0, 0), (k, k), (k, k), (0, 0)))
    turned = w[:, :, ::-1, ::-1].transpose(0, 2, 3, 1).reshape(-1, w.shape[1])
    n, h, _, _ = dy.shape
    return (rows_of(wide, k + 1) @ turned).reshape(n, h + k, h + k, w.shape[1])


def pool(x):
    """(y, which of the four (N, OH, OW, 4, C) is the largest) for windows of 2x2."""
    n, h, w, c = x.shape
    four = x.reshape(n, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(n, h // 2, w // 2, 4, c)
    place = four.argmax(3)[:, :, :, None]
    return np.take_along_axis(four, place, 3)[:, :, :, 0], place


def pool_input(dy, place):
    n, h, w, c = dy.shape
    four = np.zeros((n, h, w, 4, c), dy.dtype)
    np.put_along_axis(four, place, dy[:, :, :, None], 3)
    return four.reshape(n, h, w, 2, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(n, 2 * h, 2 * w, c)


def lenet(w, form, dtype=np.float32):
    """All parameters lie in one vector, as do their gradients."""
    given = [x.astype(dtype) for part in w.weights() for pair in part for x in pair]
    p, g = np.concatenate([x.ravel() for x in given]), np.empty(w.parameters, dtype)
    ends = np.cumsum([x.size for x in given])[:-1]
    (w1, b1, w2, b2, *dense), (dw1, db1, dw2, db2, *ddense) = [
        [x.reshape(like.shape) for x, like in zip(np.split(flat, ends), given, strict=True)] for flat in (p, g)]
    update, loss_of = UPDATES[w.optimizer](p, w), LOSSES["cross_entropy"]((w.batch, w.sizes[-1]), dtype)

    def step(x, y):
        y1, rows1 = convolution(x.reshape(w.batch, w.side, w.side, 1), w1, b1)
        np.maximum(y1, 0, out=y1)
        p1, place1 = pool(y1)
        y2, rows2 = convolution(p1, w2, b2)
        np.maximum(y2, 0, out=y2)
        p2, place2 = pool(y2)
        layers = [p2.transpose(0, 3, 1, 2).reshape(w.batch, -1)]
        for i in range(0, 6, 2):
            h = layers[-1] @ dense[i] + dense[i + 1]
            layers.append(np.maximum(h, 0, out=h) if i < 4 else h)
        loss, d = loss_of(layers[-1], y), layers[-1]
        for i in (4, 2, 0):
            below = layers[i // 2]
            np.dot(below.T, d, out=ddense[i])
            d.sum(0, out=ddense[i + 1])
            d = d @ dense[i].T
            if i:
                d *= below > 0
        d = pool_input(d.reshape(w.batch, 16, 4, 4).transpose(0, 2, 3, 1), place2)
        d *= y2 > 0
        np.dot(d.reshape(-1, 16).T, rows2, out=dw2.reshape(16, -1))
        d.sum((0, 1, 2), out=db2)
        d = pool_input(convolution_input(d, w2), place1)
        d *= y1 > 0
        np.dot(d.reshape(-1, 6).T, rows1, out=dw1.reshape(6, -1))
        d.sum((0, 1, 2), out=db1)
        update(g)
        return loss

    ring = [(x.astype(dtype), y) for x, y in w.ring()]
    if form == "call":
        return case(step, ring, float)
    return case(lambda: np.mean([step(x, y) for x, y in ring]), [()], float, steps=w.steps_of_loop)


def elementwise(w, form, dtype=np.float32):
    s, t, dx, dy = (np.empty(w.n, dtype) for _ in range(4))

    def step(x, y):
        np.negative(x, out=s)
        np.exp(s, out=s)
        np.add(s, 1, out=s)
        np.reciprocal(s, out=s)
        np.multiply(x, y, out=t)
        np.add(t, s, out=t)
        np.tanh(t, out=t)
        value = t.sum()
        np.multiply(t, t, out=t)
        np.subtract(1, t, out=t)            # by the argument of tanh
        np.multiply(t, x, out=dy)
        np.subtract(1, s, out=dx)
        np.multiply(dx, s, out=dx)
        np.add(dx, y, out=dx)
        np.multiply(dx, t, out=dx)
        return value, dx, dy

    ring = [(x.astype(dtype), y.astype(dtype)) for x, y in w.ring()]
    return case(step, ring, lambda r: float(r[0]), lambda r: [[float(r[0])], *digest(*r[1:])])


def cross_entropy(w, form, dtype=np.float32):
    s = np.empty((w.rows, w.classes), dtype)
    loss_of = softmax_loss(s.shape, dtype)

    def step(logits, labels):
        np.copyto(s, logits)
        return loss_of(s, labels), s

    ring = [(x.astype(dtype), labels) for x, labels in w.ring()]
    return case(step, ring, lambda r: float(r[0]), lambda r: [[float(r[0])], *digest(r[1])])


def adam_update(w, form, dtype=np.float32):
    p = w.weights().astype(dtype)
    ring = [(g.astype(dtype),) for g, in w.ring()]
    return case(adam(p, w), ring, lambda _: float(p[0]), lambda _: digest(p - w.weights()))


def gate(w, form, dtype=np.float32):
    return case(w.case.oracle, w.ring(dtype), lambda r: None, lambda r: digest(r))


BUILD = {Net: net, ThreePoints: net, LeNet: lenet, Elementwise: elementwise, CrossEntropy: cross_entropy,
         Recurrent: recurrent, AdamUpdate: adam_update, GateCall: gate}
