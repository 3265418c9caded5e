/* The extension module: reads arguments, and selects threads and the instruction set. Callers check shapes
   first; this file checks the length of every buffer again. */
#define PY_SSIZE_T_CLEAN
#include <pyconfig.h>
#ifndef Py_GIL_DISABLED /* free-threaded Python has no stable ABI yet */
#define Py_LIMITED_API 0x030B0000
#endif
#include <Python.h>

#include <stdlib.h>
#include <string.h>

#include "ieee.h"
#include "jobs.h"
#include "lstm.h"

#if defined(__x86_64__)
extern const Engine avx512_engine_f32, avx512_engine_f64, avx2_engine_f32, avx2_engine_f64;
#endif
extern const Engine baseline_engine_f32, baseline_engine_f64;

#define PACKED "xplstm.kernels._engine.Packed"

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
    &avx512_engine_f32,   &avx512_engine_f64,   &avx2_engine_f32, &avx2_engine_f64,
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

/* Buffers of a call, all released together. */
enum { MOST_VIEWS = 64 };

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

/* Copy the address of a C-contiguous array of `count` numbers to the pointer at `to`, which may have any
   pointer type; NULL, without an error, for None. */
static int get(Views *v, PyObject *array, Size count, size_t size, int writable, void *to)
{
    if (array == Py_None) {
        memset(to, 0, sizeof(void *));
        return 0;
    }
    Py_buffer *view = open_view(v, array, writable ? PyBUF_WRITABLE : PyBUF_SIMPLE);
    if (!view)
        return -1;
    if ((size_t)view->len != (size_t)count * size) {
        PyErr_Format(PyExc_ValueError, "an array has %zd bytes where %zd numbers of %zu bytes were expected",
                     view->len, (Py_ssize_t)count, size);
        return -1;
    }
    memcpy(to, &view->buf, sizeof view->buf);
    return 0;
}

/* Return 0, or -1 with an error if a * b * c * d bytes exceed the address space. */
static int check_size(Size a, Size b, Size c, Size d)
{
    Size n;
    if (a < 0 || b < 0 || c < 0 || d < 0 || __builtin_mul_overflow(a, b, &n)
        || __builtin_mul_overflow(n, c, &n) || __builtin_mul_overflow(n, d, &n) || n > PTRDIFF_MAX / 64) {
        PyErr_Format(PyExc_OverflowError, "sizes %zd, %zd, %zd, %zd make an array that exceeds any memory", a,
                     b, c, d);
        return -1;
    }
    return 0;
}

#include "packing.h"

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

/* Read x, whose features are contiguous and whose other strides are arbitrary. */
static int get_x(Views *v, PyObject *array, Size I, size_t size, const void **x, Size *T, Size *B, Size *step,
                 Size *row)
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

static int get_valid(Views *v, PyObject *lengths, PyObject *mask, PyObject *fresh, Size D, Size T, Size B,
                     Valid *valid)
{
    return get(v, lengths, B, sizeof(int32_t), 0, &valid->lengths) || get(v, mask, T * B, 1, 0, &valid->mask)
           || get(v, fresh, D * T * B, 1, 0, &valid->fresh);
}

static int get_kept(Views *v, PyObject *tuple, int directions, const Packed *const *p, Size T, Size B,
                    Kept *kept)
{
    size_t size = p[0]->engine->size;
    for (int d = 0; d < directions; d++) {
        Size units = p[d]->units;
        PyObject *gates, *cells, *hidden, *inputs = Py_None, *products = Py_None, *exposed = Py_None,
                                          *scales = Py_None;
        if (!PyArg_ParseTuple(PyTuple_GetItem(tuple, d), "OOO|OOOO", &gates, &cells, &hidden, &inputs,
                              &products, &exposed, &scales)
            || get(v, gates, T * B * 4 * units, size, 1, &kept[d].gates)
            || get(v, cells, (T + 1) * B * units, size, 1, &kept[d].cells)
            || get(v, hidden, T * B * p[d]->P, size, 1, &kept[d].hidden)
            || get(v, inputs, T * B * 4 * units, size, 1, &kept[d].inputs)
            || get(v, products, T * B * 4 * units, size, 1, &kept[d].products)
            || get(v, exposed, T * B * units, size, 1, &kept[d].exposed)
            || get(v, scales, T * B * 3, size, 1, &kept[d].scales))
            return -1;
        if (p[d]->pointwise.normal
            && (!kept[d].inputs || !kept[d].products || !kept[d].exposed || !kept[d].scales)) {
            PyErr_SetString(PyExc_ValueError, "layer normalisation keeps more");
            return -1;
        }
    }
    return 0;
}

