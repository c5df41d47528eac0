"""torch.nn.functional's names over fastbp's gates."""
from fastbp.errors import ShapeError, error
from fastbp.gates import GATES
from fastbp.gates.attention import scaled_dot_product_attention
from fastbp.gates.convolution import adaptive_avg_pool2d, avg_pool2d, conv1d, conv2d, max_pool2d
from fastbp.gates.embedding import embedding
from fastbp.gates.linear import matmul, matrices
from fastbp.gates.loss import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    hinge_loss,
    huber_loss,
    l1_loss,
    mse_loss,
)
from fastbp.gates.normalization import batch_norm, layer_norm, rms_norm
from fastbp.gates.random import channel_dropout, dropout
from fastbp_ext.gate import tensors_of

__all__ = ["adaptive_avg_pool2d", "avg_pool2d", "batch_norm", "binary_cross_entropy_with_logits", "conv1d",
           "conv2d", "cross_entropy", "dropout", "dropout1d", "dropout2d", "elu", "embedding", "gelu",
           "hinge_loss", "huber_loss", "l1_loss", "layer_norm", "leaky_relu", "linear", "log_softmax",
           "max_pool2d", "mse_loss", "relu", "rms_norm", "scaled_dot_product_attention", "sigmoid", "silu",
           "softmax", "softplus", "tanh"]

relu, sigmoid, tanh, silu, gelu = (GATES[name] for name in ("relu", "sigmoid", "tanh", "silu", "gelu"))
leaky_relu, elu = GATES["leaky_relu"], GATES["elu"]


def softplus(x, beta=1.0):
    """y = ln(1 + e^(beta x)) / beta; no threshold: exact everywhere"""
    if not beta > 0:
        raise ValueError(f"softplus: beta is positive, not {beta!r}")
    return GATES["softplus"](x) if beta == 1 else GATES["softplus"](GATES["mul"](x, beta)) / beta


def softmax(x, dim=-1):
    """y = e^x / sum e^x over `dim`"""
    return GATES["softmax"](x, dim)


def log_softmax(x, dim=-1):
    """y = x - ln sum e^x over `dim`"""
    return GATES["log_softmax"](x, dim)


def linear(x, w, b=None):
    """y = x w^T + b

    x (..., I), w (O, I), b (O,) or None give y (..., O). ShapeError: sizes that do not fit.
    Fast where w^T lies in C order, as that of `nn.Linear` does.
    """
    x, w = tensors_of(matrices, x, w)
    if w.ndim != 2 or x.ndim == 0 or x.shape[-1] != w.shape[1]:
        raise error(ShapeError, "linear: the input does not fit the weight",
                    got=f"input {x.shape}, weight {w.shape}", expected=_expected(w),
                    fix=f"flatten the input: x.reshape(-1, {w.shape[1]})" if _flattens(x, w)
                    else "make the layer for that many input features, or check the layer before it")
    y = matmul(x, w.T)
    if b is None:
        return y
    if getattr(b, "shape", None) != w.shape[:1]:
        raise error(ShapeError, "linear: the bias does not fit the weight",
                    got=f"bias {getattr(b, 'shape', b)}, weight {w.shape}", expected=f"bias {w.shape[:1]}",
                    fix="give one bias for each output feature")
    return y + b


def _expected(w):
    return f"input (..., {w.shape[1]})" if w.ndim == 2 else "a weight of two dimensions, (out, in)"


def _flattens(x, w):
    """Whether all dimensions but the first make one row."""
    return w.ndim == 2 and x.ndim > 2 and x.shape[0] * w.shape[1] == x.size


# --- dropout, normalization, embedding, attention

def dropout1d(x, p=0.5, training=True, rng=None):
    """y = x m, one m for each channel of x (N, C, L); see `dropout`. ShapeError: other dimensions."""
    return channel_dropout("dropout1d", 3, x, p, training, rng)


def dropout2d(x, p=0.5, training=True, rng=None):
    """y = x m, one m for each channel of x (N, C, H, W); see `dropout`. ShapeError: other dimensions."""
    return channel_dropout("dropout2d", 4, x, p, training, rng)
