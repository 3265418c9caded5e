/* One direction forward over all steps: XPL-EXACT-003 and XPL-EXACT-004. */

/* Rows that are processed together, so that the pre-activations of a panel stay in the L1 cache. */
enum { NAME(CHUNK) = 96 };

/* The pointwise step forward for one panel has two parts: each is a loop whose iterations overlap in the
   processor, while tanh of a cell state in the loop of its gates would wait for all of them. The first part
   writes c' to `c_new`, the gates to `kept`, and o back to z. */
INLINE void NAME(gates)(REAL *z, Size z_step, Size rows, const REAL *const *c, REAL *const *c_new,
                        REAL *const *kept, Size unit)
{
    for (Size r = 0; r < rows; r++, z += z_step) {
        V i = NAME(sigmoid)(load(z)), f = NAME(sigmoid)(load(z + LANES));
        V g = NAME(tanh)(load(z + 2 * LANES)), o = NAME(sigmoid)(load(z + 3 * LANES));
        store(c_new[r] + unit, fma(f, load(c[r] + unit), i * g));
        store(z + 3 * LANES, o);
        if (kept) {
            REAL *to = kept[r] + 4 * unit;
            store(to, i);
            store(to + LANES, f);
            store(to + 2 * LANES, g);
            store(to + 3 * LANES, o);
        }
    }
}

/* The second part: write o * tanh(c') to `out` and `copy`. Units from `width` on are padding. */
INLINE void NAME(outputs_of_cells)(const REAL *z, Size z_step, Size rows, Size width, REAL *const *c_new,
                                   REAL *const *out, REAL *const *copy, Size unit)
{
    for (Size r = 0; r < rows; r++, z += z_step) {
        V m = load(z + 3 * LANES) * NAME(tanh)(load(c_new[r] + unit));
        store_part(out[r] + unit, m, width);
        if (copy)
            store_part(copy[r] + unit, m, width);
    }
}

/* State of one thread for one direction. */
#define Walk NAME(Walk)
typedef struct Walk {
    const Forward *f;
    const Packed *p;
    int direction, reverse, member;
    const NAME(Storage) * with_x, *with_h; /* products with W_ih and W_hh */
    int in_place;         /* whether W_hh h is added where W_ih x is: W_hh does not fill all blocks */
    Size h_at;            /* the first vector of a panel that the product with W_hh writes */
    Size panel, panels;   /* this thread's panels of units */
    Size output, outputs; /* this thread's outputs of the projection */
    Size *own, owned;     /* this thread's batch entries */
    const REAL **h, **c;  /* current state of each batch entry */
    Size *active;
    const REAL **x_rows, **h_rows, **c_rows, **m_rows;
    REAL **c_new, **out, **copy, **kept;
    Hold hold; /* for each row of the current step */
    REAL *cells, *m, *gates, *z, *hoisted, *zeros, *seen;
    REAL *inputs, *exposed; /* for layer normalisation: W_ih x, and c' of one batch entry */
    Size hoisted_rows, normal_rows;
    Size row_step, panel_step; /* distances in `hoisted` between rows and between panels */
    REAL *ready;               /* W_ih x of the current step if it is hoisted, else NULL */
    Size waiting, present;     /* number of later steps that are hoisted, and of current batch entries */
    char *entered[2];          /* rows converted for integer products: x, and h or m */
    const REAL **entered_rows[2];
} Walk;

/* Return how many rows keep z of all units in the L2 cache between product and normalisation, or 0 without
   normalisation. */
static Size NAME(normal_rows)(const Forward *f)
{
    if (!f->packed[0]->pointwise.normal)
        return 0;
    Size rows = f->cache / 2 / (Size)sizeof(REAL) / (4 * f->packed[0]->units);
    return rows < ROWS ? ROWS : rows > NAME(CHUNK) ? NAME(CHUNK) : rows;
}

/* Return how many rows of W_ih x are computed together, before the steps that read them. Few rows per step
   fill no tiles. With more rows this saves loads of W_ih, if both matrices together exceed the L2 cache. */
