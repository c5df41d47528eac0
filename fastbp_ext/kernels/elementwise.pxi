# Elementwise gates. The maths of a gate is a function of vectors; `unary`, `binary` and
# `ternary` are the loops around it (the compiler inlines both into the kernel, which is
# therefore one loop of vector instructions). An inner kernel sees contiguous operands only:
# `elementwise_strided` brings all others, tile by tile.
#
# An inner kernel `name(p, n, c)`: p[0] is the output y, the others are inputs x, n elements
# each; c holds the gate's constants. y may be one of the inputs, element for element.
from libc.math cimport pow as libm_pow

ctypedef vec (*unary_gate)(vec x, const double* c) noexcept nogil
ctypedef vec (*binary_gate)(vec x, vec y, const double* c) noexcept nogil
ctypedef vec (*ternary_gate)(vec x, vec y, vec z) noexcept nogil
ctypedef mask (*comparison)(vec x, vec y) noexcept nogil


cdef inline void unary(char** p, Py_ssize_t n, const double* c, unary_gate f) noexcept nogil:
    cdef real* y = <real*> p[0]
    cdef real* x = <real*> p[1]
    cdef Py_ssize_t i = 0
    while i + LANES <= n:
        store_all(y + i, f(load_all(x + i), c))
        i += LANES
    if i < n:
        store_rest(y + i, f(load_rest(x + i, n - i), c), n - i)


cdef inline void unary_long(char** p, Py_ssize_t n, const double* c, unary_gate f) noexcept nogil:
    """`unary` for a gate of many steps, each of which waits for the last: some vectors side by side."""
    cdef real* y = <real*> p[0]
    cdef real* x = <real*> p[1]
    cdef vec v0, v1, v2, v3
    cdef char* rest[2]
    while n >= ABREAST * LANES:
        v0 = f(load_all(x), c)
        v1 = f(load_all(x + LANES), c)
        if ABREAST > 2:
            v2 = f(load_all(x + 2 * LANES), c)
            v3 = f(load_all(x + 3 * LANES), c)
        store_all(y, v0)
        store_all(y + LANES, v1)
        if ABREAST > 2:
            store_all(y + 2 * LANES, v2)
            store_all(y + 3 * LANES, v3)
        x += ABREAST * LANES
        y += ABREAST * LANES
        n -= ABREAST * LANES
    rest[0] = <char*> y
    rest[1] = <char*> x
    unary(rest, n, c, f)


cdef inline void binary(char** p, Py_ssize_t n, const double* c, binary_gate f) noexcept nogil:
    cdef real* z = <real*> p[0]
    cdef real* x = <real*> p[1]
    cdef real* y = <real*> p[2]
    cdef Py_ssize_t i = 0
    while i + LANES <= n:
        store_all(z + i, f(load_all(x + i), load_all(y + i), c))
        i += LANES
    if i < n:
        store_rest(z + i, f(load_rest(x + i, n - i), load_rest(y + i, n - i), c), n - i)


cdef inline void spread(char** p, Py_ssize_t n, const double* c, binary_gate f, int which) noexcept nogil:
    """`binary` where operand `which`, 1 or 2, is one value for all elements: it stays in a register."""
    cdef real* z = <real*> p[0]
    cdef real* x = <real*> p[3 - which]
    cdef vec a = splat((<real*> p[which])[0]), b
    while n > 0:
        b = load_all(x) if n >= LANES else load_rest(x, n)
        b = f(a, b, c) if which == 1 else f(b, a, c)
        if n >= LANES:
            store_all(z, b)
        else:
            store_rest(z, b, n)
        x += LANES
        z += LANES
        n -= LANES


cdef inline void ternary(char** p, Py_ssize_t n, ternary_gate f) noexcept nogil:
    cdef real* y = <real*> p[0]
    cdef real* a = <real*> p[1]
    cdef real* b = <real*> p[2]
    cdef real* x = <real*> p[3]
    cdef Py_ssize_t i = 0
    while i + LANES <= n:
        store_all(y + i, f(load_all(a + i), load_all(b + i), load_all(x + i)))
        i += LANES
    if i < n:
        store_rest(y + i, f(load_rest(a + i, n - i), load_rest(b + i, n - i), load_rest(x + i, n - i)), n - i)


cdef inline void compare(char** p, Py_ssize_t n, comparison f) noexcept nogil:
    cdef unsigned char* z = <unsigned char*> p[0]
    cdef real* x = <real*> p[1]
    cdef real* y = <real*> p[2]
    cdef Py_ssize_t i = 0
    while i + LANES <= n:
        store_mask_all(z + i, f(load_all(x + i), load_all(y + i)))
        i += LANES
    if i < n:
        store_mask(z + i, f(load_part(x + i, n - i), load_part(y + i, n - i)), n - i)


# --- arithmetic

