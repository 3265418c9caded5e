/* Threads and memory of a call, and the division of its work. */
#include "jobs.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ieee.h"
#include "philox.h"

/* Limits below which a second thread costs more than it saves: multiply-adds of a whole call, of a call that
   wakes threads which wait for each other in every step, and of a thread's step in such a call and in a
   shorter one; and bytes of packed weights. */
#ifdef XPLSTM_ALWAYS_THREADS /* a build for tests, in which small problems use threads */
enum { WORTH_THREADS, WORTH_PACKING = 0, WORTH_WAKING = 0, WORTH_WAITING = 0, WORTH_DRAWING = 0 };
enum { WORTH_BARRIERS, WORTH_A_BARRIER = 1, WORTH_AN_EARLY_BARRIER = 1 };
#else
enum {
    WORTH_THREADS = 1 << 18,
    WORTH_BARRIERS = 1 << 21,
    WORTH_A_BARRIER = 3 << 13,
    WORTH_AN_EARLY_BARRIER = 1 << 17,
    WORTH_PACKING = 1 << 19,
    WORTH_WAKING = 1 << 25,
    WORTH_WAITING = 1 << 27,
    WORTH_DRAWING = 1 << 17
};
#endif

long worth_threads(void) { return WORTH_THREADS; }

long worth_barriers(void) { return WORTH_BARRIERS; }

/* Least number of rows per thread that keeps a register tile busy. */
enum { WORTH_ROWS = 4 };

/* From UNITS_A_ROW units per row of a thread on, a thread reads less memory if it uses its share of the
   weights for all rows than if it uses all weights for its share of the rows. Shares may differ by one panel
   in EVEN. */
enum { UNITS_A_ROW = 32, EVEN = 16 };

/* Assumed bytes of the L2 cache of a core if the system does not report the size. */
enum { USUAL_CACHE = 1 << 20 };

/* Return the bytes of the L2 cache of a core. */
static Size l2_cache(void)
{
    static Size found;
    Size bytes = __atomic_load_n(&found, __ATOMIC_RELAXED);
    if (bytes)
        return bytes;
#ifdef _SC_LEVEL2_CACHE_SIZE
    bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    bytes = bytes > 0 ? bytes : USUAL_CACHE;
    __atomic_store_n(&found, bytes, __ATOMIC_RELAXED);
    return bytes;
}

static int pinned = AUTOMATIC;

void pin_shares(int how) { __atomic_store_n(&pinned, how, __ATOMIC_RELAXED); }

static int pin(void) { return __atomic_load_n(&pinned, __ATOMIC_RELAXED); }

/* Number of rows of one block of the products over all steps. */
enum { BLOCK_ROWS = 1024 };

/* The threads and memory of a call: the pool's, or the calling thread alone if the pool is in use. */
typedef struct Crew {
    int threads, owned;
    char *memory;
} Crew;

static int acquire_crew(Crew *crew, int threads)
{
    int got = pool_acquire(threads);
    crew->owned = got > 0;
    crew->threads = got > 0 ? got : 1;
    return crew->threads;
}

static int allocate(Crew *crew, size_t bytes)
{
    crew->memory = crew->owned ? pool_memory(bytes) : aligned_alloc(64, lines(bytes));
    return crew->memory ? 0 : -1;
}

static void release_crew(Crew *crew)
{
    if (!crew->owned)
        free(crew->memory);
    else
        pool_release();
}

typedef struct Packing {
    const Packed *packed;
    Weights weights;
    int members;
} Packing;

static void pack_work(void *context, int k)
{
    const Packing *job = context;
    uint64_t before = enter_ieee();
    job->packed->engine->pack(job->packed, &job->weights, k, job->members);
    leave_ieee(before);
}

void run_pack(const Packed *packed, const Weights *weights, size_t bytes, int threads)
{
    Crew crew;
    Packing job = {packed, *weights, acquire_crew(&crew, bytes < WORTH_PACKING ? 1 : threads)};
    pool_run(pack_work, &job, job.members);
    if (crew.owned)
        pool_release();
}

