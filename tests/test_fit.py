"""`fastbp fit`: the text's numbers, another gradient descent beside it, the chain rule, errors, the plot."""
import json
import os
import re

import numpy as np
import pytest
from test_cli import fastbp, on_a_terminal

from fastbp.show.fit import ACTIVATIONS, STATQUEST, Fit, fit, names_of, read_points

EIGHT = [(x, float(np.sin(4 * x) + 0.3 * x)) for x in np.linspace(-0.7, 0.9, 8)]
BENT = {    # value, derivative
    "softplus": (lambda z: np.logaddexp(0, z), lambda z: 1 / (1 + np.exp(-z))),
    "tanh": (np.tanh, lambda z: 1 - np.tanh(z) ** 2),
    "relu": (lambda z: np.maximum(z, 0), lambda z: (z > 0) * 1.0),
    "sigmoid": (lambda z: 1 / (1 + np.exp(-z)), lambda z: np.exp(-z) / (1 + np.exp(-z)) ** 2),
}


def run(*args, code=0, **options):
    result = fastbp("fit", *args, **options)
    assert result.returncode == code, result.stderr
    assert (result.stderr == "") == (code == 0)
    return result.stdout if code == 0 else result.stderr


def ssr_and_slopes(p, points, hidden, activation):
    """SSR and its gradient, {name: number}, by the chain rule written out."""
    x, observed = np.array(points).T
    bent, slope = BENT[activation]
    guess = p[f"b{hidden + 1}"] + sum(
        p[f"w{hidden + h}"] * bent(p[f"w{h}"] * x + p[f"b{h}"]) for h in range(1, hidden + 1))
    outer = -2 * (observed - guess)
    slopes = {f"b{hidden + 1}": outer.sum()}
    for h in range(1, hidden + 1):
        z = p[f"w{h}"] * x + p[f"b{h}"]
        slopes[f"w{hidden + h}"] = (outer * bent(z)).sum()
        slopes[f"b{h}"] = (outer * p[f"w{hidden + h}"] * slope(z)).sum()
        slopes[f"w{h}"] = (outer * p[f"w{hidden + h}"] * slope(z) * x).sum()
    return ((observed - guess) ** 2).sum(), slopes


def numpy_descent(start, points, hidden, activation, learned, rate, steps):
    """[(SSR, slopes, new values)] of the learned parameters, step by step."""
    p, found = dict(start), []
    for _ in range(steps):
        ssr, slopes = ssr_and_slopes(p, points, hidden, activation)
        p |= {name: p[name] - rate * slopes[name] for name in learned}
        found.append((ssr, [slopes[name] for name in learned], [p[name] for name in learned]))
    return found


def assert_same_descent(done: Fit, steps):
    expected = numpy_descent(done.start, done.points, done.hidden, done.activation, done.learned, done.rate, steps)
    assert done.history[-1].number == steps
    for s in done.history:
        ssr, slopes, new = expected[s.number - 1]
        assert s.ssr == pytest.approx(ssr, rel=1e-10, abs=1e-10)
        assert s.slopes == pytest.approx(slopes, rel=1e-10, abs=1e-10)
        assert s.steps == pytest.approx(np.multiply(done.rate, slopes), rel=1e-10, abs=1e-10)
        assert s.new == pytest.approx(new, rel=1e-10, abs=1e-10)


# --- numbers

def test_the_text_learns_b3():
    out = run("--only", "b3")
    rows = [line.split() for line in out.splitlines() if re.match(r" +\d+ +[\d.]", line)]
    assert rows[0][:5] == ["1", "20.4", "-15.7", "-1.57", "1.57"]
    assert rows[1][0] == "2" and rows[1][2] == "-6.26" and rows[1][4] == "2.19"
    assert rows[9][4] == "2.61" and abs(float(rows[9][3])) < 0.001 < abs(float(rows[8][3]))
    assert "stopped after 10 steps: every step is below 0.001" in out and "b3 = 2.6" in out
    assert re.search(r"^b3 +0 +-5\.21 \* +1\.00 = +-5\.21$", out, re.M)
    assert re.search(r"^ +sum +dSSR/db3 = +-15\.7$", out, re.M)
    assert "w1 = 3.34, b1 = -1.43, w2 = -3.53, b2 = 0.57, w3 = -1.22, w4 = -2.3, b3 = 0" in out