cdef inline vec v_neg(vec x, const double* c) noexcept nogil: return -x
cdef inline vec v_abs(vec x, const double* c) noexcept nogil: return vabs(x)
cdef inline vec v_sqrt(vec x, const double* c) noexcept nogil: return sqrt(x)
cdef inline vec v_square(vec x, const double* c) noexcept nogil: return x * x
cdef inline vec v_reciprocal(vec x, const double* c) noexcept nogil: return splat(1) / x
cdef inline vec v_exp(vec x, const double* c) noexcept nogil: return exp(x)
cdef inline vec v_expm1(vec x, const double* c) noexcept nogil: return expm1(x)
cdef inline vec v_log(vec x, const double* c) noexcept nogil: return log(x)
cdef inline vec v_log1p(vec x, const double* c) noexcept nogil: return log1p(x)
cdef inline vec v_erf(vec x, const double* c) noexcept nogil: return erf(x)
cdef inline vec v_sign(vec x, const double* c) noexcept nogil:
    # NaN compares with nothing and so stays itself; zero keeps its sign.
    return select(lt(splat(0), x), splat(1), select(lt(x, splat(0)), splat(-1), x))

cdef inline vec v_add(vec x, vec y, const double* c) noexcept nogil: return x + y
cdef inline vec v_sub(vec x, vec y, const double* c) noexcept nogil: return x - y
cdef inline vec v_mul(vec x, vec y, const double* c) noexcept nogil: return x * y
cdef inline vec v_div(vec x, vec y, const double* c) noexcept nogil: return x / y
cdef inline vec v_pow(vec x, vec y, const double* c) noexcept nogil: return power(x, y)
cdef inline vec v_maximum(vec x, vec y, const double* c) noexcept nogil: return vmax(x, y)
cdef inline vec v_minimum(vec x, vec y, const double* c) noexcept nogil: return vmin(x, y)

cdef inline void neg(char** p, Py_ssize_t n, const double* c) noexcept nogil: unary(p, n, c, v_neg)
cdef inline void absolute(char** p, Py_ssize_t n, const double* c) noexcept nogil: unary(p, n, c, v_abs)
cdef inline void square_root(char** p, Py_ssize_t n, const double* c) noexcept nogil: unary(p, n, c, v_sqrt)
cdef inline void square(char** p, Py_ssize_t n, const double* c) noexcept nogil: unary(p, n, c, v_square)
cdef inline void reciprocal(char** p, Py_ssize_t n, const double* c) noexcept nogil: unary(p, n, c, v_reciprocal)
cdef inline void sign(char** p, Py_ssize_t n, const double* c) noexcept nogil: unary(p, n, c, v_sign)
cdef inline void exponential(char** p, Py_ssize_t n, const double* c) noexcept nogil: unary_long(p, n, c, v_exp)
cdef inline void exponential_m1(char** p, Py_ssize_t n, const double* c) noexcept nogil: unary_long(p, n, c, v_expm1)
cdef inline void logarithm(char** p, Py_ssize_t n, const double* c) noexcept nogil: unary_long(p, n, c, v_log)
cdef inline void logarithm_1p(char** p, Py_ssize_t n, const double* c) noexcept nogil: unary_long(p, n, c, v_log1p)
cdef inline void error_function(char** p, Py_ssize_t n, const double* c) noexcept nogil: unary(p, n, c, v_erf)
cdef inline void add(char** p, Py_ssize_t n, const double* c) noexcept nogil: binary(p, n, c, v_add)
cdef inline void sub(char** p, Py_ssize_t n, const double* c) noexcept nogil: binary(p, n, c, v_sub)
cdef inline void mul(char** p, Py_ssize_t n, const double* c) noexcept nogil: binary(p, n, c, v_mul)
cdef inline void div(char** p, Py_ssize_t n, const double* c) noexcept nogil: binary(p, n, c, v_div)
cdef inline void pow(char** p, Py_ssize_t n, const double* c) noexcept nogil: binary(p, n, c, v_pow)
cdef inline void maximum(char** p, Py_ssize_t n, const double* c) noexcept nogil: binary(p, n, c, v_maximum)
cdef inline void minimum(char** p, Py_ssize_t n, const double* c) noexcept nogil: binary(p, n, c, v_minimum)

cdef inline vec v_clip(vec x, vec low, vec high) noexcept nogil: return vmin(vmax(x, low), high)
cdef inline vec v_mul_add(vec x, vec y, vec z) noexcept nogil: return x * y + z    # rounded twice, as mul and add
cdef inline void clip(char** p, Py_ssize_t n, const double* c) noexcept nogil: ternary(p, n, v_clip)
cdef inline void mul_add(char** p, Py_ssize_t n, const double* c) noexcept nogil: ternary(p, n, v_mul_add)

