"""`fastbp train`: a two-layer ReLU net on images of digits, and the same epochs in NumPy."""
import sys
import time
from pathlib import Path

import numpy as np

import fastbp as fb
from fastbp import data, nn, optim
from fastbp.errors import error


def load(folder, seed):
    """(X, y) to train on and (X, y) to test on: the shipped digits, or a folder of MNIST-format files."""
    if folder is None:
        X, y = data.load_digits()
        return hold_out(X, y, 360, seed)
    train, test = data.load_mnist(folder)
    if train is not None and test is not None:
        return train, test
    X, y = train if train is not None else test
    if len(X) < 2:
        raise error(ValueError, "train: too few images", got=f"{len(X)} in {folder}", expected="2 or more",
                    fix="give a folder with more images")
    return hold_out(X, y, max(1, len(X) // 6), seed)


def hold_out(X, y, n, seed):
    """The last n rows of a permutation are the test split."""
    order = np.random.default_rng(seed).permutation(len(X))
    train, test = order[:-n], order[-n:]
    return (X[train], y[train]), (X[test], y[test])


def make_net(inputs, hidden, classes, seed):
    rng = np.random.default_rng(seed)
    return nn.Sequential(nn.Linear(inputs, hidden, rng=rng), nn.ReLU(), nn.Linear(hidden, classes, rng=rng))


def evaluate(model, X, y, batch_size=1000):
    """Mean loss and share of errors over a split."""
    loss = errors = 0.0
    with fb.no_grad():
        for xb, yb in data.batches(X, y, batch_size=batch_size):
            scores = model(xb)
            loss += fb.cross_entropy(scores, yb, reduction="sum").item()
            errors += int((scores.numpy().argmax(1) != yb).sum())
    return loss / len(X), errors / len(X)


class Bar:
    """A progress bar on a terminal, nothing elsewhere."""

    def __init__(self, total, stream):
        self.total, self.stream, self.shown = total, stream, 0.0
        self.live = stream.isatty()

    def show(self, done, text):
        now = time.perf_counter()
        if self.live and now - self.shown > 0.1:
            self.shown = now
            filled = 30 * done // self.total
            self.stream.write(f"\r{text} [{'#' * filled}{'.' * (30 - filled)}] {100 * done // self.total:3d} %")
            self.stream.flush()

    def clear(self):
        if self.live:
            self.stream.write("\r" + " " * 78 + "\r")
            self.stream.flush()


def make_step(model, lr):
    """A step of SGD on cross-entropy."""
    opt = optim.SGD(model.parameters(), lr=lr)

    @fb.staged
    def step(x, labels):
        loss = fb.cross_entropy(model(x), labels)
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss

    return step


def run_fastbp(model, X, y, epochs, batch_size, lr, seed, after_epoch):
    """Train by SGD; `after_epoch(epoch, seconds)` is not counted. Seconds of training are returned."""
    step, rng = make_step(model, lr), np.random.default_rng(seed)
    total = 0.0
    for epoch in range(epochs):
        bar = Bar(len(X), sys.stderr)
        begin = time.perf_counter()
        step.epoch(X, y, batch_size=batch_size, shuffle=True, rng=rng,
                   progress=lambda done, total, e=epoch, b=bar: b.show(done, f"epoch {e + 1:3d}/{epochs}"))
        seconds = time.perf_counter() - begin
        bar.clear()
        total += seconds
        after_epoch(epoch, seconds)
    return total


def run_numpy(weights, X, y, epochs, batch_size, lr, seed):
    """The same training written by hand in NumPy, from the same weights, on the same batches.

    Returns the seconds that it took and the weights that it reached.
    """
    w1, b1, w2, b2 = (w.copy() for w in weights)
    rng = np.random.default_rng(seed)
    begin = time.perf_counter()
    for _ in range(epochs):
        for xb, yb in data.batches(X, y, batch_size=batch_size, shuffle=True, rng=rng):
            h = xb @ w1
            h += b1
            np.maximum(h, 0, out=h)
            s = h @ w2
            s += b2
            s -= s.max(1, keepdims=True)
            np.exp(s, out=s)
            s /= s.sum(1, keepdims=True)
            s[np.arange(len(yb)), yb] -= 1        # S - I_y
            s /= len(yb)
            dh = s @ w2.T
            dh *= h > 0
            w2 -= lr * (h.T @ s)
            b2 -= lr * s.sum(0)
            w1 -= lr * (xb.T @ dh)
            b1 -= lr * dh.sum(0)
    return time.perf_counter() - begin, (w1, b1, w2, b2)


def weights_of(model):
    """The weights (in, out) and biases of the two layers, as NumPy arrays."""
    return [p.numpy().T.copy() for layer in (model[0], model[2]) for p in (layer.weight, layer.bias)]


def train(folder=None, epochs=None, batch_size=None, lr=None, hidden=None, seed=0, save=None, out=print):
    """What `fastbp train` does; the last epoch's test error is returned."""
    if save is not None and not Path(save).resolve().parent.is_dir():
        raise error(FileNotFoundError, "train: the weights can't be saved there", got=save,
                    expected="a file in a folder that exists", fix="make the folder first")
    (X, y), (X_test, y_test) = load(folder, seed)
    small = X.shape[1] <= 64
    epochs = epochs or (40 if small else 5)
    batch_size = batch_size or (32 if small else 100)
    lr = lr if lr is not None else 1.0 if small else 0.2
    hidden = hidden or (100 if small else 500)
    classes = int(max(y.max(), y_test.max())) + 1
    model = make_net(X.shape[1], hidden, classes, seed)
    start = weights_of(model)
    out(f"{X.shape[1]}-{hidden}-{classes} ReLU net, SGD on cross-entropy, rate {lr:g}, batches of {batch_size}; "
        f"{len(X):,} images to train on, {len(X_test):,} to test")
    out(f"{'epoch':>5} {'train loss':>11} {'train error':>12} {'test loss':>10} {'test error':>11} {'images/s':>10}")
    test_error = None

    def after_epoch(epoch, seconds):
        nonlocal test_error
        loss, train_error = evaluate(model, X, y)
        test_loss, test_error = evaluate(model, X_test, y_test)
        out(f"{epoch + 1:5d} {loss:11.4f} {train_error:12.2%} {test_loss:10.4f} {test_error:11.2%} "
            f"{len(X) / seconds:10,.0f}")

    ours = run_fastbp(model, X, y, epochs, batch_size, lr, seed, after_epoch)
    if save is not None:
        fb.save(save, model.state_dict())
        out(f"weights saved to {save}")
    numpys, reached = run_numpy(start, X, y, epochs, batch_size, lr, seed)
    apart = max(float(np.abs(a - b).max()) for a, b in zip(weights_of(model), reached, strict=True))
    out(f"the same {epochs} epochs: fastbp {ours:.2f} s, NumPy {numpys:.2f} s, {numpys / ours:.1f} times as long; "
        f"weights differ by at most {apart:.1g}")
    return test_error
