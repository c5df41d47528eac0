"""Circuits and their numbers: `tensor.gate`, traces, `fastbp circuit`."""
import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest
from cases import CASES
from test_cli import fastbp, on_a_terminal

import fastbp as fb
from fastbp import nn
from fastbp.gates import GATES, INTERNAL
from fastbp.show.circuit import Circuit
from fastbp.show.trace import Trace, expanded


def leaf(value, name=None):
    return fb.tensor(np.float64(value), requires_grad=True, name=name)


def neuron(values=(2, -1, -3, -2, -3)):
    """The sigmoid neuron of CS231n."""
    w0, x0, w1, x1, w2 = (leaf(v, n) for v, n in zip(values, ("w0", "x0", "w1", "x1", "w2"), strict=True))
    return fb.sigmoid(w0 * x0 + w1 * x1 + w2), (w0, x0, w1, x1, w2)


# --- tensor.gate

def test_a_gate_tells_its_inputs_local_gradients_formula_and_upstream():
    x, y, z = leaf(-2), leaf(5), leaf(-4)
    q = x + y
    f = q * z
    assert x.gate is None
    assert [t is u for t, u in zip(f.gate.inputs, (q, z), strict=True)] == [True, True]
    assert f.gate.local_gradients == (-4.0, 3.0) and q.gate.local_gradients == (1.0, 1.0)
    assert f.gate.formula == "z = x y" and f.gate.name == "mul" and "mul" in repr(f.gate)
    with pytest.raises(RuntimeError, match="call backward"):
        repr(q.gate.upstream)
    f.backward()
    assert q.gate.upstream.item() == -4 and f.gate.upstream.item() == 1
    assert (x.grad.item(), y.grad.item(), z.grad.item()) == (-4, -4, 3)
    del f
    with pytest.raises(RuntimeError, match="keep the output"):
        repr(q.gate.upstream)


def test_upstream_has_the_gradient_that_backward_was_given():
    x = leaf([1.0, 2.0])
    y = x * 3
    z = y * y
    z.backward(np.array([1.0, 10.0]))
    assert y.gate.upstream.numpy().tolist() == [6.0, 120.0]
    assert z.gate.upstream.numpy().tolist() == [1.0, 10.0]


def test_upstream_is_of_the_gradient_as_it_was_given():
    x = leaf([1.0, 2.0])
    y = fb.tanh(x)
    loss, seed = y.sum(), fb.tensor(np.float64(5.0))
    loss.backward(seed)
    seed.copy_(np.array(7.0))
    assert y.gate.upstream.numpy().tolist() == [5.0, 5.0]


def test_looking_touches_no_gradient_and_no_tape():
    f, leaves = neuron()
    f.gate.local_gradients, Trace(f)
    assert all(t.grad is None for t in leaves)
    f.backward()
    before = [t.grad.item() for t in leaves]
    f.gate.upstream, f.gate.local_gradients, Trace(f)
    assert [t.grad.item() for t in leaves] == before


def test_local_gradients_of_arrays_are_functions_with_the_jacobians_shape():
    rng = np.random.default_rng(0)
    x, w = fb.tensor(rng.random((3, 4)), requires_grad=True), fb.tensor(rng.random((4, 2)), requires_grad=True)
    y = x @ w
    dx, dw = y.gate.local_gradients
    assert dx.shape == (3, 2, 3, 4) and dw.shape == (3, 2, 4, 2)
    dy = rng.random((3, 2))
    assert np.allclose(dx(dy).numpy(), dy @ w.numpy().T) and np.allclose(dw(dy).numpy(), x.numpy().T @ dy)


def test_an_input_without_a_gradient_has_none():
    x, c = leaf(2), fb.tensor(np.float64(3))
    assert (x * c).gate.local_gradients == (3.0, None)
    scores = fb.tensor(np.zeros((2, 3)), requires_grad=True)
    loss = fb.cross_entropy(scores, np.array([0, 2]))
    assert loss.gate.name == "mean" and loss.gate.inputs[0].gate.local_gradients[1] is None


def test_a_recorded_tensor_has_nothing_to_look_at():
    @fb.staged
    def f(x):
        return (x * 2).gate.local_gradients
    with pytest.raises(fb.StagingError, match="eager"):
        f(leaf(1))


# --- traces

