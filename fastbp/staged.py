"""staged: a function is recorded once and replayed, forward, backward and update, in one call."""
import collections
import contextlib
import functools
import inspect
import numbers
import os
import sys
import threading
import time
from copy import copy as copy_of
from typing import NamedTuple

import numpy as np

from fastbp.data.batching import checked_batch_size, order, rows
from fastbp.differentiate import differentiating, tree_map
from fastbp.errors import StagingError, error
from fastbp.gates.arithmetic import add
from fastbp.gates.shape import copy
from fastbp.planner import plan
from fastbp.planner.arena import lives
from fastbp.planner.listing import Listing
from fastbp_ext.gate import Gate, as_index
from fastbp_ext.program import Program, grad_mode, match
from fastbp_ext.tensor import (
    Tensor,
    abstract_tensor,
    empty,
    from_numpy,
    get_recorder,
    result_of,
    seen_in,
    set_grad_enabled,
    set_recorder,
)

PROGRAMS = 64      # the last used are kept
_replay = threading.RLock()    # one replay at a time: programs share parameters
os.register_at_fork(after_in_child=lambda: globals().update(_replay=threading.RLock()))


class Recording:
    """What a function did on tensors without values: stages, and what they need and leave behind."""

    def __init__(self):
        self.stages = []
        self.inputs = []      # recorded tensors whose memory each call gives
        self.results = []     # recorded tensors whose memory each call makes
        self.indices = []     # (source, recorded int64 tensor, how to check, whether some are ignored)
        self.bound = {}       # id of an input: the first call's tensor
        self.grads = {}       # id of a leaf: (leaf, its gradient now)
        self.grad_inputs = []  # (leaf, the recorded tensor that stands for its gradient at entry)
        self.accumulates = set()  # ids of arguments whose gradient is added to
        self.grad_guards = []  # (leaf, whether it had a gradient at entry)
        self.guards = []      # (a call, what it returned): a program holds while it returns the same
        self.undo = []        # calls that take back what recording made
        self.updated = {}     # id: a tensor that an update writes
        self.undoing = None   # the forward stage whose vjp is being recorded
        self.undoes = {}      # id of a backward stage: id of the forward stage that it undoes
        self.names = {}       # id: the name of the function's variable

    def add(self, stage):
        self.stages.append(stage)
        if self.undoing is not None:
            self.undoes[id(stage)] = id(self.undoing)
        for t in getattr(stage, "outputs", ()):
            if t._abstract:
                raise error(StagingError, "an optimizer can't update a recorded tensor", got="a result of gates",
                            expected="parameters made before", fix="make parameters outside the staged function")
            self.updated[id(t)] = t

    def guard(self, call):
        """The recording holds while `call()` returns what it returns now."""
        self.guards.append((call, call()))

    def met(self, module):
        """A module was called: the recording holds for its present mode."""
        self.guard(lambda: module.training)

    def new_input(self, given, **options):
        t = abstract_tensor(given.shape, given.dtype, **options)
        self.inputs.append(t)
        self.bound[id(t)] = given
        return t

    def given(self, x):
        """The first call's tensor for a recorded input or a view of one; captured ones are themselves."""
        if not x._abstract:
            return x
        if id(x._root) not in self.bound:
            raise error(StagingError, "labels and indices are checked before the first stage",
                        got="integers that the function computes", expected="an argument or a captured array",
                        fix="compute them outside the staged function, and give them as an argument")
        return seen_in(x, self.bound[id(x._root)])

    def index(self, x, check):
        """`as_index` while recording: the check is made at each call, before the first stage."""
        set_recorder(None)
        try:
            ignored = _check_index(self.given(x), check, None)[1]
        finally:
            set_recorder(self)
        y = abstract_tensor(x.shape, "int64")
        self.inputs.append(y)
        self.indices.append((x, y, check, ignored))
        return y, ignored

    def grad_of(self, leaf, actual):
        if id(leaf) not in self.grads:
            if leaf._abstract:      # an argument: what it has at each call is added to afterwards
                self.accumulates.add(id(leaf))
                self.grads[id(leaf)] = leaf, None
                return None
            self.grad_guards.append((leaf, actual is not None))
            if actual is not None:
                actual = self.new_input(actual)
                self.grad_inputs.append((leaf, actual))
            self.grads[id(leaf)] = leaf, actual
        return self.grads[id(leaf)][1]

    def set_grad(self, leaf, value):
        self.grads[id(leaf)] = leaf, value


def _check_index(x, check, out):
    size, gate, what, wrap, ignored, fill = check
    return as_index(x, size, gate, what, wrap, ignored, fill, out)