static Size NAME(hoisted_rows)(const Forward *f)
{
    const Packed *p = f->packed[0];
    Size rows = f->by_rows ? (f->B + f->team - 1) / f->team : f->B;
    Size panels = NAME(panels)(p->H), mine = f->by_rows ? panels : (panels + f->team - 1) / f->team;
    size_t panel = NAME(gates_of)(p, p->x)->panel_bytes(p->I) + NAME(gates_of)(p, p->h)->panel_bytes(p->P);
    Size weights = mine * (Size)panel;
    if (rows == 0 || rows >= NAME(CHUNK) || f->T == 1 || (rows >= 4 * ROWS && weights <= f->cache / 2))
        return 0;
    Size fitting = f->cache / 2 / (Size)sizeof(REAL) / (mine * PANEL);
    fitting = fitting < 4 * ROWS ? 4 * ROWS : fitting > 32 * ROWS ? 32 * ROWS : fitting;
    Size steps = rows < 4 * ROWS ? fitting / rows : (NAME(CHUNK) + rows - 1) / rows;
    return (steps < f->T ? steps : f->T) * rows;
}

/* Lay out the scratch memory of one thread, which begins with its Walk. */
static size_t NAME(carve_walk)(Walk *w, char *memory)
{
    const Packed *p = w->p;
    Arena arena = {memory, lines(sizeof(Walk))};
    size_t B = (size_t)w->f->B, pointers = B * sizeof(void *), hoisted = (size_t)w->hoisted_rows;
    size_t panels = (size_t)NAME(panels)(p->H), outputs = (size_t)NAME(outputs)(p->P), most = NAME(CHUNK);
    most = panels > most ? panels : most;
    most = outputs > most ? outputs : most;
    w->own = take(&arena, B * sizeof(Size));
    w->active = take(&arena, B * sizeof(Size));
    w->h = take(&arena, pointers);
    w->c = take(&arena, pointers);
    w->h_rows = take(&arena, pointers);
    w->c_rows = take(&arena, pointers);
    w->m_rows = take(&arena, pointers);
    w->c_new = take(&arena, pointers);
    w->out = take(&arena, pointers);
    w->copy = take(&arena, pointers);
    w->kept = take(&arena, pointers);
    w->hold.h = take(&arena, pointers);
    w->hold.held_h = w->f->noise[0].held_h ? take(&arena, pointers) : NULL;
    w->hold.held_c = w->f->noise[0].held_c ? take(&arena, pointers) : NULL;
    w->seen = take(&arena, w->f->noise[0].dropped ? B * (size_t)p->P * sizeof(REAL) : 0);
    w->x_rows = take(&arena, pointers + hoisted * sizeof(void *));
    w->cells = take(&arena, B * (size_t)p->units * sizeof(REAL));
    w->m = take(&arena, B * (size_t)p->m_units * sizeof(REAL));
    int blends = p->pointwise.kind == RESET_STEP && !w->f->keep;
    w->gates = take(&arena, blends ? B * 4 * (size_t)p->units * sizeof(REAL) : 0);
    size_t normal = (size_t)w->normal_rows * panels;
    w->z = take(&arena, (most > normal ? most : normal) * PANEL * sizeof(REAL));
    w->inputs = take(&arena, normal * PANEL * sizeof(REAL));
    w->exposed = take(&arena, normal ? (size_t)p->units * sizeof(REAL) : 0);
    w->hoisted = take(&arena, hoisted * panels * PANEL * sizeof(REAL));
    w->zeros = take(&arena, (size_t)(p->units > p->P ? p->units : p->P) * sizeof(REAL));
    size_t (*bytes)(Size) = NAME(storage_of)(p)->entered_bytes;
    size_t few = B < NAME(CHUNK) ? B : NAME(CHUNK), rows[2] = {few > hoisted ? few : hoisted, few};
    for (int n = 0; n < 2 && bytes; n++) {
        Size widest = p->P > p->M ? p->P : p->M;
        w->entered[n] = take(&arena, rows[n] * bytes(n ? widest : p->I));
        w->entered_rows[n] = take(&arena, rows[n] * sizeof(void *));
    }
    return arena.used;
}

static size_t NAME(forward_scratch)(const Forward *f)
{
    Walk w;
    w.f = f;
    w.p = f->packed[0];
    w.hoisted_rows = NAME(hoisted_rows)(f);
    w.normal_rows = NAME(normal_rows)(f);
    return NAME(carve_walk)(&w, NULL);
}