@pytest.mark.parametrize("values", [(2, -1, -3, -2, -3), (0.3, 1.7, -0.2, 0.9, 0.05)])
def test_a_trace_has_the_gradients_of_backward_to_the_bit(values):
    f, leaves = neuron(values)
    trace = Trace(f)
    f.backward()
    assert [trace.gradient(t).item() for t in leaves] == [t.grad.item() for t in leaves]
    assert [s.name for s in trace.stages] == ["mul", "mul", "add", "add", "sigmoid"]
    assert [s.text(trace.name) for s in trace.stages] == [
        "w0 * x0", "w1 * x1", "t1 + t2", "t3 + w2", "sigmoid(t4)"]
    for stage in trace.stages:
        for part in stage.parts:
            assert part.product.item() == pytest.approx(stage.upstream.item() * part.local, rel=1e-14)


def test_gradients_add_at_a_fork():
    a = leaf(3, "a")
    b = a * a + a
    trace = Trace(b)
    parts = [(s.number, p.product.item(), p.adds) for s in reversed(trace.stages) for p in s.parts if p.input is a]
    assert parts == [(2, 1.0, False), (1, 3.0, True), (1, 3.0, True)]
    assert trace.gradient(a).item() == 7


def test_groups_are_whole_or_apart():
    x, t = leaf([1.0, 2.0], "x"), np.array([0.5, 0.0])
    loss = fb.mse_loss(x * 2, t)
    whole, apart = Trace(loss, whole=True), Trace(loss)
    assert [s.name for s in whole.stages] == ["mul", "mse_loss"]
    assert [s.name for s in apart.stages] == ["mul", "sub", "square", "mean"]
    assert [g.name for g in apart.stages[-1].groups] == ["mse_loss"]
    assert whole.stages[1].formula.startswith("y = mean (x - target)^2")
    assert np.array_equal(whole.gradient(x).numpy(), apart.gradient(x).numpy())
    (part,) = whole.stages[1].parts
    assert np.array_equal(part.product.numpy(), whole.stages[0].upstream.numpy())


def test_a_group_with_two_results_stays_apart():
    @fb.gate
    def both(x):
        return x * 2, x * 3
    x = leaf(1)
    a, b = both(x)
    assert [s.name for s in Trace(a * b, whole=True).stages] == ["mul", "mul", "mul"]


def test_layers_are_groups_that_know_their_module():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    stages = Trace(model(fb.ones((2, 3))).sum()).stages
    assert [[g.name for g in s.groups] for s in stages] == [
        ["Sequential", "Linear"], ["Sequential", "Linear"], ["Sequential", "Linear"], ["Sequential", "Tanh"],
        ["Sequential", "Linear"], ["Sequential", "Linear"], ["Sequential", "Linear"], []]
    assert stages[3].groups[1].module is model[1] and stages[3].groups[0].module is model


@pytest.mark.parametrize("name", [name for name, gate in {**GATES, **INTERNAL}.items() if getattr(gate, "parts", None)])
def test_the_parts_of_a_gate_give_the_same_value_and_gradient(name):
    gate = {**GATES, **INTERNAL}[name]
    for value in (-3.0, -0.7, 0.1, 2.5):
        a, b = leaf(value), leaf(value)
        y = gate(a)
        z = expanded(gate(b))
        assert len(Trace(z).stages) > 1 and all(s.gate.parts is None for s in Trace(z).stages)
        assert {s.groups[0].name for s in Trace(z).stages} == {name}
        assert z.item() == pytest.approx(y.item(), rel=1e-13)
        y.backward()
        z.backward()
        assert b.grad.item() == pytest.approx(a.grad.item(), rel=1e-12)


def test_expanding_keeps_names_values_and_what_has_no_parts():
    x, y = leaf(0.3, "x"), leaf(-1.2, "y")
    f = fb.tanh(fb.exp(x) * y) + x
    f.name = "f"
    g = expanded(f)
    assert g.name == "f" and g.item() == pytest.approx(f.item(), rel=1e-14)
    assert expanded(x * y)._gate.name == "mul"
    with pytest.raises(ValueError, match="matmul"):
        expanded(fb.tanh(fb.ones((2, 2), requires_grad=True)) @ fb.ones((2, 2)))


# --- fastbp circuit

def circuit(expression, *args, code=0):
    result = fastbp("circuit", expression, *args)
    assert result.returncode == code, result.stderr
    assert (result.stderr == "") == (code == 0)
    return result.stdout if code == 0 else result.stderr


def test_the_first_circuit_of_the_text():
    assert circuit("q = x + y; f = q * z", "x=-2", "y=5", "z=-4") == """\
forward
(1) q = x + y            3
(2) f = q * z          -12

backward        upstream          local        product
(2) dq    =            1 *           -4 =           -4
(2) dz    =            1 *            3 =            3
(1) dx    =           -4 *            1 =           -4
(1) dy    =           -4 *            1 =           -4

gradients           at      gradient    difference
dx                  -2            -4            -4  agrees
dy                   5            -4            -4  agrees
dz                  -4             3             3  agrees
"""


