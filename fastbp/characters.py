"""`fastbp train --model gru`: a model of the characters of a text, and a text of its own."""
import math
from pathlib import Path

import numpy as np

import fastbp as fb
from fastbp import nn, optim
from fastbp.errors import error
from fastbp.train import check_folder, files, save_weights

LENGTH = 64    # characters that the model sees before a prediction, at most


class Characters(nn.Module):
    """Scores (B, T, V) of each next character for ids (B, T), and the GRU's state behind the last."""

    def __init__(self, characters, hidden, rng):
        self.embed = nn.Embedding(characters, hidden // 2 or 1, rng=rng)
        self.gru = nn.GRU(hidden // 2 or 1, hidden, batch_first=True, rng=rng)
        self.head = nn.Linear(hidden, characters, rng=rng)

    def forward(self, ids, state=None):
        y, state = self.gru(self.embed(ids), state)
        return self.head(y), state


def load(path):
    """A text: a file's, or without one that of `documents.txt` beside this module, whose head says what it is."""
    if path is None:
        return Path(__file__).with_name("documents.txt").read_text(encoding="utf-8").partition("\n\n")[2]
    try:
        text = Path(path).read_text(encoding="utf-8-sig")    # some texts begin with a mark of their encoding
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:    # as UTF-16 has; NumPy's strings lose it
        raise error(ValueError, "train: this is no text", got=path, expected="a file of UTF-8 text",
                    fix="give --data FILE.txt")
    if len(text) < 20 * LENGTH:
        raise error(ValueError, "train: the text is too short", got=f"{len(text)} characters in {path}",
                    expected=f"{20 * LENGTH} or more", fix="give a longer text")
    return text


def windows(ids):
    """(n, LENGTH) characters, and those that follow each."""
    n = (len(ids) - 1) // LENGTH
    return ids[:n * LENGTH].reshape(n, LENGTH), ids[1:n * LENGTH + 1].reshape(n, LENGTH)


def write(model, n, start, temperature, rng):
    """The ids of n characters behind `start`, each drawn by its softmax(scores / temperature); 0: the likeliest."""
    @fb.staged
    def scores_of(ids, state):
        scores, state = model(ids, state)
        return scores[0, 0], state

    written, state = [start], fb.zeros(1, 1, model.gru.hidden_size)
    with fb.no_grad():
        for _ in range(n):
            scores, state = scores_of(np.array([written[-1:]]), state)
            noise = rng.gumbel(size=scores.shape) * temperature    # Gumbel's trick draws from the softmax
            written.append(int((scores.numpy() + noise).argmax()))
    return written[1:]


def train(path=None, epochs=None, batch_size=None, lr=None, hidden=None, seed=0, save=None, log=None, plot=None,
          sample=None, temperature=None, out=print):
    """What `fastbp train --model gru` does; the last epoch's bits a character on the test part are returned."""
    check_folder(save, "the weights")
    check_folder(plot, "the curves")
    if save is not None and str(save).endswith(".safetensors"):
        raise error(ValueError, "train: a file .safetensors can't hold the characters", got=save,
                    expected="a name that ends otherwise", fix="--save model.npz")
    text = load(path)
    epochs, batch_size, lr, hidden = epochs or 20, batch_size or 16, 3e-3 if lr is None else lr, hidden or 128
    sample, temperature = 400 if sample is None else sample, 0.7 if temperature is None else temperature
    characters, ids = np.unique(list(text), return_inverse=True)
    cut = len(ids) - len(ids) // 10
    (X, y), test = windows(ids[:cut]), windows(ids[cut:])
    rng = np.random.default_rng(seed)
    model = Characters(len(characters), hidden, rng)
    opt = optim.Adam(model.parameters(), lr=lr)

    def evaluate(ids, following):
        scores, _ = model(ids)
        return fb.cross_entropy(scores.reshape(-1, len(characters)), following.reshape(-1)) / math.log(2)

    @fb.staged
    def step(ids, following):
        bits = evaluate(ids, following)
        opt.zero_grad()
        bits.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        return bits

    out(f"{len(characters)} characters, GRU of {hidden} units, Adam, rate {lr:g}, batches of {batch_size} x {LENGTH};\n"
        f"{cut:,} characters to train on, {len(ids) - cut:,} to test")
    out(f"{'epoch':>5} {'train bits':>11} {'test bits':>10} {'characters/s':>13}")

    def line(record):
        speed = X.size / record["seconds"]
        out(f"{record['epoch']:5d} {record['loss']:11.3f} {record['val_loss']:10.3f} {speed:13,.0f}")

    history = fb.fit(step, X, y, epochs=epochs, batch_size=batch_size, rng=seed, progress="bar",
                     validation=(fb.staged(evaluate), *test), callbacks=[line, *files(log, plot)])
    save_weights(save, {"characters": "".join(characters), "model": model.state_dict()}, out)
    if sample:
        out("\n" + "".join(characters[write(model, sample, ids[0], temperature, rng)]))
    return history["val_loss"][-1] if history else None
