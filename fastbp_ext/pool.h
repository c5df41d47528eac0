/* The engine's own threads. A job is one function that every thread of it runs, the caller as
   rank 0; its threads meet at barriers. Workers are started by the first job that wants them,
   spin for a while after each and then sleep; they never take the interpreter's lock.

   Linux sleeps in a futex, other systems on a condition variable. */
#ifndef FASTBP_POOL_H
#define FASTBP_POOL_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#if defined(__linux__) && !defined(FB_NO_FUTEX)
#include <linux/futex.h>
#define FB_FUTEX 1
#else
#define FB_FUTEX 0
#endif
#if defined(__linux__)
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

enum {
    FB_POOL_THREADS = 1024,
    FB_STACK = 1 << 20,
    FB_LINE = 128,
    /* Awake before they sleep: to wake a thread takes 5 us, and 50 in virtual machines. */
    FB_AWAKE_BETWEEN_JOBS = 50000,
    FB_AWAKE_AT_BARRIER = 100000,
};

typedef void (*fb_task)(void *context, int rank, int threads);

/* The symbols' first versions: those of glibc 2.34, where they moved to another library, would ask for it. */
#if defined(__GLIBC__) && !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
#if defined(__x86_64__)
#define FB_FIRST(name) __asm__(".symver " #name ", " #name "@GLIBC_2.2.5")
#elif defined(__aarch64__)
#define FB_FIRST(name) __asm__(".symver " #name ", " #name "@GLIBC_2.17")
#endif
#endif
#ifdef FB_FIRST
FB_FIRST(pthread_create);
FB_FIRST(pthread_join);
FB_FIRST(pthread_sigmask);
FB_FIRST(pthread_attr_setstacksize);
#endif

/* A number that threads wait to see grow: even, the lowest bit says that some of them sleep. */
typedef _Atomic uint32_t fb_word;

enum { FB_IDLE = 0, FB_RUN = 2, FB_END = 4 }; /* a worker's word */

typedef struct {
    _Alignas(FB_LINE) fb_word word;
    uint32_t target; /* what `arrived` is once all threads are at the barrier where this one is */
    int rank;
#if defined(__linux__)
    _Atomic int asleep; /* the thread's id while it is, or soon will be */
    int confined;       /* for its wake-up; else it may run where `allowed` */
    cpu_set_t allowed;
#endif
    pthread_t thread;
} fb_worker;

static struct {
    /* The job: written before its workers are set off, and only read by them. */
    _Alignas(FB_LINE) fb_task task;
    void *context;
    int threads;
    int crowded; /* more threads than processors */
    _Atomic int sleepers;
    /* Grows by 2 when a thread comes to a barrier. One word: for few threads the fastest. */
    _Alignas(FB_LINE) fb_word arrived;
    /* Who has `busy` owns the pool: all that is here. Once closed nobody gives it back. */
    _Alignas(FB_LINE) _Atomic int busy;
    _Atomic int closed;
    int workers;
#if !FB_FUTEX
    pthread_mutex_t mutex;
    pthread_cond_t changed;
#endif
    fb_worker worker[FB_POOL_THREADS + 1]; /* by rank: the first stands for the caller */
} fb_pool
#if !FB_FUTEX
    = {.mutex = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER}
#endif
;

/* --- waiting */

/* Until the word is not `value`, or sooner. */
static void fb_sleep(fb_word *word, uint32_t value) {
#if FB_FUTEX
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
#else
    pthread_mutex_lock(&fb_pool.mutex);
    while (atomic_load_explicit(word, memory_order_relaxed) == value)
        pthread_cond_wait(&fb_pool.changed, &fb_pool.mutex);
    pthread_mutex_unlock(&fb_pool.mutex);
#endif
}

static void fb_wake(fb_word *word) {
#if FB_FUTEX
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
#else
    (void)word;
    pthread_mutex_lock(&fb_pool.mutex);
    pthread_cond_broadcast(&fb_pool.changed);
    pthread_mutex_unlock(&fb_pool.mutex);
#endif
}

