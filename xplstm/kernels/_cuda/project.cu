/* Compute z (directions, rows, 4H) = W_ih x in the reproducible summation order of XPL-EXACT-002. */

/* A block of 256 threads computes PROJECT_TILE rows and columns, and a thread 4 by 4 of them. Shared memory
   holds PROJECT_STAGED numbers of k at a time. */

/* x of direction d begins at its first_row. */
struct Project {
    const Stored *x;      /* (T * B, I) */
    const Stored *weight; /* (directions, columns, I) */
    Wide *z;
    Size rows, columns, inputs, held_rows, first_row[2];
};

/* Copy `from` (count, inputs) transposed to `to` (PROJECT_STAGED, PROJECT_TILE), padded with zeros. */
DEVICE void stage(Wide (*to)[PROJECT_TILE + 4], const Stored *from, Size first, Size count, Size k,
                  Size inputs)
{
    for (int n = threadIdx.x; n < PROJECT_TILE * PROJECT_STAGED; n += (int)blockDim.x) {
        Size row = first + n / PROJECT_STAGED, at = k + n % PROJECT_STAGED;
        to[n % PROJECT_STAGED][n / PROJECT_STAGED] =
            row < count && at < inputs ? widened(from[row * inputs + at]) : 0;
    }
}

extern "C" __global__ void __launch_bounds__(WALK_THREADS) project_input(const Project f)
{
    Wide(*left)[PROJECT_TILE + 4] = (Wide(*)[PROJECT_TILE + 4]) shared_memory(),
                               (*right)[PROJECT_TILE + 4] = left + PROJECT_STAGED;
    Size first_row = (Size)blockIdx.x * PROJECT_TILE, first_column = (Size)blockIdx.y * PROJECT_TILE,
         d = blockIdx.z;
    const Stored *x = f.x + (d ? f.first_row[1] : f.first_row[0]) * f.inputs;
    const int row = threadIdx.x / 16 * 4, column = threadIdx.x % 16 * 4;
    Wide totals[4][4] = {}, chains[4][4] = {};
    for (Size k = 0; k < f.inputs; k += PROJECT_STAGED) {
        stage(left, f.weight + d * f.columns * f.inputs, first_column, f.columns, k, f.inputs);
        stage(right, x, first_row, f.rows, k, f.inputs);
        __syncthreads();
        int count = f.inputs - k < PROJECT_STAGED ? (int)(f.inputs - k) : PROJECT_STAGED;
        for (int at = 0; at < count; at++)
#pragma unroll
            for (int n = 0; n < 16; n++)
                chains[n / 4][n % 4] =
                    fused(left[at][column + n % 4], right[at][row + n / 4], chains[n / 4][n % 4]);
        if ((k + PROJECT_STAGED) % BLOCK_OF_K == 0 || k + PROJECT_STAGED >= f.inputs)
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
