/* Threads that wait for work, and a barrier for those that share one sequence. */
#ifndef XPLSTM_POOL_H
#define XPLSTM_POOL_H

#include <stdatomic.h>
#include <stddef.h>

enum { MAX_THREADS = 64 };

typedef struct Barrier {
    atomic_int waiting, phase;
    int members;
} Barrier;

void barrier_init(Barrier *b, int members);
void barrier_wait(Barrier *b);

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
