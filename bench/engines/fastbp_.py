"""fastbp, by its public functions alone: fb.staged, and its repeat and epoch."""
import numpy as np

import fastbp as fb
from bench.engines import case, digest
from bench.gates import GateCall
from bench.workloads import AdamUpdate, Circuit, CrossEntropy, Elementwise, LeNet, Net, Recurrent, ThreePoints
from fastbp import nn, optim

VERSION = fb.__version__
ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "softplus": nn.Softplus}
LOSSES = {
    "mse": fb.mse_loss,
    "ssr": lambda x, y: fb.mse_loss(x, y, reduction="sum"),
    "cross_entropy": fb.cross_entropy,
}
OPTIMIZERS = {
    "sgd": lambda params, w: optim.SGD(params, lr=w.lr),
    "momentum": lambda params, w: optim.SGD(params, lr=w.lr, momentum=w.momentum),
    "adam": lambda params, w: optim.Adam(params, lr=w.lr, betas=(w.beta1, w.beta2), eps=w.eps),
}


def tensors(ring):
    return [tuple(fb.tensor(np.asarray(a)) for a in batch) for batch in ring]


def loss_and_gradients(function, w, argnums):
    """A case of one staged call that returns a value and gradients."""
    def numbers(result):
        value, grads = result
        return [[value.item()], *digest(*(grads if isinstance(grads, tuple) else (grads,)))]

    step = fb.staged(fb.value_and_grad(function, argnums=argnums))
    return case(step, tensors(w.ring()), lambda result: result[0].item(), numbers)


def circuit(w, form):
    def f(x, y):
        return (x + fb.sigmoid(y)) / (fb.sigmoid(x) + (x + y)**2)
    return loss_and_gradients(f, w, (0, 1))


def elementwise(w, form):
    def f(x, y):
        return fb.tanh(x * y + fb.sigmoid(x)).sum()
    return loss_and_gradients(f, w, (0, 1))


def cross_entropy(w, form):
    return loss_and_gradients(fb.cross_entropy, w, 0)


def net(w, form):
    layers = []
    for i, o in zip(w.sizes, w.sizes[1:], strict=False):
        layers += [nn.Linear(i, o, bias=w.bias), ACTIVATIONS[w.activation]()]
    model = nn.Sequential(*layers[:-1])
    state = {}
    for i, (weight, bias) in enumerate(w.weights()):
        state[f"{2 * i}.weight"] = weight.T
        if bias is not None:
            state[f"{2 * i}.bias"] = bias
    model.load_state_dict(state)
    return training(model, w, LOSSES[w.loss], form)


def lenet(w, form):
    model = nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(256, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10))
    for p, value in zip(model.parameters(), w.state(), strict=True):
        p.copy_(value)
    return training(model, w, fb.cross_entropy, form)


def training(model, w, loss_of, form):
    """A case of training steps, by call or in a loop."""
    opt = OPTIMIZERS[w.optimizer](model.parameters(), w)

    @fb.staged
    def step(x, y):
        loss = loss_of(model(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss

    if form == "call":
        return case(step, tensors(w.ring()), lambda loss: loss.item())
    if w.loop == "epoch":
        return case(lambda x, y: step.epoch(x, y, batch_size=w.batch), [w.arrays()], float, steps=w.steps_of_loop)
    return case(lambda x, y: step.repeat(w.repeats, x, y), tensors(w.ring()), lambda loss: loss.item(),
                steps=w.repeats)


def recurrent(w, form):
    model = nn.GRU(w.inputs, w.hidden)
    model.load_state_dict(w.weights())
    opt = optim.SGD(model.parameters(), lr=w.lr)

    @fb.staged
    def step(x, y):
        loss = fb.mse_loss(model(x)[0], y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss

    return case(step, tensors(w.ring()), lambda loss: loss.item())


def adam_update(w, form):
    p = fb.tensor(w.weights(), requires_grad=True)
    opt = OPTIMIZERS["adam"]([p], w)

    @fb.staged
    def step(g):
        p.grad = g
        opt.step()

    return case(step, tensors(w.ring()), lambda _: float(p.numpy()[0]), lambda _: digest(p.numpy() - w.weights()))


def gate(w, form):
    return case(w.case.call, tensors(w.ring(np.float32)), lambda r: None, lambda r: digest(r))


BUILD = {Circuit: circuit, Net: net, ThreePoints: net, LeNet: lenet, Elementwise: elementwise,
         CrossEntropy: cross_entropy, Recurrent: recurrent, AdamUpdate: adam_update, GateCall: gate}
