"""RNN, GRU, LSTM and their cells: against NumPy and PyTorch, their gradients, and the bits."""
import inspect

import numpy as np
import pytest
from cases import sigmoid, tolerance
from test_gates import LAYOUTS, direction_check, same_bits, tensors
from test_staged import OPTIMIZERS, assert_same
from test_threads import NUMBERS, in_threads

import fastbp as fb
from fastbp import nn
from fastbp.gates import INTERNAL, recurrent
from fastbp.planner.cost import flop_of

DTYPES = [np.float32, np.float64]
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
each_kind = pytest.mark.parametrize("kind", GATES)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def oracle(kind, x, states, w, u, b, c, relu=False):
    """All steps in NumPy, PyTorch's formulas: [(T, B, H) of each state]."""
    found = []
    for x_t in x:
        h, n = states[0], states[0].shape[1]
        a, g = x_t @ w.T + b, h @ u.T + c
        if kind == "RNN":
            states = [np.maximum(a + g, 0) if relu else np.tanh(a + g)]
        elif kind == "GRU":
            r, z = (sigmoid(a[:, k:k + n] + g[:, k:k + n]) for k in (0, n))
            new = np.tanh(a[:, 2 * n:] + r * g[:, 2 * n:])
            states = [(1 - z) * new + z * h]
        else:
            i, f, o = (sigmoid(a[:, k * n:(k + 1) * n] + g[:, k * n:(k + 1) * n]) for k in (0, 1, 3))
            cell = f * states[1] + i * np.tanh(a[:, 2 * n:3 * n] + g[:, 2 * n:3 * n])
            states = [o * np.tanh(cell), cell]
        found.append(states)
    return [np.stack(s) for s in zip(*found, strict=True)]


def made(kind, inputs=4, hidden=5, dtype=np.float32, rng=0, **options):
    return getattr(nn, kind)(inputs, hidden, dtype=dtype, rng=rng, **options)


def arrays(kind, steps, batch, hidden, seed=0, dtype=np.float64):
    """What a scan takes: x, h, w, b, and c of an LSTM."""
    rng, rows = np.random.default_rng(seed), GATES[kind] * hidden
    shapes = [(steps * batch, rows), (batch, hidden), (hidden, rows), (4 * hidden if kind != "RNN" else hidden,)]
    shapes += [(batch, hidden)] * (kind == "LSTM")
    return [rng.standard_normal(s).astype(dtype) / (hidden**0.5 if len(s) == 2 and s[0] == hidden else 1)
            for s in shapes]


def states(kind, xs, **options):
    return getattr(recurrent, kind.lower())(*xs, **options)


def outputs(kind, result):
    y, last = result
    return [y, *(last if kind == "LSTM" else [last])]


SIZES = [(1, 1, 1), (3, 2, 5), (2, 3, 17), (4, 5, 16), (2, 33, 130)]    # steps, batch, hidden


@each_kind
@each_dtype
@pytest.mark.parametrize("steps, batch, hidden", SIZES)
def test_layer_and_cell_against_numpy(kind, dtype, steps, batch, hidden):
    rng = np.random.default_rng(hidden)
    x = rng.standard_normal((steps, batch, 3)).astype(dtype)
    first = list(rng.standard_normal((2 if kind == "LSTM" else 1, batch, hidden)).astype(dtype))
    layer, cell = made(kind, 3, hidden, dtype), made(f"{kind}Cell", 3, hidden, dtype)
    cell.load_state_dict({name.removesuffix("_l0"): p for name, p in layer.state_dict().items()})
    expected = oracle(kind, x.astype(float), first, *[p.numpy().astype(float) for p in layer.parameters()])
    y, *last = outputs(kind, layer(x, [s[None] for s in first] if kind == "LSTM" else first[0][None]))
    np.testing.assert_allclose(y, expected[0], **tolerance(dtype))
    given, stepwise = first, []
    for x_t in x:
        given = cell(x_t, given if kind == "LSTM" else given[0])
        given = given if kind == "LSTM" else [given]
        stepwise.append(given[0].numpy())
    assert same_bits(np.stack(stepwise), y)
    for s, of_cell, e in zip(last, given, expected, strict=True):
        assert s.shape == (1, batch, hidden) and same_bits(s.numpy()[0], of_cell)
        np.testing.assert_allclose(s.numpy()[0], e[-1], **tolerance(dtype))


