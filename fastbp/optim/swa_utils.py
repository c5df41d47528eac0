"""Averages of weights over a run, with PyTorch's names: equally weighted (SWA) or exponentially (EMA).

>>> ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))
>>> @fb.staged
... def step(x, y):
...     ...
...     opt.step()
...     ema.update_parameters(model)    # or beside the step, behind its call: the same bits

"""
import copy

from fastbp.errors import error
from fastbp.gates.arithmetic import eq, where
from fastbp.gates.shape import narrow
from fastbp.nn.module import Module
from fastbp_ext.gate import tick_state, update
from fastbp_ext.tensor import get_recorder, no_grad, tensor

__all__ = ["AveragedModel", "get_ema_avg_fn", "get_ema_multi_avg_fn", "get_swa_avg_fn", "get_swa_multi_avg_fn"]


class _Average:
    """a = (1 - weight) a + weight p: returned for a tensor, or in place for each of a list.

    weight: 1 - decay, or, where decay is None, 1 / (num_averaged + 1).
    """

    def __init__(self, decay, of_list):
        if decay is not None and not 0 <= decay <= 1:
            raise error(ValueError, "an average: decay can't be this", got=repr(decay), expected="from 0 to 1",
                        fix="decay=0.999")
        self.decay, self._of_list = decay, of_list

    @no_grad()
    def __call__(self, averaged, current, num_averaged):
        weight = 1 / (num_averaged + 1) if self.decay is None else 1 - self.decay
        if not self._of_list:
            return (1 - weight) * averaged + weight * current
        for a, p in zip(averaged, current, strict=True):
            a.copy_((1 - weight) * a + weight * p)
        return None


def get_ema_avg_fn(decay=0.999):
    """An `avg_fn`: decay a + (1 - decay) p"""
    return _Average(float(decay), of_list=False)


def get_ema_multi_avg_fn(decay=0.999):
    """A `multi_avg_fn`: a = decay a + (1 - decay) p for each of a list"""
    return _Average(float(decay), of_list=True)


def get_swa_avg_fn():
    """An `avg_fn`: the equally weighted mean, a + (p - a) / (num_averaged + 1)"""
    return _Average(None, of_list=False)


def get_swa_multi_avg_fn():
    """A `multi_avg_fn`: the equally weighted mean for each of a list"""
    return _Average(None, of_list=True)


class AveragedModel(Module):
    """A copy of a model, `module`, whose parameters are an average of the model's over all `update_parameters`

    avg_fn(averaged, current, num_averaged) returns the average of two tensors, multi_avg_fn changes lists of them in
    place; None: all weigh the same (Izmailov et al., 2018). num_averaged is a 0-d tensor of their dtype. The first
    update copies. Buffers are copied, with use_buffers averaged; integers are copied always. The functions are not
    part of the state dict: `n_averaged`, `module.` and the model's names. ValueError: both functions are given, or
    (in `update_parameters`) another model.
    """

    def __init__(self, model, avg_fn=None, multi_avg_fn=None, use_buffers=False):
        if avg_fn is not None and multi_avg_fn is not None:
            raise error(ValueError, "AveragedModel: two functions", got="avg_fn and multi_avg_fn", expected="one",
                        fix="leave one out")
        self.module = copy.deepcopy(model)
        self.register_buffer("n_averaged", tensor(0, dtype="int64"))
        self.avg_fn, self.multi_avg_fn, self.use_buffers = avg_fn, multi_avg_fn, use_buffers
        average = avg_fn or multi_avg_fn or get_swa_multi_avg_fn()
        decay = average.decay if isinstance(average, _Average) else None
        self._decay = tensor(-1.0 if decay is None else decay, dtype="float64")
        self._weight, self._count = tensor(0.0, dtype="float64"), tensor(0.0, dtype="float64")

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)

    @no_grad()
    def update_parameters(self, model):
        """Take the model's parameters of now into the average."""
        parameters, buffers = self._pairs(model, "parameters"), self._pairs(model, "buffers")
        pairs = [(a, p) for a, p in parameters + (buffers if self.use_buffers else []) if a.dtype.kind == "f"]
        copied = [(a, p) for a, p in parameters + buffers if a.dtype.kind != "f"]
        copied += [] if self.use_buffers else [(a, p) for a, p in buffers if a.dtype.kind == "f"]
        if get_recorder() is not None:
            get_recorder().guard("n_averaged of AveragedModel", lambda: id(self.n_averaged))
        own = isinstance(self.avg_fn or self.multi_avg_fn, (_Average, type(None)))
        first = None if own else eq(self.n_averaged, 0)
        tick_state("average_clock", [self.n_averaged, self._decay, self._weight, self._count])
        if own:
            for a, p in pairs:
                update("average", (a,), p, self._weight)
        elif self.avg_fn is not None:
            for a, p in pairs:
                a.copy_(where(first, p, self.avg_fn(a, p, self._number(a))))
        elif pairs:
            self.multi_avg_fn(*map(list, zip(*pairs, strict=True)), self._number(pairs[0][0]))
            for a, p in pairs:
                a.copy_(where(first, p, a))
        for a, p in copied:
            a.copy_(p)

    def _number(self, like):
        return self._count if like.dtype == self._count.dtype else narrow(self._count)

    def _pairs(self, model, what):
        own, theirs = (dict(getattr(m, f"named_{what}")()) for m in (self.module, model))
        if [(n, t.shape, t.dtype) for n, t in own.items()] != [(n, t.shape, t.dtype) for n, t in theirs.items()]:
            raise error(ValueError, "update_parameters: another model than the one that is averaged",
                        got=f"{what} {[*theirs]}", expected=f"{[*own]}, of the same shapes and dtypes",
                        fix="give the model of which AveragedModel was made")
        return [(own[name], p) for name, p in theirs.items()]
