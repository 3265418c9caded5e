/* Random masks by Philox 4x64-10 of Salmon, Moraes, Dror and Shaw (2011), as in xplstm.cells.masks. */
#ifndef XPLSTM_PHILOX_H
#define XPLSTM_PHILOX_H

#include "jobs.h"

/* Replace a counter by the words of its block. */
static inline void philox(uint64_t counter[4], const uint64_t key[2])
{
    uint64_t low = key[0], high = key[1];
    for (int round = 0; round < 10; round++) {
        unsigned __int128 a = (unsigned __int128)0xd2e7470ee14c6c93u * counter[0];
        unsigned __int128 b = (unsigned __int128)0xca5a826395121157u * counter[2];
        counter[0] = (uint64_t)(b >> 64) ^ counter[1] ^ low;
        counter[1] = (uint64_t)b;
        counter[2] = (uint64_t)(a >> 64) ^ counter[3] ^ high;
        counter[3] = (uint64_t)a;
        low += 0x9e3779b97f4a7c15u;
        high += 0xbb67ae8584caa73bu;
    }
}

/* Draw the flags of one time: true where a 53-bit number is below p. */
static void draw_time(const Mask *m, Size t)
{
    double bound = m->p * 0x1p53;
    uint64_t words[4];
    Size n = 0;
    for (Size b = 0; b < m->B; b++) {
        uint8_t *to = m->flags + (t * m->B + b) * m->stride;
        for (Size j = 0; j < m->size; j++, n++) {
            if (n % 4 == 0) {
                uint64_t counter[4] = {(uint64_t)n / 4 + 1, m->start + (uint64_t)t, m->stream, m->purpose};
                philox(counter, m->key);
                __builtin_memcpy(words, counter, sizeof words);
            }
            to[j] = (double)(words[n % 4] >> 11) < bound;
        }
    }
}

#endif