/* Assign batch entries, panels and outputs to one thread, and set the initial states. */
static void NAME(open_walk)(Walk *w, const Forward *f, int direction, int member, char *memory)
{
    const Packed *p = f->packed[direction];
    *w = (Walk){.f = f, .p = p, .direction = direction, .reverse = f->reverse[direction], .member = member};
    w->with_x = NAME(gates_of)(p, p->x);
    w->with_h = NAME(gates_of)(p, p->h);
    w->in_place = p->h.count < 4;
    w->h_at = NAME(first_of)(w->with_h, p->h) * LANES;
    w->panels = NAME(panels)(p->H);
    w->outputs = p->projected ? NAME(outputs)(p->P) : 0;
    w->hoisted_rows = NAME(hoisted_rows)(f);
    w->normal_rows = NAME(normal_rows)(f);
    NAME(carve_walk)(w, memory);
    /* Each output of a projection needs all units, so the team shares one m, and the arrays that
       `reset_blend` reads and writes. The barriers around `project` order writes before reads. */
    if (f->team > 1 && !f->by_rows && p->projected) {
        char *first_member = f->scratch + (size_t)direction * f->scratch_size;
        w->m = (REAL *)(first_member + ((char *)w->m - memory));
        w->gates = (REAL *)(first_member + ((char *)w->gates - memory));
        w->cells = (REAL *)(first_member + ((char *)w->cells - memory));
    }
    for (Size b = 0; b < f->B; b++)
        if (!f->by_rows || b % f->team == member)
            w->own[w->owned++] = b;
    if (!f->by_rows) {
        Size panels = w->panels, outputs = w->outputs;
        w->panel = share(panels, member, f->team);
        w->panels = share(panels, member + 1, f->team);
        w->output = share(outputs, member, f->team);
        w->outputs = share(outputs, member + 1, f->team);
    }
    __builtin_memset(w->zeros, 0, (size_t)(p->units > p->P ? p->units : p->P) * sizeof(REAL));
    REAL *first = f->keep ? (REAL *)f->kept[direction].cells + f->T * f->B * p->units : w->cells;
    for (Size n = 0; n < w->owned; n++) {
        Size b = w->own[n], from = w->panel * LANES, to = w->panels * LANES < p->H ? w->panels * LANES : p->H;
        const REAL *c_0 = (const REAL *)f->c_0 + (direction * f->B + b) * p->H;
        w->h[b] = (const REAL *)f->h_0 + (direction * f->B + b) * p->P;
        w->c[b] = first + b * p->units;
        for (Size unit = from; unit < w->panels * LANES; unit++)
            first[b * p->units + unit] = unit < to ? c_0[unit] : 0;
    }
}

static const REAL *NAME(x_at)(const Forward *f, Size t, Size b)
{
    return (const REAL *)f->x + t * f->x_step + b * f->x_row;
}

static REAL *NAME(y_at)(const Walk *w, Size t, Size b)
{
    Size P = w->p->P, D = w->f->directions;
    return (REAL *)w->f->y + ((t * w->f->B + b) * D + w->direction) * P;
}

static Size NAME(find_active)(const Walk *w, Size t, Size *active)
{
    Size n = 0;
    for (Size k = 0; k < w->owned; k++)
        if (exists(&w->f->valid, w->f->B, t, w->own[k]))
            active[n++] = w->own[k];
    return n;
}

/* Return rows for the products: unchanged, or converted to the storage's format in area n. */
static const REAL *const *NAME(enter)(const Walk *w, const REAL *const *rows, Size count, Size K, int n)
{
    const NAME(Storage) *products = NAME(storage_of)(w->p);
    if (!products->enter)
        return rows;
    for (Size k = 0; k < count; k++) {
        char *to = w->entered[n] + (size_t)k * products->entered_bytes(K);
        products->enter(rows[k], K, to);
        w->entered_rows[n][k] = (const REAL *)to;
    }
    return w->entered_rows[n];
}

/* Return where normalisation n of a batch entry at (t, b) writes the reciprocal of its divisor, or NULL. */
INLINE REAL *NAME(scale_at)(const Walk *w, Size at, Size n)
{
    return w->f->keep ? (REAL *)w->f->kept[w->direction].scales + 3 * at + n : NULL;
}

