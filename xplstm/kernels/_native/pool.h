/* Threads that wait for work, and a barrier for those that share one sequence. */
#ifndef XPLSTM_POOL_H
#define XPLSTM_POOL_H

#include <stdatomic.h>
#include <stddef.h>

enum { MAX_THREADS = 64 };

typedef struct Barrier {
    atomic_int waiting, phase;
    atomic_int late; /* waits that took longer than a thread that runs would take */
    int members, crossings, alone;
} Barrier;

void barrier_init(Barrier *b, int members);

/* A part of one step of a thread's walk through time. */
typedef void (*Part)(void *walk, ptrdiff_t step);

/* Walk as member k of the barrier's team. Every thread crosses the barrier after each part, so that it sees
   what the others wrote. The walk of member k is at walks + k * apart. On a machine whose processors are
   taken by others, the threads of a team rarely run at the same time: member 0 then continues alone, with
   the walks of all. `close`, if any, ends a walk. */
void walk_together(Barrier *b, int member, char *walks, size_t apart, const Part *parts, int count,
                   ptrdiff_t steps, Part close);

/* Whether threads lately waited for each other for too long, since others have the processors: at barriers,
   or at the end of a job. And how many walks member 0 ended alone. For who has the pool. */
int pool_late_at_barriers(void);
int pool_late_at_the_end(void);
long pool_walks_alone(void);
void pool_note(const Barrier *b, int count);

/* Run work(context, k) for k in [0, threads), k = 0 on the calling thread. */
typedef void (*Work)(void *context, int k);

/* How many threads of at most `wanted` there are for the caller, who has them until pool_release: 1 while
   another has them, or where none can be started. A negative number asks for at most its magnitude, and for
   no more threads than there are processors for this thread now. */
int pool_acquire(int wanted);
void pool_run(Work work, void *context, int threads);
void pool_release(void);

/* Memory that stays from call to call, for who has the pool; NULL where there is none. */
void *pool_memory(size_t bytes);

/* Give that memory back, unless a call is using it. */
void pool_forget_memory(void);

#endif
