"""Which instruction set the kernels use: asked of the CPU once, at import."""
import importlib
import os

cdef extern from *:
    """
    #if defined(__x86_64__)
    /* CPUID, and XGETBV: the operating system must keep the wide registers too. */
    static int has_avx2(void) {
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    }
    static int has_avx512(void) {
        return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    }
    #else
    static int has_avx2(void) { return 0; }
    static int has_avx512(void) { return 0; }
    #endif
    """
    bint has_avx2() nogil
    bint has_avx512() nogil


def supported():
    """The instruction sets of this CPU that there are kernels for, the best one last."""
    return ["baseline", *(["avx2"] if has_avx2() else []), *(["avx512"] if has_avx512() else [])]


def choose(wanted):
    """The instruction set to use: `wanted` if it is given, else the best one."""
    available = supported()
    if not wanted:
        return available[-1]
    if wanted not in available:
        raise ImportError(f"FASTBP_ISA={wanted}: this CPU has {', '.join(available)}; "
                          f"set it to one of these, or unset it")
    return wanted


ISA = choose(os.environ.get("FASTBP_ISA"))
# Only now: a module with instructions that the CPU lacks would kill the process.
TABLE = importlib.import_module(f"fastbp_ext.kernels.{ISA}").TABLE
