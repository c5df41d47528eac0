"""Circuits as SVG pictures, from left to right, with every number of the forward and the backward pass."""
import math
import unicodedata
from xml.sax.saxutils import escape

import numpy as np

from fastbp.show.circuit import number_text
from fastbp.show.layout import Layout, Net, Node, sorted_nodes
from fastbp.show.terminal import cut
from fastbp.show.trace import Trace, names_of_caller
from fastbp.tape import stages_of

# What stands in a gate, by its name; else its operator, else its name.
_SIGNS = {"sub": "−", "mul": "×", "div": "÷", "neg": "−x", "pow": "^", "number_pow": "^", "square": "x²", "sqrt": "√",
          "sum": "Σ", "prod": "∏", "sigmoid": "σ", "reciprocal": "1/x", "transpose": "T", "maximum": "max",
          "minimum": "min"}
_LOOSE = {"add", "mul", "maximum", "minimum"}    # the order of their inputs does not matter

# (selector, property, in light, in dark)
_COLORS = [
    (".paper", "fill", "#ffffff", "#14181f"), (".group", "fill", "#64748b", "#94a3b8"),
    (".group", "stroke", "#94a3b8", "#64748b"), (".wire", "stroke", "#64748b", "#8b98a9"),
    (".gate", "fill", "#f1f5f9", "#273142"), (".gate", "stroke", "#475569", "#a3b1c4"),
    ("text", "fill", "#1f2937", "#e5e7eb"), (".constant,.shape,.title", "fill", "#5b6675", "#a7b2c1"),
    (".value", "fill", "#15803d", "#4ade80"), (".gradient", "fill", "#c01c1c", "#ff8a8a")]
_STYLE = ("{0} text{{font-family:'DejaVu Sans Mono',Menlo,Consolas,monospace;white-space:pre}}"
          "{0} .wire{{fill:none;stroke-width:1.3}}{0} .group{{fill-opacity:.07}}"
          "{0} .gate{{stroke-width:1.3}}{0} .name{{font-weight:bold}}")

_CHAR = 0.62      # width of a character in a monospace font / its size, rounded up
_SMALL, _LARGE = 11, 13
_RADIUS = 15
_PAD, _HEAD = 10, 16     # of a group's box: around its parts, and for its name
_MARGIN = 14
_BARS, _BAR = 12, 3      # of a histogram, and their width
_TALL = 16               # a histogram's height
_LONGEST = 24            # characters of a name
_MOST = 300              # gates that a notebook draws without being asked


class Drawing(str):
    """SVG text; a notebook shows the picture."""

    def _repr_svg_(self):
        return str(self)


def draw(root, path=None):
    """The circuit of `root` as SVG text, written to `path` where there is one: what Tensor.draw does."""
    return drawing(Trace(root, names=names_of_caller()), path)


def drawing(trace, path=None):
    """The picture of a trace, written to `path` where there is one, else returned."""
    text = Drawing(_Picture(trace).svg())
    if path is None:
        return text
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    return None


def notebook(root):
    """The circuit as SVG text, or None: no circuit, too large a one, or one whose values were changed in place."""
    if root._abstract or root._gate is None or len(stages_of([root])[0]) > _MOST:
        return None
    try:
        return draw(root)
    except RuntimeError:
        return None


# --- text and numbers

def _wide(text, size=_SMALL):
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text) * _CHAR * size


