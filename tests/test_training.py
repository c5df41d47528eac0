"""Training: the nets of the text, by this engine and by hand in NumPy."""
import os
from pathlib import Path

import numpy as np
import pytest

import fastbp as fb
from fastbp import data, nn, optim


def softmax_rows(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def numpy_epoch(X, y, W1, W2, lr, batch):
    """One epoch of SGD for the two-layer ReLU net, by hand (CMU 10-714, first homework)."""
    for i in range(0, len(X), batch):
        x, label = X[i:i + batch], y[i:i + batch]
        Z = np.maximum(x @ W1, 0)
        G2 = softmax_rows(Z @ W2)
        G2[np.arange(len(x)), label] -= 1           # S - I_y
        G1 = (Z > 0) * (G2 @ W2.T)
        W1, W2 = W1 - lr / len(x) * x.T @ G1, W2 - lr / len(x) * Z.T @ G2
    return W1, W2


def engine_epoch(X, y, W1, W2, lr, batch):
    W1, W2 = fb.tensor(W1, requires_grad=True), fb.tensor(W2, requires_grad=True)
    opt = optim.SGD([W1, W2], lr=lr)
    for x, label in data.batches(X, y, batch_size=batch):
        loss = fb.cross_entropy(fb.relu(fb.from_numpy(x) @ W1) @ W2, label)
        opt.zero_grad()
        loss.backward()
        opt.step()
    return W1.numpy(), W2.numpy()


def loss_of(X, y, W1, W2):
    z = np.maximum(X @ W1, 0) @ W2
    z = z - z.max(1, keepdims=True)
    return float(np.mean(np.log(np.exp(z).sum(1)) - z[np.arange(len(y)), y]))


def check_epoch(X, y, hidden, lr, batch):
    classes = int(y.max()) + 1
    rng = np.random.default_rng(0)
    W1 = rng.standard_normal((X.shape[1], hidden)) / np.sqrt(hidden)
    W2 = rng.standard_normal((hidden, classes)) / np.sqrt(classes)
    exact = numpy_epoch(X.astype(np.float64), y, W1, W2, lr, batch)
    ours = engine_epoch(X.astype(np.float64), y, W1, W2, lr, batch)
    for a, b in zip(exact, ours, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5)
    single = engine_epoch(X.astype(np.float32), y, W1.astype(np.float32), W2.astype(np.float32), lr, batch)
    for a, b in zip(exact, single, strict=True):
        assert abs(np.linalg.norm(b) / np.linalg.norm(a) - 1) < 2e-4
    X64 = X.astype(np.float64)
    assert abs(loss_of(X64, y, *single) / loss_of(X64, y, *exact) - 1) < 2e-4


def test_an_epoch_of_the_two_layer_net_on_random_data():
    rng = np.random.default_rng(1)
    check_epoch(rng.standard_normal((50, 5)), rng.integers(0, 3, 50).astype(np.uint8), 10, lr=1.0, batch=50)
    check_epoch(rng.standard_normal((203, 20)), rng.integers(0, 4, 203).astype(np.uint8), 33, lr=0.2, batch=32)


@pytest.mark.skipif("FASTBP_MNIST" not in os.environ, reason="FASTBP_MNIST names no folder")
def test_an_epoch_of_the_two_layer_net_on_mnist():
    train, test = data.load_mnist(Path(os.environ["FASTBP_MNIST"]))
    check_epoch(*(train or test), 100, lr=0.2, batch=100)


def test_the_general_pass_of_l_layers():
    """Z_l+1 = s(Z_l W_l); G_l = (G_l+1 * s'(Z_l W_l)) W_l^T; dW_l = Z_l^T (G_l+1 * s'(Z_l W_l))."""
    rng = np.random.default_rng(2)
    sizes = [7, 12, 9, 11, 3]
    W = [rng.standard_normal(s) / np.sqrt(s[0]) for s in zip(sizes, sizes[1:], strict=False)]
    X, y = rng.standard_normal((20, 7)), rng.integers(0, 3, 20)
    Z = [X]
    for w in W[:-1]:
        Z.append(np.tanh(Z[-1] @ w))
    G = softmax_rows(Z[-1] @ W[-1])
    G[np.arange(20), y] -= 1
    G /= 20
    expected = []
    for layer in reversed(range(len(W))):
        expected.insert(0, Z[layer].T @ G)
        G = (G @ W[layer].T) * (1 - Z[layer]**2)

    def net(ws):
        z = fb.tensor(X)
        for w in ws[:-1]:
            z = fb.tanh(z @ w)
        return fb.cross_entropy(z @ ws[-1], y)

    for got, want in zip(fb.grad(net)(W), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-14)


def test_vanishing_and_exploding_gradients():
    """Twenty sigmoid layers lose the gradient layer by layer; large tanh weights make it explode."""
    rng = np.random.default_rng(3)

    def norms(activation, scale):
        ws = [rng.standard_normal((50, 50)) * scale for _ in range(20)]

        def net(ws):
            z = fb.tensor(rng.standard_normal((30, 50)))
            for w in ws:
                z = activation(z @ w)
            return z.sum()

        return [np.linalg.norm(g.numpy()) for g in fb.grad(net)(ws)]

    vanishing = norms(fb.sigmoid, 50**-0.5)
    assert vanishing[0] < 1e-8 * vanishing[-1]
    healthy = norms(fb.relu, (2 / 50)**0.5)
    assert 1e-2 < healthy[0] / healthy[-1] < 1e2
    exploding = norms(fb.relu, 4 * (2 / 50)**0.5)
    assert exploding[0] > 1e8 * exploding[-1] / 4**20 and exploding[-1] > 1e8


# --- the softplus net fitted to three dosages (StatQuest)

DOSAGE, EFFECT = np.array([0.0, 0.5, 1.0]), np.array([0.0, 1.0, 0.0])


def predicted(p, x):
    return (fb.softplus(x * p["w1"] + p["b1"]) * p["w3"] + fb.softplus(x * p["w2"] + p["b2"]) * p["w4"]) + p["b3"]


def ssr(p):
    return fb.mse_loss(predicted(p, fb.tensor(DOSAGE)), EFFECT, reduction="sum")


FITTED = {"w1": 3.34, "b1": -1.43, "w2": -3.53, "b2": 0.57, "w3": -1.22, "w4": -2.30}


def test_fitting_the_last_bias_by_gradient_descent():
    b3, seen = 0.0, []
    while True:
        value, slope = fb.value_and_grad(lambda b: ssr({**FITTED, "b3": b}))(np.float64(b3))
        step = 0.1 * slope.item()
        seen.append((value.item(), slope.item(), step, b3 - step))
        b3 -= step
        if abs(step) < 0.001:
            break
    assert [round(v, 1) for v in seen[0][:2]] == [20.4, -15.7]
    assert round(seen[0][2], 2) == -1.57 and round(seen[0][3], 2) == 1.57
    assert round(seen[1][1], 2) == -6.26 and round(seen[1][3], 2) == 2.19
    assert round(b3, 2) == 2.61


def test_fitting_all_seven_parameters():
    rng = np.random.default_rng(0)
    p = {name: fb.tensor(rng.standard_normal(), dtype="float64", requires_grad=True, name=name)
         for name in (*FITTED, "b3")}
    opt = optim.SGD(list(p.values()), lr=0.05)
    for _ in range(3000):
        loss = ssr(p)
        opt.zero_grad()
        loss.backward()
        opt.step()
    assert loss.item() < 1e-4


def test_a_net_learns_the_digits():
    X, y = data.load_digits()
    order = np.random.default_rng(0).permutation(len(X))
    train, test = order[:-360], order[-360:]
    model = nn.Sequential(nn.Linear(64, 100, rng=0), nn.ReLU(), nn.Linear(100, 10, rng=1))
    opt = optim.Adam(model.parameters(), lr=0.003)
    for _ in range(8):
        for xb, yb in data.batches(X[train], y[train], batch_size=32, shuffle=True, rng=0):
            loss = fb.cross_entropy(model(xb), yb)
            opt.zero_grad()
            loss.backward()
            opt.step()
    with fb.no_grad():
        error = np.mean(model(X[test]).numpy().argmax(1) != y[test])
    assert error <= 0.05
