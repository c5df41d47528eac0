"""`fastbp train` on images: a two-layer net (mlp), beside the same epochs in NumPy, or LeNet-5 (lenet)."""
import math
import time
from pathlib import Path

import numpy as np

import fastbp as fb
from fastbp import callbacks, data, nn, optim
from fastbp.errors import error


def load(folder, seed):
    """(X, y) to train on and (X, y) to test on: the shipped digits, or a folder of MNIST-format files."""
    if folder is None:
        X, y = data.load_digits()
        return hold_out(X, y, 360, seed)
    train, test = data.load_mnist(folder)
    if train is None or test is None:
        X, y = train if train is not None else test
        if len(X) < 2:
            raise error(ValueError, "train: too few images", got=f"{len(X)} in {folder}", expected="2 or more",
                        fix="give a folder with more images")
        train, test = hold_out(X, y, max(1, len(X) // 6), seed)
    (X, y), (X_test, y_test) = train, test
    if not X.size or not X_test.size or X.shape[1] != X_test.shape[1]:
        raise error(ValueError, "train: these images can't be learned", expected="some in each, of one size",
                    got=" and ".join("{} images of {} pixels".format(*x.shape) for x in (X, X_test)) + f" in {folder}",
                    fix="take all files from one source")
    if min(y.min(), y_test.min()) < 0:
        raise error(ValueError, "train: a label is below 0", got=f"{min(y.min(), y_test.min())} in {folder}",
                    expected="classes counted from 0", fix="check the files of labels")
    return train, test


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
    scores = model.predict(X, batch_size=batch_size)
    return fb.cross_entropy(scores, y).item(), float((scores.numpy().argmax(1) != y).mean())


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


class LeNet(nn.Module):
    """LeNet-5 (LeCun et al., 1998) with ReLU and max pools, for images (n, 1, side, side).

    On 28 x 28 it is 6@5x5, pool, 16@5x5, pool, 256-120-84-10, by valid convolutions. Where 5x5 would leave too little
    to pool, as on the digits' 8 x 8, the convolutions are 3x3, with one pool behind both.
    """

    def __init__(self, side, classes, rng):
        if side < 16:
            left = (side - 4) // 2
            self.features = nn.Sequential(nn.Conv2d(1, 6, 3, rng=rng), nn.ReLU(),
                                          nn.Conv2d(6, 16, 3, rng=rng), nn.ReLU(), nn.MaxPool2d(2))
        else:
            left = ((side - 4) // 2 - 4) // 2
            self.features = nn.Sequential(nn.Conv2d(1, 6, 5, rng=rng), nn.ReLU(), nn.MaxPool2d(2),
                                          nn.Conv2d(6, 16, 5, rng=rng), nn.ReLU(), nn.MaxPool2d(2))
        self.classifier = nn.Sequential(nn.Linear(16 * left * left, 120, rng=rng), nn.ReLU(),
                                        nn.Linear(120, 84, rng=rng), nn.ReLU(), nn.Linear(84, classes, rng=rng))

    def forward(self, x):
        return self.classifier(self.features(x).reshape(len(x), -1))


def table(out, n):
    """A callback that prints a line for each epoch of n images, below a heading.

    Where the loss and the error on the training images were not computed after it, they are the means of its steps.
    """
    out(f"{'epoch':>5} {'train loss':>11} {'train error':>12} {'test loss':>10} {'test error':>11} {'images/s':>10}")

    def line(record):
        loss, wrong = (record.get(f"train_{name}", record.get(name)) for name in ("loss", "error"))
        out(f"{record['epoch']:5d} {loss:11.4f} {wrong:12.2%} {record['test_loss']:10.4f} {record['test_error']:11.2%} "
            f"{n / record['seconds']:10,.0f}")
    return line


def files(log, plot):
    """Callbacks that write a log and draw the curves, where paths are given."""
    return [*([callbacks.CSVLog(log)] if log else []), *([callbacks.Plot(plot)] if plot else [])]


def check_folder(path, what):
    """FileNotFoundError or IsADirectoryError where a file can't be made at `path`, if that is not None."""
    if path is not None and not Path(path).resolve().parent.is_dir():
        raise error(FileNotFoundError, f"train: {what} can't be saved there", got=path,
                    expected="a file in a folder that exists", fix="make the folder first")
    if path is not None and Path(path).is_dir():
        raise error(IsADirectoryError, f"train: {what} can't be saved there", got=f"{path}, a folder",
                    expected="a file", fix="give the file a name")


def train(model="mlp", folder=None, epochs=None, batch_size=None, lr=None, hidden=None, seed=0, save=None, log=None,
          plot=None, out=print):
    """What `fastbp train` does with images; the last epoch's test error is returned."""
    check_folder(save, "the weights")
    check_folder(plot, "the curves")
    splits = load(folder, seed)
    run = train_mlp if model == "mlp" else train_lenet
    return run(*splits, epochs, batch_size, lr, hidden, seed, save, files(log, plot), out)


def train_mlp(train, test, epochs, batch_size, lr, hidden, seed, save, files, out):
    """SGD, and the same epochs in NumPy."""
    (X, y), (X_test, y_test) = train, test
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

    def validate():
        (loss, wrong), (test_loss, test_wrong) = evaluate(model, X, y), evaluate(model, X_test, y_test)
        return {"train_loss": loss, "train_error": wrong, "test_loss": test_loss, "test_error": test_wrong}

    history = fb.fit(make_step(model, lr), X, y, epochs=epochs, batch_size=batch_size, rng=seed, progress="bar",
                     validation=validate, callbacks=[table(out, len(X)), *files])
    save_weights(save, model.state_dict(), out)
    if len(history) == epochs:
        ours = sum(history["seconds"])
        numpys, reached = run_numpy(start, X, y, epochs, batch_size, lr, seed)
        apart = max(float(np.abs(a - b).max()) for a, b in zip(weights_of(model), reached, strict=True))
        out(f"the same {epochs} epochs: fastbp {ours:.2f} s, NumPy {numpys:.2f} s, {numpys / ours:.1f} times as long; "
            f"weights differ by at most {apart:.1g}")
    return history["test_error"][-1] if history else None


def train_lenet(train, test, epochs, batch_size, lr, hidden, seed, save, files, out):
    """Adam. The loss and the error on the training images are the means of an epoch's steps."""
    side = math.isqrt(train[0].shape[1])
    if side * side != train[0].shape[1] or side < 6:
        raise error(ValueError, "train: lenet can't take these images", got=f"{train[0].shape[1]} pixels",
                    expected="square images of 6 x 6 or more", fix="--model mlp takes any")
    (X, y), (X_test, y_test) = ((X.reshape(-1, 1, side, side), y.astype(np.int64)) for X, y in (train, test))
    small = side < 16
    epochs, batch_size = epochs or (20 if small else 5), batch_size or (32 if small else 64)
    lr = lr if lr is not None else 3e-3
    model = LeNet(side, int(max(y.max(), y_test.max())) + 1, np.random.default_rng(seed))
    opt = optim.Adam(model.parameters(), lr=lr)

    @fb.staged
    def step(x, labels):
        scores = model(x)
        loss = fb.cross_entropy(scores, labels)
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss, fb.where(scores.argmax(1) == labels, 0.0, 1.0).mean()

    out(f"{'LeNet of 3x3 kernels' if small else 'LeNet-5'} on {side} x {side}, Adam on cross-entropy, rate {lr:g} "
        f"falling linearly,\nbatches of {batch_size}; {len(X):,} images to train on, {len(X_test):,} to test")

    def validate():
        loss, wrong = evaluate(model, X_test, y_test)
        return {"test_loss": loss, "test_error": wrong}

    slower = optim.lr_scheduler.LambdaLR(opt, lambda epoch: max(1 - epoch / epochs, 1 / epochs))
    history = fb.fit(step, X, y, epochs=epochs, batch_size=batch_size, rng=seed, progress="bar", validation=validate,
                     callbacks=[table(out, len(X)), callbacks.Schedule(slower), *files])
    save_weights(save, model.state_dict(), out)
    return history["test_error"][-1] if history else None


def save_weights(path, state, out):
    if path is not None:
        fb.save(path, state)
        out(f"weights saved to {path}")