/* Return the number of panels that threads can divide: vectors of units forward, panels of outputs backward.
 */
static Size panels_of(const Packed *p) { return (p->H + p->engine->lanes - 1) / p->engine->lanes; }
static Size outputs_of(const Packed *p) { return (p->P + 4 * p->engine->lanes - 1) / (4 * p->engine->lanes); }

/* Return whether reading weights costs more than a barrier per step and than uneven shares. */
static int prefer_panels(const Packed *p, Size panels, int team, Size B)
{
    Size bytes = h_work(p) * (Size)p->engine->stored[p->storage],
         uneven = (panels + team - 1) / team * team - panels;
    return !p->projected && bytes >= l2_cache() && B / team * UNITS_A_ROW <= p->H && uneven * EVEN <= panels;
}

/* Choose the number of threads of one direction, and whether they divide rows or panels, for steps of `work`
   multiply-adds. */
static int plan(int threads, int directions, Size T, Size B, Size work, const Packed *p, Size panels,
                int *by_rows)
{
    int team = threads / directions, how = pin();
    *by_rows = 1;
    if (how != AUTOMATIC && team > 1) {
        *by_rows = how == BY_ROWS || p->pointwise.normal;
        Size most = *by_rows ? B : panels;
        return most < 1 ? 1 : team < most ? team : (int)most;
    }
    if (team <= 1 || T * work < WORTH_THREADS)
        return 1;
    /* A thread with its own batch entries needs no barrier, and a barrier is slow on a busy machine. Layer
       normalisation reads all units of a batch entry, so it excludes panels. */
    if (p->pointwise.normal && B < team)
        return 1;
    if (p->pointwise.normal || (B >= WORTH_ROWS * team && !prefer_panels(p, panels, team, B)))
        return T * work < WORTH_WAITING && pool_late_at_the_end() ? 1 : team;
    if (pool_late_at_barriers())
        return 1;
    *by_rows = 0;
    if (team > panels)
        team = (int)panels;
    Size least = T * work < WORTH_BARRIERS ? WORTH_AN_EARLY_BARRIER : WORTH_A_BARRIER;
    if (work / team < least)
        team = (int)(work / least);
    return team < 1 ? 1 : team;
}

/* Run both directions at once if there are threads for both, else one after the other. A negative number of
   members in the barrier marks the latter. */
static void forward_work(void *context, int k)
{
    Forward *f = context;
    const Engine *engine = f->packed[0]->engine;
    char *scratch = f->scratch + (size_t)k * f->scratch_size;
    uint64_t before = enter_ieee();
    if (f->directions == 2 && f->barrier[0].members < 0)
        for (int d = 0; d < 2; d++)
            engine->forward(f, d, 0, scratch);
    else
        engine->forward(f, k % f->directions, k / f->directions, scratch);
    leave_ieee(before);
}

int run_forward(Forward *f, int threads)
{
    const Packed *p = f->packed[0];
    Crew crew;
    Size work = f->B * (x_work(p) + h_work(p));
    if (f->T * work * f->directions < WORTH_THREADS && pin() == AUTOMATIC)
        threads = 1;
    f->cache = l2_cache();
    threads = acquire_crew(&crew, threads);
    f->team = plan(threads, f->directions, f->T, f->B, work, p, panels_of(p), &f->by_rows);
    int together = f->directions == 1 || threads >= 2;
    for (int d = 0; d < 2; d++)
        barrier_init(&f->barrier[d], together ? f->team : -1, work);
    threads = together ? f->team * f->directions : 1;
    f->scratch_size = lines(p->engine->forward_scratch(f));
    int failed = allocate(&crew, f->scratch_size * (size_t)threads);
    f->scratch = crew.memory;
    if (!failed) {
        pool_run(forward_work, f, threads);
        if (!f->by_rows)
            pool_note(f->barrier, f->directions);
    }
    release_crew(&crew);
    return failed;
}

/* Zoneout masks; each thread draws a share of the times. */
typedef struct Drawing {
    const Mask *mask;
    int members;
} Drawing;

