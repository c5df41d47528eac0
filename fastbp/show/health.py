"""Health: the norms of each layer's activations, gradients and updates, and what they say in words."""
import math
from functools import cached_property
from statistics import median
from typing import NamedTuple

from fastbp.show.terminal import cut, figure, write_figure

# What the verdicts are reached from. A factor a layer alone says little (0.8 over 3 layers is nothing), nor does
# a quotient alone (over 100 layers any net drifts): both have to be beyond their limits.
FEWEST = 4                  # layers: the factor of fewer is the noise of a draw
VANISHING = 0.7, 1e-3       # factor a layer, first / last: 1 / 1000, the first layers stand still at any one rate.
                            # A sigmoid's slope is 1/4 at most; He and Xavier stay between 0.9 and 1.1
EXPLODING = 1.5, 1e3        # likewise: weights of N(0, 1) before n ReLUs give sqrt(n / 2), 7 for 100
DEAD = 0.9                  # share of a ReLU layer's units that are 0 for a whole batch. In a deep healthy net the
                            # rows of a batch grow alike, so that half the units are 0 for all of them
SATURATED = 1 / 3           # share of a layer's values within 1 % of the end of their range; 1 or 2 % is usual
INPUTS = 0.01, 10           # the inputs' RMS: 0.3 for pixels in [0, 1], 1 when standardized, 80 for pixels to 255
RATE = 0.1                  # update / weight, the median of all: 1e-3 is usual

_HELPS = {
    "vanishing": "ReLU and its kin in place of sigmoid, whose slope is 1/4 at most; initialization: He for ReLU, "
                 "Xavier for tanh; normalization between layers; a path around layers (y = x + f(x))",
    "exploding": "initialization: weights of deviation sqrt(2 / inputs) for ReLU (He), sqrt(2 / (inputs + outputs)) "
                 "for tanh (Xavier); clipping of the gradient's norm; a lower rate; normalization between layers",
    "dead": "biases that begin at 0; a lower rate; He initialization; an activation that passes something on where "
            "x < 0: leaky ReLU, ELU",
    "saturated": "smaller initial weights (Xavier); inputs of RMS 1; normalization before the activation; ReLU",
    "scale of the inputs": "inputs of mean 0 and deviation 1: x = (x - mean) / std, by the training set's numbers",
    "not finite": "fb.detect_anomaly() names the first stage that gave NaN or infinity; a lower rate",
}


class Weight(NamedTuple):
    """One parameter: its norm before the update, those of its gradient and its update, or None; update / norm."""
    name: str
    shape: tuple
    norm: float
    gradient: float | None
    update: float | None
    ratio: float | None


class Layer(NamedTuple):
    """One layer: the norm of its output and RMS of an element, the norm of the gradient for its output, or None.

    zeros: the share of values that are 0. dead: of units (columns of a ReLU's output) that are 0 for the whole
    batch. saturated: of values of tanh or sigmoid within 1 % of the end of their range: |tanh| > 0.99, sigmoid
    < 0.01 or > 0.99. None where the output is of another gate. weights: [Weight].
    """
    name: str
    kind: str
    shape: tuple
    norm: float
    rms: float
    gradient: float | None
    zeros: float
    dead: float | None
    saturated: float | None
    weights: tuple

    @property
    def weight_gradient(self):
        """The norm of the gradient for all its parameters, or None."""
        return _together(w.gradient for w in self.weights)

    @property
    def update(self):
        """The norm of the update of its parameters / their norm before, or None."""
        change, before = _together(w.update for w in self.weights), _together(w.norm for w in self.weights)
        return None if change is None or not before else change / before


class Inputs(NamedTuple):
    """What the first layer with parameters reads."""
    shape: tuple
    norm: float
    rms: float


