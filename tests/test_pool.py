"""The engine's threads: jobs, barriers, fork, signals, the end; and how many there are."""
import multiprocessing
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

import fastbp as fb
from fastbp import machine
from fastbp_ext import pool

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
TIMEOUT = 60    # against hangs: nothing here takes seconds


def run_python(code, **environment):
    """What the code printed; in a process of its own, which must end by itself, well and in silence."""
    done = subprocess.run([sys.executable, "-W", "ignore::DeprecationWarning", "-c", PRELUDE + textwrap.dedent(code)],
                          capture_output=True, text=True, timeout=TIMEOUT, env={**os.environ, **environment})
    assert done.returncode == 0 and not done.stderr, (done.returncode, done.stderr)
    return done.stdout


PRELUDE = """
import contextlib, os, signal, sys, threading, time
from pathlib import Path
import fastbp as fb
from fastbp_ext import pool

def workers():
    names = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):    # it ends at this moment
            names.append((task / "comm").read_text().strip())
    return sorted(n for n in names if n.startswith("fastbp-"))

def in_child(function):
    pid = os.fork()
    if pid == 0:
        try:
            function()
        except BaseException as e:
            print(repr(e), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    for n in range(4000):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        time.sleep(0.0001 if n < 1000 else 0.01)
    os.kill(pid, signal.SIGKILL)
    raise SystemExit("a child hung")
"""


# --- jobs and barriers

@pytest.mark.parametrize("threads", [2, 3, 4, 8])
def test_a_job_runs_once_on_every_rank_and_in_step(threads):
    """exercise checks it, and that a task can start no job, and that the caller's flushing of denormals stays there."""
    ids = pool.exercise(threads, 50_000)    # of two barriers each
    assert ids[0] == threading.get_ident() and len(set(ids)) == threads


def test_one_thread_is_no_job():
    assert pool.exercise(1) is None
    for bad in (0, -1, pool.MOST + 1):
        with pytest.raises(ValueError, match="1 to 1024"):
            pool.exercise(bad)


def test_the_pool_grows_and_keeps_its_threads():
    ids = {n: pool.exercise(n, 10) for n in (2, 5, 3)}
    assert pool.exercise(5, 10) == ids[5] and ids[5][:3] == ids[3] and ids[3][:2] == ids[2]
    for n in range(2000):    # the number changes from job to job: none goes to a thread that is not in it
        assert len(pool.exercise(2 + n % 4, n % 3)) == 2 + n % 4


def test_threads_that_slept_take_part_again():
    for n in range(40):
        time.sleep(0.001 * (n % 4))
        assert pool.exercise(2 + n % 3, 20)


@needs_linux
def test_affinity_is_as_it_was():
    """To be woken on a free processor threads are kept off others meanwhile."""
    allowed = os.sched_getaffinity(0)
    for n in range(200):
        time.sleep(0.0003)
        pool.exercise(2, 3)
        assert os.sched_getaffinity(0) == allowed, n
    pool.exercise(2, 1)
    (worker,) = [t for t in Path("/proc/self/task").iterdir() if (t / "comm").read_text() == "fastbp-1\n"]
    assert os.sched_getaffinity(int(worker.name)) == allowed


def test_a_second_job_is_refused_while_one_runs():
    results, stop = [], threading.Event()

    def other():
        while not stop.is_set():
            results.append(pool.exercise(2, 200))

    thread = threading.Thread(target=other)
    thread.start()
    end = time.monotonic() + TIMEOUT
    mine = []
    while (not any(mine) or None not in mine or not any(results)) and time.monotonic() < end:
        mine.append(pool.exercise(2, 200))
    stop.set()
    thread.join()
    assert any(mine) and None in mine, "some ran, and some found the pool busy"
    assert any(results)
    assert pool.exercise(2)


@needs_linux
def test_where_no_thread_can_be_started_the_caller_is_alone():
    run_python("""
        import resource
        assert pool.exercise(2)
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + (8 << 20), most))
        assert pool.exercise(200) is None, "no memory for so many stacks"
        assert pool.exercise(2), "those that are there go on"
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        assert len(pool.exercise(200, 2)) == 200
    """)


# --- fork

@needs_linux
def test_forks_after_use():
    run_python("""
        ids = pool.exercise(3)
        for n in range(200):
            assert in_child(lambda: pool.exercise(2 + n % 3, 20) or os._exit(2)) == 0, n
            if n % 20 == 0:
                assert pool.exercise(3, 20) == ids, "the parent goes on with its threads"

        def child():
            assert workers() == [], "they do not exist here"
            assert pool.exercise(2) and workers() == ["fastbp-1"]
            def grandchild():
                assert workers() == [] and pool.exercise(3) and workers() == ["fastbp-1", "fastbp-2"]
            assert in_child(grandchild) == 0
            assert pool.exercise(2)
        for n in range(5):
            assert in_child(child) == 0
        assert pool.exercise(3) == ids
    """)


