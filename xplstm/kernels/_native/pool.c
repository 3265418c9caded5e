#define _GNU_SOURCE
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#if defined(__x86_64__) || defined(__i386__)
#define relax() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define relax() __asm__ volatile("yield")
#else
#define relax() ((void)0)
#endif

/* Iterations of a spin loop, about 20 to 50 microseconds, before a thread yields or sleeps. */
enum { SPINS = 1000, TURNS_AWAKE = 2000 };

/* A wait is late if it takes LATE nanoseconds and about as long as the share of a step, with A_NANOSECOND
   multiply-adds in a nanosecond: the shares of a long step differ by more than LATE. A scheduler's time slice
   is longer. With MOST_LATE late waits in a window of crossings, waiting takes longer than the work. */
enum { LATE = 500000, A_NANOSECOND = 16, MOST_LATE = 2, WINDOW = 256 };

/* Nanoseconds for which one thread works alone after late waits in STRIKES calls, one after the other;
   doubled each time. A single late wait can have other reasons than a busy machine. */
#define FIRST_REST 20000000ll
#define LONGEST_REST 2000000000ll
enum { STRIKES = 2 };

typedef struct Rest {
    long long length, until;
    int strikes;
} Rest;

static long long now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}

void barrier_init(Barrier *b, int members, ptrdiff_t work)
{
    b->patience = LATE + work / A_NANOSECOND / (members > 1 ? members : 1);
    atomic_init(&b->waiting, 0);
    atomic_init(&b->phase, 0);
    atomic_init(&b->late, 0);
    b->members = members;
    b->crossings = b->alone = 0;
}

/* Wait for iteration n of a spin loop; after many iterations, yield the processor. */
static void turn(int n)
{
    if (n < SPINS)
        relax();
    else
        sched_yield();
}

/* Called by the last thread to arrive: decide whether member 0 continues alone, then release the others. */
static void barrier_open(Barrier *b, int phase)
{
    if (++b->crossings == WINDOW) {
        b->crossings = 0;
        atomic_store_explicit(&b->late, 0, memory_order_relaxed);
    }
    b->alone = atomic_load_explicit(&b->late, memory_order_relaxed) >= MOST_LATE;
    atomic_store_explicit(&b->waiting, 0, memory_order_relaxed);
    atomic_store_explicit(&b->phase, phase + 1, memory_order_release);
}

/* Return whether member 0 continues alone. */
static int barrier_wait(Barrier *b)
{
    int phase = atomic_load_explicit(&b->phase, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&b->waiting, 1, memory_order_acq_rel) == b->members - 1) {
        barrier_open(b, phase);
        return b->alone;
    }
    long long since = 0;
    for (int n = 0; atomic_load_explicit(&b->phase, memory_order_acquire) == phase; n++) {
        if (n == SPINS)
            since = now();
        turn(n);
    }
    int alone = b->alone;
    if (since && now() - since > b->patience)
        atomic_fetch_add_explicit(&b->late, 1, memory_order_relaxed);
    return alone;
}

void walk_together(Barrier *b, int member, char *walks, size_t apart, const Part *parts, int count,
                   ptrdiff_t steps, Part close)
{
    int first = member, last = member + 1, alone = b->members == 1;
    for (ptrdiff_t s = 0; s < steps; s++)
        for (int n = 0; n < count; n++) {
            for (int k = first; k < last; k++)
                parts[n](walks + (size_t)k * apart, s);
            if (alone || !barrier_wait(b))
                continue;
            if (member)
                return;
            alone = 1;
            last = b->members;
        }
    for (int k = first; close && k < last; k++)
        close(walks + (size_t)k * apart, steps);
}

static struct {
    pthread_mutex_t owner, lock;
    pthread_cond_t wake;
    int started, registered;
    int seen[MAX_THREADS]; /* number of the last job before the thread started */
    atomic_int job;        /* sequence number of the job */
    atomic_int asleep, running;
    atomic_int members; /* number of threads of the job */
    Work work;
    void *context;
    _Atomic(void *) memory; /* always NULL or `bytes` long, because a fork may happen at any time */
    atomic_size_t bytes;
    Rest barriers, ends;
    long walks_alone;
} pool = {.owner = PTHREAD_MUTEX_INITIALIZER,
          .lock = PTHREAD_MUTEX_INITIALIZER,
          .wake = PTHREAD_COND_INITIALIZER};

/* Reset the pool in the child of a fork, which has only the forking thread. */
static void forget_threads(void)
{
    pthread_mutex_init(&pool.owner, NULL);
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.wake, NULL);
    pool.started = 0;
    atomic_store(&pool.asleep, 0);
    atomic_store(&pool.running, 0);
}

