"""staged: a function is recorded once and replayed, forward, backward and update, in one call."""
import collections
import functools
import inspect
import itertools
import math
import sys
import time
from typing import NamedTuple

import numpy as np

from fastbp.anomaly import restoring
from fastbp.copying import copied, found_by_name
from fastbp.data.batching import DataLoader
from fastbp.differentiate import tree_map
from fastbp.errors import StagingError, error
from fastbp.gates.arithmetic import add
from fastbp.gates.shape import copy, memory_order
from fastbp.planner import plan
from fastbp.planner.listing import Listing
from fastbp.recording import Recording
from fastbp_ext.gate import Gate, clone
from fastbp_ext.program import Program
from fastbp_ext.replay import Bound, Caller, Feed, Replay, called_quickly, is_number, nest_of, spec_of
from fastbp_ext.tensor import (
    Tensor,
    differentiate_inside,
    empty,
    from_numpy,
    is_checked,
    is_replayed,
    no_grad,
    tensor,
    with_recorder,
)


def _no_graph(*unused):
    raise error(StagingError, "backward: the result of a staged function has no graph", got="a result of a replay",
                expected="backward inside the staged function", fix="call backward in it, or fb.grad around it, "
                "or function.eager(...)")


# Results that a gradient would follow from end here: a backward that comes so far is refused.
_END = (Gate("staged", "y = f(x), replayed", form="copy", inputs=["x"], vjp=[_no_graph], rule=lambda x: (x.shape, {})),
        (tensor(0.0, requires_grad=True),))

_accumulate = no_grad()(add)

HEALTHS = 1000    # that a step keeps, the newest


class About(NamedTuple):
    """What a replay was made from."""
    recording: Recording
    plan: object
    arguments: list    # (name, text) of each, to say what is new in another recording
    why: str
    spans: list        # (stage, its instructions, its stages of Python), by their numbers

    @property
    def clocks(self):
        """The hyperparameters that stages change: an optimizer's counts of steps."""
        return [h for stage in self.plan.stages if stage.form == "update" and not stage.outputs
                for h in stage.what.hyper]


def _record(recording, fn, args, kwargs):
    """fn on recorded tensors: specs of args and kwargs, the inputs, what it returned."""
    leaves, given, inputs, known = [], [], [], {}
    specs = tuple([spec_of(a, leaves, given) for a in args]), spec_of(kwargs, leaves, given)
    for leaf, argument in zip(leaves, given, strict=True):
        if not isinstance(leaf, Tensor):
            inputs.append(recording.new_input(np.float64(leaf), weak=True))
            continue
        t = known.get(id(argument))    # a tensor given twice is one, for its gradient
        if t is None:
            t = recording.new_input(leaf, requires_grad=getattr(argument, "requires_grad", False),
                                    name=getattr(argument, "name", None))
            if t.requires_grad:
                known[id(argument)] = t
        inputs.append(t)
    left = iter(inputs)
    args, kwargs = tree_map(lambda x: next(left) if _is_leaf(x) else x, (args, kwargs))
    result = with_recorder(recording, _named, fn, recording, args, kwargs)
    recording.first.clear()    # the first call's arguments are not kept
    for module in recording.switched.values():
        recording.guard_mode(module)
    return specs, inputs, result


def _is_leaf(x):
    return isinstance(x, (Tensor, np.ndarray)) or is_number(x)


def _named(fn, recording, args, kwargs):
    """fn(*args, **kwargs); when it returns, its variables name the tensors that they hold."""
    code = getattr(inspect.unwrap(fn), "__code__", None)
    if sys.getprofile() is not None:    # a profiler is at work: there are no names then
        return fn(*args, **kwargs)

    def watch(frame, event, arg):
        if event == "return" and frame.f_code is code:
            for name, value in frame.f_locals.items():
                if isinstance(value, Tensor) and not value.name:
                    recording.names.setdefault(id(value), name)

    try:
        sys.setprofile(watch)
        return fn(*args, **kwargs)
    finally:
        sys.setprofile(None)


def _hides(x):
    """Whether recorded tensors lie within x, which is no nest that is known."""
    if isinstance(x, (set, frozenset)):
        inside = x
    else:
        inside = vars(x).values() if hasattr(x, "__dict__") and not callable(x) else ()
    return inspect.isgenerator(x) or any(isinstance(t, Tensor) and t._abstract for t in inside)


