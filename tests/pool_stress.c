/* The pool under stress, to be run under ThreadSanitizer: .ci/sanitize thread */
#include "pool.h"

#include <stdlib.h>

enum { CALLERS = 3, JOBS = 1500, MOST = 6, ROUNDS = 20 };

/* Memory of a job without atomics: a barrier that orders too little is a data race. */
typedef struct {
    int64_t sum, runs[MOST];
    int rounds;
} job;

static _Atomic long done, refused;

static void fail(const char *what) {
    fprintf(stderr, "pool_stress: %s\n", what);
    exit(1);
}

static void nothing(void *context, int rank, int threads) {
    (void)context, (void)rank, (void)threads;
    fail("a job began inside another");
}

static void doze(int us) { nanosleep(&(struct timespec){0, us * 1000}, NULL); }

/* Each round one thread, another one each time, sums up what all wrote; some come late. */
static void work(void *context, int rank, int threads) {
    job *j = context;
    if (fb_pool_run(nothing, NULL, 2, 2)) fail("a job ran inside another");
    for (int n = 0; n < j->rounds; n++) {
        j->runs[rank]++;
        if (n % 7 == rank) doze(n % 5 * 60);
        fb_pool_barrier(rank);
        if (n % threads == rank)
            for (int r = 0; r < threads; r++) j->sum += j->runs[r];
        fb_pool_barrier(rank);
    }
    j->runs[rank]++;
}

static void *call(void *argument) {
    unsigned seed = (unsigned)(intptr_t)argument;
    for (int n = 0; n < JOBS; n++) {
        job j = {.rounds = rand_r(&seed) % ROUNDS};
        int threads = 2 + rand_r(&seed) % (MOST - 1);
        int processors = rand_r(&seed) % 2 ? MOST : 1; /* threads spin, or yield */
        if (fb_pool_run(work, &j, threads, processors)) {
            done++;
            for (int r = 0; r < threads; r++)
                if (j.runs[r] != j.rounds + 1) fail("a rank did not run once");
            if (j.sum != (int64_t)threads * j.rounds * (j.rounds + 1) / 2) fail("out of step");
        } else {
            refused++;
            doze(20);
        }
        if (n % 16 == 0) doze(rand_r(&seed) % 300); /* workers fall asleep, others have the pool */
    }
    return NULL;
}

int main(void) {
    pthread_t caller[CALLERS];
    if (!fb_pool_prepare()) fail("no preparation");
    for (intptr_t life = 0; life < 4; life++) {
        for (intptr_t k = 0; k < CALLERS; k++)
            if (pthread_create(&caller[k], NULL, call, (void *)(life * CALLERS + k + 1))) fail("no caller");
        if (life % 2) { /* the end comes while jobs run */
            doze(20000);
            if (!fb_pool_close(60)) fail("a job did not end");
        }
        for (int k = 0; k < CALLERS; k++) pthread_join(caller[k], NULL);
        if (!fb_pool_close(60) || fb_pool.workers) fail("the pool did not end");
        if (fb_pool_run(nothing, NULL, 2, 2)) fail("a job ran after the end");
        atomic_store(&fb_pool.closed, 0);
        atomic_store(&fb_pool.busy, 0);
    }
    printf("%ld jobs done, %ld refused\n", done, refused);
    return done < 100 || refused < 1;
}