/* Normalise W_ih x of a batch entry at (t, b), scale it, and add the bias. */
static void NAME(normalise_input)(const Walk *w, REAL *zx, Size at)
{
    const Packed *p = w->p;
    REAL *kept = w->f->keep ? (REAL *)w->f->kept[w->direction].inputs + at * 4 * p->units : NULL;
    NAME(normalise)(zx, LANES, p->H, 4, p->gain_ih, p->biased ? p->bias : NULL, kept,
                    NAME(scale_at)(w, at, 0), zx);
}

/* Write the bias, or zero, to the fourth block of z of a GRU, which W_ih does not fill: the product of h is
   added to it. */
INLINE void NAME(start_last)(const Packed *p, Size panel, Size rows, REAL *z, Size z_step)
{
    if (p->pointwise.kind != GRU_STEP)
        return;
    V bias = p->biased ? load((const REAL *)p->bias + panel * PANEL + 3 * LANES) : all(0);
    for (Size k = 0; k < rows; k++)
        store(z + k * z_step + 3 * LANES, bias);
}

/* Compute W_ih x + b of several steps, for this thread's rows and panels: (rows, panels). */
static void NAME(hoist)(Walk *w, Size from, Size to)
{
    int normal = w->p->pointwise.normal;
    Size n = 0, mine = w->panels - w->panel, I = w->p->I;
    for (Size s = from; s < to; s++) {
        Size t = w->reverse ? w->f->T - 1 - s : s, found = NAME(find_active)(w, t, w->active);
        for (Size k = 0; k < found; k++)
            w->x_rows[n++] = NAME(x_at)(w->f, t, w->active[k]);
    }
    /* A step of one batch entry, and a normalisation, read all panels of a row. Else a step reads one panel
       of all rows, and rows far apart would share few sets of the caches. */
    int by_panels = w->owned > 1 && !normal;
    w->row_step = by_panels ? PANEL : mine * PANEL;
    w->panel_step = by_panels ? n * PANEL : PANEL;
    const REAL *const *rows = NAME(enter)(w, w->x_rows, n, I, 0);
    for (Size panel = w->panel; panel < w->panels; panel++) {
        REAL *z = w->hoisted + (panel - w->panel) * w->panel_step;
        w->with_x->product(rows, n, I, NAME(panel_at)(w->with_x, w->p->ih, I, panel), z, w->row_step, NULL, 0,
                           w->p->biased && !normal ? (const REAL *)w->p->bias + panel * PANEL : NULL);
        NAME(start_last)(w->p, panel, n, z, w->row_step);
    }
}

/* Apply recurrent dropout to the numbers of h from `first` to `last`. */
INLINE REAL *NAME(drop)(const REAL *mask, const REAL *h, Size first, Size last, REAL *to)
{
    for (Size j = first; j < last; j++)
        to[j] = h[j] * mask[j];
    return to;
}

/* Apply recurrent dropout to the kept h of this step, which the next step reads. */
static void NAME(drop_kept)(const Walk *w, Size first, Size last)
{
    Size P = w->p->P;
    const REAL *mask = w->f->noise[w->direction].dropped;
    for (Size k = 0; k < w->present && mask && w->f->keep; k++)
        NAME(drop)(mask + w->active[k] * P, w->copy[k], first, last < P ? last : P, w->copy[k]);
}

/* Zoneout of `width` projected numbers of a batch entry from `first` on, in place. */
static void NAME(hold_projected)(const Walk *w, Size row, Size first, Size width, REAL *h)
{
    REAL p = (REAL)w->p->pointwise.hold_h, rest = (REAL)(1 - w->p->pointwise.hold_h);
    const REAL *old = w->hold.h[row] + first;
    const uint8_t *mask = w->hold.held_h ? w->hold.held_h[row] + first : NULL;
    for (Size j = 0; j < width; j++)
        h[j] = !mask ? p * old[j] + rest * h[j] : mask[j] ? old[j] : h[j];
}

/* Return whether a step writes its gates, for the backward pass or for `reset_blend`. */
static int NAME(keeps)(const Walk *w) { return w->f->keep || w->p->pointwise.kind == RESET_STEP; }

/* Set the pointers of step t for all batch entries. If gates are kept, c' gets its own memory, so that the
   backward pass can read the c of every step. */
