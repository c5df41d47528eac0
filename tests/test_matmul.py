"""Matrix products: every small shape, to the bit, against the chain that defines them."""
from fractions import Fraction
from itertools import product
from math import ceil

import numpy as np
import pytest
from test_gates import same_bits

import fastbp as fb
from fastbp_ext.cpu import ISA

FUSED = ISA != "baseline"    # whether a * b + c is rounded once, on x86
BLOCK = 512                  # no chain of a sum over k is longer
LENGTHS = (1, 2, 3, 4, 5, 7, 8, 11, 12, 13, 16, 17, 31, 40)


def fma32(a, b, c):
    """a * b + c in float32, rounded once."""
    if not FUSED:
        return a * b + c
    product, c = a.astype(np.float64) * b, c.astype(np.float64)    # of 24 bits by 24: exact
    total = product + c
    part = total - product
    error = (product - (total - part)) + (c - part)
    # A total that was rounded goes to its odd neighbour, so that rounding it again is rounding once.
    even = total.view(np.int64) % 2 == 0
    return np.where((error != 0) & even, np.nextafter(total, np.copysign(np.inf, error)), total).astype(np.float32)


def fma64(a, b, c):
    """a * b + c in float64, rounded once."""
    def one(a, b, c):
        return float(Fraction(a) * Fraction(b) + Fraction(c))
    return np.vectorize(one)(a, b, c) if FUSED else a * b + c


def chain(x, w):
    """The product as it is defined: blocks of ascending multiply-adds from 0, block after block added."""
    k = x.shape[1]
    count = ceil(k / BLOCK)
    block = k if count == 1 else ceil(k / count / 16) * 16
    total = None
    for start in range(0, k, block):
        part = np.zeros((len(x), w.shape[1]), x.dtype)
        for q in range(start, min(start + block, k)):
            part = (fma32 if x.dtype == np.float32 else fma64)(x[:, q:q + 1], w[q:q + 1], part)
        total = part if total is None else total + part
    return total


def operands(m, k, n, dtype, seed=0):
    rng = np.random.default_rng([m, k, n, seed])
    return rng.standard_normal((m, k)).astype(dtype), rng.standard_normal((k, n)).astype(dtype)


def layouts(x):
    """The same matrix by rows, by columns, and spread out."""
    spread = np.repeat(np.repeat(x, 2, 0), 3, 1)[::2, ::3]
    return [fb.from_numpy(a) for a in (x, np.asfortranarray(x), spread)]


@pytest.mark.parametrize("k", LENGTHS)
def test_every_small_float32_product(k):
    x, w = operands(37, k, 37, np.float32)
    expected = chain(x, w)
    for m, n in product(range(1, 38), repeat=2):
        for a, b in product(layouts(x[:m]), layouts(w[:, :n])):
            assert same_bits(a @ b, expected[:m, :n]), (m, n, a.numpy().strides, b.numpy().strides)


@pytest.mark.parametrize("k", (1, 2, 3, 5, 12, 13))
def test_every_small_float64_product(k):
    x, w = operands(19, k, 19, np.float64)
    expected = chain(x, w)
    for m, n in product(range(1, 20), repeat=2):
        for a, b in product(layouts(x[:m]), layouts(w[:, :n])):
            assert same_bits(a @ b, expected[:m, :n]), (m, n, a.numpy().strides, b.numpy().strides)


@pytest.mark.parametrize("m, k, n", [
    (200, 24, 8), (200, 8, 2), (24, 200, 8), (8, 200, 2), (100, 500, 10), (3, 1100, 70), (70, 1100, 3), (500, 10, 33),
    (40, 1100, 11), (130, 520, 130), (32, 128, 200), (100, 64, 64), (1, 1030, 65), (65, 1030, 1), (50, 2100, 70)])
def test_larger_float32_products(m, k, n):
    x, w = operands(m, k, n, np.float32)
    expected = chain(x, w)
    for a, b in product(layouts(x), layouts(w)):
        assert same_bits(a @ b, expected), (a.numpy().strides, b.numpy().strides)


