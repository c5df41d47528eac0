"""Schedules of the learning rate, with PyTorch's names, arguments and numbers.

A schedule sets `group["lr"]` of each parameter group of its optimizer: at its start, and with each `step()`.
Staged steps see it at their next call, and are not recorded anew. `step()` is called between them: behind each
epoch, or behind each batch where a schedule counts batches, as `OneCycleLR` does:

>>> for xb, yb in data.batches(X, y, batch_size=32, shuffle=True):
...     step(xb, yb)
...     scheduler.step()

Several schedules may act on one optimizer: most change the rate that they find. Where a rate can't be what a
schedule makes of it, or a schedule is past its end, ValueError, and nothing is changed.
"""
import bisect
import collections
import collections.abc
import copy
import math
import numbers
import types

from fastbp.errors import StagingError, error
from fastbp.optim.optimizer import Optimizer
from fastbp_ext.tensor import get_recorder

__all__ = ["ConstantLR", "CosineAnnealingLR", "CosineAnnealingWarmRestarts", "ExponentialLR", "LambdaLR", "LinearLR",
           "LRScheduler", "MultiStepLR", "OneCycleLR", "ReduceLROnPlateau", "SequentialLR", "StepLR"]


_BELOW_1 = math.nextafter(1, 0)


def _wrong(kind, name, value, expected):
    return error(ValueError, f"{kind}: {name} can't be this", got=repr(value), expected=expected,
                 fix=f"choose another {name}")


def _int(kind, name, value, least=1):
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise _wrong(kind, name, value, f"an int of {least} or more")
    return int(value)


