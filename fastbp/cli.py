"""The command line: `fastbp` and `python -m fastbp`."""
import argparse
import os
import re
import sys
import unicodedata

import fastbp as fb


class Parser(argparse.ArgumentParser):
    """A wrong argument gets one line."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def number(kind, low, what, high=float("inf")):
    """A parser of numbers from `low` on, below `high`."""
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no {what}") from None
        if not low <= value < high:
            raise argparse.ArgumentTypeError(f"{text} is no {what}")
        return value
    return parse


count = number(int, 1, "number of 1 or more")
seed = number(int, 0, "seed of 0 or more")
rate = number(float, 0.0, "rate of 0 or more")
scale = number(float, 1e-30, "scale from 1e-30 to 1e30", 1e30)


def filename(text):
    if not text:
        raise argparse.ArgumentTypeError("the name is empty")
    return text


def assignment(text):
    """(name, number) from name=number."""
    name, sign, value = text.partition("=")
    name = unicodedata.normalize("NFKC", name)    # as Python reads names
    if not sign or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=NUMBER, as x=-2")
    try:
        return name, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value!r} in {text!r} is no number") from None


def parser():
    main = Parser(prog="fastbp", description="Backpropagation as a program of stages, on the CPU.")
    main.add_argument("--version", action="version", version=f"fastbp {fb.__version__}")
    commands = main.add_subparsers(dest="command", required=True, metavar="command", parser_class=Parser)
    train = commands.add_parser(
        "train", help="train a net on images of digits, or a model of a text's characters",
        description="Train a net on real data. mlp: a two-layer ReLU net by SGD, and the same epochs in NumPy beside "
                    "it. lenet: LeNet-5 by Adam. Both on the shipped digits, or on a folder of MNIST-format files, "
                    "such as Fashion-MNIST's. gru: a GRU that learns which character comes next, by Adam, on the "
                    "shipped text or one of yours; then it writes some.",
        epilog="fastbp train --model lenet --data FOLDER")
    train.add_argument("--model", choices=["mlp", "lenet", "gru"], default="mlp", help="default: mlp")
    train.add_argument("--data", metavar="PATH",
                       help="mlp, lenet: a folder with train-images-idx3-ubyte[.gz] and so on, a sixth held out where "
                            "there is one split only; gru: a text in UTF-8, its last tenth held out")
    train.add_argument("--epochs", type=count, metavar="N", help="default: mlp 40, lenet 20, with --data 5; gru 20")
    train.add_argument("--batch-size", type=count, metavar="N",
                       help="default: 32, with --data mlp 100 and lenet 64; gru 16")
    train.add_argument("--lr", type=rate, metavar="RATE",
                       help="default: mlp 1.0, with --data 0.2; lenet, gru 0.003")
    train.add_argument("--hidden", type=count, metavar="N",
                       help="hidden units of mlp (default: 100, with --data 500) or gru (128)")
    train.add_argument("--seed", type=seed, default=0, metavar="N", help="of the split, weights, order and sample")
    train.add_argument("--threads", type=count, metavar="N", help="at most so many; the bits do not depend on it")
    train.add_argument("--sample", type=number(int, 0, "number of 0 or more"), metavar="N",
                       help="gru: characters to write at the end; default: 400")
    train.add_argument("--temperature", type=number(float, 0.0, "temperature of 0 or more"), metavar="T",
                       help="gru: of the sample, 0 for the likeliest characters; default: 0.7")
    train.add_argument("--save", type=filename, metavar="FILE",
                       help="write the weights, for fastbp.load and load_state_dict")
    train.add_argument("--log", type=filename, metavar="CSV", help="append each epoch's numbers to a file")
    train.add_argument("--plot", type=filename, metavar="FILE", help="draw the learning curves; needs matplotlib")
    train.set_defaults(run=run_train)
    bench = commands.add_parser(
        "bench", help="time fastbp beside NumPy on this machine",
        description="A short benchmark beside NumPy written by hand, each on one core, after the machine's peak.")
    bench.add_argument("--quick", action="store_true", help="little of everything: to see that it runs")
    bench.set_defaults(run=run_bench)
    circuit = commands.add_parser(
        "circuit", help="an expression as a circuit of gates, forward and backward",
        description="Run an expression as a circuit of gates in float64: each stage's value, then the stages in "
                    "reverse, each with the upstream gradient, the local gradient and their product; the gradients "
                    "of the inputs beside central differences.",
        epilog='fastbp circuit "q = x + y; f = q * z" x=-2 y=5 z=-4')
    circuit.add_argument("expression", help='names, numbers, + - * / **, calls of gates; "name = ..." names a stage, '
                                            "; ends one")
    circuit.add_argument("values", nargs="*", type=assignment, metavar="NAME=NUMBER", help="the inputs")
    circuit.add_argument("--expand", action="store_true", help="split sigmoid, softplus and other grouped gates into "
                                                               "their parts")
    circuit.add_argument("--json", type=filename, metavar="FILE", help="write all numbers")
    circuit.add_argument("--svg", type=filename, metavar="FILE", help="draw it")
    circuit.set_defaults(run=run_circuit)
    fit = commands.add_parser(
        "fit", help="fit a 1-H-1 net to points, step by step",
        description="Fit a 1-H-1 net to points by gradient descent on the sum of squared residuals (SSR), in float64; "
                    "print the steps, and the chain rule of each parameter with its numbers. The hidden units are "
                    "activation(w1 x + b1) to activation(wH x + bH); w(H+1) to w(2H) weigh their outputs, and b(H+1) "
                    "is added: w1 b1 w2 b2 w3 w4 b3 with two.",
        epilog="All parameters are learned from a seed: biases 0, w(H+1) to w(2H) standard normal, w1 to wH normal "
               "with standard deviation 3 (with 1 softplus is hardly bent on x from 0 to 1, and some seeds end where "
               "predicted is the mean). With --only, the rest stays; two hidden units start from w1=3.34 b1=-1.43 "
               "w2=-3.53 b2=0.57 w3=-1.22 w4=-2.30 b3=0, where --seed draws those to learn.")
    fit.add_argument("csv", nargs="?", metavar="CSV", help="x, y in two columns, with a header or without; - is "
                                                           "standard input; default: (0, 0), (0.5, 1), (1, 0)")
    fit.add_argument("--hidden", type=count, default=2, metavar="H", help="hidden units; default: 2")
    fit.add_argument("--activation", default="softplus", choices=["softplus", "tanh", "relu", "sigmoid"],
                     help="default: softplus")
    fit.add_argument("--only", metavar="NAME[,NAME]", help="learn these parameters only")
    fit.add_argument("--set", type=assignment, action="append", default=[], metavar="NAME=NUMBER",
                     help="start a parameter from a number; may be repeated")
    fit.add_argument("--rate", type=rate, help="default: 0.02 (softplus nets jump about with more), with --only 0.1")
    fit.add_argument("--steps", type=count, default=50_000, metavar="MAX", help="at most so many; default: 50000")
    fit.add_argument("--tolerance", type=rate, metavar="SIZE", help="stop when every step is smaller; default: 0.00001 "
                                                                    "(a plateau has small steps), with --only 0.001")
    fit.add_argument("--seed", type=seed, metavar="N", help="of the parameters at the start; default: 0")
    fit.add_argument("--plot", type=filename, metavar="FILE",
                     help="draw the residuals, the way down and the bent curves")
    fit.add_argument("--json", type=filename, metavar="FILE", help="write all numbers")
    fit.set_defaults(run=run_fit)
    health = commands.add_parser(
        "health", help="the gradient's norm in each layer of a deep net",
        description="One step of a deep net on random inputs: the gradient's norm in each layer as a bar, whether it "
                    "vanishes or explodes, by what factor a layer, and what usually helps.",
        epilog="fastbp health --depth 20 --activation sigmoid --init normal")
    health.add_argument("--depth", type=number(int, 1, "depth from 1 to 1000", 1001), default=20, metavar="N",
                        help="layers with an activation; default: 20")
    health.add_argument("--width", type=number(int, 1, "width from 1 to 4096", 4097), default=16, metavar="N",
                        help="units of a layer, and inputs; default: 16")
    health.add_argument("--activation", choices=["sigmoid", "tanh", "relu"], default="relu", help="default: relu")
    health.add_argument("--init", choices=["normal", "xavier", "he", "default"],
                        help="of the weights: N(0, 1), Xavier, He, PyTorch's default; where it is left out the one "
                             "made for the activation: He for relu, else Xavier")
    health.add_argument("--batch", type=number(int, 1, "batch from 1 to 65536", 65537), default=64, metavar="N",
                        help="rows of a batch; default: 64")
    health.add_argument("--seed", type=seed, default=0, metavar="N", help="of the weights, inputs and labels")
    health.add_argument("--scale", type=scale, default=1.0, metavar="X", help="the inputs are X times N(0, 1)")
    health.add_argument("--compare", action="store_true", help="sigmoid, tanh and relu side by side")
    health.add_argument("--plot", type=filename, metavar="FILE", help="draw the norms of all layers; needs matplotlib")
    health.add_argument("--json", type=filename, metavar="FILE", help="write all numbers")
    health.set_defaults(run=run_health)
    info = commands.add_parser("info", help="what is in use: version, kernels, threads",
                               description="Print the version, the kernels, the threads and the libraries in use.")
    info.set_defaults(run=lambda args: fb.show_config())
    return main


def run_train(args):
    for name, models in (("hidden", ("mlp", "gru")), ("sample", ("gru",)), ("temperature", ("gru",))):
        if getattr(args, name) is not None and args.model not in models:
            raise ValueError(f"--{name} does not go with --model {args.model}")
    if args.threads:
        fb.set_num_threads(args.threads)
    shared = {name: getattr(args, name) for name in ("epochs", "batch_size", "lr", "hidden", "seed", "save", "log",
                                                     "plot")}
    if args.model == "gru":
        from fastbp.characters import train
        train(args.data, sample=args.sample, temperature=args.temperature, **shared)
    else:
        from fastbp.train import train
        train(args.model, args.data, **shared)


def run_circuit(args):
    from fastbp.show.circuit import show
    values = dict(args.values)
    if len(values) < len(args.values):
        raise ValueError("an input is given twice")
    show(args.expression, values, args.expand, args.json, args.svg)


def run_fit(args):
    from fastbp.show.fit import show
    start = dict(args.set)
    if len(start) < len(args.set):
        raise ValueError("a parameter is set twice")
    only = None if args.only is None else [name.strip() for name in args.only.split(",")]
    show(args.csv, only, start, args.plot, args.json, hidden=args.hidden, activation=args.activation, rate=args.rate,
         steps=args.steps, tolerance=args.tolerance, seed=args.seed)


def run_health(args):
    from fastbp.show.deep import show
    show(args.depth, args.width, args.activation, args.init, args.batch, args.seed, args.scale, args.compare,
         args.plot, args.json)


def run_bench(args):
    from fastbp.benchmark import bench
    bench(args.quick)


def main(argv=None):
    """Run a command; returns the exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["circuit"]:    # -x is an expression there: what has a space is no option to argparse
        argv = [f" {a}" if a.startswith("-") and not a.startswith("--") and a != "-h" else a for a in argv]
    args = parser().parse_args(argv)
    try:
        args.run(args)
    except BrokenPipeError:    # whoever read has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, ValueError, RuntimeError, MemoryError, OverflowError, ModuleNotFoundError) as problem:
        said = re.sub(r"\n  where: .*", "", str(problem))    # no line of the user's own
        print(f"fastbp {args.command}: {said}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nfastbp {args.command}: stopped", file=sys.stderr)
        return 130
    return 0
