"""Replays by several threads: the same bits for any number, whoever else runs; who did what."""
import ctypes
import multiprocessing
import os
import platform
import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cases import ALL, CASES
from test_gates import same_bits
from test_planner import PROGRAMS, hidden_layer_gradients
from test_replay import needs_linux, run_python
from test_staged import OPTIMIZERS, assert_same, flat, net

import fastbp as fb
from fastbp import optim

NUMBERS = [2, 3, 4, 8]


@pytest.fixture
def threads():
    before = fb.get_num_threads()
    yield fb.set_num_threads
    fb.set_num_threads(before)


def in_threads(staged, xs, number):
    """One more run by so many threads, over zeros: the same bits; how many stages each ran."""
    whole = [t.numpy().copy() for t in flat(staged(*xs))]
    made = flat(staged(*xs))    # the last results are what `run_in_threads` writes to
    for t in made:
        t.numpy()[...] = 0
    ran = staged.replays[0].program.run_in_threads(number)
    assert ran is not None and len(ran) == number
    for t, expected in zip(made, whole, strict=True):
        assert same_bits(t, expected)
    return ran


@pytest.mark.parametrize("name, k", ALL)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_gate_forward_and_backward(name, k, dtype):
    """At a size that splits, by 2, 3, 4 and 8 threads."""
    case = CASES[name][k]
    f = fb.staged(fb.value_and_grad(lambda *xs: fb.tanh(case.call(*xs)).sum(), argnums=tuple(range(len(case.shapes))))
                  if case.gradient else case.call)
    shapes = [(400, 300)] * len(case.shapes) if case.elementwise else case.shapes
    xs = [fb.tensor(x) for x in case.inputs(np.random.default_rng(0), dtype, shapes)]
    for number in NUMBERS:
        ran = in_threads(f, xs, number)
        assert not case.elementwise or all(ran)


@pytest.mark.parametrize("name", ["constant", "same", "in_place"])
def test_the_programs_of_passes(name):
    for number in NUMBERS:
        in_threads(fb.staged(PROGRAMS[name]), [fb.randn(300, 200, rng=0)], number)


@pytest.mark.parametrize("count", [228, 700, 4000])
def test_strips_of_a_product(count):
    """Each thread has memory of its own for the values of a strip."""
    x, w, dy = fb.randn(count, 301, rng=0), fb.randn(7, 301, rng=1), fb.randn(count, 7, rng=2)
    for number in NUMBERS:
        ran = in_threads(fb.staged(hidden_layer_gradients), [x, w, dy], number)
        assert all(ran)


def wide(optimizer, seed=0):
    """A net and a step that is worth threads."""
    model, _, step = net(optimizer, sizes=(200, 256, 256), seed=seed)
    return model, step


def rows(n, seed=1):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, 200), np.float32), rng.integers(0, 10, n)


def values(model):
    return [p.numpy().tobytes() for p in model.parameters()]


def has_shared(step):
    """Whether each thread ran its share of a program."""
    return any(len(ran) > 1 and all(ran) for ran in (replay.program.ran_by for replay in step.replays))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training(optimizer, threads):
    """Calls, repeats and shuffled epochs, with a last short batch."""
    x, y = rows(500)
    found = []
    for number in (1, *NUMBERS):
        threads(number)
        model, step = wide(optimizer)
        losses = [step(x[:64], y[:64]).item() for _ in range(6)]
        losses.append(step.repeat(10, x[64:128], y[64:128]).item())
        losses += [step.epoch(x, y, batch_size=64, shuffle=True, rng=epoch) for epoch in range(2)]
        assert number == 1 or has_shared(step)
        found.append((losses, values(model)))
    assert all(other == found[0] for other in found)


def test_sums_of_any_length(threads):
    for n in (3_000_001, 65_537):
        x = fb.randn(n, rng=0)
        f = fb.staged(lambda x: (x.sum(), fb.exp(x).mean(), x.reshape(-1, 1).sum(0), x.max()))
        expected = [t.item() for t in f.eager(x)]
        for number in NUMBERS:
            threads(number)
            for _ in range(5):
                assert [t.item() for t in f(x)] == expected


def test_a_small_program_stays_with_the_caller(threads):
    threads(2)
    f = fb.staged(fb.value_and_grad(lambda x: fb.tanh(x).sum()))
    for _ in range(10):
        f(fb.ones(100))
    assert f.replays[0].program.ran_by == []


def test_a_layers_rows_stay_with_one_thread(threads):
    """A forward pass needs no barrier; backward, some layers' products read what other threads wrote."""
    threads(2)
    x, y = rows(64)
    _, step = wide("sgd")
    for _ in range(6):
        step(x, y)
    program = step.replays[0].program
    meets = {first: meets for first, meets, _ in program.shares}
    spans = {id(stage): code for stage, code, _ in step.replays[0].about.spans}
    stages = [s for s in step.replays[0].about.plan.stages if s.form != "view"]
    loss = next(n for n, s in enumerate(stages) if s.name == "cross_entropy_both")
    assert not any(meets.get(spans[id(s)].start) for s in stages[:loss])
    assert 1 <= sum(meets.values()) <= 8


