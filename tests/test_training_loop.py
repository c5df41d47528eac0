"""fit and its callbacks: the bits of a plain loop, what is shown and kept, and what is left when it ends early."""
import csv
import math
import os
import re
import subprocess
import sys
import threading

import numpy as np
import pytest
from test_cli import on_a_terminal
from test_gates import same_bits
from test_staged import training_step

import fastbp as fb
from fastbp import callbacks, data, nn, optim

X, y = data.load_digits()
X, y = X[:403], y[:403].astype(np.int64)
TRAIN, VAL = (X[:303], y[:303]), (X[303:], y[303:])


class Net:
    """A net, its optimizer, a step and an evaluation, staged and plain."""

    def __init__(self, lr=0.01, seed=0, optimizer=optim.Adam):
        rng = np.random.default_rng(seed)
        self.model = nn.Sequential(nn.Linear(64, 20, rng=rng), nn.Tanh(), nn.Linear(20, 10, rng=rng))
        self.opt = optimizer(self.model.parameters(), lr=lr)
        self.step, self.evaluate = fb.staged(self.plain), fb.staged(self.look)

    def look(self, x, labels):
        scores = self.model(x)
        return fb.cross_entropy(scores, labels), fb.where(scores.argmax(1) == labels, 0.0, 1.0).mean()

    def plain(self, x, labels):
        loss, error = self.look(fb.tensor(x) if isinstance(x, np.ndarray) else x, labels)
        self.opt.zero_grad()
        loss.backward()
        self.opt.step()
        return loss, error

    def weights(self):
        return [p.numpy().copy() for p in self.model.parameters()]

    def fit(self, *arrays, step=None, **options):
        arrays = arrays or TRAIN
        return fb.fit(step or self.step, *arrays, **{"epochs": 3, "batch_size": 32, "progress": False, **options})


def averaging_step(model, average):
    train = training_step(model, optim.SGD(model.parameters(), lr=0.1))

    @fb.staged
    def step(x, labels):
        loss = train(x, labels)
        average.update_parameters(model)
        return loss
    return step


def same_weights(some, others):
    return all(same_bits(a, b) for a, b in zip(some, others, strict=True))


def numbers(history):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history]


# --- training

