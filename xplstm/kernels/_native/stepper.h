/* One step of all layers from Python, for streams: each array is checked once, and everything out of the
   ordinary is left to the caller, which raises the errors. */

#define STEPPER "xplstm.kernels._engine.Stepper"

/* Multiply-adds below which other Python threads wait less than it takes to let them run. */
enum { WORTH_RELEASE = 1 << 16 };

enum { RESULTS = 3 };

typedef struct Stepper {
    PyObject *handles, *array, *dtype, *empty, *state;
    PyObject *one[2][RESULTS]; /* arguments of `empty` for a row without and with the axis of rows */
    const Packed **packed;
    void *zeros;       /* a row's first h or c */
    Size layers, work; /* of a row: multiply-adds */
    int threads;
    char format;
} Stepper;

static void free_stepper(PyObject *capsule)
{
    Stepper *s = PyCapsule_GetPointer(capsule, STEPPER);
    if (!s)
        return;
    for (int batched = 0; batched < 2; batched++)
        for (int n = 0; n < RESULTS; n++)
            Py_XDECREF(s->one[batched][n]);
    Py_XDECREF(s->handles);
    Py_XDECREF(s->array);
    Py_XDECREF(s->dtype);
    Py_XDECREF(s->empty);
    Py_XDECREF(s->state);
    free(s->zeros);
    free(s->packed);
    free(s);
}

/* Arguments of `empty` for y, h or c. */
static PyObject *shape_of(const Stepper *s, int result, int batched, Size B)
{
    Size layers = s->layers, n = result == 2 ? s->packed[0]->H : s->packed[0]->P;
    if (result == 0)
        return batched ? Py_BuildValue("((nn)O)", B, n, s->dtype) : Py_BuildValue("((n)O)", n, s->dtype);
    return batched ? Py_BuildValue("((nnn)O)", layers, B, n, s->dtype)
                   : Py_BuildValue("((nn)O)", layers, n, s->dtype);
}

/* A new array and its memory. */
static PyObject *make(const Stepper *s, Views *v, int result, int batched, Size B, char **to)
{
    PyObject *arguments = B == 1 ? s->one[batched][result] : shape_of(s, result, batched, B);
    PyObject *array = arguments ? PyObject_Call(s->empty, arguments, NULL) : NULL;
    if (B != 1)
        Py_XDECREF(arguments);
    Py_buffer *view = array ? open_view(v, array, PyBUF_WRITABLE) : NULL;
    if (view)
        *to = view->buf;
    else
        Py_CLEAR(array);
    return array;
}

/* The memory of a contiguous array of exactly the expected type and dtype; else NULL, without an error. */
static Py_buffer *plain(const Stepper *s, Views *v, PyObject *array, int ndim)
{
    if ((PyObject *)Py_TYPE(array) != s->array)
        return NULL;
    Py_buffer *view = open_view(v, array, PyBUF_ND | PyBUF_FORMAT);
    if (!view) {
        PyErr_Clear();
        return NULL;
    }
    int same = view->format[0] == s->format && !view->format[1];
    return same && (view->ndim == ndim || !ndim) ? view : NULL;
}

/* The memory of h or c. */
static const char *part(const Stepper *s, Views *v, PyObject *state, int k, int batched, Size B)
{
    if (state == Py_None)
        return B == 1 ? s->zeros : NULL;
    Py_buffer *view = plain(s, v, PyTuple_GetItem(state, k), 2 + batched);
    Size n = k ? s->packed[0]->H : s->packed[0]->P;
    int fits = view && view->shape[0] == s->layers && (!batched || view->shape[1] == B)
               && view->shape[1 + batched] == n;
    return fits ? view->buf : NULL;
}

static int run_layers(const Stepper *s, Size B, const void *x, const char *h, const char *c, void *y,
                      char *h_n, char *c_n)
{
    for (Size layer = 0; layer < s->layers; layer++) {
        const Packed *p = s->packed[layer];
        size_t size = p->engine->size, h_at = (size_t)(layer * B * p->P) * size,
               c_at = (size_t)(layer * B * p->H) * size;
        Forward f = {.packed = {p},
                     .directions = 1,
                     .T = 1,
                     .B = B,
                     .x = x,
                     .x_row = p->I,
                     .h_0 = h + h_at,
                     .c_0 = c + c_at,
                     .y = y,
                     .h_n = h_n + h_at,
                     .c_n = c_n + c_at};
        if (run_forward(&f, s->threads))
            return -1;
        x = h_n + h_at;
    }
    return 0;
}

