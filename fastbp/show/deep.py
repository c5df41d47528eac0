"""`fastbp health`: the gradient's norm in each layer of a deep net, as bars, in words and as a plot."""
import math
import sys

import numpy as np

from fastbp import nn, optim
from fastbp.gates.loss import cross_entropy
from fastbp.show.health import draw, text
from fastbp.show.terminal import WIDTH, colored, cut, write_figure, write_json
from fastbp.staged import staged

ACTIVATIONS = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU}
INITS = {
    "normal": ("weights of N(0, 1)", lambda w, rng: nn.init.normal_(w, rng=rng)),
    "xavier": ("Xavier weights", lambda w, rng: nn.init.xavier_normal_(w, rng=rng)),
    "he": ("He weights", lambda w, rng: nn.init.kaiming_normal_(w, nonlinearity="relu", rng=rng)),
    "default": ("the default weights", None),
}
USUAL = {"sigmoid": "xavier", "tanh": "xavier", "relu": "he"}    # the initialization made for an activation
CLASSES = 10


class Net:
    """`depth` layers of `width` units with an activation behind each, then scores of 10 classes; its Health.

    The inputs are unit normal numbers times `scale`, the labels random. Biases are 0, but for the default.
    """

    def __init__(self, depth, width, activation, init, batch, seed, scale):
        self.activation, self.init = activation, init or USUAL[activation]
        self.title = f"{activation}, {self.init}"
        rng = np.random.default_rng(seed)
        layers = []
        for n in range(depth + 1):
            layers.append(nn.Linear(width, width if n < depth else CLASSES, rng=rng))
            draw_weights = INITS[self.init][1]
            if draw_weights is not None:
                draw_weights(layers[-1].weight, rng)
                nn.init.zeros_(layers[-1].bias)
            if n < depth:
                layers.append(ACTIVATIONS[activation]())
        model = nn.Sequential(*layers)
        opt = optim.SGD(model.parameters(), lr=0.01)

        @staged
        def step(x, labels):
            loss = cross_entropy(model(x), labels)
            opt.zero_grad()
            loss.backward()
            opt.step()
            return loss

        x = scale * rng.standard_normal((batch, width))
        self.health = step.health(x.astype(np.float32), rng.integers(0, CLASSES, batch))
        self.norms = [layer.gradient for layer in self.health.chain]    # of each linear layer's output


def show(depth, width, activation, init, batch, seed, scale, compare=False, to_plot=None, to_json=None):
    """Write what is asked for, and print what `fastbp health` prints."""
    chosen = list(ACTIVATIONS) if compare else [activation]
    nets = [Net(depth, width, name, init, batch, seed, scale) for name in chosen]
    if to_plot is not None:
        write_figure(draw({net.title: net.health for net in nets}), to_plot)
    if to_json is not None:
        write_json(to_json, {net.activation: {"init": net.init, **net.health.as_dict()} for net in nets})
    print("\n".join(compared(nets) if compare else alone(nets[0], depth, width)))


def alone(net, depth, width):
    """The bars of one net, its verdict and what usually helps, in lines."""
    yield f"{depth} {net.activation} layers of {width} units, {INITS[net.init][0]}, and a linear one of {CLASSES}"
    low, high = _scale(net.norms)
    yield ""
    yield f"layer  gradient  its norm on a logarithmic scale, {10.0 ** low:.0e} to {10.0 ** high:.0e}"
    for n, norm in enumerate(net.norms, 1):
        yield f"{n:>5} {text(norm):>9}  {_bar(norm, low, high, WIDTH - 17)}".rstrip()
    yield ""
    first, *rest = net.health.words()
    yield _in_color(first, net.health)
    yield from rest


def compared(nets):
    """The bars of several nets side by side, their verdicts and factors, in lines."""
    low, high = _scale([norm for net in nets for norm in net.norms])
    wide = (WIDTH - 5) // len(nets)
    yield " " * 5 + "".join(f"  {cut(net.title, wide - 2):<{wide - 2}}" for net in nets).rstrip()
    yield f"layer  the gradient's norm on a logarithmic scale, {10.0 ** low:.0e} to {10.0 ** high:.0e}"
    for n, norms in enumerate(zip(*(net.norms for net in nets), strict=True), 1):
        cells = [f"{text(norm):>9} {_bar(norm, low, high, wide - 12)}" for norm in norms]
        yield (f"{n:>5}" + "".join(f"  {cell:<{wide - 2}}" for cell in cells)).rstrip()
    yield ""
    for net in nets:
        words = f"{cut(', '.join(net.health.verdict), 31):<31}"
        yield (f"{net.title:<16} {_in_color(words, net.health)} factor {text(net.health.factor)} a layer, "
               f"{text(net.health.overall)}")


def _in_color(line, health):
    return colored(line, "green" if health.verdict == ("healthy",) else "red")


def _scale(norms):
    """The powers of ten between which the bars are drawn: 4 decades or more, so that nearly equal bars look so."""
    norms = [x for x in norms if 0 < x < math.inf]
    if not norms:
        return -4, 0
    low, high = math.floor(math.log10(min(norms))), math.ceil(math.log10(max(norms)))
    return min(low, high - 4) - (low == high - 4), high


def _bar(norm, low, high, wide):
    """A bar of at most `wide` characters; none for 0, a full one for infinity, ? for NaN."""
    if math.isnan(norm):
        return "?"
    share = (min(max((math.log10(norm) - low) / (high - low), 0.0), 1.0) if 0 < norm < math.inf else float(norm > 0))
    whole, eighths = divmod(round(8 * wide * share), 8)
    try:
        "▏▎▍▌▋▊▉█".encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return "#" * (whole + (eighths >= 4))
    return "█" * whole + " ▏▎▍▌▋▊▉"[eighths].strip()