def _own_result(y):
    """A result as a replay gives it: its memory is its own, and a gradient that would follow from it ends."""
    if not isinstance(y, Tensor):
        return y
    return _END[0](y.detach().requires_grad_()) if y.requires_grad else clone(y)


class _Results:
    """Results of a recording: each gets memory of its own; what shares it is copied at the end."""

    def __init__(self, recording):
        self.recording = recording
        self.follows = []    # for each result whether a gradient would follow from it
        self.numbers = {}    # id of what `own` returned: its number
        self.taken = {id(t._root) for t in recording.inputs}

    def own(self, t):
        if not isinstance(t, Tensor):
            if _hides(t):
                raise error(StagingError, "a staged function returns tensors inside something else",
                            got=type(t).__name__, expected="tensors, and tuples, lists and dicts of them",
                            fix="return the tensors themselves")
            return t
        follows = t.requires_grad
        if (not t._abstract or id(t._root) in self.taken or not t._is_whole or t._offset
                or any(step < 0 for step in t.strides)):
            t = copy(t.detach())
        self.taken.add(id(t._root))
        self.numbers[id(t)] = len(self.follows)
        self.follows.append(follows)
        self.recording.results.append(t)
        return t

    def of(self, result, grads):
        """The results of the function, and for each (leaf, gradient) the gradient as a result, or None."""
        with no_grad():
            return tree_map(self.own, result), [(leaf, g if g is None else self.own(g.detach())) for leaf, g in grads]


def _replay(recording, fn, recorded, arena, keep_grads, why):
    """The replay of a recording; `recorded` is what `_record` returned."""
    (args, kwargs), inputs, result = recorded
    by_id = {id(t): n for n, t in reversed([*enumerate(inputs)])}
    leaked = recording.misplaced()
    if leaked is not None:
        raise error(StagingError, "a tensor that another staged function recorded is used", got=repr(leaked),
                    expected="arguments, captured tensors, and what gates make of them",
                    fix="return it there, and use what the call returns")
    grads = []
    for leaf, g in recording.grads.values():
        if leaf._abstract and id(leaf) not in by_id or id(leaf) in recording.made:
            continue    # made in the function: it is gone at its end
        grads.append((leaf, None if id(leaf) in recording.updated and not keep_grads else g))
    results = _Results(recording)
    result, grads = with_recorder(recording, results.of, result, grads)
    made = plan(recording)
    program, spans = Program(), []
    for group, stages in itertools.groupby(made.stages, key=lambda stage: stage.group):
        if group is not None:
            program.begin_group({id(t) for s in group.stages for t in s.writes if id(made.owner(t)) in made.tiled},
                                group.span, group.grain)
        for stage in stages:
            before = program.size
            stage.lower_to(program)
            spans.append((stage, *map(range, before, program.size)))
        if group is not None:
            program.end_group()
    program.seal()
    number = {leaf: -1 if g is None else results.numbers[id(g)] for leaf, g in grads}
    replay = Replay(
        program, arena, made.arena_size, args=args, kwargs=kwargs,
        inputs=[program.slot_of(t) for t in inputs],
        places=[(slot, made.offsets[id(home)]) for slot, home in _homes(program, made)],
        results=[(t, program.slot_of(t._root), follows)
                 for t, follows in zip(recording.results, results.follows, strict=True)],
        nest=nest_of(result, results.numbers),
        indices=[(x, by_id.get(id(x._root), -1), _index_memory(y), program.slot_of(y), check, ignored)
                 for x, y, check, ignored in recording.indices],
        leaf_grads=[(leaf, n) for leaf, n in number.items() if id(leaf) not in by_id],
        argument_grads=[(by_id[id(leaf)], n, id(leaf) in recording.accumulates)
                        for leaf, n in number.items() if id(leaf) in by_id],
        entry_grads=[(leaf, program.slot_of(g._root), memory_order(g)) for leaf, g in recording.entry_grads],
        grad_guards=recording.grad_guards, guards=recording.guards,
        watched=recording.watched, captured=made.captured(),
        written=list(recording.written.values()), end=_END, add=_accumulate)
    replay.about = About(recording, made, _described(fn, args, kwargs), why, spans)
    return replay