static int wait_for_job(int seen)
{
    int now;
    for (int n = 0; n < TURNS_AWAKE; n++) {
        now = atomic_load_explicit(&pool.job, memory_order_acquire);
        if (now != seen)
            return now;
        relax();
    }
    pthread_mutex_lock(&pool.lock);
    atomic_fetch_add(&pool.asleep, 1);
    while ((now = atomic_load(&pool.job)) == seen)
        pthread_cond_wait(&pool.wake, &pool.lock);
    atomic_fetch_sub(&pool.asleep, 1);
    pthread_mutex_unlock(&pool.lock);
    return now;
}

static void *serve(void *argument)
{
    int k = (int)(size_t)argument, seen = pool.seen[k];
    for (;;) {
        seen = wait_for_job(seen);
        if (k < atomic_load_explicit(&pool.members, memory_order_relaxed))
            pool.work(pool.context, k);
        atomic_fetch_sub_explicit(&pool.running, 1, memory_order_release);
    }
    return NULL;
}

static int start(int wanted)
{
    if (!pool.registered)
        pool.registered = pthread_atfork(NULL, NULL, forget_threads) == 0;
    if (!pool.registered)
        return 1;
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes))
        return 1;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    /* Signals are for the interpreter's own threads. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (pool.started < wanted - 1) {
        pthread_t thread;
        pool.seen[pool.started + 1] = atomic_load(&pool.job);
        if (pthread_create(&thread, &attributes, serve, (void *)(size_t)(pool.started + 1)))
            break;
        pool.started++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return pool.started + 1 < wanted ? pool.started + 1 : wanted;
}

/* Return how many of `most` processors this process may use now; the affinity can change between calls. */
static int processors(int most)
{
#ifdef __linux__
    cpu_set_t set;
    if (most > 1 && sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) < most)
        return CPU_COUNT(&set);
#endif
    return most;
}

int pool_acquire(int wanted)
{
    if (pthread_mutex_trylock(&pool.owner))
        return 0;
    if (wanted < 0)
        wanted = processors(-wanted);
    if (wanted > MAX_THREADS)
        wanted = MAX_THREADS;
    return wanted <= 1 || pool.started + 1 >= wanted ? (wanted < 1 ? 1 : wanted) : start(wanted);
}

static int rests(const Rest *r) { return r->length && now() < r->until; }

static void note(Rest *r, int late)
{
    r->strikes = late ? r->strikes + 1 : 0;
    if (!late)
        r->length = 0;
    if (r->strikes < STRIKES)
        return;
    r->strikes = 0;
    r->length = r->length ? 2 * r->length : FIRST_REST;
    r->length = r->length > LONGEST_REST ? LONGEST_REST : r->length;
    r->until = now() + r->length;
}

int pool_late_at_barriers(void) { return rests(&pool.barriers); }

int pool_late_at_the_end(void) { return rests(&pool.ends); }

long pool_walks_alone(void) { return pool.walks_alone; }

void pool_note(const Barrier *b, int count)
{
    if (b->members <= 1)
        return;
    int late = 0;
    for (int k = 0; k < count; k++) {
        late |= b[k].alone || atomic_load(&b[k].late);
        pool.walks_alone += b[k].alone;
    }
    note(&pool.barriers, late);
}

void pool_release(void) { pthread_mutex_unlock(&pool.owner); }

void pool_run(Work work, void *context, int threads)
{
    long long begun = 0;
    int asleep = threads > 1 && atomic_load(&pool.asleep);
    if (threads > 1) {
        begun = now();
        pool.work = work;
        pool.context = context;
        atomic_store_explicit(&pool.members, threads, memory_order_relaxed);
        atomic_store_explicit(&pool.running, pool.started, memory_order_relaxed);
        atomic_fetch_add(&pool.job, 1);
        if (atomic_load(&pool.asleep)) {
            pthread_mutex_lock(&pool.lock);
            pthread_cond_broadcast(&pool.wake);
            pthread_mutex_unlock(&pool.lock);
        }
    }
    work(context, 0);
    if (threads > 1) {
        long long done = now(), waited;
        for (int n = 0; atomic_load_explicit(&pool.running, memory_order_acquire); n++)
            turn(n);
        waited = now() - done;
        /* Waking takes time too, which after a rest would be taken for another late wait. */
        note(&pool.ends, waited > LATE && (asleep ? waited : 2 * waited) > done - begun);
    }
}

/* Forget the memory before it is freed, so that a child forked in between cannot use it. */
static void free_memory(void)
{
    pool.bytes = 0;
    free(atomic_exchange(&pool.memory, NULL));
}

void pool_forget_memory(void)
{
    if (pool_acquire(1)) {
        free_memory();
        pool_release();
    }
#ifdef __GLIBC__
    malloc_trim(0);
#endif
}

void *pool_memory(size_t bytes)
{
    if (bytes > pool.bytes) {
        free_memory();
        pool.memory = aligned_alloc(64, (bytes + 63) & ~(size_t)63);
        pool.bytes = pool.memory ? bytes : 0;
    }
    return pool.memory;
}
