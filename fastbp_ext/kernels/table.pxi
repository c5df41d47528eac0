# One table of function pointers: {dtype: {kernel: address}}. "int64" holds all that does not
# depend on the floating type. (Written as `cimport a.b as b`: Cython's search for what a
# module depends on reads no other form, and would not compile it anew.)
cimport fastbp_ext.kernels.f32 as f32
cimport fastbp_ext.kernels.f64 as f64
cimport fastbp_ext.kernels.strided as strided

TABLE = {"float32": f32.kernels(), "float64": f64.kernels(), "int64": strided.strided_kernels()}