static void NAME(locate)(Walk *w, Size t, Size n)
{
    const Forward *f = w->f;
    const Packed *p = w->p;
    const Kept *kept = &f->kept[w->direction];
    const Noise *noise = &f->noise[w->direction];
    for (Size k = 0; k < n; k++) {
        Size b = w->active[k], at = t * f->B + b;
        int fresh = starts_fresh(&f->valid, f->T, f->B, w->direction, t, b);
        w->h_rows[k] = w->hold.h[k] = fresh ? w->zeros : w->h[b];
        if (noise->dropped)
            w->h_rows[k] = NAME(drop)((const REAL *)noise->dropped + b * p->P, w->h_rows[k], 0, p->P,
                                      w->seen + k * p->P);
        if (noise->held_h)
            w->hold.held_h[k] = noise->held_h + at * (p->projected ? p->P : p->units);
        if (noise->held_c)
            w->hold.held_c[k] = noise->held_c + at * p->units;
        w->c_rows[k] = fresh ? w->zeros : w->c[b];
        w->c_new[k] = f->keep ? (REAL *)kept->cells + at * p->units : w->cells + b * p->units;
        w->out[k] = p->projected ? w->m + b * p->m_units : NAME(y_at)(w, t, b);
        w->m_rows[k] = w->out[k];
        if (f->keep) {
            w->copy[k] = (REAL *)kept->hidden + at * p->P;
            w->kept[k] = (REAL *)kept->gates + at * 4 * p->units;
        } else if (NAME(keeps)(w)) {
            w->kept[k] = w->gates + b * 4 * p->units;
        }
    }
}

/* Finish `width` projected numbers of a batch entry from `first` on, in place. */
static void NAME(end_projection)(const Walk *w, Size row, Size first, Size width, REAL *h)
{
    if (w->p->pointwise.hold_h != 0)
        NAME(hold_projected)(w, row, first, width, h);
    if (w->p->pointwise.kind == RESET_STEP)
        for (Size unit = first; unit < first + width; unit += LANES, h += LANES)
            NAME(reset_blend)(h, w->kept[row] + 4 * unit, w->c_rows[row] + unit, w->c_new[row] + unit);
}

static void NAME(project)(Walk *w, Size t, Size n)
{
    const Packed *p = w->p;
    const NAME(Storage) *products = NAME(storage_of)(p);
    Size P = p->P, M = p->M;
    for (Size from = 0; from < n; from += NAME(CHUNK)) {
        Size some = n - from < NAME(CHUNK) ? n - from : NAME(CHUNK);
        const REAL *const *rows = NAME(enter)(w, w->m_rows + from, some, M, 1);
        if (some == 1)
            products->row_product(rows[0], M, NAME(panel_at)(products, p->hr, M, w->output),
                                  w->outputs - w->output, w->f->T == 1, w->z, NULL,
                                  p->output_biased ? (const REAL *)p->bias_hr + w->output * PANEL : NULL);
        for (Size output = w->output; output < w->outputs; output++) {
            Size width = P - output * PANEL < PANEL ? P - output * PANEL : PANEL;
            REAL *z = some == 1 ? w->z + (output - w->output) * PANEL : w->z;
            if (some > 1)
                products->product(rows, some, M, NAME(panel_at)(products, p->hr, M, output), z, PANEL, NULL,
                                  0, p->output_biased ? (const REAL *)p->bias_hr + output * PANEL : NULL);
            for (Size k = 0; k < some; k++, z += PANEL) {
                size_t bytes = (size_t)width * sizeof(REAL);
                NAME(end_projection)(w, from + k, output * PANEL, width, z);
                __builtin_memcpy(NAME(y_at)(w, t, w->active[from + k]) + output * PANEL, z, bytes);
                if (w->f->keep)
                    __builtin_memcpy(w->copy[from + k] + output * PANEL, z, bytes);
            }
        }
    }
}

/* Return how many units the pointwise step may write from `unit` on. m is padded to whole vectors, except
   between the quarters of an RNN. */
static Size NAME(step_width)(const Packed *p, Size unit)
{
    return p->projected && p->pointwise.kind != ELMAN_STEP ? LANES : p->H - unit;
}

