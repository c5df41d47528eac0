"""`fastbp fit`: a 1-H-1 net fitted to points by gradient descent, every number of the way in float64.

    predicted = the sum over h = 1..H of w(H+h) activation(w(h) x + b(h)), plus b(H+1)
    SSR = the sum over the points of (observed - predicted)^2
"""
import csv
import math
import sys
import textwrap
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

import fastbp as fb
from fastbp import optim
from fastbp.show.terminal import WIDTH, colored, figure, write_figure, write_json

DOSAGE = [(0.0, 0.0), (0.5, 1.0), (1.0, 0.0)]    # StatQuest's points: (dosage, effectiveness)
STATQUEST = {"w1": 3.34, "b1": -1.43, "w2": -3.53, "b2": 0.57, "w3": -1.22, "w4": -2.30, "b3": 0.0}
ACTIVATIONS = {"softplus": fb.softplus, "tanh": fb.tanh, "relu": fb.relu, "sigmoid": fb.sigmoid}
MOST_HIDDEN = 100
# Rate and tolerance where some parameters are learned, the text's, and where all are: a higher rate makes softplus
# nets jump about at the bottom, a higher tolerance stops them on the plateau where predicted is the mean.
SOME, ALL = (0.1, 1e-3), (0.02, 1e-5)
STEPS = 50_000
FAR = 1e6    # times the SSR at the start: no descent any more


class Step(NamedTuple):
    """One step of gradient descent: new = value - rate * slope, for the learned parameters in their order."""
    number: int
    ssr: float             # before the step
    values: np.ndarray     # before the step
    slopes: np.ndarray     # dSSR / dparameter
    steps: np.ndarray      # rate * slope
    new: np.ndarray


class ChainRule(NamedTuple):
    """dSSR/dparameter = the sum over the points of dSSR/dPredicted * dPredicted/dparameter."""
    outer: np.ndarray      # dSSR/dPredicted of each point, -2 (observed - predicted)
    inner: dict            # {parameter: dPredicted/dparameter of each point}


@dataclass
class Fit:
    """A fitted net: what it was made from, what it reached, how."""
    points: np.ndarray     # (n, 2): x, observed
    hidden: int
    activation: str
    learned: list          # names
    rate: float
    tolerance: float
    start: dict            # {name: value} of all parameters
    parameters: dict       # the same at the end
    ssr: float = math.inf  # at the end
    steps: int = 0         # that led to these parameters
    stopped: str = ""      # "tolerance", "steps" or "diverged"
    why: str = ""          # the same as a sentence
    history: list = field(default_factory=list)    # of Step: the first 100, then two digits and zeros; the last

    def predict(self, x, parameters=None):
        """Predicted at every x, as an array; parameters: others than those at the end."""
        with fb.no_grad():
            p = as_tensors(self.parameters if parameters is None else parameters)
            return predicted(p, fb.tensor(np.asarray(x, np.float64)), self.hidden, self.activation).numpy()

    def chain_rule(self, parameters=None):
        """The chain rule's factors, point by point, at the start or at other parameters; the engine's gradients."""
        p = as_tensors(self.start if parameters is None else parameters)
        x, observed = self.points.T
        slope = fb.grad(lambda y: fb.mse_loss(y, observed, reduction="sum"))
        inner = fb.staged(fb.grad(lambda some, x: predicted({**p, **some}, x, self.hidden, self.activation)))
        some = {name: p[name] for name in self.learned}
        found = [inner(some, np.float64(a).reshape(())) for a in x]
        return ChainRule(slope(self.predict(x, self.start if parameters is None else parameters)).numpy(),
                         {name: np.array([f[name].item() for f in found]) for name in self.learned})


def names_of(hidden):
    """The parameters in the text's order: w1 b1 ... wH bH of the hidden units, w(H+1) ... w(2H) b(H+1) of the output.

    For H = 2: w1 b1 w2 b2 w3 w4 b3.
    """
    bent = [f"{letter}{h}" for h in range(1, hidden + 1) for letter in "wb"]
    return [*bent, *(f"w{hidden + h}" for h in range(1, hidden + 1)), f"b{hidden + 1}"]


def units(p, x, hidden, activation):
    """The hidden units times their output weights, w(H+h) activation(w(h) x + b(h)); x of any shape."""
    bent = ACTIVATIONS[activation]
    return [p[f"w{hidden + h}"] * bent(p[f"w{h}"] * x + p[f"b{h}"]) for h in range(1, hidden + 1)]


def predicted(p, x, hidden, activation):
    """The sum of `units`, plus b(H+1)."""
    return sum(units(p, x, hidden, activation)) + p[f"b{hidden + 1}"]


