from fastbp_ext.program cimport Executor
from fastbp_ext.tensor cimport Tensor

cdef int lower_elementwise(Executor to, void* kernel, int outputs, int pointers, int n, void** operands,
                           const double* c, bint placed=*) except -1
cdef int lower_copy(Executor to, Tensor y, Tensor x) except -1
cdef int lower_reduce(Executor to, void* kernel, Tensor y, Tensor x, object axes, bint average, Tensor z=*,
                      Tensor m=*) except -1
cdef int lower_fold(Executor to, void* kernel, Tensor y, Tensor x, bint blocks, double count) except -1
cdef int lower_columns(Executor to, void* kernel, Tensor y, Tensor x, double count) except -1
cdef int lower_product(Executor to, void* kernel, Tensor y, Tensor x, Tensor w, Tensor b) except -1
cdef int lower_rows(Executor to, void* kernel, int outputs, int n, void** operands, const double* c) except -1
cdef int lower_take(Executor to, Tensor y, Tensor x, tuple indices, int axis) except -1
cdef int lower_scatter(Executor to, void* kernel, Tensor y, Tensor dy, tuple indices, int axis) except -1
cdef int lower_state(Executor to, void* kernel, tuple states) except -1
cdef int lower_scan(Executor to, void* kernel, int n, void** operands, Py_ssize_t steps, const double* c) except -1
cdef int lower_windows(Executor to, void* kernel, Tensor y, tuple xs, tuple space, tuple geometry,
                       Py_ssize_t units) except -1
