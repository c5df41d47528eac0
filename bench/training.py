"""The same epochs of `fastbp train`'s models in fastbp and in PyTorch: `python -m bench.training --help`.

One thread each, from the same weights, on the same batches, an epoch of one after an epoch of the other.
"""
import argparse
import math
import time

import numpy as np
import torch
from torch import nn

import fastbp as fb
from fastbp import data, optim
from fastbp.characters import Characters, windows
from fastbp.characters import load as load_text
from fastbp.train import LeNet, load


class Net(nn.Module):
    """PyTorch's side of `fastbp.characters.Characters`."""

    def __init__(self, ours):
        super().__init__()
        self.embed = nn.Embedding(*ours.embed.weight.shape)
        self.gru = nn.GRU(ours.embed.weight.shape[1], ours.gru.hidden_size, batch_first=True)
        self.head = nn.Linear(*reversed(ours.head.weight.shape))

    def forward(self, ids):
        return self.head(self.gru(self.embed(ids))[0])


def lenet(folder):
    """Both models, (arrays to train on, to test on), loss and measure of each, epochs, rows of a batch, rate, norm."""
    train, test = [(X.reshape(-1, 1, 28, 28), y.astype(np.int64)) for X, y in load(folder, 0)]
    ours = LeNet(28, 10, np.random.default_rng(0))
    pool = lambda: (nn.ReLU(), nn.MaxPool2d(2))
    theirs = nn.Sequential(nn.Conv2d(1, 6, 5), *pool(), nn.Conv2d(6, 16, 5), *pool(), nn.Flatten(), nn.Linear(256, 120),
                           nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10))
    error = lambda scores, y: f"{(scores.argmax(1) != y).mean():.2%} of the test images wrong"
    return ours, theirs, train, test, lambda scores, y: (scores, y), error, 5, 64, 3e-3, None


def gru(path):
    """As `lenet`."""
    characters, ids = np.unique(list(load_text(path)), return_inverse=True)
    cut = len(ids) - len(ids) // 10
    ours = Characters(len(characters), 128, np.random.default_rng(0))
    flat = lambda scores, y: (scores.reshape(-1, len(characters)), y.reshape(-1))

    def bits(scores, y):
        scores, y = flat(scores, y)
        return f"{fb.cross_entropy(scores, y).item() / math.log(2):.3f} bits a test character"
    return ours, Net(ours), windows(ids[:cut]), windows(ids[cut:]), flat, bits, 20, 16, 3e-3, 1.0


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=["lenet", "gru"], default="lenet")
    parser.add_argument("--data", metavar="PATH", help="as fastbp train takes it; lenet: 28 x 28 images")
    args = parser.parse_args()
    torch.set_num_threads(1)
    fb.set_num_threads(1)
    make = lenet if args.model == "lenet" else gru
    ours, theirs, (X, y), (X_test, y_test), shaped, measure, epochs, size, lr, norm = make(args.data)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), [torch.tensor(v.numpy()) for v in ours.state_dict().values()],
                                    strict=True)))
    own_scores = (lambda x: ours(x)[0]) if args.model == "gru" else ours
    opt, other = optim.Adam(ours.parameters(), lr=lr), torch.optim.Adam(theirs.parameters(), lr=lr)

    @fb.staged
    def step(x, y):
        loss = fb.cross_entropy(*shaped(own_scores(x), y))
        opt.zero_grad()
        loss.backward()
        if norm:
            fb.nn.utils.clip_grad_norm_(ours.parameters(), norm)
        opt.step()
        return loss

    def epoch(rng):
        for x, labels in data.batches(X, y, batch_size=size, shuffle=True, rng=rng):
            loss = nn.functional.cross_entropy(*shaped(theirs(torch.from_numpy(x)), torch.from_numpy(labels)))
            other.zero_grad()
            loss.backward()
            if norm:
                nn.utils.clip_grad_norm_(theirs.parameters(), norm)
            other.step()

    one, two, seconds = np.random.default_rng(0), np.random.default_rng(0), np.zeros(2)
    for n in range(epochs):
        if args.model == "lenet":
            opt.lr = other.param_groups[0]["lr"] = lr * (1 - n / epochs)
        begun = time.perf_counter()
        step.epoch(X, y, batch_size=size, shuffle=True, rng=one)
        between = time.perf_counter()
        epoch(two)
        seconds += between - begun, time.perf_counter() - between
        print(f"epoch {n + 1}: fastbp {seconds[0]:.2f} s, PyTorch {seconds[1]:.2f} s", flush=True)
    with torch.no_grad(), fb.no_grad():
        print(f"fastbp:  {measure(own_scores(X_test).numpy(), y_test)}")
        print(f"PyTorch: {measure(theirs(torch.from_numpy(X_test)).numpy(), y_test)}")
    print(f"PyTorch takes {seconds[1] / seconds[0]:.2f} times as long")


if __name__ == "__main__":
    main()
