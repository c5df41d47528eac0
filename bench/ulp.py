"""How far each transcendental gate is from the truth, in ULP: `python -m bench.ulp --help`.

float32: every one of the 2^32 inputs, or a sample, against the same function in float64.
float64: a sample, against mpmath in 40 digits. An ULP is the distance of the two floats around
the true value, that of denormals below the least normal number.
"""
import argparse
import math
import os
import sys
import time
from functools import partial

import numpy as np

CHUNK = 1 << 13
LIMIT = {"gelu": 4, "gelu_tanh": 4, "erf": 4}    # in float64; all others, and float32, 2


def special(name):
    """A function of scipy, or of math, element by element."""
    try:
        import scipy.special
        return getattr(scipy.special, name)
    except ModuleNotFoundError:
        return np.vectorize(getattr(math, name), otypes=[float])


def sigmoid(x):
    t = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, t) / (1 + t)


def times(x, gate):
    """x gate, 0 where the gate is 0."""
    return np.where(gate == 0, 0, x * gate)


ORACLES = {
    "exp": np.exp, "expm1": np.expm1, "log": np.log, "log1p": np.log1p, "tanh": np.tanh,
    "sigmoid": sigmoid,
    "softplus": lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
    "silu": lambda x: times(x, sigmoid(x)),
    "gelu": lambda x: times(x, 0.5 * special("erfc")(-math.sqrt(0.5) * x)),
    "gelu_tanh": lambda x: times(x, sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "erf": special("erf"),
}


def exact(name):
    """The function in mpmath; raises ModuleNotFoundError without it."""
    import mpmath
    m = mpmath.MPContext()
    m.dps = 40

    def gate(u):
        return 1 / (1 + m.exp(-u)) if abs(u) < 1e5 else m.mpf(u > 0)

    def gelu(x):
        return x * m.erfc(-x * m.sqrt(0.5)) / 2 if abs(x) < 50 else x * (x > 0)

    def gelu_tanh(x):
        return x * gate(2 * m.sqrt(2 / m.pi) * (x + m.mpf("0.044715") * x**3))

    return m, {
        "exp": m.exp, "expm1": m.expm1, "log": m.log, "log1p": m.log1p, "tanh": m.tanh, "sigmoid": gate,
        "softplus": lambda x: m.log1p(m.exp(x)) if x < 0 else x + m.log1p(m.exp(-x)),
        "silu": lambda x: x * gate(x),
        "gelu": gelu, "gelu_tanh": gelu_tanh, "erf": m.erf,
    }[name]


def engine(name):
    """The gate as a function of arrays, denormals as they are."""
    import fastbp as fb
    fb.set_flush_denormal(False)
    f = partial(fb.gelu, approximate="tanh") if name == "gelu_tanh" else getattr(fb, name)
    return lambda x: f(fb.from_numpy(x)).numpy()


def errors(y, true):
    """|y - true| in ULP of float32; true is float64. NaN for NaN and an overflow for one are right."""
    wide, true = (np.clip(v, -(2.0**128), 2.0**128) for v in (y.astype(np.float64), true))
    exponent = np.maximum(true.view(np.int64) & 0x7FF << 52, (1023 - 126) << 52)
    error = np.abs(wide - true) / (exponent - (23 << 52)).view(np.float64)
    nan = true != true
    if nan.any():
        error[nan] = 0
    error[nan != (y != y)] = math.inf
    return error


def worst(name, bits):
    """The largest error of float32 inputs given by their bits, and at which input."""
    x = bits.astype(np.uint32).view(np.float32)
    with np.errstate(all="ignore"):
        error = errors(engine(name)(x), ORACLES[name](x.astype(np.float64)))
    at = int(error.argmax())
    return float(error[at]), float(x[at])


def chunks(sample):
    """The bits of all floats, or of about `sample` of them evenly apart and those around the powers of 2."""
    if not sample:
        for start in range(0, 1 << 32, CHUNK):
            yield np.arange(start, start + CHUNK, dtype=np.uint32)
        return
    step = (1 << 32) // sample | 1
    for start in range(0, 1 << 32, step * CHUNK):
        yield np.arange(start, min(start + step * CHUNK, 1 << 32), step, dtype=np.int64)
    powers = np.arange(0, 1 << 32, 1 << 22, dtype=np.int64)    # and halfway between them
    yield np.concatenate([(powers + d) % (1 << 32) for d in range(-2, 3)])


def sample64(n, seed=0):
    """Doubles of all magnitudes, and denser where the functions bend."""
    rng = np.random.default_rng(seed)
    n = max(1, n // 8)
    dense = [rng.uniform(-b, b, n) for b in (0.7, 2, 6, 40, 800)]
    powers = rng.choice([-1, 1], 3 * n) * 2.0**rng.uniform(-1074, 1023, 3 * n)
    near = np.concatenate([[b, -b, np.nextafter(b, 0), np.nextafter(-b, 0)] for b in 2.0**np.arange(-60, 11)])
    return np.concatenate([*dense, powers, near, [0, np.inf, -np.inf, np.nan]])


def worst64(name, x):
    """The largest error of float64 inputs, against mpmath."""
    m, f = exact(name)
    y = engine(name)(x)
    most = (0.0, 0.0)
    with np.errstate(all="ignore"):
        expected = ORACLES[name](x)    # where the limits of mpmath, and of floats, are not in doubt
    for a, b, near in zip(x, y, expected, strict=True):
        if not math.isfinite(a) or not math.isfinite(near):
            error = 0.0 if b == near or (b != b and near != near) else math.inf
        else:
            true = f(m.mpf(a))
            ulp = math.ldexp(1.0, max(math.frexp(near)[1] if near else -1073, -1021) - 53)
            error = float(abs(m.mpf(b) - true) / m.mpf(ulp))
        if not error <= most[0]:
            most = (error, float(a))
    return most


def parser():
    p = argparse.ArgumentParser(prog="python -m bench.ulp", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("gates", nargs="*", metavar="gate", help=f"of {', '.join(ORACLES)}; all without")
    p.add_argument("--isa", help="the instruction set: baseline, avx2 or avx512")
    p.add_argument("--sample", type=int, default=0, metavar="N", help="of float32 about N inputs only")
    p.add_argument("--float64", type=int, default=20_000, metavar="N", help="inputs of float64 (0: none; needs mpmath)")
    return p


def main(argv=None):
    p = parser()
    args = p.parse_args(argv)
    unknown = set(args.gates) - set(ORACLES)
    if unknown:
        p.error(f"no such gate: {', '.join(sorted(unknown))}")
    if args.isa:
        os.environ["FASTBP_ISA"] = args.isa
    from fastbp_ext import cpu
    print(f"{cpu.ISA}\n{'gate':<12}{'dtype':<10}{'ULP':>6}  at")
    failed = False
    for name in args.gates or ORACLES:
        most, begin = (0.0, 0.0), time.perf_counter()
        for k, bits in enumerate(chunks(args.sample)):
            most = max(most, worst(name, bits), key=lambda pair: pair[0])
            if sys.stderr.isatty() and k % 256 == 0:
                done = int(bits[0]) / (1 << 32)
                print(f"{name} {done:.0%} {time.perf_counter() - begin:.0f} s\r", end="", file=sys.stderr)
        failed |= report(name, "float32", most, 2)
        if args.float64:
            try:
                failed |= report(name, "float64", worst64(name, sample64(args.float64)), LIMIT.get(name, 2))
            except ModuleNotFoundError as missing:
                print(f"{name:<12}{'float64':<10}{'-':>6}  {missing.name} is not installed")
    return failed


def report(name, dtype, most, limit):
    print(f"{name:<12}{dtype:<10}{most[0]:>6.2f}  {most[1].hex()}{'' if most[0] <= limit else f'  above {limit}'}",
          flush=True)
    return not most[0] <= limit


if __name__ == "__main__":
    sys.exit(main())
