/* Gradients. Backpropagation through time follows Werbos (1990). The products over all steps are computed for
   blocks of steps. */

static Size NAME(state_width)(const Packed *p)
{
    Size outputs = NAME(outputs)(p->P) * PANEL;
    return outputs > p->units ? outputs : p->units;
}

/* Allocate the packed weights of the backward pass in the arena. */
static void NAME(place_backward)(Backward *f, int direction, Arena *arena)
{
    const Packed *p = f->packed[direction];
    Size projection = p->projected ? NAME(outputs)(p->M) * PANEL * p->P : 0;
    f->hh[direction] = take(arena, sizeof(REAL) * (size_t)(NAME(outputs)(p->P) * PANEL * p->h.count * p->H));
    f->ih[direction] = take(arena, sizeof(REAL) * (size_t)(NAME(outputs)(p->I) * PANEL * p->x.count * p->H));
    f->hr[direction] = take(arena, sizeof(REAL) * (size_t)projection);
}

static void NAME(pack_backward)(const Backward *f, int direction, int member, int members)
{
    const Packed *p = f->packed[direction];
    NAME(pack_columns)(f->weight_hh[direction], p->h.count * p->H, p->P, member, members, f->hh[direction]);
    if (f->dx)
        NAME(pack_columns)(f->weight_ih[direction], p->x.count * p->H, p->I, member, members,
                           f->ih[direction]);
    if (p->projected)
        NAME(pack_columns)(f->weight_hr[direction], p->P, p->M, member, members, f->hr[direction]);
}

/* The pointwise step backward for one vector of units. Write dz of the four gates, and overwrite dc with the
   gradient with respect to the previous c. Return o * tanh(c'). */
INLINE V NAME(backward_unit)(const REAL *gates, V c, V c_before, V dm, REAL *dc, V dz[4])
{
    V i = load(gates), f = load(gates + LANES), g = load(gates + 2 * LANES), o = load(gates + 3 * LANES);
    V tanh_c = NAME(tanh)(c), one = all(1), dm_o = dm * o;
    V total = fma(dm_o, fnma(tanh_c, tanh_c, one), load(dc));
    V di = total * i;
    dz[0] = total * g * fnma(i, i, i);
    dz[1] = total * c_before * fnma(f, f, f);
    dz[2] = di * fnma(g, g, one);
    dz[3] = dm * tanh_c * fnma(o, o, o);
    store(dc, total * f);
    return o * tanh_c;
}

#define Back NAME(Back)
typedef struct Back {
    const Backward *f;
    const Packed *p;
    const Rows *rows;
    int direction;
    Size width, units; /* of dh and dc */
    Size panel, panels, output, outputs;
    Size *own, owned, *active, present; /* present: number of batch entries of the current step */
    const REAL **dz_rows, **dh_rows;
    REAL *products;
    Exposed exposed; /* one batch entry, for layer normalisation */
    REAL *scaled;    /* dz in the layout of panels, before and after the normalisation backward */
} Back;

static size_t NAME(carve_back)(Back *w, char *memory)
{
    Arena arena = {memory, lines(sizeof(Back))};
    const Packed *p = w->p;
    size_t B = (size_t)w->f->B, wide = (size_t)NAME(outputs)(p->M > p->P ? p->M : p->P) * PANEL;
    w->own = take(&arena, B * sizeof(Size));
    w->active = take(&arena, B * sizeof(Size));
    w->dz_rows = take(&arena, B * sizeof(void *));
    w->dh_rows = take(&arena, B * sizeof(void *));
    w->products = take(&arena, NAME(CHUNK) * wide * sizeof(REAL));
    size_t row = p->pointwise.normal ? (size_t)p->units * sizeof(REAL) : 0;
    w->exposed.dm = take(&arena, row);
    w->exposed.dseen = take(&arena, row);
    w->exposed.seen = take(&arena, row);
    w->exposed.dcell = take(&arena, row);
    w->scaled = take(&arena, 8 * row);
    return arena.used;
}

static void NAME(open_back)(Back *w, const Backward *f, int direction, int member, char *memory)
{
    const Packed *p = f->packed[direction];
    *w = (Back){.f = f, .p = p, .rows = &f->rows[direction], .direction = direction};
    w->width = NAME(state_width)(p);
    w->units = p->units;
    w->panels = NAME(panels)(p->H);
    w->outputs = NAME(outputs)(p->P);
    NAME(carve_back)(w, memory);
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
}

