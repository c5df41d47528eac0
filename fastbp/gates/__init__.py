"""The gates, by family."""
from fastbp_ext.tensor import OPERATORS

from . import (
    activation,
    arithmetic,
    attention,
    convolution,
    embedding,
    linear,
    loss,
    normalization,
    random,
    recurrent,
    reduction,
    shape,
)
from .row import GATES, INTERNAL, grouped

_FAMILIES = (arithmetic, activation, shape, reduction, linear, normalization, random, attention, embedding, convolution,
             loss)

OPERATORS["__getitem__"] = GATES["getitem"]
OPERATORS["transpose"] = GATES["transpose"]


def table():
    """The gates as a Markdown table, made from the rows: what the README shows."""
    lines, seen = ["| gate | what it computes |", "|---|---|"], set()
    for family in _FAMILIES:    # each imports from those before
        lines.append(f"| **{family.__name__.rpartition('.')[2]}** | |")
        for name, gate in GATES.items():
            if name not in seen and getattr(family, name, None) is gate:
                seen.add(name)
                lines.append(f"| `{name}` | {_cell(gate.__doc__)} |")
    return "\n".join(lines)


def _cell(doc):
    return doc.strip().splitlines()[0].replace("|", "\\|")


__all__ = ["GATES", "INTERNAL", "activation", "arithmetic", "attention", "convolution", "embedding", "grouped",
           "linear", "loss", "normalization", "random", "recurrent", "reduction", "shape", "table"]
