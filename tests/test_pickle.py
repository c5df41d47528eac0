"""Pickles and deep copies: what is copied works as it did, and goes on with the same bits."""
import copy
import functools
import pickle
import subprocess
import sys
import types

import numpy as np
import pytest
from test_gates import same_bits

import fastbp as fb
from fastbp import nn, optim
from fastbp_ext.gate import Gate
from fastbp_ext.tensor import Tensor, from_numpy

PROTOCOLS = range(2, pickle.HIGHEST_PROTOCOL + 1)
COPIES = {"deepcopy": copy.deepcopy,
          **{f"pickle {k}": lambda x, k=k: pickle.loads(pickle.dumps(x, k)) for k in PROTOCOLS}}
copies = pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)


# --- tensors


def tensors():
    a = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    for x in (a, a.T, a.transpose(1, 0, 2), a.transpose(1, 2, 0), a[:, ::2], a[::-1], a[:1, :, 1:2], a[:0], a[0, 0, 0],
              np.broadcast_to(a, (5, 2, 3, 4)), a.astype("f8").T, a.astype("i1"), a > 3, a.astype("u8")[1]):
        yield from_numpy(np.asarray(x))
    yield fb.tensor([1.0, np.nan, -0.0], name="x", requires_grad=True)


@copies
def test_tensors_keep_bits_layout_name_and_requires_grad(copied):
    for x in tensors():
        y = copied(x)
        assert type(y) is Tensor and y.dtype == x.dtype and same_bits(x, y)
        assert (y.requires_grad, y.name, y.grad) == (x.requires_grad, x.name, None)
        wanted = x.numpy().copy(order="K").strides
        assert [s for s, n in zip(y.strides, y.shape, strict=True) if n > 1] == [
            s for s, n in zip(wanted, y.shape, strict=True) if n > 1] or not y.size
        assert not np.shares_memory(x.numpy(), y.numpy()) and y.numpy().flags.writeable


class Marked(nn.Parameter):
    pass


@copies
def test_parameters_keep_their_class_and_what_was_set_on_them(copied):
    p = nn.Parameter(fb.randn(4, 3).T)
    p.grad = fb.ones(3, 4)
    p.partner = q = Marked(fb.ones(2), requires_grad=False)
    p.tag = ["a"]
    other, again = copied([p, p])
    assert other is again and type(other) is nn.Parameter and other.strides == p.strides and same_bits(p, other)
    assert other.requires_grad and other.grad is None
    assert other.tag == ["a"] and other.tag is not p.tag
    assert type(other.partner) is Marked and other.partner is not q and not other.partner.requires_grad


def test_a_copy_from_buffers_that_are_read_only_can_be_trained():
    p, buffers = nn.Parameter(fb.randn(4, 3)), []
    pickled = pickle.dumps(p, 5, buffer_callback=buffers.append)
    assert buffers
    q = pickle.loads(pickled, buffers=[bytes(b.raw()) for b in buffers])
    q.grad = fb.ones(4, 3)
    optim.SGD([q], lr=1.0).step()
    assert same_bits(q, p.detach() - 1)


def test_a_past_is_not_copied():
    x = fb.ones(2, requires_grad=True)
    y = x * 3
    with pytest.raises(RuntimeError, match=r"detach\(\)"):
        copy.deepcopy({"y": y})
    assert copy.deepcopy(y.detach()).numpy().tolist() == [3, 3]
    for z in (pickle.loads(pickle.dumps(y)), copy.copy(y)):
        assert z.is_leaf and z.requires_grad and z.numpy().tolist() == [3, 3]


def test_what_pytorch_does_with_gradients_and_pasts():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    p = torch.nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    assert copy.deepcopy(p).grad is None and pickle.loads(pickle.dumps(p)).grad is None
    assert pickle.loads(pickle.dumps(p * 2)).requires_grad
    with pytest.raises(RuntimeError):
        copy.deepcopy(p * 2)


def test_recorded_tensors_are_not_copied():
    for copied in COPIES.values():
        with pytest.raises(fb.StagingError, match="has no values"):
            fb.staged(lambda x, copied=copied: copied(x) * 2)(fb.ones(2))


# --- gates and modules