@pytest.mark.parametrize("rng", [3, "generator"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_it_trains_as_the_plain_loop_does(rng, shuffle):
    a, b, c = Net(), Net(), Net()
    seed = (lambda: np.random.default_rng(3)) if rng == "generator" else (lambda: 3)
    staged = a.fit(rng=seed(), shuffle=shuffle)
    plain = b.fit(step=b.plain, rng=seed(), shuffle=shuffle, model=b.model)
    stream, expected = np.random.default_rng(3), []
    for _ in range(3):
        totals = np.zeros(2)
        for xb, yb in data.batches(*TRAIN, batch_size=32, shuffle=shuffle, rng=stream):
            totals += len(xb) * np.array([t.item() for t in c.plain(xb, yb)])
        expected.append((totals / 303).tolist())
    assert same_weights(a.weights(), c.weights()) and same_weights(b.weights(), c.weights())
    assert numbers(staged) == numbers(plain)
    assert [[r["loss"], r["error"]] for r in staged] == expected, "the last batch has 15 rows"
    assert list(staged[0]) == ["epoch", "loss", "error", "seconds"] and a.step.recordings == 2
    assert staged.stopped is None and staged.restored is None


def test_the_package_stream_orders_where_no_seed_is_given():
    a, b = Net(), Net()
    fb.manual_seed(4)
    a.fit()
    fb.manual_seed(4)
    for _ in range(3):
        b.step.epoch(*TRAIN, batch_size=32, shuffle=True)
    assert same_weights(a.weights(), b.weights())


def test_epochs_that_are_done_already():
    a, b = Net(), Net()
    whole = a.fit(rng=1, epochs=4)
    first, rest = b.fit(rng=1, epochs=2), b.fit(rng=1, epochs=4, initial_epoch=2)
    assert numbers(whole) == numbers(first) + numbers(rest) and [r["epoch"] for r in rest] == [3, 4]
    assert same_weights(a.weights(), b.weights())
    assert len(b.fit(rng=1, epochs=4, initial_epoch=4)) == 0
    assert same_weights(a.weights(), b.weights())


@pytest.mark.parametrize("staged", [True, False])
def test_a_loader_has_its_own_place(staged):
    """A step fails amid the second epoch; another loader goes on there, and the epoch's means are whole."""
    a, b, calls = Net(), Net(), iter(range(14))
    make = lambda seed: data.DataLoader(*TRAIN, batch_size=32, shuffle=True, rng=seed)
    fit = lambda step, loader, **options: b.fit(loader, step=step, model=b.model, epochs=4, batch_size=None, **options)
    whole, broken, loader = a.fit(rng=1, epochs=4), make(1), make(7)
    with pytest.raises(StopIteration):
        fit(lambda *batch: (next(calls), b.plain(*batch))[1], broken)
    loader.load_state_dict(broken.state_dict())
    rest = fit(b.step if staged else b.plain, loader)
    assert numbers(rest) == numbers(whole)[1:] and same_weights(a.weights(), b.weights())
    assert loader.epoch == 4 and len(fit(b.step, loader)) == 0
    for options in ({"rng": 3}, {"initial_epoch": 2}):
        with pytest.raises(TypeError, match="its own batch_size"):
            fit(b.step, loader, **options)
    assert len(fit(b.step, loader, initial_epoch=4)) == 0


def test_steps_of_many_kinds():
    history = fb.fit(lambda x: float(x.mean()), np.arange(5.0), epochs=1, batch_size=2, progress=None)
    assert history["loss"] == [2.0]
    history = fb.fit(lambda x: (x.mean(), 2, np.float32(0.5)), np.arange(5.0), epochs=2, batch_size=2, shuffle=False,
                     metrics=["a", "b"], progress=False)
    assert numbers(history)[1] == {"epoch": 2, "loss": 2.0, "a": 2.0, "b": 0.5}

    class Counted:
        def __init__(self):
            self.w = fb.zeros(2, requires_grad=True)
            self.opt = optim.SGD([self.w], lr=1.0)

        @fb.staged
        def step(self, x):
            self.opt.zero_grad()
            loss = (self.w * x).sum() + 1.0
            loss.backward()
            self.opt.step()
            return loss

    one = Counted()
    fb.fit(one.step, fb.ones(4, 2), epochs=2, batch_size=2, progress=False)
    assert one.w.numpy().tolist() == [-8.0, -8.0]


def test_metrics_have_names():
    net = Net()
    assert net.fit(epochs=1, metrics=("wrong",), validation=(net.evaluate, *VAL)).columns == [
        "epoch", "loss", "wrong", "val_loss", "val_wrong", "seconds"]
    assert net.fit(epochs=1, metrics=()).columns == ["epoch", "loss", "seconds"]
    before = net.weights()
    with pytest.raises(ValueError, match="more metrics than scalars"):
        net.fit(epochs=1, metrics=["error", "f1"], batch_size=303)
    assert not same_weights(before, net.weights())    # said after the first batches: what they did stays


@pytest.mark.parametrize("options, kind, says", [
    ({"epochs": 0}, ValueError, "epochs=10"), ({"epochs": 2.5}, ValueError, "epochs"),
    ({"initial_epoch": -1}, ValueError, "initial_epoch"), ({"batch_size": 0}, ValueError, "batch_size"),
    ({"rng": "x"}, TypeError, "seed"), ({"callbacks": [3]}, TypeError, "no callback"),
    ({"callbacks": [callbacks.EarlyStopping]}, TypeError, "no callback"),
    ({"validation": VAL}, TypeError, r"\(evaluate, X_val, y_val\)"),
    ({"validation": (len, X[:3], y[:4])}, ValueError, "lengths differ"),
    ({"step": 3}, TypeError, "the step can't be called"),
    ({"callbacks": callbacks.EarlyStopping()}, TypeError, "no list"), ({"callbacks": None}, TypeError, "no list"),
    ({"model": [nn.ReLU()]}, TypeError, "the model is no module"),
    ({"metrics": "error"}, ValueError, r"metrics=\["), ({"metrics": [len]}, ValueError, "metrics can't be this"),
    ({"metrics": ["loss"]}, ValueError, "behind the loss"), ({"metrics": ["a", "a"]}, ValueError, "each once"),
])
def test_arguments_that_make_no_sense(options, kind, says):
    net = Net()
    before = net.weights()
    with pytest.raises(kind, match=says):
        net.fit(**options)
    assert same_weights(before, net.weights())


def test_a_step_that_returns_nothing():
    with pytest.raises(fb.StagingError, match="return loss"):
        fb.fit(lambda x: None, X, epochs=1, batch_size=10, progress=False)


# --- validation

def test_validation_by_batches_and_by_a_function():
    net = Net()
    loss = lambda: net.look(fb.tensor(VAL[0]), VAL[1])[0].item()
    forms = [(net.evaluate, *VAL), (net.look, fb.tensor(VAL[0]), VAL[1]),
             lambda: net.evaluate.eager(*VAL), lambda: {"val_loss": loss(), "extra": 1}, loss]
    histories = [net.fit(epochs=1, validation=forms[0])]
    histories += [fb.fit(lambda x: 0.0, X, epochs=1, batch_size=30, validation=form, progress=False) for form in forms]
    expected = net.evaluate.eager(*VAL)
    for history in histories:
        assert history[0]["val_loss"] == pytest.approx(expected[0].item(), rel=1e-6)
        if "val_error" in history.columns:
            assert history[0]["val_error"] == pytest.approx(expected[1].item(), abs=1e-6)
    assert [list(h[0])[2:-1] for h in histories[1:]] == [["val_loss", "val_error"]] * 3 + [
        ["val_loss", "extra"], ["val_loss"]]
    for name in ("loss", "seconds"):
        with pytest.raises(ValueError, match="a column of the validation's name"):
            net.fit(validation=lambda name=name: {name: 1.0})
    for result, got in ((None, "NoneType"), ([1.0], "list"), ({"val_loss": "low"}, "str"),
                        (fb.zeros(3), r"Tensor of shape \(3,\)")):
        with pytest.raises(TypeError, match=f"(?s)where:.*test_training_loop.py.*got: +{got}\n"):
            net.fit(validation=lambda result=result: result)


class Moded(nn.Module):
    """x w, doubled while it trains."""

    def __init__(self):
        self.w = nn.Parameter(fb.ones(3))
        self.frozen = nn.Identity()
        self.frozen.eval()

    def forward(self, x):
        return self.frozen(x) @ self.w * (2.0 if self.training else 1.0)


@pytest.mark.parametrize("staged", [True, False])
def test_validation_is_in_eval_mode_without_gradients(staged):
    model, seen = Moded(), []
    opt = optim.SGD(model.parameters(), lr=0.0)

    def step(x):
        opt.zero_grad()
        loss = model(x).mean()
        loss.backward()
        opt.step()
        return loss

    def validate():
        seen.append((model.training, model.frozen.training, (model.w * 1).requires_grad))
        return 1.0

    x, given = np.ones((4, 3), np.float32), None if staged else model
    step = fb.staged(step) if staged else step
    fit = lambda validation: fb.fit(step if staged else lambda x: step(fb.tensor(x)), x, epochs=2, batch_size=3,
                                    validation=validation, model=given, progress=False)
    history = fit((fb.staged(lambda x: model(x).mean()), x))
    assert history["loss"] == [6.0, 6.0] and history["val_loss"] == [3.0, 3.0]
    fit(validate)
    assert seen == [(False, False, False)] * 2
    with pytest.raises(ZeroDivisionError):
        fit(lambda: 1 / 0)
    assert model.training and not model.frozen.training and (model.w * 1).requires_grad


# --- stopping, and the best weights

def test_modules_that_only_a_staged_validation_calls_are_in_eval_mode_too():
    model = nn.Sequential(nn.Linear(64, 40, rng=0), nn.Dropout(0.5), nn.Linear(40, 10, rng=1))
    average = optim.swa_utils.AveragedModel(model, multi_avg_fn=optim.swa_utils.get_ema_multi_avg_fn(0.9))
    evaluate = fb.staged(lambda x, labels: fb.cross_entropy(average(x), labels))
    history = fb.fit(averaging_step(model, average), *TRAIN, epochs=2, batch_size=32, progress=False, rng=0,
                     validation=(evaluate, *VAL))
    loss = fb.cross_entropy(average.predict(VAL[0]), VAL[1]).item()
    assert abs(history["val_loss"][-1] - loss) < 1e-5 and all(m.training for m in average.modules())


def falling_and_rising(net, after, values=(5, 3, 4, 2, 6, 7, 8, 9)):
    """A validation that gives these values, and keeps the weights at each."""
    left = iter(values)

    def validate():
        after.append(net.weights())
        return float(next(left))
    return validate


@pytest.mark.parametrize("staged", [True, False])
def test_early_stopping_puts_the_best_weights_back(staged):
    net, after = Net(), []
    stopping = callbacks.EarlyStopping(patience=2)
    history = net.fit(step=net.step if staged else net.plain, model=None if staged else net.model, epochs=9,
                      callbacks=[stopping], validation=falling_and_rising(net, after))
    assert history["val_loss"] == [5, 3, 4, 2, 6, 7] and history.restored == 4
    assert history.stopped == "stopped after epoch 6: the best was epoch 4 (val_loss 2)"
    assert same_weights(net.weights(), after[3])
    net.fit(epochs=2, callbacks=[stopping])    # used again, it begins afresh; without a validation it looks at the loss
    assert stopping.best.monitor == "loss" and stopping.best.epoch == 2


def test_early_stopping_that_waits_in_vain_or_restores_nothing():
    net, after = Net(), []
    history = net.fit(epochs=5, callbacks=[callbacks.EarlyStopping(patience=5)],
                      validation=falling_and_rising(net, after))
    assert history.stopped is None and history.restored == 4 and same_weights(net.weights(), after[3])
    after.clear()
    history = net.fit(step=net.plain, epochs=9, validation=falling_and_rising(net, after),
                      callbacks=[callbacks.EarlyStopping(patience=1, restore_best=False)])
    assert len(history) == 3 and history.restored is None and same_weights(net.weights(), after[2])


@pytest.mark.parametrize("options, values, epochs, best", [
    ({"patience": 1}, [3, 3], 2, 1), ({"patience": 1, "min_delta": 0.5}, [3, 2, 1.6], 3, 2),
    ({"patience": 2, "mode": "max"}, [1, 2, 0, 2], 4, 2), ({"patience": 2}, [4, np.nan, 3, np.nan, np.nan], 5, 3),
    ({"patience": 2}, [np.nan, np.nan], 2, 0),
])
def test_what_counts_as_better(options, values, epochs, best):
    stopping = callbacks.EarlyStopping(monitor="val", **options)
    answers = [stopping.on_epoch_end({"epoch": n, "val": v}) for n, v in enumerate(values, 1)]
    assert [a is None for a in answers] == [True] * (epochs - 1) + [False] and stopping.best.epoch == best


@pytest.mark.parametrize("record", [{}, {"val": None}, {"val": "low"}])
def test_what_can_not_be_monitored(record):
    with pytest.raises(ValueError, match="no 'val' to monitor"):
        callbacks.EarlyStopping(monitor="val").on_epoch_end({"epoch": 1, **record})


def test_weights_that_are_not_known():
    net = Net()
    before = net.weights()
    with pytest.raises(ValueError, match="model=model"):
        net.fit(step=net.plain, callbacks=[callbacks.EarlyStopping()])
    assert same_weights(before, net.weights())
    with pytest.raises(ValueError, match="no 'val_f1' to monitor"):
        net.fit(callbacks=[callbacks.EarlyStopping("val_f1")])
    for options in ({"patience": 0}, {"patience": 1.5}, {"mode": "auto"}):
        with pytest.raises(ValueError, match=next(iter(options))):
            callbacks.EarlyStopping(**options)


def test_the_program_of_a_staged_step_shows_its_weights():
    """Parameters, buffers, leaves of the optimizer, what copy_ changes; not the optimizer's state."""
    layer, w, mean = nn.Linear(3, 2, rng=0), fb.ones(2, requires_grad=True), fb.zeros(())
    layer.register_buffer("count", fb.zeros(2))
    opt = optim.Adam([*layer.parameters(), w])

    @fb.staged
    def step(x):
        z = layer(x) * w
        loss = (z * z).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        mean.copy_(0.9 * mean + 0.1 * loss.detach())
        return loss

    seen = []

    class Look:
        def on_fit_begin(self, run):
            seen.extend(run.weights)

        def on_epoch_end(self, record):
            return None

    fb.fit(step, np.ones((4, 3), np.float32), epochs=1, batch_size=4, callbacks=[Look()], progress=False)
    assert {id(t) for t in seen} == {id(t) for t in (*layer.parameters(), layer.count, w, mean)}


def test_statistics_are_put_back_and_random_numbers_go_on():
    def run(staged):
        fb.manual_seed(5)
        net, after = Net(), []
        net.model = nn.Sequential(nn.Linear(64, 20, rng=0), nn.BatchNorm1d(20), nn.Dropout(0.3),
                                  nn.Linear(20, 10, rng=1))
        net.opt = optim.Adam(net.model.parameters(), lr=0.01)
        fit = lambda **options: net.fit(step=net.step if staged else net.plain, model=None if staged else net.model,
                                        epochs=6, rng=0, validation=falling_and_rising(net, []), **options)
        fit(callbacks=[callbacks.EarlyStopping(),
                       lambda record: after.append(net.model[1].running_mean.numpy().copy())])
        assert same_bits(net.model[1].running_mean, after[3]) and not same_bits(after[3], after[5])
        return numbers(fit()), [x.numpy().copy() for x in net.model.state_dict().values()]
    (some, weights), (others, other_weights) = run(True), run(False)
    assert some == others and same_weights(weights, other_weights)


def test_a_loss_that_is_no_number_stops_with_the_best_weights(capsys):
    for staged in (True, False):
        net, after = Net(), []

        def spoil(record, net=net, after=after):
            after.append(net.weights())
            if record["epoch"] == 2:
                net.model[0].bias.copy_(np.nan)

        with pytest.warns(RuntimeWarning, match="the loss is nan"):
            history = net.fit(step=net.step if staged else net.plain, model=None if staged else net.model, epochs=6,
                              callbacks=[spoil])
        assert len(history) == 2 and history.restored == 2 and same_weights(net.weights(), after[1])
        assert history.stopped.startswith("stopped in epoch 3: the loss is ")
        assert history.stopped.endswith(f"; the weights are those of epoch 2 (loss {history[1]['loss']:.4g})")
    net = Net()
    before = net.weights()
    with pytest.warns(RuntimeWarning):
        history = net.fit(np.where(TRAIN[0] > 2, 0, np.float32(np.nan)), TRAIN[1])
    assert history.restored == 0 and same_weights(net.weights(), before) and len(history) == 0
    assert history.stopped.endswith("; the weights are those of the start")
    with pytest.warns(RuntimeWarning, match="the loss is nan$"):
        fb.fit(lambda x: float("nan"), X, epochs=1, batch_size=100, progress=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("batches", [True, False])
def test_a_validation_that_is_no_number_stops_with_the_best_weights(bad, batches):
    net, after = Net(), []

    def evaluate(*batch):
        loss = 1.0 + len(after) if len(after) < 2 else bad
        return loss if batches else {"val_loss": loss}

    with pytest.warns(RuntimeWarning, match=f"stopped in epoch 3: the validation's loss is {bad}; the weights are"):
        history = net.fit(epochs=3, validation=(evaluate, *VAL) if batches else evaluate,
                          callbacks=[lambda _: after.append(net.weights())])
    assert len(history) == len(after) == 2 and history.restored == 1 and same_weights(net.weights(), after[0])


def test_a_loss_that_is_no_number_stops_within_the_epoch(capsys):
    steps = []

    def step(x):
        steps.append(1)
        threading.Event().wait(0.03)
        return float("inf") if len(steps) > 3 else 1.0

    history = fb.fit(step, X, epochs=1, batch_size=1)
    assert len(steps) < 20 and history.stopped == "stopped in epoch 1: the loss is inf"
    assert capsys.readouterr() == ("stopped in epoch 1: the loss is inf\n", "")


def test_the_best_weights_are_those_of_the_stopping_that_restores():
    net, after = Net(), []

    def spoil(record):
        if record["epoch"] == 3:
            net.model[0].bias.copy_(np.nan)

    with pytest.warns(RuntimeWarning, match=r"those of epoch 2 \(val_loss 3\)"):
        history = net.fit(epochs=6, callbacks=[callbacks.EarlyStopping(), spoil],
                          validation=falling_and_rising(net, after))
    assert history.restored == 2 and same_weights(net.weights(), after[1])


def test_callbacks_stop_by_true_or_a_text_alone():
    fit = lambda *given: fb.fit(lambda x: 1.0, X, epochs=3, batch_size=500, callbacks=given, progress=False)
    assert len(fit(lambda record: 17, lambda record: [1], lambda record: None, lambda record: False)) == 3
    records = []
    history = fit(lambda record: np.True_, records.append)
    assert len(history) == 1 and history.stopped == "stopped after epoch 1: a callback said so"
    assert records == history.records, "those behind it are called too"
    assert fit(lambda record: "enough" if record["epoch"] == 2 else None).stopped == "stopped after epoch 2: enough"


class Noted:
    def __init__(self, log, fails=None):
        self.log, self.fails = log, fails

    def note(self, what):
        self.log.append(what)
        if what == self.fails:
            raise ZeroDivisionError(what)

    def on_fit_begin(self, run):
        self.note("begin")

    def on_epoch_end(self, record):
        self.note("epoch")

    def on_fit_end(self, run):
        self.note("end")


@pytest.mark.parametrize("fails, seen", [("epoch", ["begin", "epoch", "end"]), ("begin", ["begin"])])
def test_an_error_in_a_callback_ends_all_and_puts_the_weights_back(fails, seen):
    net, log, after = Net(), [], []
    validation = falling_and_rising(net, after, (1, 2))
    first = net.fit(epochs=2, validation=validation, callbacks=[Noted(log)])
    assert log == ["begin", "epoch", "epoch", "end"] and len(first) == 2
    log.clear()
    before = net.weights()
    with pytest.raises(ZeroDivisionError):
        net.fit(epochs=2, callbacks=[callbacks.EarlyStopping(), Noted(log, fails)])
    assert log == seen
    assert same_weights(before, net.weights()) == (fails == "begin")


def test_ctrl_c_between_two_steps():
    """In a process of its own, whose main thread is interrupted amid an epoch."""
    code = """
        import os, signal, threading, numpy as np, fastbp as fb
        from test_training_loop import *
        signal.signal(signal.SIGINT, signal.default_int_handler)
        net, log, kept = Net(), [], []
        def look(record):
            kept.append(net.weights())
            if record["epoch"] == 1:
                threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        many = np.tile(TRAIN[0], (200, 1)), np.tile(TRAIN[1], 200)
        try:
            net.fit(*many, epochs=10**6, callbacks=[callbacks.EarlyStopping(patience=10**6), look, Noted(log)])
        except KeyboardInterrupt:
            best = any(same_weights(net.weights(), w) for w in kept)
            whole = len({int(s["step"].item()) for s in net.opt.state.values()}) == 1
            print("stopped", best, whole, log[-1])
    """
    result = subprocess.run([sys.executable, "-c", "\n".join(line[8:] for line in code.splitlines())], text=True,
                            capture_output=True, cwd=os.path.dirname(__file__), timeout=60)
    assert result.stdout == "stopped True True end\n", result.stderr


# --- what is shown

def test_a_line_for_each_epoch_and_nothing_else(capsys):
    net = Net()
    history = net.fit(progress=True, epochs=10, validation=(net.evaluate, *VAL))
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert len(lines) == 10 and err == "" and max(map(len, lines)) <= 80
    for line, record in zip(lines, history, strict=True):
        shown = dict(zip(line.split()[1:-1:2], map(float, line.split()[2:-1:2]), strict=True))
        assert line.split()[0] == f"{record['epoch']}/10" and line.endswith("/s")
        assert shown == {k: pytest.approx(record[k], abs=5.1e-5, rel=1e-3)
                         for k in ("loss", "error", "val_loss", "val_error")}
    for off in (False, None):
        net.fit(progress=off)
    net.fit(progress="bar")
    assert capsys.readouterr() == ("", "")


def test_a_callback_adds_to_the_record(capsys, tmp_path):
    """Those behind it see it; the line has what are numbers."""
    seen = []
    add = [lambda record: record.update(note="x", half=record["loss"] / 2), lambda record: seen.append(record["note"])]
    history = fb.fit(lambda x: 1.0, X, epochs=1, batch_size=500, callbacks=[*add, callbacks.CSVLog(tmp_path / "log")])
    assert seen == ["x"] and history["note"] == ["x"] and str(history).splitlines()[1].split()[3:] == ["x", "0.5000"]
    assert re.fullmatch(r"1/1  loss 1.0000  half 0.5000  \S+/s\n", capsys.readouterr().out)
    assert (tmp_path / "log").read_text().splitlines()[1].endswith(",x,0.5")


def test_the_seconds_of_an_epoch_are_those_of_its_steps():
    wait = threading.Event().wait
    history = fb.fit(lambda x: wait(0.01) or 1.0, X, epochs=1, batch_size=100, progress=False)
    assert history["seconds"][0] >= 0.04


def test_a_long_record_has_no_rate(capsys):
    fb.fit(lambda x: 1.0, X, epochs=1, batch_size=500, validation=lambda: {f"column_{n}": n / 7 for n in range(4)})
    line = capsys.readouterr().out
    assert line == ("1/1  loss 1.0000  column_0 0       column_1 0.1429  column_2 0.2857  column_3 0.4286\n")


SLOW = """
import sys, time
if not {tqdm}: sys.modules["tqdm"] = None
import numpy as np, fastbp as fb
from fastbp import callbacks
def step(x):
    time.sleep(0.005)
    return 0.5, 0.25
def fail(record):
    print("noted")
    if record["epoch"] == 2: raise SystemExit("that is all")
fb.fit(step, np.zeros(5000), epochs=3, batch_size=50, callbacks=[fail])
"""


@pytest.mark.parametrize("tqdm", [True, False])
@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1", "COLUMNS": "50"}])
def test_a_terminal_gets_a_bar(tqdm, environment):
    if tqdm:
        pytest.importorskip("tqdm")
    seen = on_a_terminal("-c", SLOW.format(tqdm=tqdm), **environment).decode()
    assert "\x1b[3" not in seen
    width = int(environment.get("COLUMNS", 80))
    drawn = [part for part in seen.replace("\n", "\r").split("\r") if part.startswith("epoch ")]
    assert len(drawn) >= 4 and max(map(len, seen.replace("\n", "\r").split("\r"))) <= max(width - 1, 50)
    assert any(part.startswith("epoch 2/3 ") for part in drawn)
    for part in drawn:
        assert "loss 0.5000  error 0.2500" in part and (
            width < 80 or re.search(r"  [\d.]+k?/s  \d?\d:\d\d left *$", part))
        assert ("|" in part) == tqdm and ("[" in part) == (not tqdm and width == 80)
    lines = [line.rpartition("\r")[2] for line in seen.split("\r\n")]
    assert lines[:1] + lines[2:4] == ["noted", "noted", "that is all"]
    assert lines[1].startswith("1/3  loss 0.5000  error 0.2500  ")


def test_tqdms_own_switch_takes_the_bar_away():
    pytest.importorskip("tqdm")
    seen = on_a_terminal("-c", SLOW.format(tqdm=True), TQDM_DISABLE="1").decode()
    assert [line.split()[0] for line in seen.split("\r\n")[:-1]] == ["noted", "1/3", "noted", "that"]


def test_a_dumb_terminal_gets_lines_alone():
    seen = on_a_terminal("-c", SLOW.format(tqdm=False), TERM="dumb").decode()
    assert [line.split()[0] for line in seen.split("\r\n")[:-1]] == ["noted", "1/3", "noted", "that"]


def test_durations_and_rates_are_short():
    from fastbp.show.progress import duration, per_second, short
    assert [duration(s) for s in (0.4, 67, 3599.7, 3723)] == ["0:00", "1:07", "1:00:00", "1:02:03"]
    assert [per_second(r) for r in (0.2, 876, 9994, 12345, 999_600, 1.5e7)] == [
        "0/s", "876/s", "9994/s", "12.3k/s", "1M/s", "15M/s"]
    assert [short(x) for x in (0.12345, 12.345, 1.2345e-5, 0.0, -2.5, 123456.0, np.nan)] == [
        "0.1235", "12.35", "1.2e-05", "0", "-2.5000", "1.235e+05", "nan"]


# --- history

def test_a_history_is_a_table(tmp_path):
    net = Net()
    history = net.fit(epochs=2, validation=(net.evaluate, *VAL))
    assert len(history) == 2 and history[-1]["epoch"] == 2 and [r["epoch"] for r in history] == [1, 2]
    assert history.columns == ["epoch", "loss", "error", "val_loss", "val_error", "seconds"]
    assert history["val_loss"] == [r["val_loss"] for r in history.records]
    with pytest.raises(KeyError, match="there are epoch, loss"):
        history["accuracy"]
    lines = str(history).splitlines()
    assert lines[0].split() == history.columns and len(lines) == 3 and len({len(line) for line in lines}) == 1
    assert float(lines[2].split()[1]) == pytest.approx(history[1]["loss"], abs=5e-5)
    history.to_csv(tmp_path / "h.csv")
    with open(tmp_path / "h.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [{k: float(v) for k, v in row.items()} for row in rows] == history.records
    history.stopped, history.restored = "stopped after epoch 2: enough", 1
    assert str(history).splitlines()[3:] == ["stopped after epoch 2: enough", "weights of epoch 1"]
    assert str(type(history)()) == ""


# --- callbacks

def test_a_log_goes_on(tmp_path):
    path = tmp_path / "log.csv"
    net = Net()
    first = net.fit(rng=0, epochs=2, callbacks=[callbacks.CSVLog(path)])
    with open(path, "a") as file:
        file.write("3,0.1")    # a process that was killed
    rest = net.fit(rng=0, epochs=4, initial_epoch=2, callbacks=[callbacks.CSVLog(path)])
    lines = path.read_text().splitlines()
    assert lines[0] == "epoch,loss,error,seconds" and len(lines) == 6 and lines[3] == "3,0.1"
    kept = [dict(zip(first.columns, map(float, line.split(",")), strict=True)) for line in lines[1:3] + lines[4:]]
    assert kept == [*first, *rest]
    with pytest.raises(ValueError, match="other columns"):
        net.fit(callbacks=[callbacks.CSVLog(path)], validation=lambda: 1.0)
    assert path.read_text().splitlines() == lines
    before = net.weights()
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\n")
    for name, kind, says in (("no/log.csv", FileNotFoundError, "log.csv"),
                             ("picture.png", ValueError, "png' is no text")):
        with pytest.raises(kind, match=says):
            net.fit(callbacks=[callbacks.CSVLog(tmp_path / name)])
    assert same_weights(before, net.weights())


def test_the_lines_of_a_log_are_there_when_they_are_written(tmp_path):
    seen = []
    Net().fit(epochs=2, callbacks=[callbacks.CSVLog(tmp_path / "log.csv"),
                                   lambda record: seen.append((tmp_path / "log.csv").read_text().count("\n"))])
    assert seen == [2, 3]


def test_a_plot_of_the_curves(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "curve.svg"
    seen = []
    net = Net()
    net.fit(epochs=3, validation=(net.evaluate, *VAL),
            callbacks=[callbacks.Plot(path), lambda record: seen.append(path.read_bytes())])
    assert seen[0] == seen[1] == seen[2] != path.read_bytes(), "at first, and at the end"
    before = net.weights()
    for name, kind in (("curve.nonsense", ValueError), ("none/curve.svg", FileNotFoundError)):
        with pytest.raises(kind, match=name.partition(".")[2] if kind is ValueError else "none"):
            net.fit(callbacks=[callbacks.Plot(tmp_path / name)])
    assert same_weights(before, net.weights()), "before the first epoch"
    net.fit(callbacks=[callbacks.Plot(tmp_path / "curve.PNG"), callbacks.Plot(tmp_path / "curve")])
    assert {"curve.PNG", "curve.png"} <= {*os.listdir(tmp_path)}


def test_a_plot_of_what_few_epochs_have(monkeypatch):
    pytest.importorskip("matplotlib")
    from fastbp import training
    drawn, history = [], training.History()
    monkeypatch.setattr(training, "write_figure", lambda figure, path: drawn.append(figure))
    history.records = [{"epoch": 1, "loss": 1.0, "note": None}]
    history.plot("one.png")
    (axes,) = drawn.pop().axes
    low, high = axes.get_xlim()
    assert [x for x in axes.get_xticks() if low <= x <= high] == [1]
    history.records = [{"epoch": n, "loss": 1 / n, "val_loss": None if n % 5 else 2 / n} for n in range(1, 61)]
    history.plot("some.png")
    loss, val_loss = drawn.pop().axes[0].lines
    assert len(loss.get_xdata()) == 60 and [*val_loss.get_xdata()] == [*range(5, 61, 5)]
    assert val_loss.get_marker() == "."
    with pytest.raises(ValueError, match="nothing to draw"):
        training.History().plot("none.png")


def test_a_plot_without_matplotlib_is_said_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    net = Net()
    before = net.weights()
    with pytest.raises(RuntimeError, match=r"fastbp\[plot\]"):
        net.fit(callbacks=[callbacks.Plot(tmp_path / "curve.png")])
    assert same_weights(before, net.weights())


class Halving:
    """A scheduler as those of PyTorch: halves the rate of its optimizer."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self, epoch=None):
        assert epoch is None
        self.optimizer.lr = self.optimizer.lr / 2


class OnPlateau(Halving):
    def step(self, metrics, epoch=None):
        if metrics > 3.5:
            super().step()


def test_schedules_are_stepped_and_their_rates_recorded():
    net = Net(lr=0.4)
    assert net.fit(callbacks=[callbacks.Schedule(Halving(net.opt))])["lr"] == [0.4, 0.2, 0.1]
    assert net.step.recordings == 2
    values = iter([5.0, 3.0, 4.0, 1.0])
    history = net.fit(epochs=4, validation=lambda: next(values), callbacks=[callbacks.Schedule(OnPlateau(net.opt))])
    assert history["lr"] == [0.05, 0.025, 0.025, 0.0125]
    history = net.fit(epochs=2, callbacks=[callbacks.Schedule(OnPlateau(net.opt), monitor="epoch")])
    assert history.columns[-1] == "lr" and history["lr"] == [0.0125] * 2
    for wrong in (None, net.opt, optim.lr_scheduler.StepLR):
        with pytest.raises(TypeError, match="this is no scheduler"):
            callbacks.Schedule(wrong)


def test_schedules_of_the_package():
    net = Net(lr=0.4)
    history = net.fit(epochs=4, callbacks=[callbacks.Schedule(optim.lr_scheduler.StepLR(net.opt, 2, gamma=0.5))])
    assert history["lr"] == [0.4, 0.4, 0.2, 0.2]
    values = iter([3.0, 3.0, 3.0, 3.0])
    plateau = optim.lr_scheduler.ReduceLROnPlateau(net.opt, factor=0.5, patience=1)
    history = net.fit(epochs=4, validation=lambda: next(values), callbacks=[callbacks.Schedule(plateau)])
    assert history["lr"] == [0.1, 0.1, 0.1, 0.05]


def test_training_goes_on_from_a_checkpoint_with_the_same_bits(tmp_path):
    def run(epochs, path):
        net = Net(lr=0.02)
        own, schedule = np.random.default_rng(9), optim.lr_scheduler.ExponentialLR(net.opt, 0.7)
        checkpoint = callbacks.Checkpoint(path, model=net.model, optimizer=net.opt, own=own, schedule=schedule)
        done = checkpoint.restore()
        draw = lambda record: record.update(own=own.random(), package=fb.randn(1).item())
        history = net.fit(epochs=epochs, rng=0, initial_epoch=done,
                          callbacks=[draw, callbacks.Schedule(schedule), checkpoint])
        return net, history

    fb.manual_seed(2)
    whole, history = run(4, tmp_path / "whole.npz")
    fb.manual_seed(2)
    _, first = run(2, tmp_path / "parts.npz")
    fb.manual_seed(77)
    rest, second = run(4, tmp_path / "parts.npz")
    assert same_weights(whole.weights(), rest.weights())
    assert numbers(history) == numbers(first) + numbers(second)


def test_a_checkpoint_has_the_streams_of_layers(tmp_path):
    """State dicts lack them: those of the layers of a model, and of the copies that an average has."""
    def run(epochs, path, seed):
        model = nn.Sequential(nn.Linear(64, 20, rng=0), nn.Dropout(rng=seed), nn.Linear(20, 10, rng=1), nn.Dropout(0.1))
        average = optim.swa_utils.AveragedModel(model)
        checkpoint = callbacks.Checkpoint(path, model=model, average=average)
        done = checkpoint.restore()
        fb.fit(averaging_step(model, average), *TRAIN, epochs=epochs, batch_size=32, rng=0, initial_epoch=done,
               callbacks=[checkpoint], progress=False)
        return [t.numpy().copy() for t in (*model.parameters(), *average.parameters(), *average.buffers())]

    fb.manual_seed(2)
    whole = run(4, tmp_path / "whole.npz", seed=3)
    fb.manual_seed(2)
    run(2, tmp_path / "parts.npz", seed=3)
    fb.manual_seed(77)
    before = fb.get_rng_state()
    with pytest.raises(ValueError, match=r"(?s)got: +model, average, model.1.stream, average.module.1.stream\n"):
        run(4, tmp_path / "parts.npz", seed=None)
    assert fb.get_rng_state() == before
    assert same_weights(whole, run(4, tmp_path / "parts.npz", seed=4))


def test_a_checkpoint_of_the_best_epoch(tmp_path):
    net, after = Net(), []
    path = tmp_path / "best.npz"
    checkpoint = callbacks.Checkpoint(path, best_only=True, model=net.model)
    net.fit(epochs=6, callbacks=[checkpoint], validation=falling_and_rising(net, after))
    other = Net(seed=1)
    again = callbacks.Checkpoint(path, best_only=True, model=other.model)
    assert again.restore() == 4 and same_weights(other.weights(), after[3])
    again.on_epoch_end({"epoch": 5, "val_loss": 2.5})
    assert callbacks.Checkpoint(path, model=other.model).restore() == 4, "2 was better"


def test_checkpoints_that_do_not_fit_change_nothing(tmp_path):
    net, path = Net(), tmp_path / "run.npz"
    assert callbacks.Checkpoint(path, model=net.model).restore() == 0
    net.fit(callbacks=[callbacks.Checkpoint(path, model=net.model, optimizer=net.opt)])
    other = Net(seed=1, optimizer=optim.SGD)
    before, random = other.weights(), fb.get_rng_state()
    for parts in ({"model": other.model}, {"model": other.model, "optimizer": other.opt}):
        with pytest.raises(ValueError):
            callbacks.Checkpoint(path, **parts).restore()
    fb.save(tmp_path / "other.npz", {"model": 1})
    fb.save(tmp_path / "own.npz", {"parts": {"model": net.model.state_dict(), "optimizer": other.opt.state_dict()}})
    path.write_bytes(path.read_bytes()[:-50])
    for wrong in (path, tmp_path / "other.npz", tmp_path / "own.npz"):
        with pytest.raises(ValueError):
            callbacks.Checkpoint(wrong, model=other.model, optimizer=other.opt).restore()
    assert same_weights(before, other.weights()) and fb.get_rng_state() == random
    with pytest.raises(TypeError, match="scheduler has no state"):
        callbacks.Checkpoint(path, model=net.model, scheduler=3)


def test_callbacks_serve_plain_loops_too(tmp_path):
    net, log = Net(), callbacks.CSVLog(tmp_path / "log.csv")
    stopping, checkpoint = callbacks.EarlyStopping(patience=2), callbacks.Checkpoint(tmp_path / "run.npz", opt=net.opt)
    for epoch in range(1, 10):
        record = {"epoch": epoch, "loss": net.step.epoch(*TRAIN, batch_size=32) if epoch < 4 else 10.0}
        log.on_epoch_end(record)
        checkpoint.on_epoch_end({"epoch": epoch})
        if stopping.on_epoch_end(record):
            break
    assert epoch == checkpoint.restore() == 5 and (tmp_path / "log.csv").read_text().count("\n") == 6
