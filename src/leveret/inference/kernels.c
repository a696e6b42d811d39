/* The decoder over a few tokens on a CPU: what torch's operators are too slow for when each weight is used once.

   One call takes N tokens, each of some row of the key/value cache and at some position of it, so that prompts, steps
   of many rows and drafts are all the same thing. Activations are float32; matrices are read in the form they are
   kept in, several rows of a matrix at once for several tokens at once, so that many sums run beside each other.
   A token's result does not depend on its neighbours nor on the number of threads. Loops marked `omp for` are shared
   by the threads of the one parallel region in `forward`, and end with a wait for all of them.

   N tokens   C hidden size   H query heads   K key/value heads   D head width   S capacity of a cache row */

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __AVX512F__
#include <immintrin.h>
#define LANES 16
#else
#define LANES 8
#endif
#define INLINE static inline __attribute__((always_inline))
#define ROWS 4          /* of a matrix, at once */
#define TOKENS 4        /* at once */
#define AHEAD 8192      /* bytes between what is read and what is asked of memory: far enough to hide its delay */
#define GROUP 32        /* int4 weights that share a scale */

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef uint32_t uvec __attribute__((vector_size(4 * LANES)));
typedef uint16_t half __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef int8_t bytes __attribute__((vector_size(LANES), aligned(1), may_alias));

/* These are mirrored in kernels.py. A pointer may be null where the model has no such thing. */
enum { FLOAT32, BFLOAT16, INT8, INT4 };
enum { SWIGLU, GELU, RELU2 };
enum { SEQUENTIAL, PARALLEL, SHARED_NORM };

typedef struct {
    const void *weight;  /* [rows, columns]; of INT4 two to a byte */
    const float *scale;  /* INT8: one a row; INT4: one a group */
    const float *bias;
    int rows, columns, kind;
} Matrix;

typedef struct { const float *weight, *bias; } Norm;

typedef struct {
    Norm before_attention, before_mlp;
    const float *q_norm, *k_norm;
    Matrix qkv, out, up, down;
    int window;          /* keys that a token sees, itself among them */
} Layer;

typedef struct {
    const Layer *layers;
    Matrix tokens, positions, head;
    Norm final;
    const float *cosines, *sines;  /* [positions, D / 2] */
    float epsilon, softcap;
    int count, heads, kv_heads, width, mlp, residual, layer_norm, interleaved;
} Model;

typedef struct { void *keys, *values; int kind, rows, capacity; } Cache;  /* [layers, rows, K, S, D] */

typedef struct {
    const int64_t *ids, *rows, *positions;  /* [N] */
    const int64_t *wanted;                  /* tokens whose logits are wanted */
    float *logits;                          /* [wanted, V] */
    float *stream, *normed, *heads, *attended, *wide, *inner, *scores;  /* scratch: a row of each for each token */
    int count, wanted_count, threads;
} Batch;

INLINE float wide(uint16_t bits) {
    uint32_t word = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &word, 4);
    return value;
}

/* To the nearest bfloat16, ties to even. */
INLINE uint16_t narrow(float value) {
    uint32_t word;
    memcpy(&word, &value, 4);
    if (value != value) return 0x7fc0;
    return (word + 0x7fff + (word >> 16 & 1)) >> 16;
}

/* LANES bytes as whole numbers. */
INLINE ivec widen(const int8_t *from) {
#ifdef __AVX512F__  /* gcc does not find this by itself */
    return (ivec)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)from));
#else
    return __builtin_convertvector(*(const bytes *)from, ivec);
#endif
}

INLINE float total(vec v) {
#ifdef __AVX512F__
    return _mm512_reduce_add_ps((__m512)v);
#else
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += v[i];
    return sum;
#endif
}

/* LANES weights from i + part on; of INT4, i is where a group begins, and part a constant within it. Byte j of a group
   holds weights j (low half) and j + 16 (high half), each 8 too large. A row of INT8 is scaled when it is summed up. */
INLINE vec load(const Matrix *m, const int kind, long row, long i, const int part) {
    long at = row * m->columns + i + part;
    if (kind == FLOAT32) return *(const vec *)((const float *)m->weight + at);
    if (kind == BFLOAT16)
        return (vec)(__builtin_convertvector(*(const half *)((const uint16_t *)m->weight + at), uvec) << 16);
    if (kind == INT8) return __builtin_convertvector(widen((const int8_t *)m->weight + at), vec);
    long group = row * ((m->columns + GROUP - 1) / GROUP) + i / GROUP;
    ivec pairs = widen((const int8_t *)m->weight + group * GROUP / 2 + part % (GROUP / 2));
    if (part >= GROUP / 2) pairs >>= 4;
#ifdef __AVX512F__  /* looked up by the low four bits */
    const vec values = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
    return (vec)_mm512_permutexvar_ps((__m512i)pairs, (__m512)(values * m->scale[group]));
#else
    return __builtin_convertvector((pairs & 15) - 8, vec) * m->scale[group];
#endif
}

