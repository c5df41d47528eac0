"""The listing of a recorded function: its stages as a book writes them, and what the planner made of each."""
from collections import Counter

from fastbp.planner.cost import bytes_of, count_text, flop_of
from fastbp.planner.expression import ATOM, expression, number
from fastbp_ext.tensor import Tensor

_LONG = 48    # characters: a longer part of an expression gets a line of its own
_QUIET = {"broadcast_to", "contiguous", "copy", "expand_dims", "squeeze"}    # they say nothing within a gradient


class Line:
    """One line: its text, the shape of what it makes, the stages of the plan that do its work, and notes on them."""

    def __init__(self, text, label, shape, made):
        self.text, self.label, self.shape = text, label, shape
        self.made = made    # the recorded tensors that it makes, or the stage that is none of a gate
        self.stages, self.notes = [], []

    @property
    def flop(self):
        """The operations of a run."""
        return sum(map(flop_of, self.stages))

    @property
    def bytes(self):
        """What its stages read and write."""
        return sum(map(bytes_of, self.stages))


class Listing:
    """Stages in their order, by the names of the function's variables, others t1, t2, ...

    Forward: `(3) sigx = sigmoid(x)`. Backward: `dx += (1 - sigx) * sigx * dsigx   # (3)`: dx is the gradient for
    x, behind # stands the stage that is undone, += adds to a gradient that is there already. Then come the
    shape, operations and bytes, and what the planner did: `over x`: it writes where x lay; `fused A`: it runs
    tile by tile with the other lines of A; `in (4)`: stage (4) does its work too; `behind (7)`: it moved up there.
    """

    def __init__(self, recording, plan):
        self._recording, self._plan = recording, plan
        self._names = dict(recording.names)
        for labels, checked, _, _ in recording.indices:
            self._names.setdefault(id(checked), self._names.get(id(labels), labels.name or "labels"))
        for leaf, t in recording.entry_grads:
            self._names[id(t)] = f"{self._names.get(id(leaf)) or leaf.name or 'leaf'}.grad"
        self._set_apart()
        self._unnamed = 0
        self._made = {id(t) for s in recording.stages for t in _outputs(s)}
        self._count, self._numbers = 0, {}    # id of a forward stage, and of what it makes: its number
        self._gradients = {}    # id of a gradient: its name
        self._inlined = {}      # id of the gradient for a view of a parameter: (its text, what it makes, the number)
        self.lines = []
        self._uses = Counter(id(x) for _, _, _, x, _, _ in recording.parts)
        self._apart = self._read_elsewhere()
        self._begun = set()    # names of gradients
        self._now = {}         # id of a tensor: the name of its gradient, the last that was begun
        done = 0
        for at, stage, dy, x, dx, total in recording.parts:
            self._write_stages(recording.stages[done:at])
            done = at
            if id(stage) not in self._now and id(dy) not in self._gradients and id(dy) not in self._inlined:
                name = self._gradient_of(stage)
                self._write(f"    {name} = {self._term(dy, None, None, [])[0]}", "", stage, [])
                self._gradients[id(dy)] = name
            self._write_part(stage, dy, x, dx, total)
        self._write_stages(recording.stages[done:])
        self._tell()

    def _read_elsewhere(self):
        """ids of what a backward stage makes and a stage reads that undoes another: it needs a line of its own."""
        undoes = self._recording.undoes
        return {id(t) for s in self._recording.stages for t in (s._inputs if isinstance(s, Tensor) else s.inputs)
                if id(t) in undoes and undoes.get(id(s)) is not undoes[id(t)]}

    # --- the texts

    def _write(self, text, label, shape, made):
        self.lines.append(Line(text, label, shape, made))

    def _write_stages(self, stages):
        """Forward stages; and backward ones of Python, which no expression shows."""
        for stage in stages:
            undone = self._recording.undoes.get(id(stage))
            if undone is not None and isinstance(stage, Tensor):
                continue
            if undone is None:
                number = self._count = self._count + 1
                self._numbers.update((id(t), number) for t in (stage, *_outputs(stage)))
            if isinstance(stage, Tensor):
                text = f"{self.name(stage)} = {self._of(stage, map(self._atom, stage._inputs))[0]}"
            elif stage.form == "update":
                text = f"{stage.name}({', '.join(map(self.name, (*stage.outputs, *stage.inputs)))})"
            elif stage.form == "assign":
                text = f"{self.name(stage.outputs[0])}.copy_({self.name(stage.inputs[0])})"
            elif stage.form == "draw":
                text = f"{self.name(stage.outputs[0])} = draw({self.name(stage.inputs[0])})"
            else:
                text = (f"{', '.join(map(self.name, stage.outputs))} = "
                        f"{stage.name}({', '.join(map(self.name, stage.inputs))})")
            shape = None if not isinstance(stage, Tensor) and stage.form not in ("call", "draw") else _outputs(stage)[0]
            number = f"({self._numbers[id(stage)]})" if undone is None else self._number(undone)
            self._write(f"{number} {text}" if undone is None else f"    {text}   # {number}", number, shape, [stage])

    def _write_part(self, stage, dy, x, dx, total):
        """What one stage gives to the gradient for x."""
        number, made = self._number(stage), []
        if id(dy) in self._inlined:
            _, inner, number = self._inlined[id(dy)]
            made += inner
        text = self._term(dx, stage, dy, made, dx)
        adds = total is not dx
        if adds:
            made.append(total)
        if self._uses[id(x)] == 1 and not x._abstract and x._gate is not None:
            self._inlined[id(total)] = text, made, number    # of a view: the line of what it shows has it
            return
        if adds:
            name = self._now[id(x)]
        else:
            name = self._gradient_of(x)
            if self._uses[id(x)] == 1:    # as the function calls it, if it does
                name = self._recording.names.get(id(total), name)
            n, base = 1, name
            while name in self._begun:    # by another backward
                n += 1
                name = f"{base}_{n}"
            self._begun.add(name)
            self._now[id(x)] = name
        self._write(f"    {name} {'+=' if adds else '='} {text[0]}   # {number}", f"{name} {number}", x, made)
        self._gradients[id(total)] = name

    def _number(self, stage):
        """The number of a forward stage, as (3); of a backward one, that of what it undoes, as (3')."""
        if id(stage) in self._numbers:
            return f"({self._numbers[id(stage)]})"
        undone = self._recording.undoes.get(id(stage))
        return f"({self._number(undone)[1:-1]}')" if undone is not None else "(view)"

    def _of(self, t, inputs):
        return expression(t._gate, t._params, [*inputs], t)

    def _atom(self, t):
        if not t._abstract and t.size == 1 and not t.name and not t.requires_grad and id(t) not in self._names:
            return number(t.item())
        return self.name(t), ATOM

    def _term(self, t, stage, dy, made, dx=None):
        """A term of dx: by its name, or as the expression that stage's vjp made; `made` gets its tensors."""
        if t is dy or stage is not None and not t._abstract and t._root is dy._root:    # that, or spread out
            if id(t) in self._inlined:
                return self._inlined[id(t)][0]
            return self._now.get(id(stage)) or self._gradient_of(stage), ATOM
        if id(t) in self._gradients:
            return self._gradients[id(t)], ATOM
        if stage is None or self._recording.undoes.get(id(t)) is not stage or id(t) in self._names and t is not dx:
            return self._atom(t)
        inner = []
        parts = [self._term(x, stage, dy, inner, dx) for x in t._inputs]
        text = parts[0] if t._gate.name in _QUIET else self._of(t, parts)
        inner.append(t)
        if len(text[0]) > _LONG or t is not dx and id(t) in self._apart:
            name, number = self.name(t), self._number(stage)
            self._write(f"    {name} = {text[0]}   # {number}", f"{name} {number}", t, inner)
            return name, ATOM
        made += inner
        return text

    def name(self, t):
        """What a tensor is called; one that no stage makes, by the memory that it shows."""
        if id(t) in self._gradients:
            return self._gradients[id(t)]
        if id(t) not in self._names or self._is_captured_view(t):
            if t._root is not t and id(t) not in self._made:
                return self._view(t)
            if not t._abstract and t.size == 1 and not t.name and not t.requires_grad:
                return f"{t.item():.6g}"
            self._names[id(t)] = t.name or self._fresh()
        return self._names[id(t)]

    def _set_apart(self):
        """Two parameters of one name, as two models have, get numbers; names of tensors are nobody else's."""
        of_root = {}    # name: the memory that it is of
        for root, p in self._recording.shown.items():
            name = base = self._names.get(id(p))
            n = 1
            while name is not None and of_root.setdefault(name, root) != root:
                n += 1
                name = f"{base}_{n}"
            if name is not None:
                self._names[id(p)] = self._names[root] = name
        self._taken = set(self._names.values())
        for s in self._recording.stages:
            for t in s._inputs if isinstance(s, Tensor) else ():    # an optimizer's state has its kind's name
                if t.name and id(t) not in self._names and t._root is t:
                    name = t.name
                    while name in self._taken:
                        name += "_"
                    self._names[id(t)] = name
                    self._taken.add(name)

    def _gradient_of(self, t):
        """The name of the gradient for t: dx for x, d_x where a variable is called dx."""
        name = self.name(t)
        return f"d{name}" if f"d{name}" not in self._taken else f"d_{name}"

    def _fresh(self):
        while True:
            self._unnamed += 1
            if f"t{self._unnamed}" not in self._taken:
                return f"t{self._unnamed}"

    def _view(self, t):
        """A view of what has a name: the same, its transpose, or any other."""
        shown = self._shown(t)
        name = self.name(shown)
        if (t.shape, t.strides, t._offset) == (shown.shape, shown.strides, shown._offset):
            return name
        if (t.shape, t.strides, t._offset) == (shown.shape[::-1], shown.strides[::-1], shown._offset):
            return f"{name}.T"
        return self._names.get(id(t), f"view({name})")

    def _shown(self, t):
        return self._recording.shown.get(id(t._root), t._root)

    def _is_captured_view(self, t):
        """Whether t is a view, made by the function, of memory that others own."""
        return t._root is not t and not t._abstract and t._gate is not None and self._shown(t) is not t

    # --- what the planner made of them

    def _tell(self):
        plan = self._plan
        line_of = {id(t): line for line in self.lines for s in line.made for t in (s, *_outputs(s))}
        homes = {}    # a stage of the plan: its line
        for stage in reversed(plan.stages):
            found = line_of.get(id(stage.what)) or next(
                (line_of[id(t)] for t in stage.outputs if id(t) in line_of), None)
            if found is None:    # a first step, that a pass made: its reader's
                made = {id(t) for t in stage.outputs}
                found = next((homes[s] for s in plan.stages if s in homes and made & {id(t) for t in s.inputs}), None)
            homes[stage] = found
        letters = {}
        for stage in plan.stages:
            line = homes[stage]
            if line is None:
                continue
            line.stages.append(stage)
            line.notes += [self._place(plan.shares[id(t)]) for t in stage.writes if id(t) in plan.shares]
            if stage.group is not None and stage.form != "view":
                line.notes.append(f"fused {letters.setdefault(stage.group, _letter(len(letters)))}")
        self._tell_moves(homes)
        stages = {id(t): s for s in plan.stages for t in s.outputs}
        for line in self.lines:
            line.notes = list(dict.fromkeys(line.notes))
            made = [t for t in line.made if isinstance(t, Tensor) and t._gate.form != "view"]
            if made and not line.stages:
                last = id(made[-1])
                home = homes.get(stages.get(last) or plan.within.get(last))
                line.notes.append(f"in {home.label}" if home is not None else
                                  "known" if last in plan.within else "not needed")

    def _tell_moves(self, homes):
        """Updates that run before a line above say behind which they run."""
        order = [homes[s] for s in self._plan.stages if s.form != "view" and homes[s] is not None]
        last = {line: at for at, line in enumerate(order)}
        latest = -1
        for line in self.lines:
            at = last.get(line, latest)
            if line.shape is None and 0 < at < latest:
                line.notes.append(f"behind {order[at - 1].label}")
            latest = max(at, latest)

    def _place(self, t):
        """Where a stage writes that writes over t; parts of an expression have no name."""
        return f"over {self.name(t)}" if id(t) in self._names or id(t) in self._gradients else "in place"

    @property
    def texts(self):
        """The text of each line."""
        return [line.text for line in self.lines]

    def __len__(self):
        return len(self.lines)

    def __str__(self):
        rows = []
        for line in self.lines:
            work = [s for s in line.stages if s.form != "view"]
            rows.append((line.text, "in place" if line.shape is None else _shape(line.shape),
                         count_text(line.flop) if work else "", _size(line.bytes) if work else "",
                         ", ".join(line.notes)))
        head = ("stage", "makes", "FLOP", "bytes", "")
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        return "\n".join("   ".join((
            f"{text:<{widths[0]}}", f"{shape:<{widths[1]}}", f"{flop:>{widths[2]}}", f"{size:>{widths[3]}}", notes,
        )).rstrip() for text, shape, flop, size, notes in (head, *rows))

    __repr__ = __str__


def _outputs(stage):
    return (stage,) if isinstance(stage, Tensor) else stage.outputs


def _shape(t):
    return f"{t.dtype.name} {'x'.join(map(str, t.shape)) or 'scalar'}"


def _size(n):
    return f"{count_text(n)}{'' if n >= 1000 else ' '}B" if n else ""


def _letter(n):
    """A, B, ... Z, AA, AB, ..."""
    return (_letter(n // 26 - 1) if n >= 26 else "") + chr(ord("A") + n % 26)
