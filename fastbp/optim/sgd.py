"""SGD, with momentum."""
from fastbp.errors import error
from fastbp.optim.optimizer import Optimizer


class SGD(Optimizer):
    """w -= lr d, d = g + weight_decay w; with momentum b = momentum b + d, and b stands for d

    With nesterov, d + momentum b stands for d (Sutskever et al., 2013; PyTorch's form). maximize: -g
    stands for g. ValueError: nesterov without momentum.
    """
    _fixed = {"dampening": 0}
    _length = 4
    _places = {"lr": (0,), "weight_decay": (1,), "momentum": (2,), "nesterov": (3,)}
    _decisive = {"maximize", "momentum"}
    _states = ("momentum_buffer",)

    def __init__(self, params, lr=1e-3, momentum=0, weight_decay=0, nesterov=False, *, maximize=False):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay,
                                  "nesterov": nesterov, "maximize": maximize})
        # Here only: a momentum that became 0 later is plain SGD, whose state loads and copies.
        if any(group["nesterov"] and not group["momentum"] for group in self.param_groups):
            raise error(ValueError, "SGD: nesterov needs momentum", got="momentum=0", expected="momentum > 0",
                        fix="SGD(..., momentum=0.9, nesterov=True)")

    @classmethod
    def _kernel(cls, group):
        return ("momentum", cls._states) if group["momentum"] else ("sgd", ())
