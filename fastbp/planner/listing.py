"""The listing of a recorded function: its stages as a reader would write them."""


class Listing:
    """Stages in their order: `(3) y = tanh(x)`; a backward stage ends with the number it undoes.

    Names are the function's own variables where it had one for a tensor, else t1, t2, ...
    """

    def __init__(self, recording, plan):
        self._names = dict(recording.names)
        self._unnamed = 0
        self._lines = []
        numbers, count = {}, 0
        kept = {id(s) for s in plan.stages}
        for stage in recording.stages:
            if id(stage) not in kept:
                continue
            undone = recording.undoes.get(id(stage))
            if hasattr(stage, "outputs"):
                text = f"{stage.kernel}({', '.join(map(self.name, (*stage.outputs, *stage.inputs)))})"
            else:
                text = f"{self.name(stage)} = {stage._gate.name}({', '.join(map(self.name, stage._inputs))})"
            if undone is None:
                count += 1
                numbers[id(stage)] = count
                self._lines.append((f"({count}) {text}", stage))
            else:
                self._lines.append((f"    {text}   # ({numbers.get(undone, '?')})", stage))

    def name(self, t):
        """What a tensor is called."""
        if id(t) not in self._names:
            constant = not t._abstract and t.size == 1 and t.name is None and t.is_leaf and not t.requires_grad
            self._unnamed += not (t.name or constant)
            self._names[id(t)] = t.name or (f"{t.item():.6g}" if constant else f"t{self._unnamed}")
        return self._names[id(t)]

    def __len__(self):
        return len(self._lines)

    def __str__(self):
        width = max((len(text) for text, _ in self._lines), default=0)
        return "\n".join(f"{text:<{width}}   {_shape(stage)}" for text, stage in self._lines)

    __repr__ = __str__


def _shape(stage):
    if hasattr(stage, "outputs"):
        return "in place"
    return f"{stage.dtype.name} {'x'.join(map(str, stage.shape)) or 'scalar'}"
