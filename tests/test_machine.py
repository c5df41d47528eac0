"""Instruction sets, denormal mode, the command that prints what is in use."""
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastbp as fb
from fastbp_ext import cpu
from fastbp_ext.tensor import DEBUG

HERE = Path(__file__).parent


def python(*args, **env):
    return subprocess.run([sys.executable, *args], env={**os.environ, **env}, capture_output=True, text=True)


@pytest.mark.parametrize("isa", [isa for isa in cpu.supported() if isa != cpu.ISA])
def test_every_instruction_set_of_this_cpu(isa):
    """All cases, with the kernels of another instruction set."""
    files = [str(HERE / f"test_{name}.py") for name in ("gates", "edges", "matmul", "recurrent", "accuracy")]
    result = python("-m", "pytest", "-q", "-p", "no:cacheprovider", *files, FASTBP_ISA=isa)
    assert result.returncode == 0, result.stdout[-3000:]
    assert " passed" in result.stdout


def test_an_instruction_set_that_the_cpu_lacks_is_refused():
    result = python("-c", "import fastbp", FASTBP_ISA="sse9")
    assert result.returncode != 0 and "FASTBP_ISA=sse9" in result.stderr and "baseline" in result.stderr
    assert python("-c", "from fastbp_ext import cpu; print(cpu.ISA)", FASTBP_ISA="baseline").stdout == "baseline\n"


def test_importing_changes_nothing_global():
    script = """
import numpy as np, os, signal, threading
before = (dict(os.environ), signal.getsignal(signal.SIGINT), threading.active_count())
import fastbp as fb
fb.exp(fb.randn(100)).sum()
assert before == (dict(os.environ), signal.getsignal(signal.SIGINT), threading.active_count())
assert np.float32(1e-40) * np.float32(0.5) > 0, "denormals"
"""
    result = python("-c", script)
    assert result.returncode == 0, result.stderr


def test_kernels_of_each_set_use_its_registers():
    """The build gave each variant its own flags: look for the register class in the code."""
    import shutil
    if DEBUG or not shutil.which("objdump") or "avx2" not in cpu.supported():
        pytest.skip("needs objdump, a release build, x86-64")
    import fastbp_ext.kernels
    folder = Path(fastbp_ext.kernels.__file__).parent
    seen = {}
    for isa in ("baseline", "avx2", "avx512"):
        (module,) = folder.glob(f"{isa}.*.so")
        code = subprocess.run(["objdump", "-d", str(module)], capture_output=True, text=True).stdout
        seen[isa] = {r: code.count(r) for r in ("%xmm", "%ymm", "%zmm")}
    assert seen["baseline"]["%ymm"] == seen["baseline"]["%zmm"] == 0 < seen["baseline"]["%xmm"]
    assert seen["avx2"]["%zmm"] == 0 < seen["avx2"]["%ymm"]
    assert seen["avx512"]["%zmm"] > seen["avx512"]["%ymm"]


@pytest.mark.skipif(not DEBUG, reason="the debug build's own checks")
def test_the_debug_build_catches_an_overrun():
    import ctypes

    from fastbp.gates.row import gate
    x = fb.ones(3)
    end = x.numpy().ctypes.data + 12
    guard = ctypes.c_ubyte.from_address(end)
    before = guard.value
    guard.value = 0
    with pytest.raises(SystemError, match="wrote past the memory"):
        x + 1.0
    guard.value = before
    assert (x + 1.0).numpy().tolist() == [2, 2, 2]

    @gate("view", name="beyond", public=False, any_dtype=True, vjp=[None])
    def beyond(x):
        """y = x and what lies after it"""
        return (4,), None, 0, {}

    with pytest.raises(SystemError, match="reaches from 0 to 16 of 12 bytes"):
        beyond(x) + 1.0


def test_denormal_mode_is_set_inside_and_restored():
    tiny = np.float32(1e-40)
    x = fb.tensor(np.full(100_000, tiny))    # long enough to run without the interpreter's lock
    assert (x * 1.0).numpy().max() == 0
    assert tiny * np.float32(0.5) > 0
    assert fb.set_flush_denormal(False)
    try:
        assert (x * 1.0).numpy().min() == tiny
    finally:
        fb.set_flush_denormal(True)


def test_the_mode_is_restored_while_another_thread_changes_it():
    import threading
    stop = threading.Event()

    def toggle():
        while not stop.is_set():
            fb.set_flush_denormal(False)
            fb.set_flush_denormal(True)

    thread = threading.Thread(target=toggle)
    thread.start()
    try:
        x = fb.ones(400_000)
        for _ in range(30):
            x + x
            assert np.float32(1e-40) * np.float32(0.5) > 0
    finally:
        stop.set()
        thread.join()


def test_long_kernels_give_up_the_interpreters_lock():
    """By the work, not by the number of rows: another thread goes on meanwhile."""
    import threading
    import time
    x = fb.ones(1500, 1500)
    gaps, stop = [], threading.Event()

    def watch():
        last = time.perf_counter()
        while not stop.is_set():
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    thread = threading.Thread(target=watch)
    thread.start()
    begin = time.perf_counter()
    for _ in range(3):
        x @ x
    spent = time.perf_counter() - begin
    stop.set()
    thread.join()
    assert len([g for g in gaps if g > 0.8 * spent / 3]) < 3, "the watcher stood still through every product"
