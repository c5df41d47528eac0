"""JAX: a jitted step by call, or a loop of steps inside jit.

Dispatch is synchronous, which is the faster way on one core, and buffers of the state are donated.
"""
import functools

import jax
import jax.numpy as jnp
import numpy as np

from bench.engines import case, digest
from bench.workloads import AdamUpdate, Circuit, CrossEntropy, Elementwise, LeNet, Net, Recurrent, ThreePoints

VERSION = jax.__version__
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_cpu_enable_async_dispatch", False)
ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh, "softplus": jax.nn.softplus}


def arrays(ring):
    return [tuple(jnp.asarray(a, jnp.int32 if np.asarray(a).dtype.kind == "i" else None) for a in batch)
            for batch in ring]


def mean_cross_entropy(scores, labels):
    return (jax.nn.logsumexp(scores, axis=1) - jnp.take_along_axis(scores, labels[:, None], 1)[:, 0]).mean()


LOSSES = {
    "mse": lambda s, y: jnp.square(s - y).mean(),
    "ssr": lambda s, y: jnp.square(s - y).sum(),
    "cross_entropy": mean_cross_entropy,
}


# --- (how to make the state of the weights, the update (weights, state, gradient) -> (weights, state))

def zeros(weights):
    return jax.tree.map(jnp.zeros_like, weights)


def descend(w, weights, directions):
    return jax.tree.map(lambda p, d: p - w.lr * d, weights, directions)


def sgd(w, weights, state, g):
    return descend(w, weights, g), state


def momentum(w, weights, state, g):
    state = jax.tree.map(lambda v, d: w.momentum * v + d, state, g)
    return descend(w, weights, state), state


def adam(w, weights, state, g):
    t, m, v = state
    t = t + 1
    m = jax.tree.map(lambda m, d: w.beta1 * m + (1 - w.beta1) * d, m, g)
    v = jax.tree.map(lambda v, d: w.beta2 * v + (1 - w.beta2) * d * d, v, g)
    rate, root = w.lr / (1 - w.beta1**t), (1 - w.beta2**t)**-0.5
    weights = jax.tree.map(lambda p, m, v: p - rate * m / (jnp.sqrt(v) * root + w.eps), weights, m, v)
    return weights, (t, m, v)


def adam_state(weights):
    return jnp.zeros((), jnp.float32), zeros(weights), zeros(weights)


OPTIMIZERS = {"sgd": (lambda weights: (), sgd), "momentum": (zeros, momentum), "adam": (adam_state, adam)}


def net(w, form):
    weights = jax.tree.map(jnp.array, w.weights())      # a bias of None has no leaf
    activation, loss_of = ACTIVATIONS[w.activation], LOSSES[w.loss]

    def loss_of_net(weights, x, y):
        return loss_of(layers(weights, activation, x), y)

    return training(w, form, weights, loss_of_net)


def layers(weights, activation, x):
    """Fully connected layers, the activation between them."""
    for i, (weight, bias) in enumerate(weights):
        x = x @ weight if bias is None else x @ weight + bias
        x = activation(x) if i < len(weights) - 1 else x
    return x


def lenet(w, form):
    def features(filters, x):
        for kernel, bias in filters:
            x = jax.lax.conv(x, kernel, (1, 1), "VALID") + bias[:, None, None]
            x = jax.lax.reduce_window(jax.nn.relu(x), -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
        return x.reshape(x.shape[0], -1)

    def loss_of_net(weights, x, y):
        return mean_cross_entropy(layers(weights[1], jax.nn.relu, features(weights[0], x)), y)

    return training(w, form, jax.tree.map(jnp.array, w.weights()), loss_of_net)


def training(w, form, weights, loss_of_net):
    """A case of training steps, by call or in a loop."""
    make_state, update = OPTIMIZERS[w.optimizer]

    def step(carry, x, y):
        loss, g = jax.value_and_grad(loss_of_net)(carry[0], x, y)
        return update(w, *carry, g), loss

    def epoch(carry, xs, ys):
        carry, losses = jax.lax.scan(lambda c, batch: step(c, *batch), carry, (xs, ys))
        return carry, losses.mean()

    def repeat(carry, x, y):
        return jax.lax.fori_loop(0, w.repeats, lambda _, c: step(c[0], x, y), (carry, jnp.float32(0)))

    function = step if form == "call" else {"epoch": epoch, "repeat": repeat}[w.loop]
    jitted = jax.jit(function, donate_argnums=0)
    carry = weights, make_state(weights)

    def call(x, y):
        nonlocal carry
        carry, loss = jitted(carry, x, y)
        return loss

    ring = arrays(w.ring())
    if function is epoch:
        ring = [tuple(jnp.stack(part) for part in zip(*ring, strict=True))]
    return case(call, ring, float, steps=1 if form == "call" else w.steps_of_loop)


def recurrent(w, form):
    n = w.hidden

    def loss_of_gru(weights, x, y):
        def cell(h, x):
            g = h @ weights["weight_hh_l0"].T + weights["bias_hh_l0"]
            r, z = jnp.split(jax.nn.sigmoid(x[:, :2 * n] + g[:, :2 * n]), 2, axis=1)
            a = jnp.tanh(x[:, 2 * n:] + r * g[:, 2 * n:])
            h = a + z * (h - a)
            return h, h

        x = x @ weights["weight_ih_l0"].T + weights["bias_ih_l0"]
        return jnp.square(jax.lax.scan(cell, jnp.zeros((w.batch, n)), x)[1] - y).mean()

    @functools.partial(jax.jit, donate_argnums=0)
    def update(weights, x, y):
        loss, g = jax.value_and_grad(loss_of_gru)(weights, x, y)
        return descend(w, weights, g), loss

    weights = jax.tree.map(jnp.array, w.weights())

    def step(x, y):
        nonlocal weights
        weights, loss = update(weights, x, y)
        return loss

    return case(step, arrays(w.ring()), float)


def loss_and_gradients(function, w, argnums):
    step = jax.jit(jax.value_and_grad(function, argnums=argnums))
    return case(step, arrays(w.ring()), lambda r: float(jax.block_until_ready(r)[0]),
                lambda r: [[float(r[0])], *digest(*jax.tree.leaves(r[1]))])


def circuit(w, form):
    """In float64, which JAX has only within the context."""
    def f(x, y):
        return (x + jax.nn.sigmoid(y)) / (jax.nn.sigmoid(x) + (x + y)**2)

    with jax.enable_x64(True):
        made = loss_and_gradients(f, w, (0, 1))
    run = made.run

    def run_in_float64(n):
        with jax.enable_x64(True):
            run(n)
    made.run = run_in_float64
    return made


def elementwise(w, form):
    return loss_and_gradients(lambda x, y: jnp.tanh(x * y + jax.nn.sigmoid(x)).sum(), w, (0, 1))


def cross_entropy(w, form):
    return loss_and_gradients(mean_cross_entropy, w, 0)


def adam_update(w, form):
    carry = jnp.array(w.weights()), adam_state(jnp.array(w.weights()))
    jitted = jax.jit(lambda carry, g: adam(w, *carry, g), donate_argnums=0)

    def step(g):
        nonlocal carry
        carry = jitted(carry, g)

    return case(step, arrays(w.ring()), lambda _: float(carry[0][0]), lambda _: digest(carry[0] - w.weights()))


BUILD = {Circuit: circuit, Net: net, ThreePoints: net, LeNet: lenet, Elementwise: elementwise,
         CrossEntropy: cross_entropy, Recurrent: recurrent, AdamUpdate: adam_update}