static void draw_work(void *context, int k)
{
    const Drawing *job = context;
    const Mask *m = job->mask;
    for (Size t = share(m->T, k, job->members), last = share(m->T, k + 1, job->members); t < last; t++)
        draw_time(m, t);
}

void run_draw(const Mask *mask, int threads)
{
    Crew crew;
    Size words = mask->T * mask->B * mask->size;
    Drawing job = {mask, acquire_crew(&crew, words < WORTH_DRAWING ? 1 : threads)};
    pool_run(draw_work, &job, job.members);
    if (crew.owned)
        pool_release();
}

static void walk_back_work(void *context, int k)
{
    Backward *f = context;
    const Engine *engine = f->packed[0]->engine;
    char *scratch = f->scratch + (size_t)k * f->scratch_size;
    uint64_t before = enter_ieee();
    if (f->directions == 2 && f->barrier[0].members < 0)
        for (int d = 0; d < 2; d++)
            engine->walk_back(f, d, 0, scratch);
    else
        engine->walk_back(f, k % f->directions, k / f->directions, scratch);
    leave_ieee(before);
}

static void accumulate_work(void *context, int k)
{
    Backward *f = context;
    uint64_t before = enter_ieee();
    f->packed[0]->engine->accumulate(f, f->direction, k, f->threads,
                                     f->scratch + (size_t)k * f->scratch_size);
    leave_ieee(before);
}

static void pack_backward_work(void *context, int k)
{
    const Backward *f = context;
    for (int d = 0; d < f->directions; d++)
        f->packed[d]->engine->pack_backward(f, d, k, f->threads);
}

/* List the rows of a block of steps. */
static void list_rows(const Backward *f, int d, Size first, Size last)
{
    Rows *rows = (Rows *)&f->rows[d];
    rows->first = first;
    rows->last = last;
    rows->count = 0;
    for (Size t = first; t < last; t++)
        for (Size b = 0; b < f->B; b++) {
            int there = exists(&f->valid, f->B, t, b);
            rows->index[(t - first) * f->B + b] = there ? (int32_t)rows->count : -1;
            if (there) {
                rows->t[rows->count] = (int32_t)t;
                rows->b[rows->count++] = (int32_t)b;
            }
        }
}

/* Return the number of features of a row of dh, padded to whole panels of the backward products. */
static Size width_of(const Packed *p)
{
    Size width = outputs_of(p) * 4 * p->engine->lanes;
    return width > p->units ? width : p->units;
}

/* Copy the gradients with respect to the states into zeroed padded arrays, or back. */
static void move_states(const Backward *f, int inward)
{
    const Packed *p = f->packed[0];
    size_t size = p->engine->size, h = (size_t)p->P * size, c = (size_t)p->H * size;
    size_t padded_h = (size_t)width_of(p) * size, padded_c = (size_t)p->units * size, B = (size_t)f->B;
    for (int d = 0; d < f->directions; d++) {
        if (inward) {
            memset(f->dh[d], 0, B * padded_h);
            memset(f->dc[d], 0, B * padded_c);
        }
        for (size_t b = 0; b < B; b++) {
            char *dh = (char *)f->dh[d] + b * padded_h, *dh_0 = (char *)f->dh_0 + ((size_t)d * B + b) * h;
            char *dc = (char *)f->dc[d] + b * padded_c, *dc_0 = (char *)f->dc_0 + ((size_t)d * B + b) * c;
            memcpy(inward ? dh : dh_0, inward ? dh_0 : dh, h);
            memcpy(inward ? dc : dc_0, inward ? dc_0 : dc, c);
        }
    }
}

