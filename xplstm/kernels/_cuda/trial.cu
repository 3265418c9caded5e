/* What the trials of a kernel need besides it: work that keeps multiprocessors from others. */

/* A block with all shared memory of a multiprocessor keeps it so many nanoseconds. */
extern "C" __global__ void __launch_bounds__(THREADS) occupy(Size duration)
{
    unsigned long long begun = nanoseconds();
    while (nanoseconds() - begun < (unsigned long long)duration)
        rest();
}