@copies
def test_gates_are_the_gates_of_that_name(copied):
    for name, gate in fb.GATES.items():
        assert copied(gate) is gate
        assert pickle.dumps(gate, 0).startswith(b"cfastbp\n" + name.encode() if isinstance(gate, Gate) else b"cfastbp.")


class Net(nn.Module):
    def __init__(self, seed=0, dtype="float32"):
        self.first = nn.Linear(6, 8, rng=seed, dtype=dtype)
        self.tied = nn.ModuleList([nn.Linear(8, 8, rng=seed + 1, dtype=dtype)] * 2)
        self.head = nn.Linear(8, 3, rng=seed + 2, dtype=dtype)
        self.head.bias = self.bias = nn.Parameter(fb.zeros(3, dtype=dtype))
        self.act = functools.partial(fb.leaky_relu, negative_slope=0.1)
        self.register_buffer("scale", fb.full(8, 2.0, dtype=dtype))
        self.register_buffer("count", fb.tensor(np.array(0)), persistent=False)
        self.rng = np.random.default_rng(seed)

    def forward(self, x):
        x = self.act(self.first(x)) * self.scale
        if self.training:
            x = x + 0.1 * fb.randn(*x.shape, rng=self.rng, dtype=x.dtype)
        for layer in self.tied:
            x = fb.tanh(layer(x))
        return self.head(x)


@copies
def test_modules_keep_names_modes_buffers_and_what_they_share(copied):
    net = Net().eval()
    net.head.weight.requires_grad_(False)
    other = copied(net)
    assert [n for n, _ in other.named_parameters()] == [n for n, _ in net.named_parameters()]
    assert other.tied[0] is other.tied[1] and other.bias is other.head.bias
    assert [n for n, _ in other.named_buffers()] == ["scale", "count"] and "count" not in other.state_dict()
    assert not any(m.training for m in other.modules()) and not other.head.weight.requires_grad
    x = fb.randn(5, 6)
    assert same_bits(net.predict(x), other(x)) and same_bits(other(x), copied(net).predict(x))
    assert same_bits(net.train()(x), other.train()(x)), "its generator goes on where the first's did"
    other.bias.copy_(7.0)
    assert net.bias.numpy().sum() == 0
    with pytest.raises(TypeError):
        other.scale = 3


# --- optimizers


def optimizers():
    """Every optimizer of fastbp.optim, and SGD with its options."""
    kinds = {name: kind for name, kind in vars(optim).items() if isinstance(kind, type)
             and issubclass(kind, optim.Optimizer) and kind is not optim.Optimizer}
    return {**kinds, "momentum": functools.partial(optim.SGD, momentum=0.9, nesterov=True, weight_decay=0.01)}


def training(net, opt, x, labels):
    loss = fb.cross_entropy(net(x), labels)
    opt.zero_grad()
    loss.backward()
    opt.step()
    return loss


def batches(seed, dtype="float32"):
    rng = np.random.default_rng(seed)
    return [(rng.standard_normal((10, 6)).astype(dtype), rng.integers(0, 3, 10)) for _ in range(4)]


def bits(net, opt):
    state = opt.state_dict()
    return ([p.numpy().tobytes() for p in net.parameters()], repr(state["param_groups"]),
            {i: {n: x.numpy().tobytes() for n, x in s.items()} for i, s in state["state"].items()})


@copies
@pytest.mark.parametrize("kind", optimizers())
def test_optimizers_go_on_with_the_same_bits(kind, copied):
    net = Net()
    head = list(net.head.parameters())
    opt = optimizers()[kind]([{"params": [p for p in net.parameters() if all(p is not q for q in head)]},
                              {"params": head, "lr": 0.05, "initial_lr": 0.5}])
    fresh = copied((net, opt))
    for batch in batches(1):
        training(net, opt, *batch)
    opt.param_groups[0]["lr"] = 0.02
    net2, opt2 = copied((net, opt))
    assert type(opt2) is type(opt) and repr(opt2) == repr(opt) and bits(net2, opt2) == bits(net, opt)
    assert {id(p) for p in opt2.state} <= {id(p) for p in net2.parameters()}
    for batch in batches(2):
        assert same_bits(training(net, opt, *batch), training(net2, opt2, *batch))
    assert bits(net2, opt2) == bits(net, opt)
    opt2.lr = 0.5
    assert opt.lr == 0.02 and opt2.param_groups[1]["lr"] == 0.5
    for batch in batches(1):
        training(*fresh, *batch)
    for batch in batches(2):
        fresh[1].param_groups[0]["lr"] = 0.02
        training(*fresh, *batch)
    assert bits(*fresh) == bits(net, opt), "one that had no state yet"