def _index_memory(y):
    return empty(y.shape, "int64")


def _homes(program, made):
    """(slot, tensor whose place in the arena it has) for each slot in the arena."""
    seen = set()
    for stage in made.stages:
        for t in (*stage.reads, *stage.writes):
            home = made.owner(t)
            if id(home) in made.offsets and id(t._root) not in seen:
                seen.add(id(t._root))
                yield program.slot_of(t._root), home


def _described(fn, args, kwargs):
    """[(name, text)] of arguments, by the names of fn's parameters."""
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names += [f"argument {n}" for n in range(len(names), len(args))]
    return [*zip(names, map(repr, args), strict=False), *zip(kwargs.value, map(repr, kwargs.parts), strict=True)]


class Memory(NamedTuple):
    """Bytes of an arena, and of all its buffers if each had memory of its own."""
    arena: int
    buffers: int

    @property
    def share(self):
        """arena / buffers, 0 where there are none."""
        return self.arena / self.buffers if self.buffers else 0.0

    def __str__(self):
        return f"arena {self.arena:,} bytes, {self.share:.0%} of {self.buffers:,} in all buffers"


@called_quickly
class Staged(Caller):
    """A function that is recorded once for each signature of its arguments, then replayed.

    Call it as the function. `eager` runs the function itself, gate by gate: the same bits. A
    signature is the structure, shapes, dtypes and requires_grad of the arguments; Python numbers
    are inputs, other values are compared. It pickles as its function does, and deep-copies with what
    that closes over; a copy records anew. (One at the top level of a module stays the one, as functions do, and
    what any finds there by name stays what it is.) StagingError: the function looks at the values of its
    tensors, or does what can't be replayed; nothing is changed then.
    """

    def __init__(self, fn, keep_grads=False):
        super().__init__(fn)
        functools.update_wrapper(self, fn, updated=())
        self.__name__ = getattr(fn, "__name__", type(fn).__name__)    # modules and partials have none
        self._keep_grads = keep_grads
        self._log = []    # one line for each recording
        self._examined = None    # the function with the measurements of its layers
        self._healths, self._steps = collections.deque(maxlen=HEALTHS), 0

    def __get__(self, instance, owner):
        return self if instance is None else Bound(self, instance)

    def __reduce__(self):
        # Decorated where it is defined it is found by its name, as functions are.
        if found_by_name(self.function, self):
            return self.__qualname__
        return type(self), (self.function, self._keep_grads)

    def __deepcopy__(self, memo):
        if found_by_name(self.function, self):
            return self
        made = memo[id(self)] = type(self).__new__(type(self))
        made.__init__(copied(self.function, memo), self._keep_grads)
        return made

    def eager(self, *args, **kwargs):
        """The function gate by gate, every value at hand. NumPy arrays are given as tensors, as in a replay."""
        args, kwargs = tree_map(lambda x: from_numpy(x) if isinstance(x, np.ndarray) else x, (args, kwargs))
        return self.function(*args, **kwargs)

    def _unreplayed(self, args, kwargs, staging):
        """A call where gates are recorded, differentiated or checked, or (not `staging`) nothing is replayed at all."""
        if is_checked():
            return self._checked(args, kwargs)
        return self.function(*args, **kwargs) if staging else self.eager(*args, **kwargs)

    def _checked(self, args, kwargs):
        """A call within `detect_anomaly`: gate by gate; where it raises, what it changed is put back.

        Other staged functions are inlined, and gradients end where they do after a replay.
        """
        recording = (replay := self.replay_for(args, kwargs)).about.recording
        leaves = [leaf for leaf, _ in recording.grads.values() if not leaf._abstract]
        given = []
        tree_map(lambda x: isinstance(x, Tensor) and given.append(x), (args, kwargs))
        result = restoring((*replay.written, *replay.about.clocks), (*leaves, *given), differentiate_inside,
                           self.eager, *args, **kwargs)
        for leaf in leaves if not self._keep_grads else ():
            if id(leaf) in recording.updated:
                leaf.grad = None
        return tree_map(_own_result, result)

    def repeat(self, times, *args, **kwargs):
        """As `times` calls on the same arguments; returns what the last returns.

        Ctrl-C stops between two of them.
        """
        if isinstance(times, bool) or not hasattr(times, "__index__") or times < 1:
            raise error(ValueError, "repeat: the number of times can't be this", got=repr(times),
                        expected="an int of 1 or more", fix="step.repeat(1000, x, y)")
        if is_replayed():
            return self.run_often(times, args, kwargs)
        for _ in range(times):
            result = self(*args, **kwargs)
        return result

    # --- recording

    def _record(self, args, kwargs, attempt):
        """Record the function for these arguments; what `Caller` asks for where no program fits."""
        if attempt > 3:
            raise error(StagingError, f"{self.__name__}: a program does not fit the call it was recorded for",
                        got=f"{attempt - 1} recordings", expected="one",
                        fix="keep modes and options still while it is called, or give the arguments another form")
        why = self._why(args, kwargs)
        began = time.perf_counter()
        recording = Recording()
        try:
            recorded = _record(recording, self.function, args, kwargs)
            replay = _replay(recording, self.function, recorded, self.arena, self._keep_grads, why)
        except BaseException:
            for take_back in reversed(recording.undo):
                take_back()
            raise
        self._log.append(f"{time.strftime('%H:%M:%S')}, {1e3 * (time.perf_counter() - began):.1f} ms, {why}: "
                         + ", ".join(f"{name} {text}" for name, text in replay.about.arguments))
        self.keep(replay)

    def _why(self, args, kwargs):
        """Why the programs that there are do not fit."""
        replays = self.replays
        if not replays:
            return "the first call"
        now = _described(self.function, tuple([spec_of(a, [], []) for a in args]), spec_of(kwargs, [], []))
        before = min((r.about.arguments for r in replays),
                     key=lambda other: sum(a != b for a, b in zip(now, other, strict=False)))
        new = [name for name, text in now if (name, text) not in before]
        if new:
            return f"new {', '.join(new)}"
        last = replays[0]
        changed = [what for what, call, value in last.guards if call() != value]
        if changed:
            return f"{changed[0]} changed"
        if any(not np.array_equal(array, before, equal_nan=array.dtype.kind == "f") for array, before in last.watched):
            return "an array that was read at recording changed"
        if any((leaf.grad is not None) != had for leaf, had in last.grad_guards):
            return "gradients came or went"
        if any(t.requires_grad != needs for t, needs in zip(last.captured, last.needs, strict=True)):
            return "requires_grad of a parameter changed"
        if any(t._address != address for t, address in zip(last.captured, last.addresses, strict=True)):
            return "a parameter has other memory"
        return "the mode of gradients, denormals or precision changed, or labels are ignored"

    @property
    def recordings(self):
        """How many times the function was recorded."""
        return len(self._log)

    # --- what it shows

    def _last(self):
        if not self.replays:
            raise error(StagingError, "nothing is recorded yet", got="no program", expected="a call before",
                        fix="call the staged function once")
        return self.replays[0]

    def stages(self):
        """The program used last, as a listing: str() of it numbers the forward stages in order."""
        about = self._last().about
        return Listing(about.recording, about.plan)

    def explain(self):
        """What was recorded, when and why; what the program used last took for granted. A text."""
        lines = [f"{self.__name__}: recorded {self.recordings} times, {len(self.replays)} programs kept"]
        lines += [f"  {n}. at {text}" for n, text in enumerate(self._log, 1)]
        if self.replays:
            replay, listing = self._last(), self.stages()
            lines.append(f"the program used last: {len(replay.program)} instructions, {self.memory}")
            made = replay.about.plan.constants
            written = {id(t._root) for t in replay.written}
            captured = {id(t._root): t for t in reversed(replay.captured) if id(t._root) not in made}
            captured = dict(reversed(captured.items())) | {id(t._root): t for t in replay.written}
            lines += _section("captured by reference", [
                f"{listing.name(t)} {t.dtype.name} {t.shape}" + (", changed by it" if root in written else "")
                for root, t in captured.items()])
            lines += _section("constants", [
                f"{listing.name(t)} in {stage.name}" for stage in replay.about.plan.stages for t in stage.inputs
                if id(t._root) in made])
            lines += _section("holds while these stay", sorted({what for what, _, _ in replay.guards}))
            lines += _section("stages of Python, which take the interpreter's lock", [
                stage.name for stage in replay.about.plan.stages if stage.form == "call"])
        return "\n".join(lines)

    @property
    def memory(self):
        """The memory of the program used last: the arena against the sum of its buffers, in bytes."""
        plan = self._last().about.plan
        return Memory(plan.arena_size, plan.whole_size)

    def profile(self, *args, seconds=0.5, **kwargs):
        """How long each stage takes on these arguments, and how near it comes to the machine's limits.

        The function runs for about `seconds`; what it changes is put back afterwards. (Numbers that it draws at
        random stay drawn, and an optimizer's state, which the first call makes, stays made.) The str() of what
        is returned is a table; its `rows` are the stages: mean seconds of a run that was not disturbed; FLOP:
        2 m n k for a product (m n more with its bias), an optimizer's formula, else one for each element of the
        largest operand (two where it multiplies and adds); bytes that are read and written; and the share of the
        peak of this machine, which is measured first: multiply-adds in a matrix product, or a copy of as many
        bytes. ValueError: `seconds` is no number above 0.
        """
        # It measures the machine with staged functions.
        from fastbp.profile import profile_of
        if isinstance(seconds, bool) or not is_number(seconds) or not 0 < seconds < math.inf:
            raise error(ValueError, "profile: seconds can't be this", got=repr(seconds), expected="a number above 0",
                        fix="step.profile(x, y, seconds=0.5)")
        return profile_of(*self._rehearsed("profile", args, kwargs, seconds))

    def health(self, *args, **kwargs):
        """The health of the gradients on these arguments: a `fastbp.show.health.Health`, whose str() is a table.

        For each layer (a call of a module that calls no other; outside of modules a product or an activation):
        the norms of its output, of the gradient for it, of its parameters, their gradients and updates; the
        shares of zeros, of dead ReLUs, of saturated units; the ratio of the gradients from layer to layer; a
        verdict in words, and what usually helps. The step runs once, in a program of its own; what it changes is
        put back afterwards, as `profile` does. StagingError: the function has no layers.
        """
        _, (_, numbers, layout) = self._examination()._rehearsed("health", args, kwargs)
        return _health(layout, numbers)

    @property
    def health_log(self):
        """[(step, Health)] of `epoch(..., health=k)`, the newest last; steps count from 1 since the last `reset`."""
        return list(self._healths)

    def _examination(self):
        """The function with the measurements of its layers: a program of its own, the same bits."""
        if self._examined is None:
            from fastbp.show.layers import examined
            self._examined = Staged(examined(self.function), self._keep_grads)
        return self._examined

    def _rehearsed(self, what, args, kwargs, seconds=0):
        """The replay for these arguments and what `rehearse` gives; StagingError where nothing is replayed."""
        _refuse_where_nothing_is_replayed(what)
        replay = self.replay_for(args, kwargs)
        state = list({id(t): t for t in (*replay.written, *replay.about.clocks)}.values())
        for result in self.rehearse(args, kwargs, replay, state, seconds):
            return replay, result
        raise error(StagingError, f"{what}: the program fits no more", got="another mode or option",
                    expected="those that it was recorded with", fix="change them between calls")

    def reset(self):
        """Forget all programs, the memory that they share, and the log of healths."""
        self.forget()
        self._examined, self._steps = None, 0
        self._healths.clear()

    # --- whole epochs

    def epoch(self, *arrays, batch_size=None, shuffle=False, rng=None, progress=None, health=None, means=False,
              _before=()):
        """One pass over the rows of `arrays` in batches; the mean of the batch losses, by rows.

        The batches and their order are those of `data.batches`; the step is called with each, and
        returns one scalar or a tuple that begins with it. All labels are checked before the first
        batch. `progress(done, total)` is called at most ten times a second and at the end. Ctrl-C
        stops between two batches.

        One `data.DataLoader` may stand for the arrays, batch_size, shuffle and rng: its place moves on with
        each batch, and the rest of an epoch that was loaded gives the mean of the whole epoch.

        means=True: a list of the means of all scalars that the tuple begins with, as `return loss, error`;
        progress(done, total, means so far).

        health=k: every k-th step, counted over all epochs since the last `reset`, runs through a second program
        that measures its layers, with the same bits; `health_log` has (step, Health) of the last 1,000.
        ValueError: k is no int of 1 or more. StagingError: nothing is replayed here (FASTBP_STAGED=0).
        """
        if progress is not None and not callable(progress):
            raise error(TypeError, "epoch: progress is no function", got=repr(progress),
                        expected="a function of the rows done and their total", fix="fb.fit shows a bar of its own")
        if health is not None:
            if isinstance(health, bool) or not hasattr(health, "__index__") or health < 1:
                raise error(ValueError, "epoch: health can't be this", got=repr(health),
                            expected="an int of 1 or more, or None", fix="health=100: every 100th step")
            _refuse_where_nothing_is_replayed("epoch: health")
        loader = _loader(arrays, batch_size, shuffle, rng)
        n, size = loader.rows, loader.batch_size
        arrays = [a.numpy() if isinstance(a, Tensor) else np.asarray(a) for a in loader.arrays]
        progress = at_times(progress, n, means)
        if not is_replayed():
            found = self._epoch_by_calls(arrays, loader, loader.begin(sums=True), progress, None, _before)
            return found if means else found[0]
        # Both programs are recorded, and all labels checked, before anything changes or is drawn.
        arrays = [from_numpy(np.ascontiguousarray(a)) for a in arrays]
        parts = [self._part(arrays, start, stop, rows_, _before)
                 for start, stop, rows_ in ((0, n - n % size, size), (n - n % size, n, n % size)) if stop > start]
        for part in parts if health is not None else ():
            self._examination().replay_for(part.args, {})
        chosen = loader.begin(sums=True)
        if any(part.columns is None or part.mixed(chosen) for part in parts):
            found = self._epoch_by_calls([a.numpy() for a in arrays], loader, chosen, progress, health, _before)
            return found if means else found[0]
        if chosen is not None:
            chosen = from_numpy(np.ascontiguousarray(chosen, dtype=np.int64))
        place = loader.keep(min(part.replay.scalars for part in parts))
        totals = place[1:]
        for part in parts:
            feed = Feed([slot for slot, *_ in part.columns], [values for _, values, *_ in part.columns], chosen,
                        part.rows)
            while place[0] < part.stop:
                at = int(place[0])
                left = self._steps_left(health)    # until one is examined
                if left == 0:
                    batch = _batch(arrays, chosen, at, part.rows)
                    totals += part.rows * np.array(scalars_of(self._examined_step(batch, _before))[:len(totals)])
                    place[0] += part.rows
                else:
                    stop = part.stop if health is None else min(part.stop, at + left * part.rows)
                    if not self.run_rows(part.args, part.replay, feed, stop, part.rows, from_numpy(place)):
                        raise error(StagingError, "epoch: the program fits no more", got="another mode or option",
                                    expected="those that the epoch began with", fix="change them between epochs")
                    self._steps += (int(place[0]) - at) // part.rows
                progress(int(place[0]), totals)
        loader.end()
        found = (totals / n).tolist()
        return found if means else found[0]

    def _steps_left(self, health):
        """How many steps come before the next that is examined."""
        return -1 if health is None else health - 1 - self._steps % health

    def _examined_step(self, batch, before):
        """What one step returns that is examined."""
        result, numbers, layout = self._examination()(*before, *batch)
        self._steps += 1
        self._healths.append((self._steps, _health(layout, numbers)))
        return result

    def _part(self, arrays, start, stop, size, before):
        args = (*before, *(from_numpy(a.numpy()[start:start + size]) for a in arrays))
        replay = self.replay_for(args, {})
        if not replay.scalars:
            raise _no_scalar("epoch")
        first = replay.inputs - len(arrays)
        return _Part(start, stop, size, args, replay, replay.columns(first, arrays))

    def _epoch_by_calls(self, arrays, loader, chosen, progress, health, before):
        def step(*batch):
            if self._steps_left(health) == 0:
                return self._examined_step(batch, before)
            result = self(*before, *batch)
            self._steps += 1
            return result
        return means_by_calls(step, arrays, loader.batch_size, chosen, progress, loader)


