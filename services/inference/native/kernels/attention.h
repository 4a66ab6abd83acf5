// Attention over pages: queries of one sequence that share a key head, against its keys and values where they lie.
//
// A page holds 16 tokens. For each layer and key head it has a block of keys, [size / 2][16 tokens][2], so that one
// register holds the same two dimensions of all 16, and a block of values, [8 pairs of tokens][size][2]. Both are
// bfloat16. (KEYS and VALUES below say where.)
//
// Tokens are looked at in spans of 256, counted from position 0; each span has a softmax of its own, and spans are put
// together in order (https://arxiv.org/abs/2205.14135). So what a query gets does not depend on who computes which
// span, on the chunk its prompt was read in, or on what else is in the batch.
#pragma once

#include <cmath>
#include <cstring>

#include "simd.h"

namespace mk {

inline constexpr int PAGE = 16;   // tokens
inline constexpr int SPAN = 256;  // tokens
inline constexpr float LEAST = -1e30f;

// Where one layer's blocks of a key head are in every page, in elements of bfloat16.
struct Heads {
    int layers, heads, kv_heads, size;

    int group() const { return heads / kv_heads; }
    size_t block() const { return static_cast<size_t>(PAGE) * size; }
    size_t page() const { return 2 * block() * kv_heads * layers; }
    size_t keys(int layer, int head) const { return (static_cast<size_t>(layer) * kv_heads + head) * 2 * block(); }
    size_t values(int layer, int head) const { return keys(layer, head) + block(); }
};

// One sequence of a step: its pages by address, and which tokens of the step are its own.
struct Sequence {
    uint16_t* const* pages;
    int32_t first;   // its first token's place in the step
    int32_t count;   // how many tokens it has in the step
    int32_t start;   // position of the first of them
};

// What one span gives a query: weighted values, unnormalised, behind the largest score and the sum of weights.
struct Part {
    float most, weight;
    float* values;  // [size]
};

inline void append(const Heads& shape, const Sequence& sequence, int layer, int head, int position, const float* key,
                   const float* value) {
    uint16_t* page = sequence.pages[position / PAGE];
    uint16_t* keys = page + shape.keys(layer, head) + 2 * (position % PAGE);
    uint16_t* values = page + shape.values(layer, head) + (position % PAGE / 2) * 2 * shape.size + position % 2;
    for (int d = 0; d < shape.size; d += LANES) {
        uint16_t rounded[LANES];
        store_bfloat16(rounded, load(key + d));
        for (int i = 0; i < LANES; i += 2) std::memcpy(keys + (d + i) * PAGE, rounded + i, 4);
        store_bfloat16(rounded, load(value + d));
        for (int i = 0; i < LANES; ++i) values[2 * (d + i)] = rounded[i];
    }
}

// How many sums of their own are kept at once: each waits for the one before it, so a few rows take several pages, or
// several dimensions, together.
template <int ROWS>
constexpr int abreast() {
    return ROWS >= MOST_QUERIES / 2 ? 1 : ROWS >= MOST_QUERIES / 4 ? 2 : 4;
}

// Scores of ROWS queries against the tokens of PAGES pages.
template <int ROWS, int PAGES>
inline void page_scores(uint16_t* const* pages, size_t block, int size, const uint16_t* queries, Floats scale, float* scores) {
    Floats sums[PAGES][ROWS];
    for (int p = 0; p < PAGES; ++p) {
        for (int r = 0; r < ROWS; ++r) sums[p][r] = zero();
    }
    for (int d = 0; d < size; d += 2) {
        for (int p = 0; p < PAGES; ++p) {
            const Pairs pairs = load_pairs(pages[p] + block + d * PAGE);
            for (int r = 0; r < ROWS; ++r) sums[p][r] = dot(sums[p][r], pairs, queries + r * size + d);
        }
    }
    for (int p = 0; p < PAGES; ++p) {
        for (int r = 0; r < ROWS; ++r) store(scores + r * SPAN + p * PAGE, multiply(sums[p][r], scale));
    }
}

// Values of `count` pages weighted by `weights` [ROWS][SPAN], for 16 * BLOCKS dimensions.
template <int ROWS, int BLOCKS>
inline void page_values(uint16_t* const* pages, int count, size_t block, int size, const uint16_t* weights, int dimension,
                        const Part* parts) {
    Floats sums[BLOCKS][ROWS];
    for (int b = 0; b < BLOCKS; ++b) {
        for (int r = 0; r < ROWS; ++r) sums[b][r] = zero();
    }
    for (int page = 0; page < count; ++page) {
        const uint16_t* values = pages[page] + block + 2 * dimension;
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

// One span for ROWS queries, of which query r sees the positions from `seen_from[r]` to `seen_to[r]`, both included.
template <int ROWS>
inline void attend_span(const Heads& shape, const Sequence& sequence, int layer, int head, int span,
                        const uint16_t* queries, const int* seen_from, const int* seen_to, Part* parts) {
    alignas(64) float scores[ROWS * SPAN];
    alignas(64) uint16_t weights[ROWS * SPAN];
    int last = 0;
    for (int r = 0; r < ROWS; ++r) last = std::max(last, seen_to[r]);
    const int begin = span * SPAN, first = begin / PAGE;
    const int pages = std::min(SPAN, last + 1 - begin + PAGE - 1) / PAGE;
    const Floats scale = spread(1.0f / std::sqrt(static_cast<float>(shape.size)));
    constexpr int ABREAST = abreast<ROWS>();
    uint16_t* const* const seen = sequence.pages + first;
    const size_t keys = shape.keys(layer, head), values = shape.values(layer, head);
    int page = 0;
    for (; page + ABREAST <= pages; page += ABREAST) {
        page_scores<ROWS, ABREAST>(seen + page, keys, shape.size, queries, scale, scores + page * PAGE);
    }
    for (; page < pages; ++page) page_scores<ROWS, 1>(seen + page, keys, shape.size, queries, scale, scores + page * PAGE);
    for (int r = 0; r < ROWS; ++r) {
        float* row = scores + r * SPAN;
        for (int i = 0; i < std::min(seen_from[r] - begin, pages * PAGE); ++i) row[i] = LEAST;
        for (int i = std::max(0, seen_to[r] + 1 - begin); i < pages * PAGE; ++i) row[i] = LEAST;
        Floats most = spread(LEAST);
        for (int i = 0; i < pages * PAGE; i += LANES) most = larger(most, load(row + i));
        const float peak = largest(most);
        Floats total = zero();
        for (int i = 0; i < pages * PAGE; i += LANES) {
            const Floats weight = peak > LEAST ? exponential(subtract(load(row + i), spread(peak))) : zero();
            store(row + i, weight);
        }
        // What was hidden weighs e^-87 at most, next to nothing; it must be nothing, or a page's garbage would count.
        for (int i = 0; i < std::min(seen_from[r] - begin, pages * PAGE); ++i) row[i] = 0.0f;
        for (int i = std::max(0, seen_to[r] + 1 - begin); i < pages * PAGE; ++i) row[i] = 0.0f;
        for (int i = 0; i < pages * PAGE; i += LANES) {
            total = add(total, load(row + i));
            store_bfloat16(weights + r * SPAN + i, load(row + i));
        }
        parts[r].most = peak;
        parts[r].weight = sum(total);
    }
    int d = 0;
    for (; d + ABREAST * LANES <= shape.size; d += ABREAST * LANES) {
        page_values<ROWS, ABREAST>(seen, pages, values, shape.size, weights, d, parts);
    }
    for (; d < shape.size; d += LANES) page_values<ROWS, 1>(seen, pages, values, shape.size, weights, d, parts);
}

// Puts `part` behind `whole`: both unnormalised.
inline void join(Part& whole, const Part& part, int size) {
    const float most = std::max(whole.most, part.most);
    alignas(64) float powers[LANES];
    store(powers, exponential(spread(whole.most - most)));
    const float before = powers[0];
    store(powers, exponential(spread(part.most - most)));
    const float after = powers[0];
    for (int d = 0; d < size; d += LANES) {
        const Floats scaled = multiply(load(whole.values + d), spread(before));
        store(whole.values + d, fma(load(part.values + d), spread(after), scaled));
    }
    whole.most = most;
    whole.weight = whole.weight * before + part.weight * after;
}

inline void normalise(const Part& part, int size, float* out) {
    const float by = part.weight > 0.0f ? 1.0f / part.weight : 0.0f;
    for (int d = 0; d < size; d += LANES) store(out + d, multiply(load(part.values + d), spread(by)));
}

}  // namespace mk