@pytest.mark.parametrize("hidden, activation, only, start, rate, steps", [
    (2, "softplus", ["b3"], {"w1": 3.0, "b3": 1.0}, 0.1, 9),
    (2, "softplus", ["w3", "b3"], {}, 0.05, 300),
    (2, "softplus", ["w1"], {"w1": -2}, 0.1, 150),
    (1, "tanh", None, {}, 0.01, 300), (3, "sigmoid", None, {}, 0.01, 300), (5, "softplus", None, {}, 0.005, 300),
    (3, "relu", ["w1", "b2", "w5", "b4"], {}, 0.001, 300), (5, "tanh", ["w10", "b6"], {"b6": 2}, 0.01, 100)])
def test_another_gradient_descent_goes_the_same_way(hidden, activation, only, start, rate, steps):
    done = fit(EIGHT, hidden, activation, only, start, rate, steps, tolerance=0)
    assert_same_descent(done, steps)
    assert done.start.items() >= start.items() and list(done.start) == names_of(hidden)
    kept = set(names_of(hidden)) - set(done.learned)
    assert all(done.parameters[name] == done.start[name] for name in kept)
    assert [done.parameters[name] for name in done.learned] == done.history[-1].new.tolist()
    assert done.ssr == pytest.approx(ssr_and_slopes(done.parameters, EIGHT, hidden, activation)[0], rel=1e-12)


def test_names_are_the_texts_and_go_on():
    assert names_of(2) == ["w1", "b1", "w2", "b2", "w3", "w4", "b3"] == list(STATQUEST)
    assert names_of(1) == ["w1", "b1", "w2", "b2"]
    assert names_of(3) == ["w1", "b1", "w2", "b2", "w3", "b3", "w4", "w5", "w6", "b4"]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden", [1, 3, 5])
