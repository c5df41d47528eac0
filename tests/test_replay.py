"""What a replay allocates, locks and leaves behind: malloc, the interpreter's lock, threads, fork, Ctrl-C."""
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from test_gates import same_bits
from test_staged import net

import fastbp as fb
from fastbp import data, nn, optim
from fastbp_ext.tensor import DEBUG

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="uses Linux's loader and signals")
# AddressSanitizer's keeps what was released for a while.
malloc_is_the_systems = pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="another malloc")


def run_python(code, *, timeout=120, **environment):
    """Runs code in a process of its own; what it printed."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True,
                          timeout=timeout, env={**os.environ, "FASTBP_STAGED": "1", **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- nothing is allocated

COUNTER = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
static long calls;
long allocations(void) { return __atomic_load_n(&calls, __ATOMIC_RELAXED); }
#define NEXT(name) static __typeof__(name) *next; if (!next) next = dlsym(RTLD_NEXT, #name); \
    __atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED); return next
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
int posix_memalign(void **, size_t, size_t);
void *aligned_alloc(size_t, size_t), *mmap(void *, size_t, int, int, int, long);
void *malloc(size_t n) { __atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED); return __libc_malloc(n); }
void *calloc(size_t n, size_t m) { __atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED); return __libc_calloc(n, m); }
void *realloc(void *p, size_t n) { __atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED); return __libc_realloc(p, n); }
int posix_memalign(void **p, size_t a, size_t n) { NEXT(posix_memalign)(p, a, n); }
void *aligned_alloc(size_t a, size_t n) { NEXT(aligned_alloc)(a, n); }
void *mmap(void *p, size_t n, int a, int b, int c, long d) { NEXT(mmap)(p, n, a, b, c, d); }
"""

REPLAYS = """
    import ctypes, itertools, gc
    import numpy as np
    import fastbp as fb
    from fastbp import nn, optim

    count = ctypes.CDLL(None).allocations
    count.restype = ctypes.c_long
    rng = np.random.default_rng(0)
    model = nn.Sequential(nn.Linear(64, 100, rng=0), nn.ReLU(), nn.Linear(100, 10, rng=1))
    opt = optim.Adam(model.parameters(), lr=0.01)

    @fb.staged
    def step(x, y):
        loss = fb.cross_entropy(model(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss, loss * 2.0, model[2].weight.T if {big} else 0

    x, y = fb.randn(32, 64, rng=0), np.arange(32) % 10
    thousand = itertools.repeat
    def replays():
        for _ in thousand(None, 1000):
            step(x, y)
    for _ in range(3):
        replays()
    gc.disable()
    before = count()
    replays()
    print(count() - before)
    np.ones(1 << 20).copy()
    assert count() - before > 0, "the hook counts"
"""


@needs_linux
@malloc_is_the_systems
@pytest.mark.parametrize("big", [0, 1])
def test_a_thousand_replays_allocate_nothing_but_their_results(big, tmp_path):
    """Every call of malloc and its family is counted, Python's own too; a result of 1,000 numbers is one."""
    if shutil.which("cc") is None or not os.path.exists("/lib64/ld-linux-x86-64.so.2"):
        pytest.skip("needs a C compiler and glibc")
    library = tmp_path / "count.so"
    (tmp_path / "count.c").write_text(COUNTER)
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-w", "-o", library, tmp_path / "count.c", "-ldl"], check=True)
    made = int(run_python(REPLAYS.format(big=big), LD_PRELOAD=str(library), PYTHONMALLOC="malloc"))
    # Tensors and small tuples come from free lists, and a scalar lies in its tensor but in the debug build.
    assert made <= 1000 * (big + 2 * DEBUG) + 20, made


