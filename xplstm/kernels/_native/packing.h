/* Pack weights from Python's arrays. */

/* Packed weights and the owner of their memory. */
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

/* Options of the pointwise step: None, or (kind, coupled, gate, input, output, gate_clip, cell_clip, hold_h,
   hold_c, units), where an activation is (kind, alpha, beta). `units` are those of an RNN. With gains the
   step has layer normalisation. */
static int get_pointwise(PyObject *options, int peepholes, int gains, Pointwise *how, Size *units)
{
    *how = (Pointwise){.peepholes = peepholes, .normal = gains};
    if (options == Py_None)
        return 0;
    Activation *a = &how->gate, *b = &how->input, *c = &how->output;
    how->composed = 1;
    if (!PyArg_ParseTuple(options, "ip(idd)(idd)(idd)ddddn", &how->kind, &how->coupled, &a->kind, &a->alpha,
                          &a->beta, &b->kind, &b->alpha, &b->beta, &c->kind, &c->alpha, &c->beta,
                          &how->gate_clip, &how->cell_clip, &how->hold_h, &how->hold_c, units))
        return -1;
    if (a->kind < 0 || a->kind >= ACTIVATIONS || b->kind < 0 || b->kind >= ACTIVATIONS || c->kind < 0
        || c->kind >= ACTIVATIONS || how->kind < 0 || how->kind >= STEPS) {
        PyErr_SetString(PyExc_ValueError, "an unknown activation or step");
        return -1;
    }
    return 0;
}

/* Return the storage with faster instructions if the processor and the engine support them. */
static int fastest_products(const Engine *engine, int storage)
{
#if defined(__x86_64__) && !defined(XPLSTM_WITHOUT_VNNI)
    int there = storage == BFLOAT16_BOTH ? __builtin_cpu_supports("avx512bf16") != 0
                                         : __builtin_cpu_supports("avx512vnni") != 0;
    if (storage >= INT8 && engine->stored[storage + FASTER] && there)
        return storage + FASTER;
#endif
    (void)engine;
    return storage;
}

/* Read a weight matrix: an array, or (values, scales) for int8. */
static int get_matrix(Views *v, PyObject *given, Size rows, Size columns, size_t size, int storage,
                      int required, Matrix *m)
{
    PyObject *values = given, *scales = Py_None;
    if (has_scales(storage) && given != Py_None && !PyArg_ParseTuple(given, "OO", &values, &scales))
        return -1;
    if (get(v, values, rows * columns, size, 0, &m->values)
        || get(v, scales, rows, sizeof(float), 0, &m->scales))
        return -1;
    if (!required && !m->values)
        return 0;
    if (!m->values || (has_scales(storage) && !m->scales))
        PyErr_SetString(PyExc_ValueError, "a matrix is missing, or its scales");
    return PyErr_Occurred() ? -1 : 0;
}

/* State which blocks of z the matrices of the step fill. */
static void fill_blocks(Packed *p)
{
    int kind = p->pointwise.kind, gated = kind == GRU_STEP || kind == RESET_STEP;
    p->x = (Blocks){0, gated ? 3 : 4};
    p->h = gated ? (Blocks){1, kind == GRU_STEP ? 3 : 2} : (Blocks){0, 4};
}

/* pack(isa, dtype, storage, I, H, proj_size, room, threads, weight_ih, weight_hh, bias_ih, bias_hh,
   weight_hr, weight_ch, gain_ih, gain_hh, gain_c, bias_c, bias_hr, pointwise). For an RNN, H is a quarter of
   its units, rounded up. The matrices have the blocks of rows that `fill_blocks` states; biases have four. */
