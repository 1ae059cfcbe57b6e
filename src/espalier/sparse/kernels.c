/* x W^T of a sparse W over its active weights, and its gradients, by loops of our own: kernels.py compiles and calls them.

   W has its active weights in compressed rows: entry j of row r, starts[r] <= j < starts[r + 1], stands in column places[j]. An
   activation is (features, n), a row of n numbers for each feature. Every output is written by one thread, its terms added in one
   order whatever the number of threads: bits do not depend on it. No NaN and no infinity is assumed away.

   The file includes itself once for each type. */
#ifndef REAL

#include <stdint.h>

#define REAL float
#define NAME(name) name##_float32
#include "kernels.c"
#undef REAL
#undef NAME

#define REAL double
#define NAME(name) name##_float64
#include "kernels.c"

#else

#define VECTOR NAME(vector)
#define LANES (64 / (int64_t)sizeof(REAL))
#define TILE (4 * LANES)                              /* of n at a time: its sums stay in registers, its activations in the cache */
typedef REAL VECTOR __attribute__((vector_size(64), aligned(sizeof(REAL)), may_alias));

/* The first row of a part of `parts`, so that all of them have about as much to do. */
static int64_t NAME(first)(const int32_t *starts, int64_t rows, int64_t part, int64_t parts) {
    const double wanted = (double)(starts[rows] + 8 * rows) * (double)part / (double)parts;
    int64_t low = 0, high = rows;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if ((double)(starts[middle] + 8 * middle) < wanted) low = middle + 1; else high = middle;
    }
    return low;
}

/* `count` vectors of one row of y; count is known where this is called, so that the sums are registers. */
static inline __attribute__((always_inline)) void NAME(row)(
    int count, int32_t from, int32_t to, int64_t n, const int32_t *places, const int32_t *order, const REAL *values,
    const REAL *x, REAL bias, REAL *y) {
    VECTOR sums[4];
    for (int i = 0; i < count; i++) sums[i] = bias - (VECTOR){0};
    for (int32_t j = from; j < to; j++) {
        const VECTOR *across = (const VECTOR *)(x + places[j] * n);
        const REAL value = values[order ? order[j] : j];
        for (int i = 0; i < count; i++) sums[i] += value * across[i];
    }
    for (int i = 0; i < count; i++) ((VECTOR *)y)[i] = sums[i];
}

/* y (rows, n) = W x + bias (rows,) or nothing. order: where the value of an entry stands; NULL: in its place. */
void NAME(multiply)(
    int64_t rows, int64_t n, const int32_t *starts, const int32_t *places, const int32_t *order, const REAL *values, const REAL *x,
    const REAL *bias, REAL *y, int threads) {
    #pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
    for (int part = 0; part < threads; part++) {
        const int64_t begin = NAME(first)(starts, rows, part, threads), end = NAME(first)(starts, rows, part + 1, threads);
        for (int64_t next, at = 0; at < n; at = next) {
            next = n - at >= TILE ? at + TILE : n - at >= LANES ? at + LANES : n;
            if (next - at < LANES && n >= LANES) at = n - LANES;                  /* a short end: some numbers twice, the same */
            for (int64_t r = begin; r < end; r++) {
                const REAL own = bias ? bias[r] : 0;
                REAL *out = y + r * n + at;
                if (next - at == TILE) NAME(row)(4, starts[r], starts[r + 1], n, places, order, values, x + at, own, out);
                else if (n >= LANES) NAME(row)(1, starts[r], starts[r + 1], n, places, order, values, x + at, own, out);
                else {
                    for (int64_t i = 0; i < n; i++) out[i] = own;
                    for (int32_t j = starts[r]; j < starts[r + 1]; j++) {
                        const REAL value = values[order ? order[j] : j], *across = x + places[j] * n;
                        for (int64_t i = 0; i < n; i++) out[i] += value * across[i];
                    }
                }
            }
        }
    }
}

/* of_values (k,): of entry j of row r, the sum over n of own[r] other[places[j]]. */
void NAME(correlate)(
    int64_t rows, int64_t n, const int32_t *starts, const int32_t *places, const REAL *own, const REAL *other, REAL *of_values,
    int threads) {
    #pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
    for (int part = 0; part < threads; part++) {
        const int64_t begin = NAME(first)(starts, rows, part, threads), end = NAME(first)(starts, rows, part + 1, threads);
        for (int64_t r = begin; r < end; r++) {
            const REAL *mine = own + r * n;
            int32_t j = starts[r];
            for (; j + 4 <= starts[r + 1]; j += 4) {                              /* four at a time read `mine` once */
                const REAL *a = other + places[j] * n, *b = other + places[j + 1] * n;
                const REAL *c = other + places[j + 2] * n, *d = other + places[j + 3] * n;
                REAL sa = 0, sb = 0, sc = 0, sd = 0;
                #pragma omp simd reduction(+ : sa, sb, sc, sd)
                for (int64_t i = 0; i < n; i++) {
                    sa += mine[i] * a[i]; sb += mine[i] * b[i]; sc += mine[i] * c[i]; sd += mine[i] * d[i];
                }
                of_values[j] = sa; of_values[j + 1] = sb; of_values[j + 2] = sc; of_values[j + 3] = sd;
            }
            for (; j < starts[r + 1]; j++) {
                const REAL *a = other + places[j] * n;
                REAL sum = 0;
                #pragma omp simd reduction(+ : sum)
                for (int64_t i = 0; i < n; i++) sum += mine[i] * a[i];
                of_values[j] = sum;
            }
        }
    }
}

/* y (columns, rows), the transpose of x (rows, columns): by squares that stay in the cache. */
void NAME(transpose)(int64_t rows, int64_t columns, const REAL *x, REAL *y, int threads) {
    enum { SIDE = 16 };
    #pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t left = 0; left < columns; left += SIDE) {
        const int64_t right = columns - left < SIDE ? columns : left + SIDE;
        for (int64_t top = 0; top < rows; top += SIDE) {
            REAL square[SIDE][SIDE];
            const int64_t bottom = rows - top < SIDE ? rows : top + SIDE;
            if (bottom - top == SIDE && right - left == SIDE) {
                for (int r = 0; r < SIDE; r++)
                    for (int c = 0; c < SIDE; c++) square[r][c] = x[(top + r) * columns + left + c];
                for (int c = 0; c < SIDE; c++)
                    for (int r = 0; r < SIDE; r++) y[(left + c) * rows + top + r] = square[r][c];
            } else {
                for (int64_t c = left; c < right; c++)
                    for (int64_t r = top; r < bottom; r++) y[c * rows + r] = x[r * columns + c];
            }
        }
    }
}

#undef VECTOR
#undef LANES
#undef TILE
#endif