static REAL *NAME(dh_of)(const Back *w, Size b) { return (REAL *)w->f->dh[w->direction] + b * w->width; }

/* Backward pass of `hold_projected`: write the gradient with respect to the previous h to `old`, and keep the
   rest in dh. */
static void NAME(hold_projected_back)(const Back *w, Size at, REAL *dh, REAL *old)
{
    REAL p = (REAL)w->p->pointwise.hold_h, rest = (REAL)(1 - w->p->pointwise.hold_h);
    const uint8_t *mask = w->f->noise[w->direction].held_h;
    for (Size j = 0; j < w->p->P; j++) {
        REAL total = dh[j];
        int on = mask && mask[at * w->p->P + j];
        old[j] = !mask ? p * total : on ? total : 0;
        dh[j] = !mask ? rest * total : on ? 0 : total;
    }
}

/* Replace the gradient with respect to h' with the gradient with respect to the product of r * h. */
static void NAME(reset_project_back)(const Back *w, Size at, Size b, REAL *dh)
{
    const Packed *p = w->p;
    const REAL *gates = (const REAL *)w->f->kept[w->direction].gates + at * 4 * p->units;
    REAL *dc = (REAL *)w->f->dc[w->direction] + b * p->units;
    for (Size unit = 0; unit < p->P; unit += LANES) {
        Size width = p->P - unit;
        V d = NAME(reset_blend_back)(gates + 4 * unit, load_part(dh + unit, width), dc + unit);
        store_part(dh + unit, d, width);
    }
}

/* Add dy to the gradient with respect to the projected state, keep the sum for the gradient of weight_hr, and
   multiply it by weight_hr. */
static void NAME(backward_project)(const Back *w, Size t, Size n)
{
    const Backward *f = w->f;
    Size P = w->p->P, M = w->p->M, wide = NAME(outputs)(M) * PANEL;
    for (Size k = 0; k < n; k++) {
        Size b = w->active[k], row = w->rows->index[(t - w->rows->first) * f->B + b];
        const REAL *dy = (const REAL *)f->dy + ((t * f->B + b) * f->directions + w->direction) * P;
        REAL *dh = (REAL *)w->rows->dh + row * P, *sum = NAME(dh_of)(w, b);
        for (Size j = 0; j < P; j++)
            dh[j] = sum[j] + dy[j];
        if (w->p->pointwise.hold_h != 0)
            NAME(hold_projected_back)(w, t * f->B + b, dh, sum);
        if (w->p->pointwise.kind == RESET_STEP)
            NAME(reset_project_back)(w, t * f->B + b, b, dh);
        w->dh_rows[k] = dh;
    }
    for (Size output = 0; output < NAME(outputs)(M); output++)
        NAME(product)(w->dh_rows, n, P, (const REAL *)f->hr[w->direction] + output * P * PANEL,
                      w->products + output * PANEL, wide, NULL, 0, NULL);
}

INLINE void NAME(store_blocks)(REAL *dz, Size H, Size width, const V d[4])
{
    for (Size gate = 0; gate < 4; gate++)
        store_part(dz + gate * H, d[gate], width);
}

/* Return the gradient with respect to m of one vector of units. Zoneout leaves the gradient with respect to
   the previous h in dh. `products` are the products of a projection. */
INLINE V NAME(dm_of)(const Packed *p, const REAL *products, REAL *dh, const REAL *dy, const uint8_t *held_h,
                     Size unit, Size width, int composed)
{
    const Pointwise *how = &p->pointwise;
    if (p->projected)
        return load(products + unit);
    V dm = load(dh + unit) + load_part(dy + unit, width);
    if (composed && how->hold_h != 0)
        store(dh + unit, NAME(hold_back)(&dm, held_h ? held_h + unit : NULL, how->hold_h));
    return dm;
}

