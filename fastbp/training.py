"""fit: `step.epoch` again and again, with validation and callbacks between, and a progress bar. Nothing needs it."""
import contextlib
import functools
import math
import operator
import time
import warnings
from typing import NamedTuple

import numpy as np

from fastbp.callbacks import Best, EarlyStopping
from fastbp.data.batching import DataLoader, order, rows
from fastbp.errors import StagingError, error
from fastbp.nn.module import Module, evaluating
from fastbp.show.progress import Progress, short
from fastbp.show.terminal import figure, write_figure
from fastbp.staged import Staged, at_times, means_by_calls
from fastbp_ext.replay import Bound, is_number
from fastbp_ext.tensor import Tensor, from_numpy, is_replayed


class History:
    """What `fit` returns: a record, a dict of numbers, for each epoch; str() is a table.

    `history["loss"]`: the column, None where an epoch has none; `history[-1]`: a record; `history.stopped`: why
    training stopped before its last epoch, or None; `history.restored`: the epoch whose weights were put back at the
    end (0: those at the start), or None.
    """

    def __init__(self):
        self.records = []
        self.stopped = None
        self.restored = None

    @property
    def columns(self):
        """The names of all columns, in their order."""
        return list(dict.fromkeys(name for record in self.records for name in record))

    def __len__(self):
        return len(self.records)

    def __iter__(self):
        return iter(self.records)

    def __getitem__(self, key):
        if not isinstance(key, str):
            return self.records[key]
        if key not in self.columns:
            raise KeyError(f"{key!r}; there are {', '.join(self.columns)}")
        return [record.get(key) for record in self.records]

    def __str__(self):
        columns = self.columns
        table = [columns, *([_shown(record.get(name)) for name in columns] for record in self.records)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in table]
        lines += [self.stopped] if self.stopped else []
        lines += [f"weights of epoch {self.restored}"] if self.restored is not None else []
        return "\n".join(lines)

    def __repr__(self):
        return f"<History of {len(self)} epochs>"

    def to_csv(self, path):
        """Write the columns' names and a line for each epoch."""
        import csv
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.records)

    def plot(self, path):
        """Draw the columns of numbers by epoch: a panel for each kind, "loss" and "val_loss" in one.

        RuntimeError: matplotlib, the extra `plot`, is missing. ValueError: a format that it has not, no epochs.
        """
        panels = {}
        for name in self.columns:
            known = [x for x in self[name] if x is not None]
            if name not in ("epoch", "seconds") and known and all(map(is_number, known)):
                panels.setdefault(name.rpartition("_")[2], []).append(name)
        if not panels:
            raise error(ValueError, "plot: there is nothing to draw", got=repr(self), expected="one epoch or more",
                        fix="plot after training")
        drawn = figure(7, 1 + 2.5 * len(panels))
        for axes, (kind, names) in zip(drawn.subplots(len(panels), sharex=True, squeeze=False)[:, 0], panels.items(),
                                       strict=True):
            for name in names:
                known = [(r["epoch"], r[name]) for r in self.records if r.get(name) is not None]
                axes.plot(*zip(*known, strict=True), marker="." if len(known) < 30 else None, label=name)
            axes.set_ylabel(kind)
            axes.grid(alpha=0.3)
            axes.legend()
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        write_figure(drawn, path)


def _shown(value):
    return "" if value is None else short(value) if isinstance(value, float) else str(value)


class Run(NamedTuple):
    """What callbacks are told of a training."""
    history: History
    weights: list | None    # the tensors that it changes: parameters, buffers; None: not known


class _NotFinite(Exception):
    """The loss is NaN or infinite."""