/* Read None, or a tuple (dropped, held_h, held_c) for each direction. */
static int get_noise(Views *v, PyObject *given, int directions, const Packed *const *p, Size T, Size B,
                     Noise *noise)
{
    for (int d = 0; d < directions && given != Py_None; d++) {
        Size units = p[d]->units, P = p[d]->P;
        PyObject *dropped, *held_h, *held_c;
        if (!PyArg_ParseTuple(PyTuple_GetItem(given, d), "OOO", &dropped, &held_h, &held_c)
            || get(v, dropped, B * P, p[d]->engine->size, 0, &noise[d].dropped)
            || get(v, held_h, T * B * (p[d]->projected ? P : units), 1, 0, &noise[d].held_h)
            || get(v, held_c, T * B * units, 1, 0, &noise[d].held_c))
            return -1;
    }
    return 0;
}

/* forward(packed, reverse, x, h_0, c_0, lengths, mask, fresh, noise, y, h_n, c_n, kept, threads) */
static PyObject *forward(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *packed, *reverse, *x, *h_0, *c_0, *lengths, *mask, *fresh, *noise, *y, *h_n, *c_n, *kept;
    int threads;
    if (!PyArg_ParseTuple(args, "O!O!OOOOOOOOOOOi", &PyTuple_Type, &packed, &PyTuple_Type, &reverse, &x, &h_0,
                          &c_0, &lengths, &mask, &fresh, &noise, &y, &h_n, &c_n, &kept, &threads))
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
        || get_valid(&v, lengths, mask, fresh, D, f.T, B, &f.valid)
        || get_noise(&v, noise, f.directions, f.packed, f.T, B, f.noise)
        || get(&v, y, f.T * B * D * p->P, size, 1, &f.y) || get(&v, h_n, D * B * p->P, size, 1, &f.h_n)
        || get(&v, c_n, D * B * p->H, size, 1, &f.c_n)
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

#include "issue.h"
#include "stepper.h"

static int get_directions(Views *v, PyObject *weights, PyObject *gradients, Backward *f)
{
    for (int d = 0; d < f->directions; d++) {
        const Packed *p = f->packed[d];
        size_t size = p->engine->size;
        PyObject *ih, *hh, *hr, *dih, *dhh, *dbias, *dhr, *dch, *dbias_hr, *gain_ih, *gain_hh, *gain_c,
            *bias_c;
        Gradient *g = &f->gradient[d];
        if (!PyArg_ParseTuple(PyTuple_GetItem(weights, d), "OOO", &ih, &hh, &hr)
            || !PyArg_ParseTuple(PyTuple_GetItem(gradients, d), "OOOOOOOOOO", &dih, &dhh, &dbias, &dhr, &dch,
                                 &gain_ih, &gain_hh, &gain_c, &bias_c, &dbias_hr)
            || get(v, ih, x_work(p), size, 0, &f->weight_ih[d])
            || get(v, hh, h_work(p), size, 0, &f->weight_hh[d])
            || get(v, hr, p->P * p->M, size, 0, &f->weight_hr[d]) || get(v, dih, x_work(p), size, 1, &g->ih)
            || get(v, dhh, h_work(p), size, 1, &g->hh) || get(v, dbias, 4 * p->H, size, 1, &g->bias)
            || get(v, dhr, p->P * p->M, size, 1, &g->hr) || get(v, dch, 3 * p->H, size, 1, &g->ch)
            || get(v, dbias_hr, p->P, size, 1, &g->bias_hr) || get(v, gain_ih, 4 * p->H, size, 1, &g->gain_ih)
            || get(v, gain_hh, 4 * p->H, size, 1, &g->gain_hh) || get(v, gain_c, p->H, size, 1, &g->gain_c)
            || get(v, bias_c, p->H, size, 1, &g->bias_c))
            return -1;
    }
    return 0;
}

/* backward(packed, reverse, weights, x, h_0, lengths, mask, fresh, noise, dy, kept, dx, dh_0, dc_0,
   gradients, threads) */
static PyObject *backward(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *packed, *reverse, *weights, *x, *h_0, *lengths, *mask, *fresh, *noise, *dy, *kept, *dx, *dh_0,
        *dc_0, *gradients;
    int threads;
    if (!PyArg_ParseTuple(args, "O!O!O!OOOOOOOO!OOOO!i", &PyTuple_Type, &packed, &PyTuple_Type, &reverse,
                          &PyTuple_Type, &weights, &x, &h_0, &lengths, &mask, &fresh, &noise, &dy,
                          &PyTuple_Type, &kept, &dx, &dh_0, &dc_0, &PyTuple_Type, &gradients, &threads))
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
    if (get(&v, h_0, D * B * p->P, size, 0, &f.h_0) || get_valid(&v, lengths, mask, fresh, D, T, B, &f.valid)
        || get_noise(&v, noise, f.directions, f.packed, T, B, f.noise)
        || get(&v, dy, T * B * D * p->P, size, 0, &f.dy)
        || get_kept(&v, kept, f.directions, f.packed, T, B, f.kept)
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
        uint64_t before = enter_ieee();
        engine->apply(!strcmp(function, "tanh"), from->len / (Py_ssize_t)engine->size, from->buf, to);
        leave_ieee(before);
    }
    release(&v);
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

/* in_ieee(call): the result of call(), which NumPy computes in IEEE 754 arithmetic too. */
static PyObject *in_ieee(PyObject *self, PyObject *call)
{
    (void)self;
    uint64_t before = enter_ieee();
    PyObject *result = PyObject_CallNoArgs(call);
    leave_ieee(before);
    return result;
}

/* isas(): (name, whether multiply-adds are fused) of each instruction set that runs here, fastest first. */
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

/* interface(): the version of the arguments of these functions, and of what issue() does, which _compiled.py
   compares with its own. */
static PyObject *interface(PyObject *self, PyObject *unused)
{
    (void)self, (void)unused;
    return PyLong_FromLong(16);
}

/* draw(key_low, key_high, purpose, stream, start, p, (T, B, size, stride), flags, threads): a mask of
   zoneout. */
static PyObject *draw(PyObject *self, PyObject *args)
{
    (void)self;
    Mask m = {.T = 0};
    Views v = {.count = 0};
    unsigned long long key[2], purpose, stream, start;
    PyObject *flags;
    int threads;
    if (!PyArg_ParseTuple(args, "KKKKKd(nnnn)Oi", &key[0], &key[1], &purpose, &stream, &start, &m.p, &m.T,
                          &m.B, &m.size, &m.stride, &flags, &threads)
        || check_size(m.T, m.B, m.stride, 1))
        return NULL;
    m.key[0] = key[0];
    m.key[1] = key[1];
    m.purpose = purpose;
    m.stream = stream;
    m.start = start;
    if (m.size < 0 || m.size > m.stride || flags == Py_None)
        PyErr_SetString(PyExc_ValueError, "rows longer than their distance, or no flags");
    else if (!get(&v, flags, m.T * m.B * m.stride, 1, 1, &m.flags)) {
        Py_BEGIN_ALLOW_THREADS
        run_draw(&m, threads);
        Py_END_ALLOW_THREADS
    }
    release(&v);
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

/* pin_shares(how): pin how threads divide the work of a direction, by the enum of jobs.h. */
static PyObject *pin_shares_of(PyObject *self, PyObject *how)
{
    (void)self;
    long wanted = PyLong_AsLong(how);
    if (wanted == -1 && PyErr_Occurred())
        return NULL;
    if (wanted < 0 || wanted >= SHARES)
        return PyErr_Format(PyExc_ValueError, "an unknown way %ld of sharing work", wanted);
    pin_shares((int)wanted);
    Py_RETURN_NONE;
}

/* worth_threads(): the number of multiply-adds below which one thread runs a call. */
static PyObject *worth_threads_of(PyObject *self, PyObject *unused)
{
    (void)self, (void)unused;
    return PyLong_FromLong(worth_threads());
}

/* walks_alone(): the number of walks of a team that one thread ended alone. */
static PyObject *walks_alone(PyObject *self, PyObject *unused)
{
    (void)self, (void)unused;
    return PyLong_FromLong(pool_walks_alone());
}

static PyObject *release_memory(PyObject *self, PyObject *unused)
{
    (void)self, (void)unused;
    pool_forget_memory();
    Py_RETURN_NONE;
}

static PyMethodDef METHODS[] = {
    {"pack", pack, METH_VARARGS, "Weights of one direction, packed for an instruction set."},
    {"forward", forward, METH_VARARGS, "Run all directions of a layer."},
    {"stepper", stepper, METH_VARARGS, "A function that runs one step or a small call of all layers."},
    {"backward", backward, METH_VARARGS, "Take gradients back through all directions of a layer."},
    {"pin_shares", pin_shares_of, METH_O, "Pin how threads share the work of a direction."},
    {"walks_alone", walks_alone, METH_NOARGS, "How many walks of a team one thread had to end."},
    {"worth_threads", worth_threads_of, METH_NOARGS, "Multiply-adds below which one thread runs a call."},
    {"release_memory", release_memory, METH_NOARGS, "Free the scratch that is kept from call to call."},
    {"units", units, METH_O, "Hidden size of packed weights, rounded up to whole vectors."},
    {"draw", draw, METH_VARARGS, "A mask of zoneout, as the reference draws it."},
    {"apply", apply, METH_VARARGS, "sigmoid or tanh of an array, in the published operations."},
    {"in_ieee", in_ieee, METH_O, "Call a function in IEEE 754 arithmetic."},
    {"issue", issue, METH_VARARGS, "Run steps on a GPU by the functions that CuPy has loaded."},
    {"interface", interface, METH_NOARGS, "Number of the interface, for native.py."},
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
