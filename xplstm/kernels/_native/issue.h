/* Steps on a GPU from the host: products by cuBLAS and launches by the driver, without Python between them.

   CuPy has loaded the functions, and _cuda/loop.py passes their addresses. Compiling needs no header of CUDA,
   so every enumeration is declared as an int. */

typedef int (*GemmEx)(void *handle, int transa, int transb, int m, int n, int k, const void *alpha,
                      const void *a, int a_type, int lda, const void *b, int b_type, int ldb,
                      const void *beta, void *c, int c_type, int ldc, int compute, int algo);
typedef int (*GemmStridedBatchedEx)(void *handle, int transa, int transb, int m, int n, int k,
                                    const void *alpha, const void *a, int a_type, int lda, long long a_apart,
                                    const void *b, int b_type, int ldb, long long b_apart, const void *beta,
                                    void *c, int c_type, int ldc, long long c_apart, int count, int compute,
                                    int algo);
typedef int (*SetStream)(void *handle, void *stream);
typedef int (*SetWorkspace)(void *handle, void *workspace, size_t bytes);
typedef int (*LaunchKernel)(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                            unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
                            void *stream, void **parameters, void **extra);

/* A matrix of each direction, with `apart` bytes between the matrices of consecutive steps. */
typedef struct Operand {
    long long start[2], apart[2], type, bytes, step;
} Operand;

/* A launch of (struct, step), or a product of cuBLAS for one or two directions if `kernel` is 0. */
typedef struct Operation {
    long long kernel, grid[2], threads, arguments;
    long long transposed[2], sizes[3], alpha, beta, directions, compute, algo;
    Operand a, b, c;
} Operation;

typedef struct Issue {
    GemmEx gemm;
    GemmStridedBatchedEx batched;
    SetStream set_stream;
    SetWorkspace set_workspace;
    LaunchKernel launch;
    void *handle, *stream;
} Issue;

enum { SIGNALS_EVERY = 256 }; /* steps */

static char *operand_at(const Operand *o, int d, Size k)
{
    return (char *)(intptr_t)(o->start[d] + k * o->apart[d]);
}

static int issue_one(const Issue *to, const Operation *o, const char *a, const char *b, char *c)
{
    return to->gemm(to->handle, (int)o->transposed[0], (int)o->transposed[1], (int)o->sizes[0],
                    (int)o->sizes[1], (int)o->sizes[2], (const void *)(intptr_t)o->alpha, a, (int)o->a.type,
                    (int)o->a.step, b, (int)o->b.type, (int)o->b.step, (const void *)(intptr_t)o->beta, c,
                    (int)o->c.type, (int)o->c.step, (int)o->compute, (int)o->algo);
}

/* Two directions are one call, except for negative strides, which cuBLAS does not document. */
static int issue_product(const Issue *to, const Operation *o, Size k)
{
    const char *a = operand_at(&o->a, 0, k), *b = operand_at(&o->b, 0, k);
    char *c = operand_at(&o->c, 0, k);
    if (o->directions == 1)
        return issue_one(to, o, a, b, c);
    const char *a_2 = operand_at(&o->a, 1, k), *b_2 = operand_at(&o->b, 1, k);
    char *c_2 = operand_at(&o->c, 1, k);
    if (a_2 < a || b_2 < b || c_2 < c) {
        int status = issue_one(to, o, a, b, c);
        return status ? status : issue_one(to, o, a_2, b_2, c_2);
    }
    return to->batched(to->handle, (int)o->transposed[0], (int)o->transposed[1], (int)o->sizes[0],
                       (int)o->sizes[1], (int)o->sizes[2], (const void *)(intptr_t)o->alpha, a,
                       (int)o->a.type, (int)o->a.step, (a_2 - a) / o->a.bytes, b, (int)o->b.type,
                       (int)o->b.step, (b_2 - b) / o->b.bytes, (const void *)(intptr_t)o->beta, c,
                       (int)o->c.type, (int)o->c.step, (c_2 - c) / o->c.bytes, 2, (int)o->compute,
                       (int)o->algo);
}

