"""Drawings: true numbers, and a geometry, read from the SVG itself, in which nothing covers anything."""
import math
import re
import unicodedata
import xml.etree.ElementTree as ET
from collections import Counter

import numpy as np
import pytest
from test_cli import fastbp

import fastbp as fb
from fastbp import nn, optim
from fastbp.gates.row import Group
from fastbp.show.circuit import number_text
from fastbp.show.draw import _bars, _norm, _Picture
from fastbp.show.layout import Layout, Net, Node, spread
from fastbp.show.trace import Trace, expanded
from fastbp_ext.tensor import in_group

SVG = "{http://www.w3.org/2000/svg}"


def leaf(value, name=None):
    return fb.tensor(np.asarray(value, np.float64), requires_grad=True, name=name)


# --- circuits

def neuron():
    w0, x0, w1, x1, w2 = (leaf(v, n) for v, n in zip((2, -1, -3, -2, -3), ("w0", "x0", "w1", "x1", "w2"), strict=True))
    return fb.sigmoid(w0 * x0 + w1 * x1 + w2)


def chain(n):
    y = leaf(0.5, "x")
    for i in range(n):
        y = fb.tanh(y) if i % 2 else y * -1.01
    return y


def wide_sum(n):
    return sum((leaf(i / 7, f"a{i}") * leaf(-0.5, f"b{i}") for i in range((n - 1) // 2)), leaf(0, "s"))


def one_gate_of_many(n):
    return fb.stack([leaf(i, f"a{i}") * 2 for i in range(n - 1)]).sum()


def fork(n):
    x = leaf(0.9, "x")
    y = x
    for i in range(n):
        y = y * x if i % 3 else y + y
    return y


def tree(n):
    xs = [leaf(i + 0.5, f"x{i}") for i in range(n + 1)]
    while len(xs) > 1:
        xs = [a - b for a, b in zip(xs[::2], xs[1::2], strict=False)] + ([xs[-1]] if len(xs) % 2 else [])
    return xs[0]


def random_circuit(n, seed=0):
    rng = np.random.default_rng(seed)
    pool = [leaf(round(rng.normal(), 2), f"x{i}") for i in range(8)]
    unread = list(pool)

    def pick():
        if unread and rng.random() < 0.8:
            return unread.pop(int(rng.integers(len(unread))))
        return pool[int(rng.integers(len(pool)))]
    for _ in range(n - 6):
        x = pick()
        y = [lambda x: x + pick(), lambda x: x - pick(), lambda x: fb.maximum(x, pick()), fb.tanh, fb.softplus,
             lambda x: x * 0.1][int(rng.integers(6))](x)
        pool.append(y)
        unread.append(y)
    return sum(unread[1:], unread[0])


def scalar_net(sizes, gate):
    rng = np.random.default_rng(1)

    def unit(xs, ws, b):
        return fb.tanh(sum((w * x for w, x in zip(ws[1:], xs[1:], strict=True)), ws[0] * xs[0]) + b)
    unit = fb.gate(unit) if gate else unit
    xs = [leaf(v, f"x{i}") for i, v in enumerate(rng.normal(size=sizes[0]))]
    for i, n in enumerate(sizes[1:]):
        xs = [unit(xs, [leaf(rng.normal(), f"w{i}{k}{j}") for j in range(len(xs))], leaf(0.1, f"b{i}{k}"))
              for k in range(n)]
    return sum(xs[1:], xs[0])


def net(layers, batch=5):
    rng = np.random.default_rng(0)
    sizes = [7] + [6] * layers
    model = nn.Sequential(*(m for i, o in zip(sizes, sizes[1:], strict=False)
                            for m in (nn.Linear(i, o, rng=rng), nn.ReLU())))
    x = fb.tensor(rng.normal(size=(batch, 7)), dtype="float32", name="x")
    return nn.functional.cross_entropy(model(x), np.arange(batch) % 6), model


def tangled():
    """A group that is left and entered again: no box can hold it."""
    x, group = leaf(1.5, "x"), Group("twice")
    a = in_group(group, lambda: x * x, (), {})
    b = fb.exp(a)
    return in_group(group, lambda: a + b, (), {})


def named(name):
    x = leaf(2, name)
    y = x * x
    y.name = name + "2"
    return y + 1


def long_group():
    def a_function_with_a_name_that_is_longer_than_its_box(x):
        return x * 2
    return fb.tanh(fb.gate(a_function_with_a_name_that_is_longer_than_its_box)(leaf(1, "x")) + 1)


def of_array(values, dtype=np.float64):
    x = fb.tensor(np.asarray(values, dtype), requires_grad=True, name="x")
    return (x * x).sum()


CIRCUITS = {
    "neuron": neuron, "parts of a neuron": lambda: expanded(neuron()),
    **{f"{make.__name__} {n}": lambda make=make, n=n: make(n) for n in (8, 30, 80)
       for make in (chain, wide_sum, one_gate_of_many, fork, tree, random_circuit)},
    **{f"random {seed}": lambda seed=seed: random_circuit(40, seed) for seed in range(1, 9)},
    "scalar net": lambda: scalar_net((3, 4, 4, 1), False), "boxes": lambda: scalar_net((3, 4, 4, 1), True),
    "two layers": lambda: net(2)[0], "deep net": lambda: net(12)[0], "tangled": tangled, "long group": long_group,
    "long name": lambda: named("a_name_that_is_much_longer_than_any_name_should_be"),
    "markup": lambda: named("<b a='\"'>&amp;</b>]]>"), "odd characters": lambda: named("日本\x00\n\ud800é"),
    "nan and inf": lambda: fb.log(leaf(-1, "x")) + fb.log(leaf(0, "y")), "zero": lambda: leaf(0, "x") * 0,
    "zeros": lambda: of_array(np.zeros((3, 4))), "one value": lambda: of_array(np.full(50, 3.25)),
    "empty": lambda: of_array(np.zeros((0, 3))), "large": lambda: of_array([1e300, -1e300, 2.0, math.inf, math.nan]),
    "float32": lambda: of_array([[1.5], [2.5]], np.float32), "batched": lambda: of_array(np.ones((2, 3, 4, 5, 6))),
    "labels": lambda: fb.cross_entropy(leaf(np.eye(4)), np.array([0, 3, 1, 1])),
    "choice": lambda: fb.where(np.array([True, False]), leaf([1.0, 2.0], "x"), 0.0).sum(),
}


# --- the geometry, from the SVG

def text_box(e):
    text, size = e.text or "", float(e.get("font-size"))
    width = sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text) * 0.605 * size
    x, y = float(e.get("x")), float(e.get("y"))
    x -= {"start": 0, "middle": width / 2}[e.get("text-anchor")]
    return x, y - 0.78 * size, x + width, y + 0.22 * size


def rect_box(e):
    x, y, w, h = (float(e.get(k)) for k in ("x", "y", "width", "height"))
    return x, y, x + w, y + h


def gate_box(e):
    if e.tag == f"{SVG}rect":
        return rect_box(e)
    x, y, r = (float(e.get(k)) for k in ("cx", "cy", "r"))
    return x - r, y - r, x + r, y + r


def bars_box(e):
    boxes = [(float(x), float(y) + float(v), float(x) + float(h), float(y)) for x, y, v, h in
             re.findall(r"M([-\d.]+) ([-\d.]+)v([-\d.]+)h([-\d.]+)v[-\d.]+z", e.get("d"))]
    xs, ys, xe, ye = zip(*boxes, strict=True)
    return min(xs), min(ys), max(xe), max(ye)


def wire_points(e):
    """Points along a wire, a pixel or less apart in x."""
    points, here = [], None
    for command, numbers in re.findall(r"([MHC])([-\d. ]+)", e.get("d")):
        v = [float(n) for n in numbers.split()]
        if command == "H":
            points += [(x, here[1]) for x in np.linspace(here[0], v[0], 2 + int(abs(v[0] - here[0])))]
        elif command == "C":
            t = np.linspace(0, 1, 120)[:, None]
            p = (1 - t) ** 3 * here + 3 * (1 - t) ** 2 * t * v[:2] + 3 * (1 - t) * t ** 2 * np.array(v[2:4]) \
                + t ** 3 * np.array(v[4:])
            points += p.tolist()
        here = np.array([v[0], here[1]] if command == "H" else v[-2:])
    return np.array(points)


class Geometry:
    def __init__(self, text):
        self.root = ET.fromstring(text)
        of = lambda kind: [e for e in self.root.iter() if kind in e.get("class", "").split()]
        self.gates = [gate_box(e) for e in of("gate")]
        self.signs = [(e.text, text_box(e)) for e in of("sign")]
        self.texts = [(e.get("class"), e.text, text_box(e)) for e in self.root.iter(f"{SVG}text")
                      if e.get("class") != "sign"]
        self.bars = [bars_box(e) for e in of("histogram") if e.get("d")]
        self.groups = [rect_box(e) for e in of("group")]
        self.wires = [wire_points(e) for e in of("wire")]
        self.titles = [e.text for e in self.root.iter(f"{SVG}title")]

    def of(self, kind):
        return [text for k, text, _ in self.texts if k == kind]

    def labels(self):
        """{what is on the wire, as the title begins: {class: [texts]}}"""
        found = {}
        for g in self.root.iter(f"{SVG}g"):
            title, texts = g.find(f"{SVG}title").text, {}
            for e in g.iter(f"{SVG}text"):
                texts.setdefault(e.get("class"), []).append(e.text)
            if "value" in texts:
                found[title.partition(":")[0]] = texts
        return found


def inside(a, b):
    return b[0] <= a[0] and b[1] <= a[1] and a[2] <= b[2] and a[3] <= b[3]


@pytest.fixture(scope="module", params=CIRCUITS)
def drawn(request):
    root = CIRCUITS[request.param]()
    return root, Geometry(root.draw())


def test_nothing_covers_anything(drawn):
    _, g = drawn
    boxes = np.array([b for *_, b in g.texts] + g.gates + g.bars)
    a, b = boxes[:, None], boxes[None]
    wide = np.minimum(a[..., 2], b[..., 2]) - np.maximum(a[..., 0], b[..., 0])
    high = np.minimum(a[..., 3], b[..., 3]) - np.maximum(a[..., 1], b[..., 1])
    covered = np.argwhere(np.triu((wide > 0.05) & (high > 0.05), 1))
    names = [t[1] for t in g.texts] + ["gate"] * len(g.gates) + ["bars"] * len(g.bars)
    assert not [(names[i], names[j], boxes[i], boxes[j]) for i, j in covered]
    page = (0, 0, float(g.root.get("width")), float(g.root.get("height")))
    assert all(inside(box, page) for box in boxes)
    assert g.root.get("viewBox") == f"0 0 {page[2]:g} {page[3]:g}"
    assert all(any(inside(sign, gate) for gate in g.gates) for _, sign in g.signs)


def test_no_wire_runs_through_a_label_or_a_gate(drawn):
    _, g = drawn
    boxes = np.array([b for *_, b in g.texts] + g.gates + g.bars)
    for points in g.wires:
        x, y = points[:, :1], points[:, 1:]
        hit = (x > boxes[:, 0] + 0.2) & (x < boxes[:, 2] - 0.2) & (y > boxes[:, 1] + 0.2) & (y < boxes[:, 3] - 0.2)
        # A wire ends on the circle, within the square around it.
        r = (boxes[:, 2] - boxes[:, 0]) / 2
        round_ = np.isclose(boxes[:, 3] - boxes[:, 1], 30) & np.isclose(r, 15)
        far = np.hypot(x - (boxes[:, 0] + 15), y - (boxes[:, 1] + 15)) > 14.8
        assert not (hit & ~(round_ & far)).any()


def test_a_group_is_a_box_around_its_gates_and_nothing_else(drawn):
    root, g = drawn
    trace = Trace(root)
    members = Counter()
    groups = {id(group): group for s in trace.stages for group in s.groups if group.name != "twice"}
    for s in trace.stages:
        members.update(id(group) for group in s.groups if id(group) in groups)
    assert sorted(members.values()) == sorted(sum(inside(gate, box) for gate in g.gates) for box in g.groups)
    for box in g.groups:
        for gate in g.gates:
            assert inside(gate, box) or gate[2] <= box[0] or gate[0] >= box[2] or gate[3] <= box[1] or gate[1] >= box[3]
        for points in g.wires:
            within = ((points > np.array(box[:2]) + 0.2) & (points < np.array(box[2:]) - 0.2)).all(axis=1)
            on = ((points >= np.array(box[:2]) - 0.2) & (points <= np.array(box[2:]) + 0.2)).all(axis=1)
            assert not within.any() or on.all()
    for e in g.root.iter(f"{SVG}g"):
        if e.find(f"{SVG}text").get("class") == "title":
            assert inside(text_box(e.find(f"{SVG}text")), rect_box(e.find(f"{SVG}rect")))
    for i, a in enumerate(g.groups):
        for b in g.groups[i + 1:]:
            apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
            assert apart or inside(b, a) or inside(a, b)


def test_every_stage_and_every_number_is_there(drawn):
    root, g = drawn
    trace = Trace(root)
    assert len(g.gates) == len(trace.stages)
    values, gradients = Counter(), Counter()
    for t in (*(s.output for s in trace.stages), *trace.inputs):
        if not t.requires_grad and t.size == 1:
            continue
        x, dx = t.numpy(), trace.gradient(t)
        if t.size == 1:
            values[number_text(t.item())] += 1
            gradients[number_text(dx.item())] += 1
        elif x.dtype.kind == "f":
            with np.errstate(over="ignore"):
                values[f"norm {number_text(_norm(x))}"] += 1
            gradients.update([f"norm {number_text(_norm(dx.numpy()))}"] if dx is not None else [])
        else:
            values[f"{int(x.min())} to {int(x.max())}"] += 1
    assert Counter(g.of("value")) == values and Counter(g.of("gradient")) == gradients


# --- numbers

def test_the_numbers_of_the_sigmoid_neuron():
    labels = Geometry(neuron().draw()).labels()
    assert {k: (v["value"], v["gradient"]) for k, v in labels.items()} == {
        "w0": (["2"], ["-0.196612"]), "x0": (["-1"], ["0.393224"]), "w1": (["-3"], ["-0.393224"]),
        "x1": (["-2"], ["-0.589836"]), "w2": (["-3"], ["0.196612"]), "t1": (["-2"], ["0.196612"]),
        "t2": (["6"], ["0.196612"]), "t3": (["4"], ["0.196612"]), "t4": (["1"], ["0.196612"]),
        "t5": (["0.731059"], ["1"])}
    assert [s for s, _ in Geometry(neuron().draw()).signs] == ["×", "×", "+", "+", "σ"]


def test_the_numbers_of_arrays_are_shape_norm_and_gradients_norm():
    loss, model = net(2)
    labels = Geometry(loss.draw()).labels()
    loss.backward()
    for name, p in model.named_parameters():
        assert labels[name]["shape"] == ["×".join(map(str, p.shape))]
        for kind, x in (("value", p), ("gradient", p.grad)):
            (text,) = labels[name][kind]
            assert float(text.removeprefix("norm ")) == pytest.approx(np.linalg.norm(x.numpy()), rel=1e-5)
    assert labels["x"]["shape"] == ["5×7"] and "gradient" not in labels["x"]


def test_a_histogram_counts_the_values():
    assert _bars(np.array([0.0, 0.1, 12.0, 11.5])) == [1.0] + [0.0] * 10 + [1.0]
    assert _bars(np.arange(12.0)) == [1.0] * 12
    assert _bars(np.full(9, -3.0)) == [0.0] * 6 + [1.0] + [0.0] * 5
    assert _bars(np.array([math.nan, math.inf])) == [] and _bars(np.zeros((0, 2))) == []
    assert sum(_bars(np.array([1e308, -1e308, 1e-320]))) == 3 and _bars(np.array([True, False, False]))[0] == 1
    assert sum(_bars(np.array([1.0, np.nextafter(1.0, 2)]))) == 2


def test_a_histogram_stands_where_the_counts_say():
    root = ET.fromstring(of_array([0.0, 0.0, 3.0, 12.0]).draw())
    label = next(g for g in root.iter(f"{SVG}g") if g.find(f"{SVG}title").text.startswith("x:"))
    first = next(e for e in label if e.get("class") == "value histogram")
    heights = [float(v) for v in re.findall(r"v(-[\d.]+)", first.get("d"))]
    starts = [float(x) for x in re.findall(r"M([\d.]+)", first.get("d"))]
    assert heights == [-16, -8, -8] and np.diff(starts).tolist() == [9, 24]
    (shape,) = (e for e in label if e.get("class") == "shape")
    assert 0 < starts[0] - text_box(shape)[2] < 9


def test_a_norm_does_not_overflow():
    assert _norm(np.array([3e300, 4e300])) == pytest.approx(5e300) and _norm(np.array([3e-320, 0])) > 0
    assert math.isinf(_norm(np.array([math.inf, 1]))) and math.isnan(_norm(np.array([math.nan, 1])))
    assert _norm(np.zeros((0, 3))) == 0 and _norm(np.zeros(3)) == 0
    assert _norm(np.arange(12.0).reshape(3, 4)) == pytest.approx(506 ** 0.5, rel=1e-14)


def test_inputs_have_the_names_of_the_callers_variables():
    a, b = leaf(3), leaf([1.0, 2.0])
    product = a * b
    loss = product.sum()
    g = Geometry(loss.draw())
    assert sorted(g.of("name")) == ["a", "b", "loss", "product"]
    a.name = "own"
    assert "own" in Geometry(loss.draw()).of("name")


def test_names_are_found_through_a_notebooks_own_frames():
    weight = leaf(3)
    loss = weight * 2
    display = eval("lambda t: t._repr_svg_()", {"__name__": "decorator"})
    assert sorted(Geometry(display(loss)).of("name")) == ["loss", "weight"]


@pytest.mark.parametrize("call", [lambda x, y: x - y, lambda x, y: y / x, lambda x, y: fb.exp(y) - x])
def test_the_first_operand_stands_above_the_second(call):
    root = call(leaf(2, "x"), leaf(3, "y"))
    g = Geometry(root.draw())
    ends = {tuple(p[0].round(1)): p[-1] for p in g.wires}    # where a wire begins: where it ends
    first, second = root._inputs
    trace = Trace(root)
    starts = {text: box for kind, text, box in g.texts if kind == "name"}

    def end(t):
        if trace.name(t) in starts:
            x, y = starts[trace.name(t)][2], (starts[trace.name(t)][1] + starts[trace.name(t)][3]) / 2
        else:
            x, y = g.gates[0][2], (g.gates[0][1] + g.gates[0][3]) / 2
        return min(ends.items(), key=lambda item: math.hypot(item[0][0] - x, item[0][1] - y))[1]
    assert end(first)[1] < end(second)[1]


def test_a_gate_tells_its_formula_and_local_gradients():
    x, y = leaf(2, "x"), leaf(5, "y")
    titles = Geometry((x * y).draw()).titles
    assert "t1 = x * y\nz = x y\nlocal gradient for x: 5\nlocal gradient for y: 2" in titles
    assert any("Jacobian of shape (2, 2)" in t for t in Geometry(fb.exp(leaf([1.0, 2.0])).draw()).titles)


def test_constants_are_small_numbers_without_a_gradient():
    g = Geometry((leaf(2, "x") * 3 + 1).draw())
    assert g.of("constant") == ["3", "1"] and len(g.of("gradient")) == 3
    g = Geometry(long_group().draw())
    assert {text: inside(box, g.groups[0]) for kind, text, box in g.texts if kind == "constant"} == {
        "2": True, "1": False}


def test_inputs_end_where_their_column_ends():
    g = Geometry((leaf(1, "x") * leaf(2, "a_rather_long_name")).draw())
    (_, _, a), (_, _, b) = (t for t in g.texts if t[0] == "name")
    assert a[2] - a[0] + 50 < b[2] - b[0] and a[2] == pytest.approx(b[2], abs=6)


def test_names_are_escaped_and_cut():
    assert "<b a='\"'>&amp;</b>]]>" in Geometry(CIRCUITS["markup"]().draw()).of("name")
    name = "a_name_that_is_much_longer_than_any_name_should_be"
    g = Geometry(named(name).draw())
    assert max(map(len, g.of("name"))) == 24 and any(t.startswith(name + ":") for t in g.titles)


def test_layers_are_boxes_with_their_paths_and_hold_their_parameters():
    loss, model = net(2)
    g = Geometry(loss.draw())
    assert sorted(g.of("title")) == ["Linear 0", "Linear 2", "ReLU 1", "ReLU 3", "Sequential", "cross_entropy"]
    places = {text: box for kind, text, box in g.texts if kind in ("title", "name")}
    for layer in (0, 2):
        (box,) = [b for b in g.groups if inside(places[f"Linear {layer}"], b) and b[0] + 10 >= places[
            f"Linear {layer}"][0] - 0.1]
        assert inside(places[f"{layer}.weight"], box) and inside(places[f"{layer}.bias"], box)
        assert not inside(places["x"], box)


def test_a_composite_drawn_whole_is_one_gate():
    x = leaf([1.0, 2.0], "x")
    loss = fb.mse_loss(x * 2, np.array([0.5, 0.0]))
    g = Geometry(_Picture(Trace(loss, whole=True)).svg())
    assert [s for s, _ in g.signs] == ["×", "mse_loss"] and not g.groups


# --- crossings

def test_a_tree_has_no_crossings_and_sweeps_add_none():
    assert _Picture(Trace(tree(63))).crossings == 0 and _Picture(Trace(wide_sum(80))).crossings == 0
    fewer = 0
    for seed in range(12):
        picture = _Picture(Trace(random_circuit(60, seed)))
        nodes, nets = picture.whole.layout.nodes, picture.whole.layout.nets
        counts = [Layout(nodes, nets, sweeps=n).crossings for n in range(13)]
        assert counts == sorted(counts, reverse=True) and counts[-1] == picture.crossings
        fewer += counts[-1] < counts[0]
    assert fewer >= 8


def test_wires_come_to_a_sum_in_the_order_of_their_heights():
    turned = 0
    for seed in range(12):
        layout = _Picture(Trace(random_circuit(60, seed))).whole.layout
        for node in layout.nodes:
            if not node.loose:
                continue
            arrivals = sorted((s.y1, p[3]) for net in layout.nets for s in layout.segments[net] if s.right is node
                              for p in layout.paths[net] if abs(p[1] - s.y1) < 1e-9 and abs(p[2] - node.x) < 15
                              and abs(p[3] - node.y) < 15)
            heights = [y for _, y in arrivals]
            assert heights == sorted(heights)
            order = [s.into for s in sorted(node.left, key=lambda s: s.y1)]
            turned += order != sorted(order)
    assert turned > 0


def test_crossings_are_counted():
    a, b, c, d = Node(leaf=True), Node(leaf=True), Node(ins=[0.0]), Node(ins=[0.0])
    end = Node(ins=[0.0, 0.0])
    nets = [Net((a, 0)), Net((b, 0)), Net((c, 0)), Net((d, 0))]
    for net_, sink in zip(nets, ((d, 0), (c, 0), (end, 0), (end, 1)), strict=True):
        net_.sinks.append(sink)
    layout = Layout([a, b, c, d, end], nets)
    assert layout.crossings == 0 and b.y < a.y
    layout.columns[0].reverse()
    a.place, b.place = b.place, a.place
    assert layout._count() == 1


def test_spread_is_least_squares_under_least_distances():
    assert spread([5.0, 1.0], [1.0, 1.0], [0.0, 10.0]) == [-2.0, 8.0]
    assert spread([5.0, 1.0], [3.0, 1.0], [0.0, 10.0]) == [1.5, 11.5]
    assert spread([0.0, 50.0, 90.0], [1.0] * 3, [0.0, 10.0, 20.0]) == [0.0, 50.0, 90.0]


def test_nets_in_a_circle_are_refused():
    a, b = Node(ins=[0.0]), Node(ins=[0.0])
    nets = [Net((a, 0)), Net((b, 0))]
    nets[0].sinks.append((b, 0))
    nets[1].sinks.append((a, 0))
    with pytest.raises(ValueError, match="cycle"):
        Layout([a, b], nets)


def test_long_wires_are_straight():
    x = leaf(0.3, "x")
    y = x
    for _ in range(20):
        y = fb.tanh(y)
    g = Geometry((y + x).draw())
    heights = [np.unique(p[:, 1].round(1)) for p in g.wires]
    assert sum(len(h) > 1 for h in heights) <= 3


def test_straightening_takes_bends_away(monkeypatch):
    def bends():
        return sum(_Picture(Trace(random_circuit(60, seed))).svg().count("C") for seed in range(6))
    straight = bends()
    monkeypatch.setattr(Layout, "_straighten", lambda self: None)
    assert straight < 0.8 * bends()


# --- calls

def test_drawing_touches_no_gradient_and_works_after_backward():
    loss, model = net(1)
    before = loss.draw()
    assert all(p.grad is None for p in model.parameters())
    loss.backward()
    grads = [p.grad.numpy().copy() for p in model.parameters()]
    assert loss.draw() == before
    assert all(np.array_equal(p.grad.numpy(), g) for p, g in zip(model.parameters(), grads, strict=True))


def test_after_a_step_values_are_gone_and_the_error_says_so():
    loss, model = net(2)
    loss.backward()
    optim.SGD(model.parameters(), lr=0.1).step()
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.draw()
    assert loss._repr_svg_() is None


def test_the_file_is_written_or_the_error_says_why(tmp_path):
    f = neuron()
    assert f.draw(tmp_path / "f.svg") is None
    assert (tmp_path / "f.svg").read_text(encoding="utf-8") == f.draw()
    with pytest.raises(OSError, match="No such file"):
        f.draw(tmp_path / "no" / "f.svg")


def test_what_no_gate_made_is_refused():
    with pytest.raises(RuntimeError, match="no gate made"):
        leaf(1).draw()
    with pytest.raises(RuntimeError, match="no gate made"):
        (fb.ones(2) * 2).draw()

    @fb.staged
    def f(x):
        y = x * 2
        assert y._repr_svg_() is None
        return y.draw()
    with pytest.raises(fb.StagingError, match="eager"):
        f(leaf(1))


def test_a_notebook_shows_what_can_be_read():
    f = neuron()
    assert f._repr_svg_() == f.draw() and f.draw()._repr_svg_() == f.draw()
    assert leaf(1)._repr_svg_() is None
    assert chain(300)._repr_svg_() is not None and chain(301)._repr_svg_() is None
    assert chain(301).draw().count('class="gate"') == 301


def test_a_long_chain_is_no_problem():
    assert chain(2000).draw().count('class="gate"') == 2000


def test_deep_groups_are_no_problem():
    def nest(n, x):
        return x * 2 if n == 0 else fb.gate(lambda x: nest(n - 1, x))(x)
    assert len(Geometry(nest(150, leaf(1)).draw()).groups) == 150


def test_light_and_dark_can_be_told_from_their_ground():
    style = ET.fromstring(neuron().draw()).find(f"{SVG}style").text
    light, dark = style.split("@media (prefers-color-scheme:dark)")

    def luminance(color):
        parts = [int(color[i:i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b
    for rules in (light, dark):
        colors = {kind: luminance(color) for kind, color in re.findall(r"\.(\w+)\{fill:(#\w{6})", rules)}
        for kind in ("value", "gradient"):
            a, b = sorted((colors[kind], colors["paper"]))
            assert (b + 0.05) / (a + 0.05) >= 4.5
    selectors = [s for rule in re.findall(r"([^{}]+)\{[^{}]*\}", light + dark[1:]) for s in rule.split(",")]
    assert len(selectors) > 20 and all(s.startswith("svg.fastbp ") for s in selectors)


# --- the command line

def test_fastbp_circuit_draws(tmp_path):
    def run(*args):
        result = fastbp("circuit", "f = sigmoid(w * x)", "w=2", "x=-0.5", *args)
        assert result.returncode == 0, result.stderr
        return Geometry((tmp_path / "c.svg").read_text(encoding="utf-8"))
    g = run("--svg", tmp_path / "c.svg")
    assert g.labels()["w"] == {"value": ["2"], "gradient": ["-0.098306"]} and g.labels()["f"]["value"] == ["0.268941"]
    assert [s for s, _ in g.signs] == ["×", "σ"]
    assert fastbp("circuit", "mse_loss(x, 2 * x)", "x=1", "--svg", tmp_path / "d.svg").returncode == 0
    assert [s for s, _ in Geometry((tmp_path / "d.svg").read_text(encoding="utf-8")).signs] == ["×", "mse_loss"]
    g = run("--svg", tmp_path / "c.svg", "--expand")
    assert sorted(s for s, _ in g.signs) == sorted(["×", "−x", "exp", "+", "÷"]) and g.of("title") == ["sigmoid"]


def test_a_drawing_that_cannot_be_written_gets_one_line(tmp_path):
    result = fastbp("circuit", "x * 2", "x=1", "--svg", tmp_path / "no" / "c.svg")
    assert result.returncode == 2 and re.fullmatch(r"fastbp circuit: .*No such file.*\n", result.stderr)


def test_gates_of_numpy_functions_are_drawn():
    cube = fb.define_gate("cube", lambda x: x**3, lambda dy, y, x: 3 * x**2 * dy)
    x = fb.tensor(np.float64(2.0), requires_grad=True, name="x")
    assert ">cube<" in cube(x).draw() and "12" in cube(x)._repr_svg_()
