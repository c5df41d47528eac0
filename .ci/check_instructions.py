"""Each instruction set's kernels keep to its registers, and those of elementwise gates are packed arithmetic.

The compiled modules are stripped: a kernel's code is found by the address in the module's TABLE,
and followed from there, jump by jump. Needs objdump (binutils); x86-64 only.
"""
import importlib
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from fastbp.gates import GATES, INTERNAL
from fastbp_ext import cpu

# What no instruction of the module may be or use.
NEVER = {
    "baseline": r"%[yz]mm|%k[0-7]|^v(?!er[rw])|^(sh[lr]|sar|mul|ror)x\b|^(pdep|pext|andn|bzhi)\b",
    "avx2": r"%zmm|%k[0-7]|%[xy]mm(1[6-9]|2\d|3\d)",
}
WIDE = {"baseline": "%xmm", "avx2": "%ymm", "avx512": "%zmm"}
# Arithmetic on a vector of floats or on their bits, or a choice between two vectors.
PACKED = (r"v?(add|sub|mul|div|sqrt|max|min|andn?|or|xor|cmp\w*|blend[vm]?|fn?m(add|sub)\d*)p[sd]\b"
          r"|v?p(andn?|or|xor|ternlog)[dq]?\b|vmovup[sd] .*%k")
SINGLE = r"v?(add|sub|mul|div|sqrt|max|min|fn?m(add|sub)\d*)s[sd]\b"    # one float at a time
SCALAR = {"number_pow"}    # of Python numbers, by the C library


def disassemble(path):
    """{address: (instruction, the next one's address)}"""
    listing = subprocess.run(["objdump", "-d", "--no-show-raw-insn", path], capture_output=True, text=True, check=True)
    found = [(int(at, 16), words) for at, words in re.findall(r"^ *([0-9a-f]+):\t(.*)$", listing.stdout, re.M)]
    return {at: (words, after) for (at, words), (after, _) in zip(found, found[1:] + [(None, "")], strict=True)}


JUMP = re.compile(r"j\w+ +([0-9a-f]+)\b")


def function(code, start):
    """The instructions from an address on, whichever way jumps go, without the functions that are called."""
    seen, left = {}, [start]
    while left:
        at = left.pop()
        while at in code and at not in seen:
            seen[at], after = code[at]
            jump = JUMP.match(seen[at])
            if jump:
                left.append(int(jump[1], 16))
            at = None if re.match(r"(ret|jmp|hlt|ud2)\b", seen[at]) else after
    return seen


def loops(body):
    """The instructions between a jump back and where it goes to."""
    for at, words in body.items():
        jump = JUMP.match(words)
        if jump and int(jump[1], 16) <= at:
            yield [inside for place, inside in body.items() if int(jump[1], 16) <= place <= at]


def is_packed(loop, isa):
    """Whether it works on vectors, and nowhere on one float at a time."""
    return (any(re.match(PACKED, words) and WIDE[isa] in words for words in loop)
            and not any(re.match(SINGLE, words) for words in loop))


def load_address(path):
    """Where the file begins in this process."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    return min(int(line[0].split("-")[0], 16) for line in lines if line[-1] == path and line[2] == "00000000")


def problems(isa):
    module = importlib.import_module(f"fastbp_ext.kernels.{isa}")
    code, base = disassemble(module.__file__), load_address(module.__file__)
    strays = [words for words, _ in code.values() if isa in NEVER and re.search(NEVER[isa], words)]
    if strays:
        yield f"{len(strays)} instructions of another set, such as {strays[0]}"
    if not any(WIDE[isa] in words for words, _ in code.values()):
        yield f"no {WIDE[isa]}"
    kernels = {gate.kernel for gate in {**GATES, **INTERNAL}.values() if getattr(gate, "form", "") == "elementwise"}
    for dtype in ("float32", "float64"):
        for name in sorted(kernels - SCALAR):
            body = function(code, module.TABLE[dtype][name] - base)
            if not any(is_packed(loop, isa) for loop in loops(body)):
                yield f"{name}, {dtype}: no loop of packed arithmetic in {len(body)} instructions"
    print(f"{isa}: {len(code):,} instructions, {len(kernels)} elementwise kernels of float and double")


def main():
    if platform.machine() != "x86_64" or not shutil.which("objdump"):
        print("skipped: x86-64 and objdump are needed")
        return 0
    failed = False
    for isa in cpu.supported():
        for problem in problems(isa):
            print(f"{isa}: {problem}")
            failed = True
    return failed


if __name__ == "__main__":
    sys.exit(main())
