"""The engines: fastbp and its peers. Each module has a function for each workload that it can do.

A function takes a workload and a form, "call" (one step a call) or "loop" (the engine runs the
loop itself, workload.loop says which), and returns a Case, or None where it lacks the form.
"""
import collections
import importlib
import itertools
from dataclasses import dataclass

import numpy as np

from bench.workloads import CHECKED

# name: (module, form, what the module's functions are given besides)
ENGINES = {
    "fastbp": ("fastbp_", "call", {}),
    "fastbp loop": ("fastbp_", "loop", {}),
    "numpy": ("numpy_", "call", {}),
    "python": ("python_", "call", {}),
    "torch": ("torch_", "call", {}),
    "torch.compile": ("torch_", "call", {"compiled": True}),
    "jax": ("jax_", "call", {}),
    "jax loop": ("jax_", "loop", {}),
}
OURS = ("fastbp", "fastbp loop")


@dataclass
class Case:
    """A workload, ready to run. `run(n)` makes n calls of `steps` steps each and reads the last result."""

    run: object
    numbers: object      # () -> the last result as lists of floats: [[loss]], and digests of gradients
    steps: int = 1

    def check(self):
        """The numbers after the first steps."""
        self.run(CHECKED if self.steps == 1 else 1)
        return self.numbers()


def case(step, ring, read, numbers=None, steps=1):
    """A Case that calls `step` with each tuple of `ring` in turn.

    read(result) waits until the result is there; numbers(result) makes lists of floats of it, where
    there is more to compare than the float that `read` returns.
    """
    batches = itertools.cycle(ring)
    last = value = None

    def run(n):
        nonlocal last, value
        last = None
        last = collections.deque(itertools.starmap(step, itertools.islice(batches, n)), maxlen=1).pop()
        value = read(last)

    return Case(run, lambda: [[value]] if numbers is None else numbers(last), steps)


def digest(*arrays):
    """For each array a list of floats that change when its elements do: [norm, product with a fixed array]."""
    flat = [np.asarray(a, np.float64).ravel() for a in arrays]
    return [[float(np.linalg.norm(a)), float(a @ np.cos(np.arange(a.size)))] for a in flat]


def module_of(engine):
    return importlib.import_module("bench.engines." + ENGINES[engine][0])


def build(engine, workload):
    """The engine's Case of a workload, or None."""
    _, form, options = ENGINES[engine]
    make = module_of(engine).BUILD.get(type(workload))
    if make is None or (form == "loop" and not workload.loop):
        return None
    return make(workload, form, **options)


def reference(workload, form):
    """The numbers that every engine must reach in that form: NumPy's by hand in float64."""
    from bench.engines import numpy_, python_
    if type(workload) in python_.BUILD:
        return python_.BUILD[type(workload)](workload, form).check()
    return numpy_.BUILD[type(workload)](workload, form, dtype=np.float64).check()
