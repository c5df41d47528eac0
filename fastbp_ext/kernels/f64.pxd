# The kernels for double: the body, with its element and its vector type.
cdef extern from "simd.h" nogil:
    ctypedef double real "double"
    ctypedef double vec "vec_f64"
    ctypedef int mask "mask_f64"
    enum:
        LANES "LANES_f64"
    vec splat "splat_f64"(double c)
    bint any_of "any_f64"(mask m)
    mask load_mask "load_mask_f64"(const unsigned char* p, Py_ssize_t m)
    mask load_mask_all "load_mask_all_f64"(const unsigned char* p)
    void store_mask_all "store_mask_all_f64"(unsigned char* p, mask v)
    void store_mask "store_mask_f64"(unsigned char* p, mask v, Py_ssize_t m)

include "body.pxi"
