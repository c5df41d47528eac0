"""What `fb.fit` calls after each epoch. A plain function of the epoch's record does as well.

A callback has some of `on_fit_begin(run)`, `on_epoch_end(record)` and `on_fit_end(run)`; the last comes even after
Ctrl-C or an error. record: {"epoch": 1, "loss": ..., ..., "seconds": ...}; what a callback adds to it, those behind it
see. Training stops after an epoch for which one returns True, or a text that says why. run: `run.history`, the
`History` so far; `run.weights`, the tensors that training changes, or None where they are not known.

In a loop of your own, call `on_epoch_end` with a dict.
"""
import inspect
import io
import math
import os
import time

import numpy as np

from fastbp.errors import error
from fastbp.nn.dropout import Dropout
from fastbp.nn.module import Module
from fastbp.random import get_rng_state, set_rng_state
from fastbp.serialization import load, save


def _column(record, monitor):
    """monitor, a column of the record; None is "val_loss" where there is one, else "loss"."""
    name = monitor or ("val_loss" if "val_loss" in record else "loss")
    if not hasattr(record.get(name), "__float__"):
        raise error(ValueError, f"callbacks: there is no {name!r} to monitor", got=", ".join(record),
                    expected="the name of a column of numbers", fix="let the step or the validation return it")
    return name


class Best:
    """The lowest (mode="max": the highest) value of column `monitor` so far, its epoch, and the weights then.

    monitor: None is "val_loss" where there is one, else "loss". An epoch has to be better by more than min_delta.
    weights: tensors, of whose values one copy is kept; until an epoch is the best, those at the start.
    """

    def __init__(self, monitor=None, mode="min", min_delta=0.0, weights=()):
        if mode not in ("min", "max"):
            raise error(ValueError, "callbacks: mode can't be this", got=repr(mode), expected='"min" or "max"',
                        fix='mode="max" where more is better')
        self.monitor, self.min_delta, self.sign = monitor, min_delta, 1 if mode == "min" else -1
        self.value, self.epoch = self.sign * math.inf, 0
        self.kept = [(t, t.numpy().copy(order="K")) for t in weights if t.numpy().flags.writeable]

    def update(self, record):
        """Whether this epoch is the best so far."""
        self.monitor = _column(record, self.monitor)
        value = record[self.monitor]
        if not self.sign * value < self.sign * self.value - self.min_delta:    # as NaN is not
            return False
        self.value, self.epoch = value, record["epoch"]
        for t, values in self.kept:
            np.copyto(values, t.numpy())
        return True

    def restore(self):
        """Give the weights the values that were kept."""
        for t, values in self.kept:
            t.copy_(values)

    def __str__(self):
        return f"epoch {self.epoch} ({self.monitor} {self.value:.4g})" if self.epoch else "the start"


class EarlyStopping:
    """Stop when `monitor` has not got better by more than min_delta for `patience` epochs.

    monitor: a column of the record; by default "val_loss" where there is one, else "loss". mode="max": more is
    better. restore_best: at the end, however it comes, the weights (the optimizer's state is not put back) are those
    of the best epoch. ValueError: they are to be, and which tensors they are is not known.
    """

    def __init__(self, monitor=None, patience=5, min_delta=0.0, mode="min", restore_best=True):
        if isinstance(patience, bool) or not hasattr(patience, "__index__") or patience < 1:
            raise error(ValueError, "EarlyStopping: patience can't be this", got=repr(patience),
                        expected="an int of 1 or more", fix="patience=5")
        self.options = monitor, mode, min_delta
        self.patience, self.restore_best = patience, restore_best
        self.best, self.waited = Best(*self.options), 0

    def on_fit_begin(self, run):
        if self.restore_best and run.weights is None:
            raise error(ValueError, "EarlyStopping: the weights to restore are not known",
                        got="a step that is not staged, and no model", expected="a staged step, or model=",
                        fix="fb.fit(step, ..., model=model), or EarlyStopping(restore_best=False)")
        self.best, self.waited = Best(*self.options, weights=run.weights if self.restore_best else ()), 0

    def on_epoch_end(self, record):
        self.waited = 0 if self.best.update(record) else self.waited + 1
        return f"the best was {self.best}" if self.waited >= self.patience else None

    def on_fit_end(self, run):
        if self.restore_best:
            self.best.restore()
            run.history.restored = self.best.epoch


class CSVLog:
    """Append each epoch's record to a CSV file, flushed; the names of the columns stand once, at its top.

    A file that is there goes on. ValueError: it is no log, or its columns are others. OSError: it can't be written.
    """

    def __init__(self, path):
        self.path = path

    def on_fit_begin(self, run):
        with open(self.path, "a+", newline="") as file:    # what can't be written is said before the first epoch
            self._read(file)

    def _read(self, file):
        file.seek(0)
        try:
            return file.read()
        except UnicodeDecodeError as problem:
            raise error(ValueError, f"CSVLog: {os.fspath(self.path)!r} is no text", got=problem,
                        expected="a log, or no file yet", fix="log to another file") from None

    def on_epoch_end(self, record):
        import csv
        with open(self.path, "a+", newline="") as file:
            before = self._read(file)
            columns = next(csv.reader([before.partition("\n")[0]]), [])
            if columns and columns != list(record):
                raise error(ValueError, f"CSVLog: {os.fspath(self.path)!r} has other columns", got=", ".join(record),
                            expected=", ".join(columns), fix="log to another file")
            writer = csv.writer(file, lineterminator="\n")
            if not columns:
                writer.writerow(record)
            elif not before.endswith("\n"):    # the last run was killed as it wrote
                file.write("\n")
            writer.writerow(record.values())