/* Layer normalisation of c' backward, for all units of one batch entry. */
static void NAME(back_exposed)(const Back *w, Size at, Size row, const REAL *products, REAL *dh,
                               const REAL *dy, const uint8_t *held_h)
{
    const Packed *p = w->p;
    const Kept *kept = &w->f->kept[w->direction];
    REAL *dseen = (REAL *)w->rows->dseen + row * p->H;
    for (Size unit = 0; unit < p->units; unit += LANES) {
        V dm = NAME(dm_of)(p, products, dh, dy, held_h, unit, p->H - unit, 1);
        store(w->exposed.dm + unit, dm);
    }
    NAME(exposed_backward)(p, (const REAL *)kept->gates + at * 4 * p->units,
                           (const REAL *)kept->exposed + at * p->units,
                           ((const REAL *)kept->scales)[3 * at + 2], &w->exposed);
    __builtin_memcpy(dseen, w->exposed.dseen, (size_t)p->H * sizeof(REAL));
}

/* Layer normalisation of W_ih x and W_hh h backward: convert dz of one batch entry to dzx and dzh. */
static void NAME(back_inputs)(const Back *w, Size at, Size row)
{
    const Packed *p = w->p;
    const Kept *kept = &w->f->kept[w->direction];
    Size size = 4 * p->units;
    const void *hats[] = {kept->inputs, kept->products}, *gains[] = {p->gain_ih, p->gain_hh};
    void *to[] = {w->rows->dzx, w->rows->dzh};
    for (int n = 0; n < 2; n++) {
        REAL *d = w->scaled + size;
        const REAL *hat = (const REAL *)hats[n] + at * size;
        NAME(gain_back)(w->scaled, gains[n], hat, ((const REAL *)kept->scales)[3 * at + n], p->H, 4, d);
        for (Size unit = 0; unit < p->units; unit += LANES) {
            Size width = p->H - unit;
            const REAL *from = d + 4 * unit;
            V blocks[4] = {load(from), load(from + LANES), load(from + 2 * LANES), load(from + 3 * LANES)};
            NAME(store_blocks)((REAL *)to[n] + row * 4 * p->H + unit, p->H, width, blocks);
        }
    }
}

/* Compute dz of this thread's panels, and convert it from the layout of panels to blocks of units. */
INLINE void NAME(backward_panels)(const Back *w, Size t, Size from, Size n, int composed)
{
    const Backward *f = w->f;
    const Packed *p = w->p;
    const Pointwise *how = &p->pointwise;
    const Noise *noise = &f->noise[w->direction];
    Size H = p->H, wide = NAME(outputs)(p->M) * PANEL;
    for (Size k = 0; k < n; k++) {
        Size b = w->active[from + k], at = t * f->B + b;
        Size before = step_before(&f->valid, f->T, f->B, f->reverse[w->direction], t, b);
        Size row = w->rows->index[(t - w->rows->first) * f->B + b];
        const REAL *cells = f->kept[w->direction].cells, *c = cells + at * p->units;
        const REAL *c_before = cells + (before * f->B + b) * p->units;
        const REAL *gates = (const REAL *)f->kept[w->direction].gates + at * 4 * p->units;
        const REAL *dy = (const REAL *)f->dy + (at * f->directions + w->direction) * p->P;
        REAL *dc = (REAL *)f->dc[w->direction] + b * p->units, *dz = (REAL *)w->rows->dz + row * 4 * H;
        const uint8_t *held_h = noise->held_h ? noise->held_h + at * p->units : NULL;
        const uint8_t *held_c = noise->held_c ? noise->held_c + at * p->units : NULL;
        int fresh = starts_fresh(&f->valid, f->T, f->B, w->direction, t, b);
        REAL *cell = w->rows->cell ? (REAL *)w->rows->cell + row * H : NULL;
        REAL *dh = NAME(dh_of)(w, b), *m = p->projected ? (REAL *)w->rows->m + row * p->M : NULL;
        const REAL *products = w->products + k * wide;
        int normal = composed && how->normal;
        if (normal)
            NAME(back_exposed)(w, at, row, products, dh, dy, held_h);
        for (Size unit = w->panel * LANES; unit < w->panels * LANES; unit += LANES) {
            Size width = H - unit;
            V d[4], c_hat = all(0), old_c = all(0);
            if (composed && how->kind == ELMAN_STEP) {
                NAME(elman_backward)(p, unit, width, gates + 4 * unit, m ? products : dh, m ? NULL : dy, m,
                                     d);
                NAME(store_blocks)(dz + unit, H, width, d);
                continue;
            }
            V dm = normal ? load(w->exposed.dm + unit)
                          : NAME(dm_of)(p, products, dh, dy, held_h, unit, width, composed);
            REAL *dc_unit = dc + unit;
            const REAL *gate = gates + 4 * unit;
            V before_unit = fresh ? all(0) : load(c_before + unit);
            if (composed && how->hold_c != 0) {
                V total = load(dc_unit);
                old_c = NAME(hold_back)(&total, held_c ? held_c + unit : NULL, how->hold_c);
                store(dc_unit, total);
            }
            V out = composed ? NAME(composed_backward)(p, unit, gate, before_unit, dm,
                                                       normal ? w->exposed.seen : NULL, w->exposed.dcell,
                                                       dc_unit, d, &c_hat)
                             : NAME(backward_unit)(gate, load(c + unit), before_unit, dm, dc_unit, d);
            NAME(store_blocks)(dz + unit, H, width, d);
            for (int gate_n = 0; gate_n < 4 && normal; gate_n++)
                store(w->scaled + 4 * unit + gate_n * LANES, d[gate_n]);
            if (m)
                store_part(m + unit, out, width);
            if (composed && how->hold_c != 0)
                store(dc_unit, load(dc_unit) + old_c);
            if (composed && cell)
                store_part(cell + unit, c_hat, width);
            if (fresh)
                store(dc_unit, all(0));
        }
        if (normal)
            NAME(back_inputs)(w, at, row);
        w->dz_rows[from + k] = (const REAL *)w->rows->dzh + (row * 4 + p->h.first) * H;
    }
}

