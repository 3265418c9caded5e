/* A layer's sizes, which of its steps exist, and the places of its states. */

/* Sizes of a layer, and which steps exist: all, those before lengths[b], or those in mask (T, B). */
struct Layer {
    const long long *lengths;
    const unsigned char *mask;
    Size T, B, H, P, directions;
    Size reverse; /* bit d is set where direction d walks from the end */
};

DEVICE bool walks_back(const Layer &layer, Size d) { return layer.reverse >> d & 1; }

DEVICE bool exists(const Layer &layer, Size t, Size b)
{
    if (layer.lengths)
        return t < layer.lengths[b];
    return !layer.mask || layer.mask[t * layer.B + b];
}

/* The time of step k, and where h and c are stored before and after it. */
struct Step {
    Size t, before, after;
};

DEVICE Step step_of(const Layer &layer, Size d, Size k)
{
    if (walks_back(layer, d))
        return {layer.T - 1 - k, layer.T - k, layer.T - 1 - k};
    return {k, k, k + 1};
}

/* The row of batch entry b in a step's state; a single slot holds every step's. */
DEVICE Size state_row(const Layer &layer, Size slots, Size d, Size slot, Size b)
{
    return (d * slots + (slots > 1 ? slot : 0)) * layer.B + b;
}
