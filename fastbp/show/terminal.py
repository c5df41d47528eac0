"""Text for a terminal: colour only where a person looks, at most 80 columns."""
import json
import math
import os
import sys

import numpy as np

WIDTH = 80
_CODES = {"green": 32, "red": 31, "yellow": 33, "bold": 1, "dim": 2}


def colored(text, color, stream=None):
    """`text` in a colour where the stream (standard output) is a terminal and NO_COLOR is not set or empty."""
    stream = sys.stdout if stream is None else stream
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or stream is None or not stream.isatty():
        return text
    return f"\x1b[{_CODES[color]}m{text}\x1b[0m"


def cut(text, width):
    """`text`, its end replaced by ... where it is longer than `width`."""
    return text if len(text) <= width else text[:max(width - 3, 0)] + "..."


def write_json(path, data):
    """Write nested dicts and lists of numbers, arrays and texts; a number that is not finite becomes null."""
    def plain(x):
        if isinstance(x, dict):
            return {key: plain(value) for key, value in x.items()}
        if isinstance(x, (list, tuple, np.ndarray)):
            return [plain(value) for value in x]
        if isinstance(x, (float, np.floating)):
            return float(x) if math.isfinite(x) else None
        return x

    with open(path, "w") as file:
        json.dump(plain(data), file, indent=1, allow_nan=False)
        file.write("\n")


def figure(width, height):
    """A matplotlib figure of so many inches, drawn without a screen.

    RuntimeError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise RuntimeError("plots need matplotlib: pip install 'fastbp[plot]'") from None
    return Figure(figsize=(width, height), layout="constrained")


def write_figure(drawn, path):
    """The figure in the format that the path's ending names. ValueError: a format that matplotlib has not."""
    drawn.savefig(path, dpi=120)
