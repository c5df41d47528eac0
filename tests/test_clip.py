"""Gradient clipping: norms and clipped gradients against NumPy and PyTorch, gate by gate and in a staged step."""
import math

import numpy as np
import pytest
from test_gates import same_bits

import fastbp as fb
from fastbp import nn, optim
from fastbp.nn.utils import clip_grad_norm_, clip_grad_value_, clip_grads_with_norm_, get_total_norm

SHAPES = [(3, 4), (5,), (), (0, 3), (2, 3, 4)]


def parameters():
    """Some with gradients, laid out the one way and the other, and one without."""
    rng = np.random.default_rng(0)
    made = [fb.tensor(rng.normal(size=shape), requires_grad=True) for shape in SHAPES]
    made.append(fb.tensor(rng.normal(size=(4, 6))).T.detach().requires_grad_())
    for p in made:
        p.grad = fb.tensor(rng.normal(size=p.shape[::-1])).T.detach()
    return [*made, fb.ones(2, requires_grad=True)]


def gradients(params):
    return [p.grad.numpy().copy() for p in params if p.grad is not None]


@pytest.mark.parametrize("max_norm", [0.5, 0.0, 1e6, np.float32(2)])
@pytest.mark.parametrize("norm_type", [1, 2.0, 3, 0.5, math.inf, "inf"])
def test_the_norm_is_that_of_all_together(norm_type, max_norm):
    params = parameters()
    before = gradients(params)
    flat = np.abs(np.concatenate([g.ravel() for g in before]))
    norm = flat.max() if float(norm_type) == math.inf else (flat ** norm_type).sum() ** (1 / norm_type)
    found = clip_grad_norm_(iter(params), max_norm, norm_type)
    assert found.shape == () and not found.requires_grad
    np.testing.assert_allclose(found.item(), norm, rtol=1e-14)
    for g, now in zip(before, gradients(params), strict=True):
        np.testing.assert_allclose(now, g * min(1, max_norm / (norm + 1e-6)), rtol=1e-14)
    assert params[-1].grad is None


def test_the_parts_do_what_the_whole_does():
    (a, b), c = (parameters() for _ in range(2)), parameters()
    norm = get_total_norm([p.grad for p in a if p.grad is not None])
    clip_grads_with_norm_(a, 0.5, norm)
    np.testing.assert_allclose(norm.item(), clip_grad_norm_(b, 0.5).item(), rtol=1e-14)
    for x, y in zip(gradients(a), gradients(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-13)
    one = c[0]
    assert clip_grad_norm_(one, 1.0).item() == get_total_norm(parameters()[0].grad).item()
    assert get_total_norm(one.grad).item() <= 1


def test_values_are_clipped():
    params = parameters()
    before = gradients(params)
    assert clip_grad_value_(params, 0.5) is None
    for g, now in zip(before, gradients(params), strict=True):
        assert now.tobytes() == np.clip(g, -0.5, 0.5).tobytes()
    clip_grad_value_(params[0], 0)
    assert not params[0].grad.numpy().any()


def test_nothing_to_clip():
    p = fb.ones(2, requires_grad=True)
    assert clip_grad_norm_([p], 1.0).item() == 0 and clip_grad_norm_([], 1.0).item() == 0
    clip_grad_value_([p], 1.0)
    assert p.grad is None
    p = fb.zeros((0, 2), dtype="float64", requires_grad=True)
    p.grad = fb.zeros((0, 2), dtype="float64")
    assert clip_grad_norm_([p], 1.0).item() == 0 and p.grad.shape == (0, 2)


@pytest.mark.parametrize("bad", [-1.0, math.nan, "1", None])
def test_bad_bounds(bad):
    params = parameters()
    before = gradients(params)
    for function in (clip_grad_norm_, clip_grad_value_, lambda p, x: clip_grads_with_norm_(p, x, fb.tensor(1.0))):
        with pytest.raises(ValueError, match="max_norm|clip_value"):
            function(params, bad)
    for norm_type in (0, -1, math.nan):
        with pytest.raises(ValueError, match="norm_type"):
            clip_grad_norm_(params, 1.0, norm_type)
    assert all((a == b).all() for a, b in zip(before, gradients(params), strict=True))


def test_other_things_than_parameters():
    for other in (nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)), [("w", fb.ones(2))], [np.ones(2)], None):
        for function in (clip_grad_norm_, clip_grad_value_):
            with pytest.raises(TypeError, match=r"(?s)clipping.*fix:      give model.parameters\(\)"):
                function(other, 1.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_not_finite(bad):
    params = parameters()
    params[1].grad = fb.tensor(np.array([1.0, 2.0, bad, 3.0, 4.0]))
    before = gradients(params)
    with pytest.raises(RuntimeError, match="not finite"):
        clip_grad_norm_(params, 1.0, error_if_nonfinite=True)
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(before, gradients(params), strict=True))
    assert not np.isfinite(clip_grad_norm_(params, 1.0).item())
    assert (gradients(params)[0] == 0).all() if bad == math.inf else np.isnan(gradients(params)[0]).all()