def fit(step, *arrays, epochs, batch_size=None, shuffle=True, rng=None, validation=None, callbacks=(), metrics=None,
        model=None, initial_epoch=0, progress=True):
    """Train for `epochs` passes over the rows of `arrays`, in batches; returns a `History`.

    As `for epoch in range(epochs): step.epoch(*arrays, batch_size=batch_size, shuffle=True, rng=rng)`, with the same
    bits; an int as `rng` seeds one generator for all epochs. One `data.DataLoader` may stand for the arrays,
    batch_size, shuffle, rng and initial_epoch: training goes on where it is, until `epochs` are done.

    step: trains on a batch, and returns its loss or a tuple that begins with it. The scalars behind it are named by
    `metrics`: with `return loss, error`, error being the share of errors in the batch, there is a column "error", as
    the one scalar that needs no name. All are means by rows. A step that is not staged is called with each batch.

    validation: `(evaluate, X_val, y_val)`, where `evaluate`, staged or not, returns for a batch what a step does:
    columns "val_loss", "val_error". Or a function without arguments that returns that for all its data, or a dict
    {column: number}. It runs after each epoch, in eval mode and without gradients.

    callbacks: see `fastbp.callbacks`: EarlyStopping, CSVLog, Plot, Schedule, Checkpoint, any function of a record.

    model: the module whose modes change for validation, and whose parameters and buffers are put back where the best
    weights are wanted. A staged step need not say: its program shows which modules it calls and what it updates; nor
    need a staged evaluate that calls others, such as an average of the weights. Else: nn.ModuleList([model, average]).

    initial_epoch: how many of the epochs are done already; an int as `rng` passes over their orders.

    progress: a bar on a terminal (tqdm's, where that is installed) and a line for each epoch anywhere; "bar": no
    lines; False or None: nothing.

    A loss, or "val_loss", that is NaN or infinite stops training with a word, and the best weights so far are put
    back. Ctrl-C stops between two steps; what was reached is whole. ValueError, TypeError: arguments that make no
    sense, before the first step.
    """
    epochs, first = _count("epochs", epochs, 1), _count("initial_epoch", initial_epoch, 0)
    if not callable(step):
        raise error(TypeError, "fit: the step can't be called", got=type(step).__name__,
                    expected="a function, staged or not, that trains on a batch", fix="fb.fit(step, X, y, ...)")
    loader = _loader(step, arrays, batch_size, shuffle, rng, first)
    n, first = loader.rows, loader.epoch
    name = functools.partial(_named, _names(metrics))
    callbacks = _listed(callbacks)
    calls, (validate, evaluated) = _calls(callbacks), _validation(validation, loader.batch_size, name)
    began = time.perf_counter()
    modules, weights = _state(step, model, loader)
    if evaluated is not None:
        with evaluating(modules):    # as it is called after an epoch
            modules = [*modules, *_modules(_recording(*evaluated))]
    recording = time.perf_counter() - began    # a part of the first epoch
    history = History()
    run = Run(history, weights)
    with contextlib.ExitStack() as ends:
        for callback in callbacks:
            getattr(callback, "on_fit_begin", _nothing)(run)
            ends.callback(getattr(callback, "on_fit_end", _nothing), run)
        restoring = [c.best for c in callbacks if isinstance(c, EarlyStopping) and c.restore_best]
        best = restoring[0] if restoring else Best(weights=weights or ())
        bar = ends.enter_context(contextlib.closing(Progress(epochs, n, first, progress)))
        for epoch in range(first, epochs):
            began = time.perf_counter()
            try:
                means = _epoch(step, loader, functools.partial(_look, bar, name, epoch))
                seconds, recording = time.perf_counter() - began + recording, 0.0
                record = {"epoch": epoch + 1, **name(means)}
                with evaluating(modules):
                    record = _joined(record, validate()) | {"seconds": seconds}
                _check("validation's loss", record.get("val_loss"))
            except _NotFinite as problem:
                history.stopped = f"stopped in epoch {epoch + 1}: {problem}"
                if weights is not None:
                    best.restore()
                    history.restored = best.epoch
                    history.stopped += f"; the weights are those of {best}"
                if not progress:
                    warnings.warn(f"fit: {history.stopped}", RuntimeWarning, stacklevel=2)
                break
            history.records.append(record)
            if not restoring:
                best.update(record)
            bar.clear()
            answers = [call(record) for call in calls]
            bar.line(record, n / seconds)
            why = next((a for a in answers if isinstance(a, str) or isinstance(a, (bool, np.bool_)) and a), None)
            if why is not None:
                why = why if isinstance(why, str) else "a callback said so"
                history.stopped = f"stopped after epoch {epoch + 1}: {why}"
                break
        if history.stopped:
            bar.write(history.stopped)
    return history