def _no_graph(*unused):
    raise error(StagingError, "backward: the result of a staged function has no graph", got="a result of a replay",
                expected="backward inside the staged function", fix="call backward in it, or fb.grad around it, "
                "or function.eager(...)")


END = Gate("staged", "y = f(x), replayed", form="copy", inputs=["x"], vjp=[_no_graph])


# --- arguments: nests of leaves

def _flatten(tree, leaves, key):
    """Leaves in order, and a hashable key of the structure and of what is no input."""
    if isinstance(tree, Tensor):
        leaves.append(tree)
        key.append((tree.shape, tree.dtype.num, tree.requires_grad))
    elif isinstance(tree, np.ndarray):
        leaves.append(tree)
        key.append((tree.shape, tree.dtype.num))
    elif isinstance(tree, (bool, np.bool_, str, bytes, type(None))):
        key.append((type(tree), tree))
    elif isinstance(tree, numbers.Real):
        leaves.append(float(tree))
        key.append("number")
    elif isinstance(tree, dict):
        key.append((dict, tuple(tree)))
        for value in tree.values():
            _flatten(value, leaves, key)
    elif isinstance(tree, (list, tuple)):
        key.append((type(tree), len(tree)))
        for value in tree:
            _flatten(value, leaves, key)
    else:
        try:
            hash(tree)
            key.append((type(tree), tree))
        except TypeError:
            key.append((type(tree), id(tree), _Kept(tree)))


class _Kept:
    """Keeps an object alive, so that its id stays its own; all are equal."""

    def __init__(self, what):
        self.what = what

    def __eq__(self, other):
        return isinstance(other, _Kept)

    def __hash__(self):
        return 0


def _rebuild(tree, leaves):
    """The nest with its leaves taken from an iterator."""
    def is_leaf(t):
        return isinstance(t, (Tensor, np.ndarray)) or isinstance(t, numbers.Real) and not isinstance(t, bool)

    return tree_map(lambda t: next(leaves) if is_leaf(t) else t, tree)


def _as_tensor(leaf):
    """A leaf as a tensor in C order, without its past."""
    if isinstance(leaf, float):
        y = empty((), "float64")
        y.numpy()[...] = leaf
        return y
    t = leaf if isinstance(leaf, Tensor) else from_numpy(leaf)
    return t if t.is_contiguous else from_numpy(np.ascontiguousarray(t.numpy()).reshape(t.shape))