@needs_linux
def test_forks_while_another_thread_runs_jobs():
    run_python("""
        stop = threading.Event()
        counts = [0]
        def jobs():
            n = 0
            while not stop.is_set():
                n += 1
                counts[0] += pool.exercise(2 + n % 3 * 4, 2) is not None
        thread = threading.Thread(target=jobs)
        thread.start()
        for n in range(100):
            assert in_child(lambda: pool.exercise(2 + n % 2 * 8, 20) or os._exit(2)) == 0, n
        stop.set()
        thread.join()
        assert counts[0] > 0 and pool.exercise(2)
    """)


@needs_linux
def test_forks_while_another_thread_starts_the_pool():
    run_python("""
        for n in range(30):
            def first():    # a child in which nothing was started yet
                thread = threading.Thread(target=pool.exercise, args=(9, 1))
                thread.start()
                for _ in range(3):
                    assert in_child(lambda: pool.exercise(2, 20) or os._exit(2)) == 0
                thread.join()
                assert pool.exercise(9, 1)
            assert in_child(first) == 0, n
    """)


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing(method):
    pool.exercise(2)
    with multiprocessing.get_context(method).Pool(2) as processes:
        results = processes.map_async(pool.exercise, [2, 3] * 4).get(TIMEOUT)
    assert [len(r) for r in results] == [2, 3] * 4
    assert pool.exercise(2)


# --- signals, the beginning and the end

@needs_linux
def test_nothing_is_started_before_the_first_job():
    run_python("""
        fb.exp(fb.randn(100)).sum()
        fb.get_num_threads()
        assert len(os.listdir("/proc/self/task")) == 1
        pool.exercise(2)
        assert workers() == ["fastbp-1"]
    """, OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")


@needs_linux
def test_signals_go_to_pythons_threads():
    run_python("""
        pool.exercise(4)
        for task in Path("/proc/self/task").iterdir():
            if (task / "comm").read_text().startswith("fastbp-"):
                status = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
                blocked = int(status["SigBlk"], 16)
                faults = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}
                for s in signal.valid_signals() - faults - {signal.SIGKILL, signal.SIGSTOP}:
                    assert blocked >> (s - 1) & 1 or 32 <= s < 34, s
                assert not any(blocked >> (s - 1) & 1 for s in faults)
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set(), "the caller's own are as they were"

        signal.signal(signal.SIGINT, signal.default_int_handler)
        for n in range(20):
            timer = threading.Timer(0.005, os.kill, (os.getpid(), signal.SIGINT))
            try:
                timer.start()
                while True:
                    pool.exercise(3, 100)
            except KeyboardInterrupt:
                timer.join()
            assert pool.exercise(3, 10), "a job that was interrupted ran to its end"
    """)


@pytest.mark.parametrize("rounds", [1, 300, 20_000])
def test_the_interpreter_ends_while_a_daemon_thread_runs_jobs(rounds):
    run_python(f"""
        import atexit
        def jobs():
            while True:
                pool.exercise(2, {rounds})
        threading.Thread(target=jobs, daemon=True).start()
        while pool.exercise(2, 1) is not None:    # until the other has had it
            pass
    """)


@needs_linux
def test_nothing_is_left_when_the_pool_has_ended():
    run_python("""
        pool.exercise(4)
        assert len(workers()) == 3
        assert pool.end()
        while workers():    # joined; the system may list them a moment longer
            time.sleep(0.001)
        assert pool.exercise(2) is None and workers() == [], "it stays so"
        assert pool.end()
        def child():
            assert pool.exercise(2) is None and workers() == []
        assert in_child(child) == 0
    """)


def test_the_end_waits_for_a_job_within_bounds():
    run_python("""
        def job():
            while pool.exercise(2, 10 ** 12) is None:
                pass
        thread = threading.Thread(target=job, daemon=True)
        thread.start()
        while pool.exercise(2, 1) is not None:
            pass
        assert not pool.end(), "the job would take days"
    """)


# --- how many

def tree(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V2 = "31 22 0:28 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = ("25 20 0:21 / / rw - ext4 /dev/root rw\n"
      "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
      "33 31 0:30 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
      "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n")
PROC, SYS = "proc/self/", "sys/fs/cgroup/"


@pytest.mark.parametrize("quota, files", [
    (float("inf"), {}),
    (float("inf"), {PROC + "cgroup": "0::/a\n", PROC + "mountinfo": V2}),
    (float("inf"), {PROC + "cgroup": "0::/a\n", PROC + "mountinfo": V2, SYS + "a/cpu.max": "max 100000\n"}),
    (1.5, {PROC + "cgroup": "0::/a/b\n", PROC + "mountinfo": V2, SYS + "a/b/cpu.max": "150000 100000\n"}),
    (0.5, {PROC + "cgroup": "0::/a/b\n", PROC + "mountinfo": V2, SYS + "a/b/cpu.max": "150000 100000\n",
           SYS + "a/cpu.max": "50000 100000\n", SYS + "other/cpu.max": "1000 100000"}),
    (3.0, {PROC + "cgroup": "0::/a/b\n", PROC + "mountinfo": V2, SYS + "a/b/cpu.max": "max 100000\n",
           SYS + "cpu.max": "300000 100000\n"}),
    (2.0, {PROC + "cgroup": "0::/../outside\n", PROC + "mountinfo": V2.replace("0:28 / ", "0:28 /docker/1 "),
           SYS + "cpu.max": "200000 100000\n"}),
    (2.0, {PROC + "cgroup": "4:cpu,cpuacct:/a\n3:cpuset:/\n0::/\n", PROC + "mountinfo": V1,
           SYS + "cpu,cpuacct/a/cpu.cfs_quota_us": "200000\n", SYS + "cpu,cpuacct/a/cpu.cfs_period_us": "100000\n"}),
    (float("inf"), {PROC + "cgroup": "4:cpu,cpuacct:/a\n", PROC + "mountinfo": V1,
                    SYS + "cpu,cpuacct/a/cpu.cfs_quota_us": "-1\n",
                    SYS + "cpu,cpuacct/a/cpu.cfs_period_us": "100000\n"}),
    (4.0, {PROC + "cgroup": "4:cpu,cpuacct:/docker/1/x\n", PROC + "mountinfo": V1.replace("0:29 / ", "0:29 /docker/1 "),
           SYS + "cpu,cpuacct/x/cpu.cfs_quota_us": "400000", SYS + "cpu,cpuacct/x/cpu.cfs_period_us": "100000"}),
    (float("inf"), {PROC + "cgroup": "0::/a\n", PROC + "mountinfo": V2, SYS + "a/cpu.max": "nonsense\n"}),
])
def test_the_quota_of_control_groups(tmp_path, quota, files):
    assert machine._quota(tree(tmp_path, files)) == quota


@needs_linux
def test_processors_are_those_of_the_mask_within_the_quota_rounded_up(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(3)))
    for quota, expected in [("max", 3), ("150000", 2), ("1000", 1), ("300000", 3), ("900000", 3)]:
        root = tree(tmp_path, {PROC + "cgroup": "0::/\n", PROC + "mountinfo": V2, SYS + "cpu.max": f"{quota} 100000\n"})
        assert machine._processors(root) == expected


