"""IDX, the file format of MNIST: 0, 0, type, ndim, the sizes, the elements, all big-endian."""
import gzip
import math
import os
import struct
import sys
import zlib
from collections.abc import Callable
from io import BufferedIOBase

import numpy as np

from fastbp.errors import error

_DTYPES = {
    code: np.dtype(name)
    for code, name in
    {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}.items()
}
_MAX_NDIM = 32  # what every NumPy has
_INFLATION = 1032  # deflate's best: two bits for 258 bytes


def load_idx(path: str | os.PathLike) -> np.ndarray:
    """The array in an IDX file, gzipped or not (told by its first bytes, not by its name).

    Any shape of 1 to 32 dimensions; uint8, int8, int16, int32, float32 or float64, in native
    byte order; writable. The format is the one at http://yann.lecun.com/exdb/mnist.
    ValueError for a file that is not IDX, is cut off, damaged, or longer than its sizes say:
    these are held against the length of the file before anything of that size is allocated.
    OSError (FileNotFoundError, IsADirectoryError, ...) for one that can't be opened.
    """
    path = os.fsdecode(path)

    def bad(got: str, expected: str) -> Exception:
        return error(
            ValueError, f"load_idx: {path!r} is not a whole IDX file", got=got,
            expected=expected, fix="copy or download the file again",
        )

    try:
        with open(path, "rb") as file:
            length = os.fstat(file.fileno()).st_size
            if file.peek(2)[:2] != b"\x1f\x8b":
                return _read(file, length, bad)
            with gzip.open(file) as unzipped:
                return _read(unzipped, length * _INFLATION, bad)
    except (EOFError, gzip.BadGzipFile, zlib.error) as problem:
        raise bad(f"{type(problem).__name__}: {problem}", "a whole gzip stream") from problem
    except OSError as problem:
        raise error(
            type(problem), f"load_idx: cannot read {path!r}", got=problem.strerror,
            expected="a file in IDX format", fix="check the path",
        ) from problem


def _read(file: BufferedIOBase, limit: int, bad: Callable[[str, str], Exception]) -> np.ndarray:
    """The array in `file`, which can't hold more than `limit` bytes."""
    magic = file.read(4)
    if not (len(magic) == 4 and magic[:2] == b"\0\0" and magic[2] in _DTYPES
            and 1 <= magic[3] <= _MAX_NDIM):
        raise bad(
            f"first bytes {magic.hex(' ') or 'none'}",
            f"00 00, a type of {bytes(_DTYPES).hex(' ')}, 1 to {_MAX_NDIM} dimensions",
        )
    dtype, ndim = _DTYPES[magic[2]], magic[3]
    sizes = file.read(4 * ndim)
    if len(sizes) < 4 * ndim:
        raise bad(f"{len(sizes)} bytes of sizes", f"{4 * ndim}, for {ndim} dimensions")
    shape = struct.unpack(f">{ndim}i", sizes)
    if min(shape) < 0:
        raise bad(f"sizes {shape}", "sizes of 0 or more")
    promised = math.prod(shape) * dtype.itemsize
    # Sizes beside a 0 promise nothing, but NumPy still has to multiply them.
    span = math.prod(max(size, 1) for size in shape) * dtype.itemsize
    room = limit - 4 - 4 * ndim
    if promised > room or span > sys.maxsize:
        raise bad(f"sizes {shape}, or {promised} bytes", f"no more than the file's own {room}")
    data = np.empty(promised, np.uint8)
    count = file.readinto(data.data)
    if count < promised:
        raise bad(f"{count} bytes of elements", f"{promised}, for sizes {shape}")
    if file.read(1):
        raise bad("more bytes after the last element", f"{promised}, for sizes {shape}")
    return data.view(dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)
