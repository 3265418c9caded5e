/* Sums over rows for the gradients, and the packing of columns for the backward pass. */

/* Write one row of a panel: `width` numbers, padded with zeros. */
INLINE void NAME(panel_row)(const REAL *from, Size width, REAL *out)
{
    if (width == PANEL) {
        EACH (j, 4)
            store(out + j * LANES, load(from + j * LANES));
        return;
    }
    __builtin_memcpy(out, from, (size_t)width * sizeof(REAL));
    __builtin_memset(out + width, 0, (size_t)(PANEL - width) * sizeof(REAL));
}

/* Pack a member's rows k of a matrix (K, columns) into panels of consecutive columns. */
static void NAME(pack_columns)(const REAL *w, Size K, Size columns, int member, int members, REAL *out)
{
    Size last = share(K, member + 1, members);
    for (Size k = share(K, member, members); k < last; k++)
        for (Size first = 0; first < columns; first += PANEL) {
            Size width = columns - first < PANEL ? columns - first : PANEL;
            NAME(panel_row)(w + k * columns + first, width, out + first * K + k * PANEL);
        }
}

/* Number of rows of one block of a product over all steps. */
enum { NAME(DEPTH) = 128 };

/* Distance between the rows of consecutive tiles: an odd number of cache lines avoids conflicts of cache
   sets. */
enum { NAME(TALL) = ROWS * NAME(DEPTH) + LINE / (int)sizeof(REAL) };

/* Pack the columns from `first` to `last` of a's rows for tiles, several rows at a time, so that whole cache
   lines are written. */
static void NAME(pack_tall)(const REAL *a, Size stride, Size first, Size last, Size depth, REAL *out)
{
    enum { SOME = 8 };
    Size whole = (last - first) / ROWS, rest = (last - first) % ROWS;
    for (Size from = 0; from < depth; from += SOME) {
        Size to = depth - from < SOME ? depth : from + SOME;
        for (Size tile = 0; tile < whole; tile++)
            for (Size n = from; n < to; n++)
                __builtin_memcpy(out + tile * NAME(TALL) + n * ROWS, a + n * stride + first + tile * ROWS,
                                 ROWS * sizeof(REAL));
        for (Size n = from; n < to && rest; n++)
            for (Size r = 0; r < ROWS; r++)
                out[whole * NAME(TALL) + n * ROWS + r] =
                    r < rest ? a[n * stride + first + whole * ROWS + r] : 0;
    }
}

/* One of the products below: pointers to b's rows, and the array to which the result is added. Its rows are
   the columns of a from `first` to `last`. */
#define Sum NAME(Sum)
typedef struct Sum {
    const REAL **b;
    Size columns, first, last;
    REAL *c;
} Sum;

/* Packed operands, and a tile at the edge. */
#define SumScratch NAME(SumScratch)
typedef struct SumScratch {
    REAL *b, *a, *tile; /* (DEPTH, PANEL), (tiles, TALL), (ROWS, PANEL) */
    REAL *narrow;       /* a panel of b, packed like rows of tiles */
} SumScratch;

/* Lay out the scratch memory for at most `rows` rows of c. */
static void NAME(carve_sums)(SumScratch *w, Size rows, Arena *arena)
{
    w->b = take(arena, sizeof(REAL) * NAME(DEPTH) * PANEL);
    w->a = take(arena, sizeof(REAL) * NAME(TALL) * (size_t)((rows + ROWS - 1) / ROWS));
    w->tile = take(arena, sizeof(REAL) * ROWS * PANEL);
    w->narrow = take(arena, sizeof(REAL) * NAME(TALL) * ((PANEL + ROWS - 1) / ROWS));
}

/* Return whether tiles of c^T are fewer, because a panel of b with few columns fills little of a tile of c.
 */
static int NAME(is_narrow)(Size width, Size rows)
{
    return (width + ROWS - 1) / ROWS * ((rows + PANEL - 1) / PANEL) < (rows + ROWS - 1) / ROWS;
}

/* Compute c += a^T b for the `width` columns packed in w->b, by tiles of c^T; c begins at the row `first`.
   The order of each sum is the same as with tiles of c. */
