"""The workloads: shapes, settings and data, the same for every engine.

A workload has a name for the command line, a title for the table, `batches` (how many different
inputs a ring holds: every call gets the next one), and a way to draw them from a fixed seed. Where
the hardware bounds it, it says what must be done at least: `multiply_adds`, and `bytes` read and
written, for one step.
"""
from dataclasses import dataclass

import numpy as np

SEED = 20
CHECKED = 20      # steps by call before the losses are compared


@dataclass(frozen=True)
class Workload:
    """Base of all. `loop` is "epoch" or "repeat" where engines may also run the loop themselves."""

    name: str
    title: str
    batches: int = 8
    loop: str = ""
    repeats: int = 1000          # steps of one `repeat`

    multiply_adds = 0
    bytes = 0

    def rng(self):
        return np.random.default_rng(SEED)

    def ring(self):
        """A list of `batches` tuples of arrays, the arguments of one step."""
        raise NotImplementedError

    @property
    def steps_of_loop(self):
        """How many steps one call of the loop form takes."""
        return self.repeats if self.loop == "repeat" else self.batches


@dataclass(frozen=True)
class Circuit(Workload):
    """f = (x + s(y)) / (s(x) + (x + y)^2) and its two gradients, on float64 scalars."""

    def ring(self):
        return [tuple(pair) for pair in self.rng().uniform(0.5, 3, (self.batches, 2)).tolist()]


@dataclass(frozen=True)
class Net(Workload):
    """A training step of a fully connected net: forward, backward, update.

    loss: "mse" (mean over all elements), "ssr" (sum of squared residuals) or "cross_entropy" (mean).
    optimizer: "sgd", "momentum" (0.9) or "adam" (PyTorch's defaults but the rate).
    """

    sizes: tuple = ()
    batch: int = 1
    activation: str = "relu"
    bias: bool = True
    loss: str = "mse"
    optimizer: str = "sgd"
    lr: float = 0.1
    momentum = 0.9
    beta1, beta2, eps = 0.9, 0.999, 1e-8

    def weights(self):
        """[(w (in, out), b (out,) or None), ...] in float32."""
        rng, gain = self.rng(), 6 if self.activation == "relu" else 3
        return [(rng.uniform(-1, 1, (i, o)).astype(np.float32) * np.float32((gain / i)**0.5),
                 rng.uniform(-0.1, 0.1, o).astype(np.float32) if self.bias else None)
                for i, o in zip(self.sizes, self.sizes[1:], strict=False)]

    def arrays(self):
        """All rows of the ring: X float32 (batches * batch, in), Y float32, or labels int64."""
        rng, n = np.random.default_rng(SEED + 1), self.batches * self.batch
        x = rng.random((n, self.sizes[0]), np.float32)
        if self.loss == "cross_entropy":
            return x, rng.integers(0, self.sizes[-1], n)
        return x, rng.random((n, self.sizes[-1]), np.float32)

    def ring(self):
        x, y = self.arrays()
        rows = [slice(i, i + self.batch) for i in range(0, len(x), self.batch)]
        return [(x[part], y[part]) for part in rows]

    @property
    def parameters(self):
        return sum(i * o + o * self.bias for i, o in zip(self.sizes, self.sizes[1:], strict=False))

    @property
    def multiply_adds(self):
        """Of x w, x^T dy, and dy w^T but for the first layer."""
        products = [i * o for i, o in zip(self.sizes, self.sizes[1:], strict=False)]
        return self.batch * (3 * sum(products) - products[0])

    @property
    def bytes(self):
        """Of the update: each parameter and its states read and written; the gradient may never be stored."""
        return 8 * self.parameters * {"sgd": 1, "momentum": 2, "adam": 3}[self.optimizer]


@dataclass(frozen=True)
class ThreePoints(Net):
    """A net on the dosages 0, 0.5, 1 with the effects 0, 1, 0, and slightly moved ones."""

    multiply_adds = bytes = 0     # too little work: calls bound it

    def weights(self):
        """Weights from which it learns."""
        one, two = ([[2.74, -1.13]], [0.0, 0.0]), ([[0.36], [0.63]], [0.0])
        return [(np.array(w, np.float32), np.array(b, np.float32)) for w, b in (one, two)]

    def arrays(self):
        x = np.tile(np.array([[0], [0.5], [1]], np.float32), (self.batches, 1))
        y = np.tile(np.array([[0], [1], [0]], np.float32), (self.batches, 1))
        x[3:] += self.rng().uniform(-0.05, 0.05, (len(x) - 3, 1)).astype(np.float32)
        return x, y


