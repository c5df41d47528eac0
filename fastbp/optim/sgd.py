"""SGD, with momentum."""
from fastbp.errors import error
from fastbp.optim.optimizer import Optimizer


class SGD(Optimizer):
    """w -= lr d, d = g + weight_decay w; with momentum b = momentum b + d, and b stands for d

    With nesterov, d + momentum b stands for d (Sutskever et al., 2013; PyTorch's form). ValueError:
    nesterov without momentum.
    """
    _fixed = {"dampening": 0, "maximize": False}
    _length = 4
    _states = ("momentum_buffer",)

    def __init__(self, params, lr=1e-3, momentum=0, weight_decay=0, nesterov=False):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay,
                                  "nesterov": nesterov})

    def _check(self, options):
        if options["nesterov"] and not options["momentum"]:
            raise error(ValueError, "SGD: nesterov needs momentum", got="momentum=0", expected="momentum > 0",
                        fix="SGD(..., momentum=0.9, nesterov=True)")

    @staticmethod
    def _fill(h, group):
        h[0], h[1], h[2], h[3] = group["lr"], group["weight_decay"], group["momentum"], group["nesterov"]

    def _kernel(self, group):
        return ("momentum", self._states) if group["momentum"] else ("sgd", ())