INLINE float load_one(const Matrix *m, const int kind, long row, long i) {
    long at = row * m->columns + i;
    if (kind == FLOAT32) return ((const float *)m->weight)[at];
    if (kind == BFLOAT16) return wide(((const uint16_t *)m->weight)[at]);
    if (kind == INT8) return ((const int8_t *)m->weight)[at];
    long group = row * ((m->columns + GROUP - 1) / GROUP) + i / GROUP;
    int pair = ((const uint8_t *)m->weight)[group * GROUP / 2 + i % (GROUP / 2)];
    return (((i % GROUP < GROUP / 2 ? pair : pair >> 4) & 15) - 8) * m->scale[group];
}

/* exp within two units in the last place, in a form that compilers vectorise. */
INLINE float exponential(float x) {
    float bounded = fminf(fmaxf(x, -87.0f), 88.0f);
    float whole = rintf(bounded * 1.44269504f);
    float rest = bounded - whole * 0.693359375f + whole * 2.12194440e-4f;
    float sum = 1 + rest * (1 + rest * (0.5f + rest * (0.166666667f + rest * (0.0416666667f + rest * (0.00833333333f
        + rest * 0.00138888889f)))));
    int32_t power = ((int32_t)whole + 127) << 23;
    float scale;
    memcpy(&scale, &power, 4);
    return x != x ? x : sum * scale;
}

/* Products of rows row..row+rows of a matrix with `count` inputs; kind, rows and count are constants where it is used. */
INLINE void tile(const Matrix *m, const int kind, const long row, const int rows, const float *x, const int count,
                 float *y, const int add) {
    const long columns = m->columns, stride = m->rows;
    const long line = kind == FLOAT32 ? 16 : kind == BFLOAT16 ? 32 : kind == INT8 ? 64 : 128;  /* weights in 64 bytes */
    const int step = kind == INT4 ? GROUP : LANES;
    vec acc[ROWS][TOKENS] = {{{0}}};
    long i = 0;
    for (; i + step <= columns; i += step) {
        if (i % line == 0)
            for (int r = 0; r < rows; r++)
                __builtin_prefetch((const char *)m->weight + ((row + r) * columns + i) * 64 / line + AHEAD);
        for (int part = 0; part < step; part += LANES) {
            vec in[TOKENS];
            for (int t = 0; t < count; t++) in[t] = *(const vec *)(x + t * columns + i + part);
            for (int r = 0; r < rows; r++) {
                const vec weight = load(m, kind, row + r, i, part);
                for (int t = 0; t < count; t++) acc[r][t] += weight * in[t];
            }
        }
    }
    for (int r = 0; r < rows; r++)
        for (int t = 0; t < count; t++) {
            float sum = total(acc[r][t]);
            for (long j = i; j < columns; j++) sum += load_one(m, kind, row + r, j) * x[t * columns + j];
            if (kind == INT8) sum *= m->scale[row + r];
            if (m->bias) sum += m->bias[row + r];
            float *to = y + t * stride + row + r;
            *to = add ? *to + sum : sum;
        }
}

INLINE void multiply_kind(const Matrix *m, const int kind, const float *x, int tokens, float *y, int add) {
    #pragma omp for
    for (long row = 0; row <= m->rows - ROWS; row += ROWS)
        for (int t = 0; t < tokens; t += TOKENS) {
            const float *in = x + (long)t * m->columns;
            float *out = y + (long)t * m->rows;
            switch (tokens - t) {
                case 1: tile(m, kind, row, ROWS, in, 1, out, add); break;
                case 2: tile(m, kind, row, ROWS, in, 2, out, add); break;
                case 3: tile(m, kind, row, ROWS, in, 3, out, add); break;
                default: tile(m, kind, row, ROWS, in, TOKENS, out, add);
            }
        }
}

/* The rows that are left over, one by one. */
static void multiply_rest(const Matrix *m, const float *x, int tokens, float *y, int add) {
    #pragma omp for
    for (int t = 0; t < tokens; t++)
        for (long row = m->rows / ROWS * ROWS; row < m->rows; row++)
            tile(m, m->kind, row, 1, x + (long)t * m->columns, 1, y + (long)t * m->rows, add);
}