@pytest.mark.parametrize("environment, threads, faults", [
    ({}, 6, []),
    ({"FASTBP_NUM_THREADS": "3", "OMP_NUM_THREADS": "4"}, 3, []),
    ({"OMP_NUM_THREADS": "4"}, 4, []),
    ({"OMP_NUM_THREADS": " 4 , 2"}, 4, []),
    ({"FASTBP_NUM_THREADS": "", "OMP_NUM_THREADS": " "}, 6, []),
    ({"FASTBP_NUM_THREADS": "1024"}, 1024, []),
    ({"FASTBP_NUM_THREADS": "1025"}, 6, ["FASTBP_NUM_THREADS"]),
    ({"FASTBP_NUM_THREADS": "0", "OMP_NUM_THREADS": "4"}, 4, ["FASTBP_NUM_THREADS"]),
    ({"FASTBP_NUM_THREADS": "4,2"}, 6, ["FASTBP_NUM_THREADS"]),
    ({"FASTBP_NUM_THREADS": "two", "OMP_NUM_THREADS": "-1"}, 6, ["FASTBP_NUM_THREADS", "OMP_NUM_THREADS"]),
    ({"OMP_NUM_THREADS": "1e3"}, 6, ["OMP_NUM_THREADS"]),
    ({"OMP_NUM_THREADS": "9" * 5000}, 6, ["OMP_NUM_THREADS"]),
])
def test_the_number_in_the_environment(environment, threads, faults):
    found, wrong = machine._default_threads(environment, 6)
    assert found == threads and [w.split("=")[0] for w in wrong] == faults


def test_a_wrong_number_in_the_environment_is_warned_of_once():
    said = run_python("""
        import warnings
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            assert fb.get_num_threads() == fb.get_num_threads() == 3
            (one,) = seen
            assert in_child(lambda: (fb.get_num_threads(), len(seen) == 1 or os._exit(2))) == 0, "nor in a child"
        print(one.category.__name__, one.message)
    """, FASTBP_NUM_THREADS="many", OMP_NUM_THREADS="3")
    assert said == ("RuntimeWarning FASTBP_NUM_THREADS='many' is not a number of threads from 1 to 1024: "
                    "3 used instead\n")


def test_the_number_that_is_set_is_kept():
    before = fb.get_num_threads()
    try:
        for n in (1, 3, 1024):
            fb.set_num_threads(n)
            assert fb.get_num_threads() == n and fb.machine.config()["threads"].startswith(f"{n} at most")
        for bad in (0, -1, 1025):
            with pytest.raises(ValueError, match="1 to 1024"):
                fb.set_num_threads(bad)
        with pytest.raises(TypeError, match="integer"):
            fb.set_num_threads("2")
        assert fb.get_num_threads() == 1024
    finally:
        fb.set_num_threads(before)


@needs_linux
def test_a_child_counts_its_own_processors_unless_a_number_was_set():
    run_python("""
        def child(expected):
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
            assert fb.get_num_threads() == expected
        fb.get_num_threads()
        assert in_child(lambda: child(1)) == 0
        fb.set_num_threads(5)
        assert in_child(lambda: child(5)) == 0
    """, FASTBP_NUM_THREADS="", OMP_NUM_THREADS="")
