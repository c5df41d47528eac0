"""Schedules: PyTorch's rates, staged steps that see them without a new recording, states, and what is refused."""
import copy
import math
import pickle

import numpy as np
import pytest

import fastbp as fb
from fastbp import nn, optim
from fastbp.optim import lr_scheduler
from fastbp.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)


class Inverse:
    """lr_lambda with something to keep."""

    def __init__(self, rate):
        self.rate = rate

    def __call__(self, epoch):
        return 1 / (1 + self.rate * epoch)


# name: a function of (the module, an optimizer of two groups)
SCHEDULES = {
    "step": lambda L, o: L.StepLR(o, 7, gamma=0.9),
    "multistep": lambda L, o: L.MultiStepLR(o, [3, 10, 10, 50], gamma=0.5),
    "exponential": lambda L, o: L.ExponentialLR(o, 0.99),
    "constant": lambda L, o: L.ConstantLR(o),
    "constant-long": lambda L, o: L.ConstantLR(o, factor=0.5, total_iters=33),
    "linear": lambda L, o: L.LinearLR(o),
    "linear-down": lambda L, o: L.LinearLR(o, start_factor=0.9, end_factor=0.1, total_iters=40),
    "cosine": lambda L, o: L.CosineAnnealingLR(o, 13, eta_min=0.001),
    "cosine-once": lambda L, o: L.CosineAnnealingLR(o, 500),
    "restarts": lambda L, o: L.CosineAnnealingWarmRestarts(o, 9),
    "restarts-longer": lambda L, o: L.CosineAnnealingWarmRestarts(o, 10, T_mult=2, eta_min=0.002),
    "one-cycle": lambda L, o: L.OneCycleLR(o, [0.3, 0.2], total_steps=300),
    "one-cycle-three": lambda L, o: L.OneCycleLR(
        o, 0.3, epochs=10, steps_per_epoch=30, pct_start=0.25, three_phase=True, div_factor=10, final_div_factor=100),
    "one-cycle-linear": lambda L, o: L.OneCycleLR(
        o, 0.3, total_steps=301, anneal_strategy="linear", base_momentum=[0.5, 0.6], max_momentum=0.9),
    "one-cycle-rates": lambda L, o: L.OneCycleLR(o, 0.3, total_steps=300, cycle_momentum=False),
    "lambda": lambda L, o: L.LambdaLR(o, lambda epoch: 0.95 ** epoch),
    "lambdas": lambda L, o: L.LambdaLR(o, [Inverse(0.1), lambda epoch: 1 + math.sin(epoch)]),
    "sequence": lambda L, o: L.SequentialLR(
        o, [L.LinearLR(o, 0.1, total_iters=5), L.CosineAnnealingLR(o, 20), L.ExponentialLR(o, 0.9),
            L.CosineAnnealingWarmRestarts(o, 7, 2), L.StepLR(o, 10, 0.5), L.MultiStepLR(o, [0, 3]),
            L.LambdaLR(o, lambda epoch: 1 / (1 + epoch)), L.ConstantLR(o)],
        [5, 25, 40, 80, 120, 160, 200]),
}


def groups(kind, **options):
    """An optimizer of two groups with rates of their own."""
    return kind([{"params": [fb.ones(2, requires_grad=True)]},
                 {"params": [fb.ones(3, requires_grad=True)], "lr": 0.03}], lr=0.1, **options)


def rates(opt):
    return [group["lr"] for group in opt.param_groups]


def options(opt):
    """What a schedule may set."""
    return [{k: v for k, v in group.items() if k != "params"} for group in opt.param_groups]


def near(a, b):
    """Numbers, or sequences of them, that differ by 1e-12 of their size at most."""
    pairs = zip(a, b, strict=True) if isinstance(a, (list, tuple)) else [(a, b)]
    return all(math.isclose(x, y, rel_tol=1e-12) for x, y in pairs)


# --- the rates


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed")


def their_groups(torch, kind):
    return kind([{"params": [torch.ones(2, requires_grad=True)]},
                 {"params": [torch.ones(3, requires_grad=True)], "lr": 0.03}], lr=0.1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name, kind", [
    (name, kind) for name in SCHEDULES for kind in (("SGD", "Adam", "RMSprop") if "one-" in name else ("SGD",))])
