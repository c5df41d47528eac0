"""The machine: which kernels run, on how many threads."""
import contextlib
import math
import operator
import os
import platform
import re
import warnings
from pathlib import Path, PurePosixPath

import numpy as np

from fastbp.version import __version__
from fastbp_ext import cpu, pool
from fastbp_ext.program import get_flush_denormal, get_precision, set_precision
from fastbp_ext.tensor import DEBUG


def _quota(root="/"):
    """The processors' worth of time that the control groups of this process allow it, or infinity.

    Each group's own limit counts, and that of each group above it. root: the file system to look in.
    """
    try:
        groups = Path(root, "proc/self/cgroup").read_text().splitlines()
        mounts = Path(root, "proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return math.inf
    paths = {}    # by controller, "" in version 2
    for line in groups:
        _, controllers, path = line.split(":", 2)
        paths.update(dict.fromkeys(controllers.split(","), path))
    limit = math.inf
    for line in mounts:
        here, _, there = line.partition(" - ")
        shown, point = here.split()[3:5]    # which group the mount point shows
        kind, _, options = there.split(maxsplit=2)
        version = {"cgroup2": "", "cgroup": "cpu"}.get(kind)
        if version not in paths or (version and version not in options.split(",")):
            continue
        top = Path(root, point.lstrip("/"))
        try:
            group = top / PurePosixPath(paths[version]).relative_to(shown)
        except ValueError:    # a container shows its own group only, under a name from outside
            group = top
        while True:
            limit = min(limit, _limit(group))
            if group == top:
                break
            group = group.parent
    return limit


def _limit(group):
    """The limit that one control group sets, in processors."""
    for names in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
        try:
            quota, period = " ".join((group / name).read_text() for name in names).split()
            if quota not in ("max", "-1"):
                return int(quota) / int(period)
        except (OSError, ValueError, ZeroDivisionError):
            continue
    return math.inf


def _processors(root="/"):
    """How many processors this process may use: those of its affinity mask, limited by its quota rounded up."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    return max(1, math.ceil(min(count, _quota(root))))


def _default_threads(environ, processors):
    """(threads, what was wrong with the environment)."""
    faults = []
    for name in ("FASTBP_NUM_THREADS", "OMP_NUM_THREADS"):
        value = environ.get(name, "").strip()
        first = value.split(",")[0].strip() if name == "OMP_NUM_THREADS" else value    # one for each level of nesting
        if re.fullmatch("[0-9]{1,9}", first) and 1 <= int(first) <= pool.MOST:
            return int(first), faults
        if value:
            faults.append(f"{name}={value!r} is not a number of threads from 1 to {pool.MOST}")
    return processors, faults


_warned = False


def _find_size():
    global _warned
    processors = _processors()
    threads, faults = _default_threads(os.environ, processors)
    if faults and not _warned:
        _warned = True
        with contextlib.suppress(RuntimeWarning):    # where warnings are errors: this one may come from inside a replay
            warnings.warn(f"{'; '.join(faults)}: {threads} used instead", RuntimeWarning, stacklevel=2)
    return threads, processors


pool.on_first_use(_find_size)


def set_num_threads(n):
    """Use at most n threads, the calling one among them; 1: no other.

    The bits are the same for every n. Without this call n is FASTBP_NUM_THREADS, else
    OMP_NUM_THREADS, else the number of processors that this process may use: those of its affinity
    mask, and no more than its control group's quota. More threads than processors are slower.
    TypeError: n is not an integer. ValueError: n is not from 1 to 1024.
    """
    try:
        count = operator.index(n)
    except TypeError:
        raise TypeError(f"set_num_threads: n is an integer, not {n!r}") from None
    if not 1 <= count <= pool.MOST:
        raise ValueError(f"set_num_threads: n is from 1 to {pool.MOST}, not {n}")
    pool.set_size(count, _processors())


def get_num_threads():
    """The most threads that the engine may use; see `set_num_threads`."""
    return pool.get_size()


@contextlib.contextmanager
def one_thread():
    """Inside, the calling thread is alone: what is measured is one thread's."""
    before = pool.get_size()
    pool.limit(1)
    try:
        yield
    finally:
        pool.limit(before)


_PRECISIONS = ("highest", "high", "medium")


def set_float32_matmul_precision(precision):
    """How exact products of float32 matrices have to be: "highest", "high" or "medium".

    PyTorch's name and meaning. "highest", the default, is plain float32, and so are the others
    where the machine has nothing faster: here that is everywhere so far. ValueError: another word.
    """
    if precision not in _PRECISIONS:
        raise ValueError(f'set_float32_matmul_precision: "highest", "high" or "medium", not {precision!r}')
    set_precision(_PRECISIONS.index(precision))


def get_float32_matmul_precision():
    """The word that `set_float32_matmul_precision` set."""
    return _PRECISIONS[get_precision()]


def config():
    """What is in use, as a dict of texts."""
    return {
        "fastbp": __version__ + (" (debug build)" if DEBUG else ""),
        "kernels": f"{cpu.ISA} (this CPU has {', '.join(cpu.supported())}; FASTBP_ISA pins one)",
        "threads": f"{get_num_threads()} at most, for {_processors()} processors (FASTBP_NUM_THREADS sets the number)",
        "denormals": "flushed to zero inside kernels" if get_flush_denormal() else "kept",
        "numpy": np.__version__,
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
    }


def show_config():
    """Print the version, the kernels, the threads and the libraries in use."""
    for key, value in config().items():
        print(f"{key + ':':<11}{value}")
