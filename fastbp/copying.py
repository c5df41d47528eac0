"""What pickle and copy.deepcopy make of functions."""
import sys
import types
from copy import deepcopy


def found_by_name(function, x):
    """Whether x is what the function's own name stands for in its module."""
    found = sys.modules.get(getattr(function, "__module__", None))
    for name in getattr(function, "__qualname__", "<none>").split("."):
        found = getattr(found, name, None)
    return found is x


def copied(x, memo):
    """copy.deepcopy(x, memo), but functions are copied too, with what they close over and their defaults.

    Functions that are found by name are not, nor is what a function finds by name.
    """
    if isinstance(x, types.ModuleType):
        return x
    if not isinstance(x, types.FunctionType) or found_by_name(x, x):
        return deepcopy(x, memo)
    if id(x) in memo:
        return memo[id(x)]
    cells = x.__closure__ or ()
    new = [cell for cell in cells if id(cell) not in memo]
    memo.update((id(cell), types.CellType()) for cell in new)
    y = memo[id(x)] = types.FunctionType(x.__code__, x.__globals__, x.__name__,
                                         closure=tuple([memo[id(cell)] for cell in cells]))
    for cell in new:
        if cell != types.CellType():    # else its variable is not set yet
            memo[id(cell)].cell_contents = copied(cell.cell_contents, memo)
    y.__defaults__ = x.__defaults__ and tuple([copied(value, memo) for value in x.__defaults__])
    y.__kwdefaults__ = x.__kwdefaults__ and {name: copied(value, memo) for name, value in x.__kwdefaults__.items()}
    y.__dict__.update({name: copied(value, memo) for name, value in vars(x).items()})
    y.__qualname__, y.__module__, y.__doc__ = x.__qualname__, x.__module__, x.__doc__
    return y