def test_against_pytorch(name, kind, torch):
    a, b = groups(getattr(optim, kind)), their_groups(torch, getattr(torch.optim, kind))
    ours, theirs = SCHEDULES[name](lr_scheduler, a), SCHEDULES[name](torch.optim.lr_scheduler, b)
    for epoch in range(301):
        for group, other in zip(a.param_groups, b.param_groups, strict=True):
            for option in ("lr", "initial_lr", "momentum", "betas"):
                if option in other:
                    assert near(group[option], other[option]), (epoch, option)
        assert ours.get_last_lr() == rates(a) and ours.last_epoch == theirs.last_epoch == epoch
        if epoch < 300:
            ours.step()
            theirs.step()
    # A state of PyTorch's is taken over.
    taken = groups(getattr(optim, kind))
    other = SCHEDULES[name](lr_scheduler, taken)
    other.load_state_dict(theirs.state_dict())
    assert other.last_epoch == 300 and other.get_last_lr() == theirs.get_last_lr()


@pytest.mark.filterwarnings("ignore")
def test_several_on_one_optimizer(torch):
    a, b = groups(optim.SGD), their_groups(torch, torch.optim.SGD)
    several = [[L.ExponentialLR(o, 0.99), L.CosineAnnealingLR(o, 500), L.LinearLR(o), L.StepLR(o, 30, 0.7),
                L.MultiStepLR(o, [20, 40], 2.0), L.ConstantLR(o, 0.5, 10)]
               for L, o in ((lr_scheduler, a), (torch.optim.lr_scheduler, b))]
    for _ in range(300):
        for one, other in zip(*several, strict=True):
            one.step()
            other.step()
            assert near(rates(a), rates(b))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kw", [
    {}, dict(factor=0.5, patience=0, threshold=0.01), dict(patience=3, cooldown=4, min_lr=[0.01, 0.001]),
    dict(mode="max", patience=2, threshold_mode="abs", threshold=0.1), dict(mode="max", patience=1, factor=0.9),
    dict(threshold_mode="abs", patience=1, factor=0.9, eps=1e-3)])
def test_plateau_against_pytorch(kw, torch):
    a, b = groups(optim.SGD), their_groups(torch, torch.optim.SGD)
    ours, theirs = ReduceLROnPlateau(a, **kw), torch.optim.lr_scheduler.ReduceLROnPlateau(b, **kw)
    rng = np.random.default_rng(0)
    for n in range(300):
        loss = math.exp(-n / 50) + 0.1 * rng.normal() if n % 40 != 7 else math.nan
        ours.step(fb.tensor(loss, dtype="float64"))
        theirs.step(loss)
        assert near(rates(a), rates(b))
        assert ours.state_dict() == theirs.state_dict()


@pytest.mark.filterwarnings("ignore")
def test_restarts_at_any_epoch_against_pytorch(torch):
    for mult in (1, 2):
        a, b = groups(optim.SGD), their_groups(torch, torch.optim.SGD)
        ours = CosineAnnealingWarmRestarts(a, 10, mult)
        theirs = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(b, 10, mult)
        for epoch in (0.5, 1, 3.25, 9.99, 10, 10.1, 29.9, 30, 31, 70, 3):
            for given in ((epoch,), ()):
                ours.step(*given)
                theirs.step(*given)
                assert near(rates(a), rates(b))
                assert ours.last_epoch == theirs.last_epoch


