"""Checkpoints: training that was stopped goes on, in a new process, with the bits of training that was not."""
import contextlib
import itertools
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_gates import same_bits
from test_pickle import COPIES, optimizers
from test_serialization import same
from test_staged import net

import fastbp as fb
from fastbp import data, nn, optim

X, Y = np.arange(46, dtype=np.float32).reshape(23, 2), np.arange(23)


PARTS = ("where:", "test_checkpoint.py:", "got:", "expected:", "fix:")


def raises(kind, *words):
    """`pytest.raises` that also wants every part of an error here, and `words`, in the message."""
    return pytest.raises(kind, match="(?s)" + "".join(f"(?=.*{w})" for w in (*PARTS, *words)))


def through_a_file(state, path):
    fb.save(path, state)
    loaded = fb.load(path)
    assert same(loaded, {k: v.numpy() if isinstance(v, fb.Tensor) else v for k, v in state.items()})
    return loaded


# --- the place in the epoch

@pytest.mark.parametrize("rng", [None, 5, np.random.default_rng(5)], ids=["stream", "seed", "generator"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_loader_gives_the_batches_of_data_batches(rng, shuffle):
    fb.manual_seed(5)
    loader, orders = data.DataLoader(X, Y, batch_size=5, shuffle=shuffle, rng=rng), np.random.default_rng(5)
    assert len(loader) == 5 and loader.epoch == 0
    for epoch in range(3):
        pairs = zip(loader, data.batches(X, Y, batch_size=5, shuffle=shuffle, rng=orders), strict=True)
        for a, b in pairs:
            assert type(a) is tuple and all(map(np.array_equal, a, b))
        assert loader.epoch == epoch + 1
    assert [type(b) for b in data.DataLoader(X, batch_size=20)] == [np.ndarray] * 2


def epochs(loader, n=3, stop=None, path=None):
    """[(epoch, batch)] up to epoch n; with `stop` after so many, and what the loader's state is then."""
    given = []
    for epoch in range(loader.epoch, n):
        for batch in loader:
            given.append((epoch, batch.tolist()))
            if len(given) == stop:
                return given, through_a_file({**loader.state_dict(), "stream": fb.get_rng_state()}, path)
        fb.randn(3)
    return given


@pytest.mark.parametrize("rng", [None, 3], ids=["stream", "seed"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_loader_goes_on_behind_any_batch(tmp_path, rng, shuffle):
    def loader(rng):
        return data.DataLoader(Y, batch_size=5, shuffle=shuffle, rng=rng)
    fb.manual_seed(1)
    whole = epochs(loader(rng))
    assert len(whole) == 15
    for stop in range(1, 16):
        fb.manual_seed(1)
        first, state = epochs(loader(rng), stop=stop, path=tmp_path / "place.npz")
        fb.manual_seed(99)
        other = loader(rng if rng is None else 77)
        other.load_state_dict(state)
        assert same({**other.state_dict(), "stream": 0}, {**state, "stream": 0})
        fb.set_rng_state(state["stream"])
        assert first + epochs(other) == whole


def test_each_loop_begins_an_epoch_unless_one_was_loaded():
    loader = data.DataLoader(Y, batch_size=5, shuffle=True, rng=0)
    for batch in loader:
        first = batch
        break
    assert loader.epoch == 0 and loader.state_dict()["row"] == 5
    rest = loader.state_dict()
    assert not np.array_equal(next(iter(loader)), first)
    loader.load_state_dict(rest)
    assert sorted([*first, *np.concatenate(list(loader))]) == Y.tolist() and loader.epoch == 1
    assert loader.state_dict()["order"] is None and len(list(loader)) == 5
    drawn, other = loader.begin(), data.DataLoader(Y, batch_size=5, shuffle=True, rng=7)
    other.load_state_dict(loader.state_dict())
    assert np.array_equal(next(iter(other)), drawn[:5])


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_loaders_are_copied_with_their_place(copied):
    loader = data.DataLoader(Y, batch_size=5, shuffle=True, rng=0)
    next(iter(loader))
    other = copied(loader)
    for one in (loader, other):
        one.load_state_dict(one.state_dict())
    assert epochs(loader) == epochs(other)


def test_between_epochs_other_rows_and_sizes_fit():
    loader = data.DataLoader(Y, batch_size=5, shuffle=True, rng=0)
    list(loader)
    other = data.DataLoader(Y[:7], batch_size=3, shuffle=True, rng=1)
    other.load_state_dict(loader.state_dict())
    assert other.epoch == 1 and np.array_equal(next(iter(other)), loader.rng.permutation(7)[:3])


BAD_PLACES = {
    "rows": {"rows": 22}, "batch_size": {"batch_size": 4}, "row": {"row": 24}, "negative": {"row": -5},
    "text": {"row": "a"}, "epoch": {"epoch": 1.5}, "sums": {"sums": 3.0}, "nested": {"order": {}},
    "no permutation": {"order": np.zeros(23, int)}, "short": {"order": np.arange(22)},
    "out of range": {"order": np.arange(1, 24)}, "no rng": {"generator": None},
    "other rng": {"generator": {"bit_generator": "MT19937"}}, "empty rng": {"generator": {}},
    "half an rng": {"generator": {"bit_generator": "PCG64", "state": {"state": 1, "inc": 1}}}, "nothing": None,
}


@pytest.mark.parametrize("case", BAD_PLACES)
def test_a_place_that_does_not_fit_changes_nothing(case):
    loader, other = (data.DataLoader(Y, batch_size=5, shuffle=True, rng=n) for n in (0, 1))
    next(iter(loader))
    wrong = {} if BAD_PLACES[case] is None else {**loader.state_dict(), **BAD_PLACES[case]}
    before = other.state_dict()
    with raises(ValueError, "does not fit this DataLoader"):
        other.load_state_dict(wrong)
    assert same(other.state_dict(), before) and len(list(other)) == 5
    with raises(ValueError, "a state of rng"):
        data.DataLoader(Y, batch_size=5, shuffle=True).load_state_dict(loader.state_dict())


def test_half_a_generators_state_changes_nothing():
    loader = data.DataLoader(Y, batch_size=5, shuffle=True, rng=np.random.Generator(np.random.MT19937(0)))
    before = loader.state_dict()
    generator = {**before["generator"], "state": {"key": np.arange(9), "pos": 3}}
    with raises(ValueError, "does not fit this DataLoader"):
        loader.load_state_dict({**before, "generator": generator})
    assert same(loader.state_dict(), before)


# --- epochs inside

def digits(n=203):
    x, y = data.load_digits()
    return x[:n], y[:n]


def test_an_epoch_of_a_loader_is_that_of_its_arrays():
    (a, _, step), (b, _, other), (c, _, looped) = net("adam"), net("adam"), net("adam")
    loader, same_loader = (data.DataLoader(*digits(), batch_size=32, shuffle=True, rng=4) for _ in range(2))
    rng, seen = np.random.default_rng(4), []
    for epoch in range(3):
        mean = step.epoch(loader, progress=lambda *args: seen.append(args))
        assert mean == other.epoch(*digits(), batch_size=32, shuffle=True, rng=rng) and loader.epoch == epoch + 1
        for batch in same_loader:
            looped(*batch)
    assert seen[-1] == (203, 203)
    for p, q, r in zip(a.parameters(), b.parameters(), c.parameters(), strict=True):
        assert same_bits(p, q) and same_bits(p, r)
    for wrong in ({"batch_size": 3}, {"shuffle": True}, {"rng": 0}):
        with raises(TypeError, "has its own batch_size"):
            step.epoch(loader, **wrong)
    with pytest.raises(TypeError, match="batch_size is not an int"):
        step.epoch(*digits())


class Stop(Exception):
    pass


@pytest.mark.parametrize("way", [contextlib.nullcontext, fb.detect_anomaly], ids=["calls of replays", "gate by gate"])
def test_an_epoch_that_was_stopped_gives_the_means_of_the_whole(monkeypatch, way):
    ticks = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: next(ticks))    # progress is shown after each batch

    def run(stops):
        model, opt, _ = net("adam")

        @fb.staged
        def step(x, y):
            loss = fb.cross_entropy(model(x), y, ignore_index=0)    # some batches have none to ignore
            opt.zero_grad()
            loss.backward()
            opt.step()
            return loss, loss * 2

        def progress(done, n, means):
            if (loader.epoch, done) in stops:
                raise Stop

        loader, means, stopped = data.DataLoader(*digits(), batch_size=8, shuffle=True, rng=4), [], 0
        while loader.epoch < 2:
            try:
                means.append(step.epoch(loader, means=True, progress=progress))
            except Stop:
                loader.load_state_dict(loader.state_dict())
                stopped += 1
        assert stopped == len(stops)
        return means, [p.numpy().tobytes() for p in model.parameters()]

    with way():
        means, weights = run([])
        assert run([(0, 8), (0, 88), (1, 200), (1, 203)]) == (means, weights) and len(means[0]) == 2


def test_the_rest_of_a_loop_is_ended_by_a_loop():
    _, _, step = net("sgd")
    loader = data.DataLoader(*digits(), batch_size=50)
    next(iter(loader))
    loader.load_state_dict(loader.state_dict())
    for _ in range(2):
        with raises(ValueError, "that a loop began"):
            step.epoch(loader)
    assert len(list(loader)) == 4 and loader.epoch == 1


def test_signals_lose_no_batch():
    """Ctrl-C at random moments of an epoch: its place is known to the row."""
    x, y = digits(1797)
    x, y = np.tile(x, (20, 1)), np.tile(y, 20)

    def interrupt(*unused):
        raise KeyboardInterrupt

    def run(interrupted):
        model, opt, step = net("adam")
        loader, stops, means = data.DataLoader(x, y, batch_size=2, shuffle=True, rng=4), 0, []
        step(x[:2], y[:2])
        rng = np.random.default_rng(0)
        while loader.epoch < 2 and stops < 1000:
            try:
                if interrupted:
                    signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.001, 0.03))
                means.append(step.epoch(loader))
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                stops += 1
                loader.load_state_dict(loader.state_dict())
        return means, [p.numpy().tobytes() for p in model.parameters()], stops

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        means, weights, _ = run(False)
        again, weights_again, stops = run(True)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert stops and means == again and weights == weights_again


# --- a new process

class Run:
    """Training with a schedule and random numbers in the step, by a loop over staged or eager calls or by epochs."""

    def __init__(self, kind, form, seed):
        fb.manual_seed(seed)
        self.form = form
        self.model = nn.Sequential(nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 10))
        self.opt = optimizers()[kind]([{"params": self.model[0].parameters()},
                                       {"params": self.model[2].parameters(), "lr": 0.02}])
        schedules = optim.lr_scheduler
        self.schedule = {"staged": lambda: schedules.OneCycleLR(self.opt, 0.05, 21, cycle_momentum=False),
                         "eager": lambda: schedules.CosineAnnealingLR(self.opt, 21),
                         "epoch": lambda: schedules.ReduceLROnPlateau(self.opt, patience=0, threshold=0.5)}[form]()
        self.loader = data.DataLoader(*digits(50), batch_size=8, shuffle=True)
        self.step = fb.staged(self.body)

    parts = "model", "opt", "schedule", "loader"

    def body(self, x, labels):
        loss = fb.cross_entropy(self.model(x + 0.1 * fb.randn(*x.shape)), labels)
        self.opt.zero_grad()
        loss.backward()
        self.opt.step()
        return loss

    def state(self):
        return {"rng": fb.get_rng_state(), **{name: getattr(self, name).state_dict() for name in self.parts}}

    def load(self, state):
        for name in self.parts:
            getattr(self, name).load_state_dict(state[name])
        fb.set_rng_state(state["rng"])

    def batches(self):
        """Run to the end of the third epoch: the loss of each batch, or the mean of each epoch."""
        call = self.step if self.form == "staged" else self.step.eager
        for _ in range(self.loader.epoch, 3):
            if self.form == "epoch":
                mean = self.step.epoch(self.loader)
                self.schedule.step(mean)
                yield mean
            else:
                for batch in self.loader:
                    loss = call(*batch).item()
                    self.schedule.step()
                    yield loss