def means_by_calls(step, arrays, size, chosen, progress, loader=None):
    """`epoch` by calls of the step: a list of means, by rows. After each, progress(rows done, the sums so far).

    loader: where the epoch begins, and whose place moves on; else the first row.
    """
    loader = loader or DataLoader(*arrays, batch_size=size)
    n, place = len(arrays[0]), loader.place
    while place[0] < n:
        start = int(place[0])
        part = slice(start, start + size) if chosen is None else chosen[start:start + size]
        batch = [a[part] for a in arrays]
        found = scalars_of(step(*batch))
        if not found:
            raise _no_scalar("epoch")
        place = loader.keep(len(found))
        place[1:] += len(batch[0]) * np.array(found[:len(place) - 1])
        place[0] += len(batch[0])
        progress(int(place[0]), place[1:])
    loader.end()
    return (place[1:] / n).tolist()


def _loader(arrays, batch_size, shuffle, rng):
    """The DataLoader that an epoch is given, or one of its arrays and options."""
    if len(arrays) != 1 or not isinstance(arrays[0], DataLoader):
        return DataLoader(*arrays, batch_size=batch_size, shuffle=shuffle, rng=rng)
    if batch_size is not None or shuffle or rng is not None:
        raise error(TypeError, "epoch: a DataLoader has its own batch_size, shuffle and rng", got="one, and options",
                    expected="one alone", fix="step.epoch(loader)")
    return arrays[0]