@pytest.mark.parametrize("name, expected", [
    ("step", lambda e: 0.9 ** (e // 7)), ("multistep", lambda e: 0.5 ** sum(e >= m for m in (3, 10, 10, 50))),
    ("exponential", lambda e: 0.99 ** e), ("constant", lambda e: 1 if e >= 5 else 1 / 3),
    ("linear", lambda e: 1 / 3 + 2 / 3 * min(e, 5) / 5), ("linear-down", lambda e: 0.9 - 0.8 * min(e, 40) / 40),
    ("cosine-once", lambda e: (1 + math.cos(math.pi * e / 500)) / 2),
    ("restarts", lambda e: (1 + math.cos(math.pi * (e % 9) / 9)) / 2), ("lambda", lambda e: 0.95 ** e)])
def test_closed_forms(name, expected):
    opt = groups(optim.SGD)
    scheduler = SCHEDULES[name](lr_scheduler, opt)
    for epoch in range(200):
        np.testing.assert_allclose(rates(opt), [0.1 * expected(epoch), 0.03 * expected(epoch)], rtol=1e-9)
        scheduler.step()


def test_a_sequence_begins_each_part_at_its_own_epoch_0():
    opt = groups(optim.SGD)
    parts = [LinearLR(opt, 0.1, total_iters=5), CosineAnnealingLR(opt, 20), ExponentialLR(opt, 0.9)]
    scheduler = SequentialLR(opt, parts, [5, 15])
    for epoch in range(30):
        factor = (0.1 + 0.9 * epoch / 5 if epoch < 5 else (1 + math.cos(math.pi * (epoch - 5) / 20)) / 2 if epoch < 15
                  else 0.9 ** (epoch - 15))
        np.testing.assert_allclose(rates(opt), [0.1 * factor, 0.03 * factor], rtol=1e-9)
        assert scheduler.last_epoch == epoch
        scheduler.step()


def test_updates_go_by_the_rate_of_now():
    w = fb.tensor([1.0], dtype="float64", requires_grad=True)
    opt = optim.SGD([w], lr=0.5)
    scheduler = ExponentialLR(opt, 0.5)
    for expected in (0.5, 0.25, 0.125):
        w.grad = fb.ones(1, dtype="float64")
        opt.step()
        scheduler.step()
        assert w.item() == expected


@pytest.mark.parametrize("kind, momentum", [
    (optim.SGD, lambda group: group["momentum"]), (optim.Adam, lambda group: group["betas"][0])])
def test_one_cycle_goes_up_and_down_and_the_momentum_the_other_way(kind, momentum):
    opt = groups(kind)
    scheduler = OneCycleLR(opt, max_lr=[0.5, 0.25], total_steps=100, pct_start=0.25)
    seen = [(rates(opt), [momentum(g) for g in opt.param_groups])]
    for _ in range(100):
        scheduler.step()
        seen.append((rates(opt), [momentum(g) for g in opt.param_groups]))
    np.testing.assert_allclose(seen[0], [[0.5 / 25, 0.25 / 25], [0.95, 0.95]])
    np.testing.assert_allclose(seen[24], [[0.5, 0.25], [0.85, 0.85]])
    np.testing.assert_allclose(seen[99][0], [0.5 / 25e4, 0.25 / 25e4], rtol=1e-9)
    np.testing.assert_allclose(seen[99][1], [0.95, 0.95])
    up, down = seen[:25], seen[24:100]
    assert all(a[0] < b[0] and a[1] > b[1] for a, b in zip(up, up[1:], strict=False))
    assert all(a[0] > b[0] and a[1] < b[1] for a, b in zip(down, down[1:], strict=False))


def test_a_rate_is_never_below_0():
    """Step total_steps, behind the last batch, goes on in the line."""
    opt = groups(optim.Adam)
    scheduler = OneCycleLR(opt, 0.3, total_steps=10, anneal_strategy="linear", max_momentum=0.999)
    for _ in range(10):
        scheduler.step()
    assert rates(opt) == [0, 0] and opt.param_groups[0]["betas"][0] < 1


@pytest.mark.parametrize("start", [1.0, 1 / 3, 0.1, 0.01])
def test_a_line_down_to_0_ends_there(start):
    for steps in range(1, 50):
        opt = groups(optim.SGD)
        scheduler = LinearLR(opt, start, 0.0, steps)
        for _ in range(steps + 2):
            scheduler.step()
        assert all(0 <= lr < 1e-15 for lr in rates(opt))


def test_one_cycle_of_few_steps():
    """Phases of no length: PyTorch divides by 0 where pct_start total_steps is 1."""
    for total, start in ((1, 0.3), (2, 0.5), (10, 0.1), (10, 0.0), (10, 1.0)):
        opt = groups(optim.SGD)
        scheduler = OneCycleLR(opt, 0.3, total_steps=total, pct_start=start)
        for _ in range(total):
            assert all(0 <= lr <= 0.3 + 1e-12 for lr in rates(opt))
            scheduler.step()
    assert OneCycleLR(groups(optim.SGD), 0.3, total_steps=10, pct_start=0.1).get_last_lr() == [0.3, 0.3]


def test_a_schedule_of_ones_own():
    class Root(LRScheduler):
        def get_lr(self):
            return [lr / math.sqrt(1 + self.last_epoch) for lr in self.base_lrs]

    opt = groups(optim.SGD)
    scheduler = Root(opt)
    for _ in range(3):
        scheduler.step()
    assert rates(opt) == [0.05, 0.015]
    with pytest.raises(NotImplementedError, match="get_lr"):
        LRScheduler(opt)


# --- staged steps


def training(kind, **options):
    model = nn.Sequential(nn.Linear(20, 30, rng=0), nn.Tanh(), nn.Linear(30, 10, rng=1))
    opt = kind([{"params": model[0].parameters(), "lr": 0.02}, {"params": model[2].parameters()}], **options)

    @fb.staged
    def step(x, y):
        loss = nn.functional.cross_entropy(model(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss

    return model, opt, step


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_staged_step_sees_each_rate_without_a_new_recording(name):
    kind = optim.Adam if "one" in name else optim.RMSprop
    (a, opt, step), (b, other_opt, other) = (training(kind, lr=0.05) for _ in range(2))
    schedulers = [SCHEDULES[name](lr_scheduler, o) for o in (opt, other_opt)]
    x, y = np.random.default_rng(0).normal(size=(8, 20)).astype(np.float32), np.arange(8)
    for _ in range(60):
        assert step(x, y).item() == other.eager(x, y).item()
        for scheduler in schedulers:
            scheduler.step()
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert p.numpy().tobytes() == q.numpy().tobytes()
    assert step.recordings == 1 and "recorded 1 times" in step.explain() and len(step.replays) == 1


def test_refused_inside_a_staged_function():
    opt = groups(optim.SGD)
    w = opt.param_groups[0]["params"][0]
    made = [SCHEDULES[name](lr_scheduler, opt) for name in ("step", "restarts", "one-cycle", "sequence")]
    made.append(ReduceLROnPlateau(opt))
    before = options(opt), [scheduler.state_dict() for scheduler in made if not isinstance(scheduler, SequentialLR)]

    for scheduler in made:
        @fb.staged
        def step(scheduler=scheduler):
            w.sum().backward()
            opt.step()
            scheduler.step(*([1.0] if isinstance(scheduler, ReduceLROnPlateau) else []))

        with pytest.raises(fb.StagingError, match="inside a staged function"):
            step()
        step = fb.staged(lambda: StepLR(opt, 3))
        with pytest.raises(fb.StagingError, match="inside a staged function"):
            step()
    after = options(opt), [scheduler.state_dict() for scheduler in made if not isinstance(scheduler, SequentialLR)]
    assert after == before


# --- states


@pytest.mark.parametrize("name", [*SCHEDULES, "plateau"])
@pytest.mark.parametrize("at", [0, 4, 80])
def test_a_restored_run_goes_on_with_the_same_bits(name, at, tmp_path):
    make = SCHEDULES.get(name, lambda L, o: L.ReduceLROnPlateau(o, patience=1, factor=0.9))

    def step(scheduler, n):
        scheduler.step(*([1 + math.sin(n)] if name == "plateau" else []))

    opt = groups(optim.SGD, momentum=0.9)
    scheduler = make(lr_scheduler, opt)
    for n in range(at):
        step(scheduler, n)
    fb.save(tmp_path / "run", {"optimizer": opt.state_dict(), "scheduler": scheduler.state_dict()})
    saved = fb.load(tmp_path / "run")
    other = groups(optim.SGD)
    restored = make(lr_scheduler, other)
    step(restored, 0)
    copies = [(other, restored)]
    if name == "plateau" or name not in ("lambda", "lambdas", "sequence"):
        copies.append(pickle.loads(pickle.dumps((opt, scheduler))))
    copies.append(copy.deepcopy((opt, scheduler)))
    restored.load_state_dict(saved["scheduler"])
    other.load_state_dict(saved["optimizer"])
    for n in range(at, at + 60):
        for o, s in copies:
            assert options(o) == options(opt) and s.get_last_lr() == scheduler.get_last_lr()
            step(s, n)
        step(scheduler, n)


def test_a_run_resumed_by_its_last_epoch():
    """PyTorch's other way: groups with initial_lr, and last_epoch."""
    opt = groups(optim.SGD)
    scheduler = ExponentialLR(opt, 0.9)
    for _ in range(5):
        scheduler.step()
    other = groups(optim.SGD)
    with pytest.raises(ValueError, match="initial_lr"):
        ExponentialLR(other, 0.9, last_epoch=4)
    other.load_state_dict(opt.state_dict())
    again = ExponentialLR(other, 0.9, last_epoch=4)
    for _ in range(5):
        assert rates(other) == rates(opt) and again.last_epoch == scheduler.last_epoch
        again.step()
        scheduler.step()


def test_a_state_is_a_copy_and_holds_what_is_called():
    opt = groups(optim.SGD)
    inverse = Inverse(0.5)
    scheduler = LambdaLR(opt, [inverse, lambda epoch: 1])
    saved = scheduler.state_dict()
    assert saved["lr_lambdas"] == [{"rate": 0.5}, None]
    saved["base_lrs"][0] = 7
    assert scheduler.base_lrs[0] == 0.1
    scheduler.load_state_dict({**scheduler.state_dict(), "lr_lambdas": [{"rate": 1.0}, None]})
    assert inverse.rate == 1.0
    scheduler.step()
    assert rates(opt) == [0.05, 0.03]


@pytest.mark.parametrize("change", [
    lambda s: s.pop("gamma"), lambda s: s.update(extra=1), lambda s: s.update(base_lrs=[0.1]),
    lambda s: s.pop("last_epoch")])
def test_a_state_that_does_not_fit_changes_nothing(change):
    opt = groups(optim.SGD)
    inner = [StepLR(opt, 3), ExponentialLR(opt, 0.9)]
    sequence = SequentialLR(opt, inner, [5])
    sequence.step()
    before = sequence.state_dict()
    state = sequence.state_dict()
    state["_schedulers"][0]["last_epoch"] = 99
    change(state["_schedulers"][1])
    with pytest.raises(ValueError, match="does not fit this ExponentialLR"):
        sequence.load_state_dict(state)
    for less in ({**before, "_schedulers": before["_schedulers"][:1]}, {"last_epoch": 1}):
        with pytest.raises(ValueError, match="does not fit this SequentialLR"):
            sequence.load_state_dict(less)
    with pytest.raises(ValueError, match="does not fit this StepLR"):
        inner[0].load_state_dict(inner[1].state_dict())
    assert sequence.state_dict() == before


# --- what is refused


def test_past_the_end():
    opt = groups(optim.SGD, momentum=0.9)
    scheduler = OneCycleLR(opt, 0.3, total_steps=20)
    for _ in range(20):
        scheduler.step()
    before = options(opt), scheduler.state_dict()
    for _ in range(2):
        with pytest.raises(ValueError, match="(?s)at its end.*step 21.*at most 20"):
            scheduler.step()
        assert (options(opt), scheduler.state_dict()) == before
    opt = groups(optim.SGD)
    sequence = SequentialLR(opt, [ConstantLR(opt), OneCycleLR(opt, 0.3, total_steps=3, cycle_momentum=False)], [2])
    for _ in range(5):
        sequence.step()
    before = options(opt), sequence.state_dict()
    with pytest.raises(ValueError, match="at its end"):
        sequence.step()
    assert (options(opt), sequence.state_dict()) == before


def test_a_rate_that_can_not_be_changes_nothing():
    """The second group's, where the first one's is set already."""
    opt = groups(optim.SGD)
    scheduler = LambdaLR(opt, [lambda epoch: 1 / (1 + epoch), lambda epoch: math.nan if epoch == 2 else 1])
    scheduler.step()
    before = options(opt), scheduler.state_dict()
    with pytest.raises(ValueError, match="lr can't be this"):
        scheduler.step()
    assert (options(opt), scheduler.state_dict()) == before


def test_groups_that_came_later():
    opt = groups(optim.SGD)
    chained, fixed = StepLR(opt, 1, 0.5), LambdaLR(opt, lambda epoch: 1)
    cycle = OneCycleLR(groups(optim.SGD), 0.3, total_steps=3)
    cycle.optimizer.add_param_group({"params": [fb.ones(1, requires_grad=True)]})
    with pytest.raises(ValueError, match="other groups"):
        cycle.step()
    plateaus = ReduceLROnPlateau(opt, patience=0), ReduceLROnPlateau(opt, patience=0, min_lr=[0.0, 0.0])
    opt.add_param_group({"params": [fb.ones(1, requires_grad=True)], "lr": 0.5})
    chained.step()
    assert rates(opt) == [0.05, 0.015, 0.25]
    with pytest.raises(ValueError, match="other groups"):
        fixed.step()
    assert rates(opt) == [0.05, 0.015, 0.25] and fixed.last_epoch == 0
    plateaus[0].step(1.0)
    plateaus[0].step(1.0)
    assert rates(opt) == pytest.approx([0.005, 0.0015, 0.025])
    with pytest.raises(ValueError, match="min_lr"):
        plateaus[1].step(1.0)
    assert plateaus[1].last_epoch == 0


BAD = {
    "step_size": lambda o: StepLR(o, 0), "step_size float": lambda o: StepLR(o, 2.5),
    "gamma": lambda o: StepLR(o, 2, -1), "gamma NaN": lambda o: ExponentialLR(o, math.nan),
    "milestones": lambda o: MultiStepLR(o, [1.5]), "milestones, one": lambda o: MultiStepLR(o, 30),
    "factor": lambda o: ConstantLR(o, 0), "factor above": lambda o: ConstantLR(o, 1.5),
    "total_iters": lambda o: LinearLR(o, total_iters=0), "start_factor": lambda o: LinearLR(o, 0),
    "end_factor": lambda o: LinearLR(o, end_factor=2), "T_max": lambda o: CosineAnnealingLR(o, 0),
    "eta_min": lambda o: CosineAnnealingLR(o, 5, -1), "T_0": lambda o: CosineAnnealingWarmRestarts(o, 0),
    "T_mult": lambda o: CosineAnnealingWarmRestarts(o, 5, 0), "lr_lambda": lambda o: LambdaLR(o, [abs]),
    "lr_lambda that is none": lambda o: LambdaLR(o, 0.95),
    "last_epoch": lambda o: ExponentialLR(o, 0.9, last_epoch=-2),
    "total_steps": lambda o: OneCycleLR(o, 0.1), "total_steps 0": lambda o: OneCycleLR(o, 0.1, total_steps=0),
    "epochs": lambda o: OneCycleLR(o, 0.1, epochs=0, steps_per_epoch=3),
    "max_lr": lambda o: OneCycleLR(o, [0.1], total_steps=3), "max_lr below": lambda o: OneCycleLR(o, -1, total_steps=3),
    "pct_start": lambda o: OneCycleLR(o, 0.1, total_steps=3, pct_start=1.5),
    "anneal_strategy": lambda o: OneCycleLR(o, 0.1, total_steps=3, anneal_strategy="sine"),
    "div_factor": lambda o: OneCycleLR(o, 0.1, total_steps=3, div_factor=0),
    "momentum": lambda o: OneCycleLR(o, 0.1, total_steps=3, max_momentum=-1),
    "mode": lambda o: ReduceLROnPlateau(o, "down"),
    "threshold_mode": lambda o: ReduceLROnPlateau(o, threshold_mode="x"),
    "factor 1": lambda o: ReduceLROnPlateau(o, factor=1.0), "patience": lambda o: ReduceLROnPlateau(o, patience=-1),
    "metrics": lambda o: ReduceLROnPlateau(o).step(None),
    "metrics, several": lambda o: ReduceLROnPlateau(o).step(fb.ones(2)),
    "min_lr": lambda o: ReduceLROnPlateau(o, min_lr=[0.1]),
    "schedulers": lambda o: SequentialLR(o, [StepLR(groups(optim.SGD), 3)], []),
    "milestones of a sequence": lambda o: SequentialLR(o, [StepLR(o, 3), StepLR(o, 4)], [1, 2]),
    "schedulers, one": lambda o: SequentialLR(o, StepLR(o, 3), []),
    "milestones of a sequence, one": lambda o: SequentialLR(o, [StepLR(o, 3), StepLR(o, 4)], 5),
    "milestones in no order": lambda o: SequentialLR(o, [StepLR(o, 3)] * 3, [5, 2]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case):
    opt = groups(optim.SGD)
    before = rates(opt)
    with pytest.raises(ValueError, match=f"(?s){case.split()[0].strip(',')}.*fix:"):
        BAD[case](opt)
    assert rates(opt) == before


def test_other_things_than_optimizers_and_schedules():
    opt = groups(optim.SGD)
    for make in (lambda: StepLR(opt.param_groups, 3), lambda: OneCycleLR(None, 0.1, total_steps=3),
                 lambda: ReduceLROnPlateau(nn.ReLU()), lambda: SequentialLR(opt, [ReduceLROnPlateau(opt)], []),
                 lambda: SequentialLR(opt, [len], [])):
        with pytest.raises(TypeError):
            make()
    for state in (None, [StepLR(opt, 3).state_dict()]):
        with pytest.raises(TypeError, match="load_state_dict: this is no state"):
            StepLR(opt, 3).load_state_dict(state)
    with pytest.raises(ValueError, match="no momentum"):
        OneCycleLR(groups(optim.Adagrad), 0.1, total_steps=3)
    assert OneCycleLR(groups(optim.Adagrad), 0.1, total_steps=3, cycle_momentum=False).total_steps == 3
    assert optim.lr_scheduler.StepLR is StepLR and set(lr_scheduler.__all__) <= set(vars(lr_scheduler))
