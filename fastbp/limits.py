"""What the hardware does at most: multiply-adds in a matrix product, and copies."""
import functools
import time

import numpy as np

import fastbp as fb


def best(function, least):
    """Seconds of the fastest call of those that fit in `least` seconds; three at least."""
    function()
    times, end = [], time.perf_counter() + least
    while len(times) < 3 or time.perf_counter() < end:
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return min(times)


@functools.cache
def multiply_adds(least=0.02, dtype="float32", numpy=True):
    """Multiply-adds a second: the best of fastbp's (by one thread) and NumPy's products of n x n matrices."""
    rates = []
    for n in (384, 768):
        x = np.random.default_rng(0).random((n, n), dtype)
        t, y = fb.tensor(x), np.empty_like(x)
        rates.append(n**3 / best(lambda t=t: t @ t, least))
        if numpy:
            rates.append(n**3 / best(lambda x=x, y=y: np.matmul(x, x, out=y), least))
    return max(rates)


def copy(size, least=0.005):
    """Seconds to read and write `size` bytes in all, the better of a copy and of a product in place."""
    return _copy(size, least, fb.get_num_threads())


@functools.cache
def _copy(size, least, threads):
    source, target = np.ones(size // 8, np.float32), np.ones(size // 8, np.float32)
    x, y = fb.from_numpy(source), fb.from_numpy(target)
    times = 1 + (1 << 18) // size    # small ones many times in one call

    @fb.staged
    def copied():
        y.copy_(x)

    return min(best(lambda: copied.repeat(times), least) / times,
               best(lambda: np.multiply(target, 1.0, out=target), least))