/* Compute the gates of this thread's panels for one batch entry. */
static void NAME(gates_of_one)(const Walk *w, REAL *z)
{
    const Packed *p = w->p;
    REAL *const *copy = w->f->keep && !p->projected ? w->copy : NULL;
    REAL *const *kept = NAME(keeps)(w) ? w->kept : NULL;
    const REAL *finished = z;
    if (p->pointwise.kind == GRU_STEP) {
        for (Size panel = w->panel; panel < w->panels; panel++, z += PANEL)
            NAME(gated_gates)(z, PANEL, 1, kept, panel * LANES);
        for (Size panel = w->panel; panel < w->panels; panel++, finished += PANEL)
            NAME(gated_outputs)(finished, PANEL, 1, NAME(step_width)(p, panel * LANES), w->c_rows, w->c_new,
                                w->out, copy, kept, panel * LANES);
        return;
    }
    if (p->pointwise.composed) {
        for (Size panel = w->panel; panel < w->panels; panel++, z += PANEL)
            NAME(composed_gates)(p, z, PANEL, 1, NAME(step_width)(p, panel * LANES), w->c_rows, w->c_new,
                                 w->out, copy, kept, &w->hold, panel * LANES);
        return;
    }
    for (Size panel = w->panel; panel < w->panels; panel++, z += PANEL)
        NAME(gates)(z, PANEL, 1, w->c_rows, w->c_new, kept, panel * LANES);
    for (Size panel = w->panel; panel < w->panels; panel++, finished += PANEL)
        NAME(outputs_of_cells)(finished, PANEL, 1, NAME(step_width)(p, panel * LANES), w->c_new, w->out, copy,
                               panel * LANES);
}

/* Run one step of one batch entry: the products of this thread's panels, then their gates. */
static void NAME(step_one)(Walk *w, REAL *hoisted, const REAL *x)
{
    const Packed *p = w->p;
    Size mine = w->panels - w->panel;
    int single = !hoisted;
    if (single) {
        w->with_x->row_product(*NAME(enter)(w, &x, 1, p->I, 0), p->I,
                               NAME(panel_at)(w->with_x, p->ih, p->I, w->panel), mine, single, w->z, NULL,
                               p->biased ? (const REAL *)p->bias + w->panel * PANEL : NULL);
        for (Size panel = 0; panel < mine; panel++)
            NAME(start_last)(p, w->panel + panel, 1, w->z + panel * PANEL, PANEL);
        hoisted = w->z;
    }
    REAL *z = w->in_place ? hoisted : w->z;
    w->with_h->row_product(*NAME(enter)(w, w->h_rows, 1, p->P, 1), p->P,
                           NAME(panel_at)(w->with_h, p->hh, p->P, w->panel), mine, single, z + w->h_at,
                           hoisted + w->h_at, NULL);
    NAME(gates_of_one)(w, z);
}

/* Return the inputs of zoneout for the batch entries from k on. */
static Hold NAME(hold_from)(const Walk *w, Size k)
{
    return (Hold){w->hold.h + k, w->hold.held_h ? w->hold.held_h + k : NULL,
                  w->hold.held_c ? w->hold.held_c + k : NULL};
}

/* Run one step of many batch entries, panel by panel: compute the gates while z of the panel is in the L1
   cache. */
static void NAME(step_batch)(Walk *w, Size n, REAL *hoisted)
{
    const Packed *p = w->p;
    const Forward *f = w->f;
    Size chunks = (n + NAME(CHUNK) - 1) / NAME(CHUNK);
    for (Size chunk = 0; chunk < chunks; chunk++) {
        Size from = n * chunk / chunks, rows = n * (chunk + 1) / chunks - from;
        const REAL *const *x = hoisted ? NULL : NAME(enter)(w, w->x_rows + from, rows, p->I, 0);
        const REAL *const *h = NAME(enter)(w, w->h_rows + from, rows, p->P, 1);
        for (Size panel = w->panel; panel < w->panels; panel++) {
            Size unit = panel * LANES, u_step = PANEL, z_step = PANEL;
            REAL *u = w->z, *z = w->z;
            if (hoisted) {
                u = hoisted + from * w->row_step + (panel - w->panel) * w->panel_step;
                u_step = w->row_step;
            } else {
                w->with_x->product(x, rows, p->I, NAME(panel_at)(w->with_x, p->ih, p->I, panel), w->z, PANEL,
                                   NULL, 0, p->biased ? (const REAL *)p->bias + panel * PANEL : NULL);
                NAME(start_last)(p, panel, rows, w->z, PANEL);
            }
            if (w->in_place) {
                z = u;
                z_step = u_step;
            }
            w->with_h->product(h, rows, p->P, NAME(panel_at)(w->with_h, p->hh, p->P, panel), z + w->h_at,
                               z_step, u + w->h_at, u_step, NULL);
            Size width = NAME(step_width)(p, unit);
            REAL *const *copy = f->keep && !p->projected ? w->copy + from : NULL;
            REAL *const *kept = NAME(keeps)(w) ? w->kept + from : NULL;
            Hold hold = NAME(hold_from)(w, from);
            if (p->pointwise.composed) {
                NAME(composed_gates)(p, z, z_step, rows, width, w->c_rows + from, w->c_new + from,
                                     w->out + from, copy, kept, &hold, unit);
                continue;
            }
            NAME(gates)(z, z_step, rows, w->c_rows + from, w->c_new + from, kept, unit);
            NAME(outputs_of_cells)(z, z_step, rows, width, w->c_new + from, w->out + from, copy, unit);
        }
    }
}

