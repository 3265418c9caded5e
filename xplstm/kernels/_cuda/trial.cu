/* A kernel for the trials, which occupies SMs so that other blocks cannot run. */

/* Occupy an SM for a number of nanoseconds; the block uses all shared memory of the SM. */
extern "C" __global__ void __launch_bounds__(THREADS) occupy(Size duration)
{
    unsigned long long begun = nanoseconds();
    while (nanoseconds() - begun < (unsigned long long)duration)
        rest();
}