/* Two specialisations of the loop: the standard step has no branch on an option. */
static void NAME(backward_gates)(const Back *w, Size t, Size from, Size n)
{
    if (w->p->pointwise.composed)
        NAME(backward_panels)(w, t, from, n, 1);
    else
        NAME(backward_panels)(w, t, from, n, 0);
}

/* Zero dh for batch entries whose step starts from zeros: no gradient reaches the previous state. */
static void NAME(cut)(const Back *w, Size t, Size n)
{
    const Backward *f = w->f;
    for (Size k = 0; k < n; k++)
        if (starts_fresh(&f->valid, f->T, f->B, w->direction, t, w->active[k]))
            __builtin_memset(NAME(dh_of)(w, w->active[k]) + w->output * PANEL, 0,
                             (size_t)((w->outputs - w->output) * PANEL) * sizeof(REAL));
}

/* Apply recurrent dropout to a batch entry's product, and add it to the gradient that zoneout left in dh. */
INLINE void NAME(add_recurrent)(const Back *w, Size b, const REAL *product, Size first, Size last)
{
    Size P = w->p->P, count = (last < P ? last : P) - first;
    const REAL *dropped = w->f->noise[w->direction].dropped;
    const REAL *restrict mask = dropped ? dropped + b * P + first : NULL, *restrict from = product;
    REAL *restrict dh = NAME(dh_of)(w, b) + first;
    int held = w->p->pointwise.hold_h != 0;
    for (Size j = 0; j < count; j++) {
        REAL d = mask ? from[j] * mask[j] : from[j];
        dh[j] = held ? dh[j] + d : d;
    }
}

/* Compute the gradient with respect to the previous h, dz W_hh, for this thread's outputs. */
static void NAME(recur)(const Back *w, Size n)
{
    Size K = w->p->h.count * w->p->H;
    const REAL *hh = w->f->hh[w->direction];
    int plain = !w->f->noise[w->direction].dropped && w->p->pointwise.hold_h == 0;
    if (n == 1 && !plain) {
        NAME(row_product)(w->dz_rows[0], K, hh + w->output * K * PANEL, w->outputs - w->output, 0,
                          w->products, NULL, NULL);
        NAME(add_recurrent)(w, w->active[0], w->products, w->output * PANEL, w->outputs * PANEL);
        return;
    }
    if (n == 1) {
        NAME(row_product)(w->dz_rows[0], K, hh + w->output * K * PANEL, w->outputs - w->output, 0,
                          NAME(dh_of)(w, w->active[0]) + w->output * PANEL, NULL, NULL);
        return;
    }
    for (Size output = w->output; output < w->outputs; output++)
        for (Size from = 0; from < n; from += NAME(CHUNK)) {
            Size rows = n - from < NAME(CHUNK) ? n - from : NAME(CHUNK);
            NAME(product)(w->dz_rows + from, rows, K, hh + output * K * PANEL, w->products, PANEL, NULL, 0,
                          NULL);
            for (Size k = 0; k < rows && !plain; k++)
                NAME(add_recurrent)(w, w->active[from + k], w->products + k * PANEL, output * PANEL,
                                    (output + 1) * PANEL);
            for (Size k = 0; k < rows && plain; k++)
                for (Size j = 0; j < 4; j++)
                    store(NAME(dh_of)(w, w->active[from + k]) + output * PANEL + j * LANES,
                          load(w->products + k * PANEL + j * LANES));
        }
}

