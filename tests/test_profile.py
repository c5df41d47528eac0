"""step.profile: the stages that ran, what they count, and nothing lost."""
import numpy as np
import pytest

import fastbp as fb
from fastbp import nn, optim


def adam_step(sizes=(6, 5, 3), batch=4):
    fb.manual_seed(0)
    net = nn.Sequential(nn.Linear(sizes[0], sizes[1]), nn.Tanh(), nn.Linear(sizes[1], sizes[2]))
    opt = optim.Adam(net.parameters(), lr=0.01)

    @fb.staged
    def step(x, y):
        opt.zero_grad()
        loss = fb.cross_entropy(net(x), y)
        loss.backward()
        opt.step()
        return loss

    rng = np.random.default_rng(0)
    return step, net, opt, rng.random((batch, sizes[0]), np.float32), rng.integers(0, sizes[2], batch)


def test_windows_count_whole():
    f = fb.staged(lambda x, w: nn.functional.max_pool2d(nn.functional.conv2d(x, w, padding=1), 2))
    rows = {row.stage: row for row in f.profile(fb.ones(3, 2, 6, 6), fb.ones(5, 2, 3, 3), seconds=0.01).rows}
    flop = {stage.split("= ")[1].split("(")[0]: row.flop for stage, row in rows.items()}
    assert flop["convolve"] == 2 * 3 * 36 * 5 * 2 * 9 and flop["max_pool"] == 3 * 9 * 5 * 4


def test_profile_counts_flop_and_bytes_of_each_stage():
    step, _, _, x, y = adam_step()
    profile = step.profile(x, y, seconds=0.01)
    named = {row.stage.split("#")[0].strip(): row for row in profile.rows}
    first = named["(2) t2 = t1 + 0.bias"]    # with the product
    assert first.flop == 2 * 4 * 6 * 5 + 4 * 5
    assert first.bytes == 4 * (4 * 6 + 6 * 5 + 5 + 4 * 5)    # the bias is read once, however often it is used
    tanh = next(row for text, row in named.items() if "tanh(" in text)
    assert (tanh.flop, tanh.bytes) == (20, 2 * 4 * 20)
    adam = next(row for text, row in named.items() if " adam(0.weight" in text)
    assert (adam.flop, adam.bytes) == (15 * 30, 4 * 30 * 7)    # w, m, v are read and written, g is read
    assert profile.flop == sum(row.flop for row in profile.rows)


def test_profile_counts_the_memory_of_a_broadcast_once():
    f = fb.staged(lambda x: fb.exp(fb.broadcast_to(x, (10, 50)) * 1.0))
    row = next(row for row in f.profile(np.ones(50, np.float32), seconds=0.01).rows if "* 1" in row.stage)
    assert row.flop == 500 and row.bytes == 4 * (50 + 1 + 500)


def test_profile_counts_both_operations_of_a_stage_that_multiplies_and_adds():
    f = fb.staged(lambda x, y: x * y + fb.exp(x))
    row = f.profile(*np.ones((2, 500), np.float32), seconds=0.01).rows[-1]
    assert row.stage == "(3) t3 = t1 + t2"
    assert row.flop == 1000 and row.bytes == 4 * 4 * 500


def test_profile_has_the_stages_of_the_listing():
    step, _, _, x, y = adam_step(sizes=(256, 256, 10), batch=64)
    profile = step.profile(x, y, seconds=0.2)
    lines = step.stages().lines
    assert [row.stage for row in profile.rows] == [line.text for line in lines
                                                   if any(s.form != "view" for s in line.stages)]
    assert all(row.seconds >= 0 for row in profile.rows)
    product = max(profile.rows, key=lambda row: row.flop)
    assert product.limit == "fma" and 0 < product.share < 2


def test_profile_puts_back_what_the_function_changes():
    step, net, opt, x, y = adam_step()
    twin, other, _, _, _ = adam_step()
    step(x, y), twin(x, y)
    before = [p.numpy().copy() for p in net.parameters()]
    grads = [p.grad for p in net.parameters()]
    count = opt.state[net[0].weight]["step"].item()
    step.profile(x, y, seconds=0.01)
    assert all(np.array_equal(a, p.numpy()) for a, p in zip(before, net.parameters(), strict=True))
    assert opt.state[net[0].weight]["step"].item() == count == 1
    assert [p.grad for p in net.parameters()] == grads
    for _ in range(3):
        assert step(x, y).item() == twin(x, y).item()
    assert all(np.array_equal(p.numpy(), q.numpy()) for p, q in zip(net.parameters(), other.parameters(), strict=True))


def test_profile_puts_back_what_was_changed_when_it_is_stopped():
    step, net, _, x, y = adam_step()
    step(x, y)
    before = net[0].weight.numpy().copy()
    fails = []

    def half(a):
        fails.append(1)
        if len(fails) > 3:
            raise RuntimeError("enough")
        return a / 2

    halve = fb.define_gate("halve", forward=half, backward=lambda dy, y, a: dy / 2)
    w = fb.tensor([1.0, 2.0])

    @fb.staged
    def change(x):
        y = halve(x)
        w.copy_(y)
        return y

    with pytest.raises(RuntimeError, match="enough"):
        change.profile(np.float32([3, 4]), seconds=0.01)
    assert w.numpy().tolist() == [1.0, 2.0]
    assert np.array_equal(before, net[0].weight.numpy())


def test_profile_of_stages_of_python_and_of_fused_ones():
    halve = fb.define_gate("halve", forward=lambda a: a / 2, backward=lambda dy, y, a: dy / 2)

    @fb.staged
    def f(x):
        return fb.sum(fb.tanh(halve(x) * x + 1))

    profile = f.profile(np.ones(5000, np.float32), seconds=0.01)
    call = next(row for row in profile.rows if "halve(" in row.stage)
    assert call.seconds > 0 and call.limit == "" and call.flop == 0
    assert next(row for row in profile.rows if "tanh(" in row.stage).flop == 5000


def test_profile_of_a_method():
    class Scale:
        w = fb.tensor(2.0)

        @fb.staged
        def run(self, x):
            return self.w * x

    assert len(Scale().run.profile(np.ones(3, np.float32), seconds=0.01).rows) == 1


def test_profile_inside_another_staged_function_is_refused(monkeypatch):
    step = fb.staged(lambda x: x * 2.0)
    step(np.ones(3, np.float32))

    @fb.staged
    def outer(x):
        step.profile(x)
        return x * 1.0

    with pytest.raises(fb.StagingError, match="profile"):
        outer(np.ones(3, np.float32))


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), "1", None, True])
def test_profile_refuses_seconds_that_are_none(seconds):
    with pytest.raises(ValueError, match="seconds"):
        fb.staged(fb.tanh).profile(np.ones(3, np.float32), seconds=seconds)


def test_profile_is_a_table():
    step, _, _, x, y = adam_step()
    lines = str(step.profile(x, y, seconds=0.01)).splitlines()
    assert lines[0].split() == ["stage", "time", "part", "FLOP", "bytes", "GFLOP/s", "of", "the", "peak"]
    assert "a whole run" in lines[-1]
    parts = [int(line[len(lines[0].split("time")[0]) + 4:].split()[0].rstrip("%")) for line in lines[2:-1]]
    assert 90 <= sum(parts) <= 110


def test_profile_takes_labels_and_their_errors():
    step, _, _, x, y = adam_step()
    with pytest.raises(IndexError, match="label"):
        step.profile(x, np.array([0, 1, 2, 3]), seconds=0.01)
