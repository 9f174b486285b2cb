/* What stands between matrix products, on a CPU: each in one pass through its memory. See native.py.

Numbers are float (half = 0) or bfloat16 (half = 1) and are computed in float, a row at a time in a core's first cache.
Each row is one thread's, and sums over rows are taken in an order that does not depend on how many threads there are. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef int64_t size;

#define PARTS 64      /* into which rows are dealt where each part adds something up by itself */
#define CHUNK 4096    /* numbers of an elementwise step at a time */
#define LANES 16      /* columns whose rounding errors are carried side by side */
#define SMALL 16384   /* fewer numbers are not worth a second thread */

static inline float as_float(uint32_t bits) { float x; memcpy(&x, &bits, 4); return x; }
static inline uint32_t as_bits(float x) { uint32_t bits; memcpy(&bits, &x, 4); return bits; }

/* To the nearest bfloat16, ties to even; what is not a number stays none. */
static inline uint16_t rounded(float x) {
    uint32_t bits = as_bits(x);
    uint32_t near = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : near;
}

static inline const void *at(const void *x, size index, int half) { return (const char *)x + index * (half ? 2 : 4); }
static inline void *into(void *x, size index, int half) { return (char *)x + index * (half ? 2 : 4); }

static void widen(float *restrict out, const void *restrict x, size n, int half) {
    if (!half) { memcpy(out, x, n * sizeof(float)); return; }
    const uint16_t *bits = x;
    for (size i = 0; i < n; i++) out[i] = as_float((uint32_t)bits[i] << 16);
}

static void narrow(void *restrict out, const float *restrict x, size n, int half) {
    if (!half) { memcpy(out, x, n * sizeof(float)); return; }
    uint16_t *bits = out;
    for (size i = 0; i < n; i++) bits[i] = rounded(x[i]);
}

/* e^x to two units in the last place (Cephes' polynomial); of what is far below -87 or above 88, that of the bound. */
static inline float power(float x) {
    x = x < -87.3f ? -87.3f : x;
    x = x > 88.3f ? 88.3f : x;
    float n = x * 1.44269504f + 12582912.0f - 12582912.0f; /* the nearest whole number */
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * as_float((uint32_t)((int32_t)n + 127) << 23);
}

static inline float sigmoid(float x) { return 1.0f / (1.0f + power(-x)); }

static float squares(const float *x, size n) {
    float sum = 0;
    #pragma omp simd reduction(+ : sum)
    for (size i = 0; i < n; i++) sum += x[i] * x[i];
    return sum;
}

void rms(const void *x, const float *weight, void *out, size rows, size columns, float eps, int half, int half_out) {
    #pragma omp parallel if (rows * columns > SMALL)
    {
        float *h = malloc(columns * sizeof(float));
        #pragma omp for
        for (size row = 0; row < rows; row++) {
            widen(h, at(x, row * columns, half), columns, half);
            float inverse = 1.0f / __builtin_sqrtf(squares(h, columns) / columns + eps);
            for (size i = 0; i < columns; i++) h[i] *= inverse * weight[i];
            narrow(into(out, row * columns, half_out), h, columns, half_out);
        }
        free(h);
    }
}

/* again: what rms gave, in the type of the gradient. d_weight: PARTS x columns, zeros, or none. */
void rms_backward(const void *grad, const void *x, const float *weight, void *again, void *dx, float *d_weight,
                  size rows, size columns, float eps, int half_grad, int half) {
    #pragma omp parallel if (rows * columns > SMALL)
    {
        float *h = malloc(3 * columns * sizeof(float)), *g = h + columns, *o = g + columns;
        #pragma omp for
        for (size part = 0; part < PARTS; part++) {
            float *sums = d_weight ? d_weight + part * columns : 0;
            for (size row = part * rows / PARTS; row < (part + 1) * rows / PARTS; row++) {
                widen(h, at(x, row * columns, half), columns, half);
                widen(g, at(grad, row * columns, half_grad), columns, half_grad);
                float inverse = 1.0f / __builtin_sqrtf(squares(h, columns) / columns + eps), along = 0;
                for (size i = 0; i < columns; i++) {
                    h[i] *= inverse;
                    o[i] = h[i] * weight[i];
                }
                narrow(into(again, row * columns, half_grad), o, columns, half_grad);
                if (sums)
                    for (size i = 0; i < columns; i++) sums[i] += g[i] * h[i];
                #pragma omp simd reduction(+ : along)
                for (size i = 0; i < columns; i++) {
                    g[i] *= weight[i];
                    along += g[i] * h[i];
                }
                along /= columns;
                for (size i = 0; i < columns; i++) g[i] = (g[i] - h[i] * along) * inverse;
                narrow(into(dx, row * columns, half), g, columns, half);
            }
        }
        free(h);
    }
}

