// Pages in 8 bits: for each layer and key head
//
//   keys           [size / 4][16 tokens][4]     bytes around 128: one register holds the same 4 dimensions of all 16
//   key scales     [size / 32][16 tokens]       float; a last group of 16 dimensions has scales of its own
//   values         [4 quads of tokens][size][4] bytes around 128
//   value scales   [16 tokens]                  float
//
// Keys have a scale for each 32 dimensions, because some of them stand out in every token (Qwen2's biases reach 100
// times the others); values have none that do. A token's bytes depend on that token only.
//
// Queries, and weights times their values' scales, are taken as 128 * high + low, two signed bytes of 15 bits together:
// so both products are those of bytes, and next to nothing is lost but what the pages have lost.
#pragma once

#include <cstring>

#include "span.h"

namespace mk {

struct Int8Pages {
    static size_t block(int size) { return 2 * quants(size) + key_scales(size) + sizeof(float) * PAGE; }

    // A query: [size] high, [size] low, [2][groups] their sums in each group as int32, and its scale; whole lines.
    static size_t query(int size) { return (query_scale(size) + sizeof(float) + 63) / 64 * 64; }

    static void take_query(int size, const float* x, uint8_t* out) {
        const float most = greatest(x, size);
        const Floats by = spread(inverse(most, TWO_BYTES));
        auto* high = reinterpret_cast<int8_t*>(out);
        auto* sums = reinterpret_cast<int32_t*>(out + 2 * size);
        std::memset(sums, 0, sizeof(int32_t) * 2 * groups(size));
        for (int d = 0; d < size; d += LANES) {
            const TwoBytes two = split(multiply(load(x + d), by));
            two.store(high + d, high + size + d);
            sums[d / GROUP] += sum(two.high);
            sums[groups(size) + d / GROUP] += sum(two.low);
        }
        *reinterpret_cast<float*>(out + query_scale(size)) = most / TWO_BYTES;
    }

    static void append(int size, uint8_t* block, int slot, const float* key, const float* value) {
        uint8_t bytes[LANES];
        auto* scales = reinterpret_cast<float*>(block + quants(size)) + slot;
        for (int d = 0; d < size; d += LANES) {
            const float most = greatest(key + d / GROUP * GROUP, group_size(size, d));
            scales[d / GROUP * PAGE] = most / BYTE;
            quantise(key + d, inverse(most, BYTE), bytes);
            for (int i = 0; i < LANES; i += 4) std::memcpy(block + (d + i) * PAGE + 4 * slot, bytes + i, 4);
        }
        uint8_t* values = block + quants(size) + key_scales(size);
        const float most = greatest(value, size);
        reinterpret_cast<float*>(values + quants(size))[slot] = most / BYTE;
        for (int d = 0; d < size; d += LANES) {
            quantise(value + d, inverse(most, BYTE), bytes);
            for (int i = 0; i < LANES; ++i) values[(slot / 4 * size + d + i) * 4 + slot % 4] = bytes[i];
        }
    }

    // Scores of ROWS queries, one behind the other, against the tokens of `count` pages: [ROWS][SPAN].
    template <int ROWS>
    static void scores(uint8_t* const* pages, int count, size_t at, int size, const uint8_t* queries, float scale, float* out) {
        if constexpr (ROWS > MOST_ROWS) {
            constexpr int FIRST = ROWS / 2;
            scores<FIRST>(pages, count, at, size, queries, scale, out);
            scores<ROWS - FIRST>(pages, count, at, size, queries + FIRST * query(size), scale, out + FIRST * SPAN);
        } else {
            constexpr int ABREAST = abreast<ROWS>();
            int page = 0;
            for (; page + ABREAST <= count; page += ABREAST) {
                some_scores<ROWS, ABREAST>(pages + page, at, size, queries, scale, out + page * PAGE);
            }
            for (; page < count; ++page) some_scores<ROWS, 1>(pages + page, at, size, queries, scale, out + page * PAGE);
        }
    }