/* (y, state). */
static PyObject *as_results(const Stepper *s, PyObject *y, PyObject *h, PyObject *c)
{
    /* As the tuple's own `new` makes one of a subclass, without the tuples that it would take them from. */
    PyObject *state = PyType_GenericAlloc((PyTypeObject *)s->state, 2);
    if (!state)
        return NULL;
    Py_INCREF(h);
    Py_INCREF(c);
    int bad = PyTuple_SetItem(state, 0, h) || PyTuple_SetItem(state, 1, c);
    PyObject *result = bad ? NULL : PyTuple_Pack(2, y, state);
    Py_DECREF(state);
    return result;
}

/* step(x, state): (y, state), or None where a look at the arguments is not enough. */
static PyObject *step(PyObject *capsule, PyObject *const *args, Py_ssize_t count)
{
    const Stepper *s = PyCapsule_GetPointer(capsule, STEPPER);
    if (!s)
        return NULL;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "step takes 2 arguments");
        return NULL;
    }
    Views v; /* not a field of it is worth zeroing */
    v.count = 0;
    PyObject *state = args[1], *results[RESULTS] = {NULL, NULL, NULL};
    int known = state == Py_None || (PyObject *)Py_TYPE(state) == s->state
                || (PyTuple_CheckExact(state) && PyTuple_Size(state) == 2);
    Py_buffer *x = known ? plain(s, &v, args[0], 0) : NULL;
    int batched = x && x->ndim == 2;
    Size B = batched ? x->shape[0] : 1;
    if (!x || (x->ndim != 1 && !batched) || !B || x->shape[batched] != s->packed[0]->I)
        goto other;
    const char *h = part(s, &v, state, 0, batched, B), *c = h ? part(s, &v, state, 1, batched, B) : NULL;
    if (!c)
        goto other;
    char *to[RESULTS];
    int bad = 0;
    for (int n = 0; n < RESULTS && !bad; n++)
        bad = !(results[n] = make(s, &v, n, batched, B, &to[n]));
    if (!bad) {
        PyThreadState *others = B * s->work >= WORTH_RELEASE ? PyEval_SaveThread() : NULL;
        bad = run_layers(s, B, x->buf, h, c, to[0], to[1], to[2]);
        if (others)
            PyEval_RestoreThread(others);
        if (bad)
            PyErr_NoMemory();
    }
    release(&v);
    PyObject *result = bad ? NULL : as_results(s, results[0], results[1], results[2]);
    for (int n = 0; n < RESULTS; n++)
        Py_XDECREF(results[n]);
    return result;
other:
    release(&v);
    Py_RETURN_NONE;
}

static PyMethodDef STEP = {"step", (PyCFunction)(void (*)(void))step, METH_FASTCALL,
                           "One step of all layers."};

/* stepper(packed, threads, array, dtype, empty, state): a function of x and (h, c) for layers of one
   direction. */
static PyObject *stepper(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *handles, *array, *dtype, *empty, *state;
    int threads;
    if (!PyArg_ParseTuple(args, "O!iOOOO", &PyTuple_Type, &handles, &threads, &array, &dtype, &empty, &state))
        return NULL;
    Stepper *s = calloc(1, sizeof *s);
    PyObject *capsule = s ? PyCapsule_New(s, STEPPER, free_stepper) : PyErr_NoMemory();
    if (!capsule) {
        free(s);
        return NULL;
    }
    Py_INCREF(s->handles = handles);
    Py_INCREF(s->array = array);
    Py_INCREF(s->dtype = dtype);
    Py_INCREF(s->empty = empty);
    Py_INCREF(s->state = state);
    s->threads = threads;
    s->layers = PyTuple_Size(handles);
    s->packed = malloc((size_t)(s->layers + 1) * sizeof *s->packed);
    int bad = !s->packed && PyErr_NoMemory() == NULL;
    for (Size layer = 0; layer < s->layers && !bad; layer++) {
        const Packed *p = s->packed[layer] = PyCapsule_GetPointer(PyTuple_GetItem(handles, layer), PACKED);
        bad = !p;
        s->work += p ? 4 * p->H * (p->P + p->I) : 0;
    }
    if (!bad) {
        const Packed *p = s->packed[0];
        s->format = p->engine->size == sizeof(float) ? 'f' : 'd';
        s->zeros = calloc((size_t)(s->layers * (p->H > p->P ? p->H : p->P)), p->engine->size);
        bad = !s->zeros && PyErr_NoMemory() == NULL;
    }
    for (int n = 0; n < 2 * RESULTS && !bad; n++)
        bad = !(s->one[n / RESULTS][n % RESULTS] = shape_of(s, n % RESULTS, n / RESULTS, 1));
    PyObject *function = bad ? NULL : PyCFunction_New(&STEP, capsule);
    Py_DECREF(capsule);
    return function;
}