def test_relu():
    layer, x = made("RNN", 3, 7, np.float64, nonlinearity="relu"), np.random.default_rng(0).standard_normal((5, 2, 3))
    y, _ = layer(x)
    parameters = [p.numpy() for p in layer.parameters()]
    np.testing.assert_allclose(y, oracle("RNN", x, [np.zeros((2, 7))], *parameters, relu=True)[0], rtol=1e-13)
    assert (y.numpy() == 0).any()


@each_kind
@pytest.mark.parametrize("options, dtype, batch", [
    ({}, np.float64, 3), ({"bias": False, "num_layers": 2}, np.float64, None),
    ({"batch_first": True, "bidirectional": True}, np.float64, 4), ({"batch_first": True}, np.float64, None),
    ({"num_layers": 3, "bidirectional": True}, np.float64, None), ({"nonlinearity": "relu"}, np.float64, 2),
    ({"num_layers": 2, "bidirectional": True}, np.float32, 5)], ids=str)
def test_against_pytorch(kind, options, dtype, batch):
    """Outputs, all gradients, and a state dict that loads; with first states and without."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    if "nonlinearity" in options and kind != "RNN":
        pytest.skip("of RNN alone")
    ours = made(kind, dtype=dtype, **options)
    theirs = getattr(torch.nn, kind)(4, 5, dtype=getattr(torch, np.dtype(dtype).name), **options)
    assert repr(ours).replace(", nonlinearity='relu'", "") == repr(theirs)    # which PyTorch's does not show
    theirs.load_state_dict({name: torch.from_numpy(p.numpy()) for name, p in ours.state_dict().items()})
    rng, count = np.random.default_rng(0), 1 + (kind == "LSTM")
    ways = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    shapes = [(6, 4) if batch is None else (batch, 6, 4) if options.get("batch_first") else (6, batch, 4),
              *count * [(ways, 5) if batch is None else (ways, batch, 5)]]
    xs = [rng.standard_normal(s).astype(dtype) for s in shapes]
    for given in (1, 1 + count):
        a = [fb.tensor(v, requires_grad=True) for v in xs[:given]]
        b = [torch.tensor(v, requires_grad=True) for v in xs[:given]]
        mine = outputs(kind, ours(a[0], *([a[1:] if count > 1 else a[1]] if given > 1 else [])))
        other = outputs(kind, theirs(b[0], *([tuple(b[1:]) if count > 1 else b[1]] if given > 1 else [])))
        weights = [rng.standard_normal(y.shape).astype(dtype) for y in mine]
        ours.zero_grad()
        theirs.zero_grad()
        sum((y * w).sum() for y, w in zip(mine, weights, strict=True)).backward()
        sum((y * torch.from_numpy(w)).sum() for y, w in zip(other, weights, strict=True)).backward()
        both = [*zip(mine, other, strict=True), *((v.grad, w.grad) for v, w in zip(a, b, strict=True)),
                *((p.grad, q.grad) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True))]
        for v, w in both:
            w = w.detach().numpy()
            np.testing.assert_allclose(v, w, rtol=1e-5 if dtype == np.float32 else 1e-12,
                                       atol=np.abs(w).max() * (2e-6 if dtype == np.float32 else 1e-14))


def test_arguments_are_pytorchs():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    for kind in GATES:
        assert repr(made(f"{kind}Cell", bias=False)) == repr(getattr(torch.nn, f"{kind}Cell")(4, 5, bias=False))
    assert repr(nn.RNN(4, 5, 2, "tanh", False, True)) == repr(torch.nn.RNN(4, 5, 2, "tanh", False, True))
    assert repr(nn.LSTM(4, 5, 2, False, True, 0.0, True)) == repr(torch.nn.LSTM(4, 5, 2, False, True, 0.0, True))
    theirs = [*inspect.signature(torch.nn.LSTMCell).parameters][:3]
    assert theirs == [*inspect.signature(nn.LSTMCell).parameters][:3]


# --- gradients of the gates themselves

def scanned(kind, weights, **options):
    """A weighted sum of all states, as a function of what a scan takes."""
    return lambda *xs: (states(kind, xs, **options) * weights).sum()


def check_gradients(f, xs, rng):
    """The first along a direction, and that of a function of the first."""
    many = tuple(range(len(xs)))
    u = [rng.standard_normal(x.shape) for x in xs]

    def first(*xs):
        return sum((g * g * d).sum() for g, d in zip(fb.grad(f, many)(*xs), u, strict=True))

    for function, limit in ((f, 2e-6), (first, 5e-5)):
        gradients = fb.grad(function, many)
        direction_check(lambda a, function=function: function(*tensors(a)).item(),
                        lambda a, gradients=gradients: [g.numpy() for g in gradients(*a)], xs, rng, tolerance=limit)


@each_kind
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("steps, batch, hidden", [(1, 1, 1), (4, 3, 5), (3, 6, 2)])
def test_gradients_along_a_direction(kind, reverse, steps, batch, hidden):
    xs, rng = arrays(kind, steps, batch, hidden), np.random.default_rng(1)
    weights = rng.standard_normal(states(kind, tensors(xs)).shape)
    check_gradients(scanned(kind, weights, reverse=reverse), xs, rng)


def test_gradients_of_relu_along_a_direction():
    rng = np.random.default_rng(1)
    check_gradients(scanned("RNN", rng.standard_normal((4, 3, 5)), relu=True), arrays("RNN", 4, 3, 5), rng)


@each_kind
@each_dtype
@pytest.mark.parametrize("reverse", [False, True])
def test_the_gradient_written_out_is_that_of_the_scan(kind, dtype, reverse):
    """To the bit, but for the sums over all rows, which go in another order."""
    xs = tensors(arrays(kind, 5, 6, 17, dtype=dtype), requires_grad=True)
    y = states(kind, xs, reverse=reverse)
    dy = np.random.default_rng(1).standard_normal(y.shape).astype(dtype)
    y.backward(dy)
    params = {"steps": 5, "reverse": reverse, **({"relu": False} if kind == "RNN" else {})}
    parts = getattr(recurrent, f"_{kind.lower()}_parts")(fb.tensor(dy), y.detach(), None, *[x.detach() for x in xs],
                                                         **params)
    for k, (x, part) in enumerate(zip(xs, parts, strict=True)):
        assert k == 3 or same_bits(x.grad, part), k
    np.testing.assert_allclose(xs[3].grad, parts[3], **tolerance(dtype))


# --- bits

@each_kind
@each_dtype
@pytest.mark.parametrize("hidden", [1, 5, 16, 17, 130])
def test_a_row_does_not_depend_on_its_batch(kind, dtype, hidden):
    """Nor on whether a gradient may follow."""
    xs = arrays(kind, 3, 37, hidden, dtype=dtype)

    def run(part):
        some = list(xs)
        some[0] = xs[0].reshape(3, 37, -1)[:, part].reshape(-1, xs[0].shape[1])
        for k in (1, 4)[:1 + (kind == "LSTM")]:
            some[k] = xs[k][part]
        ts = tensors(some, requires_grad=True)
        y = states(kind, ts)
        y.backward(np.broadcast_to(np.sin(np.arange(hidden)), y.shape).astype(dtype))
        with fb.no_grad():
            assert same_bits(states(kind, ts), y)
        return y.numpy(), ts[0].grad.numpy().reshape(3, -1, xs[0].shape[1]), ts[1].grad.numpy()

    y, dx, dh = run(slice(None))
    for part in (slice(5, 6), slice(0, 7), slice(3, 36)):
        y_of, dx_of, dh_of = run(part)
        assert same_bits(y_of, y[..., part, :]) and same_bits(dx_of, dx[:, part]) and same_bits(dh_of, dh[part])


def step_of(model, optimizer, keep_grads=False):
    opt = OPTIMIZERS[optimizer](model.parameters())

    def step(x, target):
        y, last = model(x)
        loss = fb.mse_loss(y, target) + (last[1] if isinstance(last, tuple) else last).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss, y
    return fb.staged(step, keep_grads=keep_grads)


@each_kind
@each_dtype
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}], ids=str)
def test_training_staged_gives_the_bits_of_eager(kind, dtype, options):
    one, other = made(kind, 4, 17, dtype, **options), made(kind, 4, 17, dtype, **options)
    staged, eager = step_of(one, "adam"), step_of(other, "adam")
    rng = np.random.default_rng(0)
    for _ in range(3):
        x = rng.standard_normal((5, 6, 4)).astype(dtype)
        target = rng.standard_normal((5, 6, 17 * (1 + options.get("bidirectional", False)))).astype(dtype)
        assert_same(staged(x, target), eager.eager(x, target))
    assert_same([*one.state_dict().values()], [*other.state_dict().values()])
    assert staged.recordings == 1


@each_kind
@each_dtype
def test_threads_share_the_batch(kind, dtype):
    xs = [fb.tensor(x) for x in arrays(kind, 3, 37, 19, dtype=dtype)]
    f = scanned(kind, np.ones((), dtype))
    both = fb.staged(fb.value_and_grad(f, argnums=tuple(range(len(xs)))))
    for number in NUMBERS:
        assert sum(ran > 1 for ran in in_threads(both, xs, number)) == number


@each_kind
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_give_the_same_bits(kind, layout):
    xs = arrays(kind, 3, 2, 5, dtype=np.float32)
    plain = tensors(xs, requires_grad=True)
    laid = [fb.from_numpy(LAYOUTS[layout](x)).requires_grad_() for x in xs]
    y, z = states(kind, plain), states(kind, laid)
    assert same_bits(y, z)
    dy = np.random.default_rng(0).standard_normal(y.shape).astype(np.float32)
    y.backward(dy)
    z.backward(LAYOUTS[layout](dy))
    assert all(same_bits(a.grad, b.grad) for a, b in zip(plain, laid, strict=True))


def test_the_gradient_takes_the_place_of_what_the_gates_gave():
    """Unless the states are wanted after it; the bits are the same."""
    layer, x = made("GRU", 4, 17), np.random.default_rng(0).standard_normal((5, 6, 4)).astype(np.float32)

    def step(x, returns):
        y, _ = layer(x)
        loss = fb.square(y).sum()
        layer.zero_grad()
        loss.backward()
        return (loss, y) if returns else loss

    step, found = fb.staged(step, keep_grads=True), []
    for returns in (False, True):
        result = step(x, returns)
        found.append([result[0] if returns else result, *[p.grad.numpy().copy() for p in layer.parameters()]])
        line = next(line for line in str(step.stages()).splitlines() if "gru_grad" in line)
        assert ("over t" in line) != returns
    assert_same(*found)
    assert same_bits(result[1], layer(x)[0])


# --- the program

@each_kind
def test_a_scan_is_a_line_forward_and_a_line_backward(kind):
    layer, x = made(kind, 4, 8), np.ones((5, 3, 4), np.float32)
    step = step_of(layer, "sgd")
    step(x, np.ones((5, 3, 8), np.float32))
    lines = str(step.stages()).splitlines()
    assert len([line for line in lines if f"{kind.lower()}_scan(" in line]) == 1
    assert len([line for line in lines if f"{kind.lower()}_grad(" in line]) == 1
    assert len([line for line in lines if "= states(" in line]) == 1
    scans = [s for s in step.replays[0].about.plan.stages if s.form == "scan"]
    assert [flop_of(s) for s in scans] == 2 * [2 * 15 * 8 * GATES[kind] * 8]
    profile = step.profile(x, np.ones((5, 3, 8), np.float32), seconds=0.01)
    assert any(f"{kind.lower()}_scan" in row.stage and row.flop for row in profile.rows)
    assert "weight_hh_l0" in step.explain()


def test_no_gradient_keeps_no_gates():
    layer, x = made("GRU", 4, 8), np.ones((50, 3, 4), np.float32)
    run = fb.staged(lambda x: layer(x)[0].sum())
    with fb.no_grad():
        run(x)
    plan = run.replays[0].about.plan
    kept = next(s.outputs[0] for s in plan.stages if s.form == "scan")
    assert kept.shape == (50 + 1 + 4, 3, 8)


def test_anomalies_and_health_see_through_a_layer():
    layer, x = made("LSTM", 4, 8), np.ones((5, 3, 4), np.float32)
    step = step_of(layer, "sgd")
    health = step.health(x, np.ones((5, 3, 8), np.float32))
    assert [(layer.name, layer.shape, [w.name for w in layer.weights]) for layer in health.layers] == [
        ("LSTM", (5, 3, 8), [*layer.state_dict()])]
    assert health.layers[0].gradient > 0
    with fb.detect_anomaly():
        step(x, np.ones((5, 3, 8), np.float32))
        with pytest.raises(fb.AnomalyError, match="lstm_scan"):
            layer(x, (np.zeros((1, 3, 8), np.float32), np.full((1, 3, 8), np.nan, np.float32)))


# --- parameters and errors

@each_kind
def test_parameters_have_pytorchs_names_order_and_values(kind):
    layer = made(kind, 3, 4, rng=7, num_layers=2, bidirectional=True)
    rng, rows = np.random.default_rng(7), GATES[kind] * 4
    parameters = dict(layer.named_parameters())
    names = [f"{name}_l{k}{way}" for k in (0, 1) for way in ("", "_reverse")
             for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    assert list(parameters) == names == list(layer.state_dict())
    for name, p in parameters.items():
        shape = (rows,) if "bias" in name else (rows, 4 if "hh" in name else 3 if "l0" in name else 8)
        assert same_bits(p, rng.uniform(-0.5, 0.5, shape).astype(np.float32)), name
        assert p.T.is_contiguous
    cell = made(f"{kind}Cell", 3, 4, bias=False)
    assert list(cell.state_dict()) == ["weight_ih", "weight_hh"]
    assert made(kind).to("float64")(np.ones((2, 3, 4)))[0].dtype == np.float64


@pytest.mark.parametrize("call, kind, words", [
    (lambda: made("GRU")(np.ones((2, 3, 7), np.float32)), fb.ShapeError,
     ["GRU: the input does not fit", "(2, 3, 7)", "(steps, batch, 4) or, without a batch, (steps, 4)", "GRU(4, 5)"]),
    (lambda: made("RNN", batch_first=True)(np.ones(4, np.float32)), fb.ShapeError, ["(batch, steps, 4)"]),
    (lambda: made("GRU")(np.ones((3, 0, 4), np.float32)), fb.ShapeError, ["no size 0"]),
    (lambda: made("GRU")(np.ones((0, 3, 4), np.float32)), fb.ShapeError, ["no size 0"]),
    (lambda: made("GRU")(np.ones((2, 3, 4), np.float32), np.ones((1, 2, 5), np.float32)), fb.ShapeError,
     ["a first state does not fit", "(1, 2, 5)", "(1, 3, 5)", "GRU(4, 5)"]),
    (lambda: made("GRU")(np.ones((2, 4), np.float32), np.ones((1, 1, 5), np.float32)), fb.ShapeError, ["(1, 5)"]),
    (lambda: made("LSTM")(np.ones((2, 3, 4), np.float32), np.ones((1, 3, 5), np.float32)), TypeError, ["(h, c)"]),
    (lambda: made("LSTMCell")(np.ones((3, 4), np.float32), (np.ones((3, 5), np.float32), np.ones(5, np.float32))),
     fb.ShapeError, ["shape (3, 5) and shape (5,)", "LSTMCell(4, 5)"]),
    (lambda: made("GRUCell")(np.ones((3, 5), np.float32)), fb.ShapeError, ["(batch, 4) or, without a batch, (4)"]),
    (lambda: made("GRU")(np.ones((2, 3, 4))), fb.DtypeError, ["float32 and float64"]),
    (lambda: made("GRU")(np.ones((2, 3, 4), np.float32), np.ones((1, 3, 5))), fb.DtypeError, ["float32 and float64"]),
    (lambda: made("GRU")(np.ones((2, 3, 4), int)), fb.DtypeError, ["int64"]),
    (lambda: made("GRU", 0), ValueError, ["input_size"]), (lambda: made("RNNCell", 4, 0), ValueError, ["hidden_size"]),
    (lambda: made("GRU", num_layers=0), ValueError, ["num_layers"]),
    (lambda: made("GRU", dropout=1.5), ValueError, ["dropout"]),
    (lambda: made("RNN", nonlinearity="gelu"), ValueError, ["nonlinearity"]),
    (lambda: made("LSTM", proj_size=2), NotImplementedError, ["proj_size"]),
    (lambda: made("GRU", dtype="int64"), fb.DtypeError, ["float32 or float64"])])
def test_errors(call, kind, words):
    with pytest.raises(kind) as caught:
        call()
    assert all(word in str(caught.value) for word in words), str(caught.value)


@each_kind
def test_parameters_of_other_sizes_are_refused(kind):
    """The kernels take their sizes for granted, and would read beyond them."""
    for name in (kind, f"{kind}Cell"):
        x = np.ones((2, 3, 4) if name == kind else (3, 4), np.float32)
        for parameter, p in made(name).named_parameters():
            for shape in ((*p.shape[:-1], p.shape[-1] + 1), (1,), (1, 5)):
                layer = made(name)
                setattr(layer, parameter, nn.Parameter(np.ones(shape, np.float32)))
                for call in (layer, fb.staged(layer)):
                    with pytest.raises(fb.ShapeError, match=f"{parameter} does not fit"):
                        call(x)
    layer = made(kind)
    layer.bias_hh_l0 = None
    with pytest.raises(fb.ShapeError, match="bias_hh_l0 does not fit"):
        layer(np.ones((2, 3, 4), np.float32))


def test_dropout_acts_between_layers_while_training():
    layer, x = made("GRU", num_layers=2, dropout=0.5), np.ones((3, 2, 4), np.float32)
    lower, upper = made("GRU"), made("GRU", 5)
    state = layer.state_dict()
    lower.load_state_dict({name: state[name] for name in state if name.endswith("l0")})
    upper.load_state_dict({name.replace("l1", "l0"): state[name] for name in state if name.endswith("l1")})
    fb.manual_seed(1)
    dropped = layer(x)[0]
    fb.manual_seed(1)
    assert same_bits(dropped, upper(nn.functional.dropout(lower(x)[0], 0.5))[0])
    assert same_bits(layer.eval()(x)[0], upper(lower(x)[0])[0]) and not same_bits(layer(x)[0], dropped)
    assert repr(layer) == "GRU(4, 5, num_layers=2, dropout=0.5)" and list(layer.modules()) == [layer]
    for before, after in ((0.5, 0.0), (0.5, 0.25), (0.0, 0.25)):    # the attribute counts, as in PyTorch
        layer = made("GRU", num_layers=2, dropout=before)
        layer.load_state_dict(state)
        layer.dropout = after
        fb.manual_seed(1)
        dropped = layer(x)[0]
        fb.manual_seed(1)
        assert same_bits(dropped, upper(nn.functional.dropout(lower(x)[0], after))[0])


def test_the_gates_are_internal():
    assert {f"{kind.lower()}_{what}" for kind in GATES for what in ("scan", "grad", "states")} <= set(INTERNAL)