def _look(bar, name, epoch, done, total, means):
    """Within an epoch: show the means so far, and stop where the loss is no number."""
    _check("loss", means[0])
    bar.show(epoch, done, name(means))


def _check(what, value):
    if isinstance(value, float) and not math.isfinite(value):
        raise _NotFinite(f"the {what} is {value}")


def _epoch(step, loader, progress=None):
    """The means of one epoch of a staged or plain step."""
    if _is_staged(step):
        return step.epoch(loader, progress=progress, means=True)

    def call(*batch):
        result = step(*batch)
        parts = result if isinstance(result, tuple) else (result,)
        return tuple(from_numpy(np.array(x, np.float64)) if is_number(x) else x for x in parts)

    chosen, progress = loader.begin(sums=True), at_times(progress, loader.rows, True)
    return means_by_calls(call, loader.arrays, loader.batch_size, chosen, progress, loader)


def _loader(step, arrays, batch_size, shuffle, rng, first):
    """The DataLoader that fit is given, or one of its arrays and options that has done `first` epochs."""
    if len(arrays) == 1 and isinstance(arrays[0], DataLoader):
        if batch_size is not None or rng is not None or first not in (0, arrays[0].epoch):
            raise error(TypeError, "fit: a DataLoader has its own batch_size, rng and number of epochs done",
                        got="one, and options", expected="one alone", fix="fb.fit(step, loader, epochs=10)")
        return arrays[0]
    if _is_staged(step):    # else each epoch would copy those that do not lie row by row
        rows(arrays)
        arrays = [np.ascontiguousarray(a.numpy() if isinstance(a, Tensor) else a) for a in arrays]
    loader = DataLoader(*arrays, batch_size=batch_size, shuffle=shuffle, rng=rng)
    for _ in range(0 if rng is None or isinstance(rng, np.random.Generator) else first):
        order(loader.rows, shuffle, loader.rng)
    loader.epoch = first
    return loader


def _is_staged(step):
    return isinstance(step, (Staged, Bound))


def _state(step, model, loader):
    """(modules, weights) of a training: those of the model, else those that the program of a staged step shows.

    The weights of a step that shows none are None.
    """
    if model is not None:
        if not isinstance(model, Module):
            raise error(TypeError, "fit: the model is no module", got=type(model).__name__, expected="a nn.Module",
                        fix="model=nn.ModuleList([a, b]) where there are several")
        return list(model.modules()), [*model.parameters(), *model.buffers()]
    recording = _recording(step, loader)
    if recording is None:
        return [], None
    modules = _modules(recording)
    found = [t for m in modules for t in (*m.parameters(recurse=False), *m.buffers(recurse=False))]
    found += [leaf for leaf, _ in recording.grads.values() if id(leaf) in recording.updated]
    # What copy_ changes; streams of random numbers go on.
    found += [t for key, t in recording.written.items() if key not in recording.updated and t.dtype.kind == "f"]
    return modules, list({id(t): t for t in found}.values())


def _recording(step, loader):
    """What a staged step records of a batch; None for a plain one, and where nothing is recorded."""
    if not _is_staged(step):
        return None
    batch = [(a.numpy() if isinstance(a, Tensor) else np.asarray(a))[:loader.batch_size] for a in loader.arrays]
    staged, before = (step.staged, (step.instance,)) if isinstance(step, Bound) else (step, ())
    try:
        return staged.replay_for((*before, *batch), {}).about.recording
    except StagingError:
        if is_replayed():
            raise
        return None    # where nothing is replayed, it may look at its values


