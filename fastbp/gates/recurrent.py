"""Recurrent layers: one stage walks all steps forward, one walks them backward.

x (T B, gates H) is what enters the gates from outside at all T steps, one product of the inputs and their
weights; h (B, H) is the state before the first step, w (H, gates H) the weights that read the state, b the
biases. A scan writes the states and, behind them, what its gates gave (fastbp_ext/kernels/scan.pxd has the
places); the states that layers return are a view of that. The gradient for what a scan wrote is not
one value for each of it: the walk back gives at once those for all that enters the gates, in the same
places, and what is left for the weights is one product over all steps. Where a gradient of the gradient may
follow, the walk back is written out in gates, step by step.
"""
from fastbp.create import zeros
from fastbp_ext.tensor import is_grad_enabled

from .activation import relu_grad, sigmoid, sigmoid_grad, tanh, tanh_grad
from .linear import matrices
from .reduction import sum
from .row import gate
from .shape import concatenate, contiguous, expand_dims, reshape

# --- the places in what a scan writes, `kept`, and in its gradient, `dk`


def _kept_shape(x, h, states, width, keep):
    """How many steps there are, and the shape of what a scan writes."""
    steps = x.shape[0] // h.shape[0]
    return steps, (states * (steps + 1) + width + (2 + width * steps if keep else 0), *h.shape)


def _view(kept, steps, reverse, states=1):
    """The view that shows the states behind each step: (T, B, H), or (states, T, B, H)."""
    step = kept.strides[0]
    shape, strides = (steps, *kept.shape[1:]), kept.strides
    if states > 1:
        shape, strides = (states, *shape), ((steps + 1) * step, *strides)
    return shape, strides, 0 if reverse else step, {"steps": steps, "reverse": reverse}


def _before(dk, steps, reverse):
    """The states before each step, (T B, H)."""
    return reshape(dk[1:steps + 1] if reverse else dk[:steps], -1, dk.shape[2])


def _gates(dk, steps, width):
    """The gradients for what enters the gates, (T B, W H)."""
    parts, batch, n = dk.shape
    return reshape(dk[parts - width * steps:], steps * batch, width * n)


def _sums(dk, steps, width):
    """The sums of the same over all rows, (W H,)."""
    end = dk.shape[0] - width * steps
    return reshape(sum(dk[end - width:end], 1), -1)


def _first(dk, steps, width, part=0):
    """What comes to the state before the first step, (B, H), through the product or (1) past it."""
    return dk[dk.shape[0] - width * (steps + 1) - 2 + part]


def _scan_vjps(width, for_h=_first, for_x=lambda da: da, for_w=lambda before, da: before.T @ da):
    """The vjps of a scan, for x, h, w, b and c: dk, which the vjp of the states made, has all of them."""
    return [lambda dk, *_, steps, **options: for_x(_gates(dk, steps, width)),
            lambda dk, *_, steps, **options: for_h(dk, steps, width),
            lambda dk, *_, steps, reverse, **options: for_w(_before(dk, steps, reverse), _gates(dk, steps, width)),
            lambda dk, *_, steps, **options: _sums(dk, steps, width),
            lambda dk, *_, steps, **options: _first(dk, steps, width, 1)]


def _states_vjps(walk, parts, inputs):
    """The vjps of the states: for what the scan wrote, or, where a gradient may follow, for each input of the scan."""
    def for_input(k):
        return lambda *args, **options: parts(*args, **options)[k] if is_grad_enabled() else None

    return [lambda *args, **options: None if is_grad_enabled() else walk(*args, **options),
            *map(for_input, range(inputs))]


# --- the walk back in gates

def _before_each(y, h, reverse):
    """The states before each step, (T, B, H), from those behind each step and the first."""
    h = expand_dims(h, 0)
    return concatenate([y[1:], h] if reverse else [h, y[:-1]])


def _walk_back(step, steps, reverse, *carry):
    """The gradients for what enters the gates, (T B, W H), and what step(t, *carry) leaves at the first step."""
    found = [None] * steps
    for t in range(steps) if reverse else reversed(range(steps)):
        found[t], *carry = step(t, *carry)
    return concatenate(found), *carry


# --- RNN

@gate("scan", kernel="rnn", public=False, constants=["keep", "reverse", "relu"], vjp=_scan_vjps(1)[:4])
def rnn_scan(x, h, w, b, keep, reverse, relu):
    """h[t] = tanh(x[t] + h[t - 1] w + b), or relu"""
    steps, shape = _kept_shape(x, h, 1, 1, keep)
    return shape, {"steps": steps, "keep": keep, "reverse": reverse, "relu": relu}


