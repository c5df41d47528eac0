"""Losses as modules: loss(prediction, target). reduction: "mean", "sum" or "none"."""
from fastbp.nn import functional as F
from fastbp.nn.module import Module
from fastbp_ext.tensor import Tensor, tensor


class CrossEntropyLoss(Module):
    """y = mean of -ln softmax(logits)[label]; see `fastbp.cross_entropy`

    logits (B, C), (B, C, d1, ...) or (C,), labels integers of that shape without C. `weight`
    (C,) is a buffer: it stands in the state dict, and `to` converts it.
    """

    def __init__(self, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
        weight = weight if weight is None or isinstance(weight, Tensor) else tensor(weight)
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing

    def forward(self, logits, labels):
        return F.cross_entropy(logits, labels, self.weight, self.ignore_index, self.reduction,
                               self.label_smoothing)


class _Loss(Module):
    def __init__(self, reduction="mean"):
        self.reduction = reduction


class MSELoss(_Loss):
    """y = mean (x - target)^2, of one shape"""

    def forward(self, x, target):
        return F.mse_loss(x, target, self.reduction)


class L1Loss(_Loss):
    """y = mean |x - target|, of one shape"""

    def forward(self, x, target):
        return F.l1_loss(x, target, self.reduction)


class BCEWithLogitsLoss(_Loss):
    """y = mean of (1 - target) x + ln(1 + e^-x), of one shape"""

    def forward(self, x, target):
        return F.binary_cross_entropy_with_logits(x, target, self.reduction)


class HuberLoss(_Loss):
    """y = mean of d^2 / 2 where d = |x - target| <= delta, else delta (d - delta / 2)"""

    def __init__(self, reduction="mean", delta=1.0):
        super().__init__(reduction)
        self.delta = delta

    def forward(self, x, target):
        return F.huber_loss(x, target, self.reduction, self.delta)