@dataclass(frozen=True)
class Recurrent(Workload):
    """A training step of a GRU: the squares of its states' distances from targets, their mean; SGD."""

    inputs: int = 128
    hidden: int = 128
    steps: int = 64
    batch: int = 1
    lr: float = 0.1

    def weights(self):
        """By PyTorch's names and shapes, float32."""
        rng, rows = self.rng(), 3 * self.hidden
        shapes = {"weight_ih_l0": (rows, self.inputs), "weight_hh_l0": (rows, self.hidden), "bias_ih_l0": rows,
                  "bias_hh_l0": rows}
        return {name: rng.uniform(-1, 1, shape).astype(np.float32) * np.float32(self.hidden**-0.5)
                for name, shape in shapes.items()}

    def ring(self):
        rng = np.random.default_rng(SEED + 1)
        return [tuple(rng.standard_normal((self.steps, self.batch, n), np.float32) for n in (self.inputs, self.hidden))
                for _ in range(self.batches)]

    @property
    def multiply_adds(self):
        """Of x w and x^T d, of h u, d u^T and h^T d."""
        return self.steps * self.batch * 3 * self.hidden * (2 * self.inputs + 3 * self.hidden)


@dataclass(frozen=True)
class LeNet(Workload):
    """A training step of LeNet-5: 6 and 16 filters of 5x5, ReLU, max pools of 2x2, 256-120-84-10; Adam."""

    batch: int = 64
    lr: float = 3e-4
    beta1, beta2, eps = 0.9, 0.999, 1e-8
    optimizer = "adam"
    side, filters, sizes = 28, ((6, 1, 5, 5), (16, 6, 5, 5)), (256, 120, 84, 10)

    def weights(self):
        """[(filters (O, C, 5, 5), b (O,)), ...] and [(w (in, out), b (out,)), ...], all in float32."""
        rng, filters, weights = self.rng(), [], []
        for out, *inside in self.filters:
            bound = (6 / np.prod(inside))**0.5
            filters.append((rng.uniform(-bound, bound, (out, *inside)), rng.uniform(-0.1, 0.1, out)))
        for i, o in zip(self.sizes, self.sizes[1:], strict=False):
            weights.append((rng.uniform(-1, 1, (i, o)) * (6 / i)**0.5, rng.uniform(-0.1, 0.1, o)))
        return [[(w.astype(np.float32), b.astype(np.float32)) for w, b in part] for part in (filters, weights)]

    def state(self):
        """The same in one list, as PyTorch's layers have them: weights (out, in)."""
        filters, weights = self.weights()
        return [x for pair in (*filters, *((w.T, b) for w, b in weights)) for x in pair]

    def arrays(self):
        """All rows of the ring: X float32 (batches * batch, 1, 28, 28), labels int64."""
        rng, n = np.random.default_rng(SEED + 1), self.batches * self.batch
        return rng.random((n, 1, self.side, self.side), np.float32), rng.integers(0, self.sizes[-1], n)

    def ring(self):
        x, y = self.arrays()
        return [(x[i:i + self.batch], y[i:i + self.batch]) for i in range(0, len(x), self.batch)]

    @property
    def parameters(self):
        return sum(w.size + b.size for part in self.weights() for w, b in part)

    @property
    def multiply_adds(self):
        """Of the layers, the gradients of their weights, and those of their inputs but for the images."""
        first, second = 24 * 24 * 6 * 25, 8 * 8 * 16 * 150
        return self.batch * (2 * first + 3 * second + 3 * sum(i * o for i, o in zip(self.sizes, self.sizes[1:],
                                                                                   strict=False)))

    @property
    def bytes(self):
        return 24 * self.parameters      # of Adam's update