def as_tensors(parameters, learned=()):
    return {name: fb.tensor(np.float64(value), requires_grad=name in learned, name=name)
            for name, value in parameters.items()}


def initial(hidden, seed):
    """Parameters from a seed: biases 0, output weights standard normal, the others normal with deviation 3.

    In the text all weights are standard normal. On x from 0 to 1 softplus is then hardly bent, and some seeds stay
    on the plateau where predicted is the mean.
    """
    rng = np.random.default_rng(seed)
    start = dict.fromkeys(names_of(hidden), 0.0)
    start |= {f"w{h}": 3 * float(rng.standard_normal()) for h in range(1, hidden + 1)}
    return start | {f"w{hidden + h}": float(rng.standard_normal()) for h in range(1, hidden + 1)}


def starting(hidden, only, given, seed):
    """All parameters at the start, and the names of those that are learned.

    ValueError: a name that the net has not, a value that is not finite.
    """
    names, given = names_of(hidden), dict(given or {})
    learned = names if only is None else list(dict.fromkeys(only))
    for name in (*learned, *given):
        if name not in names:
            known = ", ".join(names) if hidden <= 5 else f"w1 to w{2 * hidden} and b1 to b{hidden + 1}"
            raise ValueError(f"there is no parameter {name!r} in a 1-{hidden}-1 net; there are {known}")
    for name, value in given.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} can't start from {value}: give a finite number")
    if not learned:
        raise ValueError(f"no parameter is learned; there are {', '.join(names)}")
    start = initial(hidden, seed or 0)
    if only is not None and hidden == 2:
        drawn = learned if seed is not None else ()
        start |= {name: value for name, value in STATQUEST.items() if name not in drawn}
    return start | given, learned


