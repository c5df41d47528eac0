"""PyTorch, eager and compiled. Optimizers are the fused ones."""
import os

import torch
from torch import nn
from torch.nn import functional as F

from bench.engines import case, digest
from bench.workloads import AdamUpdate, Circuit, CrossEntropy, Elementwise, LeNet, Net, Recurrent, ThreePoints

VERSION = torch.__version__
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "softplus": nn.Softplus}
LOSSES = {
    "mse": F.mse_loss,
    "ssr": lambda x, y: F.mse_loss(x, y, reduction="sum"),
    "cross_entropy": F.cross_entropy,
}
OPTIMIZERS = {
    "sgd": lambda params, w: torch.optim.SGD(params, lr=w.lr, fused=True),
    "momentum": lambda params, w: torch.optim.SGD(params, lr=w.lr, momentum=w.momentum, fused=True),
    "adam": lambda params, w: torch.optim.Adam(params, lr=w.lr, betas=(w.beta1, w.beta2), eps=w.eps, fused=True),
}


def tensors(ring, dtype=None):
    return [tuple(torch.tensor(a, dtype=dtype) for a in batch) for batch in ring]


def net(w, form, compiled=False):
    layers = []
    for i, o in zip(w.sizes, w.sizes[1:], strict=False):
        layers += [nn.Linear(i, o, bias=w.bias), ACTIVATIONS[w.activation]()]
    model = nn.Sequential(*layers[:-1])
    with torch.no_grad():
        for layer, (weight, bias) in zip(model[::2], w.weights(), strict=True):
            layer.weight.copy_(torch.from_numpy(weight.T))
            if bias is not None:
                layer.bias.copy_(torch.from_numpy(bias))
    return training(model, w, LOSSES[w.loss], compiled)


def lenet(w, form, compiled=False):
    model = nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(256, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10))
    with torch.no_grad():
        for p, value in zip(model.parameters(), w.state(), strict=True):
            p.copy_(torch.from_numpy(value))
    return training(model, w, F.cross_entropy, compiled)


def training(model, w, loss_of, compiled):
    """A case of training steps."""
    opt = OPTIMIZERS[w.optimizer](model.parameters(), w)

    def forward(x, y):
        return loss_of(model(x), y)

    if compiled:
        forward = torch.compile(forward)

    def step(x, y):
        loss = forward(x, y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss

    return case(step, tensors(w.ring()), lambda loss: loss.item())


def recurrent(w, form, compiled=False):
    if compiled:
        return None                   # it leaves nn.GRU as it is
    model = nn.GRU(w.inputs, w.hidden)
    model.load_state_dict({name: torch.from_numpy(p) for name, p in w.weights().items()})
    opt = OPTIMIZERS["sgd"](model.parameters(), w)

    def step(x, y):
        loss = F.mse_loss(model(x)[0], y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss

    return case(step, tensors(w.ring()), lambda loss: loss.item())


def loss_and_gradients(function, w, gradients, compiled, dtype=None):
    """Value and gradients by the first `gradients` arguments."""
    ring = tensors(w.ring(), dtype)
    if compiled:
        step = torch.compile(torch.func.grad_and_value(function, argnums=tuple(range(gradients))))
        return case(step, ring, lambda r: r[1].item(), lambda r: [[r[1].item()], *digest(*r[0])])
    for batch in ring:
        for x in batch[:gradients]:
            x.requires_grad_()

    def step(*args):
        value = function(*args)
        return value, torch.autograd.grad(value, args[:gradients])

    return case(step, ring, lambda r: r[0].item(), lambda r: [[r[0].item()], *digest(*r[1])])


def circuit(w, form, compiled=False):
    def f(x, y):
        return (x + torch.sigmoid(y)) / (torch.sigmoid(x) + (x + y)**2)
    return loss_and_gradients(f, w, 2, compiled, torch.float64)


def elementwise(w, form, compiled=False):
    return loss_and_gradients(lambda x, y: torch.tanh(x * y + torch.sigmoid(x)).sum(), w, 2, compiled)


def cross_entropy(w, form, compiled=False):
    return loss_and_gradients(F.cross_entropy, w, 1, compiled)


def adam_update(w, form, compiled=False):
    if compiled:
        return None                   # nothing but the fused kernel
    p = torch.tensor(w.weights(), requires_grad=True)
    opt = OPTIMIZERS["adam"]([p], w)

    def step(g):
        p.grad = g
        opt.step()

    return case(step, tensors(w.ring()), lambda _: p[0].item(), lambda _: digest(p.detach().numpy() - w.weights()))


BUILD = {Circuit: circuit, Net: net, ThreePoints: net, LeNet: lenet, Elementwise: elementwise,
         CrossEntropy: cross_entropy, Recurrent: recurrent, AdamUpdate: adam_update}