@pytest.mark.parametrize("dtype", (np.float32, np.float64))
@pytest.mark.parametrize("m, k, n", [
    *product((1, 2, 5, 13, 37), (0, 1, 3, 4, 12, 13, 40), (1, 2, 4, 5, 8, 13, 16, 17, 32, 37, 64)),
    (100, 64, 130), (70, 1100, 3), (3, 513, 70), (1, 512, 65), (130, 520, 130), (1, 513, 1), (600, 300, 20)])
def test_a_bias_is_added_last(m, k, n, dtype):
    """What a layer does in one stage: every product of the layouts, then the bias."""
    x, w = operands(m, k, n, dtype)
    b = np.random.default_rng(n).standard_normal(n).astype(dtype)
    f = fb.staged(lambda xs, ws, b: [x @ w + b for x, w in product(xs, ws)])
    made = f(layouts(x), layouts(w), b)
    assert [s.name for s in f.replays[0].about.plan.stages if s.form == "product"] == 9 * ["matmul_add"]
    for y, expected in zip(made, f.eager(layouts(x), layouts(w), b), strict=True):
        assert same_bits(y, expected)


@pytest.mark.parametrize("k", (33, 512, 513, 1030, 3600, 4096, 5000, 9000))
def test_dot_products(k):
    x, w = operands(1, k, 1, np.float32)
    for a, b in product(layouts(x), layouts(w)):
        assert same_bits(a @ b, chain(x, w))
        assert same_bits(a[0] @ b[:, 0], chain(x, w)[0, 0])


@pytest.mark.parametrize("k", (1, 3, 8, 24, 33))
@pytest.mark.parametrize("n", (1, 2, 4, 5, 8, 10, 16, 33))
def test_any_rows_of_a_product(k, n):
    x, w = operands(100, k, n, np.float32)
    expected = chain(x, w)
    for start, stop in product((0, 1, 2, 3, 30), (31, 32, 45, 97, 100)):
        assert same_bits(fb.from_numpy(x)[start:stop] @ fb.from_numpy(w), expected[start:stop]), (start, stop)


@pytest.mark.parametrize("shape, m, k, n", [
    ((5, 3), 4, 4, 4), ((7,), 16, 16, 16), ((2, 3), 33, 16, 5), ((9,), 1, 8, 40), ((9,), 3, 1, 3), ((3,), 8, 40, 1),
    ((2,), 50, 1050, 18)])
def test_batches_of_products(shape, m, k, n):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((*shape, m, k)).astype(np.float32)
    w = rng.standard_normal((*shape, k, n)).astype(np.float32)
    expected = [chain(a, b) for a, b in zip(x.reshape(-1, m, k), w.reshape(-1, k, n), strict=True)]
    turned = [fb.from_numpy(np.ascontiguousarray(a.swapaxes(-1, -2)).swapaxes(-1, -2)) for a in (x, w)]
    for a, b in product((fb.from_numpy(x), turned[0]), (fb.from_numpy(w), turned[1])):
        assert same_bits(a @ b, np.reshape(expected, (*shape, m, n)))


@pytest.mark.parametrize("m, k, n", [
    (200, 24, 8), (200, 8, 2), (700, 40, 3), (700, 40, 10), (300, 100, 100), (900, 9, 70)])
def test_chunks_of_rows_in_any_order_give_the_same_bits(m, k, n):
    x, w = operands(m, k, n, np.float32)

    @fb.staged
    def f(x, w):
        return x @ w, w.T @ x.T

    xs = fb.from_numpy(x), fb.from_numpy(w)
    f(*xs)
    made = f(*xs)
    (replay,) = f.replays
    assert max(replay.program.chunks) > 1 or m * n * k < 1 << 15
    expected = chain(x, w)
    for order in (1, -1):
        for y in made:
            y.numpy()[...] = np.nan
        replay.program.run_in_chunks(order)
        assert same_bits(made[0], expected) and same_bits(made[1], expected.T)