def fit(points=DOSAGE, hidden=2, activation="softplus", only=None, start=None, rate=None, steps=STEPS, tolerance=None,
        seed=None):
    """Fit a 1-H-1 net to points [(x, observed)] by gradient descent on SSR: new = old - rate * slope.

    only: the names of the parameters to learn; all where it is None. start: {name: value}; the other parameters
    start from `initial(hidden, seed)`, but with `only` and two hidden units from the text's, `STATQUEST` (with a
    seed, those to learn start from it). It stops after the first step in which every parameter moves by less
    than `tolerance`, after `steps` steps, or where SSR grows without end: then the parameters of the lowest SSR
    are kept. ValueError: points, a name or a number that can't be.
    """
    points = np.array(points, np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or not len(points) or not np.isfinite(points).all():
        raise ValueError(f"points can't be this: an array of shape {points.shape}; give finite pairs [(x, y), ...]")
    if activation not in ACTIVATIONS:
        raise ValueError(f"there is no activation {activation!r}; there are {', '.join(ACTIVATIONS)}")
    if not 1 <= hidden <= MOST_HIDDEN:
        raise ValueError(f"there can't be {hidden} hidden units: 1 to {MOST_HIDDEN}")
    if steps < 1:
        raise ValueError(f"there can't be {steps} steps: 1 or more")
    begin, learned = starting(hidden, only, start, seed)
    usual_rate, usual_tolerance = ALL if only is None else SOME
    rate = usual_rate if rate is None else rate
    tolerance = usual_tolerance if tolerance is None else tolerance
    p = as_tensors(begin, learned)
    done = Fit(points, hidden, activation, learned, rate, tolerance, start=begin, parameters=begin)
    with np.errstate(over="ignore", invalid="ignore"):    # a divergence is told in words
        descend(done, p, steps)
    done.parameters = {name: t.item() for name, t in p.items()}
    x, observed = points.T
    done.ssr = float(((observed - done.predict(x)) ** 2).sum())
    return done


def descend(done, p, most):
    """Gradient descent on the tensors p; writes steps, history, stopped and why."""
    x, observed = map(fb.tensor, np.ascontiguousarray(done.points.T))
    weights = [p[name] for name in done.learned]
    opt = optim.SGD(weights, lr=done.rate)

    @fb.staged
    def step():
        ssr = fb.mse_loss(predicted(p, x, done.hidden, done.activation), observed, reduction="sum")
        opt.zero_grad()
        ssr.backward()
        slopes = fb.stack([w.grad for w in weights])
        opt.step()
        with fb.no_grad():
            return ssr, slopes, fb.stack(weights)

    # Each step is a call of its own, not `step.repeat`: each is asked whether it was the last.
    values = np.array([w.item() for w in weights])
    lowest, best, far = math.inf, (0, values), math.inf
    for n in range(1, most + 1):
        ssr, slopes, new = (t.numpy() for t in step())
        ssr = ssr.item()
        moves = done.rate * slopes
        largest = np.abs(moves).max()
        if n == 1:
            if not math.isfinite(ssr):
                raise ValueError(f"SSR is {ssr} at the start: smaller points or parameters are needed")
            far = FAR * (1 + ssr + float((done.points[:, 1] ** 2).sum()))
        if not (ssr < far and largest < math.inf):    # NaN too
            done.stopped = "diverged"
        elif largest < done.tolerance:
            done.stopped = "tolerance"
            done.why = f"every step is below {done.tolerance:g}"
        elif n == most:
            done.stopped = "steps"
            done.why = f"as many as --steps allows; some are not yet below {done.tolerance:g}"
        if done.stopped or n < 100 or n % 10 ** (len(str(n)) - 2) == 0:
            done.history.append(Step(n, ssr, values, slopes, moves, new))
        if done.stopped == "diverged":
            for w, value in zip(weights, best[1], strict=True):
                w.copy_(np.array(value))
            done.steps = best[0]
            done.why = (f"diverged, SSR is {ssr:.3g} and the largest step {largest:.3g} at step {n}: take a smaller "
                        f"--rate, as {done.rate / 10:g}")
            return
        if ssr < lowest:
            lowest, best = ssr, (n - 1, values)
        done.steps = n
        if done.stopped:
            return
        values = new


# --- points

def read_points(path):
    """[(x, y)] from a CSV file of two columns, or from standard input where path is -.

    A first row without numbers is a header; blank lines and what follows a # are skipped. ValueError: a row that
    isn't two finite numbers, or no row, with the file and the line.
    """
    if path == "-" and sys.stdin is None:
        raise ValueError("standard input is closed")
    if path == "-":
        return _points(sys.stdin, "standard input")
    with open(path, newline="", encoding="utf-8-sig") as file:
        return _points(file, path)


def _points(file, name):
    found, header = [], False
    rows = csv.reader(line.partition("#")[0] for line in file)
    try:
        for row in rows:
            if not any(text.strip() for text in row):
                continue
            where = f"{name}, line {rows.line_num}"
            if len(row) != 2:
                raise ValueError(f"{where}: {len(row)} column{'s' * (len(row) > 1)}; expected two, x and y, with a "
                                 "comma between")
            values = [_number(text) for text in row]
            if values == [None, None] and not found and not header:
                header = True
                continue
            for text, value in zip(row, values, strict=True):
                if value is None or not math.isfinite(value):
                    raise ValueError(f"{where}: {text.strip()[:40]!r} is no finite number")
            found.append(tuple(values))
    except (csv.Error, UnicodeDecodeError) as problem:
        raise ValueError(f"{name}, line {rows.line_num + 1}: this is no text of comma-separated values ({problem})"
                         ) from None
    if not found:
        raise ValueError(f"{name}: no points; expected rows of two numbers, x and y")
    return found


def _number(text):
    try:
        return float(text)
    except ValueError:
        return None


# --- what is printed and written

def show(path=None, only=None, start=None, to_plot=None, to_json=None, **options):
    """Fit the points of a CSV file, or the text's; write what is asked for, then print the steps and the numbers."""
    drawn = None if to_plot is None else figure(10, 9)    # a missing matplotlib is said first
    with np.errstate(all="ignore"):    # what overflows is shown as inf or nan
        done = fit(DOSAGE if path is None else read_points(path), only=only, start=start, **options)
        lines = list(lines_of(done))
        if drawn is not None:
            draw(done, drawn)
            write_figure(drawn, to_plot)
        if to_json is not None:
            write_json(to_json, as_data(done))
    print("\n".join(lines))


def digits(x):
    """Three digits, as the text has them."""
    return f"{x:#.3g}".removesuffix(".") if x else "0"


def wrapped(text):
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def listed(parameters):
    # A parameter's name, sign and value stay in one line.
    text = ", ".join(f"{name}\0=\0{value:.6g}" for name, value in parameters.items())
    return [line.replace("\0", " ") for line in wrapped(text)]


def lines_of(done, most_points=5, most_parameters=10):
    """The steps, why they ended, the parameters, the fitted points, the chain rule at the start, in lines."""
    n = len(done.points)
    yield from wrapped(f"1-{done.hidden}-1 {done.activation} net, {n} point{'s' * (n != 1)}; gradient descent on the "
                       f"sum of squared residuals, SSR: new = old - {done.rate:g} * slope")
    yield ""
    yield "start"
    yield from listed(done.start)
    yield ""
    yield from (steps_one_by_one if len(done.learned) <= 2 else steps_in_short)(done)
    yield ""
    diverged = done.stopped == "diverged"
    text = wrapped(f"stopped after {done.history[-1].number - diverged} steps: {done.why}")
    yield from (colored(line, "yellow") for line in text) if diverged else text
    yield ""
    yield f"after step {done.steps}, of the lowest SSR" if diverged else "end"
    yield from listed({name: done.parameters[name] for name in done.learned})
    yield f"SSR = {done.ssr:.6g}"
    yield ""
    yield f"{'x':>12}{'observed':>14}{'predicted':>14}{'residual':>14}"
    guesses = done.predict(done.points[:, 0])
    for (x, observed), guess in [*zip(done.points, guesses, strict=True)][:most_points]:
        yield f"{x:12.6g}{observed:14.6g}" + colored(f"{guess:14.6g}", "green") + f"{observed - guess:14.6g}"
    if n > most_points:
        yield f"{'...':>12} {n - most_points} more points"
    yield ""
    yield from chain_rule_lines(done, most_points, most_parameters)


def shown(done):
    """The steps to print: the first 10, then 20, 50, 100, 200, 500 and so on, and the last."""
    for step in done.history:
        if step.number <= 10 or str(step.number).rstrip("0") in ("1", "2", "5") or step is done.history[-1]:
            yield step


def steps_one_by_one(done):
    yield f"{'step':>6}{'SSR':>11}" + "".join(
        f"{'slope':>11}{'step':>10}{'new ' + name:>10}" for name in done.learned)
    for s in shown(done):
        yield f"{s.number:6}{digits(s.ssr):>11}" + "".join(
            colored(f"{digits(slope):>11}", "red") + f"{digits(move):>10}" + colored(f"{digits(new):>10}", "green")
            for slope, move, new in zip(s.slopes, s.steps, s.new, strict=True))


def steps_in_short(done):
    yield f"{'step':>6}{'SSR':>11}{'largest slope':>16}{'its step':>12}{'of':>7}{'new':>12}"
    for s in shown(done):
        i = int(np.abs(s.slopes).argmax())
        yield (f"{s.number:6}{digits(s.ssr):>11}" + colored(f"{digits(s.slopes[i]):>16}", "red")
               + f"{digits(s.steps[i]):>12}{done.learned[i]:>7}" + colored(f"{digits(s.new[i]):>12}", "green"))


def chain_rule_lines(done, most_points, most_parameters):
    rule = done.chain_rule()
    x = done.points[:, 0]
    yield "chain rule at the start: dSSR/dw = sum of dSSR/dPredicted * dPredicted/dw over"
    yield "  the points, with dSSR/dPredicted = -2 (observed - predicted)"
    yield f"{'':6}{'x':>10}{'dSSR/dPredicted':>18}   {'dPredicted/dw':>15}   {'product':>12}"
    for name in done.learned[:most_parameters]:
        inner = rule.inner[name]
        products = rule.outer * inner
        for i in range(min(len(x), most_points)):
            yield (f"{name if i == 0 else '':6}{x[i]:10.4g}{digits(rule.outer[i]):>18} * {digits(inner[i]):>15} = "
                   f"{digits(products[i]):>12}")
        if len(x) > most_points:
            more = f"{len(x) - most_points} more points"
            yield f"{'':6}{'...':>10} {more:<36} {digits(products[most_points:].sum()):>12}"
        yield f"{'':6}{'sum':>10}{'dSSR/d' + name:>36} = " + colored(f"{digits(products.sum()):>12}", "red")
    if len(done.learned) > most_parameters:
        yield f"... {len(done.learned) - most_parameters} more parameters: --json writes all"


def as_data(done):
    """What --json writes."""
    rule = done.chain_rule()

    def named(values):
        return dict(zip(done.learned, values, strict=True))

    return {
        "net": f"1-{done.hidden}-1", "activation": done.activation, "learned": done.learned, "rate": done.rate,
        "tolerance": done.tolerance, "start": done.start, "parameters": done.parameters, "ssr": done.ssr,
        "steps": done.steps, "stopped": done.stopped, "why": done.why,
        "points": [{"x": x, "observed": y, "predicted": guess, "residual": y - guess}
                   for (x, y), guess in zip(done.points, done.predict(done.points[:, 0]), strict=True)],
        "history": [{"number": s.number, "ssr": s.ssr, "slope": named(s.slopes), "step": named(s.steps),
                     "new": named(s.new)} for s in done.history],
        "chain_rule": {"dSSR/dPredicted": rule.outer,
                       **{f"dPredicted/d{name}": inner for name, inner in rule.inner.items()},
                       **{f"dSSR/d{name}": (rule.outer * inner).sum() for name, inner in rule.inner.items()}},
    }


# --- the plot

def draw(done, drawn):
    """Residuals at the start and the end, the way down, the bent curves and their sum, on a matplotlib figure."""
    (first, last), (way, parts) = drawn.subplots(2, 2)
    x = done.points[:, 0]
    margin = 0.05 * (np.ptp(x) or 1.0)
    grid = np.linspace(x.min() - margin, x.max() + margin, 300)
    draw_residuals(first, done, grid, done.start, "start")
    draw_residuals(last, done, grid, done.parameters, f"after {done.steps} steps")
    if len(done.learned) == 1:
        draw_tangents(way, done)
    else:
        draw_steps(way, done)
    draw_units(parts, done, grid)


def legend(axes, columns=3):
    """Below the axes, where it hides nothing."""
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=columns, frameon=False, fontsize="small")