@dataclass(frozen=True)
class Elementwise(Workload):
    """sum(tanh(x y + sigmoid(x))) and its gradients by x and by y, of n float32 elements each."""

    n: int = 1000

    @property
    def bytes(self):
        return 16 * self.n      # x and y read, both gradients written

    def ring(self):
        rng = self.rng()
        return [tuple(rng.standard_normal((2, self.n), np.float32)) for _ in range(self.batches)]


@dataclass(frozen=True)
class CrossEntropy(Workload):
    """Mean cross-entropy of float32 logits (rows, classes) and its gradient by them."""

    rows: int = 128
    classes: int = 10

    @property
    def bytes(self):
        return 8 * self.rows * self.classes      # logits read, the gradient written

    def ring(self):
        rng = self.rng()
        return [(rng.standard_normal((self.rows, self.classes), np.float32) * 3,
                 rng.integers(0, self.classes, self.rows)) for _ in range(self.batches)]


@dataclass(frozen=True)
class AdamUpdate(Workload):
    """Adam's update of n float32 parameters, the gradient given."""

    n: int = 1_000_000
    lr: float = 1e-3
    beta1, beta2, eps = 0.9, 0.999, 1e-8

    @property
    def bytes(self):
        return 28 * self.n      # parameter and two states read and written, the gradient read

    def weights(self):
        return self.rng().standard_normal(self.n, np.float32)

    def ring(self):
        rng = np.random.default_rng(SEED + 1)
        return [(rng.standard_normal(self.n, np.float32),) for _ in range(self.batches)]


@dataclass(frozen=True)
class Import(Workload):
    """The import of the engine in a fresh process."""


def _tanh_net(name, title, batch, batches):
    return Net(name, title, batches, "epoch", sizes=(8, 64, 64, 4), batch=batch, activation="tanh",
               optimizer="adam", lr=1e-3)


WORKLOADS = [
    Circuit("circuit", "circuit, value and both gradients", 64),
    ThreePoints("1-2-1", "1-2-1 softplus, 3 points, SSR, GD", 16, "repeat", sizes=(1, 2, 1), batch=3,
                activation="softplus", loss="ssr", lr=0.03),
    _tanh_net("8-64-64-4-b1", "8-64-64-4 tanh, b 1, mse, Adam", 1, 1000),
    _tanh_net("8-64-64-4-b64", "8-64-64-4 tanh, b 64, mse, Adam", 64, 200),
    Net("24-8-2", "24-8-2 tanh, b 200, mse, SGD", 100, "epoch", sizes=(24, 8, 2), batch=200, activation="tanh"),
    Net("784-128-10", "784-128-10 ReLU, b 32, momentum", 100, "epoch", sizes=(784, 128, 10), batch=32,
        loss="cross_entropy", optimizer="momentum", lr=0.01),
    Net("784-500-10", "784-500-10 ReLU, no bias, b 100, SGD", 60, "epoch", sizes=(784, 500, 10), batch=100,
        bias=False, loss="cross_entropy"),
    Net("256x10", "256 wide, 10 layers, ReLU, b 64, mse, SGD", 50, "epoch", sizes=(256,) * 11, batch=64, lr=0.01),
    LeNet("lenet", "LeNet-5, 28x28, b 64, Adam", 20, "epoch"),
    Recurrent("gru-b1", "GRU 128-128, 64 steps, b 1, mse, SGD"),
    Recurrent("gru-b32", "GRU 128-128, 64 steps, b 32, mse, SGD", 4, batch=32),
    Elementwise("chain-1e3", "sum(tanh(x y + sigmoid(x))), grads, 1e3", 16, n=1000),
    Elementwise("chain-1e5", "sum(tanh(x y + sigmoid(x))), grads, 1e5", 8, n=100_000),
    Elementwise("chain-1e7", "sum(tanh(x y + sigmoid(x))), grads, 1e7", 2, n=10_000_000),
    CrossEntropy("xent-128x10", "cross-entropy, grad, (128, 10)", 16),
    CrossEntropy("xent-4096x1000", "cross-entropy, grad, (4096, 1000)", 3, rows=4096, classes=1000),
    AdamUpdate("adam-1e6", "Adam over 1e6 parameters", 4),
    Import("import", "import in a fresh process", 1),
]