static PyObject *pack(PyObject *self, PyObject *args)
{
    (void)self;
    const char *isa, *dtype;
    PyObject *ih, *hh, *bias_ih, *bias_hh, *hr, *ch, *gain_ih, *gain_hh, *gain_c, *bias_c, *bias_hr, *options,
        *room;
    Size I, H, proj, units = 0;
    int threads, storage;
    if (!PyArg_ParseTuple(args, "ssinnnOiOOOOOOOOOOOO", &isa, &dtype, &storage, &I, &H, &proj, &room,
                          &threads, &ih, &hh, &bias_ih, &bias_hh, &hr, &ch, &gain_ih, &gain_hh, &gain_c,
                          &bias_c, &bias_hr, &options))
        return NULL;
    const Engine *engine = find_engine(isa, dtype);
    if (engine && (storage < 0 || storage > BFLOAT16_BOTH || !engine->stored[storage]))
        return PyErr_Format(PyExc_ValueError, "no storage %d of weights for %s", storage, dtype);
    Size longest = I > H ? I : H;
    longest = longest > proj ? longest : proj;
    if (!engine || check_size(H, 8, longest, (Size)engine->size * engine->lanes))
        return NULL;
    Held *held = calloc(1, sizeof *held);
    if (!held)
        return PyErr_NoMemory();
    Packed *p = &held->packed;
    *p = (Packed){.engine = engine,
                  .storage = fastest_products(engine, storage),
                  .I = I,
                  .H = H,
                  .P = proj ? proj : H,
                  .M = H,
                  .projected = proj != 0,
                  .biased = bias_ih != Py_None,
                  .output_biased = bias_hr != Py_None};
    Views v = {.count = 0};
    Weights w;
    size_t size = engine->size, stored = engine->stored[storage];
    if (get_pointwise(options, ch != Py_None, gain_ih != Py_None, &p->pointwise, &units))
        goto failed;
    if (p->pointwise.kind == ELMAN_STEP) {
        p->M = units;
        p->P = proj ? proj : units;
        if (units < 1 || units > 4 * H) {
            PyErr_Format(PyExc_ValueError, "four quarters of %zd units are too few for %zd", H, units);
            goto failed;
        }
    }
    if (p->pointwise.kind == RESET_STEP && proj != H) {
        PyErr_SetString(PyExc_ValueError, "the reset gate's product has as many outputs as units");
        goto failed;
    }
    fill_blocks(p);
    if (get_matrix(&v, ih, p->x.count * H, I, stored, storage, 1, &w.ih)
        || get_matrix(&v, hh, p->h.count * H, p->P, stored, storage, 1, &w.hh)
        || get(&v, bias_ih, 4 * H, size, 0, &w.bias_ih) || get(&v, bias_hh, 4 * H, size, 0, &w.bias_hh)
        || get_matrix(&v, hr, p->P, p->M, stored, storage, p->projected, &w.hr)
        || get(&v, ch, 3 * H, size, 0, &w.ch) || get(&v, bias_hr, p->P, size, 0, &w.bias_hr)
        || get(&v, gain_ih, 4 * H, size, 0, &w.gain_ih) || get(&v, gain_hh, 4 * H, size, 0, &w.gain_hh)
        || get(&v, gain_c, H, size, 0, &w.gain_c) || get(&v, bias_c, H, size, 0, &w.bias_c))
        goto failed;
    if (p->pointwise.normal
        && (!w.gain_hh || !w.gain_c || p->pointwise.kind != LSTM_STEP || !p->pointwise.composed)) {
        PyErr_SetString(PyExc_ValueError, "layer normalisation needs three gains and the step of an LSTM");
        goto failed;
    }
    size_t bytes = engine->place(p, NULL);
    PyObject *memory = PyObject_CallFunction(room, "n", (Py_ssize_t)bytes);
    if (!memory)
        goto failed;
    int refused = PyObject_GetBuffer(memory, &held->room, PyBUF_WRITABLE);
    Py_DECREF(memory);
    if (refused)
        goto failed;
    if ((size_t)held->room.len < bytes) {
        PyErr_SetString(PyExc_ValueError, "less memory than requested");
        goto failed;
    }
    engine->place(p, held->room.buf);
    Py_BEGIN_ALLOW_THREADS
    run_pack(p, &w, bytes, threads);
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
