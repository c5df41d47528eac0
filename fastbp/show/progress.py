"""The progress of a training: a bar on a terminal while it runs, and a line for each epoch anywhere."""
import os
import shutil
import sys
import time

from fastbp.show.terminal import WIDTH, cut
from fastbp_ext.replay import is_number


def short(x):
    """A number in six characters or so: 0.1234, 12.34, 1.2e-05"""
    return f"{x:.4f}" if 1e-3 <= abs(x) < 10 else f"{x:.2g}" if abs(x) < 1e-3 else f"{x:.4g}"


def listed(numbers):
    """"loss 0.1234  error 0.0500" of {name: number}"""
    return "  ".join(f"{name} {short(x):<6}" for name, x in numbers.items()).rstrip()


def per_second(rate):
    """876/s, 12.3k/s or 1.23M/s"""
    return f"{rate / 1e6:.3g}M/s" if rate >= 999_500 else f"{rate / 1e3:.3g}k/s" if rate >= 9_995 else f"{rate:.0f}/s"


def duration(seconds):
    """0:07, 12:34 or 1:02:03"""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Progress:
    """What `fit` shows of `epochs` epochs of `rows` rows, the first `first` of which are done.

    shown: True, "bar" (without the lines of epochs), or what is false: nothing. The bar is on standard error, where
    that is a terminal, and tqdm's where that is installed; lines go to standard output.
    """

    def __init__(self, epochs, rows, first, shown):
        self.epochs, self.rows, self.first, self.shown = epochs, rows, first, shown
        self.begun = self.drawn = time.monotonic()
        self.live = bool(shown) and sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self.bar, self.visible = None, False

    def show(self, epoch, done, means):
        """Draw the bar, at most ten times a second: `done` rows of epoch `epoch`, from 0, are done."""
        now = time.monotonic()
        if self.live and now - self.drawn >= 0.1:
            self.drawn = now
            self.bar = self.bar or _bar(self.epochs * self.rows, self.first * self.rows, self.begun)
            self.bar.show(f"epoch {epoch + 1}/{self.epochs}", epoch * self.rows + done, listed(means))
            self.visible = True

    def clear(self):
        """Take the bar away; `show` draws it again."""
        if self.visible:
            self.bar.clear()
            self.visible = False

    def line(self, record, rate):
        """Print an epoch's record; `rate` is in rows a second, and goes where it does not fit."""
        if self.shown is True:
            columns = {k: x for k, x in record.items() if k not in ("epoch", "seconds") and is_number(x)}
            line = f"{record['epoch']:{len(str(self.epochs))}}/{self.epochs}  {listed(columns)}"
            rate = f"  {per_second(rate)}"
            self.write(line + rate if len(line + rate) <= WIDTH else line)

    def write(self, text):
        """Print a line, with the bar out of the way."""
        if self.shown:
            self.clear()
            print(text, flush=True)

    def close(self):
        """Take the bar away for good."""
        self.clear()
        if self.bar is not None:
            self.bar.close()


class Line:
    """A bar of plain text: `total` rows, `initial` of them done at the time `begun`."""

    def __init__(self, total, initial, begun, width):
        self.total, self.initial, self.begun, self.width = total, initial, begun, width

    def show(self, label, done, means):
        rate = (done - self.initial) / max(time.monotonic() - self.begun, 1e-9)
        after = f" {done / self.total:4.0%}  {means}  {per_second(rate)}  {duration((self.total - done) / rate)} left"
        room = self.width - len(label) - len(after) - 3
        filled = room * done // self.total
        bar = f" [{'#' * filled}{'.' * (room - filled)}]" if room >= 5 else ""
        self._write(cut(label + bar + after, self.width).ljust(self.width))

    def clear(self):
        self._write(" " * self.width + "\r")

    def close(self):
        pass

    def _write(self, text):
        sys.stderr.write("\r" + text)
        sys.stderr.flush()


def _bar(total, initial, begun):
    size = shutil.get_terminal_size()
    width = min(WIDTH, size.columns) - 1    # in the last column some terminals begin a new line
    try:
        from tqdm import tqdm
    except ImportError:
        return Line(total, initial, begun, width)

    class Bar(tqdm):
        monitor_interval = 0    # no thread of its own

        def show(self, label, done, means):
            self.desc, self.postfix, self.n = label, means, done
            self.refresh()

    bar = Bar(total=total, initial=initial, ncols=width, nrows=size.lines, unit="", unit_scale=True, leave=False,
              bar_format="{desc} |{bar}| {percentage:3.0f}%{postfix}  {rate_fmt}  {remaining} left", delay=1e-9)
    if not bar.disable:    # by TQDM_DISABLE
        bar.start_t -= time.monotonic() - begun    # it was made when there was something to show
    return bar