def _real(kind, name, value, low=0, high=math.inf):
    """value as a float from low to high, both included, and finite."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real or not low <= value <= high or math.isinf(value):
        raise _wrong(kind, name, value, f"a finite number from {low} to {high}")
    return float(value)


def _listed(kind, name, value):
    """The items of a list or another iterable."""
    if not isinstance(value, collections.abc.Iterable):
        raise _wrong(kind, name, value, "a list")
    return list(value)


def _for_each(optimizer, kind, name, value):
    """value, or the values of a list, for each group."""
    groups = optimizer.param_groups
    values = list(value) if isinstance(value, (list, tuple)) else [value] * len(groups)
    if len(values) != len(groups):
        raise _wrong(kind, name, value, f"one, or one for each of {len(groups)} groups")
    return values


class LRScheduler:
    """What schedules share. Subclasses define `get_lr`: the rate of each group for `last_epoch`, a count of steps.

    last_epoch: -1, or the steps that were made before; the groups have an `initial_lr` then. TypeError: no
    optimizer. ValueError: last_epoch without `initial_lr`. StagingError: made, or `step` called, inside a staged
    function.
    """
    _apart = ("optimizer",)    # what a state dict does not have as it is

    def __init__(self, optimizer, last_epoch=-1):
        self._attach(optimizer)
        _int(type(self).__name__, "last_epoch", last_epoch, -1)
        for group in optimizer.param_groups:
            if last_epoch == -1:
                group.setdefault("initial_lr", group["lr"])
            elif "initial_lr" not in group:
                raise error(ValueError, f"{type(self).__name__}: last_epoch needs the rates at the start",
                            got="a group without initial_lr", expected="groups of a state dict that was saved then",
                            fix="load the optimizer's state first, or leave last_epoch out and load the scheduler's")
        self.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
        self.last_epoch, self._step_count = last_epoch, 0
        self._advance(last_epoch + 1, initial=True)    # PyTorch's first step

    def _attach(self, optimizer):
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"{type(self).__name__} takes an optimizer, not {type(optimizer).__name__}")
        self._refuse_while_recording()
        self.optimizer = optimizer

    def _refuse_while_recording(self):
        if get_recorder() is not None:
            raise error(StagingError, f"{type(self).__name__}: a schedule is made or steps inside a staged function",
                        got="a change that would happen at recording only", expected="steps between the calls",
                        fix="call scheduler.step() behind the call of the staged function")

    def get_lr(self):
        """The rate of each group for `last_epoch`, from the one that it has now; `step` asks."""
        raise NotImplementedError(f"{type(self).__name__} defines get_lr()")

    def get_last_lr(self):
        """The rates of the groups as the last step left them."""
        return list(self._last_lr)

    def step(self):
        """Go on by one epoch, or batch."""
        self._advance(self.last_epoch + 1)

    def _advance(self, epoch, initial=False):
        """Set the rates for an epoch; all or, where that raises, nothing is changed."""
        self._refuse_while_recording()
        before, rates = self.last_epoch, self._rates()
        self.last_epoch, self._is_initial = epoch, initial
        try:
            self._set()
        except BaseException:
            self.last_epoch = before
            for group, lr in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = lr
            raise
        finally:
            self._is_initial = False
        self._step_count += 1
        self._last_lr = self._rates()

    def _set(self):
        """Set the rates for last_epoch."""
        rates = self.get_lr()
        self._check_groups(len(rates))
        for group, lr in zip(self.optimizer.param_groups, rates, strict=True):
            if lr != group["lr"]:
                group.set_lr(lr)

    def _check_groups(self, count):
        groups = len(self.optimizer.param_groups)
        if count != groups:
            raise error(ValueError, f"{type(self).__name__}: the optimizer has other groups than it had",
                        got=f"{groups} groups, {count} known", expected="a rate for each",
                        fix="make the scheduler after add_param_group")

    def _rates(self):
        return [group["lr"] for group in self.optimizer.param_groups]

    def _scaled(self, factor):
        """The rates of now, times a factor."""
        return [group["lr"] * factor for group in self.optimizer.param_groups]

    def _restart(self):
        """To epoch 0, from the rates of the start."""
        for group, lr in zip(self.optimizer.param_groups, self.base_lrs, strict=False):
            group["lr"] = lr
        self._advance(0, initial=True)

    def state_dict(self):
        """All but the optimizer, with PyTorch's names; copies. The optimizer's state dict has the rates."""
        return {name: copy.deepcopy(value) for name, value in vars(self).items() if name not in self._apart}

    def load_state_dict(self, state_dict):
        """Take over what `state_dict` (or PyTorch's) gave. ValueError, and nothing changed, where it does not fit.

        Load the optimizer's state too, in any order: rates are there.
        """
        self._check_state(state_dict)
        vars(self).update({name: copy.deepcopy(value) for name, value in state_dict.items()
                           if name in vars(self) and name not in self._apart})

    def _check_state(self, state_dict):
        if not isinstance(state_dict, collections.abc.Mapping):
            raise error(TypeError, "load_state_dict: this is no state", got=type(state_dict).__name__,
                        expected="a dict", fix="give what state_dict() returned")
        own = {name for name in vars(self) if name != "optimizer"}
        missing = sorted(name for name in own - state_dict.keys() if not name.startswith("_"))
        unexpected = sorted(name for name in state_dict.keys() - own if not name.startswith("_"))
        sizes = [name for name in ("base_lrs", "min_lrs", "lr_lambdas", "_schedulers")
                 if name in own and len(state_dict.get(name, ())) != len(vars(self)[name])]
        if missing or unexpected or sizes:
            raise error(ValueError, f"load_state_dict: the state does not fit this {type(self).__name__}",
                        got=f"missing {missing}, unexpected {unexpected}, of another length {sizes}",
                        expected=f"{sorted(own)}", fix="make the scheduler as it was when the state was saved")


class LambdaLR(LRScheduler):
    """lr = initial_lr f(epoch), f a function of the count or a list of them, one for each group

    A state dict has no functions, but what objects that are called hold (`vars`).
    """
    _apart = ("optimizer", "lr_lambdas")

    def __init__(self, optimizer, lr_lambda, last_epoch=-1):
        self._attach(optimizer)
        self.lr_lambdas = _for_each(optimizer, "LambdaLR", "lr_lambda", lr_lambda)
        if not all(map(callable, self.lr_lambdas)):
            raise _wrong("LambdaLR", "lr_lambda", lr_lambda, "a function of the epoch, or a list of them")
        super().__init__(optimizer, last_epoch)

    def get_lr(self):
        return [lr * f(self.last_epoch) for f, lr in zip(self.lr_lambdas, self.base_lrs, strict=True)]

    def state_dict(self):
        kept = [None if isinstance(f, types.FunctionType) else copy.deepcopy(getattr(f, "__dict__", None))
                for f in self.lr_lambdas]
        return super().state_dict() | {"lr_lambdas": kept}

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        for f, kept in zip(self.lr_lambdas, state_dict["lr_lambdas"], strict=True):
            if kept:
                vars(f).update(copy.deepcopy(kept))


class StepLR(LRScheduler):
    """lr *= gamma at each multiple of step_size"""

    def __init__(self, optimizer, step_size, gamma=0.1, last_epoch=-1):
        self.step_size = _int("StepLR", "step_size", step_size)
        self.gamma = _real("StepLR", "gamma", gamma)
        super().__init__(optimizer, last_epoch)

    def get_lr(self):
        falls = self.last_epoch and self.last_epoch % self.step_size == 0
        return self._scaled(self.gamma) if falls else self._rates()


class MultiStepLR(LRScheduler):
    """lr *= gamma at each milestone; at one that comes n times, gamma^n"""

    def __init__(self, optimizer, milestones, gamma=0.1, last_epoch=-1):
        self.milestones = collections.Counter([_int("MultiStepLR", "milestones", m, 0)
                                               for m in _listed("MultiStepLR", "milestones", milestones)])
        self.gamma = _real("MultiStepLR", "gamma", gamma)
        super().__init__(optimizer, last_epoch)

    def get_lr(self):
        times = self.milestones.get(self.last_epoch)
        return self._scaled(self.gamma ** times) if times else self._rates()


class ConstantLR(LRScheduler):
    """lr *= factor at the start, and / factor at total_iters"""

    def __init__(self, optimizer, factor=1 / 3, total_iters=5, last_epoch=-1):
        self.factor = _real("ConstantLR", "factor", factor, 0, 1)
        if not factor:
            raise _wrong("ConstantLR", "factor", factor, "a number above 0: it is taken back by dividing")
        self.total_iters = _int("ConstantLR", "total_iters", total_iters)
        super().__init__(optimizer, last_epoch)

    def get_lr(self):
        if self.last_epoch == 0:
            return self._scaled(self.factor)
        return self._scaled(1 / self.factor) if self.last_epoch == self.total_iters else self._rates()


class LinearLR(LRScheduler):
    """lr times a factor that goes from start_factor to end_factor in total_iters steps, in a line"""

    def __init__(self, optimizer, start_factor=1 / 3, end_factor=1.0, total_iters=5, last_epoch=-1):
        self.start_factor = _real("LinearLR", "start_factor", start_factor, 0, 1)
        if not start_factor:
            raise _wrong("LinearLR", "start_factor", start_factor, "a number above 0: the next rate is a multiple")
        self.end_factor = _real("LinearLR", "end_factor", end_factor, 0, 1)
        self.total_iters = _int("LinearLR", "total_iters", total_iters)
        super().__init__(optimizer, last_epoch)

    def get_lr(self):
        if self.last_epoch == 0:
            return self._scaled(self.start_factor)
        if self._is_initial or self.last_epoch > self.total_iters:
            return self._rates()
        rise = self.end_factor - self.start_factor
        factor = 1 + rise / (self.total_iters * self.start_factor + (self.last_epoch - 1) * rise)
        return self._scaled(max(0.0, factor))    # a line down to 0 may end a rounding below


class ExponentialLR(LRScheduler):
    """lr *= gamma at each step"""

    def __init__(self, optimizer, gamma, last_epoch=-1):
        self.gamma = _real("ExponentialLR", "gamma", gamma)
        super().__init__(optimizer, last_epoch)

    def get_lr(self):
        return self._rates() if self._is_initial else self._scaled(self.gamma)


class CosineAnnealingLR(LRScheduler):
    """lr = eta_min + (initial_lr - eta_min) (1 + cos(pi epoch / T_max)) / 2, from the rate before

    Beyond T_max it rises again (Loshchilov and Hutter, 2017, without restarts).
    """

    def __init__(self, optimizer, T_max, eta_min=0.0, last_epoch=-1):
        self.T_max = _int("CosineAnnealingLR", "T_max", T_max)
        self.eta_min = _real("CosineAnnealingLR", "eta_min", eta_min)
        super().__init__(optimizer, last_epoch)

    def get_lr(self):
        if self._is_initial:
            return self._rates()
        t, low = math.pi / self.T_max, self.eta_min
        if (self.last_epoch - 1 - self.T_max) % (2 * self.T_max) == 0:    # the rate before is eta_min
            return [group["lr"] + (lr - low) * (1 - math.cos(t)) / 2
                    for lr, group in zip(self.base_lrs, self.optimizer.param_groups, strict=False)]
        ratio = ((1 + math.cos(math.pi * self.last_epoch / self.T_max))
                 / (1 + math.cos(math.pi * (self.last_epoch - 1) / self.T_max)))
        return [ratio * (group["lr"] - low) + low for group in self.optimizer.param_groups]


class CosineAnnealingWarmRestarts(LRScheduler):
    """lr = eta_min + (initial_lr - eta_min) (1 + cos(pi T_cur / T_i)) / 2, T_cur the steps since the last restart

    T_i steps lie between restarts, T_0 at first, T_mult times as many after each (Loshchilov and Hutter, 2017).
    """

    def __init__(self, optimizer, T_0, T_mult=1, eta_min=0.0, last_epoch=-1):
        self.T_0 = self.T_i = _int("CosineAnnealingWarmRestarts", "T_0", T_0)
        self.T_mult = _int("CosineAnnealingWarmRestarts", "T_mult", T_mult)
        self.eta_min = _real("CosineAnnealingWarmRestarts", "eta_min", eta_min)
        self.T_cur = last_epoch
        super().__init__(optimizer, last_epoch)

    def get_lr(self):
        weight = (1 + math.cos(math.pi * self.T_cur / self.T_i)) / 2
        return [self.eta_min + (lr - self.eta_min) * weight for lr in self.base_lrs]

    def step(self, epoch=None):
        """Go on by one epoch; or to any, a fraction too: `step(epoch + batch / batches)`."""
        if epoch is None:
            self._advance(self.last_epoch + 1)
        else:
            self._advance(_real("CosineAnnealingWarmRestarts", "epoch", epoch), initial=True)

    def _advance(self, epoch, initial=False):
        before = self.T_cur, self.T_i
        if initial:
            self.T_cur, self.T_i = self._place(epoch)
        else:
            self.T_cur += 1
            if self.T_cur >= self.T_i:
                self.T_cur, self.T_i = self.T_cur % self.T_i, self.T_i * self.T_mult
        try:
            super()._advance(math.floor(epoch))
        except BaseException:
            self.T_cur, self.T_i = before
            raise

    def _place(self, epoch):
        """(T_cur, T_i) of an epoch."""
        if self.T_mult == 1:
            return epoch % self.T_0, self.T_0
        start, length = 0, self.T_0
        while epoch >= start + length:
            start, length = start + length, length * self.T_mult
        return epoch - start, length


class OneCycleLR(LRScheduler):
    """lr from max_lr / div_factor up to max_lr, and down to 1 / final_div_factor of the start; it counts batches

    (Smith and Topin, 2018.) It rises for pct_start of total_steps, or of epochs times steps_per_epoch, by half a
    cosine or, anneal_strategy="linear", by a line; with three_phase it first comes down as it rose. The momentum
    (of Adam and its kin, the first beta) goes the other way, from max_momentum to base_momentum and back. max_lr
    and the momenta are numbers or lists, one for each group. ValueError: a step past the end, `total_steps` steps.
    """

    def __init__(self, optimizer, max_lr, total_steps=None, epochs=None, steps_per_epoch=None, pct_start=0.3,
                 anneal_strategy="cos", cycle_momentum=True, base_momentum=0.85, max_momentum=0.95, div_factor=25.0,
                 final_div_factor=1e4, three_phase=False, last_epoch=-1):
        kind = "OneCycleLR"
        self._attach(optimizer)
        if total_steps is None:
            if epochs is None or steps_per_epoch is None:
                raise _wrong(kind, "total_steps", total_steps, "total_steps, or epochs and steps_per_epoch")
            total_steps = _int(kind, "epochs", epochs) * _int(kind, "steps_per_epoch", steps_per_epoch)
        self.total_steps = _int(kind, "total_steps", total_steps)
        rises = _real(kind, "pct_start", pct_start, 0, 0.5 if three_phase else 1) * self.total_steps
        if anneal_strategy not in ("cos", "linear"):
            raise _wrong(kind, "anneal_strategy", anneal_strategy, "'cos' or 'linear'")
        self._anneal_func_type = anneal_strategy
        names = ("end_step", "start_lr", "end_lr", "start_momentum", "end_momentum")
        up = (rises - 1, "initial_lr", "max_lr", "max_momentum", "base_momentum")
        down = (2 * rises - 2, "max_lr", "initial_lr", "base_momentum", "max_momentum")
        out = ((self.total_steps - 1, "initial_lr", "min_lr", "max_momentum", "max_momentum") if three_phase else
               (self.total_steps - 1, "max_lr", "min_lr", "base_momentum", "max_momentum"))
        self._schedule_phases = [dict(zip(names, phase, strict=True))
                                 for phase in ((up, down, out) if three_phase else (up, out))]
        self.cycle_momentum = bool(cycle_momentum)
        if self.cycle_momentum:
            self.use_beta1 = "betas" in optimizer.defaults
            if not self.use_beta1 and "momentum" not in optimizer.defaults:
                raise error(ValueError, "OneCycleLR: the optimizer has no momentum to cycle",
                            got=type(optimizer).__name__, expected="SGD, RMSprop, Adam and its kin",
                            fix="cycle_momentum=False")
        for name, value in (("div_factor", div_factor), ("final_div_factor", final_div_factor)):
            if not _real(kind, name, value):
                raise _wrong(kind, name, value, "a number above 0")
        made = []
        for group, top, low, high in zip(optimizer.param_groups, *(
                [_real(kind, name, x) for x in _for_each(optimizer, kind, name, value)]
                for name, value in (("max_lr", max_lr), ("base_momentum", base_momentum),
                                    ("max_momentum", max_momentum))), strict=True):
            new = {"initial_lr": top / div_factor, "max_lr": top, "min_lr": top / div_factor / final_div_factor}
            if self.cycle_momentum:
                for momentum in (low, high):
                    group.checked(self._momentum(group, momentum))
                new |= {"base_momentum": low, "max_momentum": high}
            made.append(new)
        if last_epoch == -1:
            for group, new in zip(optimizer.param_groups, made, strict=True):
                group.update(new)
        super().__init__(optimizer, last_epoch)

    def _momentum(self, group, momentum):
        return {"betas": (momentum, group["betas"][1])} if self.use_beta1 else {"momentum": momentum}

    def get_lr(self):
        phase, done = self._place()
        return [self._lr(group, phase, done) for group in self.optimizer.param_groups]

    def _set(self):
        phase, done = self._place()
        self._check_groups(len(self.base_lrs))
        for group in self.optimizer.param_groups:
            group.set_lr(self._lr(group, phase, done))
            if self.cycle_momentum:
                momentum = self._between(group[phase["start_momentum"]], group[phase["end_momentum"]], done)
                group.set(self._momentum(group, min(momentum, _BELOW_1)))

    def _place(self):
        """The phase of last_epoch, and how much of it is done; a little more than all of it at step total_steps."""
        if self.last_epoch > self.total_steps:
            raise error(ValueError, "OneCycleLR: the schedule is at its end", got=f"step {self.last_epoch}",
                        expected=f"at most {self.total_steps} steps", fix="give it the total_steps of the whole run")
        start = 0.0
        *phases, last = self._schedule_phases
        for phase in phases:
            if self.last_epoch <= phase["end_step"]:
                break
            start = phase["end_step"]
        else:
            phase = last
        length = phase["end_step"] - start
        done = (self.last_epoch - start) / length if length > 0 else 1.0
        return phase, done if self._anneal_func_type == "linear" else math.cos(math.pi * done) + 1

    def _lr(self, group, phase, done):
        return max(0.0, self._between(group[phase["start_lr"]], group[phase["end_lr"]], done))

    def _between(self, start, end, done):
        return (end - start) * done + start if self._anneal_func_type == "linear" else end + (start - end) / 2 * done


class SequentialLR(LRScheduler):
    """One scheduler after the other: schedulers[i] until milestones[i], where the next begins at its epoch 0

    A run is resumed by `load_state_dict`: last_epoch is -1.
    """
    _apart = ("optimizer", "_schedulers")

    def __init__(self, optimizer, schedulers, milestones, last_epoch=-1):
        self._attach(optimizer)
        kind = "SequentialLR"
        schedulers = _listed(kind, "schedulers", schedulers)
        milestones = [_int(kind, "milestones", m) for m in _listed(kind, "milestones", milestones)]
        for scheduler in schedulers:
            if not isinstance(scheduler, LRScheduler) or isinstance(scheduler, (ReduceLROnPlateau, SequentialLR)):
                raise TypeError(f"SequentialLR: schedulers that need no metrics and are no sequence, "
                                f"not {type(scheduler).__name__}")
            if scheduler.optimizer is not optimizer:
                raise _wrong(kind, "schedulers", scheduler, "schedulers of the optimizer that is given")
        if last_epoch != -1:
            raise _wrong(kind, "last_epoch", last_epoch, "-1: load_state_dict resumes a run")
        if not schedulers or len(milestones) != len(schedulers) - 1 or sorted(milestones) != milestones:
            raise _wrong(kind, "milestones", milestones,
                         f"one between each two of {len(schedulers)} schedulers, in their order")
        self._schedulers, self._milestones = schedulers, milestones
        self.last_epoch = 0
        for group in optimizer.param_groups:    # as they were before the schedulers were made
            group["lr"] = group["initial_lr"]
        schedulers[0]._advance(0, initial=True)
        self._last_lr = schedulers[0].get_last_lr()

    def step(self):
        """Go on by one epoch, or batch."""
        epoch = self.last_epoch + 1
        n = bisect.bisect_right(self._milestones, epoch)
        scheduler = self._schedulers[n]
        if n and self._milestones[n - 1] == epoch:
            scheduler._restart()
        else:
            scheduler.step()
        self.last_epoch, self._last_lr = epoch, scheduler.get_last_lr()

    def state_dict(self):
        return super().state_dict() | {"_schedulers": [scheduler.state_dict() for scheduler in self._schedulers]}

    def _check_state(self, state_dict):
        super()._check_state(state_dict)
        for scheduler, state in zip(self._schedulers, state_dict["_schedulers"], strict=True):
            scheduler._check_state(state)

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        for scheduler, state in zip(self._schedulers, state_dict["_schedulers"], strict=True):
            scheduler.load_state_dict(state)


class ReduceLROnPlateau(LRScheduler):
    """lr *= factor where a number, as a validation loss, was no better than the best for more than patience steps

    Better is below best (1 - threshold), or with threshold_mode="abs" below best - threshold; above best (1 +
    threshold) or best + threshold with mode="max". For `cooldown` steps behind a fall none counts. No rate falls
    below min_lr, a number or a list, one for each group, nor by eps or less.
    """

    def __init__(self, optimizer, mode="min", factor=0.1, patience=10, threshold=1e-4, threshold_mode="rel",
                 cooldown=0, min_lr=0, eps=1e-8):
        kind = "ReduceLROnPlateau"
        self._attach(optimizer)
        if mode not in ("min", "max"):
            raise _wrong(kind, "mode", mode, "'min' or 'max'")
        if threshold_mode not in ("rel", "abs"):
            raise _wrong(kind, "threshold_mode", threshold_mode, "'rel' or 'abs'")
        self.factor = _real(kind, "factor", factor, 0, _BELOW_1)
        self.default_min_lr = None if isinstance(min_lr, (list, tuple)) else _real(kind, "min_lr", min_lr)
        self.min_lrs = [_real(kind, "min_lr", x) for x in _for_each(optimizer, kind, "min_lr", min_lr)]
        self.patience, self.cooldown = _int(kind, "patience", patience, 0), _int(kind, "cooldown", cooldown, 0)
        self.eps, self.threshold = _real(kind, "eps", eps), _real(kind, "threshold", threshold)
        self.mode, self.threshold_mode = mode, threshold_mode
        self.mode_worse = self.best = math.inf if mode == "min" else -math.inf
        self.cooldown_counter = self.num_bad_epochs = self.last_epoch = 0
        self._last_lr = self._rates()

    def step(self, metrics):
        """Go on by one epoch, which gave this number: a Python number or a tensor of one element."""
        self._refuse_while_recording()
        try:
            value, groups = float(metrics), self.optimizer.param_groups
        except (TypeError, ValueError, RuntimeError):
            raise _wrong("ReduceLROnPlateau", "metrics", metrics, "a number, or a tensor of one element") from None
        if len(self.min_lrs) != len(groups):
            if self.default_min_lr is None:
                raise error(ValueError, "ReduceLROnPlateau: the optimizer has other groups than it had",
                            got=f"{len(groups)} groups, min_lr for {len(self.min_lrs)}", expected="one for each",
                            fix="give min_lr as one number, or make the scheduler after add_param_group")
            self.min_lrs = [self.default_min_lr] * len(groups)
        self.last_epoch += 1
        better = self._is_better(value)
        self.best = value if better else self.best
        self.num_bad_epochs = 0 if better else self.num_bad_epochs + 1
        if self.in_cooldown:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            for group, low in zip(groups, self.min_lrs, strict=True):
                lr = max(group["lr"] * self.factor, low)
                if group["lr"] - lr > self.eps:
                    group["lr"] = lr
            self.cooldown_counter, self.num_bad_epochs = self.cooldown, 0
        self._last_lr = self._rates()

    @property
    def in_cooldown(self):
        """Whether a fall was so near that no step counts."""
        return self.cooldown_counter > 0

    def _is_better(self, value):
        sign = 1 if self.mode == "min" else -1
        if self.threshold_mode == "rel":
            return sign * value < sign * self.best * (1 - sign * self.threshold)
        return sign * value < sign * self.best - self.threshold