@gate("scan", kernel="rnn_grad", public=False, constants=["reverse", "relu"], vjp=[None] * 3)
def rnn_grad(dy, kept, w, steps, reverse, relu):
    """da[t] = (dy[t] + da[t + 1] w) tanh', or relu'; da is the gradient for what enters tanh"""
    return kept.shape, {"steps": steps, "reverse": reverse, "relu": relu}


def _rnn_parts(dy, y, kept, x, h, w, b, steps, reverse, relu):
    grad, back = relu_grad if relu else tanh_grad, w.T

    def step(t, carry):
        da = grad(dy[t] + carry, y[t])
        return da, matrices(da, back)

    da, dh = _walk_back(step, steps, reverse, zeros(h.shape, dtype=h.dtype))
    return da, dh, reshape(_before_each(y, h, reverse), -1, h.shape[1]).T @ da, sum(da, 0)


@gate("view", public=False, template="states({kept})", vjp=_states_vjps(
    lambda dy, y, kept, x, h, w, b, **options: rnn_grad(contiguous(dy), kept, contiguous(w.T), **options),
    _rnn_parts, 4))
def rnn_states(kept, x, h, w, b, steps, reverse, relu):
    """y = the states of kept = rnn_scan(x, h, w, b)"""
    *view, options = _view(kept, steps, reverse)
    return *view, {**options, "relu": relu}


# --- GRU: w has the parts r, z, q and x has r, z, a. The gradients' order is q, r, z, a, so that those of either
# product lie side by side.

def _gru_dh(dk, steps, width):
    return _first(dk, steps, width) + _first(dk, steps, width, 1)


