/* The extension module: arguments, threads, and which instruction set runs. Shapes are checked before, in native.py;
   here every buffer's length is held against them once more. */
#define PY_SSIZE_T_CLEAN
#include <pyconfig.h>
#ifndef Py_GIL_DISABLED  /* without the global lock Python has no stable ABI yet */
#define Py_LIMITED_API 0x030B0000
#endif
#include <Python.h>

#include <stdlib.h>
#include <string.h>

#include "lstm.h"

#if defined(__x86_64__)
#include <immintrin.h>
extern const Engine avx512_engine_f32, avx512_engine_f64, avx2_engine_f32, avx2_engine_f64;
#endif
extern const Engine baseline_engine_f32, baseline_engine_f64;

#define PACKED "xplstm.kernels._engine.Packed"

/* What a second thread costs more than it brings below: multiply-adds of a whole call and of a thread's step, and bytes
   of packed weights. */
#ifdef XPLSTM_ALWAYS_THREADS  /* a build for tests, in which small problems reach the threads */
enum { WORTH_THREADS = 0, WORTH_A_BARRIER = 1, WORTH_PACKING = 0, WORTH_WAKING = 0 };
#else
enum { WORTH_THREADS = 1 << 18, WORTH_A_BARRIER = 1 << 17, WORTH_PACKING = 1 << 19, WORTH_WAKING = 1 << 25 };
#endif

/* Rows of a thread of its own that keep a tile of registers busy. */
enum { WORTH_ROWS = 4 };

/* Rows whose products over all steps are made together. */
enum { BLOCK_ROWS = 1024 };

static int runs_here(const Engine *engine)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!strcmp(engine->isa, "avx512"))
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")
               && __builtin_cpu_supports("avx512vl");
    if (!strcmp(engine->isa, "avx2"))
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    return engine != NULL;
}

static const Engine *const ENGINES[] = {
#if defined(__x86_64__)
    &avx512_engine_f32, &avx512_engine_f64, &avx2_engine_f32, &avx2_engine_f64,
#endif
    &baseline_engine_f32, &baseline_engine_f64,
};

static const Engine *find_engine(const char *isa, const char *dtype)
{
    for (size_t n = 0; n < sizeof ENGINES / sizeof *ENGINES; n++)
        if (!strcmp(ENGINES[n]->isa, isa) && !strcmp(ENGINES[n]->dtype, dtype) && runs_here(ENGINES[n]))
            return ENGINES[n];
    PyErr_Format(PyExc_ValueError, "no instructions %s for %s here", isa, dtype);
    return NULL;
}

/* Flush-to-zero and other rounding, which some libraries switch on, would change bits: XPL-EXACT-001. */
#if defined(__x86_64__)
static unsigned enter_ieee(void)
{
    unsigned before = _mm_getcsr();
    _mm_setcsr(0x1f80);
    return before;
}
static void leave_ieee(unsigned before) { _mm_setcsr(before); }
#elif defined(__aarch64__)
static uint64_t enter_ieee(void)
{
    uint64_t before, none = 0;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" : : "r"(none));
    return before;
}
static void leave_ieee(uint64_t before) { __asm__ volatile("msr fpcr, %0" : : "r"(before)); }
#else
static int enter_ieee(void) { return 0; }
static void leave_ieee(int before) { (void)before; }
#endif

/* Buffers of a call, all released together. */
enum { MOST_VIEWS = 48 };

typedef struct Views {
    Py_buffer view[MOST_VIEWS];
    int count;
} Views;

static void release(Views *v)
{
    while (v->count)
        PyBuffer_Release(&v->view[--v->count]);
}

static Py_buffer *open_view(Views *v, PyObject *array, int flags)
{
    if (v->count == MOST_VIEWS) {
        PyErr_SetString(PyExc_SystemError, "too many arrays in one call");
        return NULL;
    }
    if (PyObject_GetBuffer(array, &v->view[v->count], flags))
        return NULL;
    return &v->view[v->count++];
}

