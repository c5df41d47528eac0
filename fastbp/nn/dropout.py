"""Dropout of elements and of channels."""
from fastbp.gates.random import probability
from fastbp.nn import functional as F
from fastbp.nn.module import Module
from fastbp.random import stream


class Dropout(Module):
    """y = x m, m = 0 with probability p, else 1 / (1 - p) (Srivastava et al., 2014); y = x in eval

    Each call draws a new m, in a replay too; the bits are the same for any number of threads. rng: an int or a
    numpy Generator gives the layer a stream of its own, the buffer `stream`, which no state dict has: a checkpoint
    written by hand holds `layer.stream` too, and `layer.stream.copy_` takes it. inplace is PyTorch's: x is never
    written over. ValueError: p is not between 0 and 1.
    """
    _drop = staticmethod(F.dropout)

    def __init__(self, p=0.5, inplace=False, rng=None):
        self.p = probability(type(self).__name__, p)
        self.register_buffer("stream", None if rng is None else stream(rng), persistent=False)

    def forward(self, x):
        return self._drop(x, self.p, self.training, self.stream)

    def extra_repr(self):
        return f"p={self.p}"


class Dropout1d(Dropout):
    """Dropout of whole channels: x (N, C, L), one m for each n and c (Tompson et al., 2015)"""
    _drop = staticmethod(F.dropout1d)


class Dropout2d(Dropout):
    """Dropout of whole channels: x (N, C, H, W), one m for each n and c (Tompson et al., 2015)"""
    _drop = staticmethod(F.dropout2d)