class Health:
    """What `step.health` returns; its str() is a table, with a verdict and what usually helps."""

    def __init__(self, layout, numbers):
        self._layout, self._numbers = layout, numbers

    @cached_property
    def layers(self):
        """[Layer], in the order of the function."""
        return [Layer(d["name"], d["kind"], d["shape"], *self._norm(d["norm"], d["shape"]),
                      self._norm(d["gradient"], d["shape"])[0], self._at(d["zeros"]), self._at(d["dead"]),
                      self._at(d["saturated"]), tuple(self._weight(**w) for w in d["weights"]))
                for d in self._layout.layers]

    @cached_property
    def inputs(self):
        """The Inputs of the first layer with parameters, or None."""
        d = self._layout.inputs
        return None if d is None else Inputs(d["shape"], *self._norm(d["norm"], d["shape"]))

    def _at(self, place):
        return None if place is None else self._numbers[place]

    def _norm(self, places, shape):
        """The norm and the RMS."""
        if places is None:
            return None, None
        largest, squares = (self._numbers[k] for k in places)
        norm = largest * math.sqrt(squares) if 0 < largest < math.inf else largest
        return norm, norm / math.sqrt(math.prod(shape))

    def _weight(self, name, shape, norm, gradient, update):
        norm, gradient, update = (self._norm(x, shape)[0] for x in (norm, gradient, update))
        return Weight(name, shape, norm, gradient, update, update / norm if update is not None and norm else None)

    # --- what it says

    @property
    def chain(self):
        """The layers whose gradients are compared: those with a weight matrix and a gradient for their output."""
        return [layer for layer in self.layers
                if layer.gradient is not None and any(len(w.shape) > 1 for w in layer.weights)]

    @property
    def ratios(self):
        """[(name, ratio)]: for each of `chain` but the last its gradient's norm / that of the next one."""
        chain = self.chain
        return [(a.name, _quotient(a.gradient, b.gradient)) for a, b in zip(chain, chain[1:], strict=False)]

    @property
    def overall(self):
        """The gradient's norm at the first of `chain` / that at the last; None where there are fewer than two."""
        chain = self.chain
        return _quotient(chain[0].gradient, chain[-1].gradient) if len(chain) > 1 else None

    @property
    def factor(self):
        """The geometric mean of the ratios: by what the gradient's norm changes a layer, going backward; or None."""
        return None if self.overall is None else self.overall ** (1 / len(self.ratios))

    @cached_property
    def findings(self):
        """{word: what was measured, a sentence}; empty for a healthy net."""
        found = {}
        broken = [layer.name for layer in self.layers if not all(map(_finite, _numbers_of(layer)))]
        if broken:
            found["not finite"] = f"Layer {broken[0]} has NaN or infinity, or a gradient of it."
        dead = [layer for layer in self.layers if (layer.dead or 0) > DEAD]
        overall, factor, n = self.overall, self.factor, len(self.chain)
        if n >= FEWEST and _finite(overall):
            way = f"by a factor of {text(factor)} a layer going backward, by {text(overall)} over {n} layers"
            if factor < VANISHING[0] and overall < VANISHING[1] and not (dead and overall == 0):
                found["vanishing"] = f"The gradient's norm shrinks {way}: the first layers hardly learn."
            if factor > EXPLODING[0] and overall > EXPLODING[1]:
                found["exploding"] = f"The gradient's norm grows {way}: no one rate suits all layers."
        if dead:
            found["dead"] = (f"Layer {dead[0].name}: {dead[0].dead:.0%} of its units are 0 for the whole batch, and no "
                             f"gradient passes them{_others(dead)}.")
        flat = [layer for layer in self.layers if (layer.saturated or 0) > SATURATED]
        if flat:
            worst = max(flat, key=lambda layer: layer.saturated)
            found["saturated"] = (f"Layer {worst.name}: {worst.saturated:.0%} of its values are within 1 % of the end "
                                  f"of their range, where the slope is near 0{_others(flat)}.")
        if self.inputs is not None and self.inputs.norm and not INPUTS[0] <= self.inputs.rms <= INPUTS[1]:
            found["scale of the inputs"] = self._scale()
        return found

    def _scale(self):
        rms = self.inputs.rms
        said = (f"The inputs' RMS is {text(rms)}, not near 1. The multiply gate swaps its inputs, dw = x dy: inputs "
                "1,000 times larger give weight gradients 1,000 times larger")
        first = next((layer for layer in self.layers if layer.weights), None)
        others = [layer.weight_gradient for layer in self.layers
                  if layer is not first and layer.weight_gradient is not None]
        if first is not None and first.weight_gradient is not None and others:
            said += (f"; the first layer's has the norm {text(first.weight_gradient)}, the median of the others "
                     f"{text(median(others))}")
        return said + "."

    @property
    def verdict(self):
        """("healthy",), or what is wrong: vanishing, exploding, dead, saturated, scale of the inputs, not finite."""
        return tuple(self.findings) or ("healthy",)

    @property
    def advice(self):
        """Sentences: what was measured, and what usually helps."""
        said = [f"{what} What usually helps: {_HELPS[word]}." for word, what in self.findings.items()]
        if not said:
            said = ["Nothing stands out." if self.factor is None else
                    f"The gradient's norm changes by a factor of {text(self.factor)} a layer going backward, by "
                    f"{text(self.overall)} over {len(self.chain)} layers."]
        if all(layer.gradient is None and layer.weight_gradient is None for layer in self.layers):
            said.append("There are no gradients: the function calls no backward.")
        steps = [w.ratio for layer in self.layers for w in layer.weights if w.ratio is not None and len(w.shape) > 1]
        if steps and median(steps) > RATE:
            said.append(f"A step changes the weights by {text(median(steps))} of their norm; 0.001 is usual. "
                        "What usually helps: a lower rate.")
        return said

    # --- what it shows

    def __str__(self):
        lines = [f"{'layer':<20}" + "".join(f" {name:>8}" for name in ("norm", "RMS", "gradient", "dw", "update/w"))
                 + "".join(f" {name:>4}" for name in ("zero", "dead", "flat"))]
        lines.append("-" * len(lines[0]))
        for layer in self.layers:
            numbers = layer.norm, layer.rms, layer.gradient, layer.weight_gradient, layer.update
            lines.append(f"{cut(label(layer), 20):<20}" + "".join(f" {text(x):>8}" for x in numbers)
                         + "".join(f" {share_text(x):>4}" for x in (layer.zeros, layer.dead, layer.saturated)))
        lines += ["", "norm, RMS: of the layer's output y; gradient: the norm of d loss / d y; dw: of",
                  "the parameters' gradient; update/w: of their update / their own; zero: values of",
                  "y that are 0; dead: units 0 for the whole batch; flat: saturated values"]
        return "\n".join([*lines, "", *self.words()])

    __repr__ = __str__

    def words(self):
        """The verdict and the advice, in lines of 80 columns."""
        import textwrap
        yield f"verdict: {', '.join(self.verdict)}"
        for sentence in self.advice:
            yield from textwrap.wrap(sentence, 80)

    def as_dict(self):
        """All numbers and words, for JSON: what is not finite is None, as what was not measured."""
        def plain(x):
            if isinstance(x, tuple) and hasattr(x, "_fields"):
                return {name: plain(value) for name, value in x._asdict().items()}
            if isinstance(x, (tuple, list)):
                return [plain(value) for value in x]
            return None if isinstance(x, float) and not math.isfinite(x) else x
        return {"verdict": list(self.verdict), "advice": self.advice, "factor": plain(self.factor),
                "overall": plain(self.overall), "inputs": plain(self.inputs),
                "ratios": [{"name": name, "ratio": plain(ratio)} for name, ratio in self.ratios],
                "layers": plain(self.layers)}

    def plot(self, path):
        """Draw norms and shares by layer to a file; matplotlib knows the formats. RuntimeError: it is missing."""
        write_figure(draw({"": self}), path)