/* The data of a C-contiguous array of `count` numbers; NULL, without an error, for None. */
static int get(Views *v, PyObject *array, Size count, size_t size, int writable, void *to)
{
    *(void **)to = NULL;
    if (array == Py_None)
        return 0;
    Py_buffer *view = open_view(v, array, writable ? PyBUF_WRITABLE : PyBUF_SIMPLE);
    if (!view)
        return -1;
    if ((size_t)view->len != (size_t)count * size) {
        PyErr_Format(PyExc_ValueError, "an array has %zd bytes where %zd numbers of %zu bytes were expected", view->len,
                     (Py_ssize_t)count, size);
        return -1;
    }
    *(void **)to = view->buf;
    return 0;
}

/* a * b * c * d bytes, or -1 with an error where no address space holds as many. */
static int check_size(Size a, Size b, Size c, Size d)
{
    Size n;
    if (a < 0 || b < 0 || c < 0 || d < 0 || __builtin_mul_overflow(a, b, &n) || __builtin_mul_overflow(n, c, &n)
        || __builtin_mul_overflow(n, d, &n) || n > PTRDIFF_MAX / 64) {
        PyErr_Format(PyExc_OverflowError, "sizes %zd, %zd, %zd, %zd make an array that no memory holds", a, b, c, d);
        return -1;
    }
    return 0;
}

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

/* Packed weights and the memory that they are in. */
typedef struct Held {
    Packed packed;
    Py_buffer room;
} Held;

static void free_packed(PyObject *capsule)
{
    Held *held = PyCapsule_GetPointer(capsule, PACKED);
    if (held) {
        PyBuffer_Release(&held->room);
        free(held);
    }
}

typedef struct Packing {
    const Packed *packed;
    Weights weights;
    int members;
} Packing;

static void pack_work(void *context, int k)
{
    const Packing *job = context;
    unsigned before = (unsigned)enter_ieee();
    job->packed->engine->pack(job->packed, &job->weights, k, job->members);
    leave_ieee(before);
}

/* pack(isa, dtype, I, H, proj_size, room, threads, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr) */
static PyObject *pack(PyObject *self, PyObject *args)
{
    (void)self;
    const char *isa, *dtype;
    PyObject *ih, *hh, *bias_ih, *bias_hh, *hr, *room;
    Size I, H, proj;
    int threads;
    if (!PyArg_ParseTuple(args, "ssnnnOiOOOOO", &isa, &dtype, &I, &H, &proj, &room, &threads, &ih, &hh, &bias_ih, &bias_hh,
                          &hr))
        return NULL;
    const Engine *engine = find_engine(isa, dtype);
    if (!engine || check_size(H, 8, I > H ? I : H, (Size)engine->size * engine->lanes))
        return NULL;
    Held *held = calloc(1, sizeof *held);
    if (!held)
        return PyErr_NoMemory();
    Packed *p = &held->packed;
    *p = (Packed){.engine = engine, .I = I, .H = H, .P = proj ? proj : H, .projected = proj != 0,
                  .biased = bias_ih != Py_None};
    Views v = {.count = 0};
    Packing job = {.packed = p};
    Weights *w = &job.weights;
    size_t size = engine->size;
    if (get(&v, ih, 4 * H * I, size, 0, &w->ih) || get(&v, hh, 4 * H * p->P, size, 0, &w->hh)
        || get(&v, bias_ih, 4 * H, size, 0, &w->bias_ih) || get(&v, bias_hh, 4 * H, size, 0, &w->bias_hh)
        || get(&v, hr, p->P * H, size, 0, &w->hr))
        goto failed;
    size_t bytes = engine->packed_size(p);
    PyObject *memory = PyObject_CallFunction(room, "n", (Py_ssize_t)bytes);
    if (!memory)
        goto failed;
    int refused = PyObject_GetBuffer(memory, &held->room, PyBUF_WRITABLE);
    Py_DECREF(memory);
    if (refused)
        goto failed;
    if ((size_t)held->room.len < bytes) {
        PyErr_SetString(PyExc_ValueError, "less room than was asked for");
        goto failed;
    }
    engine->place(p, held->room.buf);
    Py_BEGIN_ALLOW_THREADS
    Crew crew;
    job.members = hire(&crew, bytes < WORTH_PACKING ? 1 : threads);
    pool_run(pack_work, &job, job.members);
    if (crew.owned)
        pool_release();
    Py_END_ALLOW_THREADS
    release(&v);
    PyObject *capsule = PyCapsule_New(held, PACKED, free_packed);
    if (capsule)
        return capsule;
failed:
    release(&v);
    PyBuffer_Release(&held->room);
    free(held);
    return NULL;
}