@pytest.mark.parametrize("norm_type", [1, 2, 3.5, math.inf])
def test_against_pytorch(norm_type):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    for max_norm in (0.5, 100.0):
        params = [p for p in parameters() if p.size]
        theirs = [torch.from_numpy(p.numpy().copy()).requires_grad_() for p in params]
        for p, q in zip(params, theirs, strict=True):
            q.grad = None if p.grad is None else torch.from_numpy(p.grad.numpy().copy())
        norm = torch.nn.utils.clip_grad_norm_(theirs, max_norm, norm_type)
        np.testing.assert_allclose(clip_grad_norm_(params, max_norm, norm_type).item(), norm.item(), rtol=1e-13)
        torch.nn.utils.clip_grad_value_(theirs, 0.1)
        clip_grad_value_(params, 0.1)
        for p, q in zip(params, theirs, strict=True):
            assert (p.grad is None) == (q.grad is None)
            if p.grad is not None:
                np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=1e-13)


# --- in a staged step

CLIPS = {
    "norm": lambda params: clip_grad_norm_(params, 0.1),
    "largest": lambda params: clip_grad_norm_(params, 0.01, math.inf),
    "third": lambda params: clip_grad_norm_(params, 0.1, 3),
    "checked": lambda params: clip_grad_norm_(params, 0.1, error_if_nonfinite=True),
    "value": lambda params: clip_grad_value_(params, 0.001),
}


def training(clip, kind, dtype, wide):
    model = nn.Sequential(nn.Linear(wide, wide, rng=0), nn.Tanh(), nn.Linear(wide, 10, rng=1)).to(dtype)
    opt = kind(model.parameters(), lr=0.01)

    @fb.staged
    def step(x, y):
        loss = nn.functional.cross_entropy(model(x), y)
        opt.zero_grad()
        loss.backward()
        norm = CLIPS[clip](model.parameters())
        opt.step()
        return loss, norm

    return model, step


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("wide", [20, 300])
@pytest.mark.parametrize("clip", CLIPS)
def test_a_staged_step_has_the_same_bits(clip, wide, dtype, threads):
    before = fb.get_num_threads()
    fb.set_num_threads(threads)
    try:
        (a, step), (b, other) = (training(clip, optim.Adam, dtype, wide) for _ in range(2))
        x, y = np.random.default_rng(0).normal(size=(200, wide)).astype(dtype), np.arange(200) % 10
        for _ in range(5):
            for found, expected in zip(step(x, y), other.eager(x, y), strict=True):
                assert found is expected is None or same_bits(found, expected)
    finally:
        fb.set_num_threads(before)
    assert step.recordings == 1
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert same_bits(p, q) and p.grad is None