def draw_residuals(axes, done, grid, parameters, when):
    x, observed = done.points.T
    guesses = done.predict(x, parameters)
    axes.plot(grid, done.predict(grid, parameters), color="tab:green", label="predicted")
    axes.vlines(x, observed, guesses, colors="tab:red", linestyles="dashed", linewidth=1.2, label="residual")
    axes.plot(x, observed, "o", color="black", markersize=6 if len(x) < 50 else 3, label="observed")
    ssr = float(((observed - guesses) ** 2).sum())
    axes.set(xlabel="x", ylabel="y", title=f"{when}: SSR = {ssr:.3g}")
    legend(axes)


def draw_tangents(axes, done):
    (name,), x, observed = done.learned, *done.points.T
    steps = [s for s in shown(done) if s.ssr < math.inf]
    places = np.array([*(s.values[0] for s in steps), done.parameters[name]])
    heights = np.array([*(s.ssr for s in steps), done.ssr])
    low, high = places.min(), places.max()
    margin = 0.25 * (high - low) or 1.0
    along = np.linspace(low - margin, high + margin, 300)
    # One prediction for every place and point: the place is a column, the points a row.
    ssr = ((done.predict(x, {**done.parameters, name: along[:, None]}) - observed) ** 2).sum(1)
    axes.plot(along, ssr, color="tab:blue", label="SSR")
    for i, s in enumerate(steps):
        reach = max(abs(s.steps[0]), 0.06 * (high - low))    # at least visible
        ends = s.values[0] - np.array([-0.5, 1.0]) * math.copysign(reach, s.slopes[0])
        ends = ends.clip(along[0], along[-1])
        axes.plot(ends, s.ssr + s.slopes[0] * (ends - s.values[0]), color="tab:orange", linewidth=1.4,
                  label="tangent, as long as its step" if i == 0 else None)
    axes.plot(places, heights, "o", color="tab:red", markersize=5, label=f"values of {name}")
    axes.set(xlabel=name, ylabel="SSR", title=f"SSR over {name}: {done.history[-1].number} steps")
    legend(axes)


