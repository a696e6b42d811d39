/* Float32 products on a processor that multiplies tiles of bfloat16 (AMX). Each number is taken as the sum of two
   bfloat16s, high and low, and a product of two as that of four, summed in float32 (Henry, Tang and Heinecke, 2019,
   "Leveraging the bfloat16 Artificial Intelligence Datatype For Higher-Precision Computations").

       y [N, M] = x [N, K] times the transpose of w [M, K]

   A packed matrix is blocks of 16 rows by 32 columns, filled up with zeros: the high halves of a block, then the low
   ones. Of w each pair of columns lies together for all 16 rows, as tiles want it. Results do not depend on N. */

#include <immintrin.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SIDE 16       /* rows of a tile */
#define DEPTH 32      /* columns of it, in bfloat16 */
#define TILE (SIDE * DEPTH)
#define CHUNK 256     /* rows of x at once, which stay near the core while all of w passes */

/* Asks the system for the tiles' registers. Returns 0 where they may be used. */
int permitted(void) {
    return (int)syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */);
}

/* To the nearest bfloat16, ties to even; weights and activations are finite. */
static inline uint16_t narrow(float value) {
    uint32_t word;
    memcpy(&word, &value, 4);
    return (word + 0x7fff + (word >> 16 & 1)) >> 16;
}

static inline float wide(uint16_t half) {
    uint32_t word = (uint32_t)half << 16;
    float value;
    memcpy(&value, &word, 4);
    return value;
}

static long blocks(long count, long size) { return (count + size - 1) / size; }

/* One row of blocks, from row `first` of a matrix on. */
static void pack_rows(const float *from, long first, long rows, long columns, int pairs, uint16_t *to) {
    for (long begin = 0; begin < columns; begin += DEPTH, to += 2 * TILE) {
        long width = columns - begin < DEPTH ? columns - begin : DEPTH;
        if (width < DEPTH || rows - first < SIDE) memset(to, 0, 4 * TILE);
        for (long r = 0; r < SIDE && first + r < rows; r++) {
            const float *line = from + (first + r) * columns + begin;
            for (long c = 0; c < width; c++) {
                long at = pairs ? c / 2 * DEPTH + 2 * r + c % 2 : r * DEPTH + c;
                uint16_t high = narrow(line[c]);
                to[at] = high;
                to[TILE + at] = narrow(line[c] - wide(high));
            }
        }
    }
}

/* w as `product` reads it, in room for its rows rounded up to 32 and its columns to 32, twice. */
void pack(const float *w, long rows, long columns, uint16_t *to) {
    long row_of_blocks = blocks(columns, DEPTH) * 2 * TILE;
    #pragma omp parallel for
    for (long block = 0; block < 2 * blocks(rows, 2 * SIDE); block++)
        pack_rows(w, block * SIDE, rows, columns, 1, to + block * row_of_blocks);
}

#define FOUR(a, b, c, d) \
    _tile_dpbf16ps(0, a, c); \
    _tile_dpbf16ps(1, a, d); \
    _tile_dpbf16ps(2, b, c); \
    _tile_dpbf16ps(3, b, d);

/* 32 rows of x by 32 of w, into y with that many numbers to a line. */
static void corner(const uint16_t *x, const uint16_t *w, long depth, float *y, long line) {
    const uint16_t *x2 = x + depth * 2 * TILE, *w2 = w + depth * 2 * TILE;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (long k = 0; k < depth * 2 * TILE; k += 2 * TILE) {
        _tile_loadd(4, x + k, 64);
        _tile_loadd(5, x2 + k, 64);
        _tile_loadd(6, w + k, 64);
        _tile_loadd(7, w2 + k, 64);
        FOUR(4, 5, 6, 7)  /* high high */
        _tile_loadd(4, x + k + TILE, 64);
        _tile_loadd(5, x2 + k + TILE, 64);
        FOUR(4, 5, 6, 7)  /* low high */
        _tile_loadd(6, w + k + TILE, 64);
        _tile_loadd(7, w2 + k + TILE, 64);
        FOUR(4, 5, 6, 7)  /* low low */
        _tile_loadd(4, x + k, 64);
        _tile_loadd(5, x2 + k, 64);
        FOUR(4, 5, 6, 7)  /* high low */
    }
    _tile_stored(0, y, 4 * line);
    _tile_stored(1, y + SIDE, 4 * line);
    _tile_stored(2, y + SIDE * line, 4 * line);
    _tile_stored(3, y + SIDE * line + SIDE, 4 * line);
}

/* scratch: room for CHUNK rows of x, packed. */
void product(const uint16_t *w, const float *x, uint16_t *scratch, float *y, long N, long K, long M, int threads) {
    const struct { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } shape = {
        1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {SIDE, SIDE, SIDE, SIDE, SIDE, SIDE, SIDE, SIDE}};
    const long depth = blocks(K, DEPTH), row_of_blocks = depth * 2 * TILE;
    #pragma omp parallel num_threads(threads)
    {
        float edge[4 * SIDE * SIDE];
        _tile_loadconfig(&shape);
        for (long begin = 0; begin < N; begin += CHUNK) {
            long rows = N - begin < CHUNK ? N - begin : CHUNK;
            #pragma omp for
            for (long block = 0; block < 2 * blocks(rows, 2 * SIDE); block++)
                pack_rows(x + begin * K, block * SIDE, rows, K, 0, scratch + block * row_of_blocks);
            #pragma omp for
            for (long m = 0; m < M; m += 2 * SIDE)
                for (long n = 0; n < rows; n += 2 * SIDE) {
                    const uint16_t *left = scratch + n / SIDE * row_of_blocks, *right = w + m / SIDE * row_of_blocks;
                    float *to = y + (begin + n) * M + m;
                    if (n + 2 * SIDE <= rows && m + 2 * SIDE <= M) {
                        corner(left, right, depth, to, M);
                        continue;
                    }
                    corner(left, right, depth, edge, 2 * SIDE);
                    long width = M - m < 2 * SIDE ? M - m : 2 * SIDE;
                    for (long r = 0; r < 2 * SIDE && n + r < rows; r++)
                        memcpy(to + r * M, edge + r * 2 * SIDE, 4 * width);
                }
        }
        _tile_release();
    }
}
