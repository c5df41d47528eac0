"""fastbp: backpropagation as a program of stages, for small and middle-sized nets on a CPU."""
try:
    import fastbp_ext.tensor
except ModuleNotFoundError as missing:
    raise ImportError("fastbp's compiled modules are not beside this source: build them here with `pip install -e .`, "
                      "or leave the source folder to use an installed fastbp") from missing

from fastbp import callbacks, data, errors, hints, nn, optim, show
from fastbp.anomaly import detect_anomaly
from fastbp.create import arange, full, ones, randn, zeros
from fastbp.custom import define_gate
from fastbp.differentiate import grad, gradcheck, value_and_grad
from fastbp.errors import AnomalyError, DtypeError, GradcheckError, ShapeError, StagingError
from fastbp.gates import GATES
from fastbp.gates import grouped as gate
from fastbp.machine import (
    get_float32_matmul_precision,
    get_num_threads,
    set_float32_matmul_precision,
    set_num_threads,
    show_config,
)
from fastbp.random import get_rng_state, manual_seed, set_rng_state
from fastbp.serialization import load, save
from fastbp.staged import staged
from fastbp.training import fit
from fastbp.version import __version__
from fastbp_ext.program import set_flush_denormal
from fastbp_ext.tensor import Tensor, from_numpy, no_grad, tensor

globals().update(GATES)    # every row of fastbp.gates is a function of the package


def __getattr__(name):    # it makes each fb.name some 17 ns slower, which nn.functional, used in every layer, is spared
    raise hints.missing("fastbp", name, hints.FASTBP)