def _modules(recording):
    """The modules that are called in a recording."""
    calls = () if recording is None else recording.calls
    return list({id(m): m for group, _ in calls for m in group.module.modules()}.values())


def _validation(given, size, name):
    """A function that returns the validation's columns; and what it calls for each batch, with its loader, if so."""
    evaluated = None
    if given is None:
        return dict, None
    if callable(given):
        def validate():
            result = given()
            if isinstance(result, dict):
                return {column: _number(x) for column, x in result.items()}
            return name([_number(x) for x in (result if isinstance(result, tuple) else (result,))], "val_")
    elif isinstance(given, (tuple, list)) and given and callable(given[0]):
        evaluated = given[0], DataLoader(*given[1:], batch_size=size)
        validate = lambda: name(_epoch(*evaluated), "val_")
    else:
        raise error(TypeError, "fit: this is no validation", got=type(given).__name__,
                    expected="(evaluate, X_val, y_val), or a function without arguments",
                    fix="write evaluate(x, y), which returns the loss of a batch")
    return validate, evaluated


def _number(x):
    try:
        return float(x)
    except (TypeError, ValueError, RuntimeError):
        raise error(TypeError, "fit: the validation returns something else than numbers",
                    got=type(x).__name__ + (f" of shape {x.shape}" if hasattr(x, "shape") else ""),
                    expected="the loss, a tuple that begins with it, or a dict {column: number}",
                    fix="return loss, error") from None


def _names(metrics):
    """The names behind "loss", None where they are left open."""
    if metrics is None:
        return None
    names = [*metrics] if hasattr(metrics, "__iter__") and not isinstance(metrics, str) else [None]
    if not all(isinstance(name, str) for name in names) or len({"epoch", "loss", "seconds", *names}) < 3 + len(names):
        raise error(ValueError, "fit: metrics can't be this", got=repr(metrics), expected="a list of names, each once, "
                    'of the scalars behind the loss, other than "loss", "epoch", "seconds"', fix='metrics=["error"]')
    return names


def _named(metrics, means, prefix=""):
    """{column: mean}; metrics: the names behind the loss, None: "error" where there is one scalar more."""
    names = ["loss", *(("error",)[:len(means) - 1] if metrics is None else metrics)]
    if len(names) > len(means):
        raise error(ValueError, "fit: there are more metrics than scalars", got=f"metrics={metrics!r}, "
                    f"{len(means)} scalars", expected="the loss, and a scalar for each metric",
                    fix="return loss, error")
    return {prefix + name: mean for name, mean in zip(names, means, strict=False)}


def _joined(record, validated):
    if {*record, "seconds"} & validated.keys():
        raise error(ValueError, "fit: training has a column of the validation's name", got=", ".join(validated),
                    expected="names of their own", fix='{"val_loss": loss}')
    return record | validated


def _count(what, value, least):
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < least:
        raise error(ValueError, f"fit: {what} can't be this", got=repr(value), expected=f"an int of {least} or more",
                    fix=f"{what}={max(least, 10)}")
    return operator.index(value)


def _listed(callbacks):
    if not hasattr(callbacks, "__iter__"):
        raise error(TypeError, "fit: callbacks is no list", got=repr(callbacks), expected="a list, or () for none",
                    fix="callbacks=[fb.callbacks.EarlyStopping(patience=3)]")
    return list(callbacks)


def _calls(callbacks):
    """What to call with each epoch's record."""
    for callback in callbacks:
        if isinstance(callback, type) or not callable(callback) and not hasattr(callback, "on_epoch_end"):
            raise error(TypeError, "fit: this is no callback", got=repr(callback),
                        expected="a function of the epoch's record, or an object with on_epoch_end",
                        fix="callbacks=[fb.callbacks.EarlyStopping(patience=3)]")
    return [getattr(callback, "on_epoch_end", callback) for callback in callbacks]


def _nothing(run):
    pass
