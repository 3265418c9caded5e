/* Pack the weights of one direction for the products. */

static Size NAME(panels)(Size n) { return (n + LANES - 1) / LANES; }
static Size NAME(outputs)(Size n) { return (n + PANEL - 1) / PANEL; }

/* Lay out the packed weights in `memory`, which may begin anywhere in a cache line. */
static size_t NAME(place)(Packed *p, void *memory)
{
    Arena arena = {(char *)(((uintptr_t)memory + 63) & ~(uintptr_t)63), 0};
    size_t panels = (size_t)NAME(panels)(p->H), outputs = p->projected ? (size_t)NAME(outputs)(p->P) : 0;
    p->units = NAME(panels)(p->H) * LANES;
    p->m_units = NAME(panels)(p->M) * LANES;
    p->ih = take(&arena, panels * NAME(gates_of)(p, p->x)->panel_bytes(p->I));
    p->hh = take(&arena, panels * NAME(gates_of)(p, p->h)->panel_bytes(p->P));
    p->bias = take(&arena, sizeof(REAL) * panels * PANEL);
    p->hr = take(&arena, outputs * NAME(storage_of)(p)->panel_bytes(p->M));
    p->bias_hr = take(&arena, p->output_biased ? sizeof(REAL) * outputs * PANEL : 0);
    p->ch = take(&arena, sizeof(REAL) * (size_t)(p->pointwise.peepholes ? 3 * p->units : 0));
    size_t scaled = sizeof(REAL) * (size_t)(p->pointwise.normal ? p->units : 0);
    p->gain_ih = take(&arena, 4 * scaled);
    p->gain_hh = take(&arena, 4 * scaled);
    p->gain_c = take(&arena, scaled);
    p->bias_c = take(&arena, scaled);
    return arena.used + 63;
}

/* Pack the panels from `first` to `last` of a matrix that fills some blocks of z. */
static void NAME(pack_gates)(const Packed *p, const Matrix *m, Blocks filled, Size K, Size first, Size last,
                             void *out)
{
    const NAME(Storage) *products = NAME(gates_of)(p, filled);
    Size skipped = filled.first - NAME(first_of)(products, filled);
    for (Size panel = first; panel < last; panel++)
        for (Size n = 0; n < products->vectors; n++) {
            Size block = n - skipped, unit = panel * LANES;
            int there = block >= 0 && block < filled.count;
            products->pack_vector(m, block * p->H + unit, there ? p->H - unit : 0, K,
                                  (void *)NAME(panel_at)(products, out, K, panel), n);
        }
}

static void NAME(pack_bias)(const REAL *one, const REAL *other, Size H, Size units, REAL *out)
{
    for (Size unit = 0; unit < units; unit++)
        for (Size gate = 0; gate < 4; gate++)
            out[unit / LANES * PANEL + gate * LANES + unit % LANES] =
                unit < H ? one[gate * H + unit] + other[gate * H + unit] : 0;
}

/* Pack the projection and its bias; padding vectors of the last panel are zero. */
static void NAME(pack_projection)(const Packed *p, const Weights *w)
{
    Size padded = NAME(outputs)(p->P) * PANEL;
    for (Size first = 0; first < padded; first += LANES)
        NAME(storage_of)(p)->pack_vector(&w->hr, first, p->P - first, p->M,
                                         (void *)NAME(panel_at)(NAME(storage_of)(p), p->hr, p->M,
                                                                first / PANEL),
                                         first % PANEL / LANES);
    for (Size n = 0; n < padded && p->output_biased; n++)
        ((REAL *)p->bias_hr)[n] = n < p->P ? ((const REAL *)w->bias_hr)[n] : 0;
}

static void NAME(pack)(const Packed *p, const Weights *w, int member, int members)
{
    Size panels = NAME(panels)(p->H), first = share(panels, member, members),
         last = share(panels, member + 1, members);
    NAME(pack_gates)(p, &w->ih, p->x, p->I, first, last, p->ih);
    NAME(pack_gates)(p, &w->hh, p->h, p->P, first, last, p->hh);
    if (p->biased && member == 0)
        NAME(pack_bias)(w->bias_ih, w->bias_hh, p->H, p->units, p->bias);
    if (p->projected && member == members - 1)
        NAME(pack_projection)(p, w);
    if (p->pointwise.peepholes && member == 0)
        NAME(pack_peepholes)(w->ch, p->H, p->units, p->ch);
    if (p->pointwise.normal && member == 0) {
        NAME(pack_gain)(w->gain_ih, p->H, p->units, 4, p->gain_ih);
        NAME(pack_gain)(w->gain_hh, p->H, p->units, 4, p->gain_hh);
        NAME(pack_gain)(w->gain_c, p->H, p->units, 1, p->gain_c);
        NAME(pack_gain)(w->bias_c, p->H, p->units, 1, p->bias_c);
    }
}
