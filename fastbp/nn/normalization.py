"""Normalization over batches and over the last dimensions of each sample."""
from fastbp.create import ones, zeros
from fastbp.errors import DtypeError, ShapeError, error
from fastbp.gates.normalization import sizes, standardize
from fastbp.gates.shape import narrow, real
from fastbp.nn import functional as F
from fastbp.nn.module import Module, Parameter, floating
from fastbp_ext.gate import tensors_of, tick_state


class _BatchNorm(Module):
    _forms = {}    # {number of dimensions: what they are}

    def __init__(self, num_features, eps=1e-5, momentum=0.1, affine=True, track_running_stats=True, dtype=None,
                 bias=True):
        dtype = floating(type(self).__name__, dtype or "float32")
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        self.weight = Parameter(ones(num_features, dtype=dtype)) if affine else None
        self.bias = Parameter(zeros(num_features, dtype=dtype)) if affine and bias else None
        tracked = track_running_stats
        self.register_buffer("running_mean", zeros(num_features, dtype=dtype) if tracked else None)
        self.register_buffer("running_var", ones(num_features, dtype=dtype) if tracked else None)
        self.register_buffer("num_batches_tracked", zeros((), dtype="int64") if tracked else None)

    def forward(self, x):
        (x,) = tensors_of(standardize, x)
        if x.ndim not in self._forms or x.shape[1] != self.num_features:
            raise error(ShapeError, f"{type(self).__name__}: the input does not fit", got=f"shape {x.shape}",
                        expected=" or ".join(self._forms.values()).replace("C", str(self.num_features)),
                        fix="make the layer for that many channels, or reshape the input")
        training, tracked, share = self.training, self.running_mean is not None, self.momentum
        if training and tracked and (self.num_batches_tracked.dtype != "int64" or self.num_batches_tracked.ndim):
            raise error(DtypeError, f"{type(self).__name__}: num_batches_tracked is no count",
                        got=f"{self.num_batches_tracked.dtype}, shape {self.num_batches_tracked.shape}",
                        expected="one int64", fix="num_batches_tracked.copy_(0) sets it back")
        if training and tracked and share is None:    # the mean of all batches
            share = 1 / (real(self.num_batches_tracked) + 1)
            share = narrow(share) if x.dtype == "float32" else share
        y = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, training or not tracked,
                         share, self.eps)
        if training and tracked:
            tick_state("one_more", [self.num_batches_tracked])
        return y

    def extra_repr(self):
        return (f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
                f"bias={self.bias is not None}, track_running_stats={self.track_running_stats}")


class BatchNorm1d(_BatchNorm):
    """y = (x - mean) / sqrt(var + eps) weight + bias of x (N, C) or (N, C, L), by channels (Ioffe and Szegedy, 2015)

    In training mean and var are those of the batch, and the buffers running_mean and running_var become
    (1 - momentum) old + momentum new (momentum None: the mean of all batches), in a replay too; in eval these stand
    for them. ShapeError: another number of dimensions or channels. ValueError: one value for each channel in training.
    """
    _forms = {2: "(N, C)", 3: "(N, C, L)"}


class BatchNorm2d(_BatchNorm):
    """y = (x - mean) / sqrt(var + eps) weight + bias of x (N, C, H, W), by channels; see BatchNorm1d"""
    _forms = {4: "(N, C, H, W)"}


class LayerNorm(Module):
    """y = (x - mean) / sqrt(var + eps) weight + bias over the last dimensions (Ba, Kiros and Hinton, 2016)

    normalized_shape: their sizes, a number or a tuple. ShapeError: x does not end in it.
    """

    def __init__(self, normalized_shape, eps=1e-5, elementwise_affine=True, bias=True, dtype=None):
        dtype = floating("LayerNorm", dtype or "float32")
        self.normalized_shape = sizes(normalized_shape)
        self.eps, self.elementwise_affine = eps, elementwise_affine
        self.weight = Parameter(ones(self.normalized_shape, dtype=dtype)) if elementwise_affine else None
        self.bias = Parameter(zeros(self.normalized_shape, dtype=dtype)) if elementwise_affine and bias else None

    def forward(self, x):
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self):
        return (f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}, "
                f"bias={self.bias is not None}")


class RMSNorm(Module):
    """y = x / sqrt(mean x^2 + eps) weight over the last dimensions (Zhang and Sennrich, 2019)

    normalized_shape as in LayerNorm. eps None: the dtype's epsilon. ShapeError: x does not end in it.
    """

    def __init__(self, normalized_shape, eps=None, elementwise_affine=True, dtype=None):
        dtype = floating("RMSNorm", dtype or "float32")
        self.normalized_shape = sizes(normalized_shape)
        self.eps, self.elementwise_affine = eps, elementwise_affine
        self.weight = Parameter(ones(self.normalized_shape, dtype=dtype)) if elementwise_affine else None

    def forward(self, x):
        return F.rms_norm(x, self.normalized_shape, self.weight, self.eps)

    def extra_repr(self):
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"
