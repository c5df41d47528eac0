# The kernels, by family. f32.pxd and f64.pxd include this file, and so give
# every function two forms; baseline.pyx, avx2.pyx and avx512.pyx compile both.
from fastbp_ext.abi cimport FB_CONSTANTS, FB_DIMS, FB_OPERANDS, FB_TILE, fb_instruction
from fastbp_ext.kernels.scan cimport cell, cell_rows, multiplication, scan, scan_back
from fastbp_ext.kernels.strided cimport walk
from libc.stdint cimport int64_t
from libc.string cimport memcpy, memset

include "vector.pxi"
include "elementwise.pxi"
include "reduce.pxi"
include "softmax.pxi"
include "normalize.pxi"
include "index.pxi"
include "update.pxi"
include "random.pxi"
include "matmul.pxi"
include "convolution.pxi"
include "recurrent.pxi"

cdef inline dict kernels():
    """Every kernel's address by its name."""
    return {**elementwise_kernels(), **reduce_kernels(), **softmax_kernels(), **normalize_kernels(), **index_kernels(),
            **update_kernels(), **random_kernels(), **matmul_kernels(), **convolution_kernels(),
            **recurrent_kernels()}
