"""Adam and what came of it: one kernel, and a clock for each."""
from fastbp.optim.optimizer import Optimizer


class Adam(Optimizer):
    """m += (1 - b1) (g - m); v = b2 v + (1 - b2) g^2; w -= lr m' / (sqrt(v') + eps)

    m' = m / (1 - b1^t), v' = v / (1 - b2^t), t the parameter's own count of steps (Kingma and Ba,
    2015). weight_decay w is added to g first; with decoupled_weight_decay, lr weight_decay w is
    taken from w instead. maximize: -g stands for g.
    """
    _fixed = {"amsgrad": False}
    _length = 15
    _places = {"lr": (0,), "weight_decay": (1,), "betas": (2, 3), "eps": (4,), "decoupled_weight_decay": (5,)}
    _counts = {"step": 8}
    _clock = "adam_clock"
    _states = ("exp_avg", "exp_avg_sq")

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, *, maximize=False,
                 decoupled_weight_decay=False):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay,
                                  "maximize": maximize, "decoupled_weight_decay": decoupled_weight_decay})

    @classmethod
    def _kernel(cls, group):
        return "adam", cls._states


class AdamW(Adam):
    """Adam, but lr weight_decay w is taken from w and nothing added to g (Loshchilov and Hutter, 2019)"""
    _fixed = {**Adam._fixed, "decoupled_weight_decay": True}

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, *, maximize=False):
        super().__init__(params, lr, betas, eps, weight_decay, maximize=maximize, decoupled_weight_decay=True)


class NAdam(Adam):
    """Adam, but w -= lr (c m + d g) / (sqrt(v') + eps): Nesterov's momentum

    c = mu' / (1 - P mu'), d = (1 - mu) / (1 - P) with mu = b1 (1 - 0.96^(t momentum_decay) / 2), mu' that of
    step t + 1, P (mu_product) the product of all mu until now (Dozat, 2016).
    """
    _fixed = {}
    _places = {**Adam._places, "momentum_decay": (6,)}
    _counts = {**Adam._counts, "mu_product": 7}
    _clock = "nadam_clock"

    def __init__(self, params, lr=2e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, momentum_decay=4e-3,
                 decoupled_weight_decay=False, *, maximize=False):
        Optimizer.__init__(self, params, {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "momentum_decay": momentum_decay,
            "decoupled_weight_decay": decoupled_weight_decay, "maximize": maximize})

    def _begin(self, name, group):
        return 1 if name == "mu_product" else 0

    @classmethod
    def _kernel(cls, group):
        return "nadam", cls._states


class RAdam(Adam):
    """Adam, but w -= lr r m' / (sqrt(v) + eps) * sqrt(1 - b2^t), or lr m' while rho <= 5

    rho = q - 2 t b2^t / (1 - b2^t), q = 2 / (1 - b2) - 1; r^2 = (rho - 4) (rho - 2) q / ((q - 4) (q - 2) rho)
    (Liu et al., 2020).
    """
    _fixed = {}
    _clock = "radam_clock"

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0,
                 decoupled_weight_decay=False, *, maximize=False):
        super().__init__(params, lr, betas, eps, weight_decay, maximize=maximize,
                         decoupled_weight_decay=decoupled_weight_decay)

    @classmethod
    def _kernel(cls, group):
        return "radam", cls._states