def test_chain_rule_products_sum_to_the_gradient(hidden, activation):
    done = fit(EIGHT, hidden, activation, rate=0.001, steps=1, seed=3)
    rule = done.chain_rule()
    assert list(rule.inner) == names_of(hidden)
    x, observed = done.points.T
    assert rule.outer == pytest.approx(-2 * (observed - done.predict(x, done.start)), rel=1e-12)
    for name, slope in zip(done.learned, done.history[0].slopes, strict=True):
        assert (rule.outer * rule.inner[name]).sum() == pytest.approx(slope, rel=1e-12, abs=1e-12)
        # Central differences, point by point; relu has a kink where its bias is 0 and x is: no x is.
        up, down = (done.predict(x, {**done.start, name: done.start[name] + h}) for h in (1e-6, -1e-6))
        assert rule.inner[name] == pytest.approx((up - down) / 2e-6, rel=1e-6, abs=1e-8)
    elsewhere = done.chain_rule(done.parameters)
    assert (elsewhere.outer * elsewhere.inner["w1"]).sum() == pytest.approx(
        ssr_and_slopes(done.parameters, EIGHT, hidden, activation)[1]["w1"], rel=1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_every_seed_fits_the_three_points(seed):
    done = fit(seed=seed)
    assert done.stopped == "tolerance" and done.ssr < 1e-4 and len(done.learned) == 7
    assert done.predict([0, 0.5, 1]) == pytest.approx([0, 1, 0], abs=0.01)
    assert done.history[0].number == 1 and len(done.history) < 400


def test_the_seed_sets_the_start():
    one, same, other = (fit(seed=n, steps=1) for n in (1, 1, 2))
    assert one.start == same.start != other.start and one.parameters == same.parameters
    assert [one.start[b] for b in ("b1", "b2", "b3")] == [0, 0, 0]
    drawn = fit(only=["w3", "b3"], seed=1, steps=1)
    assert drawn.start == STATQUEST | {"w3": one.start["w3"], "b3": 0}
    assert fit(only=["w3"], steps=1).start == STATQUEST
    assert fit(hidden=3, only=["w4"], steps=1).start == fit(hidden=3, steps=1).start


# --- how it ends

def test_it_stops_at_the_first_small_step():
    done = fit(only=["b3"], tolerance=0.01)
    sizes = [abs(s.steps[0]) for s in done.history]
    assert done.stopped == "tolerance" and sizes[-1] < 0.01 <= min(sizes[:-1]) and done.steps == len(sizes)
    both = fit(only=["w3", "b3"], tolerance=0.01)
    assert all((np.abs(s.steps) >= 0.01).any() for s in both.history[:-1])
    assert (np.abs(both.history[-1].steps) < 0.01).all()


def test_it_stops_at_the_number_of_steps():
    done = fit(only=["b3"], steps=3)
    assert done.stopped == "steps" and done.steps == 3 == done.history[-1].number
    assert "stopped after 3 steps: as many as --steps allows" in run("--only", "b3", "--steps", 3)


@pytest.mark.parametrize("only, rate", [(["b3"], 0.5), (None, 1.0), (None, 1e300)])
def test_a_divergence_is_said_and_the_best_parameters_are_kept(only, rate):
    done = fit(only=only, rate=rate)
    assert done.stopped == "diverged" and "smaller --rate" in done.why and len(done.history) < 50
    lowest = min(s.ssr for s in done.history)
    assert done.ssr == pytest.approx(lowest, rel=1e-12)
    assert all(np.isfinite(v) for v in done.parameters.values())


def test_a_last_step_that_overflows_is_a_divergence():
    done = fit([(0.0, 1e10), (1.0, 0.0)], rate=1e300, steps=1)
    assert done.stopped == "diverged" and done.parameters == done.start and np.isfinite(done.ssr)


def test_a_divergence_keeps_what_was_learned_before():
    done = fit(hidden=1, activation="tanh", rate=0.3, seed=1)
    last = done.history[-1].number
    expected = numpy_descent(done.start, done.points, 1, "tanh", done.learned, 0.3, last)
    lowest = int(np.argmin([ssr for ssr, *_ in expected]))
    assert done.stopped == "diverged" and 0 < done.steps == lowest < last - 5
    assert list(done.parameters.values()) == pytest.approx(expected[lowest - 1][2], rel=1e-10)
    assert done.ssr == pytest.approx(expected[lowest][0], rel=1e-10)


def test_what_diverges_is_printed_and_written(tmp_path):
    out = run("--rate", 10, "--only", "b3", "--json", tmp_path / "d.json")
    assert re.search(r"diverged, SSR is [\d.e+]+ and the largest step \S+ at step \d+: take a smaller --rate, as 1\b",
                     " ".join(out.split()))
    assert "after step 0, of the lowest SSR" in out
    run("--rate", 1e300, "--json", tmp_path / "e.json")
    data = json.loads((tmp_path / "e.json").read_text())
    assert data["stopped"] == "diverged" and data["history"][-1]["ssr"] is None and data["ssr"] < 1


# --- points

def test_points_are_read_from_files_and_standard_input(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("# a comment\n\ndose, effect\n 0 , 0  # the first\n\n0.5,1\n1,0\n")
    assert read_points(path) == [(0, 0), (0.5, 1), (1, 0)]
    from_file = run(path, "--only", "b3")
    assert from_file == run("--only", "b3") == run("-", "--only", "b3", input="0,0\r\n0.5,1\r\n1,0")
    path.write_bytes(b"\xef\xbb\xbf0,0\n1,1e-3\n")
    assert read_points(path) == [(0, 0), (1, 0.001)]
    path.write_text("".join(f"{x!r},{y!r}\n" for x, y in map(lambda p: (float(p[0]), p[1]), EIGHT)))
    assert read_points(path) == EIGHT
    out = run(path, "--hidden", 3, "--activation", "tanh")
    assert "1-3-1 tanh net, 8 points" in out and "... 3 more points" in out and "stopped after" in out


@pytest.mark.parametrize("text, message", [
    (b"0,0\n1\n", "line 2: 1 column; expected two"), (b"x\n1\n", "line 1: 1 column;"),
    (b"0,0\n\n1,2,3\n", "line 3: 3 columns;"), (b"0;0\n", "line 1: 1 column;"),
    (b"x,y\n0,one\n", "line 2: 'one' is no finite number"), (b"x,y\nx,y\n", "line 2: 'x' is no"),
    (b"x,1\n0,0\n", "line 1: 'x' is no"), (b"0,0\nx,y\n", "line 2: 'x' is no"), (b"0,\n", "line 1: '' is no"),
    (b"0,0\n1,nan\n", "line 2: 'nan' is no finite"), (b"0,inf\n", "'inf' is no finite"), (b"1e400,0\n", "'1e400'"),
    (b"", "no points"), (b"\n# 1,2\n\n", "no points"), (b"x,y\n", "no points"),
    (b"0,0\n\xff\xfe,1\n", "no text of comma-separated"), (b"0,1e200\n", "smaller points"),
], ids=range(17))
def test_a_wrong_file_gets_one_clear_line(tmp_path, text, message):
    path = tmp_path / "p.csv"
    path.write_bytes(text)
    said = run(path, code=2)
    assert said.count("\n") == 1 and said.startswith("fastbp fit: ") and message in said, said
    assert path.name in said or "SSR" in said


@pytest.mark.parametrize("args, message", [
    (["no/such.csv"], "no/such.csv"), (["."], "directory"), (["--only", "b4"], "no parameter 'b4'.*w1, b1, w2"),
    (["--only", ""], "no parameter ''"), (["--hidden", 30, "--set", "w61=1"], "'w61'.*w1 to w60 and b1 to b31"),
    (["--set", "q=1"], "no parameter 'q'"), (["--set", "w1=nan"], "w1 can't start from nan"),
    (["--set", "w1"], "NAME=NUMBER"), (["--set", "w1=1", "--set", "w1=2"], "twice"), (["--hidden", 0], "--hidden"),
    (["--hidden", 101], "1 to 100"), (["--activation", "gelu"], "gelu"), (["--rate", "nan"], "--rate"),
    (["--steps", 0], "--steps"), (["--tolerance", -1], "--tolerance"), (["--seed", "x"], "--seed"),
    (["--json", "/nowhere/at/all.json"], "No such file"), (["--set", "w3=1e200", "--set", "w1=1e200"], "smaller"),
], ids=lambda a: " ".join(map(str, a)) if isinstance(a, list) else "")
def test_a_wrong_argument_gets_one_clear_line(args, message):
    said = run(*args, code=2)
    assert said.count("\n") == 1 and said.startswith("fastbp fit: ") and re.search(message, said), said
    assert fastbp("fit", *args).stdout == ""


@pytest.mark.parametrize("points", [[], [1, 2], [(0, 1, 2)], [(0, np.nan)], [(np.inf, 1)]])
def test_the_library_refuses_points_that_are_none(points):
    with pytest.raises(ValueError, match="points"):
        fit(points)
    with pytest.raises(ValueError, match="activation"):
        fit(activation="sine")
    with pytest.raises(ValueError, match="0 steps"):
        fit(steps=0)


def test_one_point_is_enough():
    done = fit([(2.0, 3.0)], rate=0.01)
    assert done.ssr < 1e-3 and done.predict(2.0) == pytest.approx(3, abs=0.05)


# --- what is shown

@pytest.mark.parametrize("args", [
    ["--only", "b3"], ["--only", "w3,w4"], [], ["--hidden", 5], ["--hidden", 40, "--steps", 2000, "--rate", 1e-9],
    ["--rate", 1e300], ["--only", "w1, b1", "--set", "b3=-1e100", "--steps", 3], ["-", "--only", "b3,w3"], ["--help"]],
    ids=lambda a: " ".join(map(str, a)))
def test_lines_fit_80_columns(args):
    out = run(*args, input="-123456.789e-50,1e-99\n" * 12, env={**os.environ, "COLUMNS": "80"})
    assert max(map(len, out.splitlines())) <= 80 and len(out.splitlines()) < 120
    assert "\x1b" not in out


def test_steps_are_shown_ever_fewer():
    out = run("--steps", 3333, "--tolerance", 0)
    numbers = [int(m) for m in re.findall(r"^ {2,5}(\d+) +[\d.]+ +-?[\d.e-]+ +-?[\d.e-]+ +[wb]\d", out, re.M)]
    assert numbers == [*range(1, 11), 20, 50, 100, 200, 500, 1000, 2000, 3333]


def test_a_terminal_gets_colour_unless_no_color():
    args = ["-m", "fastbp", "fit", "--only", "b3"]
    bright, plain = on_a_terminal(*args).decode(), on_a_terminal(*args, NO_COLOR="1").decode()
    assert re.search(r"20\.4\x1b\[31m +-15\.7\x1b\[0m +-1\.57\x1b\[32m +1\.57\x1b\[0m", bright)
    assert "\x1b" not in plain
    without = re.sub(r"\x1b\[\d*m", "", bright)
    assert without == plain and max(map(len, without.splitlines())) <= 80


def test_json_has_every_number(tmp_path):
    run("--only", "w3,b3", "--set", "b3=0.5", "--json", tmp_path / "f.json")
    data = json.loads((tmp_path / "f.json").read_text())
    done = fit(only=["w3", "b3"], start={"b3": 0.5})
    assert data["parameters"] == done.parameters and data["start"] == done.start == STATQUEST | {"b3": 0.5}
    assert (data["net"], data["activation"], data["learned"]) == ("1-2-1", "softplus", ["w3", "b3"])
    assert (data["stopped"], data["steps"], data["ssr"], data["rate"]) == ("tolerance", done.steps, done.ssr, 0.1)
    assert len(data["history"]) == len(done.history)
    for row, s in zip(data["history"], done.history, strict=True):
        assert row == {"number": s.number, "ssr": s.ssr, "slope": dict(zip(("w3", "b3"), s.slopes, strict=True)),
                       "step": dict(zip(("w3", "b3"), s.steps, strict=True)),
                       "new": dict(zip(("w3", "b3"), s.new, strict=True))}
    rule = data["chain_rule"]
    assert rule["dSSR/dw3"] == pytest.approx(np.dot(rule["dSSR/dPredicted"], rule["dPredicted/dw3"]), rel=1e-12)
    assert rule["dSSR/dw3"] == pytest.approx(data["history"][0]["slope"]["w3"], rel=1e-12)
    for point in data["points"]:
        assert point["residual"] == point["observed"] - point["predicted"]


@pytest.mark.parametrize("args", [["--only", "b3"], [], ["--hidden", 1, "--only", "w1", "--steps", 50],
                                  ["--hidden", 9, "--steps", 50], ["--only", "b3", "--rate", 0.5], ["--rate", 1e300]],
                         ids=lambda a: " ".join(map(str, a)))
def test_plot_writes_a_picture(tmp_path, args):
    pytest.importorskip("matplotlib")
    path = tmp_path / "fit.png"
    run(*args, "--plot", path)
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 20_000


def test_the_plot_has_the_numbers():
    pytest.importorskip("matplotlib")
    from fastbp.show.fit import draw
    from fastbp.show.terminal import figure
    done = fit(only=["b3"])
    drawn = figure(10, 9)
    draw(done, drawn)
    start, end, way, parts = drawn.axes
    assert start.get_title() == "start: SSR = 20.4" and end.get_title() == "after 10 steps: SSR = 6.3e-05"
    dashed = start.collections[0].get_segments()
    assert [abs(b[1] - a[1]) for a, b in dashed] == pytest.approx(abs(done.chain_rule().outer) / 2)
    places = way.lines[-1].get_xydata()
    assert places[0] == pytest.approx([0, done.history[0].ssr]) and places[1][0] == done.history[0].new[0]
    tangent = way.lines[1].get_xydata()
    assert np.diff(tangent[:, 1]) / np.diff(tangent[:, 0]) == pytest.approx(done.history[0].slopes)
    curve = way.lines[0].get_xydata()
    assert np.interp(0.0, *curve.T) == pytest.approx(done.history[0].ssr, rel=1e-3)
    first, second, whole = (line.get_xydata() for line in parts.lines[:3])
    assert whole[:, 1] == pytest.approx(first[:, 1] + second[:, 1] + done.parameters["b3"])
    assert np.interp(0.5, *whole.T) == pytest.approx(1, abs=1e-3)
    assert [t.get_text() for t in parts.get_legend().get_texts()] == [
        "w3 softplus(w1 x + b1)", "w4 softplus(w2 x + b2)", "their sum + b3", "observed"]


def test_a_plot_that_cannot_be_gets_one_line(tmp_path):
    broken = tmp_path / "matplotlib"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise ImportError('no matplotlib here')\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    said = run("--plot", tmp_path / "f.png", code=2, env={**os.environ, "PYTHONPATH": path})
    assert said == "fastbp fit: plots need matplotlib: pip install 'fastbp[plot]'\n"
    assert "stopped after" in run("--only", "b3", env={**os.environ, "PYTHONPATH": path})
    pytest.importorskip("matplotlib")
    for name in ("f.nonsense", "no/such/folder.png"):
        said = run("--plot", tmp_path / name, code=2)
        assert said.count("\n") == 1 and said.startswith("fastbp fit: ")


def test_the_step_is_one_program():
    """What FASTBP_STAGED=0 does gate by gate gives the same bits."""
    assert run("--steps", 200) == run("--steps", 200, env={**os.environ, "FASTBP_STAGED": "0"})