cdef inline void where(char** p, Py_ssize_t n, const double* c) noexcept nogil:
    """z = x where the condition holds, else y; p: z, condition (bytes), x, y."""
    cdef real* z = <real*> p[0]
    cdef unsigned char* condition = <unsigned char*> p[1]
    cdef real* x = <real*> p[2]
    cdef real* y = <real*> p[3]
    cdef Py_ssize_t i = 0
    while i + LANES <= n:
        store_all(z + i, select(load_mask_all(condition + i), load_all(x + i), load_all(y + i)))
        i += LANES
    if i < n:
        store_part(z + i, select(load_mask(condition + i, n - i), load_part(x + i, n - i), load_part(y + i, n - i)),
                   n - i)


cdef inline void number_pow(char** p, Py_ssize_t n, const double* c) noexcept nogil:
    """z = x^y of Python numbers, by the C library as Python computes it; p: z, x, y."""
    cdef Py_ssize_t i
    for i in range(n):
        (<real*> p[0])[i] = <real> libm_pow((<real*> p[1])[i], (<real*> p[2])[i])


# --- comparisons: bytes of 0 and 1

cdef inline mask m_lt(vec x, vec y) noexcept nogil: return lt(x, y)
cdef inline mask m_le(vec x, vec y) noexcept nogil: return le(x, y)
cdef inline mask m_gt(vec x, vec y) noexcept nogil: return lt(y, x)
cdef inline mask m_ge(vec x, vec y) noexcept nogil: return le(y, x)
cdef inline mask m_eq(vec x, vec y) noexcept nogil: return eq(x, y)
cdef inline mask m_ne(vec x, vec y) noexcept nogil: return ne(x, y)
cdef inline void less(char** p, Py_ssize_t n, const double* c) noexcept nogil: compare(p, n, m_lt)
cdef inline void less_equal(char** p, Py_ssize_t n, const double* c) noexcept nogil: compare(p, n, m_le)
cdef inline void greater(char** p, Py_ssize_t n, const double* c) noexcept nogil: compare(p, n, m_gt)
cdef inline void greater_equal(char** p, Py_ssize_t n, const double* c) noexcept nogil: compare(p, n, m_ge)
cdef inline void equal(char** p, Py_ssize_t n, const double* c) noexcept nogil: compare(p, n, m_eq)
cdef inline void not_equal(char** p, Py_ssize_t n, const double* c) noexcept nogil: compare(p, n, m_ne)


# --- activations and the gradients worth a kernel of their own

cdef inline vec v_sigmoid(vec x, const double* c) noexcept nogil: return sigmoid(x)
cdef inline vec v_tanh(vec x, const double* c) noexcept nogil: return tanh(x)
cdef inline vec v_softplus(vec x, const double* c) noexcept nogil: return softplus(x)
cdef inline vec v_silu(vec x, const double* c) noexcept nogil: return silu(x)
cdef inline vec v_gelu(vec x, const double* c) noexcept nogil: return gelu(x)
cdef inline vec v_gelu_tanh(vec x, const double* c) noexcept nogil: return gelu_tanh(x)
cdef inline vec v_relu(vec x, const double* c) noexcept nogil: return atleast(x, splat(0))    # NaN stays
cdef inline vec v_leaky_relu(vec x, const double* c) noexcept nogil:
    return select(lt(splat(0), x), x, splat(c[0]) * x)
cdef inline vec v_elu(vec x, const double* c) noexcept nogil:
    return select(lt(splat(0), x), x, splat(c[0]) * expm1(x))
cdef inline vec v_relu_grad(vec dy, vec y, const double* c) noexcept nogil:
    return select(le(y, splat(0)), splat(0), dy)
cdef inline vec v_sigmoid_grad(vec dy, vec y, const double* c) noexcept nogil:
    return dy * (y * (splat(1) - y))
cdef inline vec v_tanh_grad(vec dy, vec y, const double* c) noexcept nogil:
    # 1 - y^2, without the cancellation near |y| = 1
    return dy * ((splat(1) - y) * (splat(1) + y))