RUNS = [(kind, form) for kind in optimizers() for form in ("staged", "eager", "epoch")]

GO_ON = """if True:
    import pickle, sys
    sys.path[:0] = [sys.argv[1]]
    import fastbp as fb
    from test_checkpoint import RUNS, Run
    ends = {}
    for (kind, form) in RUNS:
        for stop in (1, 2) if form == "epoch" else (7, 10, 21):
            run = Run(kind, form, seed=99)
            run.load(fb.load(f"{kind} {form} {stop}.npz"))
            ends[kind, form, stop] = [*run.batches()], run.state()
    with open("ends", "wb") as file:
        pickle.dump(ends, file)
    """


def arrays(state):
    """`state` with arrays for tensors."""
    if isinstance(state, dict):
        return {key: arrays(value) for key, value in state.items()}
    return state.numpy() if isinstance(state, fb.Tensor) else state


def test_every_optimizer_goes_on_in_a_new_process_with_the_same_bits(tmp_path):
    """Stopped between two epochs, in the middle of one, and behind its last batch."""
    ends = {}
    for kind, form in RUNS:
        run, losses = Run(kind, form, seed=1), []
        for loss in run.batches():
            losses.append(loss)
            fb.save(tmp_path / f"{kind} {form} {len(losses)}.npz", run.state())
        assert len(set(losses)) == (3 if form == "epoch" else 21)
        ends[kind, form] = losses, arrays(run.state())
    tests = str(Path(__file__).parent)
    subprocess.run([sys.executable, "-c", GO_ON, tests], cwd=tmp_path, check=True)
    with open(tmp_path / "ends", "rb") as file:
        resumed = pickle.load(file)
    assert len(resumed) == 8 * len(optimizers())
    for (kind, form, stop), (losses, state) in resumed.items():
        whole, end = ends[kind, form]
        assert losses == whole[stop:], (kind, form, stop)
        assert same(arrays(state), end), (kind, form, stop)