static int get_packed(PyObject *tuple, PyObject *reverse, const Packed **packed, int *backwards)
{
    Size n = PyTuple_Size(tuple);
    if (n != 1 && n != 2) {
        PyErr_SetString(PyExc_ValueError, "one or two directions");
        return 0;
    }
    for (Size d = 0; d < n; d++) {
        packed[d] = PyCapsule_GetPointer(PyTuple_GetItem(tuple, d), PACKED);
        PyObject *back = PyTuple_GetItem(reverse, d);
        if (!packed[d] || !back)
            return 0;
        backwards[d] = PyObject_IsTrue(back);
    }
    return (int)n;
}

/* x of any strides whose features follow each other. */
static int get_x(Views *v, PyObject *array, Size I, size_t size, const void **x, Size *T, Size *B, Size *step, Size *row)
{
    Py_buffer *view = open_view(v, array, PyBUF_STRIDES);
    if (!view)
        return -1;
    if (view->ndim != 3 || view->shape[2] != I || (size_t)view->itemsize != size
        || (I > 1 && view->strides[2] != (Py_ssize_t)size) || view->strides[0] % (Py_ssize_t)size
        || view->strides[1] % (Py_ssize_t)size) {
        PyErr_SetString(PyExc_ValueError, "x is not (T, B, I) with features next to each other");
        return -1;
    }
    *x = view->buf;
    *T = view->shape[0];
    *B = view->shape[1];
    *step = view->strides[0] / (Py_ssize_t)size;
    *row = view->strides[1] / (Py_ssize_t)size;
    return 0;
}

static int get_valid(Views *v, PyObject *lengths, PyObject *mask, Size T, Size B, Valid *valid)
{
    return get(v, lengths, B, sizeof(int32_t), 0, &valid->lengths) || get(v, mask, T * B, 1, 0, &valid->mask);
}

static int get_kept(Views *v, PyObject *tuple, int directions, const Packed *const *p, Size T, Size B, Kept *kept)
{
    size_t size = p[0]->engine->size;
    for (int d = 0; d < directions; d++) {
        Size units = p[d]->units;
        PyObject *gates, *cells, *hidden;
        if (!PyArg_ParseTuple(PyTuple_GetItem(tuple, d), "OOO", &gates, &cells, &hidden)
            || get(v, gates, T * B * 4 * units, size, 1, &kept[d].gates)
            || get(v, cells, (T + 1) * B * units, size, 1, &kept[d].cells)
            || get(v, hidden, T * B * p[d]->P, size, 1, &kept[d].hidden))
            return -1;
    }
    return 0;
}

/* Threads of one direction, and how they share it out, for steps of `work` multiply-adds. */
static int plan(int threads, int directions, Size T, Size B, Size work, const Packed *p, int *by_rows)
{
    Size panels = (p->H + p->engine->lanes - 1) / p->engine->lanes;
    int team = threads / directions;
    *by_rows = 1;
    if (team <= 1 || T * work < WORTH_THREADS)
        return 1;
    /* Rows of one's own need no barrier, which a busy machine makes slow. */
    if (B >= WORTH_ROWS * team)
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
    unsigned before = (unsigned)enter_ieee();
    if (f->directions == 2 && f->barrier[0].members < 0)
        for (int d = 0; d < 2; d++)
            engine->forward(f, d, 0, scratch);
    else
        engine->forward(f, k % f->directions, k / f->directions, scratch);
    leave_ieee(before);
}

