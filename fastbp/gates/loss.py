"""Losses. reduction: "mean", "sum" or "none"; mean over what is not ignored."""
import operator

import numpy as np

from fastbp.create import full
from fastbp.errors import ShapeError, error
from fastbp_ext.gate import Joint, as_index, tensors_of
from fastbp_ext.tensor import Tensor, from_numpy

from .activation import relu, softplus
from .arithmetic import abs, as_floats, eq, ne, square, sub, where
from .reduction import log_softmax_rows, mean, softmax_rows, sum
from .row import composite, gate
from .shape import contiguous, expand_dims, reshape, size_of, take, transpose


def _reduce(values, reduction):
    if reduction == "mean":
        return mean(values)
    return sum(values) if reduction == "sum" else values


def _check(name, x, reduction):
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'{name}: reduction is "mean", "sum" or "none", not {reduction!r}')
    if x.size == 0:
        raise error(ShapeError, f"{name}: the batch is empty", got=f"shape {x.shape}",
                    expected="at least one row", fix="leave empty batches out")


def _pair(name, x, target, reduction):
    x, target = tensors_of(sub, x, target)
    if x.shape != target.shape:
        raise error(ShapeError, f"{name}: prediction and target differ in shape", got=f"{x.shape} and {target.shape}",
                    expected="one shape: broadcasting would compare each with each",
                    fix="reshape the target: y.reshape(x.shape)")
    _check(name, x, reduction)
    return x, target


@composite(method=False)
def mse_loss(x, target, reduction="mean"):
    """y = mean (x - target)^2; reduction="sum": the sum of squared residuals"""
    x, target = _pair("mse_loss", x, target, reduction)
    return _reduce(square(x - target), reduction)


@composite(method=False)
def l1_loss(x, target, reduction="mean"):
    """y = mean |x - target|"""
    x, target = _pair("l1_loss", x, target, reduction)
    return _reduce(abs(x - target), reduction)


@composite(method=False)
def huber_loss(x, target, reduction="mean", delta=1.0):
    """y = mean of d^2 / 2 where d = |x - target| <= delta, else delta (d - delta / 2)"""
    x, target = _pair("huber_loss", x, target, reduction)
    if not delta > 0:
        raise ValueError(f"huber_loss: delta is positive, not {delta}")
    d = x - target
    size = abs(d)
    return _reduce(where(size <= delta, 0.5 * square(d), delta * (size - 0.5 * delta)), reduction)


@composite(method=False)
def binary_cross_entropy_with_logits(x, target, reduction="mean"):
    """y = mean of (1 - target) x + ln(1 + e^-x)"""
    x, target = _pair("binary_cross_entropy_with_logits", x, target, reduction)
    return _reduce((1 - target) * x + softplus(-x), reduction)


def _labels(name, scores, y, shape, ignored=None, fill=None):
    """Labels as checked int64 indices, and whether one is ignored."""
    y = y if isinstance(y, Tensor) else from_numpy(np.asarray(y))
    if y.shape != shape:
        given = (*shape[:1], scores.shape[-1], *shape[1:])    # the classes are the second dimension of what came
        if y.size == size_of(shape):
            fix = "labels are class numbers: y.reshape(-1)"
        elif y.shape == given:
            fix = "labels are class numbers: of one-hot rows y.argmax(1)"
        elif y.shape == given[:-1]:
            fix = f"the classes come second: scores.reshape(-1, {given[-1]}), y.reshape(-1)"
        else:
            fix = "check the batch of each"
        raise error(ShapeError, f"{name}: labels do not fit the scores", got=f"scores {given}, labels {y.shape}",
                    expected=f"labels {shape}: one for each row", fix=fix)
    return as_index(y, scores.shape[-1], name, "labels", False, ignored, fill)


def _cross_entropy_vjp(dy, y, x, labels, ignored):
    return cross_entropy_grad(contiguous(dy), x, labels, ignored)


@gate("rows", kernel="cross_entropy", name="cross_entropy", public=False, first=1, constants=["ignored"],
      vjp=[_cross_entropy_vjp, None])
def cross_entropy_rows(x, labels, ignored):
    """y[i] = ln sum e^x[i] - x[i, labels[i]], 0 for ignored labels"""
    return labels.shape, {"ignored": ignored}


@gate("rows", kernel="cross_entropy_grad", public=False, first=2, constants=["ignored"],
      template="(softmax({x}) - I[{labels}]) * {dy}", vjp=[
    # dx = dy (S - I_y): linear in dy, and S's own derivative is that of softmax.
    lambda g, dx, dy, x, labels, ignored: sum(g * cross_entropy_grad(dy * 0 + 1, x, labels, ignored), -1),
    lambda g, dx, dy, x, labels, ignored: _softmax_vjp(g * expand_dims(dy, -1), x, labels, ignored),
    None])
