// Pages in bfloat16: for each layer and key head keys, [size / 2][16 tokens][2], so that one register holds the same two
// dimensions of all 16, and values, [8 pairs of tokens][size][2]. Queries and weights are factors.
#pragma once

#include <cstring>
#include <type_traits>

#include "span.h"

namespace mk {

struct BFloat16Pages {
    static size_t block(int size) { return 2 * keys(size); }  // bytes of one layer and key head
    static size_t query(int size) { return sizeof(Factor) * static_cast<size_t>(size); }

    static void take_query(int size, const float* x, uint8_t* out) {
        for (int d = 0; d < size; d += LANES) store_factors(reinterpret_cast<Factor*>(out) + d, load(x + d));
    }

    static void append(int size, uint8_t* block, int slot, const float* key, const float* value) {
        uint16_t* to = reinterpret_cast<uint16_t*>(block) + 2 * slot;
        uint16_t* values = reinterpret_cast<uint16_t*>(block + keys(size)) + slot / 2 * 2 * size + slot % 2;
        for (int d = 0; d < size; d += LANES) {
            uint16_t rounded[LANES];
            store_bfloat16(rounded, load(key + d));
            for (int i = 0; i < LANES; i += 2) std::memcpy(to + (d + i) * PAGE, rounded + i, 4);
            store_bfloat16(rounded, load(value + d));
            for (int i = 0; i < LANES; ++i) values[2 * (d + i)] = rounded[i];
        }
    }

    // Scores of ROWS queries, one behind the other, against the tokens of `count` pages: [ROWS][SPAN].
    template <int ROWS>
    static void scores(uint8_t* const* pages, int count, size_t at, int size, const uint8_t* queries, float scale, float* out) {
        constexpr int ABREAST = abreast<ROWS>();
        const auto* rows = reinterpret_cast<const Factor*>(queries);
        int page = 0;
        for (; page + ABREAST <= count; page += ABREAST) some_scores<ROWS, ABREAST>(pages + page, at, size, rows, scale, out + page * PAGE);
        for (; page < count; ++page) some_scores<ROWS, 1>(pages + page, at, size, rows, scale, out + page * PAGE);
    }

    // Values of `count` pages weighted by `weights` [ROWS][SPAN].
    template <int ROWS>
    static void values(uint8_t* const* pages, int count, size_t at, int size, const float* weights, const Part* parts) {
        const Factor* factors;
        alignas(64) Factor rounded[ROWS * SPAN];
        if constexpr (std::is_same_v<Factor, float>) {
            factors = weights;
        } else {
            for (int r = 0; r < ROWS; ++r) {
                for (int i = 0; i < count * PAGE; i += LANES) store_factors(rounded + r * SPAN + i, load(weights + r * SPAN + i));
            }
            factors = rounded;
        }
        constexpr int ABREAST = abreast<ROWS>();
        int d = 0;
        for (; d + ABREAST * LANES <= size; d += ABREAST * LANES) some_values<ROWS, ABREAST>(pages, count, at, size, factors, d, parts);
        for (; d < size; d += LANES) some_values<ROWS, 1>(pages, count, at, size, factors, d, parts);
    }

  private:
    static size_t keys(int size) { return 2 * static_cast<size_t>(PAGE) * size; }

    // How many sums of their own are kept at once: each waits for the one before it, so a few rows take several pages,
    // or several dimensions, together.
    template <int ROWS>
    static constexpr int abreast() {
        return ROWS >= MOST_QUERIES / 2 ? 1 : ROWS >= MOST_QUERIES / 4 ? 2 : 4;
    }

    template <int ROWS, int PAGES>
    static void some_scores(uint8_t* const* pages, size_t at, int size, const Factor* queries, float scale, float* out) {
        Floats sums[PAGES][ROWS];
        for (int p = 0; p < PAGES; ++p) {
            for (int r = 0; r < ROWS; ++r) sums[p][r] = zero();
        }
        for (int d = 0; d < size; d += 2) {
            for (int p = 0; p < PAGES; ++p) {
                const uint8_t* keys_of = pages[p] + at + 2 * static_cast<size_t>(d) * PAGE;
                const Pairs pairs = load_pairs(reinterpret_cast<const uint16_t*>(keys_of));
                __builtin_prefetch(keys_of + keys(size));  // the values, which come next
                for (int r = 0; r < ROWS; ++r) sums[p][r] = dot(sums[p][r], pairs, queries + r * size + d);
            }
        }
        for (int p = 0; p < PAGES; ++p) {
            for (int r = 0; r < ROWS; ++r) store(out + r * SPAN + p * PAGE, multiply(sums[p][r], spread(scale)));
        }
    }

    // For 16 * BLOCKS dimensions.
    template <int ROWS, int BLOCKS>
    static void some_values(uint8_t* const* pages, int count, size_t at, int size, const Factor* weights, int dimension,
                            const Part* parts) {
        Floats sums[BLOCKS][ROWS];
        for (int b = 0; b < BLOCKS; ++b) {
            for (int r = 0; r < ROWS; ++r) sums[b][r] = zero();
        }
        for (int page = 0; page < count; ++page) {
            const uint16_t* values = reinterpret_cast<const uint16_t*>(pages[page] + at + keys(size)) + 2 * dimension;
            for (int pair = 0; pair < PAGE / 2; ++pair) {
                for (int b = 0; b < BLOCKS; ++b) {
                    const Pairs both = load_pairs(values + pair * 2 * size + 2 * LANES * b);
                    for (int r = 0; r < ROWS; ++r) sums[b][r] = dot(sums[b][r], both, weights + r * SPAN + page * PAGE + 2 * pair);
                }
            }
        }
        for (int b = 0; b < BLOCKS; ++b) {
            for (int r = 0; r < ROWS; ++r) store(parts[r].values + dimension + LANES * b, sums[b][r]);
        }
    }
};

}  // namespace mk