static int run_forward(Forward *f, int threads)
{
    const Packed *p = f->packed[0];
    Crew crew;
    Size work = f->B * 4 * p->H * (p->P + p->I);
    if (f->T * work * f->directions < WORTH_THREADS)
        threads = 1;
    threads = hire(&crew, threads);
    f->team = plan(threads, f->directions, f->T, f->B, work, p, &f->by_rows);
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

/* forward(packed, reverse, x, h_0, c_0, lengths, mask, y, h_n, c_n, kept, threads) */
static PyObject *forward(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *packed, *reverse, *x, *h_0, *c_0, *lengths, *mask, *y, *h_n, *c_n, *kept;
    int threads;
    if (!PyArg_ParseTuple(args, "O!O!OOOOOOOOOi", &PyTuple_Type, &packed, &PyTuple_Type, &reverse, &x, &h_0, &c_0, &lengths,
                          &mask, &y, &h_n, &c_n, &kept, &threads))
        return NULL;
    Forward f = {.T = 0};
    Views v = {.count = 0};
    f.directions = get_packed(packed, reverse, f.packed, f.reverse);
    if (!f.directions)
        return NULL;
    const Packed *p = f.packed[0];
    size_t size = p->engine->size;
    f.keep = kept != Py_None;
    if (get_x(&v, x, p->I, size, &f.x, &f.T, &f.B, &f.x_step, &f.x_row)
        || check_size(f.T + 1, f.B, 4 * p->units > p->P ? 4 * p->units : p->P, 2 * (Size)size))
        goto failed;
    Size D = f.directions, B = f.B;
    if (get(&v, h_0, D * B * p->P, size, 0, &f.h_0) || get(&v, c_0, D * B * p->H, size, 0, &f.c_0)
        || get_valid(&v, lengths, mask, f.T, B, &f.valid) || get(&v, y, f.T * B * D * p->P, size, 1, &f.y)
        || get(&v, h_n, D * B * p->P, size, 1, &f.h_n) || get(&v, c_n, D * B * p->H, size, 1, &f.c_n)
        || (f.keep && get_kept(&v, kept, f.directions, f.packed, f.T, B, f.kept)))
        goto failed;
    int bad;
    Py_BEGIN_ALLOW_THREADS
    bad = run_forward(&f, threads);
    Py_END_ALLOW_THREADS
    if (bad)
        PyErr_NoMemory();
failed:
    release(&v);
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

#include "stepper.h"

static void walk_back_work(void *context, int k)
{
    Backward *f = context;
    const Engine *engine = f->packed[0]->engine;
    char *scratch = f->scratch + (size_t)k * f->scratch_size;
    unsigned before = (unsigned)enter_ieee();
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
    unsigned before = (unsigned)enter_ieee();
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

static int run_backward(Backward *f, int threads)
{
    const Packed *p = f->packed[0];
    const Engine *engine = p->engine;
    Size T = f->T, B = f->B, work = B * 4 * p->H * p->P;
    Crew crew;
    if (T * B * 4 * p->H * (2 * p->P + 2 * p->I) * f->directions < WORTH_THREADS)
        threads = 1;
    threads = hire(&crew, threads);
    f->team = plan(threads, f->directions, T, B, work, p, &f->by_rows);
    if (p->projected && !f->by_rows) {
        f->team = 1;
        f->by_rows = 1;
    }
    Size outputs = (p->P + 4 * engine->lanes - 1) / (4 * engine->lanes);
    if (!f->by_rows && f->team > outputs)
        f->team = (int)outputs;
    int together = f->directions == 1 || threads >= 2;
    int walkers = together ? f->team * f->directions : 1;
    /* Threads that slept through the walk are woken for much work alone. */
    f->threads = walkers > 1 || T * B * 4 * p->H * (p->P + 2 * p->I) >= WORTH_WAKING ? threads : 1;
    Size steps = BLOCK_ROWS / (B ? B : 1);
    steps = steps < 1 ? 1 : steps > T ? T : steps;
    size_t rows = (size_t)(steps * B), size = engine->size, parts[3];
    size_t width = (size_t)round_up(outputs * 4 * engine->lanes, 1);
    width = width > (size_t)p->units ? width : (size_t)p->units;
    for (int d = 0; d < f->directions; d++)
        f->rows[d].count = (Size)rows;
    f->scratch_size = lines(engine->backward_scratch(f));
    size_t packed = engine->backward_packed(f, 0, parts);
    size_t states = lines((size_t)B * width * size) + lines((size_t)B * (size_t)p->units * size);
    size_t block = lines(rows * (size_t)(4 * p->H) * size) + 3 * lines(rows * sizeof(int32_t))
                   + (p->projected ? lines(rows * (size_t)p->P * size) + lines(rows * (size_t)p->H * size) : 0);
    if (equip(&crew, f->scratch_size * (size_t)threads + (packed + states + block) * (size_t)f->directions)) {
        dismiss(&crew);
        return -1;
    }
    char *at = crew.memory;
    f->scratch = take(&at, f->scratch_size * (size_t)threads);
    for (int d = 0; d < f->directions; d++) {
        f->hh[d] = take(&at, parts[0]);
        f->ih[d] = take(&at, parts[1]);
        f->hr[d] = take(&at, parts[2]);
        f->dh[d] = take(&at, (size_t)B * width * size);
        f->dc[d] = take(&at, (size_t)B * (size_t)p->units * size);
        Rows *r = &f->rows[d];
        r->dz = take(&at, rows * (size_t)(4 * p->H) * size);
        r->t = take(&at, rows * sizeof(int32_t));
        r->b = take(&at, rows * sizeof(int32_t));
        r->index = take(&at, rows * sizeof(int32_t));
        if (p->projected) {
            r->dh = take(&at, rows * (size_t)p->P * size);
            r->m = take(&at, rows * (size_t)p->H * size);
        }
        memset(f->dh[d], 0, (size_t)B * width * size);
        memset(f->dc[d], 0, (size_t)B * (size_t)p->units * size);
    }
    pool_run(pack_backward_work, f, f->threads);
    move_states(f, (Size)width, 1);
    for (Size from = 0; from < T && B; from += steps) {
        Size some = T - from < steps ? T - from : steps;
        for (int d = 0; d < f->directions; d++) {
            Size first = f->reverse[d] ? from : T - from - some;
            list_rows(f, d, first, first + some);
            barrier_init(&f->barrier[d], together ? f->team : -1);
        }
        pool_run(walk_back_work, f, walkers);
        for (f->direction = 0; f->direction < f->directions; f->direction++)
            pool_run(accumulate_work, f, f->threads);
    }
    move_states(f, (Size)width, 0);
    dismiss(&crew);
    return 0;
}

static int get_directions(Views *v, PyObject *weights, PyObject *gradients, Backward *f)
{
    for (int d = 0; d < f->directions; d++) {
        const Packed *p = f->packed[d];
        size_t size = p->engine->size;
        PyObject *ih, *hh, *hr, *dih, *dhh, *dbias, *dhr;
        Gradient *g = &f->gradient[d];
        if (!PyArg_ParseTuple(PyTuple_GetItem(weights, d), "OOO", &ih, &hh, &hr)
            || !PyArg_ParseTuple(PyTuple_GetItem(gradients, d), "OOOO", &dih, &dhh, &dbias, &dhr)
            || get(v, ih, 4 * p->H * p->I, size, 0, &f->weight_ih[d])
            || get(v, hh, 4 * p->H * p->P, size, 0, &f->weight_hh[d])
            || get(v, hr, p->P * p->H, size, 0, &f->weight_hr[d]) || get(v, dih, 4 * p->H * p->I, size, 1, &g->ih)
            || get(v, dhh, 4 * p->H * p->P, size, 1, &g->hh) || get(v, dbias, 4 * p->H, size, 1, &g->bias)
            || get(v, dhr, p->P * p->H, size, 1, &g->hr))
            return -1;
    }
    return 0;
}

/* backward(packed, reverse, weights, x, h_0, lengths, mask, dy, kept, dx, dh_0, dc_0, gradients, threads) */
static PyObject *backward(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *packed, *reverse, *weights, *x, *h_0, *lengths, *mask, *dy, *kept, *dx, *dh_0, *dc_0, *gradients;
    int threads;
    if (!PyArg_ParseTuple(args, "O!O!O!OOOOOO!OOOO!i", &PyTuple_Type, &packed, &PyTuple_Type, &reverse, &PyTuple_Type,
                          &weights, &x, &h_0, &lengths, &mask, &dy, &PyTuple_Type, &kept, &dx, &dh_0, &dc_0, &PyTuple_Type,
                          &gradients, &threads))
        return NULL;
    Backward f = {.T = 0};
    Views v = {.count = 0};
    f.directions = get_packed(packed, reverse, f.packed, f.reverse);
    if (!f.directions)
        return NULL;
    const Packed *p = f.packed[0];
    size_t size = p->engine->size;
    if (get_x(&v, x, p->I, size, &f.x, &f.T, &f.B, &f.x_step, &f.x_row)
        || check_size(f.T + 1, f.B, 8, INT32_MAX / 8 < f.T || INT32_MAX / 8 < f.B ? PTRDIFF_MAX : 1))
        goto failed;
    Size D = f.directions, T = f.T, B = f.B;
    if (get(&v, h_0, D * B * p->P, size, 0, &f.h_0) || get_valid(&v, lengths, mask, T, B, &f.valid)
        || get(&v, dy, T * B * D * p->P, size, 0, &f.dy) || get_kept(&v, kept, f.directions, f.packed, T, B, f.kept)
        || get(&v, dx, T * B * p->I, size, 1, &f.dx) || get(&v, dh_0, D * B * p->P, size, 1, &f.dh_0)
        || get(&v, dc_0, D * B * p->H, size, 1, &f.dc_0) || get_directions(&v, weights, gradients, &f))
        goto failed;
    int bad;
    Py_BEGIN_ALLOW_THREADS
    bad = run_backward(&f, threads);
    Py_END_ALLOW_THREADS
    if (bad)
        PyErr_NoMemory();
failed:
    release(&v);
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

/* units(packed): the hidden size, rounded up to whole vectors. */
static PyObject *units(PyObject *self, PyObject *capsule)
{
    (void)self;
    const Packed *p = PyCapsule_GetPointer(capsule, PACKED);
    return p ? PyLong_FromSsize_t(p->units) : NULL;
}

/* apply(isa, dtype, function, x, y): y = sigmoid(x) or tanh(x). */
static PyObject *apply(PyObject *self, PyObject *args)
{
    (void)self;
    const char *isa, *dtype, *function;
    PyObject *x, *y;
    if (!PyArg_ParseTuple(args, "sssOO", &isa, &dtype, &function, &x, &y))
        return NULL;
    const Engine *engine = find_engine(isa, dtype);
    Views v = {.count = 0};
    if (!engine)
        return NULL;
    Py_buffer *from = open_view(&v, x, PyBUF_SIMPLE);
    void *to;
    if (from && !get(&v, y, from->len / (Py_ssize_t)engine->size, engine->size, 1, &to)) {
        unsigned before = (unsigned)enter_ieee();
        engine->apply(!strcmp(function, "tanh"), from->len / (Py_ssize_t)engine->size, from->buf, to);
        leave_ieee(before);
    }
    release(&v);
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

/* isas(): (name, whether multiply-adds are fused) of each set of instructions that runs here, fastest first. */
static PyObject *isas(PyObject *self, PyObject *unused)
{
    (void)self;
    (void)unused;
    PyObject *found = PyList_New(0);
    for (size_t n = 0; found && n < sizeof ENGINES / sizeof *ENGINES; n += 2) {
        if (!runs_here(ENGINES[n]))
            continue;
        PyObject *item = Py_BuildValue("(sO)", ENGINES[n]->isa, ENGINES[n]->fused ? Py_True : Py_False);
        if (!item || PyList_Append(found, item)) {
            Py_XDECREF(item);
            Py_DECREF(found);
            return NULL;
        }
        Py_DECREF(item);
    }
    return found;
}

static PyMethodDef METHODS[] = {
    {"pack", pack, METH_VARARGS, "Weights of one direction, packed for an instruction set."},
    {"forward", forward, METH_VARARGS, "Run all directions of a layer."},
    {"stepper", stepper, METH_VARARGS, "A function that runs one step of all layers."},
    {"backward", backward, METH_VARARGS, "Take gradients back through all directions of a layer."},
    {"units", units, METH_O, "Hidden size of packed weights, rounded up to whole vectors."},
    {"apply", apply, METH_VARARGS, "sigmoid or tanh of an array, in the published operations."},
    {"isas", isas, METH_NOARGS, "Instruction sets that run here, fastest first."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot SLOTS[] = {
#if PY_VERSION_HEX >= 0x030c0000 && (!defined(Py_LIMITED_API) || Py_LIMITED_API >= 0x030c0000)
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT,
    .m_name = "xplstm.kernels._engine",
    .m_doc = "The LSTM in C: see native.py.",
    .m_methods = METHODS,
    .m_slots = SLOTS,
};

PyMODINIT_FUNC PyInit__engine(void) { return PyModuleDef_Init(&MODULE); }