def test_the_readmes_loop_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    begin = next(b for b in re.findall(r"```python\n(.*?)```", readme, re.S) if "@fb.staged" in b)
    code = re.search(r"## Checkpoints\n.*?```python\n(.*?)```", readme, re.S)[1]
    code = "import fastbp as fb\nfb.manual_seed(3)\n" + begin[:begin.index("for epoch")] + code
    ends = []
    for stops in ([], [2, 3]):
        (tmp_path / f"{stops}").mkdir()
        monkeypatch.chdir(tmp_path / f"{stops}")
        done, save = [0], fb.save

        def interrupted(*args, stops=stops, done=done, save=save):
            save(*args)
            done[0] += 1
            if done[0] in stops:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(fb, "save", interrupted)
            for stop in (*stops, None):
                with contextlib.nullcontext() if stop is None else pytest.raises(KeyboardInterrupt):
                    exec(compile(code, "README.md", "exec"), {})
        assert done == [5] and len(list(Path().iterdir())) == 1
        ends.append(fb.load("run.npz"))
    assert same(*ends) and ends[0]["loader"]["epoch"] == 5


# --- state dicts, PyTorch's too

def test_names_that_do_not_fit_are_cut_and_the_nearest_is_asked_for():
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(20)])
    state = model.state_dict()
    with raises(ValueError, "missing: 0.weight, 0.bias, 1.weight, 1.bias, 2.weight and 35 more; unexpected: "
                "module.0.weight, .* and 35 more", "fix: .*is 'module.0.weight' meant for '0.weight'\\? rename it; or"):
        model.load_state_dict({f"module.{name}": x for name, x in state.items()})
    with raises(ValueError, "missing: 19.bias\n", "fix: .*make the model"):
        model.load_state_dict({name: x for name, x in state.items() if name != "19.bias"})
    with raises(ValueError, "got: .*unexpected: optimizer, 5\n", "fix: .*make the model"):
        model.load_state_dict({**state, "optimizer": {}, 5: 1})


