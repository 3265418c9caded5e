/* Run one step or one small call of all layers from Python. Each array is checked once. For unusual
   arguments, the functions return None, and the caller raises the errors. */

#define STEPPER "xplstm.kernels._engine.Stepper"

/* Number of multiply-adds from which releasing the global lock pays off. */
enum { WORTH_RELEASE = 1 << 16 };

/* A call is small if `plan` runs it on one thread, and the interpreter's work for it is a part of its time.
 */
enum { FEW_ROWS = 8, SMALL_STEP = 1 << 17, SMALL_CALL = 1 << 22 };

/* Layouts of x: one step, or a sequence with time or the batch first. native.py lists them in this order. */
enum { ONE_STEP, TIME_FIRST, BATCH_FIRST, ORDERS };

/* The arrays y, h, c, and the output between layers over a sequence. */
enum { RESULTS = 3, BETWEEN = 3, ARRAYS };

typedef struct Stepper {
    PyObject *handles, *array, *dtype, *empty, *state;
    PyObject *one[2][RESULTS]; /* arguments of `empty` for a row without and with the axis of rows */
    const Packed **packed;
    void *zeros;       /* a row's first h or c */
    Size layers, work; /* of a row: multiply-adds */
    int threads, order;
    char format;
} Stepper;

/* The sizes of one call. */
typedef struct Sizes {
    Size T, B;
    int batched;
} Sizes;

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

static int is_output(int result) { return result == 0 || result == BETWEEN; }

/* Arguments of `empty` for one of ARRAYS. */
static PyObject *shape_of(const Stepper *s, int result, Sizes of)
{
    Size n = result == 2 ? s->packed[0]->H : s->packed[0]->P, first = s->layers;
    if (is_output(result) && s->order == ONE_STEP)
        return of.batched ? Py_BuildValue("((nn)O)", of.B, n, s->dtype)
                          : Py_BuildValue("((n)O)", n, s->dtype);
    if (is_output(result))
        first = of.T;
    if (is_output(result) && s->order == BATCH_FIRST && of.batched)
        return Py_BuildValue("((nnn)O)", of.B, first, n, s->dtype);
    return of.batched ? Py_BuildValue("((nnn)O)", first, of.B, n, s->dtype)
                      : Py_BuildValue("((nn)O)", first, n, s->dtype);
}

/* A new array and its memory. */
static PyObject *make(const Stepper *s, Views *v, int result, Sizes of, char **to)
{
    int known = of.B == 1 && (s->order == ONE_STEP || !is_output(result));
    PyObject *arguments = known ? s->one[of.batched][result] : shape_of(s, result, of);
    PyObject *array = arguments ? PyObject_Call(s->empty, arguments, NULL) : NULL;
    if (!known)
        Py_XDECREF(arguments);
    Py_buffer *view = array ? open_view(v, array, PyBUF_WRITABLE) : NULL;
    if (view)
        *to = view->buf;
    else
        Py_CLEAR(array);
    return array;
}

/* Return the memory of a contiguous array of exactly the expected type and dtype; else NULL. Set no error. */
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

/* Return the memory of h or c. */
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

/* All layers from x to `to`. Over a sequence outputs alternate between two arrays, and the last is y. */
static int run_layers(const Stepper *s, Sizes of, const void *x, const char *h, const char *c,
                      char *const *to)
{
    Size B = of.B;
    char *h_n = to[1], *c_n = to[2];
    for (Size layer = 0; layer < s->layers; layer++) {
        char *y = s->order != ONE_STEP && (s->layers - layer) % 2 == 0 ? to[BETWEEN] : to[0];
        const Packed *p = s->packed[layer];
        size_t size = p->engine->size, h_at = (size_t)(layer * B * p->P) * size,
               c_at = (size_t)(layer * B * p->H) * size;
        Forward f = {.packed = {p},
                     .directions = 1,
                     .T = of.T,
                     .B = B,
                     .x = x,
                     .x_step = B * p->I,
                     .x_row = p->I,
                     .h_0 = h + h_at,
                     .c_0 = c + c_at,
                     .y = y,
                     .h_n = h_n + h_at,
                     .c_n = c_n + c_at};
        if (run_forward(&f, s->order == ONE_STEP ? s->threads : 1))
            return -1;
        x = s->order == ONE_STEP ? h_n + h_at : y;
    }
    return 0;
}

