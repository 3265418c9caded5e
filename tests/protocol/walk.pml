/* The flag protocol of xplstm/kernels/_cuda/walk.cuh for the model checker Spin.

   N blocks of W warps make K steps. A warp waits for its share of the blocks and reads from these alone, as in
   persistent_mma.cu. Numbers in the exchange buffer are tags: the step that they belong to, or BUSY while they
   are written. Defined or not:

     BACK     the walk back, in which a block publishes a step before it waits for the same step
     FLAGGED  a number and its flag are one word, which the reader itself polls; there are no counters
     GIVE_UP  a warp that waits may give up at any time, and the launch is abandoned
     DEAD     block N - 1 publishes no step from this one on, or with FLAGGED writes none
     MUTANT   the number of a fault, which the checker has to find, or 0

   What is checked: every number that a step uses has the tag of the step, unless the block leaves with NaN; and
   every warp ends, so that no wait is endless and no barrier is left half full. */

#define BUSY 255

#if MUTANT == 1 /* one buffer */
#define AT(step) 0
#else
#define AT(step) ((step) % 2)
#endif
#if MUTANT == 3 /* waits for the step before */
#define AWAITED (step - 1)
#else
#define AWAITED step
#endif

byte counter[N];
byte exchange[2 * N * W];
bool abandoned;
bool late[N], wrong[N];
byte arrived[N];
bool turn[N], any[N], outcome[N];

#define SPOT(step, block, warp) exchange[(AT(step) * N + (block)) * W + (warp)]

/* A barrier of the block, which tells whether any warp's `mine` was true. Where it is not and the barrier is
   the last one of a step, what the step has read has to be right. */
inline vote(mine, last)
{
    d_step {
        before = turn[me];
        any[me] = any[me] || mine;
        arrived[me]++;
        if
        :: arrived[me] == W ->
            assert(!last || any[me] || !wrong[me]);
            outcome[me] = any[me];
            any[me] = false;
            arrived[me] = 0;
            turn[me] = !before
        :: else
        fi
    }
    turn[me] != before
}

#define STUCK(value) (DEAD && me == N - 1 && (value) >= DEAD)

/* Write the numbers that the block publishes as `value`. */
inline put(step, value)
{
#ifdef FLAGGED
    if
    :: !STUCK(value) -> SPOT(step, me, warp) = step
    :: else
    fi
#else
    SPOT(step, me, warp) = BUSY;
    SPOT(step, me, warp) = step
#endif
}

inline announce(value)
{
#ifdef FLAGGED
    skip
#else
    if
    :: warp == 0 && !STUCK(value) -> counter[me] = value
    :: else
    fi
#endif
}

/* What is waited for: a block's counter, or each number of a block. */
#ifdef FLAGGED
#define ARRIVED(tag) (SPOT(tag, other, part) == TAG(tag))
#define NEXT                                                                                                  \
    part++;                                                                                                   \
    if                                                                                                        \
    :: part == W -> part = 0; other = other + W                                                               \
    :: else                                                                                                   \
    fi
#if MUTANT == 3
#define TAG(tag) (SPOT(tag, other, part))
#else
#define TAG(tag) tag
#endif
#else
#define ARRIVED(tag) (counter[other] >= AWAITED)
#define NEXT other = other + W
#endif

/* Wait until this warp's share of the blocks has published `step`, and read what they wrote, tagged `tag`. */
inline await_and_read(step, tag)
{
#if MUTANT == 5 /* the last warp does not wait */
    other = (warp == W - 1 -> N : warp);
#else
    other = warp;
#endif
    part = 0;
    do
    :: other < N ->
        do
        :: ARRIVED(tag) -> break
#ifdef GIVE_UP
        :: !ARRIVED(tag) -> abandoned = true; late[me] = true; break
        :: !ARRIVED(tag) && abandoned -> late[me] = true; break
#endif
        od;
        NEXT
    :: else -> break
    od;
    other = 0;
    do
    :: other < N * W ->
        if
        :: other / W % W == warp && SPOT(tag, other / W, other % W) != tag -> wrong[me] = true
        :: else
        fi;
        other++
    :: else -> break
    od
}

/* The barrier between writing and publishing. */
inline barrier()
{
#if MUTANT == 4
    skip
#else
    vote(false, false)
#endif
}

/* Leave where a warp of the block has given up. */
inline settle()
{
#if MUTANT == 6 /* no block leaves */
    vote(false, true);
    leave = false;
#else
    vote(late[me], true);
    leave = outcome[me];
#endif
}

proctype Warp(byte me; byte warp)
{
    byte k, other, part;
    bool before, leave;
#ifndef BACK
    put(0, 1);
    barrier();
    announce(1);
    do
    :: k < K ->
        await_and_read(k + 1, k);
#if MUTANT == 7 /* writes before it leaves, where a block that is late may still read */
        vote(false, false);
        put(k + 1, k + 2);
#endif
        settle();
        if
        :: leave -> break
        :: else
        fi;
#if MUTANT == 2 /* publishes before it writes */
        announce(k + 2);
#endif
        put(k + 1, k + 2);
        barrier();
        if
        :: k + 1 < K -> announce(k + 2)
        :: else
        fi;
        k++
    :: else -> break
    od
#else
    k = K;
    do
    :: k > 0 ->
#if MUTANT == 2
        announce(K + 1 - k);
#endif
        put(k - 1, K + 1 - k);
        barrier();
        announce(K + 1 - k);
        await_and_read(K + 1 - k, k - 1);
        settle();
        if
        :: leave -> break
        :: else
        fi;
        k--
    :: else -> break
    od
#endif
}

init
{
    byte block, number;
    atomic {
        do
        :: block < N * W ->
            exchange[block] = BUSY;
            exchange[N * W + block] = BUSY;
            run Warp(block / W, block % W);
            block++
        :: else -> break
        od
    }
}
