/* Threads and memory of a call, and how its work is shared out. */
#include "jobs.h"

#include <stdlib.h>
#include <string.h>

#include "ieee.h"

/* What a second thread costs more than it brings below: multiply-adds of a whole call and of a thread's step, and bytes
   of packed weights. */
#ifdef XPLSTM_ALWAYS_THREADS  /* a build for tests, in which small problems reach the threads */
enum { WORTH_THREADS = 0, WORTH_A_BARRIER = 1, WORTH_PACKING = 0, WORTH_WAKING = 0 };
#else
enum { WORTH_THREADS = 1 << 18, WORTH_A_BARRIER = 1 << 17, WORTH_PACKING = 1 << 19, WORTH_WAKING = 1 << 25 };
#endif

/* Rows of a thread of its own that keep a tile of registers busy. */
enum { WORTH_ROWS = 4 };

/* Bytes of a state's weights that are too many for a core's second cache, and units for each row of a thread from which
   on reading its share of them for all rows is less than reading all of them for its rows. Shares may differ by one panel
   in EVEN. */
enum { MANY_WEIGHTS = 1 << 20, UNITS_A_ROW = 32, EVEN = 16 };

/* Rows whose products over all steps are made together. */
enum { BLOCK_ROWS = 1024 };

/* The threads of a call: the pool's where nobody else has them, and its memory. */
typedef struct Crew {
    int threads, owned;
    char *memory;
} Crew;

static int hire(Crew *crew, int threads)
{
    int got = pool_acquire(threads);
    crew->owned = got > 0;
    crew->threads = got > 0 ? got : 1;
    return crew->threads;
}

static int equip(Crew *crew, size_t bytes)
{
    crew->memory = crew->owned ? pool_memory(bytes) : aligned_alloc(64, lines(bytes));
    return crew->memory ? 0 : -1;
}

static void dismiss(Crew *crew)
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
    Packing job = {packed, *weights, hire(&crew, bytes < WORTH_PACKING ? 1 : threads)};
    pool_run(pack_work, &job, job.members);
    if (crew.owned)
        pool_release();
}

/* Vectors of units that the way forward can share out, and panels of outputs that the way back can. */
static Size panels_of(const Packed *p) { return (p->H + p->engine->lanes - 1) / p->engine->lanes; }
static Size outputs_of(const Packed *p) { return (p->P + 4 * p->engine->lanes - 1) / (4 * p->engine->lanes); }

/* Whether reading weights costs more than a barrier a step does and than uneven shares do. */
static int rather_by_panels(const Packed *p, Size panels, int team, Size B)
{
    Size bytes = 4 * p->H * p->P * (Size)p->engine->size, uneven = (panels + team - 1) / team * team - panels;
    return !p->projected && bytes >= MANY_WEIGHTS && B / team * UNITS_A_ROW <= p->H && uneven * EVEN <= panels;
}

/* Threads of one direction, and whether they share out rows or panels, for steps of `work` multiply-adds. */
static int plan(int threads, int directions, Size T, Size B, Size work, const Packed *p, Size panels, int *by_rows)
{
    int team = threads / directions;
    *by_rows = 1;
    if (team <= 1 || T * work < WORTH_THREADS)
        return 1;
    /* Rows of one's own need no barrier, which a busy machine makes slow. */
    if (B >= WORTH_ROWS * team && !rather_by_panels(p, panels, team, B))
        return team;
    *by_rows = 0;
    if (team > panels)
        team = (int)panels;
    if (work / team < WORTH_A_BARRIER)
        team = (int)(work / WORTH_A_BARRIER);
    return team < 1 ? 1 : team;
}

/* Directions at once where there are threads for both, else one after the other. */
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
    Size work = f->B * 4 * p->H * (p->P + p->I);
    if (f->T * work * f->directions < WORTH_THREADS)
        threads = 1;
    threads = hire(&crew, threads);
    f->team = plan(threads, f->directions, f->T, f->B, work, p, panels_of(p), &f->by_rows);
    int together = f->directions == 1 || threads >= 2;
    for (int d = 0; d < 2; d++)
        barrier_init(&f->barrier[d], together ? f->team : -1);
    threads = together ? f->team * f->directions : 1;
    f->scratch_size = lines(p->engine->forward_scratch(f));
    int failed = equip(&crew, f->scratch_size * (size_t)threads);
    f->scratch = crew.memory;
    if (!failed)
        pool_run(forward_work, f, threads);
    dismiss(&crew);
    return failed;
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
    f->packed[0]->engine->accumulate(f, f->direction, k, f->threads, f->scratch + (size_t)k * f->scratch_size);
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

/* Gradients by the states between the user's arrays and padded ones. */
static void move_states(const Backward *f, Size width, int inward)
{
    const Packed *p = f->packed[0];
    size_t size = p->engine->size;
    for (int d = 0; d < f->directions; d++)
        for (Size b = 0; b < f->B; b++) {
            char *dh = (char *)f->dh[d] + (size_t)(b * width) * size, *dc = (char *)f->dc[d] + (size_t)(b * p->units) * size;
            char *dh_0 = (char *)f->dh_0 + (size_t)((d * f->B + b) * p->P) * size;
            char *dc_0 = (char *)f->dc_0 + (size_t)((d * f->B + b) * p->H) * size;
            memcpy(inward ? dh : dh_0, inward ? dh_0 : dh, (size_t)p->P * size);
            memcpy(inward ? dc : dc_0, inward ? dc_0 : dc, (size_t)p->H * size);
        }
}

