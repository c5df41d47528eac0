"""Build of the compiled parts. Everything else about the project is in pyproject.toml."""
import os
import platform
from glob import glob

from setuptools import Extension, setup

DEBUG = os.environ.get("FASTBP_DEBUG", "") not in ("", "0")

# The one place of compiler directives. The debug build turns the checks on.
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": DEBUG,
    "initializedcheck": DEBUG,
    "cdivision": True,
    "auto_pickle": False,
    "autotestdict": False,
    "embedsignature": True,
}

# Products and sums stay apart (the bits rule), and nothing here may ever be
# -ffast-math or -Ofast: at link they change denormals for the whole process.
FLAGS = ["-O3", "-g0", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
         "-Wno-maybe-uninitialized"]
LINK_FLAGS = ["-Wl,-s"] if platform.system() == "Linux" else []
if DEBUG:
    FLAGS, LINK_FLAGS = [*FLAGS, "-g", "-DFASTBP_DEBUG=1"], []
else:    # nothing throws, and a debugger has the debug build: 4 % of the wheel
    FLAGS.append("-fno-asynchronous-unwind-tables")
FLAGS += os.environ.get("FASTBP_CFLAGS", "").split()    # the last word: .ci/sanitize

# A kernel is a loop that is handed its gate or fold as a function: only inlined is it one loop of
# vector instructions, and compilers stop at some size of their own. Where it takes several vectors
# side by side, the steps of each are wanted between those of the others: a processor looks ahead
# less far than such a function is long. -O3 would copy loops for special cases, a tenth of the size for no time.
KERNEL_FLAGS = ["-O2", "-DCYTHON_INLINE=inline __attribute__((always_inline))", "-fschedule-insns", "-fsched-pressure"]

INSTRUCTION_SETS = {"baseline": ["-fpeel-loops"]}
if platform.machine() in ("x86_64", "AMD64"):
    # Few machines have no AVX2: there the wheel's size counts (only sums take longer, twice).
    INSTRUCTION_SETS["baseline"] = []
    INSTRUCTION_SETS["avx2"] = ["-fpeel-loops", "-mavx2", "-mfma", "-mbmi2"]
    INSTRUCTION_SETS["avx512"] = [
        "-fpeel-loops", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mbmi2",
        "-mprefer-vector-width=512",
    ]

KERNEL_PARTS = sorted(
    glob("fastbp_ext/*.pxd")
    + glob("fastbp_ext/*.h")
    + [part for end in ("h", "pxi", "pxd") for part in glob(f"fastbp_ext/kernels/*.{end}")]
)


def extension(name: str, *flags: str) -> Extension:
    module = Extension(
        f"fastbp_ext.{name}",
        [f"fastbp_ext/{name.replace('.', '/')}.pyx"],
        depends=KERNEL_PARTS,
        include_dirs=["fastbp_ext", "fastbp_ext/kernels"],
        extra_compile_args=[*FLAGS, *flags],
        extra_link_args=LINK_FLAGS,
    )
    module.cython_directives = DIRECTIVES
    return module


setup(
    ext_modules=[
        # Calls and branches: what is smaller is as fast, but for the call of a small program.
        *(extension(name, "-O2") for name in ("cpu", "gate", "lower", "pool", "schedule", "tensor")),
        *(extension(name) for name in ("program", "replay")),
        *(extension(f"kernels.{isa}", *KERNEL_FLAGS, *flags) for isa, flags in INSTRUCTION_SETS.items()),
    ],
    options={"build_ext": {"cython_c_in_temp": True, "parallel": os.cpu_count()}},
)
