"""A workload for each gate, from its row of cases in tests/cases.py: the gate by call against NumPy."""
import functools
import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench.workloads import Workload

SIZES = (1_000, 1_000_000)


@functools.cache
def suite():
    """The module tests/cases.py."""
    path = Path(__file__).parents[1] / "tests" / "cases.py"
    spec = importlib.util.spec_from_file_location("bench_cases", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class GateCall(Workload):
    """One gate on float32 arrays of about n elements, gate by gate, nothing recorded."""

    gate: str = ""
    n: int = 1000

    @functools.cached_property
    def case(self):
        """The gate's first case in the suite, with its shapes scaled to n elements."""
        row = suite().CASES[self.gate][0]
        case = replace(row, shapes=scaled(row.shapes, self.n, row.elementwise))
        return replace(case, **plain(self.gate, case.shapes))

    def ring(self, dtype=np.float32):
        rng = self.rng()
        return [tuple(x.astype(dtype) for x in self.case.inputs(rng, np.float32)) for _ in range(self.batches)]


def scaled(shapes, n, elementwise):
    """Shapes with every dimension but those of size 1 grown by one factor: the first has about n elements."""
    if elementwise:
        return [(n,)] * len(shapes)
    grown = [d for d in shapes[0] if d != 1]
    factor = max(1, round((n / np.prod(grown))**(1 / len(grown))))
    return [tuple(d if d == 1 else d * factor for d in shape) for shape in shapes]


def plain(name, shapes):
    """What a gate's case has otherwise here: where it holds a shape, or is written to be plain and not fast."""
    import fastbp as fb
    s = suite()
    rows = np.arange(shapes[0][0]) if len(shapes[0]) == 2 else None
    labels = rows % shapes[0][1] if rows is not None else None

    def cross_entropy(x):
        x = x - x.max(1, keepdims=True)
        return np.log(np.exp(x).sum(1)).mean() - x[rows, labels].mean()

    def hinge(x):
        margins = np.maximum(x - x[rows, labels][:, None] + 1, 0)
        margins[rows, labels] = 0
        return margins.sum() / len(rows)

    return {
        "cross_entropy": {"call": lambda x: fb.cross_entropy(x, labels), "oracle": cross_entropy},
        "hinge_loss": {"call": lambda x: fb.hinge_loss(x, labels), "oracle": hinge},
        "broadcast_to": {"call": lambda x: fb.broadcast_to(x, (2, len(rows), 3)),
                         "oracle": lambda x: np.broadcast_to(x, (2, len(rows), 3))},
        "silu": {"oracle": lambda x: x / (1 + np.exp(-x))},
        "sigmoid": {"oracle": lambda x: 1 / (1 + np.exp(-x))},
        "softplus": {"oracle": lambda x: np.logaddexp(x, 0)},
        "gelu": {"oracle": lambda x: 0.5 * x * (1 + s.erf(x * 0.5**0.5))},
        "prod": {"call": lambda x: fb.prod(x, axis=1), "oracle": lambda x: x.prod(1), "draw": s.anywhere},
    }.get(name, {})


@functools.cache
def gate_workloads():
    """{name: workload}, two sizes of each gate."""
    import fastbp as fb
    made = [GateCall(f"{gate}@{n:.0e}".replace("e+0", "e"), f"{gate}, {n:,}", 3, gate=gate, n=n)
            for gate in suite().CASES if gate in fb.GATES for n in SIZES]
    return {w.name: w for w in made}