void swiglu(const void *gate, const void *up, void *out, size count, int half) {
    #pragma omp parallel for if (count > SMALL)
    for (size start = 0; start < count; start += CHUNK) {
        float g[CHUNK], u[CHUNK];
        size n = count - start < CHUNK ? count - start : CHUNK;
        widen(g, at(gate, start, half), n, half);
        widen(u, at(up, start, half), n, half);
        for (size i = 0; i < n; i++) g[i] *= sigmoid(g[i]) * u[i];
        narrow(into(out, start, half), g, n, half);
    }
}

/* again: what swiglu gave. */
void swiglu_backward(const void *grad, const void *gate, const void *up, void *again, void *d_gate, void *d_up,
                     size count, int half) {
    #pragma omp parallel for if (count > SMALL)
    for (size start = 0; start < count; start += CHUNK) {
        float d[CHUNK], g[CHUNK], u[CHUNK], o[CHUNK];
        size n = count - start < CHUNK ? count - start : CHUNK;
        widen(d, at(grad, start, half), n, half);
        widen(g, at(gate, start, half), n, half);
        widen(u, at(up, start, half), n, half);
        for (size i = 0; i < n; i++) {
            float s = sigmoid(g[i]);
            o[i] = g[i] * s * u[i];
            u[i] *= d[i] * s * (1.0f + g[i] * (1.0f - s));
            g[i] *= d[i] * s;
        }
        narrow(into(again, start, half), o, n, half);
        narrow(into(d_up, start, half), g, n, half);
        narrow(into(d_gate, start, half), u, n, half);
    }
}

/* cos, sin: a line of 2 x pairs a row, of which the first half is read. */
void rotate(const void *x, const void *cos, const void *sin, void *out, size rows, size heads, size pairs, float sign,
            int half, int half_angles) {
    #pragma omp parallel if (rows * heads * pairs > SMALL)
    {
        float *c = malloc(6 * pairs * sizeof(float)), *s = c + pairs, *h = s + pairs, *o = h + 2 * pairs;
        #pragma omp for
        for (size row = 0; row < rows; row++) {
            widen(c, at(cos, 2 * row * pairs, half_angles), pairs, half_angles);
            widen(s, at(sin, 2 * row * pairs, half_angles), pairs, half_angles);
            for (size head = 0; head < heads; head++) {
                size line = 2 * (row * heads + head) * pairs;
                widen(h, at(x, line, half), 2 * pairs, half);
                for (size i = 0; i < pairs; i++) {
                    o[i] = h[i] * c[i] - h[i + pairs] * s[i] * sign;
                    o[i + pairs] = h[i + pairs] * c[i] + h[i] * s[i] * sign;
                }
                narrow(into(out, line, half), o, 2 * pairs, half);
            }
        }
        free(c);
    }
}

/* The nearest whole numbers of x times `by`. */
static void whole(int8_t *restrict out, const float *restrict x, size n, float by) {
    for (size i = 0; i < n; i++) out[i] = (int8_t)(int32_t)(x[i] * by + 12582912.0f - 12582912.0f);
}

/* The same, but that what a number lost is added to the one LANES further on. */
static void whole_carried(int8_t *restrict out, const float *restrict x, size n, float by) {
    float left[LANES] = {0};
    for (size start = 0; start < n; start += LANES) {
        size some = n - start < LANES ? n - start : LANES;
        for (size i = 0; i < some; i++) {
            float wanted = x[start + i] * by + left[i], found = wanted + 12582912.0f - 12582912.0f;
            left[i] = wanted - found;
            out[start + i] = (int8_t)(int32_t)found;
        }
    }
}