/* Return the tuple (y, state). */
static PyObject *as_results(const Stepper *s, PyObject *y, PyObject *h, PyObject *c)
{
    /* Allocate the subclass of tuple directly, which avoids the temporary tuple of tuple.__new__. */
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

/* The sizes of x, with a T of 0 where it is not the plain array that these functions know. */
static Sizes sizes_of(const Stepper *s, const Py_buffer *x)
{
    int sequence = s->order != ONE_STEP;
    Sizes of = {.T = 0, .B = 1, .batched = x && x->ndim == 2 + sequence};
    if (!x || (!of.batched && x->ndim != 1 + sequence) || x->shape[x->ndim - 1] != s->packed[0]->I)
        return of;
    int batch = s->order == TIME_FIRST;
    if (of.batched)
        of.B = x->shape[batch];
    if (!of.B)
        return of;
    if (!sequence) {
        of.T = 1;
        return of;
    }
    Size T = x->shape[of.batched && !batch];
    /* With one batch entry, both layouts have the same memory. */
    Size most = s->threads == 1 || s->threads == -1 ? SMALL_CALL : worth_barriers();
    if (of.B < (batch ? FEW_ROWS : 2) && of.B * s->work < SMALL_STEP && T < most / (of.B * s->work))
        of.T = T;
    return of;
}

/* step(x, state): return (y, state), or None for arguments that need the checks of a call. */
static PyObject *step(PyObject *capsule, PyObject *const *args, Py_ssize_t count)
{
    const Stepper *s = PyCapsule_GetPointer(capsule, STEPPER);
    if (!s)
        return NULL;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "step takes 2 arguments");
        return NULL;
    }
    Views v; /* not zeroed, because only the first `count` views are read */
    v.count = 0;
    PyObject *state = args[1], *results[ARRAYS] = {NULL, NULL, NULL, NULL};
    int known = state == Py_None || (PyObject *)Py_TYPE(state) == s->state
                || (PyTuple_CheckExact(state) && PyTuple_Size(state) == 2);
    Py_buffer *x = known ? plain(s, &v, args[0], 0) : NULL;
    Sizes of = sizes_of(s, x);
    if (!of.T)
        goto other;
    const char *h = part(s, &v, state, 0, of.batched, of.B),
               *c = h ? part(s, &v, state, 1, of.batched, of.B) : NULL;
    if (!c)
        goto other;
    char *to[ARRAYS];
    int bad = 0, arrays = s->order != ONE_STEP && s->layers > 1 ? ARRAYS : RESULTS;
    for (int n = 0; n < arrays && !bad; n++)
        bad = !(results[n] = make(s, &v, n, of, &to[n]));
    if (!bad) {
        PyThreadState *others = of.T * of.B * s->work >= WORTH_RELEASE ? PyEval_SaveThread() : NULL;
        bad = run_layers(s, of, x->buf, h, c, to);
        if (others)
            PyEval_RestoreThread(others);
        if (bad)
            PyErr_NoMemory();
    }
    release(&v);
    PyObject *result = bad ? NULL : as_results(s, results[0], results[1], results[2]);
    for (int n = 0; n < ARRAYS; n++)
        Py_XDECREF(results[n]);
    return result;
other:
    release(&v);
    Py_RETURN_NONE;
}

static PyMethodDef STEP = {"step", (PyCFunction)(void (*)(void))step, METH_FASTCALL,
                           "One step of all layers."};

/* stepper(packed, threads, array, dtype, empty, state, order): a function of x and (h, c) for layers of one
   direction. */
static PyObject *stepper(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *handles, *array, *dtype, *empty, *state;
    int threads, order;
    if (!PyArg_ParseTuple(args, "O!iOOOOi", &PyTuple_Type, &handles, &threads, &array, &dtype, &empty, &state,
                          &order))
        return NULL;
    if (order < 0 || order >= ORDERS)
        return PyErr_Format(PyExc_ValueError, "an unknown order %d of axes", order);
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
    s->order = order;
    s->layers = PyTuple_Size(handles);
    s->packed = malloc((size_t)(s->layers + 1) * sizeof *s->packed);
    int bad = !s->packed && PyErr_NoMemory() == NULL;
    for (Size layer = 0; layer < s->layers && !bad; layer++) {
        const Packed *p = s->packed[layer] = PyCapsule_GetPointer(PyTuple_GetItem(handles, layer), PACKED);
        bad = !p;
        s->work += p ? x_work(p) + h_work(p) : 0;
    }
    if (!bad) {
        const Packed *p = s->packed[0];
        s->format = p->engine->size == sizeof(float) ? 'f' : 'd';
        s->zeros = calloc((size_t)(s->layers * (p->H > p->P ? p->H : p->P)), p->engine->size);
        bad = !s->zeros && PyErr_NoMemory() == NULL;
    }
    for (int n = 0; n < 2 * RESULTS && !bad; n++)
        bad = !(s->one[n / RESULTS][n % RESULTS] = shape_of(s, n % RESULTS, (Sizes){1, 1, n / RESULTS}));
    PyObject *function = bad ? NULL : PyCFunction_New(&STEP, capsule);
    Py_DECREF(capsule);
    return function;
}