static void NAME(sum_narrow)(const REAL *a, Size a_stride, Size first, Size last, Size depth, Size width,
                             REAL *c, Size columns, const SumScratch *w)
{
    NAME(pack_tall)(w->b, PANEL, 0, width, depth, w->narrow);
    for (Size row = first; row < last; row += PANEL, c += PANEL * columns) {
        Size height = last - row < PANEL ? last - row : PANEL;
        for (Size n = 0; n < depth; n++)
            NAME(panel_row)(a + n * a_stride + row, height, w->b + n * PANEL);
        for (Size column = 0; column < width; column += ROWS) {
            const REAL *at = w->narrow + column / ROWS * NAME(TALL), *rows[ROWS];
            Size some = width - column < ROWS ? width - column : ROWS;
            for (Size r = 0; r < ROWS; r++)
                rows[r] = at + r;
            NAME(tiles)
            [ROWS](rows, ROWS, w->b, depth, w->tile, PANEL, NULL, 0, NULL, (const char *)(at + NAME(TALL)));
            for (Size n = 0; n < height; n++)
                for (Size r = 0; r < some; r++)
                    c[n * columns + column + r] += w->tile[r * PANEL + n];
        }
    }
}

/* Compute c (rows, columns) += a^T b for every sum, with its columns of a (count, ...) from `first` to
   `last`. Rows of a have the distance `a_stride`. If total is not NULL, also add the sum of a's rows to it
   while the rows are in the cache. The order of a sum over rows does not depend on the partition of c. */
static void NAME(sum_products)(const REAL *a, Size a_stride, Size first, Size last, Size count,
                               const Sum *sums, int how_many, REAL *restrict total, const SumScratch *w)
{
    REAL *packed_b = w->b, *packed_a = w->a, *tile = w->tile;
    const NAME(Tile) whole = NAME(tiles)[ROWS];
    for (Size from = 0; from < count; from += NAME(DEPTH)) {
        Size depth = count - from < NAME(DEPTH) ? count - from : NAME(DEPTH);
        NAME(pack_tall)(a + from * a_stride, a_stride, first, last, depth, packed_a);
        for (Size n = from; n < from + depth && total; n++)
            for (Size column = first; column < last; column++)
                total[column] += a[n * a_stride + column];
        for (const Sum *sum = sums; sum < sums + how_many; sum++) {
            Size begin = first > sum->first ? first : sum->first, end = last < sum->last ? last : sum->last;
            for (Size column = 0, columns = sum->columns; column < columns && begin < end; column += PANEL) {
                REAL *c = sum->c + (begin - sum->first) * columns + column;
                Size width = columns - column < PANEL ? columns - column : PANEL;
                for (Size n = 0; n < depth; n++)
                    NAME(panel_row)(sum->b[from + n] + column, width, packed_b + n * PANEL);
                if (NAME(is_narrow)(width, end - begin)) {
                    NAME(sum_narrow)(a + from * a_stride, a_stride, begin, end, depth, width, c, columns, w);
                    continue;
                }
                /* The first and the last tile may have columns of a that belong to another sum. */
                Size tile_n = (begin - first) / ROWS;
                const REAL *at = packed_a + tile_n * NAME(TALL);
                for (Size row = first + tile_n * ROWS; row < end; row += ROWS, at += NAME(TALL)) {
                    const char *next = (const char *)(at + NAME(TALL));
                    Size low = row < begin ? begin - row : 0, high = end - row < ROWS ? end - row : ROWS;
                    const REAL *rows[ROWS];
                    for (Size r = 0; r < ROWS; r++)
                        rows[r] = at + r;
                    REAL *to = c + (row - begin + low) * columns;
                    if (width == PANEL && high - low == ROWS) {
                        whole(rows, ROWS, packed_b, depth, to, columns, to, columns, NULL, next);
                        continue;
                    }
                    whole(rows, ROWS, packed_b, depth, tile, PANEL, NULL, 0, NULL, next);
                    for (Size r = low; r < high; r++)
                        for (Size n = 0; n < width; n++)
                            to[(r - low) * columns + n] += tile[r * PANEL + n];
                }
            }
        }
    }
}