class Replay:
    """A recorded function, ready to run."""

    def __init__(self, recording, inputs, result, leaves, keep_grads):
        self.recording = recording
        self.result = result
        self.inputs = inputs
        self.follows = {}    # id of a result: whether a gradient would follow from it
        self.grads = []      # (leaf or number of an argument, its gradient at the end or None)
        by_id = {id(t): n for n, t in enumerate(inputs)}
        for leaf, value in recording.grads.values():
            if id(leaf) in recording.updated and not keep_grads:
                value = None
            self.grads.append((by_id.get(id(leaf), leaf), value))
        self._own_results()
        self.writes_gradients = any(g is not None for _, g in self.grads)
        self.plan = plan(recording)
        self._build()

    def _own_results(self):
        """Each result has memory of its own: what shares it with another is copied at the end."""
        recording, taken = self.recording, {id(t._root) for t in self.recording.inputs}
        before = set_recorder(recording)
        grad_mode = set_grad_enabled(False)
        try:
            def own(t):
                if not isinstance(t, Tensor):
                    return t
                needs = t.requires_grad
                if not t._abstract or id(t._root) in taken or not t._is_whole:
                    t = copy(t.detach())
                self.follows[id(t)] = needs
                taken.add(id(t._root))
                recording.results.append(t)
                return t
            self.result = tree_map(own, self.result)
            self.grads = [(leaf, None if g is None else own(g.detach())) for leaf, g in self.grads]
        finally:
            set_recorder(before)
            set_grad_enabled(grad_mode)

    def _build(self):
        plan = self.plan
        self.program = program = Program()
        for stage in plan.stages:
            if hasattr(stage, "outputs"):
                stage.lower_to(program)
            else:
                stage._gate.lower_to(program, stage)
        program.seal()
        self.arena = None
        self.places = [(slot, plan.offsets[id(plan.owner(root))]) for root, slot in _slots(program, plan)
                       if id(plan.owner(root)) in plan.offsets]
        self.input_slots = [program.slot_of(t) for t in self.inputs]
        self.grad_slots = [(leaf, program.slot_of(t)) for leaf, t in self.recording.grad_inputs]
        self.index_entries = []
        for x, y, check, ignored in self.recording.indices:
            out = empty(y.shape, "int64")
            program.bind(program.slot_of(y), out)
            self.index_entries.append((x, out, check, ignored))
        numbers_ = {id(t): n for n, t in enumerate(self.inputs)}
        self.index_sources = [numbers_.get(id(x._root)) for x, *_ in self.recording.indices]
        roots, self.made = {}, []
        for t in self.recording.results:
            self.made.append((t, program.slot_of(t._root)))
            roots[id(t)] = len(self.made) - 1
        self.number_of_result = roots
        self.captured = [(t, t._address) for t in _captured(plan)]
        self.written = list(self.recording.updated.values())

    def fits(self, given):
        """Whether what the recording took for granted holds still."""
        for leaf, had in self.recording.grad_guards:
            if (leaf.grad is not None) != had:
                return False
        for call, before in self.recording.guards:
            if call() != before:
                return False
        return all(t._address == address for t, address in self.captured)

    def labels_fit(self, given):
        """Check labels and indices, and convert them; False where ignored ones came or went."""
        for (x, out, check, ignored), number in zip(self.index_entries, self.index_sources, strict=True):
            source = x if number is None else seen_in(x, given[number])
            if _check_index(source, check, out)[1] != ignored:
                return False
        return True

    def run(self, given, arena, times=1):
        """Bind the arguments, run the program, return what the function returns."""
        program = self.program
        given = self._apart(given)
        memory = arena.of(self.plan.arena_size)
        if memory is not self.arena:
            self.arena = memory
            for slot, offset in self.places:
                program.bind_part(slot, memory, offset)
        for slot, t in zip(self.input_slots, given, strict=True):
            program.bind(slot, t)
        before = [_as_tensor(leaf.grad) for leaf, _ in self.grad_slots]
        for (_, slot), g in zip(self.grad_slots, before, strict=True):
            program.bind(slot, g)
        made = []
        for t, slot in self.made:
            y = empty(t._root.shape, t.dtype)
            program.bind(slot, y)
            made.append(result_of(t, y, END if self.follows[id(t)] else None))
        try:
            program.run(times)
        finally:    # Ctrl-C stops between two runs: some were done
            for t in self.written:
                t._changed()
        for leaf, g in self.grads:
            if not isinstance(leaf, int):
                leaf.grad = None if g is None else made[self.number_of_result[id(g)]]
        return tree_map(
            lambda t: made[self.number_of_result[id(t)]] if isinstance(t, Tensor) else t, self.result), made

    def _apart(self, given):
        """Arguments that overlap what the program writes are copied."""
        spans = [(t._address, t._address + t.size * t.dtype.itemsize) for t in self.written]
        apart = []
        for t in given:
            low, high = t._address, t._address + t.size * t.dtype.itemsize
            if any(low < b and a < high for a, b in spans):
                t = from_numpy(t.numpy().copy())
            apart.append(t)
        return apart


def _slots(program, plan):
    seen = set()
    for home, _, _ in lives(plan).values():
        for root in (home, *(s._root for s in plan.stages if not hasattr(s, "outputs")
                             and plan.owner(s) is home)):
            if id(root) not in seen:
                seen.add(id(root))
                yield root, program.slot_of(root)


def _captured(plan):
    seen = {}
    for stage in plan.stages:
        tensors = (*stage.outputs, *stage.inputs) if hasattr(stage, "outputs") else stage._inputs
        for t in tensors:
            if not t._abstract:
                seen[id(t)] = t
    return seen.values()


class Arena:
    """The memory that all programs of one function share; it grows and never shrinks."""

    def __init__(self):
        self.memory = empty(0, "uint8")

    def of(self, size):
        if self.memory.size < size:
            self.memory = empty(size, "uint8")
        return self.memory


def _wanted(arg):
    """What `match` compares an argument with."""
    if isinstance(arg, (Tensor, np.ndarray)):
        return type(arg), arg.shape, arg.dtype, isinstance(arg, Tensor) and arg.requires_grad
    return None


def _described(leaf):
    return "number" if isinstance(leaf, float) else f"{leaf.dtype.name} {leaf.shape}"


@contextlib.contextmanager
def _names_of(fn, recording):
    """While fn runs: when it returns, its variables name the tensors that they hold."""
    code = getattr(inspect.unwrap(fn), "__code__", None)
    before = sys.getprofile()

    def watch(frame, event, arg):
        if event == "return" and frame.f_code is code:
            for name, value in frame.f_locals.items():
                if isinstance(value, Tensor):
                    recording.names.setdefault(id(value), name)

    sys.setprofile(watch if before is None else before)
    try:
        yield
    finally:
        sys.setprofile(before)


