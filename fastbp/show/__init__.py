"""What a person sees: circuits with their numbers, drawings, the health of gradients, a fit.

Nothing here is imported before it is asked for.
"""
from fastbp_ext.tensor import OPERATORS


def _gate(t):
    from fastbp.show.trace import GateView
    return GateView(t)


OPERATORS["gate"] = _gate
