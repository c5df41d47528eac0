from collections.abc import Callable
from typing import Any

from fastbp_ext.tensor import Tensor

class Gate:
    name: str
    formula: str
    form: str
    inputs: tuple[str, ...]
    vjp: tuple[Callable[..., Tensor] | None, ...]
    constants: dict[str, float]
    differentiable: bool
    variadic: bool
    kernel: str | None
    averages: bool
    def __init__(self, name: str, formula: str, *, form: str, inputs: Any, vjp: Any, **options: Any) -> None: ...
    def __call__(self, *args: Any, **kwargs: Any) -> Tensor: ...

class Joint:
    form: str
    def __init__(self, first: Gate, kernel: str, first_inputs: Callable[..., tuple[Tensor, ...]]) -> None: ...

class Blocks:
    form: str
    def __init__(self, gate: Gate) -> None: ...

class Combine:
    form: str
    def __init__(self, gate: Gate, count: float) -> None: ...

class Assign:
    form: str
    name: str
    def __init__(self, y: Tensor, x: Tensor) -> None: ...

class Draw:
    form: str
    name: str
    def __init__(self, key: Tensor, stream: Tensor) -> None: ...

class Call:
    form: str
    def __init__(self, name: str, function: Callable[..., Any], outputs: Any, inputs: Any,
                 effects: bool = False) -> None: ...

def as_index(x: Tensor, size: int, gate: str, what: str, wrap: bool = True,
             ignored: int | None = None, fill: int | None = None, out: Tensor | None = None) -> tuple[Tensor, bool]: ...
def draw(stream: Tensor) -> Tensor: ...
def clone(x: Tensor) -> Tensor: ...
def one_axis(gate: str, axis: Any, rank: int) -> int: ...
def tensors_of(gate: Gate, *args: Any) -> tuple[Tensor, ...]: ...
def set_engine_gates(copy: Gate, narrow: Gate) -> None: ...
def tick_state(kernel: str, hypers: list[Tensor]) -> None: ...
def update(kernel: str, states: tuple[Tensor, ...], gradient: Tensor, hyper: Tensor) -> None: ...
