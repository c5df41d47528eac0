"""Adam and AdamW."""
from fastbp.optim.optimizer import Optimizer


class Adam(Optimizer):
    """m += (1 - b1) (g - m); v = b2 v + (1 - b2) g^2; w -= lr m' / (sqrt(v') + eps)

    m' = m / (1 - b1^t), v' = v / (1 - b2^t), t the parameter's own count of steps (Kingma and Ba,
    2015). weight_decay w is added to g first.
    """
    _fixed = {"amsgrad": False, "maximize": False, "decoupled_weight_decay": False}
    _length = 9
    _count = 8
    _clock = "adam_clock"
    _states = ("exp_avg", "exp_avg_sq")

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @classmethod
    def _fill(cls, h, group):
        h[0], h[1], h[4] = group["lr"], group["weight_decay"], group["eps"]
        h[2], h[3] = group["betas"]
        h[5] = cls._fixed["decoupled_weight_decay"]

    def _kernel(self, group):
        return "adam", self._states


class AdamW(Adam):
    """Adam, but lr weight_decay w is taken from w and nothing added to g (Loshchilov and Hutter, 2019)"""
    _fixed = {**Adam._fixed, "decoupled_weight_decay": True}

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
        super().__init__(params, lr, betas, eps, weight_decay)