def cross_entropy_grad(dy, x, labels, ignored):
    """dx[i] = dy[i] (S - I_y), S the softmax of x[i]; 0 for ignored labels"""
    return x.shape, {"ignored": ignored}


cross_entropy_grad.joint = Joint(cross_entropy_rows, "cross_entropy_both", lambda dy, x, labels: (x, labels))


def _softmax_vjp(g, x, labels, ignored):
    s = softmax_rows(x)
    kept = expand_dims(as_floats(ne(labels, int(ignored)), x), -1)
    return kept * (s * (g - sum(g * s, -1, True)))


@composite(method=False)
def cross_entropy(logits, labels, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """y = mean of -ln softmax(logits)[label]

    logits (B, C) or (B, C, d1, ...) or (C,), labels integers in [0, C) of the same shape
    without C. weight (C,): the mean is weighted by the labels' weights. Rows with
    ignore_index count for nothing; if all do, the mean is 0. label_smoothing e: the target
    is (1 - e) I_y + e / C. The gradient is (S - I_y) / B. IndexError: a label out of range.
    """
    (x,) = tensors_of(cross_entropy_rows, logits)
    if x.ndim == 0:
        raise error(ShapeError, "cross_entropy: logits have no class dimension", got="shape ()",
                    expected="(C,), (B, C) or (B, C, ...)", fix="give one score for each class")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"cross_entropy: label_smoothing is between 0 and 1, not {label_smoothing}")
    _check("cross_entropy", x, reduction)
    if x.ndim > 2:
        x = transpose(x, (0, *range(2, x.ndim), 1))
    x = contiguous(x)
    given, ignore_index = operator.index(ignore_index), -1    # -1 is what _labels makes of it
    y, some_ignored = _labels("cross_entropy", x, labels, x.shape[:-1], given)
    if weight is None and not label_smoothing:
        rows = cross_entropy_rows(x, y, ignore_index)
        if not some_ignored or reduction != "mean":
            return _reduce(rows, reduction)
        return _weighted_mean(rows, as_floats(ne(y, ignore_index), x))
    safe, _ = _labels("cross_entropy", x, labels, x.shape[:-1], given, 0)
    return _smoothed(x, y, safe, weight, ignore_index, reduction, label_smoothing)


def _weighted_mean(rows, weights):
    """sum(rows) / sum(weights), 0 where there is no weight."""
    total = sum(weights)
    return where(total > 0, sum(rows) / where(total > 0, total, 1), 0)


def _smoothed(x, y, safe, weight, ignored, reduction, smoothing):
    """Cross-entropy with class weights or smoothed labels, written out; `safe` are labels without ignored ones."""
    n = x.shape[-1]
    x, safe = reshape(x, -1, n), reshape(safe, -1)
    kept = ne(reshape(y, -1), ignored)
    w = full((n,), 1, x.dtype) if weight is None else tensors_of(sub, weight, x)[0]
    if w.shape != (n,):
        raise error(ShapeError, "cross_entropy: one weight for each class", got=f"weight {w.shape}",
                    expected=f"({n},)", fix="give as many weights as classes")
    logp = log_softmax_rows(x)
    row_weight = where(kept, take(w, safe, axis=0), 0)
    rows = -(1 - smoothing) * (row_weight * where(kept, _chosen(logp, safe), 0))
    if smoothing:
        rows = rows + where(kept, sum(-logp * w, -1), 0) * (smoothing / n)
    if reduction == "mean":
        return _weighted_mean(rows, row_weight)
    return sum(rows) if reduction == "sum" else reshape(rows, y.shape)


def _chosen(logp, labels):
    """logp[i, labels[i]]"""
    rows = from_numpy(np.arange(logp.shape[0]))
    return take(logp, rows, labels, axis=0)


@composite(method=False)
def hinge_loss(scores, labels, reduction="mean"):
    """y = mean of the sum over j != label of max(0, s_j - s_label + 1)

    The multiclass hinge loss of CS231n. scores (B, C), labels (B,).
    """
    (s,) = tensors_of(relu, scores)
    if s.ndim != 2:
        raise error(ShapeError, "hinge_loss: scores are a matrix", got=f"shape {s.shape}", expected="(B, C)",
                    fix="reshape them")
    _check("hinge_loss", s, reduction)
    y, _ = _labels("hinge_loss", s, labels, s.shape[:1])
    margins = relu(s - expand_dims(_chosen(s, y), 1) + 1)
    is_label = eq(from_numpy(np.arange(s.shape[1])), expand_dims(y, 1))
    return _reduce(sum(where(is_label, 0, margins), 1), reduction)
