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


def user_line() -> str:
    """File and line of the innermost frame outside this package, as "file.py:12"."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name != "fastbp" and not name.startswith("fastbp."):
            path = frame.f_code.co_filename
            with contextlib.suppress(OSError, ValueError):    # the working directory may be gone
                path = os.path.relpath(path) if os.path.exists(path) else path
            return f"{path}:{frame.f_lineno}"
        frame = frame.f_back
    return "unknown"


def error(kind: type, what: str, *, got: object, expected: object, fix: str) -> Exception:
    """An exception of `kind` whose message has the parts that every error here has.

    `raise error(ShapeError, "matmul: the inner sizes differ", got="(2, 3) @ (4, 5)",
    expected="x.shape[-1] == w.shape[-2]", fix="transpose one of them")`
    """
    return kind(
        f"{what}\n  where:    {user_line()}\n  got:      {got}\n"
        f"  expected: {expected}\n  fix:      {fix}"
    )
