/* A thread pool, and a barrier for the threads that share one sequence. */
#ifndef XPLSTM_POOL_H
#define XPLSTM_POOL_H

#include <stdatomic.h>
#include <stddef.h>

enum { MAX_THREADS = 64 };

typedef struct Barrier {
    atomic_int waiting, phase;
    atomic_int late; /* number of waits for a thread that was probably not scheduled */
    int members, crossings, alone;
    long long patience; /* nanoseconds of a wait that is not late */
} Barrier;

/* `work` is the number of multiply-adds of a step, which the members share. */
void barrier_init(Barrier *b, int members, ptrdiff_t work);

/* A part of one step of a thread's loop over time. */
typedef void (*Part)(void *walk, ptrdiff_t step);

/* Run the loop over time as member k of the barrier's team. Every thread crosses the barrier after each part,
   so that it sees the writes of the others. The walk of member k is at walks + k * apart. On an
   oversubscribed machine, the threads of a team rarely run at the same time. Member 0 then continues alone
   with the walks of all members. `close`, if not NULL, ends a walk. */
void walk_together(Barrier *b, int member, char *walks, size_t apart, const Part *parts, int count,
                   ptrdiff_t steps, Part close);

/* The first two functions return whether threads recently waited too long for each other, at barriers or at
   the end of a job, because other processes use the processors. pool_walks_alone returns how many loops over
   time member 0 finished alone. Only the owner of the pool may call these functions. */
int pool_late_at_barriers(void);
int pool_late_at_the_end(void);
long pool_walks_alone(void);
void pool_note(const Barrier *b, int count);

/* Run work(context, k) for k in [0, threads), k = 0 on the calling thread. */
typedef void (*Work)(void *context, int k);

/* Acquire at most `wanted` threads until pool_release, and return their number: 1 if another thread owns the
   pool, or no thread can be started. A negative number requests at most its magnitude, and at most the number
   of processors that this thread may use now. */
int pool_acquire(int wanted);
void pool_run(Work work, void *context, int threads);
void pool_release(void);

/* Return memory that is kept between calls, for the owner of the pool; NULL if allocation fails. */
void *pool_memory(size_t bytes);

/* Free that memory, unless a call is using it. */
void pool_forget_memory(void);

#endif