/* Multiply rows by all panels: (rows, panels). */
static void NAME(multiply)(const Walk *w, const REAL *const *rows, Size count, Size K, const void *weights,
                           REAL *out)
{
    const NAME(Storage) *products = NAME(storage_of)(w->p);
    const void *first = NAME(panel_at)(products, weights, K, 0);
    if (count == 1) {
        products->row_product(rows[0], K, first, w->panels, 0, out, NULL, NULL);
        return;
    }
    for (Size panel = 0; panel < w->panels; panel++)
        products->product(rows, count, K, NAME(panel_at)(products, weights, K, panel), out + panel * PANEL,
                          w->panels * PANEL, NULL, 0, NULL);
}

/* Finish a step with layer normalisation: normalise c' of batch entry k, which `composed_gates` left in z,
   and compute m. */
static void NAME(expose)(const Walk *w, Size k, Size at, const REAL *z)
{
    const Packed *p = w->p;
    REAL *kept = w->f->keep ? (REAL *)w->f->kept[w->direction].exposed + at * p->units : NULL;
    Hold hold = NAME(hold_from)(w, k);
    NAME(normalise)(z + 2 * LANES, 4 * LANES, p->H, 1, p->gain_c, p->bias_c, kept, NAME(scale_at)(w, at, 2),
                    w->exposed);
    for (Size unit = 0; unit < p->units; unit += LANES) {
        Size width = NAME(step_width)(p, unit);
        V cell = load(z + 4 * unit + 2 * LANES), o = load(z + 4 * unit + 3 * LANES);
        REAL *copy = w->f->keep && !p->projected ? w->copy[k] : NULL;
        NAME(composed_output)(p, NAME(activation)(&p->pointwise.output, load(w->exposed + unit)), cell, o,
                              load(w->c_rows[k] + unit), width, w->c_new[k], w->out[k], copy, &hold, 0, unit);
    }
}

/* Run one step with layer normalisation: the gates of a batch entry need the products of all units. */
static void NAME(step_normal)(Walk *w, Size t, Size n, REAL *hoisted)
{
    const Packed *p = w->p;
    Size wide = 4 * p->units, most = w->normal_rows;
    for (Size from = 0; from < n; from += most) {
        Size rows = n - from < most ? n - from : most;
        REAL *u = hoisted ? hoisted + from * wide : w->inputs;
        if (!hoisted)
            NAME(multiply)(w, NAME(enter)(w, w->x_rows + from, rows, p->I, 0), rows, p->I, p->ih, u);
        /* This does not depend on the previous step, so the processor overlaps it with the end of that step.
         */
        for (Size k = 0; k < rows; k++)
            NAME(normalise_input)(w, u + k * wide, t * w->f->B + w->active[from + k]);
        NAME(multiply)(w, NAME(enter)(w, w->h_rows + from, rows, p->P, 1), rows, p->P, p->hh, w->z);
        for (Size k = 0; k < rows; k++) {
            Size at = t * w->f->B + w->active[from + k];
            REAL *kept = w->f->keep ? (REAL *)w->f->kept[w->direction].products + at * wide : NULL;
            NAME(normalise)(w->z + k * wide, LANES, p->H, 4, p->gain_hh, u + k * wide, kept,
                            NAME(scale_at)(w, at, 1), w->z + k * wide);
        }
        Hold hold = NAME(hold_from)(w, from);
        for (Size unit = 0; unit < p->units; unit += LANES)
            NAME(composed_gates)(p, w->z + 4 * unit, wide, rows, LANES, w->c_rows + from, w->c_new + from,
                                 w->out + from, NULL, w->f->keep ? w->kept + from : NULL, &hold, unit);
        for (Size k = 0; k < rows; k++)
            NAME(expose)(w, from + k, t * w->f->B + w->active[from + k], w->z + k * wide);
    }
}