def test_a_long_program_meets_now_and_then(threads):
    """Though nothing crosses: to look through all that was touched since would take long."""
    threads(2)
    x = fb.randn(64, 64, rng=0)
    f = fb.staged(lambda x: [x * float(k) for k in range(1500)])
    for _ in range(6):
        assert_same(f(x), f.eager(x))
    meets = [meets for _, meets, _ in f.replays[0].program.shares]
    assert len(meets) == 1500 and 1 <= sum(meets) < 20


def test_the_number_may_change_between_runs(threads):
    x, y = rows(64)
    (a, step), (b, other) = wide("momentum"), wide("momentum")
    for number in (2, 3, 1, 4, 2, 2, 8, 1, 2):
        threads(number)
        for _ in range(4):
            assert_same(step(x, y), other.eager(x, y))
    assert values(a) == values(b) and has_shared(step)


def test_stages_of_python_stand_between_shares(threads):
    threads(3)
    double = fb.define_gate("double", lambda x: 2 * x, lambda dy, y, x: 2 * dy)
    w = fb.randn(200, 300, rng=0)
    f = fb.staged(fb.value_and_grad(lambda x: fb.tanh(double(fb.tanh(x @ w)) @ w.T).sum()))
    x = fb.randn(150, 200, rng=1)
    for _ in range(6):
        assert_same(f(x), f.eager(x))
    assert has_shared(f)


# --- others at the same time

def test_eight_python_threads(threads):
    """Ten thousand replays each, of three programs: who finds the pool busy runs alone."""
    threads(2)
    w = fb.randn(40, 128, rng=0)
    fs = [fb.staged(lambda x, w: fb.tanh(x @ w).sum(0)) for _ in range(3)]
    xs = [fb.randn(512, 40, rng=seed) for seed in range(8)]
    expected = [fs[0].eager(x, w).numpy().tobytes() for x in xs]

    def run(n):
        f = fs[n % 3]
        return all(f(xs[n], w).numpy().tobytes() == expected[n] for _ in range(10_000))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(run, range(8)))
    assert any(map(has_shared, fs))


def test_two_threads_share_parameters(threads):
    """A parameter is updated by one step at a time."""
    threads(2)
    x, _ = rows(64)
    w = fb.tensor(np.zeros((200, 10), np.float32), requires_grad=True)
    opt = optim.SGD([w], lr=1.0)

    def step(x, y):
        opt.zero_grad()
        (x @ w * 0.0 + y).sum().backward()
        w.grad = fb.ones(200, 10)
        opt.step()

    steps = [fb.staged(step) for _ in range(2)]
    ys = fb.zeros(64, 10)
    workers = [threading.Thread(target=lambda s=s: [s(x, ys) for _ in range(500)]) for s in steps]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert (w.numpy() == -1000).all()


def trained(model, step, x, y):
    """The parameters after a call, a repeat and an epoch."""
    step(x[:64], y[:64])
    step.repeat(5, x[:64], y[:64])
    step.epoch(x, y, batch_size=64, shuffle=True, rng=0)
    return values(model)


@needs_linux
def test_forks_after_use(threads):
    """Parent and child train on, with threads of their own, and come to the same bits."""
    threads(1)
    x, y = rows(300)
    model, step = wide("adam")
    trained(model, step, x, y)
    expected = trained(model, step, x, y)
    threads(2)
    model, step = wide("adam")
    trained(model, step, x, y)
    assert has_shared(step)
    for _ in range(200):
        pid = os.fork()
        if pid == 0:
            os._exit(0 if trained(model, step, x, y) == expected and has_shared(step) else 1)
        assert os.waitpid(pid, 0)[1] == 0
    assert trained(model, step, x, y) == expected


@needs_linux
def test_forks_while_another_thread_replays(threads):
    threads(2)
    x, y = rows(64)
    model, step = wide("sgd")
    f = fb.staged(lambda x: fb.tanh(x @ x.T).sum(0))
    expected = f.eager(x).numpy().tobytes()
    stop = threading.Event()

    def replay():
        while not stop.is_set():
            step.repeat(20, x, y)

    worker = threading.Thread(target=replay)
    worker.start()
    try:
        for n in range(200):
            pid = os.fork()
            if pid == 0:
                same = all(f(x).numpy().tobytes() == expected for _ in range(6))
                os._exit(0 if same and np.isfinite(step.repeat(3, x, y).item()) else 1)
            assert os.waitpid(pid, 0)[1] == 0, n
            assert f(x).numpy().tobytes() == expected
    finally:
        stop.set()
        worker.join()