@malloc_is_the_systems
def test_memory_does_not_grow():
    import resource
    model, opt, step = net("adam")
    X, y = data.load_digits()
    X, y = fb.tensor(X[:2]), y[:2]
    f = fb.staged(lambda x: (fb.tanh(x) * x).sum())
    x = fb.ones(100)

    def replays(n):
        for _ in range(n):
            f(x)
            step(X, y)

    replays(2000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    replays(50_000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1000, "kilobytes, after 100,000 replays"


# --- threads

def test_other_threads_run_while_a_program_does():
    """repeat and epoch give up the interpreter's lock: a second Python thread goes on counting."""
    model = nn.Sequential(nn.Linear(256, 256, rng=0), nn.ReLU(), nn.Linear(256, 256, rng=1))
    opt = optim.SGD(model.parameters(), lr=1e-3)

    @fb.staged
    def step(x):
        loss = fb.square(model(x)).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss

    x = fb.randn(256, 256, rng=0)
    step(x)
    counted, stop = [0], threading.Event()

    def count():
        while not stop.is_set():
            counted[0] += 1

    thread = threading.Thread(target=count)
    thread.start()
    try:
        before = counted[0]
        step.repeat(300, x)
        in_repeat = counted[0] - before
        before = counted[0]
        step.epoch(np.concatenate([x] * 100), batch_size=256)
        in_epoch = counted[0] - before
        long = fb.staged(lambda x: x @ x @ x @ x)
        x = fb.randn(1200, 1200, rng=0)
        long(x)
        before = counted[0]
        long(x)
        in_call = counted[0] - before
    finally:
        stop.set()
        thread.join()
    # A thread that holds the lock throughout lets another run at its end only: some hundreds of rounds.
    assert in_repeat > 50_000 and in_epoch > 20_000 and in_call > 20_000, (in_repeat, in_epoch, in_call)


@pytest.mark.parametrize("size", [10, 300])
def test_threads_on_one_program(size):
    f = fb.staged(lambda x: fb.tanh(x @ x).sum())
    xs = [fb.randn(size, size, rng=n) for n in range(4)]
    expected = [f.eager(x) for x in xs]
    with ThreadPoolExecutor(8) as pool:
        for got, want in zip(pool.map(f, xs * 50), expected * 50, strict=True):
            assert same_bits(got, want)


@pytest.mark.parametrize("size", [3, 60_000])
def test_a_shared_parameter_is_updated_by_one_step_at_a_time(size):
    """Small programs keep the interpreter's lock, large ones give it up: no update is lost either way."""
    w = fb.zeros(size, requires_grad=True)
    opt = optim.SGD([w], lr=1.0)

    def body(x):
        opt.zero_grad()
        (w * x).sum().backward()
        opt.step()
        return w.detach() * 1.0

    steps = [fb.staged(lambda x: body(x)) for _ in range(3)]
    look = fb.staged(lambda: (w.max(), w.min()))
    minus = fb.full((size,), -1.0)

    def work(step):
        for _ in range(100):
            step(minus)
        step.repeat(100, minus)
        high, low = look()
        return high.item() == low.item()

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, steps))
    assert w.numpy().tolist() == [600.0] * size


def test_gradients_that_threads_accumulate_are_all_there():
    w = fb.zeros(50_000, requires_grad=True)
    programs = [fb.staged(lambda x: (w * x).sum().backward()) for _ in range(2)]
    w.grad = fb.zeros(50_000)
    one = fb.ones(50_000)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda f: [f(one) for _ in range(200)] and None, programs))
    assert w.grad.numpy().tolist() == [400.0] * 50_000


def test_different_programs_run_at_the_same_time():
    """Two trainings that share nothing do not wait for each other, and each has its own bits."""
    X, y = data.load_digits()
    expected = []
    for kind in ("adam", "momentum"):
        model, _, step = net(kind)
        step.repeat(200, X[:64], y[:64])
        expected.append([p.numpy().copy() for p in model.parameters()])
    nets = [net(kind) for kind in ("adam", "momentum")]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda n: n[2].repeat(200, X[:64], y[:64]), nets))
    for (model, _, _), wanted in zip(nets, expected, strict=True):
        for p, q in zip(model.parameters(), wanted, strict=True):
            assert same_bits(p, q)


def test_a_stage_of_python_may_not_call_the_function_that_it_is_part_of():
    calls = []

    def forward(x):
        if calls:
            calls.pop()
            f(fb.ones(2))
        return x * 2

    double = fb.define_gate("double", forward, lambda dy, y, x: 2 * dy)
    f = fb.staged(lambda x: double(x) + 1.0)
    assert f(fb.ones(2)).numpy().tolist() == [3, 3]
    calls.append(1)
    with pytest.raises(fb.StagingError, match="inside its own replay"):
        f(fb.ones(2))
    assert f(fb.ones(2)).numpy().tolist() == [3, 3], "and goes on working"


def test_a_stage_of_python_may_call_another_function():
    inner = fb.staged(lambda x: x * 3.0)
    triple = fb.define_gate("triple", lambda x: inner(x).numpy(), lambda dy, y, x: 3 * dy)
    f = fb.staged(fb.value_and_grad(lambda x: (triple(x) + 1.0).sum()))
    for value in (1.0, 2.0):
        y, dx = f(fb.full((2,), value))
        assert y.item() == 6 * value + 2 and dx.numpy().tolist() == [3, 3]


# --- fork

@needs_linux
@pytest.mark.parametrize("size", [2, 300])
def test_a_child_after_fork_goes_on(size):
    w = fb.zeros(size, size, requires_grad=True)
    opt = optim.SGD([w], lr=0.5)

    @fb.staged
    def step(x):
        opt.zero_grad()
        (w * x).sum().backward()
        opt.step()
        return w.sum()

    x = fb.ones(size, size)
    step(x)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if step(x).item() == -size * size and step.repeat(3, x).item() == -2.5 * size * size else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert step(x).item() == -size * size


