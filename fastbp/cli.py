"""The command line: `fastbp` and `python -m fastbp`."""
import argparse
import sys

import fastbp as fb


class Parser(argparse.ArgumentParser):
    """A wrong argument gets one line."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def number(kind, low, what):
    """A parser of numbers above or from `low`."""
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no {what}") from None
        if not low <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is no {what}")
        return value
    return parse


count = number(int, 1, "number of 1 or more")
seed = number(int, 0, "seed of 0 or more")
rate = number(float, 0.0, "rate of 0 or more")


def assignment(text):
    """(name, number) from name=number."""
    name, sign, value = text.partition("=")
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
        "train", help="train a two-layer net on images of digits, beside NumPy",
        description="Train a two-layer ReLU net by SGD on cross-entropy: on the shipped digits (64-100-10), or on a "
                    "folder of MNIST-format files (784-500-10). Then train the same net in NumPy and compare.")
    train.add_argument("--data", metavar="FOLDER", help="train-images-idx3-ubyte[.gz] and so on; a sixth is held out "
                                                        "where there is one split only")
    train.add_argument("--epochs", type=count, metavar="N", help="default: 40, with --data 5")
    train.add_argument("--batch-size", type=count, metavar="N", help="default: 32, with --data 100")
    train.add_argument("--lr", type=rate, metavar="RATE", help="default: 1.0, with --data 0.2")
    train.add_argument("--hidden", type=count, metavar="N", help="hidden units; default: 100, with --data 500")
    train.add_argument("--seed", type=seed, default=0, metavar="N", help="of the split, the weights and the order")
    train.add_argument("--threads", type=count, metavar="N", help="at most so many; the bits do not depend on it")
    train.add_argument("--save", metavar="FILE", help="write the weights, for fastbp.load and load_state_dict")
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
    circuit.add_argument("--json", metavar="FILE", help="write all numbers")
    circuit.set_defaults(run=run_circuit)
    info = commands.add_parser("info", help="what is in use: version, kernels, threads",
                               description="Print the version, the kernels, the threads and the libraries in use.")
    info.set_defaults(run=lambda args: fb.show_config())
    return main


def run_train(args):
    from fastbp.train import train
    if args.threads:
        fb.set_num_threads(args.threads)
    train(args.data, args.epochs, args.batch_size, args.lr, args.hidden, args.seed, args.save)


def run_circuit(args):
    from fastbp.show.circuit import show
    values = dict(args.values)
    if len(values) < len(args.values):
        raise ValueError("an input is given twice")
    show(args.expression, values, args.expand, args.json)


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
    except (OSError, ValueError, RuntimeError) as problem:
        print(f"fastbp {args.command}: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nfastbp {args.command}: stopped", file=sys.stderr)
        return 130
    return 0