    // Values of `count` pages weighted by `weights` [ROWS][SPAN].
    template <int ROWS>
    static void values(uint8_t* const* pages, int count, size_t at, int size, const float* weights, const Part* parts) {
        if constexpr (ROWS > MOST_ROWS) {
            constexpr int FIRST = ROWS / 2;
            values<FIRST>(pages, count, at, size, weights, parts);
            values<ROWS - FIRST>(pages, count, at, size, weights + FIRST * SPAN, parts + FIRST);
        } else {
            Weights<ROWS> taken;
            at += quants(size) + key_scales(size);
            for (int r = 0; r < ROWS; ++r) taken.take(r, pages, count, at + quants(size), weights + r * SPAN);
            constexpr int ABREAST = abreast<ROWS>();
            int d = 0;
            for (; d + ABREAST * LANES <= size; d += ABREAST * LANES) {
                some_values<ROWS, ABREAST>(pages, count, at, size, taken, d, parts);
            }
            for (; d < size; d += LANES) some_values<ROWS, 1>(pages, count, at, size, taken, d, parts);
        }
    }

  private:
    static constexpr int GROUP = 32, ZERO = 128;
    static constexpr float BYTE = 127.0f, TWO_BYTES = 127.0f * 128;
    static constexpr int MOST_ROWS = MOST_QUERIES / 2;  // each has two sums

    static size_t quants(int size) { return static_cast<size_t>(PAGE) * size; }
    static size_t groups(int size) { return (size + GROUP - 1) / GROUP; }
    static size_t key_scales(int size) { return sizeof(float) * PAGE * groups(size); }
    static size_t query_scale(int size) { return 2 * size + sizeof(int32_t) * 2 * groups(size); }
    static int group_size(int size, int dimension) { return std::min(GROUP, size - dimension / GROUP * GROUP); }

    // As many chains of sums as there are registers for.
    template <int ROWS>
    static constexpr int abreast() {
        return ROWS > MOST_QUERIES / 4 ? 1 : ROWS > MOST_QUERIES / 8 ? 2 : 4;
    }

    struct TwoBytes {
        Ints high, low;

        void store(int8_t* to_high, int8_t* to_low) const {
            store_as_bytes(to_high, high);
            store_as_bytes(to_low, low);
        }
    };
    static TwoBytes split(Floats x) {
        const Floats high = nearest(multiply(x, spread(1.0f / 128)));
        return {rounded(high), rounded(fma(high, spread(-128.0f), x))};
    }
    static Floats joined(Ints high, Ints low) { return fma(to_floats(high), spread(128.0f), to_floats(low)); }

    static float greatest(const float* x, int count) {
        Floats most = zero();
        for (int i = 0; i < count; i += LANES) most = larger(most, magnitude(load(x + i)));
        return largest(most);
    }
    // What takes `most` to `steps`; nothing is left of numbers so small that it would be infinite.
    static float inverse(float most, float steps) { return most > 1e-30f ? steps / most : 0.0f; }
    static void quantise(const float* x, float by, uint8_t* out) {
        store_as_bytes(reinterpret_cast<int8_t*>(out), rounded(multiply(load(x), spread(by))));
        for (int i = 0; i < LANES; ++i) out[i] ^= ZERO;
    }

    // Where a dot product does not take ZERO off the pages' bytes, sums begin with what has to come off.
    static Ints begin(int32_t sum) { return spread_int(subtracts_zero<ZERO>() ? 0 : -ZERO * sum); }