@needs_linux
def test_a_child_forked_while_another_thread_replays_goes_on():
    run_python("""
        import os, sys, threading
        import fastbp as fb

        f = fb.staged(lambda x: fb.tanh(x @ x).sum())
        x = fb.randn(400, 400, rng=0)
        expected = f(x).item()
        w = fb.zeros(400, 400, requires_grad=True)
        opt = fb.optim.SGD([w], lr=0.0)

        @fb.staged
        def step(x):
            opt.zero_grad()
            loss = (x @ w).sum()
            loss.backward()
            opt.step()
            return loss

        look = fb.staged(lambda: w.sum())    # shares w: it waits for a step at work, but not for one left behind
        look()
        stop = threading.Event()

        def replay():
            while not stop.is_set():
                f.repeat(20, x)
                step.repeat(20, x)

        thread = threading.Thread(target=replay)
        thread.start()
        for n in range(20):
            pid = os.fork()
            if pid == 0:
                os._exit(0 if f(x).item() == expected and look().item() == step(x).item() == 0 else 1)
            assert os.waitpid(pid, 0)[1] == 0, n
        stop.set()
        thread.join()
        assert f(x).item() == expected
    """)


# --- Ctrl-C

INTERRUPTED = """
    import os, random, signal, threading, time
    import numpy as np
    import fastbp as fb
    from fastbp import data, nn, optim

    signal.signal(signal.SIGINT, signal.default_int_handler)    # a shell may start its jobs with the signal ignored
    X, y = data.load_digits()
    X, y = X[:320], y[:320]

    def make():
        model = nn.Sequential(nn.Linear(64, {width}, rng=0), nn.Tanh(), nn.Linear({width}, 10, rng=1))
        opt = optim.Adam(model.parameters(), lr=1e-4)

        @fb.staged
        def step(x, labels):
            loss = fb.cross_entropy(model(x), labels)
            opt.zero_grad()
            loss.backward()
            opt.step()
            return loss
        return model, opt, step

    def steps_done(model, opt):
        return int(opt.state[model[0].weight]["step"].item()) if opt.state else 0

    (model, opt, step), (other, other_opt, reference) = make(), make()
    batches = list(data.batches(X, y, batch_size=32))
    random.seed({seed})
    slowest = 0.0
    for n in range(25):
        if n % 7 == 3:
            step.reset()      # some of the moments are while it records
        before = steps_done(model, opt)
        sent = [0.0]

        def send():
            sent[0] = time.perf_counter()
            os.kill(os.getpid(), signal.SIGINT)

        timer = threading.Timer(random.random() * 0.12, send)
        try:
            timer.start()
            while True:
                {call}
        except KeyboardInterrupt:
            slowest = max(slowest, time.perf_counter() - sent[0])
        timer.join()
        done = steps_done(model, opt) - before
        for k in range(done):
            reference(*batches[k % 10 if {by_rows} else 0])
        for p, q in zip(model.parameters(), other.parameters()):
            assert p.numpy().tobytes() == q.numpy().tobytes(), (n, done)
        assert np.isfinite(step(*batches[0]).item())
        reference(*batches[0])
        assert fb.exp(fb.zeros(1)).item() == 1, "gates run: the thread does not record"
        assert fb.zeros(1, requires_grad=True).sum().requires_grad, "and the mode is as it was"
    assert {width} < 100 or any(sum(replay.program.ran_by[1:]) for replay in step.replays), "by one thread"
    print(slowest)
"""


@needs_linux
@pytest.mark.parametrize("width", [32, 1024])    # a step by one thread, by two
@pytest.mark.parametrize("call, by_rows", [
    ("step.repeat(10_000_000, *batches[0])", 0), ("step.epoch(X, y, batch_size=32)", 1)])
def test_ctrl_c_stops_between_two_steps(call, by_rows, width):
    """At 25 random moments each: what was trained is a whole number of steps, and training goes on."""
    slowest = float(run_python(INTERRUPTED.format(call=call, by_rows=by_rows, seed=by_rows, width=width),
                               FASTBP_NUM_THREADS="2"))
    assert slowest < 5, "it did not run to its end, which would take minutes"


def test_an_exception_from_progress_leaves_whole_steps():
    X, y = data.load_digits()
    (model, _, step), (other, _, reference) = net("momentum"), net("momentum")

    def progress(done, total):
        raise KeyError(done)

    step(X[:100], y[:100])
    with pytest.raises(KeyError) as stopped:
        step.epoch(X[:300], y[:300], batch_size=100, progress=progress)
    reference(X[:100], y[:100])
    for start in range(0, stopped.value.args[0], 100):
        reference(X[start:start + 100], y[start:start + 100])
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert same_bits(p, q)


def test_the_same_function_may_be_called_inside_progress():
    X, y = data.load_digits()
    (_, _, step), (_, _, reference) = net("sgd"), net("sgd")
    seen = []
    step.epoch(X, y, batch_size=500, progress=lambda done, total: seen.append((done, step(X[:5], y[:5]).item())))
    losses = [reference(X[s:s + 500], y[s:s + 500]) for s in range(0, 1797, 500)]
    assert len(losses) == 4 and seen[-1] == (1797, reference(X[:5], y[:5]).item())
