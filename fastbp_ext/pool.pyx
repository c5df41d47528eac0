"""The threads of the process; a task knows no kernel and no tensor."""
from libc.stdint cimport uintptr_t
from libc.stdlib cimport calloc, free

from fastbp_ext.abi cimport fb_flush_begin, fb_flush_end

import atexit
import os

cdef extern from "pool.h" nogil:
    enum:
        FB_POOL_THREADS
    bint fb_pool_prepare()
    bint fb_pool_run(fb_task task, void* context, int threads, int processors)
    void fb_pool_barrier(int rank)
    bint fb_pool_close(double seconds)

cdef extern from "<pthread.h>" nogil:
    uintptr_t pthread_self()

MOST = FB_POOL_THREADS
cdef int size = 0          # 0: not yet known
cdef bint chosen = False   # by the user, not by the machine
cdef int processors = 1
cdef object find_size = None


cdef bint pool_run(fb_task task, void* context, int threads) noexcept nogil:
    return fb_pool_run(task, context, threads, processors)


cdef void pool_barrier(int rank) noexcept nogil:
    fb_pool_barrier(rank)


cdef int pool_size() noexcept nogil:
    return size if size else first_size()


cdef int first_size() noexcept with gil:
    global size, processors
    if find_size is not None:
        found = find_size()
        if not chosen:    # meanwhile, by another thread
            size, processors = found
    return size if size else 1


def on_first_use(function):
    """function() -> (threads, processors) is asked once, when the size is first needed, and in a forked child anew."""
    global find_size
    find_size = function


def set_size(int threads, int processors_here):
    """So many threads at most from now on, whatever the machine has."""
    global size, processors, chosen
    size, processors, chosen = threads, processors_here, True


def limit(int threads):
    """So many threads for now: unlike `set_size`, for a measurement."""
    global size
    size = threads


def get_size():
    """The most threads that a job may have."""
    return pool_size()


# --- fork, and the end

if not fb_pool_prepare():
    raise MemoryError("no memory for the pool")


def end():
    """End the threads and start no more. A job at work is waited for, two seconds at most; then False."""
    cdef bint done
    with nogil:
        done = fb_pool_close(2.0)
    return done


atexit.register(end)


def _after_fork():
    global size
    if not chosen:
        size = 0    # the child may have been given other processors


os.register_at_fork(after_in_child=_after_fork)


# --- a job that checks the pool

cdef struct Drill:
    Py_ssize_t rounds
    int threads
    Py_ssize_t* at       # for each rank the round in which it is, a line apart
    uintptr_t* thread    # which thread ran it
    int* runs            # how often
    int* faults
    double tiny


cdef void nothing(void* context, int rank, int threads) noexcept nogil:
    pass


cdef void drill(void* context, int rank, int threads) noexcept nogil:
    cdef Drill* d = <Drill*> context
    cdef Py_ssize_t n, other
    d.thread[rank] = pthread_self()
    d.runs[rank] += 1
    d.faults[rank] += threads != d.threads
    d.faults[rank] += pool_run(nothing, NULL, 2)
    d.faults[rank] += rank > 0 and d.tiny * 0.5 == 0    # denormals are kept, whatever the caller does
    for n in range(1, d.rounds + 1):
        d.at[8 * rank] = n
        pool_barrier(rank)
        for other in range(threads):
            d.faults[rank] += d.at[8 * other] != n
        pool_barrier(rank)


def exercise(int threads, Py_ssize_t rounds=1000):
    """Check the pool: one job that goes through so many rounds in step, two barriers each.

    Returns the ident of each rank's thread, the caller's first; None where the pool was not to be had.
    SystemError: a rank did not run once, was out of step, got the caller's floating-point mode, or
    started a job inside this one.
    """
    if not 1 <= threads <= FB_POOL_THREADS:
        raise ValueError(f"exercise: threads is 1 to {MOST}, not {threads}")
    cdef Drill d = Drill(
        rounds, threads, <Py_ssize_t*> calloc(8 * threads, sizeof(Py_ssize_t)),
        <uintptr_t*> calloc(threads, sizeof(uintptr_t)), <int*> calloc(threads, sizeof(int)),
        <int*> calloc(threads, sizeof(int)), 1e-310)
    cdef bint ran
    cdef unsigned mode
    cdef int r
    pool_size()
    try:
        if d.at == NULL or d.thread == NULL or d.runs == NULL or d.faults == NULL:
            raise MemoryError("no memory for an exercise")
        with nogil:
            mode = fb_flush_begin(True)
            ran = pool_run(drill, &d, threads)
            fb_flush_end(mode)
        faults = [(r, d.runs[r], d.faults[r]) for r in range(threads) if d.runs[r] != ran or d.faults[r]]
        if faults:
            raise SystemError(f"the pool is out of step: (rank, runs, faults) {faults}")
        return [d.thread[r] for r in range(threads)] if ran else None
    finally:
        free(d.at)
        free(d.thread)
        free(d.runs)
        free(d.faults)