# --- staged functions


class Trainer:
    """A step as a decorated method, and as a staged bound method."""

    def __init__(self, kind="Adam"):
        self.net = Net(dtype="float64")
        self.opt = optimizers()[kind](self.net.parameters())
        self.by_hand = fb.staged(self.body, keep_grads=True)

    def body(self, x, labels):
        return training(self.net, self.opt, x, labels)

    step = fb.staged(body)


@fb.staged
def doubled(x):
    return x * 2


def half(x):
    return x / 2


halved = fb.staged(half)


@copies
def test_functions_found_by_name_are_themselves(copied):
    assert copied(doubled) is doubled and copied([Decorated.step])[0] is Decorated.step
    other = copied(halved)
    assert other is not halved and other.function is half
    assert other(fb.ones(2)).numpy().tolist() == [0.5, 0.5] and other.recordings == 1


class Decorated:
    def __init__(self):
        self.w = fb.ones(3, requires_grad=True)

    @fb.staged
    def step(self, x):
        return self.w * x


@copies
def test_a_method_goes_with_its_instance(copied):
    one = Decorated()
    one.step(fb.ones(3))
    two, step = copied((one, one.step))
    two.w.copy_(5.0)
    assert step.instance is two and step.staged is Decorated.step
    assert step(fb.ones(3)).numpy().tolist() == [5, 5, 5] == two.step(fb.ones(3)).numpy().tolist()
    assert one.step(fb.ones(3)).numpy().tolist() == [1, 1, 1]
    assert copied(one.step)(fb.ones(3)).numpy().tolist() == [1, 1, 1]


@copies
@pytest.mark.parametrize("which", ["step", "by_hand"])
def test_trainers_go_on_with_the_same_bits(which, copied):
    one = Trainer()
    for batch in batches(1, "float64"):
        getattr(one, which)(*batch)
    two = copied(one)
    for batch in batches(2, "float64"):
        assert same_bits(getattr(one, which)(*batch), getattr(two, which)(*batch))
    assert bits(one.net, one.opt) == bits(two.net, two.opt)
    assert two.by_hand.function.__self__ is two and two.by_hand is not one.by_hand
    assert which == "step" or two.by_hand.recordings == 1 and two.net.bias.grad is not None, "keep_grads is kept"
    three = copied(two.by_hand)     # the function, its object, and again the function
    assert three.function.__self__.by_hand is three


@copies
def test_a_staged_model(copied):
    net = Net().eval()
    predict = fb.staged(net)
    other = copied(predict)
    x = fb.randn(5, 6)
    assert same_bits(predict(x), other(x)) and other.function is not net and other.recordings == 1


def test_a_closure_is_copied_with_what_it_refers_to():
    import math
    net = Net(dtype="float64")
    opt = optim.Adam(net.parameters())
    x, labels = batches(1, "float64")[0]
    calls = [0]

    def count():
        calls[0] += 1

    def loss_of(given, *, body=net):
        count()
        return fb.cross_entropy(body(given), labels) * math.log(math.e)

    @fb.staged
    def step(given, net_by_default=net):
        """What it does."""
        loss = loss_of(given) + step.eager.__self__._keep_grads + 0 * net_by_default.bias.sum()
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss

    step(x)
    net2, opt2, step2, calls2 = copy.deepcopy((net, opt, step, calls))
    before = bits(net, opt)
    losses = [step2(x) for _ in range(3)]
    assert bits(net, opt) == before and calls == [1] and calls2 == [2]
    assert (step2.__name__, step2.__doc__, step2.__module__) == (step.__name__, step.__doc__, step.__module__)
    assert step2.stages().__str__() == step.stages().__str__()
    assert all(same_bits(loss, step(x)) for loss in losses)
    assert bits(net, opt) == bits(net2, opt2)
    assert copy.deepcopy(step)(x) is not None and bits(net, opt) == bits(net2, opt2)