/* y [N, rows] = or += x [N, columns] times the matrix's transpose, and its bias. */
static void multiply(const Matrix *m, const float *x, int tokens, float *y, int add) {
    switch (m->kind) {
        case FLOAT32: multiply_kind(m, FLOAT32, x, tokens, y, add); break;
        case BFLOAT16: multiply_kind(m, BFLOAT16, x, tokens, y, add); break;
        case INT8: multiply_kind(m, INT8, x, tokens, y, add); break;
        case INT4: multiply_kind(m, INT4, x, tokens, y, add); break;
    }
    if (m->rows % ROWS) multiply_rest(m, x, tokens, y, add);
}

void product(const Matrix *m, const float *x, int tokens, float *y, int threads) {
    #pragma omp parallel num_threads(threads)
    multiply(m, x, tokens, y, 0);
}

/* ---- the parts of a block ---- */

static void normalise(const Norm *norm, const float *x, float *y, int width, float epsilon, int centred) {
    float mean = 0, square = 0;
    if (centred) {
        #pragma omp simd reduction(+ : mean)
        for (int i = 0; i < width; i++) mean += x[i];
        mean /= width;
    }
    #pragma omp simd reduction(+ : square)
    for (int i = 0; i < width; i++) square += (x[i] - mean) * (x[i] - mean);
    float scale = 1 / sqrtf(square / width + epsilon);
    for (int i = 0; i < width; i++) y[i] = (x[i] - mean) * scale * norm->weight[i] + (norm->bias ? norm->bias[i] : 0);
}

static void normalise_all(const Model *m, const Norm *norm, const Batch *b) {
    const int width = m->tokens.columns;
    #pragma omp for
    for (int t = 0; t < b->count; t++)
        normalise(norm, b->stream + (long)t * width, b->normed + (long)t * width, width, m->epsilon, m->layer_norm);
}

static void rotate(const Model *m, float *head, long position) {
    const int pairs = m->width / 2, step = m->interleaved ? 1 : pairs;
    const float *cosine = m->cosines + position * pairs, *sine = m->sines + position * pairs;
    for (int i = 0; i < pairs; i++) {
        float *a = head + (m->interleaved ? 2 * i : i), first = *a, second = a[step];
        *a = first * cosine[i] - second * sine[i];
        a[step] = second * cosine[i] + first * sine[i];
    }
}

static void store(const Cache *c, void *to, long at, const float *from, int width) {
    for (int i = 0; i < width; i++)
        if (c->kind == FLOAT32) ((float *)to)[at + i] = from[i];
        else ((uint16_t *)to)[at + i] = narrow(from[i]);
}

/* Queries and keys of every token are normed and turned; keys and values go into the cache. */
static void place(const Model *m, const Layer *layer, int number, const Cache *c, const Batch *b) {
    const int H = m->heads, K = m->kv_heads, D = m->width, all = H + 2 * K;
    #pragma omp for
    for (int n = 0; n < b->count * all; n++) {
        const int t = n / all, h = n % all;
        float *head = b->heads + (long)n * D;
        if (h < H + K) {
            const Norm norm = {h < H ? layer->q_norm : layer->k_norm, 0};
            if (norm.weight) normalise(&norm, head, head, D, m->epsilon, 0);
            if (m->cosines) rotate(m, head, b->positions[t]);
        }
        if (h < H) continue;
        const long row = ((long)number * c->rows + b->rows[t]) * K + (h - H) % K;
        store(c, h < H + K ? c->keys : c->values, (row * c->capacity + b->positions[t]) * D, head, D);
    }
}

/* One head of one token over the keys that it sees. */
INLINE void attend_head(const int kind, const Cache *c, long row, long start, long end, const float *q, int D,
                        float *scores, float *out) {
    const Matrix keys = {c->keys, 0, 0, 0, D, kind}, values = {c->values, 0, 0, 0, D, kind};
    const float scale = 1 / sqrtf(D);
    float most = -INFINITY, sum = 0;
    for (long s = start; s < end; s++) {
        vec acc = {0};
        int i = 0;
        for (; i + LANES <= D; i += LANES) acc += *(const vec *)(q + i) * load(&keys, kind, row + s, i, 0);
        float score = total(acc);
        for (; i < D; i++) score += q[i] * load_one(&keys, kind, row + s, i);
        scores[s - start] = score * scale;
        most = fmaxf(most, scores[s - start]);
    }
    #pragma omp simd reduction(+ : sum)
    for (long s = 0; s < end - start; s++) sum += scores[s] = exponential(scores[s] - most);
    for (int i = 0; i < D; i++) out[i] = 0;
    for (long s = start; s < end; s++) {
        const float weight = scores[s - start] / sum;
        int i = 0;
        for (; i + LANES <= D; i += LANES) *(vec *)(out + i) += weight * load(&values, kind, row + s, i, 0);
        for (; i < D; i++) out[i] += weight * load_one(&values, kind, row + s, i);
    }
}