def _gru_dx(da):
    return da[:, da.shape[1] // 4:]


def _gru_dw(before, da):
    n = before.shape[1]
    dw = before.T @ da[:, :3 * n]
    return concatenate([dw[:, n:], dw[:, :n]], axis=1)


def _gru_back(w):
    """w transposed, its parts in the order of the gradients."""
    n = w.shape[0]
    return concatenate([w.T[2 * n:], w.T[:2 * n]])


@gate("scan", kernel="gru", public=False, constants=["keep", "reverse"],
      vjp=_scan_vjps(4, _gru_dh, _gru_dx, _gru_dw)[:4])
def gru_scan(x, h, w, b, keep, reverse):
    """h[t] = a + z (h[t - 1] - a), a = tanh(x[t] + b + r q), q = h[t - 1] w + b; r, z = sigmoid(x[t] + h[t - 1] w + b)

    b has the parts r, z, q, a. (Cho et al., 2014, with r behind the product, as PyTorch has it.)
    """
    steps, shape = _kept_shape(x, h, 1, 4, keep)
    return shape, {"steps": steps, "keep": keep, "reverse": reverse}


@gate("scan", kernel="gru_grad", public=False, constants=["reverse"], vjp=[None] * 3)
def gru_grad(dy, kept, w, steps, reverse):
    """dh[t - 1] = dy[t - 1] + dh[t] z[t] + (dq, dr, dz)[t] w"""
    return kept.shape, {"steps": steps, "reverse": reverse}


def _gru_parts(dy, y, kept, x, h, w, b, steps, reverse):
    n, back = h.shape[1], _gru_back(w)
    before = _before_each(y, h, reverse)
    rows = reshape(before, -1, n)
    g = matrices(rows, w) + b[:3 * n]
    r, z = sigmoid(x[:, :n] + g[:, :n]), sigmoid(x[:, n:2 * n] + g[:, n:2 * n])
    q = g[:, 2 * n:]
    a = tanh((x[:, 2 * n:] + b[3 * n:]) + r * q)
    r, z, q, a = (reshape(v, y.shape) for v in (r, z, q, a))

    def step(t, carry, passed):
        d = dy[t] + (carry + passed)
        da = tanh_grad(d * (1 - z[t]), a[t])
        gates = concatenate([da * r[t], sigmoid_grad(da * q[t], r[t]), sigmoid_grad(d * (before[t] - a[t]), z[t]), da],
                            axis=1)
        return gates, matrices(gates[:, :3 * n], back), d * z[t]

    zero = zeros(h.shape, dtype=h.dtype)
    da, dh, passed = _walk_back(step, steps, reverse, zero, zero)
    db = sum(da, 0)
    return _gru_dx(da), dh + passed, _gru_dw(rows, da), concatenate([db[n:3 * n], db[:n], db[3 * n:]])


@gate("view", public=False, template="states({kept})", vjp=_states_vjps(
    lambda dy, y, kept, x, h, w, b, **options: gru_grad(contiguous(dy), kept, _gru_back(w), **options),
    _gru_parts, 4))
def gru_states(kept, x, h, w, b, steps, reverse):
    """y = the states of kept = gru_scan(x, h, w, b)"""
    return _view(kept, steps, reverse)


# --- LSTM: x, w and b have the parts i, f, g, o

@gate("scan", kernel="lstm", public=False, constants=["keep", "reverse"], vjp=_scan_vjps(4))
def lstm_scan(x, h, w, b, c, keep, reverse):
    """h[t] = o tanh(c[t]), c[t] = f c[t - 1] + i g; i, f, o are sigmoids, g is the tanh of x[t] + h[t - 1] w + b

    (Hochreiter and Schmidhuber, 1997; f: Gers et al., 2000.)
    """
    steps, shape = _kept_shape(x, h, 2, 4, keep)
    return shape, {"steps": steps, "keep": keep, "reverse": reverse}


@gate("scan", kernel="lstm_grad", public=False, constants=["reverse"], vjp=[None] * 3)
def lstm_grad(dy, kept, w, steps, reverse):
    """dh[t - 1] = dy_h[t - 1] + (di, df, dg, do)[t] w, dc[t - 1] = dy_c[t - 1] + dc[t] f[t] + dh[t - 1] o tanh'"""
    return kept.shape, {"steps": steps, "reverse": reverse}


def _lstm_parts(dy, y, kept, x, h, w, b, c, steps, reverse):
    n, back = h.shape[1], w.T
    rows = reshape(_before_each(y[0], h, reverse), -1, n)
    before, s = _before_each(y[1], c, reverse), tanh(y[1])
    k = x + (matrices(rows, w) + b)
    i, f, o = (sigmoid(k[:, m * n:(m + 1) * n]) for m in (0, 1, 3))
    g = tanh(k[:, 2 * n:3 * n])
    i, f, g, o = (reshape(v, s.shape) for v in (i, f, g, o))

    def step(t, dh, dc):
        d = dy[0, t] + dh
        dc = (dy[1, t] + dc) + tanh_grad(d * o[t], s[t])
        gates = concatenate([sigmoid_grad(dc * g[t], i[t]), sigmoid_grad(dc * before[t], f[t]),
                             tanh_grad(dc * i[t], g[t]), sigmoid_grad(d * s[t], o[t])], axis=1)
        return gates, matrices(gates, back), dc * f[t]

    zero = zeros(h.shape, dtype=h.dtype)
    da, dh, dc = _walk_back(step, steps, reverse, zero, zero)
    return da, dh, rows.T @ da, sum(da, 0), dc


@gate("view", public=False, template="states({kept})", vjp=_states_vjps(
    lambda dy, y, kept, x, h, w, b, c, **options: lstm_grad(contiguous(dy), kept, contiguous(w.T), **options),
    _lstm_parts, 5))
def lstm_states(kept, x, h, w, b, c, steps, reverse):
    """y = the states h and c of kept = lstm_scan(x, h, w, b, c)"""
    return _view(kept, steps, reverse, 2)


# --- what layers call

def _scanned(scan, states, xs, reverse, *options):
    xs = [contiguous(x) for x in xs]
    keep = is_grad_enabled() and any(x.requires_grad for x in xs)    # a gradient may ask for what the gates gave
    return states(scan(*xs, keep, reverse, *options), *xs, xs[0].shape[0] // xs[1].shape[0], reverse, *options)


def rnn(x, h, w, b, reverse=False, relu=False):
    """y (T, B, H), y[t] = tanh(x[t] + y[t - 1] w + b), or relu; from the last step to the first with `reverse`"""
    return _scanned(rnn_scan, rnn_states, (x, h, w, b), reverse, relu)


def gru(x, h, w, b, reverse=False):
    """y (T, B, H), the states of `gru_scan` behind each step"""
    return _scanned(gru_scan, gru_states, (x, h, w, b), reverse)


def lstm(x, h, w, b, c, reverse=False):
    """y (2, T, B, H), the states h and c of `lstm_scan` behind each step"""
    return _scanned(lstm_scan, lstm_states, (x, h, w, b, c), reverse)