/* Lay out the memory of all directions, for blocks of `steps` steps. */
static size_t place_backward(Backward *f, Size steps, char *memory)
{
    Arena arena = {memory, 0};
    size_t size = f->packed[0]->engine->size, count = (size_t)(steps * f->B);
    for (int d = 0; d < f->directions; d++) {
        const Packed *p = f->packed[d];
        Rows *r = &f->rows[d];
        size_t projected = p->projected ? count * size : 0;
        p->engine->place_backward(f, d, &arena);
        f->dh[d] = take(&arena, (size_t)(f->B * width_of(p)) * size);
        f->dc[d] = take(&arena, (size_t)(f->B * p->units) * size);
        r->dz = take(&arena, count * (size_t)(4 * p->H) * size);
        r->t = take(&arena, count * sizeof(int32_t));
        r->b = take(&arena, count * sizeof(int32_t));
        r->index = take(&arena, count * sizeof(int32_t));
        r->dh = take(&arena, projected * (size_t)p->P);
        r->m = take(&arena, projected * (size_t)p->M);
        int peeped = p->pointwise.peepholes && p->pointwise.hold_c != 0;
        r->cell = peeped ? take(&arena, count * (size_t)p->H * size) : NULL;
        int normal = p->pointwise.normal;
        r->dzx = normal ? take(&arena, count * (size_t)(4 * p->H) * size) : r->dz;
        r->dzh = normal ? take(&arena, count * (size_t)(4 * p->H) * size) : r->dz;
        r->dseen = normal ? take(&arena, count * (size_t)p->H * size) : NULL;
        r->count = (Size)count;
    }
    return arena.used;
}

/* Return the multiply-adds of one step of the recurrence in one direction. */
static Size step_back_work(const Backward *f)
{
    const Packed *p = f->packed[0];
    return f->B * h_work(p);
}

/* Choose the numbers of threads for the recurrence and for the products over its rows. Return whether both
   directions run at the same time. */
static int share_out(Backward *f, int threads)
{
    const Packed *p = f->packed[0];
    f->team = plan(threads, f->directions, f->T, f->B, step_back_work(f), p, outputs_of(p), &f->by_rows);
    if (p->projected && !f->by_rows) {
        f->team = 1;
        f->by_rows = 1;
    }
    int together = f->directions == 1 || threads >= 2;
    /* Wake threads that slept during the recurrence only for enough work. */
    int awake = together && f->team * f->directions > 1;
    f->threads = awake || f->T * f->B * (h_work(p) + 2 * x_work(p)) >= WORTH_WAKING ? threads : 1;
    return together;
}

/* For each block of steps, from the last to the first, run the recurrence and then the products over its
   rows. Each pool_run is a barrier, so the products see the writes of all threads. */
static void run_blocks(Backward *f, Size steps, int together)
{
    for (Size from = 0; from < f->T && f->B; from += steps) {
        Size some = f->T - from < steps ? f->T - from : steps;
        for (int d = 0; d < f->directions; d++) {
            Size first = f->reverse[d] ? from : f->T - from - some;
            list_rows(f, d, first, first + some);
            barrier_init(&f->barrier[d], together ? f->team : -1, step_back_work(f));
        }
        pool_run(walk_back_work, f, together ? f->team * f->directions : 1);
        if (!f->by_rows)
            pool_note(f->barrier, f->directions);
        if (f->barrier[0].alone || f->barrier[1].alone) {
            f->team = 1;
            f->by_rows = 1;
        }
        for (f->direction = 0; f->direction < f->directions; f->direction++)
            pool_run(accumulate_work, f, f->threads);
    }
}

int run_backward(Backward *f, int threads)
{
    const Packed *p = f->packed[0];
    Crew crew;
    Size work = f->T * f->B * 2 * (x_work(p) + h_work(p)) * f->directions;
    threads = acquire_crew(&crew, work < WORTH_THREADS && pin() == AUTOMATIC ? 1 : threads);
    int together = share_out(f, threads);
    Size steps = BLOCK_ROWS / (f->B ? f->B : 1);
    steps = steps < 1 ? 1 : steps > f->T ? f->T : steps;
    size_t room = place_backward(f, steps, NULL);
    f->scratch_size = lines(p->engine->backward_scratch(f));
    size_t scratch = f->scratch_size * (size_t)threads;
    int failed = allocate(&crew, scratch + room);
    if (!failed) {
        f->scratch = crew.memory;
        place_backward(f, steps, crew.memory + scratch);
        pool_run(pack_backward_work, f, f->threads);
        move_states(f, 1);
        run_blocks(f, steps, together);
        move_states(f, 0);
    }
    release_crew(&crew);
    return failed;
}