def test_forks_add_in_the_order_of_the_text():
    text = circuit("sigy = sigmoid(y); num = x + sigy; sigx = sigmoid(x); xpy = x + y; xpysqr = xpy**2;"
                   "den = sigx + xpysqr; f = num / den", "x=3", "y=-4")
    assert "(7) f = num / den            1.54564" in text
    assert re.search(r"\(4\) dx +=.*\n\(4\) dy +=.*\n\(3\) dx +\+=.*\n\(2\) dx +\+=.*\n\(2\) dsigy +=.*\n\(1\) dy +\+=",
                     text)
    assert text.count("agrees") == 2 and "2.05957" in text and "1.59223" in text


def test_grouped_gates_are_one_stage_or_their_parts(tmp_path):
    whole = circuit("f = sigmoid(w * x)", "w=2", "x=-0.5")
    parts = circuit("f = sigmoid(w * x)", "w=2", "x=-0.5", "--expand", "--json", tmp_path / "c.json")
    assert "(2) f = sigmoid(t1)" in whole and "(3)" not in whole
    assert "(5) f = 1 / t4" in parts and "t3 = exp(t2)" in parts and "t2 = -t1" in parts and "t4 = 1 + t3" in parts
    for text in (whole, parts):
        assert "dw                   2     -0.098306     -0.098306  agrees" in text
    data = json.loads((tmp_path / "c.json").read_text())
    assert [s["gate"] for s in data["forward"]] == ["mul", "neg", "exp", "add", "div"]
    s = 1 / (1 + math.exp(1))
    assert data["forward"][-1]["value"] == pytest.approx(s, rel=1e-15) and data["output"] == "f"
    assert {i["name"]: i["gradient"] for i in data["inputs"]} == {
        "w": pytest.approx(-0.5 * s * (1 - s)), "x": pytest.approx(2 * s * (1 - s))}
    for step in data["backward"]:
        assert step["product"] == pytest.approx(step["upstream"] * step["local"])


@pytest.mark.parametrize("expression, inputs", [
    ("a * b + exp(c) / a - b ** c", {"a": 1.3, "b": 0.4, "c": -0.8}),
    ("log1p(square(x)) * tanh(y) + softplus(-x)", {"x": 0.9, "y": -2.1}),
    ("leaky_relu(x, 0.2) + elu(y, alpha=0.5) + gelu(x * y)", {"x": -1.5, "y": -0.3}),
    ("maximum(x, y) * minimum(x, 2) + abs(y)", {"x": 1.5, "y": -0.25}),
    ("mse_loss(x, y) + huber_loss(x, y, delta=0.1) + silu(x)", {"x": 0.5, "y": 0.1})])
def test_gradients_agree_with_central_differences(expression, inputs):
    text = circuit(expression, *(f"{k}={v}" for k, v in inputs.items()))
    assert text.count("  agrees") == len(inputs)


def test_values_are_green_and_gradients_red_on_a_terminal_only():
    args = ["-m", "fastbp", "circuit", "x * 2", "x=3"]
    seen = on_a_terminal(*args)
    assert b"\x1b[32m           6\x1b[0m" in seen and b"\x1b[31m           2\x1b[0m" in seen
    assert b"\x1b" not in on_a_terminal(*args, NO_COLOR="1")
    assert b"\x1b" not in on_a_terminal(*args, TERM="dumb")
    assert "\x1b" not in circuit("x * 2", "x=3")


def test_a_kink_and_what_is_not_finite_are_said():
    assert "differs: a kink?" in circuit("relu(x)", "x=0")
    assert "not finite" in circuit("log(x)", "x=0")
    assert "-x" in circuit("-x", "x=1")


def test_kinks_and_rounding_are_told_apart_at_any_scale():
    assert "differs: a kink?" in circuit("1e-9 * relu(x)", "x=0")
    assert "agrees" in circuit("1e12 + x", "x=1") and "agrees" in circuit("x ** 3", "x=0")
    assert circuit("exp(30 * x) * sigmoid(1e-6 * y)", "x=1", "y=2").count("agrees") == 2


def test_a_whole_call_shows_its_own_arguments():
    assert "std(t1)" in circuit("std(y * 2)", "y=2")
    assert "huber_loss(x, y)" in circuit("huber_loss(x, y, delta=0.5)", "x=1", "y=3")
    assert "binary_cross_entropy_with_logits(x, y)" in circuit("binary_cross_entropy_with_logits(x, y)", "x=1", "y=0.3")