static Size NAME(time_back)(const Back *w, Size s)
{
    return w->f->reverse[w->direction] ? w->rows->first + s : w->rows->last - 1 - s;
}

/* First part of a step: dz of this thread's panels and batch entries. */
static void NAME(back_gates)(void *back, Size s)
{
    Back *w = back;
    Size t = NAME(time_back)(w, s), n = 0;
    for (Size k = 0; k < w->owned; k++)
        if (exists(&w->f->valid, w->f->B, t, w->own[k]))
            w->active[n++] = w->own[k];
    w->present = n;
    if (w->p->projected)
        for (Size from = 0; from < n; from += NAME(CHUNK)) {
            Size rows = n - from < NAME(CHUNK) ? n - from : NAME(CHUNK);
            Back part = *w;
            part.active += from;
            NAME(backward_project)(&part, t, rows);
            NAME(backward_gates)(w, t, from, rows);
        }
    else
        NAME(backward_gates)(w, t, 0, n);
}

/* Second part of a step: the gradient with respect to the previous h, for this thread's outputs. */
static void NAME(back_on)(void *back, Size s)
{
    const Back *w = back;
    if (w->present)
        NAME(recur)(w, w->present);
    NAME(cut)(w, NAME(time_back)(w, s), w->present);
}

static void NAME(walk_back)(const Backward *f, int direction, int member, char *scratch)
{
    static const Part parts[] = {NAME(back_gates), NAME(back_on)};
    Back *w = (Back *)scratch;
    NAME(open_back)(w, f, direction, member, scratch);
    Size steps = w->rows->last - w->rows->first;
    if (!f->by_rows) {
        size_t apart = f->scratch_size * (size_t)f->directions;
        walk_together((Barrier *)&f->barrier[direction], member, scratch - (size_t)member * apart, apart,
                      parts, 2, steps, NULL);
        return;
    }
    for (Size s = 0; s < steps; s++) {
        NAME(back_gates)(w, s);
        NAME(back_on)(w, s);
    }
}

/* Scratch memory of the products over all steps of a block. */
#define Products NAME(Products)
typedef struct Products {
    const REAL **at, **before; /* (count): rows of x, m or dz, and of h before each step */
    REAL *products;            /* (CHUNK, PANEL) */
    REAL *zeros;               /* (P) */
    REAL *gains;               /* 14 sums for each unit, for layer normalisation */
    SumScratch sums;
} Products;

static size_t NAME(carve_products)(Products *w, const Packed *p, Size count, char *memory)
{
    Arena arena = {memory, 0};
    w->at = take(&arena, (size_t)count * sizeof(void *));
    w->before = take(&arena, (size_t)count * sizeof(void *));
    w->products = take(&arena, NAME(CHUNK) * PANEL * sizeof(REAL));
    w->zeros = take(&arena, (size_t)p->P * sizeof(REAL));
    w->gains = take(&arena, p->pointwise.normal ? (size_t)(14 * p->units) * sizeof(REAL) : 0);
    NAME(carve_sums)(&w->sums, 4 * p->H > p->P ? 4 * p->H : p->P, &arena);
    return arena.used;
}

/* A thread reuses its scratch memory: first for the recurrence, then for the products. */
static size_t NAME(backward_scratch)(const Backward *f)
{
    Back back = {.f = f, .p = f->packed[0]};
    Products products;
    Size count = f->rows[0].count > f->rows[1].count ? f->rows[0].count : f->rows[1].count;
    size_t walk = NAME(carve_back)(&back, NULL);
    size_t sums = NAME(carve_products)(&products, f->packed[0], count, NULL);
    return walk > sums ? walk : sums;
}

