/* z (directions, rows, 4H) = W_ih x with the canonical sums of XPL-EXACT-002. */

#define BLOCK_OF_K 128
#define TILE 64                         /* rows and columns of a block of 256 threads, 4 by 4 of each thread */
#define STAGED 16                       /* of k */

/* x of direction d begins at its first_row. */
struct Project {
    const Stored *x;                    /* (T * B, I) */
    const Stored *weight;               /* (directions, columns, I) */
    Wide *z;
    Size rows, columns, inputs, held_rows, first_row[2];
};

/* `to` (STAGED, TILE), turned, with zeros where `from` (count, inputs) ends. */
DEVICE void stage(Wide (*to)[TILE + 4], const Stored *from, Size first, Size count, Size k, Size inputs)
{
    for (int n = threadIdx.x; n < TILE * STAGED; n += (int)blockDim.x) {
        Size row = first + n / STAGED, at = k + n % STAGED;
        to[n % STAGED][n / STAGED] = row < count && at < inputs ? widened(from[row * inputs + at]) : 0;
    }
}

extern "C" __global__ void __launch_bounds__(256) project_input(const Project f)
{
    Wide (*left)[TILE + 4] = (Wide (*)[TILE + 4])shared_memory(), (*right)[TILE + 4] = left + STAGED;
    Size first_row = (Size)blockIdx.x * TILE, first_column = (Size)blockIdx.y * TILE, d = blockIdx.z;
    const Stored *x = f.x + (d ? f.first_row[1] : f.first_row[0]) * f.inputs;
    const int row = threadIdx.x / 16 * 4, column = threadIdx.x % 16 * 4;
    Wide totals[4][4] = {}, chains[4][4] = {};
    for (Size k = 0; k < f.inputs; k += STAGED) {
        stage(left, f.weight + d * f.columns * f.inputs, first_column, f.columns, k, f.inputs);
        stage(right, x, first_row, f.rows, k, f.inputs);
        __syncthreads();
        int count = f.inputs - k < STAGED ? (int)(f.inputs - k) : STAGED;
        for (int at = 0; at < count; at++)
#pragma unroll
            for (int n = 0; n < 16; n++)
                chains[n / 4][n % 4] = fused(left[at][column + n % 4], right[at][row + n / 4], chains[n / 4][n % 4]);
        if ((k + STAGED) % BLOCK_OF_K == 0 || k + STAGED >= f.inputs)
#pragma unroll
            for (int n = 0; n < 16; n++) {
                Wide *total = &totals[n / 4][n % 4], *chain = &chains[n / 4][n % 4];
                *total = k < BLOCK_OF_K ? *chain : sum(*total, *chain);
                *chain = 0;
            }
        __syncthreads();
    }
#pragma unroll
    for (int n = 0; n < 16; n++)
        if (first_row + row + n / 4 < f.rows && first_column + column + n % 4 < f.columns)
            f.z[(d * f.held_rows + first_row + row + n / 4) * f.columns + first_column + column + n % 4] =
                totals[n / 4][n % 4];
}