class Plot:
    """Draw the learning curves to a file, at most every ten seconds and at the end; see `History.plot`.

    Said before the first epoch: RuntimeError: matplotlib is missing, which is the extra `plot`. ValueError: a format
    that it has not. OSError: there is no such folder.
    """

    def __init__(self, path):
        self.path = path

    def on_fit_begin(self, run):
        from fastbp.show.terminal import figure
        drawn, ending = figure(1, 1), os.path.splitext(self.path)[1][1:].lower()
        os.stat(os.path.dirname(os.path.abspath(self.path)))
        drawn.savefig(io.BytesIO(), format=ending or None)
        self.history, self.drawn = run.history, -math.inf

    def on_epoch_end(self, record):
        if time.monotonic() - self.drawn > 10:
            self.history.plot(self.path)
            self.drawn = time.monotonic()

    def on_fit_end(self, run):
        if len(run.history):
            run.history.plot(self.path)


class Schedule:
    """Step a scheduler of the rate at the end of each epoch; the record gets "lr", the rate that the epoch had.

    One whose `step` wants a metric (ReduceLROnPlateau) is given column `monitor`, as `EarlyStopping` has it.
    """

    def __init__(self, scheduler, monitor=None):
        if not hasattr(scheduler, "optimizer"):
            raise error(TypeError, "Schedule: this is no scheduler", got=repr(scheduler),
                        expected="one of optim.lr_scheduler, made for an optimizer",
                        fix="Schedule(optim.lr_scheduler.StepLR(opt, 10))")
        self.scheduler, self.monitor = scheduler, monitor
        parameters = inspect.signature(scheduler.step).parameters.values()
        self.wants_metric = any(p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)

    def on_epoch_end(self, record):
        record["lr"] = self.scheduler.optimizer.param_groups[0]["lr"]
        self.scheduler.step(*([record[_column(record, self.monitor)]] if self.wants_metric else ()))


class Checkpoint:
    """Save `parts` with `fb.save` after each epoch, or after each that is the best so far.

    parts, by name: what has `state_dict` and `load_state_dict`, and NumPy's generators; the package's own random
    numbers are saved too, and the streams of modules' layers `Dropout(rng=...)`. monitor, mode: as `EarlyStopping`
    has them.

    >>> checkpoint = fb.callbacks.Checkpoint("run.npz", model=model, optimizer=opt)
    >>> fb.fit(step, X, y, epochs=20, batch_size=64, rng=0, initial_epoch=checkpoint.restore(), callbacks=[checkpoint])

    goes on from the file, where there is one, with the same bits as a run that never stopped. Name the callbacks
    that schedule or log before it. An `EarlyStopping` is not a part: it counts, and keeps weights, from there on.
    """

    def __init__(self, path, *, best_only=False, monitor=None, mode="min", **parts):
        for name, part in parts.items():
            if not isinstance(part, np.random.Generator) and not hasattr(part, "load_state_dict"):
                raise error(TypeError, f"Checkpoint: {name} has no state", got=type(part).__name__,
                            expected="state_dict and load_state_dict, or a numpy.random.Generator",
                            fix="Checkpoint(path, model=model, optimizer=opt)")
        self.path, self.parts, self.best_only = path, parts, best_only
        self.best = Best(monitor, mode)

    def on_epoch_end(self, record):
        if not self.best_only or self.best.update(record):
            save(self.path, {"epoch": record["epoch"], "best": [self.best.value, self.best.epoch],
                             "random": get_rng_state(), **self._states()})

    def restore(self):
        """Give the parts what the file holds; the number of epochs done, 0 where there is no file.

        ValueError, and nothing is changed: the file is damaged, or of other parts.
        """
        if not os.path.exists(self.path):
            return 0
        state = load(self.path)
        ours = isinstance(state, dict) and state.keys() == {"epoch", "best", "random", "parts", "streams"}
        found, before = [*state["parts"], *state["streams"]] if ours else [], self._states()
        expected = [*before["parts"], *before["streams"]]
        if set(found) != set(expected):
            raise error(ValueError, f"Checkpoint: {os.fspath(self.path)!r} holds other parts", got=", ".join(found),
                        expected=", ".join(expected), fix="make and name the parts as they were when it was saved")
        try:
            self._load(state)
            set_rng_state(state["random"])
        except BaseException:
            self._load(before)
            raise
        self.best.value, self.best.epoch = state["best"]
        return state["epoch"]

    def _states(self):
        return {"parts": {name: p.bit_generator.state if isinstance(p, np.random.Generator) else p.state_dict()
                          for name, p in self.parts.items()},
                "streams": {name: stream.numpy().copy() for name, stream in self._streams().items()}}

    def _streams(self):
        """The streams of layers' own, which state dicts, having PyTorch's names alone, lack."""
        return {f"{name}.{path}.stream": module.stream for name, p in self.parts.items() if isinstance(p, Module)
                for path, module in p.named_modules() if isinstance(module, Dropout) and module.stream is not None}

    def _load(self, state):
        for name, part in self.parts.items():
            if isinstance(part, np.random.Generator):
                part.bit_generator.state = state["parts"][name]
            else:
                part.load_state_dict(state["parts"][name])
        for name, stream in self._streams().items():
            stream.copy_(state["streams"][name])