def test_json_has_null_for_what_is_not_finite(tmp_path):
    circuit("log(x)", "x=0", "--json", tmp_path / "n.json")
    data = json.loads((tmp_path / "n.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert data["forward"][0]["value"] is None


def test_names_are_read_as_python_reads_them():
    assert "agrees" in circuit("\u00b5 * 2", "\u00b5=3")    # the micro sign, which Python takes for mu


@pytest.mark.parametrize("args", [["circuit", "x * 2", "x=1"], ["fit", "--steps", "5"], ["health", "--depth", "2"]])
def test_a_closed_standard_output_is_no_traceback(args):
    command = " ".join([sys.executable, "-m", "fastbp", *(f"'{a}'" for a in args), ">&-"])
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert result.returncode == 0 and result.stderr == ""


def test_lines_fit_80_columns_whatever_the_names():
    name = "a_name_that_is_much_longer_than_any_name_should_be_in_any_expression_at_all"
    text = circuit(f"{name} = x * {name}_too; f = exp({name}) + x", "x=1", f"{name}_too=2")
    assert max(map(len, text.splitlines())) <= 80 and "agrees" in text


@pytest.mark.parametrize("expression, values, message", [
    ("x.__class__", ["x=1"], "only names, numbers"),
    ("__import__('os')", [], "there is no gate '__import__'"),
    ("(lambda: x)()", ["x=1"], "only names, numbers"),
    ("[x for x in y]", ["y=1"], "only names, numbers"),
    ("x[0]", ["x=1"], "only names, numbers"),
    ("exp(*x)", ["x=1"], "not read"),
    ("f'{x}'", ["x=1"], "only names, numbers"),
    ("import os", [], "only expressions"),
    ("x += 1", ["x=1"], "only expressions"),
    ("a, b = x", ["x=1"], "only expressions"),
    ("x := 1", [], "can't be read"),
    ("f(", [], "can't be read"),
    ("", [], "empty"),
    (";", [], "can't be read"),
    ("x ^ 2", ["x=1"], "a power is written \\*\\*"),
    ("sigmod(x)", ["x=1"], "sigmoid"),
    ("exp(x, 1)", ["x=1"], "exp"),
    ("argmax(x)", ["x=1"], "no float64"),
    ("f = g + x; g = x", ["x=1"], "used or set before"),
    ("x = x + 1", ["x=1"], "used or set before"),
    ("x; y", ["x=1"], "y is used before it is set: give it a value, y=1"),
    ("x * 2", ["x=1", "y=2"], "y is not in the expression"),
    ("x * 2", ["x=1", "x=2"], "twice"),
    ("x * 2", ["x"], "NAME=NUMBER"),
    ("x * 2", ["x=one"], "no number"),
    ("x", ["x=1"], "nothing to undo"),
    ("2 + 3", [], "nothing to undo"),
    ("x * 2", ["x=1", "--json", "/nowhere/at/all.json"], "No such file"),
    ("x * 2", ["x=1", "--svg", ""], "the name is empty"),
    ("+".join(["x"] * 1500), ["x=1"], "nests too deeply"),
])
def test_a_wrong_expression_gets_one_clear_line(expression, values, message):
    text = circuit(expression, *values, code=2)
    assert text.count("\n") == 1 and text.startswith("fastbp circuit: ") and re.search(message, text), text


@pytest.mark.parametrize("expression", [
    "(" * 10_000 + "x" + ")" * 10_000, "9" * 1_000_000 + " * x", "1" * 5000 + " * x", "-" * 15_000 + "x",
    "exp(" * 4000 + "x" + ")" * 4000, "x" * 100_000], ids=["brackets", "digits", "number", "signs", "calls", "name"])
def test_hostile_expressions_are_refused(expression):
    with pytest.raises(ValueError) as problem:
        Circuit(expression).run({"x": 1.0})
    assert "\n" not in str(problem.value) and len(str(problem.value)) < 200


def test_a_long_sum_is_no_problem():
    assert Circuit("+".join(["x"] * 500)).run({"x": 2.0}).item() == 1000


def test_powers_of_numbers_take_no_time():
    assert Circuit("2 ** 10 ** 10 ** 10 * x").run({"x": 1.0}).item() == math.inf


@pytest.mark.parametrize("name", [name for name in CASES if getattr(GATES.get(name), "form", "") == "elementwise"
                                  and GATES[name].differentiable and name != "where"])
def test_every_elementwise_gate_can_be_called(name):
    letters = "abc"[:len(GATES[name].inputs)]
    values = {k: v for k, v in zip(letters, (0.4, 0.7, 0.9), strict=False)}
    out = Circuit(f"{name}({', '.join(letters)})").run(values)
    assert out.item() == GATES[name](*[leaf(v) for v in values.values()]).item()