/* The memory of one direction. */
typedef struct Room {
    Size steps;              /* whose rows wait for their products together */
    size_t rows, width;      /* the most rows of so many steps; of dh, in numbers */
    size_t parts[3];         /* weights packed for the way back */
    size_t bytes;
} Room;

static Room measure(const Backward *f)
{
    const Packed *p = f->packed[0];
    size_t B = (size_t)f->B, size = p->engine->size, H = (size_t)p->H, P = (size_t)p->P, units = (size_t)p->units;
    Size steps = BLOCK_ROWS / (f->B ? f->B : 1);
    Room room = {.steps = steps < 1 ? 1 : steps > f->T ? f->T : steps};
    room.rows = (size_t)room.steps * B;
    room.width = (size_t)(outputs_of(p) * 4 * p->engine->lanes);
    room.width = room.width > units ? room.width : units;
    size_t states = lines(B * room.width * size) + lines(B * units * size);
    size_t block = lines(room.rows * 4 * H * size) + 3 * lines(room.rows * sizeof(int32_t))
                   + (p->projected ? lines(room.rows * P * size) + lines(room.rows * H * size) : 0);
    room.bytes = p->engine->backward_packed(f, 0, room.parts) + states + block;
    return room;
}

/* Give direction d its part of the memory; its states' gradients are zero at first, in the padding too. */
static void settle(Backward *f, int d, const Room *room, char *at)
{
    const Packed *p = f->packed[0];
    size_t size = p->engine->size, states = (size_t)f->B * size;
    Rows *r = &f->rows[d];
    f->hh[d] = take(&at, room->parts[0]);
    f->ih[d] = take(&at, room->parts[1]);
    f->hr[d] = take(&at, room->parts[2]);
    f->dh[d] = take(&at, states * room->width);
    f->dc[d] = take(&at, states * (size_t)p->units);
    r->dz = take(&at, room->rows * (size_t)(4 * p->H) * size);
    r->t = take(&at, room->rows * sizeof(int32_t));
    r->b = take(&at, room->rows * sizeof(int32_t));
    r->index = take(&at, room->rows * sizeof(int32_t));
    if (p->projected) {
        r->dh = take(&at, room->rows * (size_t)p->P * size);
        r->m = take(&at, room->rows * (size_t)p->H * size);
    }
    memset(f->dh[d], 0, states * room->width);
    memset(f->dc[d], 0, states * (size_t)p->units);
}

/* Decide on the threads that walk each direction and on those that make the products over its rows; whether the
   directions walk together. */
static int share_out(Backward *f, int threads)
{
    const Packed *p = f->packed[0];
    f->team = plan(threads, f->directions, f->T, f->B, f->B * 4 * p->H * p->P, p, outputs_of(p), &f->by_rows);
    if (p->projected && !f->by_rows) {
        f->team = 1;
        f->by_rows = 1;
    }
    int together = f->directions == 1 || threads >= 2;
    /* Threads that slept through the walk are woken for much work alone. */
    int awake = together && f->team * f->directions > 1;
    f->threads = awake || f->T * f->B * 4 * p->H * (p->P + 2 * p->I) >= WORTH_WAKING ? threads : 1;
    return together;
}

/* From the last steps of the walk to the first, a block at a time: the walk, then the products over its rows. */
static void run_blocks(Backward *f, Size steps, int together)
{
    for (Size from = 0; from < f->T && f->B; from += steps) {
        Size some = f->T - from < steps ? f->T - from : steps;
        for (int d = 0; d < f->directions; d++) {
            Size first = f->reverse[d] ? from : f->T - from - some;
            list_rows(f, d, first, first + some);
            barrier_init(&f->barrier[d], together ? f->team : -1);
        }
        pool_run(walk_back_work, f, together ? f->team * f->directions : 1);
        for (f->direction = 0; f->direction < f->directions; f->direction++)
            pool_run(accumulate_work, f, f->threads);
    }
}

int run_backward(Backward *f, int threads)
{
    const Packed *p = f->packed[0];
    Crew crew;
    Size work = f->T * f->B * 4 * p->H * 2 * (p->P + p->I) * f->directions;
    threads = hire(&crew, work < WORTH_THREADS ? 1 : threads);
    int together = share_out(f, threads);
    Room room = measure(f);
    for (int d = 0; d < f->directions; d++)
        f->rows[d].count = (Size)room.rows;
    f->scratch_size = lines(p->engine->backward_scratch(f));
    size_t scratch = f->scratch_size * (size_t)threads;
    int failed = equip(&crew, scratch + room.bytes * (size_t)f->directions);
    if (!failed) {
        f->scratch = crew.memory;
        for (int d = 0; d < f->directions; d++)
            settle(f, d, &room, crew.memory + scratch + room.bytes * (size_t)d);
        pool_run(pack_backward_work, f, f->threads);
        move_states(f, (Size)room.width, 1);
        run_blocks(f, room.steps, together);
        move_states(f, (Size)room.width, 0);
    }
    dismiss(&crew);
    return failed;
}
