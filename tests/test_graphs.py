"""Shapes and whole graphs of gates drawn by hypothesis."""
import os
from unittest import mock

import hypothesis.extra.numpy as hnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from test_gates import direction_check, same_bits

import fastbp as fb
from fastbp.planner import PASSES

settings.register_profile("suite", max_examples=60, deadline=None, derandomize=True)
settings.load_profile("suite")

# name: (number of inputs, the same in NumPy); all smooth, and tame on what they feed each other
SMOOTH = {
    "tanh": (1, np.tanh), "sigmoid": (1, lambda x: 1 / (1 + np.exp(-x))), "softplus": (1, lambda x: np.logaddexp(0, x)),
    "neg": (1, np.negative), "add": (2, np.add), "sub": (2, np.subtract), "mul": (2, np.multiply),
}


@st.composite
def graphs(draw):
    """A program over tensors: (input shapes, steps); a step is (gate, places of its inputs)."""
    shapes = draw(hnp.mutually_broadcastable_shapes(num_shapes=3, min_dims=0, max_dims=3, max_side=4)).input_shapes
    steps = []
    for n in range(draw(st.integers(2, 12))):
        gate = draw(st.sampled_from([*SMOOTH, "mean", "transpose"]))
        inputs = 1 if gate in ("mean", "transpose") else SMOOTH[gate][0]
        steps.append((gate, [draw(st.integers(0, 2 + n)) for _ in range(inputs)]))
    return shapes, steps


def run(steps, xs, library):
    """The value of every step."""
    values = list(xs)
    for gate, places in steps:
        inputs = [values[p] for p in places]
        if gate == "mean":
            y = inputs[0].mean(-1, keepdims=True) if inputs[0].ndim else inputs[0].mean()
        elif gate == "transpose":
            # There and back, so that shapes go on broadcasting.
            x, order = inputs[0], (1, 0, *range(2, inputs[0].ndim))
            y = x * 1.0 if x.ndim < 2 else (x.transpose(order) * 1.0).transpose(order)
        else:
            y = getattr(library, gate)(*inputs) if library is fb else SMOOTH[gate][1](*inputs)
        values.append(y)
    return values


@given(graphs(), st.integers(0, 2**32))
def test_random_graphs(graph, seed):
    shapes, steps = graph
    rng = np.random.default_rng(seed)
    xs = [rng.uniform(-1, 1, s) for s in shapes]
    ours = run(steps, [fb.tensor(x) for x in xs], fb)
    for a, b in zip(ours, run(steps, xs, np), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
    weights = [rng.uniform(-1, 1, np.shape(v)) for v in ours]    # every value is used: forks everywhere

    def loss(*ts):
        total = 0.0
        for v, w in zip(run(steps, ts, fb), weights, strict=True):
            total = total + (fb.tanh(v) * w).sum()
        return total

    def gradient(arrays):
        return [g.numpy() for g in fb.grad(loss, argnums=(0, 1, 2))(*arrays)]

    direction_check(lambda arrays: loss(*[fb.tensor(a) for a in arrays]).item(), gradient, xs, rng)
    leaves = [fb.tensor(x, requires_grad=True) for x in xs]
    loss(*leaves).backward()
    for leaf, g in zip(leaves, gradient(xs), strict=True):
        assert same_bits(leaf.grad, g), "backward() and grad() are one walk"


@given(graphs(), st.integers(0, 99), st.sampled_from(["float32", "float64"]), st.sets(st.integers(0, 14), max_size=3),
       st.sets(st.sampled_from([*PASSES])))
def test_random_graphs_staged(graph, seed, dtype, shown, off):
    """A replay gives the bits of gate by gate: value, gradients, whatever else is returned; without some passes too."""
    shapes, steps = graph

    def loss(*ts):
        values = run(steps, ts, fb)
        total = 0.0
        for v in values:
            total = total + (fb.tanh(v) * v).sum()
        return total, [values[n] for n in shown if n < len(values)]

    staged = fb.staged(fb.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    for trial in range(2):
        rng = np.random.default_rng([seed, trial])
        xs = [fb.tensor(rng.uniform(-1, 1, s).astype(dtype)) for s in shapes]
        with mock.patch.dict(os.environ, FASTBP_PASSES_OFF=",".join(off)):
            (y, aux), gradients = staged(*xs)
        (z, aux_z), gradients_z = staged.eager(*xs)
        for a, b in zip([y, *aux, *gradients], [z, *aux_z, *gradients_z], strict=True):
            assert same_bits(a, b)
    assert staged.recordings == 1


@given(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=5, max_side=6, min_side=0), st.integers(0, 99))
def test_broadcasting_is_numpys(shapes, seed):
    rng = np.random.default_rng(seed)
    x, y = (rng.standard_normal(s).astype(np.float32) for s in shapes.input_shapes)
    z = fb.tensor(x) * fb.tensor(y)
    assert z.shape == shapes.result_shape and same_bits(z, np.asarray(x * y))


@given(hnp.array_shapes(min_dims=0, max_dims=5, max_side=7), st.data())
def test_reductions_over_any_axes(shape, data):
    axes = data.draw(st.sets(st.integers(0, max(len(shape) - 1, 0)), max_size=len(shape)))
    keep = data.draw(st.booleans())
    x = np.random.default_rng(len(shape)).standard_normal(shape)
    order = data.draw(st.permutations(range(len(shape))))
    laid = np.ascontiguousarray(x.transpose(order)).transpose(np.argsort(order)) if shape else x
    for name in ("sum", "max"):
        y = getattr(fb.from_numpy(laid), name)(tuple(axes), keep)
        np.testing.assert_allclose(y, getattr(x, name)(tuple(axes), keepdims=keep), rtol=1e-12, atol=1e-13)
        assert same_bits(y, getattr(fb.tensor(x), name)(tuple(axes), keep))


@given(hnp.array_shapes(min_dims=1, max_dims=4, max_side=6), st.data())
def test_indexing_is_numpys(shape, data):
    index = data.draw(hnp.basic_indices(shape, allow_newaxis=True, max_dims=7) | hnp.integer_array_indices(shape))
    x = np.arange(float(np.prod(shape))).reshape(shape)
    y = fb.tensor(x)[index]
    assert same_bits(y, np.asarray(x[index]))
    dx = fb.grad(lambda t: (t[index] * t[index]).sum())(x)
    expected = np.zeros(shape)
    np.add.at(expected, index, 2 * x[index])
    np.testing.assert_allclose(dx, expected)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 70), st.sampled_from(["float32", "float64"]))
def test_products_of_any_size(m, n, k, dtype):
    rng = np.random.default_rng(m * 1000 + n)
    x, w = rng.standard_normal((m, k)).astype(dtype), rng.standard_normal((k, n)).astype(dtype)
    y = fb.tensor(x) @ fb.tensor(w)
    np.testing.assert_allclose(y, x.astype(float) @ w.astype(float), atol=1e-4 if dtype == "float32" else 1e-12)
