"""Plan: what passes work on."""


class Plan:
    """Stages in their order, what must be there at the end, and who shares memory with whom.

    stages: tensors and updates. inputs: tensors whose memory is given at each call. results:
    tensors whose memory is made for each call. shares: id of a tensor that owns memory -> the
    tensor whose memory it uses instead. offsets: id -> place in the arena, once it is laid out.
    """

    def __init__(self, recording):
        self.stages = list(recording.stages)
        self.inputs = list(recording.inputs)
        self.results = list(recording.results)
        self.shares = {}
        self.offsets = {}
        self.arena_size = 0
        self.whole_size = 0    # of all buffers, if each had memory of its own
        self.fixed = {id(t._root) for t in (*self.inputs, *self.results)}

    def owner(self, t):
        """The tensor whose memory t lies in, or None where t is no recorded tensor."""
        root = t._root
        while id(root) in self.shares:
            root = self.shares[id(root)]
        return root if root._abstract else None


def reads(stage):
    """The tensors whose values a stage needs."""
    if hasattr(stage, "outputs"):
        return (*stage.outputs, *stage.inputs)
    return () if stage._gate.form == "view" else stage._inputs


def writes(stage):
    """The tensors that a stage writes."""
    if hasattr(stage, "outputs"):
        return stage.outputs
    return () if stage._gate.form == "view" else (stage,)