static inline void fb_pause(void) {
#if defined(__SSE2__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

static int64_t fb_nanoseconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* A thread that sleeps, in a wait that cannot end yet, will wake on another processor than this one.
   Left to themselves, schedulers that see no shared cache or an idle processor as taken, as in virtual
   machines, wake it here, and the threads of a job take turns on one processor, for seconds. */
static void fb_keep_off(fb_worker *other) {
#if defined(__linux__)
    pid_t id = atomic_load_explicit(&other->asleep, memory_order_relaxed);
    if (id == 0 || (!other->confined && sched_getaffinity(id, sizeof other->allowed, &other->allowed))) return;
    cpu_set_t elsewhere = other->allowed;
    CPU_CLR(sched_getcpu(), &elsewhere);
    if (CPU_COUNT(&elsewhere) && !sched_setaffinity(id, sizeof elsewhere, &elsewhere)) other->confined = 1;
#else
    (void)other;
#endif
}

static void fb_lie_down(fb_worker *self) {
    atomic_fetch_add_explicit(&fb_pool.sleepers, 1, memory_order_relaxed);
#if defined(__linux__)
    atomic_store_explicit(&self->asleep, (int)syscall(SYS_gettid), memory_order_relaxed);
#else
    (void)self;
#endif
}

static void fb_rise(fb_worker *self) {
    atomic_fetch_sub_explicit(&fb_pool.sleepers, 1, memory_order_relaxed);
#if defined(__linux__)
    atomic_store_explicit(&self->asleep, 0, memory_order_relaxed);
    if (self->confined) sched_setaffinity(0, sizeof self->allowed, &self->allowed);
    self->confined = 0;
#else
    (void)self;
#endif
}

/* Wait until the word is `target` or beyond, and return it: awake for some ns, then asleep. Where
   threads outnumber processors, others have this one meanwhile. */
static uint32_t fb_await(fb_worker *self, fb_word *word, uint32_t target, int64_t awake, int crowded) {
    uint32_t now;
    int64_t end = 0, time;
    int drowsy = 0;
    for (unsigned n = 1;; n++) {
        now = atomic_load_explicit(word, memory_order_acquire);
        if ((int32_t)((now & ~1u) - target) >= 0) break;
        if (awake > 0) {
            if (crowded) sched_yield();
            else fb_pause();
            if (n % 64 && !crowded) continue; /* a pause takes 10 to 150 cycles */
            time = fb_nanoseconds();
            if (end == 0) end = time + awake;
            if (time > end) awake = 0;
        } else if (!drowsy) {
            drowsy = 1;
            fb_lie_down(self);
        } else if ((now & 1) || atomic_compare_exchange_strong(word, &now, now | 1)) {
            fb_sleep(word, now | 1);
        }
    }
    if (drowsy) fb_rise(self);
    return now & ~1u;
}

static void fb_order(fb_worker *worker, uint32_t word) {
    if (atomic_exchange_explicit(&worker->word, word, memory_order_release) & 1) fb_wake(&worker->word);
}

/* --- the barrier */

/* Come to the next barrier, without waiting there. */
static void fb_arrive(fb_worker *self, int threads) {
    self->target += 2 * threads;
    uint32_t last = (self->target - 2) | 1; /* before the last thread, where others sleep */
    if (atomic_load_explicit(&fb_pool.sleepers, memory_order_relaxed) && !fb_pool.crowded &&
        atomic_load_explicit(&fb_pool.arrived, memory_order_acquire) == last)
        for (int rank = 0; rank < threads; rank++) fb_keep_off(&fb_pool.worker[rank]);
    if (atomic_fetch_add_explicit(&fb_pool.arrived, 2, memory_order_acq_rel) == last) {
        atomic_fetch_and_explicit(&fb_pool.arrived, ~1u, memory_order_relaxed);
        fb_wake(&fb_pool.arrived);
    }
}

/* Wait until all threads of the job that runs are here. */
static void fb_pool_barrier(int rank) {
    fb_worker *self = &fb_pool.worker[rank];
    fb_arrive(self, fb_pool.threads);
    fb_await(self, &fb_pool.arrived, self->target, FB_AWAKE_AT_BARRIER, fb_pool.crowded);
}

/* --- workers */

static void *fb_work(void *argument) {
    fb_worker *self = argument;
    int crowded = 1;
    /* A thread begins with the floating-point mode of the one that started it. */
#if defined(__SSE2__)
    _mm_setcsr(0x1F80);
#elif defined(__aarch64__)
    __asm__ volatile("msr fpcr, %0" ::"r"(0ul));
#endif
#if defined(__linux__)
    char name[16];
    snprintf(name, sizeof name, "fastbp-%d", self->rank);
    prctl(PR_SET_NAME, name);
#endif
    while (fb_await(self, &self->word, FB_RUN, crowded ? 0 : FB_AWAKE_BETWEEN_JOBS, 0) == FB_RUN) {
        int threads = fb_pool.threads;
        crowded = fb_pool.crowded;
        atomic_store_explicit(&self->word, FB_IDLE, memory_order_relaxed);
        self->target = 0;
        fb_pool.task(fb_pool.context, self->rank, threads);
        fb_arrive(self, threads); /* now the next job may begin */
    }
    return NULL;
}

/* In a forked child, where the workers and whoever had the pool are gone. */
static void fb_pool_forked(void) {
    memset(fb_pool.worker, 0, (fb_pool.workers + 2) * sizeof(fb_worker)); /* one may have been about to start */
    fb_pool.workers = 0;
    atomic_store(&fb_pool.arrived, 0);
    atomic_store(&fb_pool.sleepers, 0);
#if !FB_FUTEX
    pthread_mutex_init(&fb_pool.mutex, NULL);
    pthread_cond_init(&fb_pool.changed, NULL);
#endif
    atomic_store(&fb_pool.busy, atomic_load(&fb_pool.closed));
}

/* Once, before the first job: a child forked while it begins would find the pool busy for ever. */
static int fb_pool_prepare(void) { return pthread_atfork(NULL, NULL, fb_pool_forked) == 0; }

static int fb_pool_grow(int workers) {
    sigset_t kept, before;
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes)) return 0;
    pthread_attr_setstacksize(&attributes, FB_STACK);
    /* Signals are for Python's threads, but for those that a thread's own fault raises. */
    sigfillset(&kept);
    sigdelset(&kept, SIGSEGV);
    sigdelset(&kept, SIGBUS);
    sigdelset(&kept, SIGFPE);
    sigdelset(&kept, SIGILL);
    pthread_sigmask(SIG_SETMASK, &kept, &before);
    while (fb_pool.workers < workers) {
        fb_worker *next = &fb_pool.worker[fb_pool.workers + 1];
        next->rank = fb_pool.workers + 1;
        if (pthread_create(&next->thread, &attributes, fb_work, next)) break;
        fb_pool.workers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return fb_pool.workers >= workers;
}