def in_process(seed):
    """What a process of its own comes to, with two threads."""
    fb.set_num_threads(2)
    x, y = rows(200, seed)
    model, step = wide("momentum", seed)
    return trained(model, step, x, y), has_shared(step)


@needs_linux
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing(method, threads, monkeypatch):
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    expected = [in_process(seed)[0] for seed in range(2)]
    with multiprocessing.get_context(method).Pool(2) as pool:
        found = pool.map(in_process, range(2))
    assert found == [(bits, True) for bits in expected]


def test_a_callback_that_raises_leaves_whole_steps(threads):
    """And so does a second epoch after it."""
    x, y = rows(640)
    found = []
    for number in (1, 2):
        threads(number)
        model, step = wide("adam")
        done = []

        def progress(at, total, done=done):
            done.append(at)
            raise OSError("no more")

        for _ in range(3):
            with pytest.raises(OSError, match="no more"):
                step.epoch(x, y, batch_size=64, progress=progress)
        other, reference = wide("adam")
        for at in done:
            for k in range(at // 64):
                reference(x[64 * k:64 * k + 64], y[64 * k:64 * k + 64])
        assert values(model) == values(other)
        found.append(step.epoch(x, y, batch_size=64) > 0)
    assert all(found)


def test_the_interpreter_ends_while_a_daemon_thread_replays():
    run_python("""
        import threading, time
        import fastbp as fb
        fb.set_num_threads(2)
        x = fb.randn(300, 300, rng=0)
        f = fb.staged(lambda x: fb.tanh(x @ x).sum())

        def replay():
            while True:
                f.repeat(1000, x)

        threading.Thread(target=replay, daemon=True).start()
        time.sleep(0.3)
    """)


@pytest.mark.parametrize("flush", [True, False])
def test_denormals_in_every_thread(flush, threads):
    """A share has the mode of the caller's, and the caller has its own again after."""
    fb.set_flush_denormal(flush)
    try:
        f = fb.staged(lambda x: (x * 0.5, fb.tanh(x)))
        x = fb.tensor(np.full((400, 300), 1e-39, np.float32))
        for number in NUMBERS:
            in_threads(f, [x], number)
            halves = f(x)[0].numpy()
            assert (halves.view(np.uint32) == (0 if flush else np.float32(0.5e-39).view(np.uint32))).all()
            assert np.float32(1e-39) * np.float32(0.5) > 0, "the mode of this thread"
    finally:
        fb.set_flush_denormal(True)


@pytest.fixture(scope="module")
def control(tmp_path_factory):
    """What reads and sets MXCSR: the floating-point mode of the thread, and flags of what happened."""
    if platform.machine() != "x86_64" or shutil.which("cc") is None:
        pytest.skip("needs x86-64 and a C compiler")
    folder = tmp_path_factory.mktemp("mxcsr")
    (folder / "mxcsr.c").write_text("""
        #include <xmmintrin.h>
        unsigned get(void) { return _mm_getcsr(); }
        void set(unsigned mode) { _mm_setcsr(mode); }
    """)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / "mxcsr.so", folder / "mxcsr.c"], check=True)
    return ctypes.PyDLL(str(folder / "mxcsr.so"))


@pytest.mark.parametrize("flush", [True, False])
def test_a_call_leaves_the_callers_mode_bit_by_bit(flush, control, threads):
    """The flags too: a product is inexact, an exponential overflows."""
    fb.set_flush_denormal(flush)
    try:
        small = fb.staged(lambda x: fb.exp(x * x))
        large = fb.staged(lambda x: fb.exp(x @ x.T).sum(0))
        xs = fb.randn(20, 10, rng=0), fb.tensor(20 * fb.randn(300, 200, rng=0).numpy())
        calls = [lambda: small(xs[0]), lambda: large(xs[1]), lambda: fb.exp(xs[1]), lambda: large.repeat(3, xs[1])]
        for number in (1, 2, 3):
            threads(number)
            for call in calls:
                for _ in range(4):
                    call()
                control.set(0x1F80)
                call()
                assert control.get() == 0x1F80
        assert has_shared(large)
    finally:
        fb.set_flush_denormal(True)


def test_every_thread_rounds_as_the_caller_does(control, threads):
    x = fb.randn(300, 200, rng=0)
    f = fb.staged(lambda x: fb.tanh(x @ x.T).sum(0))
    found = {}
    for number in (1, 2, 3):
        threads(number)
        for mode in (0x1F80, 0x7F80):    # to the nearest, towards 0
            for _ in range(4):
                control.set(mode)
                y = f(x)
                control.set(0x1F80)
                assert found.setdefault(mode, y.numpy().tobytes()) == y.numpy().tobytes()
    assert len(set(found.values())) == 2 and has_shared(f)