/* Add dz W_ih to dx, for the rows from `from` to `end` of a block. */
static void NAME(input_gradient)(const Backward *f, int direction, Size from, Size end, const Products *w)
{
    const Rows *rows = &f->rows[direction];
    const Packed *p = f->packed[direction];
    Size K = p->x.count * p->H, I = p->I;
    while (from < end) {
        Size some = end - from < NAME(CHUNK) ? end - from : NAME(CHUNK);
        for (Size k = 0; k < some; k++)
            w->at[k] = (const REAL *)rows->dzx + (from + k) * 4 * p->H;
        for (Size output = 0; output < NAME(outputs)(I); output++) {
            Size width = I - output * PANEL < PANEL ? I - output * PANEL : PANEL;
            NAME(product)(w->at, some, K, (const REAL *)f->ih[direction] + output * K * PANEL, w->products,
                          PANEL, NULL, 0, NULL);
            for (Size k = 0; k < some; k++) {
                REAL *dx =
                    (REAL *)f->dx + (rows->t[from + k] * f->B + rows->b[from + k]) * I + output * PANEL;
                for (Size j = 0; j < width; j++)
                    dx[j] += w->products[k * PANEL + j];
            }
        }
        from += some;
    }
}

/* Compute the products over a block's rows: this thread's rows of the weight gradients, and of dx unless dx
   is NULL. */
static void NAME(accumulate)(const Backward *f, int direction, int member, int members, char *memory)
{
    const Packed *p = f->packed[direction];
    const Rows *rows = &f->rows[direction];
    const Gradient *gradient = &f->gradient[direction];
    Size H = p->H, K = 4 * H, count = rows->count;
    Size filled = (p->h.first + p->h.count > p->x.count ? p->h.first + p->h.count : p->x.count) * H;
    Size first = share(filled, member, members), last = share(filled, member + 1, members);
    Products w;
    NAME(carve_products)(&w, p, count, memory);
    __builtin_memset(w.zeros, 0, (size_t)p->P * sizeof(REAL));
    const REAL *dz = rows->dzx, **at = w.at, **before = w.before;
    for (Size n = 0; n < count; n++) {
        Size t = rows->t[n], b = rows->b[n],
             last_t = step_before(&f->valid, f->T, f->B, f->reverse[direction], t, b);
        at[n] = (const REAL *)f->x + t * f->x_step + b * f->x_row;
        int fresh = starts_fresh(&f->valid, f->T, f->B, direction, t, b);
        before[n] = fresh            ? w.zeros
                    : last_t == f->T ? (const REAL *)f->h_0 + (direction * f->B + b) * p->P
                                     : (const REAL *)f->kept[direction].hidden + (last_t * f->B + b) * p->P;
    }
    Sum sums[] = {{at, p->I, p->x.first * H, (p->x.first + p->x.count) * H, gradient->ih},
                  {before, p->P, p->h.first * H, (p->h.first + p->h.count) * H, gradient->hh}};
    if (p->pointwise.normal) {
        Size panels = NAME(panels)(p->H);
        NAME(sum_products)(dz, K, first, last, count, sums, 1, NULL, &w.sums);
        NAME(sum_products)(rows->dzh, K, first, last, count, sums + 1, 1, NULL, &w.sums);
        NAME(sum_gains)(f, direction, share(panels, member, members), share(panels, member + 1, members),
                        w.gains);
    } else {
        NAME(sum_products)(dz, K, first, last, count, sums, 2, gradient->bias, &w.sums);
    }
    if (p->pointwise.peepholes)
        NAME(sum_peepholes)(f, direction, share(p->H, member, members), share(p->H, member + 1, members));
    if (p->projected) {
        for (Size n = 0; n < count; n++)
            at[n] = (const REAL *)rows->m + n * p->M;
        Sum projection = {at, p->M, 0, p->P, gradient->hr};
        NAME(sum_products)(rows->dh, p->P, share(p->P, member, members), share(p->P, member + 1, members),
                           count, &projection, 1, gradient->bias_hr, &w.sums);
    }
    if (f->dx)
        NAME(input_gradient)(f, direction, share(count, member, members), share(count, member + 1, members),
                             &w);
}

static void NAME(apply)(int function, Size n, const void *x, void *y)
{
    for (Size k = 0; k < n; k += LANES) {
        V v = load_part((const REAL *)x + k, n - k);
        store_part((REAL *)y + k, function ? NAME(tanh)(v) : NAME(sigmoid)(v), n - k);
    }
}
