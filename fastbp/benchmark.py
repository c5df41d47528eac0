"""`fastbp bench`: the short benchmark, which needs NumPy alone. `python -m bench` in the sources is the long one."""
import math
import os
import subprocess
import sys

import numpy as np

import fastbp as fb
from fastbp.limits import best, copy, multiply_adds
from fastbp.machine import show_config
from fastbp.profile import time_text
from fastbp.train import make_net, make_step, run_numpy, weights_of

_THREAD_OPTIONS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "BLIS_NUM_THREADS",
                   "VECLIB_MAXIMUM_THREADS")


# --- the work: (what it is, fastbp's way, the other way, the steps that each call of these takes)

def circuit():
    """Value and both gradients of (x + s(y)) / (s(x) + (x + y)^2), against Python by hand."""
    def f(x, y):
        return (x + fb.sigmoid(y)) / (fb.sigmoid(x) + (x + y)**2)

    def by_hand(x, y):
        sx, sy, total = 1 / (1 + math.exp(-x)), 1 / (1 + math.exp(-y)), x + y
        under = 1 / (sx + total * total)
        value = (x + sy) * under
        dunder = -value * under
        dtotal = 2 * total * dunder
        return value, (under + sx * (1 - sx) * dunder + dtotal, under * sy * (1 - sy) + dtotal)

    def often(g):
        def loop():
            for _ in range(1000):
                g(3.0, -4.0)
        return loop

    step = fb.staged(fb.value_and_grad(f, argnums=(0, 1)))
    ours, other = step(3.0, -4.0), by_hand(3.0, -4.0)
    _agree([ours[0], *ours[1]], [other[0], *other[1]])
    return "circuit, value and 2 gradients", often(step), often(by_hand), 1000


def chain(n):
    """sum(tanh(x y + sigmoid(x))) and both gradients."""
    x, y = np.random.default_rng(0).standard_normal((2, n), np.float32)
    step = fb.staged(fb.value_and_grad(lambda x, y: fb.tanh(x * y + fb.sigmoid(x)).sum(), argnums=(0, 1)))

    def by_hand():
        s = 1 / (1 + np.exp(-x))
        t = np.tanh(x * y + s)
        d = 1 - t * t
        return t.sum(), d * (y + s * (1 - s)), d * x

    value, grads = step(x, y)
    _agree([value, *grads], by_hand())
    return f"sum(tanh(x y + sigmoid(x))), n {n:,}", lambda: step(x, y), by_hand, 1


def net(inputs, hidden, batch_size, steps=64):
    """An epoch of a ReLU net with softmax loss by SGD, its batches drawn at random."""
    rng = np.random.default_rng(0)
    X, y = rng.random((steps * batch_size, inputs), np.float32), rng.integers(0, 10, steps * batch_size)
    model = make_net(inputs, hidden, 10, 0)
    start = weights_of(model)

    step = make_step(model, 0.01)

    def ours():
        step.epoch(X, y, batch_size=batch_size, shuffle=True, rng=0)

    def other():
        return run_numpy(start, X, y, 1, batch_size, 0.01, 0)[1]

    ours()
    _agree(weights_of(model), other())
    return f"{inputs}-{hidden}-10 ReLU, batch {batch_size}, SGD", ours, other, steps


_WORK = (circuit, lambda: chain(1000), lambda: chain(100_000), lambda: net(64, 100, 32), lambda: net(784, 128, 32),
         lambda: net(784, 500, 100))


def _agree(ours, others):
    for a, b in zip(ours, others, strict=True):
        if not np.allclose(np.asarray(a), b, rtol=1e-3, atol=1e-4):
            raise RuntimeError("fastbp and NumPy disagree")


def measure(rounds=5, least=0.03):
    """Print the table. The two take turns, and the best of the rounds counts."""
    size = 1 << 28
    show_config()
    print(f"{'peak:':<11}{multiply_adds(least) / 1e9:.0f} G float32 multiply-adds/s in a product, "
          f"{size / copy(size, least) / 1e9:.0f} GB/s read and written in a copy")
    head = f"{'one core, time of a step':<40} {'fastbp':>9} {'NumPy':>9} {'ratio':>6}"
    print(f"\n{head}\n{'-' * len(head)}")
    for make in _WORK:
        title, ours, other, steps = make()
        times = [(best(ours, least), best(other, least)) for _ in range(rounds)]
        mine, theirs = (min(column) / steps for column in zip(*times, strict=True))
        print(f"{title:<40} {time_text(mine):>9} {time_text(theirs):>9} {theirs / mine:>6.1f}", flush=True)
    print("ratio: the time of NumPy by hand, for the circuit of Python by hand, / fastbp's")


def bench(quick=False):
    """Measure in a process of its own: NumPy takes its number of threads when it is imported."""
    env = {**os.environ, **dict.fromkeys(_THREAD_OPTIONS, "1")}
    code = subprocess.run([sys.executable, "-m", "fastbp.benchmark", *(["--quick"] if quick else [])], env=env,
                          check=False).returncode
    if code:
        raise RuntimeError(f"its process ended with {code}")


if __name__ == "__main__":
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])
    measure(*((1, 0.001) if "--quick" in sys.argv else ()))
