from fastbp import callbacks as callbacks
from fastbp import data as data
from fastbp import errors as errors
from fastbp import nn as nn
from fastbp import optim as optim
from fastbp.anomaly import detect_anomaly as detect_anomaly
from fastbp.create import arange as arange
from fastbp.create import full as full
from fastbp.create import ones as ones
from fastbp.create import randn as randn
from fastbp.create import zeros as zeros
from fastbp.custom import define_gate as define_gate
from fastbp.differentiate import grad as grad
from fastbp.differentiate import gradcheck as gradcheck
from fastbp.differentiate import value_and_grad as value_and_grad
from fastbp.errors import AnomalyError as AnomalyError
from fastbp.errors import DtypeError as DtypeError
from fastbp.errors import GradcheckError as GradcheckError
from fastbp.errors import ShapeError as ShapeError
from fastbp.errors import StagingError as StagingError
from fastbp.gates import grouped
from fastbp.machine import get_float32_matmul_precision as get_float32_matmul_precision
from fastbp.machine import get_num_threads as get_num_threads
from fastbp.machine import set_float32_matmul_precision as set_float32_matmul_precision
from fastbp.machine import set_num_threads as set_num_threads
from fastbp.machine import show_config as show_config
from fastbp.random import get_rng_state as get_rng_state
from fastbp.random import manual_seed as manual_seed
from fastbp.random import set_rng_state as set_rng_state
from fastbp.serialization import load as load
from fastbp.serialization import save as save
from fastbp.staged import staged as staged
from fastbp.training import fit as fit
from fastbp.version import __version__ as __version__
from fastbp_ext.gate import Gate
from fastbp_ext.program import set_flush_denormal as set_flush_denormal
from fastbp_ext.tensor import Tensor as Tensor
from fastbp_ext.tensor import from_numpy as from_numpy
from fastbp_ext.tensor import no_grad as no_grad
from fastbp_ext.tensor import tensor as tensor

gate = grouped

# Every row of fastbp.gates is a function of the package.
def __getattr__(name: str) -> Gate: ...
