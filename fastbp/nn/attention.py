"""Attention of several heads."""
import math

import numpy as np

from fastbp.errors import ShapeError, error
from fastbp.gates.arithmetic import where
from fastbp.gates.attention import attention_weights
from fastbp.gates.random import probability
from fastbp.gates.reduction import mean
from fastbp.nn import functional as F
from fastbp.nn import init
from fastbp.nn.linear import Linear
from fastbp.nn.module import Module, Parameter, floating
from fastbp.random import generator
from fastbp_ext.tensor import Tensor, empty, from_numpy, tensor


class MultiheadAttention(Module):
    """y = out_proj of the heads' softmax(q k^T / sqrt(D)) v, side by side (Vaswani et al., 2017)

    query (L, N, E), key and value (S, N, E), or with batch_first (N, L, E) and (N, S, E); D = E / num_heads. q, k and
    v are the inputs by the thirds of in_proj_weight (3 E, E). Returned is (y, weights (N, L, S), their mean over the
    heads); weights is None unless need_weights, which PyTorch has on. Masks have PyTorch's meaning here: True leaves a
    key out (in F.scaled_dot_product_attention True lets it in), numbers are added; key_padding_mask (N, S), attn_mask
    (L, S) or (N num_heads, L, S). is_causal: query l sees keys 0 to l.
    """

    def __init__(self, embed_dim, num_heads, dropout=0.0, bias=True, *, batch_first=False, dtype=None, rng=None):
        dtype, rng = floating("MultiheadAttention", dtype or "float32"), generator(rng)
        if num_heads < 1 or embed_dim % num_heads:
            raise error(ValueError, "MultiheadAttention: the heads can't share the features",
                        got=f"embed_dim {embed_dim}, num_heads {num_heads}", expected="a multiple of num_heads",
                        fix="choose another number of heads")
        self.embed_dim, self.num_heads, self.batch_first = embed_dim, num_heads, batch_first
        self.dropout = probability("MultiheadAttention", dropout)
        weight = empty((embed_dim, 3 * embed_dim), dtype).T    # as that of Linear
        self.in_proj_weight = Parameter(init.xavier_uniform_(weight, rng=rng))
        self.in_proj_bias = Parameter(init.zeros_(empty(3 * embed_dim, dtype))) if bias else None
        self.out_proj = Linear(embed_dim, embed_dim, bias, dtype, rng)
        if bias:
            init.zeros_(self.out_proj.bias)

    def forward(self, query, key, value, key_padding_mask=None, need_weights=False, attn_mask=None, is_causal=False):
        for what, x in (("query", query), ("key", key), ("value", value)):
            if x.ndim != 3 or x.shape[2] != self.embed_dim:
                raise error(ShapeError, f"MultiheadAttention: {what} does not fit", got=f"{what} {x.shape}",
                            expected=f"({'N, L' if self.batch_first else 'L, N'}, {self.embed_dim})",
                            fix="expand_dims for one sample, or make the layer for that many features")
        q, k, v = self._projected(query, key, value)
        weights = attention_weights(q, k, v, self._mask(q, k, key_padding_mask, attn_mask), is_causal)
        weights = F.dropout(weights, self.dropout, self.training)
        y = (weights @ v).transpose((0, 2, 1, 3) if self.batch_first else (2, 0, 1, 3)).reshape(query.shape)
        return self.out_proj(y), mean(weights, 1) if need_weights else None

    def _projected(self, query, key, value):
        """q, k, v (N, num_heads, L, D)."""
        w, b, size = self.in_proj_weight, self.in_proj_bias, self.embed_dim
        if query is key is value:
            parts = self._heads(F.linear(query, w, b), 3)
            return parts[0], parts[1], parts[2]
        thirds = [slice(k * size, (k + 1) * size) for k in range(3)]
        return [self._heads(F.linear(x, w[third], None if b is None else b[third]), 1)[0]
                for x, third in zip((query, key, value), thirds, strict=True)]

    def _heads(self, x, count):
        """(count, N, num_heads, L, D) of what lies side by side in x (N, L, count E) or (L, N, count E)."""
        x = x.reshape(*x.shape[:2], count, self.num_heads, -1)
        return x.transpose(2, 0, 3, 1, 4) if self.batch_first else x.transpose(2, 1, 3, 0, 4)

    def _mask(self, q, k, padding, mask):
        """What is added to the scores (N, num_heads, L, S), or None."""
        added = None
        if padding is not None:
            padding, shape = _added(padding, q), (k.shape[0], k.shape[2])
            if padding.shape != shape:
                raise error(ShapeError, "MultiheadAttention: key_padding_mask does not fit", got=padding.shape,
                            expected=f"{shape}: (N, S)", fix="one entry for each key of each sample")
            added = padding.reshape(shape[0], 1, 1, -1)
        if mask is not None:
            mask = _added(mask, q)
            if mask.ndim == 3:
                shape = k.shape[0] * self.num_heads, q.shape[2], k.shape[2]
                if mask.shape != shape:
                    raise error(ShapeError, "MultiheadAttention: attn_mask does not fit", got=mask.shape,
                                expected=f"{shape}: (N num_heads, L, S), or (L, S)",
                                fix="one mask for each head of each sample, or one for all")
                mask = mask.reshape(k.shape[0], self.num_heads, *shape[1:])
            added = mask if added is None else added + mask
        return added

    def extra_repr(self):
        return f"{self.embed_dim}, {self.num_heads}, dropout={self.dropout}, batch_first={self.batch_first}"


def _added(mask, like):
    """A mask as numbers that are added: a bool leaves a key out where it is True."""
    mask = mask if isinstance(mask, Tensor) else from_numpy(np.asarray(mask))
    return where(mask, tensor(-math.inf, like.dtype), tensor(0.0, like.dtype)) if mask.dtype == bool else mask
