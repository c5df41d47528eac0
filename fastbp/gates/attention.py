"""Attention: a mean of values, weighted by how well each query and key agree."""
import math

import numpy as np

from fastbp.errors import ShapeError, error
from fastbp_ext.gate import tensors_of
from fastbp_ext.tensor import Tensor, from_numpy

from .arithmetic import where
from .linear import matmul, matrices
from .random import dropout, probability
from .reduction import softmax_grad
from .row import composite, gate
from .shape import contiguous, swap


@gate("rows", kernel="softmax", name="softmax", public=False, constants=["masked"], vjp=[
    lambda dy, y, x, masked: softmax_grad(contiguous(dy), y)])
def masked_softmax(x, masked):
    """y = e^x / sum e^x over the last dimension; 0 where all of it is -inf"""
    return x.shape, {"masked": masked}


@composite(method=False)
def scaled_dot_product_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None):
    """y = softmax(scale query key^T) value (Vaswani et al., 2017)

    query (..., L, E), key (..., S, E), value (..., S, V) give y (..., L, V); leading dimensions broadcast. scale:
    1 / sqrt(E) where it is None. attn_mask (..., L, S), or broadcast to that: bools say which keys take part, numbers
    are added. is_causal: query l sees keys 0 to l, of those that the mask lets it. A query that sees no key gives 0.
    dropout_p: weights are dropped, training or not. ShapeError: shapes that do not fit.
    """
    q, k, v = tensors_of(matrices, query, key, value)
    weights = attention_weights(q, k, v, attn_mask, is_causal, scale)
    if probability("scaled_dot_product_attention", dropout_p):
        weights = dropout(weights, dropout_p)
    return matmul(weights, v)


def attention_weights(q, k, v, mask=None, is_causal=False, scale=None):
    """How much each query (..., L) takes of each key (..., L, S)."""
    if min(q.ndim, k.ndim, v.ndim) < 2 or q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        raise error(ShapeError, "scaled_dot_product_attention: query, key and value do not fit",
                    got=f"query {q.shape}, key {k.shape}, value {v.shape}",
                    expected="(..., L, E), (..., S, E) and (..., S, V)", fix="check which dimension is the sequence")
    scores = matmul(q * (1 / math.sqrt(max(q.shape[-1], 1)) if scale is None else scale), swap(k))
    if is_causal:
        scores = where(from_numpy(np.tri(*scores.shape[-2:], dtype=bool)), scores, -math.inf)
    if mask is not None:
        mask = mask if isinstance(mask, Tensor) else from_numpy(np.asarray(mask))
        _check_mask(mask, scores.shape)
        scores = where(mask, scores, -math.inf) if mask.dtype == bool else scores + mask
    return masked_softmax(contiguous(scores), 1)


def _check_mask(mask, shape):
    try:
        fits = np.broadcast_shapes(mask.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        of_keys = ", ".join(map(str, (shape[0], *[1] * (len(shape) - 2), -1)))
        raise error(ShapeError, "scaled_dot_product_attention: the mask does not fit", got=f"mask {mask.shape}",
                    expected=f"{shape}, (..., queries, keys), or what broadcasts to it",
                    fix=f"a mask of the keys of each: mask.reshape({of_keys})" if mask.shape == (shape[0], shape[-1])
                    else "check which of its dimensions is the queries, and which the keys")
