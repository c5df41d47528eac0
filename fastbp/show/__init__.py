"""What a person sees: circuits with their numbers, drawings, the health of gradients, a fit.

Nothing here is imported before it is asked for.
"""
from fastbp_ext.tensor import OPERATORS


def _gate(t):
    from fastbp.show.trace import GateView
    return GateView(t)


def _draw(t, path):
    from fastbp.show.draw import draw
    return draw(t, path)


def _notebook(t):
    from fastbp.show.draw import notebook
    return notebook(t)


OPERATORS["gate"] = _gate
OPERATORS["draw"] = _draw
OPERATORS["notebook"] = _notebook
