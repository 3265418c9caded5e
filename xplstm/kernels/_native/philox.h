/* Random masks by Philox 4x64-10 of Salmon, Moraes, Dror and Shaw (2011), as in xplstm.cells.masks. */
#ifndef XPLSTM_PHILOX_H
#define XPLSTM_PHILOX_H

#include "jobs.h"

/* Blocks that are computed at once, because each round of one block waits for its products. */
enum { BLOCKS = 2 };

/* Replace counters by the words of their blocks. */
static inline void philox(uint64_t counters[BLOCKS][4], const uint64_t key[2])
{
    uint64_t low = key[0], high = key[1];
    for (int round = 0; round < 10; round++) {
        for (int block = 0; block < BLOCKS; block++) {
            uint64_t *counter = counters[block];
            unsigned __int128 a = (unsigned __int128)0xd2e7470ee14c6c93u * counter[0];
            unsigned __int128 b = (unsigned __int128)0xca5a826395121157u * counter[2];
            counter[0] = (uint64_t)(b >> 64) ^ counter[1] ^ low;
            counter[1] = (uint64_t)b;
            counter[2] = (uint64_t)(a >> 64) ^ counter[3] ^ high;
            counter[3] = (uint64_t)a;
        }
        low += 0x9e3779b97f4a7c15u;
        high += 0xbb67ae8584caa73bu;
    }
}

/* Draw the flags of one time: true where a 53-bit number is below p. */
static void draw_time(const Mask *m, Size t)
{
    double bound = m->p * 0x1p53;
    uint64_t words[4 * BLOCKS], limit = (uint64_t)bound;
    limit += (double)limit < bound;
    Size n = 0, at = 4 * BLOCKS;
    for (Size b = 0; b < m->B; b++) {
        uint8_t *to = m->flags + (t * m->B + b) * m->stride, *end = to + m->size;
        while (to < end) {
            if (at == 4 * BLOCKS) {
                uint64_t counters[BLOCKS][4];
                for (int block = 0; block < BLOCKS; block++) {
                    counters[block][0] = (uint64_t)++n;
                    counters[block][1] = m->start + (uint64_t)t;
                    counters[block][2] = m->stream;
                    counters[block][3] = m->purpose;
                }
                philox(counters, m->key);
                __builtin_memcpy(words, counters, sizeof words);
                at = 0;
            }
            while (to < end && at < 4 * BLOCKS)
                *to++ = words[at++] >> 11 < limit;
        }
    }
}

#endif