static void attend(const Model *m, const Layer *layer, int number, const Cache *c, const Batch *b) {
    const int H = m->heads, K = m->kv_heads, D = m->width;
    #pragma omp for
    for (int n = 0; n < b->count * H; n++) {
        const int t = n / H, h = n % H;
        const long end = b->positions[t] + 1, start = end > layer->window ? end - layer->window : 0;
        const long row = (((long)number * c->rows + b->rows[t]) * K + h / (H / K)) * c->capacity;
        const float *q = b->heads + ((long)t * (H + 2 * K) + h) * D;
        float *scores = b->scores + (long)n * c->capacity, *out = b->attended + (long)n * D;
        if (c->kind == FLOAT32) attend_head(FLOAT32, c, row, start, end, q, D, scores, out);
        else attend_head(BFLOAT16, c, row, start, end, q, D, scores, out);
    }
}

/* [N, I], or SwiGLU's [N, 2 I], become [N, I]. */
static void activate(const Model *m, const Layer *layer, const Batch *b) {
    const int inner = layer->down.columns;
    #pragma omp for
    for (int t = 0; t < b->count; t++) {
        const float *x = b->wide + (long)t * layer->up.rows;
        float *y = b->inner + (long)t * inner;
        if (m->mlp == SWIGLU)
            for (int i = 0; i < inner; i++) y[i] = x[i] / (1 + exponential(-x[i])) * x[inner + i];
        else if (m->mlp == GELU)  /* x * sigmoid(2 u) is x * (1 + tanh(u)) / 2 */
            for (int i = 0; i < inner; i++)
                y[i] = x[i] / (1 + exponential(-1.59576912f * (x[i] + 0.044715f * x[i] * x[i] * x[i])));
        else
            for (int i = 0; i < inner; i++) y[i] = x[i] > 0 ? x[i] * x[i] : 0;
    }
}

static void block(const Model *m, int number, const Cache *c, const Batch *b) {
    const Layer *layer = m->layers + number;
    normalise_all(m, &layer->before_attention, b);
    multiply(&layer->qkv, b->normed, b->count, b->heads, 0);
    if (m->residual == PARALLEL) normalise_all(m, &layer->before_mlp, b);
    place(m, layer, number, c, b);
    attend(m, layer, number, c, b);
    multiply(&layer->out, b->attended, b->count, b->stream, 1);
    if (m->residual == SEQUENTIAL) normalise_all(m, &layer->before_mlp, b);
    multiply(&layer->up, b->normed, b->count, b->wide, 0);
    activate(m, layer, b);
    multiply(&layer->down, b->inner, b->count, b->stream, 1);
}

static void embed(const Model *m, const Batch *b) {
    const long width = m->tokens.columns;
    #pragma omp for
    for (long t = 0; t < b->count; t++)
        for (long i = 0; i < width; i++) {
            float value = load_one(&m->tokens, m->tokens.kind, b->ids[t], i);
            if (m->tokens.kind == INT8) value *= m->tokens.scale[b->ids[t]];
            if (m->positions.weight) value += load_one(&m->positions, m->positions.kind, b->positions[t], i);
            b->stream[t * width + i] = value;
        }
}

/* The head over the tokens that are wanted, which are gathered first. */
static void answer(const Model *m, const Batch *b) {
    const long width = m->tokens.columns, vocabulary = m->head.rows;
    #pragma omp for
    for (long w = 0; w < b->wanted_count; w++)
        normalise(&m->final, b->stream + b->wanted[w] * width, b->normed + w * width, width, m->epsilon, m->layer_norm);
    multiply(&m->head, b->normed, b->wanted_count, b->logits, 0);
    if (m->softcap == 0) return;
    #pragma omp for
    for (long i = 0; i < b->wanted_count * vocabulary; i++) b->logits[i] = m->softcap * tanhf(b->logits[i] / m->softcap);
}

void forward(const Model *m, const Cache *c, const Batch *b) {
    #pragma omp parallel num_threads(b->threads)
    {
        embed(m, b);
        for (int number = 0; number < m->count; number++) block(m, number, c, b);
        answer(m, b);
    }
}