    template <int ROWS, int PAGES>
    static void some_scores(uint8_t* const* pages, size_t at, int size, const uint8_t* queries, float scale, float* out) {
        Floats all[PAGES][ROWS];
        for (int p = 0; p < PAGES; ++p) {
            for (int r = 0; r < ROWS; ++r) all[p][r] = zero();
        }
        for (int d = 0; d < size; d += GROUP) {
            const int group = d / GROUP;
            Ints high[PAGES][ROWS], low[PAGES][ROWS];
            for (int r = 0; r < ROWS; ++r) {
                const auto* sums = reinterpret_cast<const int32_t*>(queries + r * query(size) + 2 * size) + group;
                for (int p = 0; p < PAGES; ++p) high[p][r] = begin(sums[0]), low[p][r] = begin(sums[groups(size)]);
            }
            for (int i = d; i < d + group_size(size, d); i += 4) {
                for (int p = 0; p < PAGES; ++p) {
                    const Bytes keys = centred<ZERO>(load_bytes(pages[p] + at + static_cast<size_t>(i) * PAGE));
                    for (int r = 0; r < ROWS; ++r) {
                        const auto* query_bytes = reinterpret_cast<const int8_t*>(queries + r * query(size)) + i;
                        high[p][r] = dot<ZERO>(high[p][r], keys, query_bytes);
                        low[p][r] = dot<ZERO>(low[p][r], keys, query_bytes + size);
                    }
                }
            }
            for (int p = 0; p < PAGES; ++p) {
                const Floats scales = load(reinterpret_cast<const float*>(pages[p] + at + quants(size)) + group * PAGE);
                for (int r = 0; r < ROWS; ++r) all[p][r] = fma(joined(high[p][r], low[p][r]), scales, all[p][r]);
            }
        }
        for (int r = 0; r < ROWS; ++r) {
            const float by = scale * *reinterpret_cast<const float*>(queries + r * query(size) + query_scale(size));
            for (int p = 0; p < PAGES; ++p) store(out + r * SPAN + p * PAGE, multiply(all[p][r], spread(by)));
        }
    }

    // Weights of a span's tokens, times their values' scales.
    template <int ROWS>
    struct Weights {
        alignas(64) int8_t high[ROWS * SPAN], low[ROWS * SPAN];
        int32_t high_sum[ROWS], low_sum[ROWS];
        float scale[ROWS];

        void take(int r, uint8_t* const* pages, int count, size_t scales, const float* weights) {
            alignas(64) float scaled[SPAN];
            for (int p = 0; p < count; ++p) {
                const Floats by = load(reinterpret_cast<const float*>(pages[p] + scales));
                store(scaled + p * PAGE, multiply(load(weights + p * PAGE), by));
            }
            const float most = greatest(scaled, count * PAGE);
            const Floats by = spread(inverse(most, TWO_BYTES));
            Ints highs = no_ints(), lows = no_ints();
            for (int i = 0; i < count * PAGE; i += LANES) {
                const TwoBytes two = split(multiply(load(scaled + i), by));
                two.store(high + r * SPAN + i, low + r * SPAN + i);
                highs = add(highs, two.high), lows = add(lows, two.low);
            }
            high_sum[r] = sum(highs), low_sum[r] = sum(lows);
            scale[r] = most / TWO_BYTES;
        }
    };

    // For 16 * BLOCKS dimensions.
    template <int ROWS, int BLOCKS>
    static void some_values(uint8_t* const* pages, int count, size_t at, int size, const Weights<ROWS>& weights,
                            int dimension, const Part* parts) {
        Ints high[BLOCKS][ROWS], low[BLOCKS][ROWS];
        for (int b = 0; b < BLOCKS; ++b) {
            for (int r = 0; r < ROWS; ++r) high[b][r] = begin(weights.high_sum[r]), low[b][r] = begin(weights.low_sum[r]);
        }
        for (int page = 0; page < count; ++page) {
            for (int quad = 0; quad < PAGE / 4; ++quad) {
                const uint8_t* values = pages[page] + at + (static_cast<size_t>(quad) * size + dimension) * 4;
                for (int b = 0; b < BLOCKS; ++b) {
                    const Bytes bytes = centred<ZERO>(load_bytes(values + 64 * b));
                    for (int r = 0; r < ROWS; ++r) {
                        const int token = r * SPAN + page * PAGE + 4 * quad;
                        high[b][r] = dot<ZERO>(high[b][r], bytes, weights.high + token);
                        low[b][r] = dot<ZERO>(low[b][r], bytes, weights.low + token);
                    }
                }
            }
        }
        for (int b = 0; b < BLOCKS; ++b) {
            for (int r = 0; r < ROWS; ++r) {
                float* out = parts[r].values + dimension + LANES * b;
                store(out, multiply(joined(high[b][r], low[b][r]), spread(weights.scale[r])));
            }
        }
    }
};

}  // namespace mk