def _plain_add(x, y):
    """x + y, with no graph."""
    mode = set_grad_enabled(False)
    try:
        return add(x, y)
    finally:
        set_grad_enabled(mode)


class Memory(NamedTuple):
    """Bytes of an arena, and of all its buffers if each had memory of its own."""
    arena: int
    buffers: int

    @property
    def share(self):
        return self.arena / self.buffers if self.buffers else 0.0

    def __str__(self):
        return f"arena {self.arena:,} bytes, {self.share:.0%} of {self.buffers:,} in all buffers"


class Staged:
    """A function that is recorded once for each signature of its arguments, then replayed.

    Call it as the function. `eager` runs the function itself, gate by gate: the same bits.
    """

    def __init__(self, fn, keep_grads=False):
        functools.update_wrapper(self, fn)
        self._fn = fn
        self._keep_grads = keep_grads
        self._first = ()
        self._recent = None    # (its arguments, the gradient mode, the program used last): the quick way
        self._programs = collections.OrderedDict()
        self._arena = Arena()
        self._log = []    # one line for each recording: what for

    def __get__(self, instance, owner):
        if instance is None:
            return self
        # A method: the same programs, with the instance as the first argument.
        bound = copy_of(self)
        bound._first = (*self._first, instance)
        return bound

    def eager(self, *args, **kwargs):
        """The function gate by gate, every value at hand."""
        return self._fn(*self._first, *args, **kwargs)

    @property
    def recordings(self):
        """How many times the function was recorded."""
        return len(self._log)

    def _last(self):
        for programs in reversed(self._programs.values()):
            if programs:
                return programs[-1]
        raise error(StagingError, "nothing is recorded yet", got="no program", expected="a call before",
                    fix="call the staged function once")

    def stages(self):
        """The program used last, as a listing: str() of it numbers the forward stages in order."""
        program = self._last()
        return Listing(program.recording, program.plan)

    def explain(self):
        """What was recorded and why, and what the program used last took for granted, as a text."""
        lines = [f"{self.__name__}: recorded {self.recordings} times, {len(self._programs)} signatures kept"]
        lines += [f"  {n}. for ({text})" for n, text in enumerate(self._log, 1)]
        if self._log:
            program = self._last()
            lines.append(f"the last program: {len(program.program)} instructions, {self.memory}")
            lines.append("captured by reference:")
            lines += [f"  {t.name or type(t).__name__} {t.dtype.name} {t.shape}" for t, _ in program.captured if t.ndim]
        return "\n".join(lines)

    @property
    def memory(self):
        """The memory of the program used last: the arena against the sum of its buffers, in bytes."""
        plan = self._last().plan
        return Memory(plan.arena_size, plan.whole_size)

    def reset(self):
        """Forget all programs."""
        self._programs.clear()
        self._recent = None
        self._arena = Arena()

    def __call__(self, *args, **kwargs):
        if get_recorder() is not None or differentiating() or os.environ.get("FASTBP_STAGED") == "0":
            return self._fn(*self._first, *args, **kwargs)
        if self._recent is not None and not kwargs:
            wanted, mode, program = self._recent
            args = self._first + args
            given = match(args, wanted)
            if given is not None and mode == grad_mode():
                with _replay:
                    if program.fits(given) and program.labels_fit(given):
                        return self._hand_out(program, program.run(given, self._arena), args)
            return self._replay(args, kwargs, 1)
        return self._replay(self._first + args, kwargs, 1)

    def repeat(self, times, *args, **kwargs):
        """As `times` calls on the same arguments; returns what the last returns.

        Ctrl-C stops between two of them.
        """
        count = checked_batch_size(times)
        if get_recorder() is not None or differentiating() or os.environ.get("FASTBP_STAGED") == "0":
            for _ in range(count):
                result = self(*args, **kwargs)
            return result
        return self._replay(self._first + args, kwargs, count)

    def epoch(self, *arrays, batch_size, shuffle=False, rng=None, progress=None):
        """One pass over the rows of `arrays` in batches; the mean of the batch losses, by rows.

        The batches and their order are those of `data.batches`; the step is called with each,
        and returns one scalar or a tuple that begins with it. All labels are checked before the
        first batch. `progress(done, total)` is called at most ten times a second and at the end.
        Ctrl-C stops between two batches.
        """
        n, size = rows(arrays), checked_batch_size(batch_size)
        chosen = order(n, shuffle, rng)
        arrays = [a.numpy() if isinstance(a, Tensor) else a for a in arrays]
        total, shown, checked = 0.0, time.monotonic(), False
        for start in range(0, n, size):
            part = slice(start, start + size) if chosen is None else chosen[start:start + size]
            batch = [a[part] for a in arrays]
            if not checked and os.environ.get("FASTBP_STAGED") != "0":
                self._check_labels(batch, arrays)
                checked = True
            result = self(*batch)
            loss = result[0] if isinstance(result, tuple) else result
            if not isinstance(loss, Tensor) or loss.ndim:
                raise error(StagingError, "epoch: the step returns no scalar", got=repr(loss)[:80],
                            expected="a 0-d loss, or a tuple that begins with one", fix="return loss")
            total += loss.item() * len(batch[0])
            now = time.monotonic()
            if progress is not None and (now - shown >= 0.1 or start + size >= n):
                shown = now
                progress(min(start + size, n), n)
        return total / n

    def _check_labels(self, batch, arrays):
        """Every label and index of the epoch, by the checks of the program for the first batch."""
        program, _, _ = self._program_for(self._first + tuple(batch), {})
        for (x, _, check, _), number in zip(program.index_entries, program.index_sources, strict=True):
            if number is not None and x.ndim == 1 and len(self._first) <= number:
                _check_index(from_numpy(np.ascontiguousarray(arrays[number - len(self._first)])), check, None)

    def _replay(self, args, kwargs, times):
        with _replay:
            program, leaves, given = self._program_for(args, kwargs)
            if not kwargs and len(leaves) == len(args):
                self._recent = tuple(map(_wanted, args)), grad_mode(), program
            # What writes gradients adds to them, and so to what a run before it left: one run at a time.
            for _ in range(times - 1 if program.writes_gradients else 0):
                self._hand_out(program, program.run(given, self._arena), leaves)
                program, leaves, given = self._program_for(args, kwargs)
            times = 1 if program.writes_gradients else times
            return self._hand_out(program, program.run(given, self._arena, times), leaves)

    def _program_for(self, args, kwargs):
        """The program for these arguments, recorded if need be; their leaves, as given and as tensors."""
        leaves, key = [], []
        _flatten((args, kwargs), leaves, key)
        key = (*key, grad_mode())
        given = [_as_tensor(leaf) for leaf in leaves]
        programs = self._programs.setdefault(key, [])
        self._programs.move_to_end(key)
        for program in programs:
            if program.fits(given) and program.labels_fit(given):
                return program, leaves, given
        program = self._record(args, kwargs, leaves, given)
        program.labels_fit(given)
        programs.append(program)
        while len(self._programs) > PROGRAMS:
            self._programs.popitem(last=False)
        return program, leaves, given

    def _hand_out(self, program, ran, leaves):
        result, made = ran
        for leaf, g in program.grads:
            if isinstance(leaf, int) and isinstance(leaves[leaf], Tensor):
                t, before = leaves[leaf], leaves[leaf].grad
                made_now = None if g is None else made[program.number_of_result[id(g)]]
                if id(program.inputs[leaf]) in program.recording.accumulates and before is not None:
                    made_now = before if made_now is None else _plain_add(before, made_now)
                t.grad = made_now
        return result

    def _record(self, args, kwargs, leaves, given):
        recording = Recording()
        inputs = [recording.new_input(t, requires_grad=isinstance(leaf, Tensor) and leaf.requires_grad,
                                      weak=isinstance(leaf, float), name=getattr(leaf, "name", None))
                  for leaf, t in zip(leaves, given, strict=True)]
        args, kwargs = _rebuild((args, kwargs), iter(inputs))
        set_recorder(recording)
        try:
            with _names_of(self._fn, recording):
                result = self._fn(*args, **kwargs)
        except BaseException:
            set_recorder(None)
            for take_back in reversed(recording.undo):
                take_back()
            raise
        finally:
            set_recorder(None)
        recording.bound.clear()    # the first call's arguments are not kept
        self._log.append(", ".join(_described(leaf) for leaf in leaves))
        return Replay(recording, inputs, result, leaves, self._keep_grads)


def staged(fn=None, *, keep_grads=False):
    """Record fn once on shapes and dtypes, then replay forward, backward and update in one call.

    keep_grads: parameters that the function updates keep their `.grad`.
    """
    if fn is None:
        return functools.partial(staged, keep_grads=keep_grads)
    return Staged(fn, keep_grads)
