"""RMSprop and Adagrad: one kernel, and a clock for each."""
from fastbp.optim.optimizer import Optimizer


class RMSprop(Optimizer):
    """s = alpha s + (1 - alpha) g^2; w -= lr g / (sqrt(s) + eps)

    With momentum b = momentum b + g / (sqrt(s) + eps), and w -= lr b (Hinton, 2012). centered: s - a^2 stands
    under the root, a += (1 - alpha) (g - a) (Graves, 2013). weight_decay w is added to g first; maximize: -g
    stands for g.
    """
    _length = 10
    _places = {"lr": (0,), "weight_decay": (1,), "alpha": (2,), "eps": (4,), "centered": (5,), "momentum": (7,)}
    _decisive = {"maximize", "momentum", "centered"}
    _counts = {"step": 8}
    _clock = "rmsprop_clock"
    _states = ("square_avg", "momentum_buffer", "grad_avg")

    def __init__(self, params, lr=1e-2, alpha=0.99, eps=1e-8, weight_decay=0, momentum=0, centered=False, *,
                 maximize=False):
        super().__init__(params, {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay,
                                  "momentum": momentum, "centered": centered, "maximize": maximize})

    @classmethod
    def _kernel(cls, group):
        needs = True, group["momentum"], group["centered"]
        return "rmsprop", tuple(name for name, needed in zip(cls._states, needs, strict=True) if needed)


class Adagrad(Optimizer):
    """s += g^2; w -= lr / (1 + (t - 1) lr_decay) g / (sqrt(s) + eps), s initial_accumulator_value at first

    (Duchi, Hazan and Singer, 2011.) t is the parameter's own count of steps. weight_decay w is added to g
    first; maximize: -g stands for g.
    """
    _length = 10
    _places = {"lr": (0,), "weight_decay": (1,), "eps": (4,), "lr_decay": (6,)}
    _counts = {"step": 8}
    _clock = "adagrad_clock"
    _states = ("sum",)

    def __init__(self, params, lr=1e-2, lr_decay=0, weight_decay=0, initial_accumulator_value=0, eps=1e-10, *,
                 maximize=False):
        super().__init__(params, {"lr": lr, "lr_decay": lr_decay, "weight_decay": weight_decay,
                                  "initial_accumulator_value": initial_accumulator_value, "eps": eps,
                                  "maximize": maximize})

    def _begin(self, name, group):
        return group["initial_accumulator_value"] if name == "sum" else 0

    @classmethod
    def _kernel(cls, group):
        return "adagrad", cls._states
