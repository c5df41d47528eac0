"""Plan: what passes work on."""
from fastbp_ext.tensor import Tensor, view_of

EACH = ("elementwise", "random")    # forms that compute each element by itself


class Stage:
    """What is done (a Gate, an Update, an Assign, a Draw or a Call), on which tensors.

    A tensor is recorded, without values, or one that the function captured. undoes: the forward
    stage that a backward one undoes, or None.
    """
    __slots__ = ("what", "outputs", "inputs", "params", "undoes", "group")

    def __init__(self, recorded):
        if isinstance(recorded, Tensor):
            self.what, self.outputs, self.inputs = recorded._gate, (recorded,), recorded._inputs
            self.params = recorded._params
        else:
            self.what, self.outputs, self.inputs = recorded, recorded.outputs, recorded.inputs
            self.params = None
        self.undoes = None
        self.group = None    # the Group that it runs in

    @classmethod
    def made(cls, what, outputs, inputs, undoes):
        """A stage that a pass makes."""
        self = cls.__new__(cls)
        self.what, self.outputs, self.inputs, self.params = what, outputs, inputs, None
        self.undoes, self.group = undoes, None
        return self

    @property
    def name(self):
        return self.what.name

    @property
    def form(self):
        return self.what.form

    @property
    def reads(self):
        """The tensors whose values it needs."""
        if self.form == "view":
            return ()
        return (*self.outputs, *self.inputs) if self.form == "update" else self.inputs

    @property
    def writes(self):
        """The tensors that it writes."""
        return () if self.form == "view" else self.outputs

    @property
    def lasts(self):
        """Whether it does something beside its outputs, or its outputs outlive the program."""
        return self.form in ("update", "assign", "draw") or self.form == "call" and self.what.effects

    def lower_to(self, program):
        """Hand its instructions to a program."""
        self.what.lower_to(program, self.outputs, self.inputs, self.params)

    def __repr__(self):
        return f"<{self.name} of {', '.join(str(t.shape) for t in self.inputs)}>"


class Group:
    """Stages that run together, tile by tile: one behind the other, elementwise, of one size.

    The first may be a product in strips of rows, whose result has that size. span: the units of the
    first stage in a tile, elements or rows; tile: elements in one; grain: the units that one
    thread has to run, or 0: those of the first stage. order: None for elements in C order, else the
    (shape, strides) in which all of them lie, without gaps.
    """

    def __init__(self, size, span, tile, strips, order=None):
        self.size, self.span, self.tile, self.strips, self.grain, self.order = size, span, tile, strips, 0, order
        self.stages = []
        self.written = set()    # the memory that they write
        self.elsewhere = set()  # the memory that one reads at another place than where it writes


class Plan:
    """Stages in their order, what must be there at the end, and who shares memory with whom.

    inputs: tensors whose memory is given at each call. results: tensors whose memory is made for
    each call. shares: id of a tensor that owns memory -> the tensor whose memory it uses instead.
    offsets: id -> place in the arena, once it is laid out. whole_size: bytes of all buffers, if
    each had memory of its own. constants: id -> tensor made by the function itself.
    """

    def __init__(self, recording):
        by_id = {id(recorded): Stage(recorded) for recorded in recording.stages}
        self.stages = list(by_id.values())
        reader = {id(t): stage for stage in reversed(self.stages) for t in stage.inputs}
        for recorded, stage in zip(recording.stages, self.stages, strict=True):
            undone = recording.undoes.get(id(recorded))
            if undone is not None:    # a view of a captured tensor is no stage: its reader stands for it
                stage.undoes = by_id.get(id(undone)) or reader.get(id(undone))
        self.inputs = list(recording.inputs)
        self.results = list(recording.results)
        self.looked = list(recording.looked.values())
        self.constants = dict(recording.made)    # id: a captured tensor that nobody else can change
        self.shares = {}
        self.tiled = {}     # id of a tensor whose values live for a tile of a group only: its group
        self.offsets = {}
        self.within = {}    # id of a tensor that no stage makes any more: the stage that does its work
        self.arena_size = 0
        self.whole_size = 0
        self.fixed = {id(t._root) for t in (*self.inputs, *self.results)}

    def owner(self, t):
        """The tensor whose memory t lies in, or None where t is no recorded tensor."""
        root = t._root
        while id(root) in self.shares:
            root = self.shares[id(root)]
        return root if root._abstract else None

    def changes(self, start, stop):
        """Whether a stage from one place to another, included, changes memory that outlives the program."""
        return any(s.lasts and s.writes for s in self.stages[start:stop + 1])

    def captured(self):
        """The tensors of others that the stages touch or look at, each once."""
        found = {id(t): t for s in self.stages for t in (*s.outputs, *s.inputs) if not t._abstract}
        return list((found | {id(t): t for t in self.looked if id(t._root) not in self.constants}).values())


def place_of(t):
    """What t shows: equal for views of one memory that show the same elements in the same order."""
    return id(t._root), t.shape, t.strides, t._offset


def moved(t, homes):
    """t, or the view that shows the same of homes[id of t's root], where that has its values now."""
    y = homes.get(id(t._root))
    return t if y is None else view_of(y, t.shape, t.strides, t._offset)


class Memories:
    """A name for the memory of each tensor: one for all that may share some of it.

    partly: names of memory that some tensors share in part only, so that one's element is another's neighbour.
    """

    def __init__(self, plan):
        self._plan = plan
        roots = {id(t._root): t._root for s in plan.stages
                 for t in (*s.outputs, *s.inputs, *getattr(s.what, "hyper", ())) if not t._abstract}
        spans = sorted((*_bounds(t), key) for key, t in roots.items() if t.size)
        self._names, self.partly, name, begin, end = {}, set(), None, 0, 0
        for low, high, key in spans:
            if low >= end:
                name, begin, end = key, low, high
            elif (low, high) != (begin, end):
                self.partly.add(name)
            self._names[key], end = name, max(high, end)

    def of(self, t):
        owner = self._plan.owner(t)
        return id(owner) if owner is not None else self._names.get(id(t._root), id(t._root))


def _bounds(t):
    """Where t's elements begin and end, in bytes."""
    low = high = t._address
    for n, step in zip(t.shape, t.strides, strict=True):
        low, high = low + min(0, (n - 1) * step), high + max(0, (n - 1) * step)
    return low, high + t.dtype.itemsize
