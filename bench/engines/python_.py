"""Python floats by hand."""
import sys
from math import exp

from bench.engines import case, digest
from bench.workloads import Circuit

VERSION = sys.version.split()[0]


def circuit(workload, form):
    def step(x, y):
        sy = 1 / (1 + exp(-y))
        sx = 1 / (1 + exp(-x))
        total = x + y
        top = x + sy
        under = 1 / (sx + total * total)
        f = top * under
        dunder = -f * under                 # of what top is divided by
        dtotal = 2 * total * dunder
        return f, under + sx * (1 - sx) * dunder + dtotal, under * sy * (1 - sy) + dtotal

    return case(step, workload.ring(), lambda r: r[0], lambda r: [[r[0]], *digest(*r[1:])])


BUILD = {Circuit: circuit}
