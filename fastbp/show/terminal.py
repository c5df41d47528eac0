"""Text for a terminal: colour only where a person looks, at most 80 columns."""
import os
import sys

WIDTH = 80
_CODES = {"green": 32, "red": 31, "yellow": 33, "bold": 1, "dim": 2}


def colored(text, color, stream=None):
    """`text` in a colour where the stream (standard output) is a terminal and NO_COLOR is not set or empty."""
    stream = sys.stdout if stream is None else stream
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty():
        return text
    return f"\x1b[{_CODES[color]}m{text}\x1b[0m"


def cut(text, width):
    """`text`, its end replaced by ... where it is longer than `width`."""
    return text if len(text) <= width else text[:max(width - 3, 0)] + "..."


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
