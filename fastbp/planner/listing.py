"""The listing of a recorded function: its stages as a reader would write them."""


class Listing:
    """Stages in their order: `(3) y = tanh(x)`; a backward stage ends with the number it undoes.

    Names are the function's own variables where it had one for a tensor, else t1, t2, ...; the
    number in brackets is that of the forward stage. `over x`: it writes where x lay. `fused`: tile by
    tile with the stages below that say `with it`.
    """

    def __init__(self, recording, plan):
        self._names = dict(recording.names)
        for labels, checked, _, _ in recording.indices:
            self._names.setdefault(id(checked), self._names.get(id(labels), labels.name or "labels"))
        self._unnamed = 0
        self._made = {id(t) for stage in plan.stages for t in stage.outputs}
        self._lines = []
        numbers = {}
        for stage in plan.stages:
            arguments = ", ".join(map(self.name, stage.inputs))
            if stage.form == "update":
                text = f"{stage.name}({', '.join(map(self.name, (*stage.outputs, *stage.inputs)))})"
            elif stage.form == "assign":
                text = f"{self.name(stage.outputs[0])}.copy_({arguments})"
            else:
                text = f"{', '.join(map(self.name, stage.outputs))} = {stage.name}({arguments})"
            if stage.undoes is None:
                numbers[stage] = len(numbers) + 1
                text = f"({numbers[stage]}) {text}"
            else:
                text = f"    {text}   # ({numbers.get(stage.undoes, '?')})"
            self._lines.append((text, _shape(stage) + self._place(plan, stage)))

    def _place(self, plan, stage):
        shared = [plan.shares[id(t)] for t in stage.writes if id(t) in plan.shares]
        place = f", over {self.name(shared[0])}" if shared else ""
        if stage.group is not None and stage.form != "view":
            place += ", fused" if stage is stage.group.stages[0] else ", with it"
        return place

    def name(self, t):
        """What a tensor is called; one that no stage makes, by the memory that it shows."""
        if id(t) not in self._names:
            if t._root is not t and id(t) not in self._made:
                return f"view({self.name(t._root)})"
            if not t._abstract and t.size == 1 and not t.name and not t.requires_grad:
                return f"{t.item():.6g}"
            self._unnamed += not t.name
            self._names[id(t)] = t.name or f"t{self._unnamed}"
        return self._names[id(t)]

    @property
    def texts(self):
        """For each stage its text alone."""
        return [text for text, _ in self._lines]

    def __len__(self):
        return len(self._lines)

    def __str__(self):
        width = max((len(text) for text, _ in self._lines), default=0)
        return "\n".join(f"{text:<{width}}   {shape}" for text, shape in self._lines)

    __repr__ = __str__


def _shape(stage):
    if stage.form in ("update", "assign"):
        return "in place"
    t = stage.outputs[0]
    return f"{t.dtype.name} {'x'.join(map(str, t.shape)) or 'scalar'}"