/* --- jobs */

/* Run task(context, rank, threads) on so many threads; 0 at once, with nothing run, where there
   is one thread only, or the pool is busy (as it is inside a task), closed, or cannot grow. */
static int fb_pool_run(fb_task task, void *context, int threads, int processors) {
    if (threads < 2 || threads > FB_POOL_THREADS || atomic_load_explicit(&fb_pool.closed, memory_order_relaxed) ||
        atomic_exchange_explicit(&fb_pool.busy, 1, memory_order_acquire))
        return 0;
    int ran = fb_pool.workers >= threads - 1 || fb_pool_grow(threads - 1);
    if (ran) {
        fb_pool.task = task;
        fb_pool.context = context;
        fb_pool.threads = threads;
        fb_pool.crowded = threads > processors;
        fb_pool.worker[0].target = 0;
        atomic_store_explicit(&fb_pool.arrived, 0, memory_order_relaxed);
        for (int rank = 1; rank < threads; rank++) {
            if (!fb_pool.crowded) fb_keep_off(&fb_pool.worker[rank]);
            fb_order(&fb_pool.worker[rank], FB_RUN);
        }
        task(context, 0, threads);
        fb_pool_barrier(0);
    }
    atomic_store_explicit(&fb_pool.busy, 0, memory_order_release);
    return ran;
}

/* End the workers and start no more. A job at work is waited for, so many seconds at most: then 0. */
static int fb_pool_close(double seconds) {
    if (atomic_exchange(&fb_pool.closed, 1)) return 1;
    for (; atomic_exchange(&fb_pool.busy, 1); seconds -= 1e-3) {
        if (seconds <= 0) return 0;
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
    for (int rank = 1; rank <= fb_pool.workers; rank++) fb_order(&fb_pool.worker[rank], FB_END);
    for (int rank = 1; rank <= fb_pool.workers; rank++) {
        pthread_join(fb_pool.worker[rank].thread, NULL);
        atomic_store(&fb_pool.worker[rank].word, FB_IDLE);
    }
    fb_pool.workers = 0;
    return 1;
}

#endif