def test_closures_over_variables_that_are_still_empty_or_shared():
    @fb.staged
    def step(x):
        return later(x)

    other = copy.deepcopy(step)

    def later(x):
        return x * 3

    assert step(fb.ones(1)).item() == 3
    with pytest.raises(NameError):
        other(fb.ones(1))

    def make():
        n = 1.0

        def add():
            nonlocal n
            n += 1
        return add, fb.staged(lambda x: x * n), fb.staged(lambda x: (add(), x * n)[1])
    add, a, b = copy.deepcopy(make())
    assert b(fb.ones(1)).item() == 2 == a(fb.ones(1)).item()
    same = add
    assert copy.deepcopy(fb.staged(lambda x: x * 2 if same is add else x))(fb.ones(1)).item() == 2


def test_copies_of_what_python_cannot_pickle_say_so():
    def local(x):
        return x
    with pytest.raises((AttributeError, pickle.PicklingError), match="local"):
        pickle.dumps(fb.staged(local))
    assert isinstance(copy.deepcopy(fb.staged(local)).function, types.FunctionType)


@copies
def test_a_gradient_that_is_staged(copied):
    step = fb.staged(fb.value_and_grad(half))
    with pytest.raises((AttributeError, pickle.PicklingError)) if copied is not copy.deepcopy else no_problem():
        value, gradient = copied(step)(4.0)
        assert (value.item(), gradient.item()) == (2, 0.5)


def no_problem():
    import contextlib
    return contextlib.nullcontext()


# --- another process

GO_ON = """if True:
    import pickle, sys
    sys.path[:0] = [{tests!r}]
    from test_pickle import batches, bits
    for path in sys.argv[1:]:
        with open(path, "rb") as file:
            trainers = pickle.load(file)
        found = []
        for kind, which, trainer in trainers:
            losses = [getattr(trainer, which)(*batch).numpy().tobytes() for batch in batches(2, "float64")]
            found.append((kind, which, losses, bits(trainer.net, trainer.opt)))
        with open(path + ".done", "wb") as file:
            pickle.dump(found, file)
    """


def test_training_goes_on_in_a_new_process_with_the_same_bits(tmp_path):
    trainers = [(kind, which, Trainer(kind)) for kind in optimizers() for which in ("step", "by_hand", "body")]
    for _, which, trainer in trainers:
        for batch in batches(1, "float64"):
            getattr(trainer, which)(*batch)
    paths = [str(tmp_path / f"protocol {k}") for k in PROTOCOLS]
    for k, path in zip(PROTOCOLS, paths, strict=True):
        with open(path, "wb") as file:
            pickle.dump(trainers, file, k)
    tests = str(__import__("pathlib").Path(__file__).parent)
    subprocess.run([sys.executable, "-c", GO_ON.format(tests=tests), *paths], check=True)
    expected = [(kind, which, [getattr(t, which)(*batch).numpy().tobytes() for batch in batches(2, "float64")],
                 bits(t.net, t.opt)) for kind, which, t in trainers]
    for path in paths:
        with open(path + ".done", "rb") as file:
            assert pickle.load(file) == expected


SPAWN = """
import multiprocessing
import fastbp as fb
from fastbp import nn, optim

class Worker:
    def __init__(self):
        self.net = nn.Linear(3, 2, rng=0)
        self.gate = fb.sigmoid

    @fb.staged
    def predict(self, x):
        return self.gate(self.net(x))

@fb.staged
def doubled(x):
    return x * 2

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        worker, x = Worker(), fb.ones(4, 3)
        there = pool.apply(worker.predict, (x,)), pool.apply(doubled, (x,)), pool.apply(worker.net, (x,))
    here = worker.predict(x), doubled(x), worker.net(x)
    assert all(a.numpy().tobytes() == b.numpy().tobytes() for a, b in zip(there, here))
    print("the same")
"""


def test_spawned_processes_take_models_and_staged_functions(tmp_path):
    (tmp_path / "spawning.py").write_text(SPAWN)
    done = subprocess.run([sys.executable, "spawning.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True, timeout=120)
    assert done.stdout == "the same\n" and done.returncode == 0