@pytest.mark.parametrize("clip", ["norm", "largest", "third", "value"])
def test_training_against_pytorch(clip):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    theirs_of = torch.nn.utils
    clip_theirs = {"norm": lambda params: theirs_of.clip_grad_norm_(params, 0.1),
                   "largest": lambda params: theirs_of.clip_grad_norm_(params, 0.01, math.inf),
                   "third": lambda params: theirs_of.clip_grad_norm_(params, 0.1, 3),
                   "value": lambda params: theirs_of.clip_grad_value_(params, 0.001)}[clip]
    model, step = training(clip, optim.SGD, "float64", 20)
    twin = torch.nn.Sequential(torch.nn.Linear(20, 20), torch.nn.Tanh(), torch.nn.Linear(20, 10)).double()
    twin.load_state_dict({name: torch.from_numpy(x.numpy()) for name, x in model.state_dict().items()})
    opt = torch.optim.SGD(twin.parameters(), lr=0.01)
    x, y = np.random.default_rng(0).normal(size=(50, 20)), np.arange(50) % 10
    for _ in range(50):
        _, norm = step(x, y)
        opt.zero_grad()
        torch.nn.functional.cross_entropy(twin(torch.from_numpy(x)), torch.from_numpy(y)).backward()
        wanted = clip_theirs(twin.parameters())
        opt.step()
        assert norm is wanted is None or abs(norm.item() - wanted.item()) <= 1e-10 * wanted.item()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        np.testing.assert_allclose(p.numpy(), q.detach().numpy(), rtol=1e-10, atol=1e-12)


def test_clipped_gradients_are_made_in_the_sweep_of_their_update():
    """The transposed weight's too; the update leaves the strips of the product that makes its gradient."""
    groups = {}
    for clip in ("norm", "value"):
        _, step = training(clip, optim.Adam, "float32", 300)
        step(np.ones((200, 300), np.float32), np.arange(200) % 10)
        plan = step.replays[0].about.plan
        groups[clip] = [[s.name for s in group.stages if s.form != "view"]
                        for group in dict.fromkeys(s.group for s in plan.stages if s.group is not None)]
    assert ["matmul", "square"] in groups["norm"] and ["mul", "adam"] in groups["norm"]
    assert ["matmul", "clip", "adam"] in groups["value"]


def test_gradients_that_were_there_before_are_clipped_alike():
    """They may lie in another order than those of the first call: the norm's bits are the same."""
    def run(staged):
        layer, found = nn.Linear(30, 40, rng=0, dtype="float64"), []

        def clip():
            return clip_grad_norm_(layer.parameters(), 0.01)

        call = fb.staged(clip) if staged else clip
        for n in range(10):
            g = fb.randn(30, 40, rng=n, dtype="float64").T.detach()
            layer.weight.grad = g if n == 0 else fb.tensor(g.numpy())
            layer.bias.grad = fb.ones(40, dtype="float64")
            found += [call(), *[p.grad for p in layer.parameters()]]
        return found

    for a, b in zip(run(True), run(False), strict=True):
        assert same_bits(a, b)


def test_the_bound_may_be_an_argument():
    w = fb.tensor([3.0, 4.0], requires_grad=True)

    @fb.staged
    def norm_after(bound):
        w.grad = None
        (w * w).sum().backward()
        return clip_grad_norm_([w], bound), w.grad

    for bound in (1.0, 5, 100.0):
        norm, g = norm_after(bound)
        assert norm.item() == 10
        np.testing.assert_allclose(g.numpy(), np.array([6, 8]) * min(1, bound / 10), rtol=1e-6)
    assert norm_after.recordings == 1


def test_a_norm_that_is_not_finite_stops_a_staged_step_before_it_changes_anything():
    model, step = training("checked", optim.Adam, "float32", 20)
    x, y = np.ones((4, 20), np.float32), np.arange(4)
    step(x, y)
    before = [p.numpy().copy() for p in model.parameters()]
    x[0, 0] = math.nan
    for _ in range(2):
        with pytest.raises(RuntimeError, match="not finite"):
            step(x, y)
    assert all((p.numpy() == b).all() for p, b in zip(model.parameters(), before, strict=True))
    x[0, 0] = 1
    step(x, y)
    other, again = training("checked", optim.Adam, "float32", 20)
    again(x, y)
    again(x, y)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert same_bits(p, q)    # the count of steps too is as if the two had not been
