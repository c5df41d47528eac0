# The kernels for float: the body, with its element and its vector type.
cdef extern from "simd.h" nogil:
    ctypedef float real "float"
    ctypedef float vec "vec_f32"
    ctypedef int mask "mask_f32"
    enum:
        LANES "LANES_f32"
    vec splat "splat_f32"(double c)
    bint any_of "any_f32"(mask m)
    mask load_mask "load_mask_f32"(const unsigned char* p, Py_ssize_t m)
    mask load_mask_all "load_mask_all_f32"(const unsigned char* p)
    void store_mask_all "store_mask_all_f32"(unsigned char* p, mask v)
    void store_mask "store_mask_f32"(unsigned char* p, mask v, Py_ssize_t m)

include "body.pxi"