static int issue_launch(const Issue *to, const Operation *o, Size k)
{
    long long step = k;
    void *parameters[] = {(void *)(intptr_t)o->arguments, &step};
    return to->launch((void *)(intptr_t)o->kernel, (unsigned)o->grid[0], (unsigned)o->grid[1], 1,
                      (unsigned)o->threads, 1, 1, 0, to->stream, parameters, NULL);
}

/* Return the status of the first operation that fails, or 0; -1 after an exception of a signal handler.
   Signals are checked between steps, because a long sequence takes seconds. */
static int issue_steps(const Issue *to, const Operation *operations, Size many, Size start, Size count,
                       Size by, Size *failed, Size *k)
{
    int status = 0;
    PyThreadState *thread = PyEval_SaveThread();
    for (Size n = 0; n < count && !status; n++) {
        *k = start + n * by;
        for (*failed = 0; *failed < many; ++*failed) {
            const Operation *o = operations + *failed;
            status = o->kernel ? issue_launch(to, o, *k) : issue_product(to, o, *k);
            if (status)
                break;
        }
        if (!status && n % SIGNALS_EVERY == SIGNALS_EVERY - 1) {
            PyEval_RestoreThread(thread);
            status = PyErr_CheckSignals();
            thread = PyEval_SaveThread();
        }
    }
    PyEval_RestoreThread(thread);
    return status;
}

/* issue((gemm, batched, set_stream, set_workspace, launch), handle, stream, workspace, bytes, operations,
   start, count, by): run `count` steps from `start`. Return None, or (of the driver, status, operation, step)
   of the first call that failed; operation is -1 for a call outside the operations. Without a workspace,
   cuBLAS uses its own. */
static PyObject *issue(PyObject *self, PyObject *args)
{
    (void)self;
    unsigned long long f[5], handle, stream, workspace, bytes;
    PyObject *packed;
    Size start, count, by, failed = -1, k = 0;
    Views v = {.count = 0};
    if (!PyArg_ParseTuple(args, "(KKKKK)KKKKOnnn", &f[0], &f[1], &f[2], &f[3], &f[4], &handle, &stream,
                          &workspace, &bytes, &packed, &start, &count, &by))
        return NULL;
    Py_buffer *view = open_view(&v, packed, PyBUF_SIMPLE);
    if (!view)
        return NULL;
    if (view->len % (Py_ssize_t)sizeof(Operation) || !f[0] || !f[1] || !f[2] || !f[3] || !f[4]) {
        PyErr_Format(PyExc_ValueError, "%zd bytes are no operations of %zu bytes, or a function is missing",
                     view->len, sizeof(Operation));
        release(&v);
        return NULL;
    }
    const Issue to = {(GemmEx)(intptr_t)f[0],       (GemmStridedBatchedEx)(intptr_t)f[1],
                      (SetStream)(intptr_t)f[2],    (SetWorkspace)(intptr_t)f[3],
                      (LaunchKernel)(intptr_t)f[4], (void *)(intptr_t)handle,
                      (void *)(intptr_t)stream};
    int driver = 0, status = to.set_stream(to.handle, to.stream);
    if (!status && workspace)
        status = to.set_workspace(to.handle, (void *)(intptr_t)workspace, (size_t)bytes);
    if (!status) {
        const Operation *operations = view->buf;
        status = issue_steps(&to, operations, view->len / (Py_ssize_t)sizeof(Operation), start, count, by,
                             &failed, &k);
        driver = status > 0 && operations[failed].kernel;
        if (workspace) { /* setting the stream restores cuBLAS's own workspace */
            int last = to.set_stream(to.handle, to.stream);
            if (!status && (status = last))
                failed = -1;
        }
    }
    release(&v);
    if (PyErr_Occurred())
        return NULL;
    if (status)
        return Py_BuildValue("(Oinn)", driver ? Py_True : Py_False, status, failed, k);
    Py_RETURN_NONE;
}