cdef inline void sigmoid_(char** p, Py_ssize_t n, const double* c) noexcept nogil: unary_long(p, n, c, v_sigmoid)
cdef inline void tanh_(char** p, Py_ssize_t n, const double* c) noexcept nogil: unary_long(p, n, c, v_tanh)
cdef inline void softplus_(char** p, Py_ssize_t n, const double* c) noexcept nogil: unary_long(p, n, c, v_softplus)
cdef inline void silu_(char** p, Py_ssize_t n, const double* c) noexcept nogil: unary_long(p, n, c, v_silu)
cdef inline void gelu_(char** p, Py_ssize_t n, const double* c) noexcept nogil: unary_long(p, n, c, v_gelu)
cdef inline void gelu_tanh_(char** p, Py_ssize_t n, const double* c) noexcept nogil: unary_long(p, n, c, v_gelu_tanh)
cdef inline void relu(char** p, Py_ssize_t n, const double* c) noexcept nogil: unary(p, n, c, v_relu)
cdef inline void leaky_relu(char** p, Py_ssize_t n, const double* c) noexcept nogil: unary(p, n, c, v_leaky_relu)
cdef inline void elu(char** p, Py_ssize_t n, const double* c) noexcept nogil: unary_long(p, n, c, v_elu)
cdef inline void relu_grad(char** p, Py_ssize_t n, const double* c) noexcept nogil: binary(p, n, c, v_relu_grad)
cdef inline void sigmoid_grad(char** p, Py_ssize_t n, const double* c) noexcept nogil: binary(p, n, c, v_sigmoid_grad)
cdef inline void tanh_grad(char** p, Py_ssize_t n, const double* c) noexcept nogil: binary(p, n, c, v_tanh_grad)


# --- where operand 1, or operand 2, is a single value: `lower_elementwise` finds these by their names

cdef inline void add_1(char** p, Py_ssize_t n, const double* c) noexcept nogil: spread(p, n, c, v_add, 1)
cdef inline void add_2(char** p, Py_ssize_t n, const double* c) noexcept nogil: spread(p, n, c, v_add, 2)
cdef inline void sub_1(char** p, Py_ssize_t n, const double* c) noexcept nogil: spread(p, n, c, v_sub, 1)
cdef inline void sub_2(char** p, Py_ssize_t n, const double* c) noexcept nogil: spread(p, n, c, v_sub, 2)
cdef inline void mul_1(char** p, Py_ssize_t n, const double* c) noexcept nogil: spread(p, n, c, v_mul, 1)
cdef inline void mul_2(char** p, Py_ssize_t n, const double* c) noexcept nogil: spread(p, n, c, v_mul, 2)
cdef inline void div_1(char** p, Py_ssize_t n, const double* c) noexcept nogil: spread(p, n, c, v_div, 1)
cdef inline void div_2(char** p, Py_ssize_t n, const double* c) noexcept nogil: spread(p, n, c, v_div, 2)
cdef inline void relu_grad_1(char** p, Py_ssize_t n, const double* c) noexcept nogil: spread(p, n, c, v_relu_grad, 1)
cdef inline void sigmoid_grad_1(char** p, Py_ssize_t n, const double* c) noexcept nogil:
    spread(p, n, c, v_sigmoid_grad, 1)
cdef inline void tanh_grad_1(char** p, Py_ssize_t n, const double* c) noexcept nogil: spread(p, n, c, v_tanh_grad, 1)


cdef inline dict elementwise_kernels():
    return {
        "neg": <size_t> &neg, "abs": <size_t> &absolute, "sqrt": <size_t> &square_root,
        "square": <size_t> &square, "reciprocal": <size_t> &reciprocal, "sign": <size_t> &sign,
        "exp": <size_t> &exponential, "expm1": <size_t> &exponential_m1,
        "log": <size_t> &logarithm, "log1p": <size_t> &logarithm_1p, "erf": <size_t> &error_function,
        "add": <size_t> &add, "sub": <size_t> &sub, "mul": <size_t> &mul, "div": <size_t> &div,
        "pow": <size_t> &pow, "number_pow": <size_t> &number_pow,
        "maximum": <size_t> &maximum, "minimum": <size_t> &minimum,
        "clip": <size_t> &clip, "where": <size_t> &where, "mul_add": <size_t> &mul_add,
        "lt": <size_t> &less, "le": <size_t> &less_equal, "eq": <size_t> &equal,
        "ne": <size_t> &not_equal, "gt": <size_t> &greater, "ge": <size_t> &greater_equal,
        "sigmoid": <size_t> &sigmoid_, "tanh": <size_t> &tanh_, "softplus": <size_t> &softplus_,
        "silu": <size_t> &silu_, "gelu": <size_t> &gelu_, "gelu_tanh": <size_t> &gelu_tanh_,
        "relu": <size_t> &relu, "leaky_relu": <size_t> &leaky_relu, "elu": <size_t> &elu,
        "relu_grad": <size_t> &relu_grad, "sigmoid_grad": <size_t> &sigmoid_grad,
        "tanh_grad": <size_t> &tanh_grad,
        "add.1": <size_t> &add_1, "add.2": <size_t> &add_2, "sub.1": <size_t> &sub_1, "sub.2": <size_t> &sub_2,
        "mul.1": <size_t> &mul_1, "mul.2": <size_t> &mul_2, "div.1": <size_t> &div_1, "div.2": <size_t> &div_2,
        "relu_grad.1": <size_t> &relu_grad_1,
        "sigmoid_grad.1": <size_t> &sigmoid_grad_1, "tanh_grad.1": <size_t> &tanh_grad_1,
    }