def draw(healths):
    """A figure of {title: Health}: norms on a logarithmic scale above, shares below; a column for each."""
    drawn = figure(max(7.0, 4.2 * len(healths)), 6.4)
    axes = drawn.subplots(2, len(healths), squeeze=False, sharex="col", sharey="row", height_ratios=(2, 1))
    for (title, health), (norms, shares) in zip(healths.items(), axes.T, strict=True):
        layers = health.layers
        where = range(1, len(layers) + 1)
        for panel, what, style, values in (
                (norms, "gradient of the output", "C0o-", [layer.gradient for layer in layers]),
                (norms, "gradient of the parameters", "C1s", [layer.weight_gradient for layer in layers]),
                (norms, "RMS of the output", "C2.--", [layer.rms for layer in layers]),
                (shares, "zeros", "C3o-", [None if layer.dead is None else layer.zeros for layer in layers]),
                (shares, "dead", "C4o-", [layer.dead for layer in layers]),
                (shares, "saturated", "C5o-", [layer.saturated for layer in layers])):
            points = [(k, v) for k, v in zip(where, values, strict=True) if v is not None and math.isfinite(v)]
            points = [(k, v) for k, v in points if v > 0 or panel is shares]    # a logarithm shows no 0
            if points:
                panel.plot(*zip(*points, strict=True), style, label=what, markersize=4, linewidth=1)
        norms.set_yscale("log")
        norms.set_title(f"{title}: {', '.join(health.verdict)}" if title else ", ".join(health.verdict))
        norms.grid(alpha=0.3)
        shares.set_ylim(-0.05, 1.05)
        shares.grid(alpha=0.3)
        if len(layers) <= 12 and len(healths) == 1:
            shares.set_xticks(where, [cut(label(layer), 16) for layer in layers], rotation=30, ha="right")
        else:
            shares.set_xlabel("layer")
    axes[0][0].set_ylabel("norm")
    axes[1][0].set_ylabel("share")
    for panel in axes.flat:
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize=8)
    return drawn


def label(layer):
    """A layer's name and kind: 0 Linear."""
    return layer.name if layer.kind in layer.name else f"{layer.name} {layer.kind}"


def text(x):
    """Three digits; - for None."""
    return "-" if x is None else f"{x:.3g}"


def share_text(x):
    return "-" if x is None else "nan" if math.isnan(x) else f"{x:.0%}"


def _quotient(a, b):
    return a / b if b else math.nan


def _together(norms):
    """The norm of all together; None where there are none."""
    norms = [x for x in norms if x is not None]
    return math.hypot(*norms) if norms else None


def _finite(x):
    return x is None or math.isfinite(x)


def _numbers_of(layer):
    return (layer.norm, layer.gradient, *(x for w in layer.weights for x in (w.norm, w.gradient, w.update)))


def _others(layers):
    return "" if len(layers) == 1 else f" (in {len(layers)} layers)"