def draw_steps(axes, done):
    steps = [s for s in done.history if 0 < s.ssr < math.inf]
    axes.plot([s.number for s in steps], [s.ssr for s in steps], color="tab:blue", label="SSR")
    many = steps and steps[-1].number > 100
    axes.set(xscale="log" if many else "linear", yscale="log" if steps else "linear")
    axes.set(xlabel="step", ylabel="SSR", title="SSR over the steps")
    legend(axes)


def draw_units(axes, done, grid):
    with fb.no_grad():
        curves = [u.numpy() for u in units(as_tensors(done.parameters), fb.tensor(grid), done.hidden, done.activation)]
    few = done.hidden <= 6
    for h, curve in enumerate(curves, 1):
        label = f"w{done.hidden + h} {done.activation}(w{h} x + b{h})"
        if not few:
            label = "a hidden unit times its weight" if h == 1 else None
        axes.plot(grid, curve, color=f"C{(h - 1) % 10 + (h > 2) if few else 0}", linewidth=1.4, alpha=1 if few else 0.4,
                  label=label)
    axes.plot(grid, sum(curves) + done.parameters[f"b{done.hidden + 1}"], color="tab:green", linewidth=2.2,
              label=f"their sum + b{done.hidden + 1}")
    axes.plot(*done.points.T, "o", color="black", markersize=6 if len(done.points) < 50 else 3, label="observed")
    axes.set(xlabel="x", ylabel="y", title="the bent curves and their sum")
    legend(axes, 2)