def test_an_optimizer_says_what_it_was_given_instead_of_a_state():
    model, opt, _ = net("adam")
    for wrong, words in ((model.state_dict(), "a dict of 0.weight, 0.bias, 2.weight, 2.bias, 4.weight"),
                         ({}, "a dict of nothing"), ({"state": {}}, "a dict of state")):
        with raises(ValueError, "does not fit this Adam", f"{words}\n", "expected: state, param_groups"):
            opt.load_state_dict(wrong)
    with raises(TypeError, "this is no state", "got:      NoneType"):
        opt.load_state_dict(None)


def torch_pair(torch, dtype="float32"):
    ours, theirs = (m.Sequential(m.Linear(6, 5), m.Tanh(), m.Linear(5, 3)) for m in (nn, torch.nn))
    return ours.to(dtype), theirs.to(getattr(torch, dtype))


def test_models_of_pytorch_load_and_save(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    ours, theirs = torch_pair(torch)
    assert ours.load_state_dict(theirs.state_dict()) == ([], [])
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert p.numpy().tobytes() == q.detach().numpy().tobytes()
    ours, _ = torch_pair(torch)
    fb.save(tmp_path / "w.npz", ours.state_dict())
    for state in (ours.state_dict(), fb.load(tmp_path / "w.npz")):
        theirs.load_state_dict({name: torch.as_tensor(x) for name, x in state.items()})
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert np.array_equal(p.numpy(), q.detach().numpy())
            q.data.zero_()
    torch.save({n: torch.as_tensor(x) for n, x in ours.state_dict().items()}, tmp_path / "w.pt")
    ours.load_state_dict(torch.load(tmp_path / "w.pt", weights_only=True))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_models_of_pytorch_in_other_dtypes_and_with_gradients(dtype):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    ours, theirs = torch_pair(torch, "float32")
    theirs = theirs.to(getattr(torch, dtype))
    ours.load_state_dict(dict(theirs.named_parameters()))
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert p.dtype == np.float32 and p.numpy().tolist() == q.float().tolist()


@pytest.mark.parametrize("kind", optimizers())
def test_optimizers_of_pytorch_load_and_save(kind):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    make = optimizers()[kind]
    options = {"lr": 0.02, **getattr(make, "keywords", {})}
    theirs_kind = getattr(torch.optim, "SGD" if kind == "momentum" else kind)
    ours, theirs = torch_pair(torch, "float64")
    theirs.load_state_dict({name: torch.as_tensor(x) for name, x in ours.state_dict().items()})
    rng = np.random.default_rng(0)
    rtol = 1e-6 if kind == "NAdam" else 1e-9    # PyTorch keeps mu_product in float32

    def steps(a, b, n=5):
        for _ in range(n):
            x = rng.standard_normal((4, 6))
            for model, opt, given in ((ours, a, fb.tensor(x)), (theirs, b, torch.from_numpy(x))):
                opt.zero_grad()
                (model(given) ** 2).sum().backward()
                opt.step()
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            np.testing.assert_allclose(p.numpy(), q.detach().numpy(), rtol=rtol, atol=1e-11)

    a, b = make(ours.parameters(), lr=0.02), theirs_kind(theirs.parameters(), **options)
    steps(a, b)
    our_state, their_state = a.state_dict(), b.state_dict()
    a, b = type(a)(ours.parameters()), theirs_kind(theirs.parameters())
    a.load_state_dict(their_state)
    b.load_state_dict({**our_state, "state": {i: {name: torch.as_tensor(x) for name, x in entries.items()}
                                              for i, entries in our_state["state"].items()}})
    steps(a, b)
