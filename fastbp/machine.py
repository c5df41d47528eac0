"""The machine: which kernels run, on how many threads."""
import operator
import os
import platform

import numpy as np

from fastbp.version import __version__
from fastbp_ext import cpu
from fastbp_ext.program import get_flush_denormal, get_precision, set_precision
from fastbp_ext.tensor import DEBUG

_threads = 1


def set_num_threads(n):
    """Use at most `n` threads, 1 or more.

    The bits are the same for every number. The engine runs on the calling thread so far: a
    larger number is kept and changes nothing yet.
    """
    global _threads
    try:
        count = operator.index(n)
    except TypeError:
        raise TypeError(f"set_num_threads: n is an integer, not {n!r}") from None
    if count < 1:
        raise ValueError(f"set_num_threads: n is 1 or more, not {n}")
    _threads = count


def get_num_threads():
    """The most threads that the engine may use; see `set_num_threads`."""
    return _threads


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
        "threads": f"1 of {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()}",
        "denormals": "flushed to zero inside kernels" if get_flush_denormal() else "kept",
        "numpy": np.__version__,
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
    }


def show_config():
    """Print the version, the kernels, the threads and the libraries in use."""
    for key, value in config().items():
        print(f"{key + ':':<11}{value}")