def _clean(text):
    """On one line, without the characters that XML has no place for."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _shape(t):
    return "×".join(map(str, t.shape))


def _norm(x):
    """sqrt(sum x^2), without overflow."""
    x = np.abs(x.astype(np.float64).ravel())
    top = x.max(initial=0.0)
    return float(top) if top == 0 or not math.isfinite(top) else float(top * np.linalg.norm(x / top))


def _bars(x):
    """Heights from 0 to 1 of the histogram of an array's finite values, in equal bins from the least to the greatest.

    One value only stands in the middle; no value, no bars.
    """
    x = x.astype(np.float64).ravel()
    x = x[np.isfinite(x)]
    if not x.size:
        return []
    x = x / (np.abs(x).max() or 1.0)
    low, high = x.min(), x.max()
    bins = (np.minimum((x - low) / (high - low) * _BARS, _BARS - 1).astype(int) if high > low
            else np.full(x.size, _BARS // 2))
    counts = np.bincount(bins, minlength=_BARS)
    return (counts / counts.max()).tolist()


def _number(t):
    """A scalar's value, or an array's norm; of labels, which have none, the least and the greatest."""
    x = t.numpy()
    if x.size == 1:
        return number_text(x.item())
    if x.dtype.kind != "f":
        return f"{int(x.min())} to {int(x.max())}" if x.size else "empty"
    return f"norm {number_text(_norm(x))}"


class _Label:
    """What stands on a wire: value above, gradient below; and what they take, from where the wire begins.

    texts: (class, text, dx, dy); bars: (class, heights, dx, dy of their foot).
    """

    def __init__(self, t, name, gradient):
        self.texts, self.bars = [], []
        self.width, self.above, self.below = 0.0, 17.0, 4.0
        self._row([("name", name), ("value", _number(t))] if t.size == 1 else [("value", _number(t))], -5.0)
        if t.size != 1:
            x = self._row([("name", name), ("shape", _shape(t))], -18.0)
            self.above = 20.0 + _TALL
            self._histogram("value", t, x, -18.0)
        if gradient is not None:
            self._row([("gradient", _number(gradient))], 13.0)
            self.below = 17.0
            if t.size != 1:
                self.below = 20.0 + _TALL
                self._histogram("gradient", gradient, x, 18.0 + _TALL)

    def _row(self, texts, y):
        """Texts beside each other; where the next one would stand."""
        x = 0.0
        for kind, text in texts:
            if text:
                self.texts.append((kind, text, x, y))
                x += _wide(text + " ")
        self.width = max(self.width, x)
        return x

    def _histogram(self, kind, t, x, foot):
        self.bars.append((kind, _bars(t.numpy()), x, foot))
        self.width = max(self.width, x + _BARS * _BAR + 4)


# --- a circuit as boxes of nodes

class _Box:
    """A group, or the whole circuit: its nodes and wires, and its node in the box around it."""

    def __init__(self, group=None, parent=None):
        self.group, self.parent = group, parent
        self.depth = 0 if parent is None else parent.depth + 1
        self.nodes, self.nets, self.ins, self.outs = [], {}, {}, {}
        self.node = Node(ins=(), outs=())
        self.node.box = self
        if parent is not None:
            parent.nodes.append(self.node)

    def around(self):
        """This box and those around it, the innermost first."""
        box, found = self, []
        while box is not None:
            found.append(box)
            box = box.parent
        return found

    def enter(self, t):
        """The number of the port by which a wire comes in."""
        if id(t) not in self.ins:
            port = Node(pin="first", above=5.0, below=5.0)
            self.nodes.append(port)
            self.nets[id(t)] = Net((port, 0))
            self.ins[id(t)] = port, len(self.ins)
        return self.ins[id(t)][1]

    def leave(self, t):
        """The number of the port by which a wire goes out."""
        if id(t) not in self.outs:
            port = Node(pin="last", above=5.0, below=5.0, ins=(0.0,))
            self.nodes.append(port)
            self.nets[id(t)].sinks.append((port, 0))
            self.outs[id(t)] = port, len(self.outs)
        return self.outs[id(t)][1]


class _Picture:
    def __init__(self, trace):
        self.trace = trace
        self._name_members()
        own = {id(t): t.name for s in trace.stages for t in (s.output, *s.inputs) if t.name}
        self.given = {**trace.given, **self.members, **own}
        flat = set()
        while True:
            self._build(flat)
            tangled = self._tangled()
            if not tangled:
                break
            flat |= tangled
        self._arrange()

    def _name_members(self):
        """Parameters and buffers by their paths, and modules, from the outermost module around the stages."""
        self.members, self.paths, self.owned = {}, {}, {}
        for stage in self.trace.stages:
            modules = [g.module for g in stage.groups if g.module is not None]
            if modules and id(modules[0]) not in self.owned:
                for path, module in modules[0].named_modules():
                    self.paths.setdefault(id(module), path)
                for path, t in (*modules[0].named_parameters(), *modules[0].named_buffers()):
                    self.members.setdefault(id(t), path)
            for module in modules:
                if id(module) not in self.owned:
                    self.owned[id(module)] = {id(t) for t in (*module.parameters(), *module.buffers())}

    def _name(self, t):
        return self.given.get(id(t)) or self.trace.name(t)

    def _build(self, flat):
        """Boxes, nodes and nets; the groups in `flat` get no box."""
        self.whole = _Box()
        self.boxes = {None: self.whole}
        self.home = {}    # {id of a tensor: (box, node) that it comes from}
        for stage in self.trace.stages:
            box = self.whole
            groups = stage.groups
            if stage.gate is None:    # a composite drawn as one gate: its own box and those in it are that gate
                groups = groups[:next(n for n, g in enumerate(groups) if g.module is None)]
            for group in groups:
                if group not in flat:
                    if group not in self.boxes:
                        self.boxes[group] = _Box(group, box)
                    box = self.boxes[group]
            node = self._gate_node(stage)
            box.nodes.append(node)
            self.home[id(stage.output)] = box, node
        readers = {}
        for stage in self.trace.stages:
            for which, x in enumerate(stage.inputs):
                readers.setdefault(id(x), (x, []))[1].append((*self.home[id(stage.output)], which))
        for x, ends in readers.values():
            if id(x) not in self.home:
                box = self._box_of_input(x, [box for box, _, _ in ends])
                node = self._input_node(x)
                box.nodes.append(node)
                self.home[id(x)] = box, node
            for end in ends:
                self._connect(x, *end)
        root = self.trace.root
        name = cut(_clean(self.given.get(id(root), "")), _LONGEST)
        end = Node(_wide(name, _LARGE) + 6, 9.0, 9.0, (0.0,), ())
        end.ending = name
        self.whole.nodes.append(end)
        self._connect(root, self.whole, end, 0)

    def _box_of_input(self, x, boxes):
        """The module that owns a parameter, the gates that a constant is for; else an input comes from outside."""
        common = [box for box in boxes[0].around() if all(box in other.around() for other in boxes[1:])]
        if self._constant(x):
            return common[0]
        return next((box for box in common if box.group is not None and box.group.module is not None
                     and id(x) in self.owned[id(box.group.module)]), self.whole)

    def _connect(self, t, box, node, which):
        """A wire from where t is made to an input of a node, through the borders of the boxes between."""
        here, source = self.home[id(t)]
        around = box.around()
        out = 0
        while True:
            if id(t) not in here.nets:
                here.nets[id(t)] = Net((source, out))
            if here in around:
                break
            out = here.leave(t)
            source, here = here.node, here.parent
        for inner in around[:around.index(here)]:
            new = id(t) not in inner.ins
            port = inner.enter(t)
            inner.nets[id(t)].sinks.append((node, which))
            if not new:
                return
            node, which = inner.node, port
        here.nets[id(t)].sinks.append((node, which))

    def _tangled(self):
        """Groups whose parts are read between them: no box from left to right can hold them."""
        found = set()
        for box in self.boxes.values():
            done = set(sorted_nodes(box.nodes, box.nets.values()))
            if len(done) < len(box.nodes):
                found |= {n.box.group for n in box.nodes if n not in done and hasattr(n, "box")}
        return found

    # --- nodes

    def _constant(self, t):
        return not t.requires_grad and t.size == 1 and id(t) not in self.given

    def _gate_node(self, stage):
        gate = stage.gate
        name = stage.name if gate is None else gate.name
        sign = _clean(_SIGNS.get(name) or getattr(gate, "operator", None) or cut(name, _LONGEST))
        round_ = len(sign) <= 3
        head = 2 * _RADIUS if round_ else _wide(sign, _LARGE) + 14
        given = "" if stage.output is self.trace.root else cut(_clean(self.given.get(id(stage.output), "")), _LONGEST)
        label = _Label(stage.output, given, self.trace.gradient(stage.output))
        count = len(stage.inputs)
        step = min(9.0, 2.0 * (_RADIUS - 4) / max(count - 1, 1))
        node = Node(head + 6 + label.width + 2, max(label.above, _RADIUS + 1), max(label.below, _RADIUS + 1),
                    [0.0] * count, fan=step, loose=name in _LOOSE, exit=head,
                    radius=_RADIUS if round_ else None)
        node.stage, node.sign, node.label, node.head = stage, sign, label, head
        return node

    def _input_node(self, t):
        name = cut(_clean(self._name(t)), _LONGEST)
        if self._constant(t):
            node = Node(_wide(name) + 4, 7.0, 7.0, leaf=True)
            node.constant = name
            return node
        label = _Label(t, "", self.trace.gradient(t))
        head = _wide(name, _LARGE) + 4
        node = Node(head + 4 + label.width + 2, max(label.above, 9.0), max(label.below, 9.0), leaf=True, exit=head)
        node.input, node.name, node.label, node.head = t, name, label, head
        return node

    def _title(self, box):
        group = box.group
        path = self.paths.get(id(group.module), "") if group.module is not None else ""
        return cut(_clean(f"{group.name} {path}".rstrip()), 2 * _LONGEST)

    # --- places

    def _arrange(self):
        """Each box inside, the innermost first; then where it stands, the outermost first."""
        boxes = sorted(self.boxes.values(), key=lambda box: -box.depth)
        for box in boxes:
            title = 0.0 if box.group is None else _wide(self._title(box))
            box.layout = Layout(box.nodes, list(box.nets.values()), border=_PAD, least=title)
            node = box.node
            node.width = node.exit = box.layout.width + 2 * _PAD
            node.below = box.layout.height + 2 * _PAD + _HEAD
            node.ins = [port.y + _HEAD + _PAD for port, _ in box.ins.values()]
            node.outs = [port.y + _HEAD + _PAD for port, _ in box.outs.values()]
        self.whole.x = self.whole.y = _MARGIN
        for box in boxes[::-1]:
            if box.parent is not None:
                box.x = box.parent.x + box.node.x + _PAD
                box.y = box.parent.y + box.node.y + _PAD + _HEAD
        self.crossings = sum(box.layout.crossings for box in boxes)

    # --- marks

    def svg(self):
        width = math.ceil(self.whole.layout.width + 2 * _MARGIN)
        height = math.ceil(self.whole.layout.height + 2 * _MARGIN)
        about = f"circuit of {_clean(self._name(self.trace.root))}, {len(self.trace.stages)} gates"
        boxes = sorted(self.boxes.values(), key=lambda box: box.depth)
        parts = [f'<svg xmlns="http://www.w3.org/2000/svg" class="fastbp" width="{width}" height="{height}" '
                 f'viewBox="0 0 {width} {height}" role="img" aria-label={_quoted(about)}>',
                 f"<style>{_style()}</style>", f'<rect class="paper" width="{width}" height="{height}" rx="6"/>']
        for box in boxes[1:]:
            parts += self._group(box)
        for box in boxes:
            parts += self._wires(box)
        for box in boxes:
            for node in box.nodes:
                parts += self._marks(node, box.x + node.x, box.y + node.y)
        return "\n".join((*parts, "</svg>\n"))

    def _group(self, box):
        x, y, node = box.x - _PAD, box.y - _PAD - _HEAD, box.node
        formula = f": {box.group.formula}" if box.group.formula else ""
        yield (f'<g><title>{escape(_clean(box.group.name + formula))}</title><rect class="group" x="{_n(x)}" '
               f'y="{_n(y)}" width="{_n(node.width)}" height="{_n(node.below)}" rx="8"/>'
               + _text("title", self._title(box), x + _PAD, y + 15) + "</g>")

    def _wires(self, box):
        for net in box.nets.values():
            d, end = [], None
            for x1, y1, x2, y2 in box.layout.paths[net]:
                x1, y1, x2, y2 = box.x + x1, box.y + y1, box.x + x2, box.y + y2
                straight = abs(y1 - y2) < 0.05
                if (x1, y1) != end:
                    d.append(f"M{_n(x1)} {_n(y1)}")
                elif straight and d[-1][0] == "H":
                    d.pop()
                middle = _n((x1 + x2) / 2)
                d.append(f"H{_n(x2)}" if straight else
                         f"C{middle} {_n(y1)} {middle} {_n(y2)} {_n(x2)} {_n(y2)}")
                end = x2, y2
            yield f'<path class="wire" d="{"".join(d)}"/>'

    def _marks(self, node, x, y):
        if hasattr(node, "stage"):
            yield from self._gate(node, x, y)
            yield self._label(node.stage.output, node.label, x + node.head + 6, y)
        elif hasattr(node, "input"):
            yield _text("name", node.name, x, y + 4.5, _LARGE)
            yield self._label(node.input, node.label, x + node.head + 4, y)
        elif hasattr(node, "constant"):
            yield _text("constant", node.constant, x, y + 4)
        elif getattr(node, "ending", ""):
            yield _text("name", node.ending, x + 4, y + 4.5, _LARGE)

    def _gate(self, node, x, y):
        stage, r = node.stage, _RADIUS
        lines = [f"{self._name(stage.output)} = {stage.text(self._name)}", stage.formula]
        lines += [f"local gradient for {self._name(p.input)}: " + (
            number_text(p.local) if isinstance(p.local, float) else f"Jacobian of shape {p.local.shape}")
            for p in stage.parts]
        yield f"<g><title>{escape(chr(10).join(_clean(line) for line in lines if line))}</title>"
        if node.radius:
            yield f'<circle class="gate" cx="{_n(x + r)}" cy="{_n(y)}" r="{r}"/>'
        else:
            yield (f'<rect class="gate" x="{_n(x)}" y="{_n(y - r)}" width="{_n(node.head)}" height="{2 * r}" '
                   f'rx="{r}"/>')
        size = {1: 18, 2: 14, 3: 12}.get(len(node.sign), _LARGE)
        yield _text("sign", node.sign, x + node.head / 2, y + 0.35 * size, size, "middle") + "</g>"

    def _label(self, t, label, x, y):
        about = f"{self._name(t)}: {t.dtype}" + (f" of shape {_shape(t)}" if t.ndim else "")
        parts = [f"<g><title>{escape(_clean(about))}</title>"]
        parts += [_text(kind, text, x + dx, y + dy) for kind, text, dx, dy in label.texts]
        for kind, heights, dx, dy in label.bars:
            bars = "".join(f"M{_n(x + dx + n * _BAR)} {_n(y + dy)}v{_n(-h * _TALL)}h{_BAR - 0.5}v{_n(h * _TALL)}z"
                           for n, h in enumerate(heights) if h)
            parts.append(f'<path class="{kind} histogram" d="{bars}"/>')
        return "".join((*parts, "</g>"))


def _text(kind, text, x, y, size=_SMALL, anchor="start"):
    return (f'<text class="{kind}" x="{_n(x)}" y="{_n(y)}" font-size="{size}" text-anchor="{anchor}">'
            f"{escape(text)}</text>")


def _n(x):
    return f"{x:.1f}".removesuffix(".0")


def _quoted(text):
    return '"' + escape(text, {'"': "&quot;"}) + '"'


def _style():
    """Rules for this picture only: where a page holds it, nothing else of the page changes."""
    scope = "svg.fastbp"

    def rules(which):
        return "".join(f"{','.join(f'{scope} {s}' for s in c[0].split(','))}{{{c[1]}:{c[which]}}}" for c in _COLORS)

    return f"{_STYLE.format(scope)}{rules(2)}@media (prefers-color-scheme:dark){{{rules(3)}}}"