/* Matrices side by side: xs[m] has widths[m] columns, which by[m] (or none) multiplies. total: of all columns. most of a
row becomes `top`. carry: what rounding loses goes into later columns. */
void quantize(size count, const void *const *xs, const size *widths, const float *const *by, int8_t *out,
              float *scales, size rows, size total, float top, int carry, int half) {
    #pragma omp parallel if (rows * total > SMALL)
    {
        float *h = malloc(total * sizeof(float));
        #pragma omp for
        for (size row = 0; row < rows; row++) {
            uint32_t most = 0; /* as bits: what is not a number is above infinity */
            float *place = h;
            for (size m = 0; m < count; m++) {
                const float *scale = by[m];
                size n = widths[m];
                widen(place, at(xs[m], row * n, half), n, half);
                if (scale)
                    for (size i = 0; i < n; i++) place[i] *= scale[i];
                #pragma omp simd reduction(max : most)
                for (size i = 0; i < n; i++) {
                    uint32_t bits = as_bits(place[i]) & 0x7fffffff;
                    most = bits > most ? bits : most;
                }
                place += n;
            }
            float size_of = as_float(most), scale = (size_of < 1e-30f ? 1e-30f : size_of) / top;
            scales[row] = scale;
            (carry ? whole_carried : whole)(out + row * total, h, total, 1.0f / scale);
        }
        free(h);
    }
}

/* sums (rows, columns), `stride` apart, times scales of rows and, where there are any, of columns. */
void scale(const int32_t *sums, size stride, const float *by_row, const float *by_column, void *out, size rows,
           size columns, int half) {
    #pragma omp parallel if (rows * columns > SMALL)
    {
        float *h = malloc(columns * sizeof(float));
        #pragma omp for
        for (size row = 0; row < rows; row++) {
            const int32_t *line = sums + row * stride;
            float by = by_row[row];
            if (by_column)
                for (size i = 0; i < columns; i++) h[i] = line[i] * by * by_column[i];
            else
                for (size i = 0; i < columns; i++) h[i] = line[i] * by;
            narrow(into(out, row * columns, half), h, columns, half);
        }
        free(h);
    }
}

static float exponentials(float *x, size n, float less, float by) { /* e^(by (x - less)) in place of x; their sum */
    float sum = 0;
    #pragma omp simd reduction(+ : sum)
    for (size i = 0; i < n; i++) {
        x[i] = power((x[i] - less) * by);
        sum += x[i];
    }
    return sum;
}

static float largest(const float *x, size n) {
    float most = x[0];
    #pragma omp simd reduction(max : most)
    for (size i = 0; i < n; i++) most = x[i] > most ? x[i] : most;
    return most;
}

/* Of scores, `lines` x rows x keys, times `by` (above 0), the softmax over the first visible[row] keys, in their place; 0 for the
others. own: each line has its own row of `visible`, else all have one. */
void softmax(void *scores, const int32_t *visible, size own, float by, size lines, size rows, size keys, int half) {
    #pragma omp parallel if (lines * rows * keys > SMALL)
    {
        float *h = malloc(keys * sizeof(float));
        #pragma omp for
        for (size line = 0; line < lines; line++)
            for (size row = 0; row < rows; row++) {
                void *place = into(scores, (line * rows + row) * keys, half);
                size seen = visible[own * line * rows + row];
                seen = seen < keys ? seen : keys;
                widen(h, place, seen, half);
                float inverse = 1.0f / exponentials(h, seen, largest(h, seen), by);
                for (size i = 0; i < seen; i++) h[i] *= inverse;
                memset(h + seen, 0, (keys - seen) * sizeof(float));
                narrow(place, h, keys, half);
            }
        free(h);
    }
}

/* The loss of each row of scores, which become their gradient where one is needed. log: of a float. */
void head(void *scores, const size *targets, const float *weights, float *losses, size rows, size vocabulary,
          float smoothing, int needed, int half) {
    #pragma omp parallel
    {
        float *h = malloc(vocabulary * sizeof(float));
        #pragma omp for
        for (size row = 0; row < rows; row++) {
            void *line = into(scores, row * vocabulary, half);
            widen(h, line, vocabulary, half);
            size target = targets[row];
            float weight = weights ? weights[row] : 1.0f, wanted = h[target], top = largest(h, vocabulary), plain = 0;
            if (smoothing) {
                #pragma omp simd reduction(+ : plain)
                for (size i = 0; i < vocabulary; i++) plain += h[i];
            }
            float sum = exponentials(h, vocabulary, top, 1.0f), whole = __builtin_logf(sum) + top;
            losses[row] = weight * ((whole - wanted) * (1 - smoothing) + (whole - plain / vocabulary) * smoothing);
            if (!needed) continue;
            float by = weight / sum, less = weight * smoothing / vocabulary;
            for (size i = 0; i < vocabulary; i++) h[i] = h[i] * by - less;
            h[target] -= weight * (1 - smoothing);
            narrow(line, h, vocabulary, half);
        }
        free(h);
    }
}
