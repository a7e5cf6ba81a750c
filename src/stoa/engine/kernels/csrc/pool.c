/* A pool of threads that share the tasks of one call at a time.
 *
 * The caller works too. Helpers spin briefly for the next call (a step makes a hundred of them, microseconds
 * apart) and then sleep. A task is claimed by compare-and-swap on one word that also holds the call's number,
 * so a helper that wakes late can never run a task of a call that is over. */
#define _GNU_SOURCE
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "stoa_kernels.h"

#define SPINS 4000
#define MAX_THREADS 256

#if defined(__x86_64__)
#define RELAX() __builtin_ia32_pause()
#else
#define RELAX() ((void)0)
#endif

/* claim: [call number 32][tasks left 32] */
static _Atomic uint64_t claim;
static _Atomic uint32_t epoch;
static _Atomic int64_t finished;
static _Atomic int sleepers;
static Task job_fn;
static void *job_arg;
static int64_t job_n;
static int n_threads = 1, n_started = 1;
static pid_t owner;

static int run_one(void) {
    uint64_t seen = atomic_load_explicit(&claim, memory_order_acquire);
    while ((uint32_t)seen) {
        if (atomic_compare_exchange_weak_explicit(&claim, &seen, seen - 1, memory_order_acq_rel, memory_order_acquire)) {
            job_fn(job_arg, job_n - (int64_t)(uint32_t)seen);
            atomic_fetch_add_explicit(&finished, 1, memory_order_release);
            return 1;
        }
    }
    return 0;
}

static void *helper(void *unused) {
    (void)unused;
    uint32_t known = 0;
    for (;;) {
        int spins = 0;
        while (atomic_load_explicit(&epoch, memory_order_acquire) == known) {
            if (++spins < SPINS) { RELAX(); continue; }
            atomic_fetch_add(&sleepers, 1);
            syscall(SYS_futex, &epoch, FUTEX_WAIT_PRIVATE, known, NULL, NULL, 0);
            atomic_fetch_sub(&sleepers, 1);
        }
        known = atomic_load_explicit(&epoch, memory_order_acquire);
        while (run_one()) {}
    }
    return NULL;
}

void pool_start(int threads) {
    if (owner != getpid()) { n_started = 1; owner = getpid(); } /* threads do not survive a fork */
    n_threads = threads < 1 ? 1 : threads > MAX_THREADS ? MAX_THREADS : threads;
    while (n_started < n_threads) {
        pthread_t id;
        if (pthread_create(&id, NULL, helper, NULL)) { n_threads = n_started; break; }
        pthread_detach(id);
        n_started++;
    }
}

int pool_threads(void) { return n_threads; }

void pool_run(int64_t n, Task fn, void *arg) {
    if (n == 1 || n_threads == 1) {
        for (int64_t i = 0; i < n; i++) fn(arg, i);
        return;
    }
    job_fn = fn; job_arg = arg; job_n = n;
    atomic_store_explicit(&finished, 0, memory_order_relaxed);
    uint32_t number = atomic_load_explicit(&epoch, memory_order_relaxed) + 1;
    atomic_store_explicit(&claim, ((uint64_t)number << 32) | (uint32_t)n, memory_order_release);
    atomic_store(&epoch, number);
    if (atomic_load(&sleepers)) syscall(SYS_futex, &epoch, FUTEX_WAKE_PRIVATE, n_threads - 1, NULL, NULL, 0);
    while (run_one()) {}
    while (atomic_load_explicit(&finished, memory_order_acquire) < n) RELAX();
}

static void *grow(void **memory, size_t *have, size_t bytes) {
    if (*have < bytes) {
        free(*memory);
        *have = (bytes + bytes / 2 + 4095) & ~(size_t)4095;
        *memory = aligned_alloc(64, *have);
        if (!*memory) abort();
    }
    return *memory;
}

void *pool_scratch(int slot, size_t bytes) {
    static void *memory[4];
    static size_t have[4];
    return grow(&memory[slot], &have[slot], bytes);
}

void *pool_local(size_t bytes) {
    static __thread void *memory;
    static __thread size_t have;
    return grow(&memory, &have, bytes);
}