/* First part of a step: gates and states of this thread's panels and batch entries. */
static void NAME(walk_gates)(void *walk, Size s)
{
    Walk *w = walk;
    const Forward *f = w->f;
    Size t = w->reverse ? f->T - 1 - s : s, most = w->owned ? w->hoisted_rows / w->owned : 0;
    if (most && w->waiting-- == 0) {
        w->waiting = (s + most < f->T ? most : f->T - s) - 1;
        NAME(hoist)(w, s, s + w->waiting + 1);
        w->ready = w->hoisted;
    }
    Size n = w->present = NAME(find_active)(w, t, w->active);
    NAME(locate)(w, t, n);
    if (!w->ready)
        for (Size k = 0; k < n; k++)
            w->x_rows[k] = NAME(x_at)(f, t, w->active[k]);
    if (w->p->pointwise.normal)
        NAME(step_normal)(w, t, n, w->ready);
    else if (n == 1 && (!w->ready || w->panel_step == PANEL))
        NAME(step_one)(w, w->ready, w->x_rows[0]);
    else
        NAME(step_batch)(w, n, w->ready);
    if (w->ready)
        w->ready += n * w->row_step;
    if (!w->p->projected)
        NAME(drop_kept)(w, w->panel * LANES, w->panels * LANES);
}

/* Second part of a step: this thread's outputs of the projection, and the state pointers of the next step. */
static void NAME(walk_on)(void *walk, Size s)
{
    Walk *w = walk;
    Size t = w->reverse ? w->f->T - 1 - s : s;
    if (w->p->projected) {
        NAME(project)(w, t, w->present);
        NAME(drop_kept)(w, w->output * PANEL, w->outputs * PANEL);
    }
    for (Size k = 0; k < w->present; k++) {
        w->h[w->active[k]] = NAME(y_at)(w, t, w->active[k]);
        w->c[w->active[k]] = w->c_new[k];
    }
}

static void NAME(walk_step)(void *walk, Size s)
{
    NAME(walk_gates)(walk, s);
    NAME(walk_on)(walk, s);
}

static void NAME(close_walk)(void *walk, Size steps)
{
    (void)steps;
    const Walk *w = walk;
    const Forward *f = w->f;
    const Packed *p = w->p;
    for (Size n = 0; n < w->owned; n++) {
        Size b = w->own[n], row = w->direction * f->B + b;
        Size from = w->panel * LANES, to = w->panels * LANES < p->H ? w->panels * LANES : p->H;
        __builtin_memcpy((REAL *)f->c_n + row * p->H + from, w->c[b] + from,
                         (size_t)(to - from) * sizeof(REAL));
        if (f->by_rows || w->member == 0)
            __builtin_memcpy((REAL *)f->h_n + row * p->P, w->h[b], (size_t)p->P * sizeof(REAL));
    }
}

static void NAME(forward)(const Forward *f, int direction, int member, char *scratch)
{
    static const Part parts[] = {NAME(walk_gates), NAME(walk_on)}, whole[] = {NAME(walk_step)};
    NAME(open_walk)((Walk *)scratch, f, direction, member, scratch);
    if (!f->by_rows) {
        size_t apart = f->scratch_size * (size_t)f->directions;
        walk_together((Barrier *)&f->barrier[direction], member, scratch - (size_t)member * apart, apart,
                      f->packed[0]->projected ? parts : whole, f->packed[0]->projected ? 2 : 1, f->T,
                      NAME(close_walk));
        return;
    }
    for (Size s = 0; s < f->T; s++)
        NAME(walk_step)(scratch, s);
    NAME(close_walk)(scratch, f->T);
}
