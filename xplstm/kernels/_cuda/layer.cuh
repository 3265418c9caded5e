/* A layer's sizes, valid steps, and the indices of its states. */

/* Sizes of a layer, and its valid steps: all, those before lengths[b], or those in mask (T, B). */
struct Layer {
    const long long *lengths;
    const unsigned char *mask;
    Size T, B, H, P, directions;
    Size reverse; /* bit d is set if direction d runs from the last time */
};

DEVICE bool walks_back(const Layer &layer, Size d) { return layer.reverse >> d & 1; }

DEVICE bool exists(const Layer &layer, Size t, Size b)
{
    if (layer.lengths)
        return t < layer.lengths[b];
    return !layer.mask || layer.mask[t * layer.B + b];
}

/* The time of step k, and the slots of h and c before and after the step. */
struct Step {
    Size t, before, after;
};

DEVICE Step step_of(const Layer &layer, Size d, Size k)
{
    if (walks_back(layer, d))
        return {layer.T - 1 - k, layer.T - k, layer.T - 1 - k};
    return {k, k, k + 1};
}

/* Return the row of batch entry b in a slot of the state; all steps share a single slot. */
DEVICE Size state_row(const Layer &layer, Size slots, Size d, Size slot, Size b)
{
    return (d * slots + (slots > 1 ? slot : 0)) * layer.B + b;
}
