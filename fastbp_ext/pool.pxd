ctypedef void (*fb_task)(void* context, int rank, int threads) noexcept nogil

# Run task(context, rank, threads) on so many threads, the caller as rank 0, without the interpreter's
# lock. False at once, with nothing run, where the caller has to do it alone: the pool is busy with
# another thread's job or with the one that asks, has ended, or cannot start its threads.
cdef bint pool_run(fb_task task, void* context, int threads) noexcept nogil

# Inside a task: wait until all of its threads are here. What they wrote before is seen after.
cdef void pool_barrier(int rank) noexcept nogil

# The most threads that a job may have. The first call may take the interpreter's lock.
cdef int pool_size() noexcept nogil
