"""Errors that say what was wrong, where, what came, what was expected, and one fix."""
import contextlib
import os
import sys


class ShapeError(ValueError):
    """Shapes that do not fit together."""


class DtypeError(TypeError):
    """Element types that a gate does not take, or that do not mix."""


class StagingError(RuntimeError):
    """Something that a staged function can't do."""


class GradcheckError(AssertionError):
    """A gradient that differs from its central difference."""


class AnomalyError(FloatingPointError):
    """NaN or infinity that a stage gave, found by `detect_anomaly`."""


def user_frame() -> tuple[str, int] | None:
    """File and line of the innermost frame outside this package, or None."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name != "fastbp" and not name.startswith("fastbp."):
            return frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back
    return None


def user_line(frame: tuple[str, int] | None = None) -> str:
    """`frame`, or what `user_frame` gives, as "file.py:12"."""
    frame = frame or user_frame()
    if frame is None:
        return "unknown"
    path, line = frame
    with contextlib.suppress(OSError, ValueError):    # the working directory may be gone
        path = os.path.relpath(path) if os.path.exists(path) else path
    return f"{path}:{line}"


def error(kind: type, what: str, *, got: object, expected: object, fix: str,
          where: tuple[str, int] | None = None) -> Exception:
    """An exception of `kind` whose message has the parts that every error here has.

    `raise error(ShapeError, "matmul: the inner sizes differ", got="(2, 3) @ (4, 5)",
    expected="x.shape[-1] == w.shape[-2]", fix="transpose one of them")`. where: a file and line of the user's,
    if not those of this call.
    """
    return kind(
        f"{what}\n  where:    {user_line(where)}\n  got:      {got}\n"
        f"  expected: {expected}\n  fix:      {fix}"
    )