def scalars_of(result):
    """The values of the 0-d tensors of floats that a step's result begins with."""
    parts = result if isinstance(result, tuple) else (result,)
    return [t.item() for t in itertools.takewhile(
        lambda t: isinstance(t, Tensor) and t.ndim == 0 and t.dtype.kind == "f", parts)]


def _no_scalar(what):
    return error(StagingError, f"{what}: the step returns no scalar", got="something else first",
                 expected="a 0-d loss, or a tuple that begins with one", fix="return loss")


def _batch(arrays, chosen, at, size):
    """Rows at .. at + size of tensors, in the order `chosen`, as arrays."""
    rows_ = slice(at, at + size) if chosen is None else chosen.numpy()[at:at + size]
    return [a.numpy()[rows_] for a in arrays]


def _health(layout, numbers):
    from fastbp.show.health import Health
    return Health(layout, [x.item() for x in numbers])


def _refuse_where_nothing_is_replayed(what):
    if not is_replayed():
        raise error(StagingError, f"{what}: nothing is replayed here", got="a call while another function is "
                    "recorded, FASTBP_STAGED=0 or fb.detect_anomaly", expected="a call from outside",
                    fix=f"ask for the {what.rpartition(' ')[2]} of the outer function: its stages are all there")


class _Part(NamedTuple):
    """Batches of one size: rows start .. stop of the order, and the program for them."""
    start: int
    stop: int
    rows: int
    args: tuple
    replay: Replay
    columns: list

    def mixed(self, chosen):
        """Whether some batches need another program: runs that add up gradients, or batches with ignored labels."""
        if not self.replay.alone:
            return True
        place = slice(self.start, self.stop)
        for _, _, ignored, expected in self.columns:
            if ignored is None:
                continue
            by_row = ignored.reshape(len(ignored), -1).any(1)
            by_row = by_row[place] if chosen is None else by_row[chosen[place]]
            if (by_row.reshape(-1, self.rows).any(1) != expected).any():
                return True
        return False


def at_times(progress, n, means):
    """progress(done, n), with `means` the sums / done too: at most ten times a second, and at the end."""
    shown = time.monotonic()

    def show(done, totals):
        nonlocal shown
        now = time.monotonic()
        if progress is not None and (now - shown >= 0.1 or done >= n):
            shown = now
            progress(done, n, *([(totals / done).tolist()] if means else ()))
    return show


def _section(title, lines):
    return [f"{title}:", *(f"  {line}" for line in lines)] if lines else []


def staged(fn=None, *, keep_grads=False):
    """Record fn once on shapes and dtypes, then replay forward, backward and update in one call.

    keep_grads: parameters that the function updates keep their `.grad`.
    """
    if fn is None:
        return functools.partial(staged, keep_grads=keep_grads)
    return Staged(fn, keep_grads)
