// Attention over pages: queries of one sequence that share a key head, against its keys and values where they lie.
//
// A page holds 16 tokens: for each layer and key head a block of keys and values. How they lie in it, and what their
// products take, is the page kind's: pages_bfloat16.h and pages_int8.h.
//
// Tokens are looked at in spans of 256, counted from position 0; each span has a softmax of its own, and spans are put
// together in order (https://arxiv.org/abs/2205.14135). So what a query gets does not depend on who computes which
// span, on the chunk its prompt was read in, or on what else is in the batch.
#pragma once

#include <algorithm>
#include <cmath>

#include "pages_bfloat16.h"
#include "pages_int8.h"

namespace mk {

inline constexpr float LEAST = -1e30f;

enum class PageKind : int32_t { BFLOAT16 = 0, INT8 = 1 };

template <class Use>
inline auto with_pages(PageKind kind, Use use) {
    return kind == PageKind::INT8 ? use(Int8Pages{}) : use(BFloat16Pages{});
}

// Where one layer's block of a key head is in every page, in bytes; and what a query takes, made ready for them.
struct Heads {
    int layers, heads, kv_heads, size;
    PageKind kind;

    int group() const { return heads / kv_heads; }
    size_t block() const {
        return with_pages(kind, [&](auto pages) { return pages.block(size); });
    }
    size_t page() const { return block() * kv_heads * layers; }
    size_t at(int layer, int head) const { return (static_cast<size_t>(layer) * kv_heads + head) * block(); }
    size_t query() const {
        return with_pages(kind, [&](auto pages) { return pages.query(size); });
    }
};

// One sequence of a step: its pages by address, and which tokens of the step are its own.
struct Sequence {
    uint8_t* const* pages;
    int32_t first;   // its first token's place in the step
    int32_t count;   // how many tokens it has in the step
    int32_t start;   // position of the first of them
};

inline void take_query(const Heads& shape, const float* query, uint8_t* out) {
    with_pages(shape.kind, [&](auto pages) { pages.take_query(shape.size, query, out); });
}

inline void append(const Heads& shape, const Sequence& sequence, int layer, int head, int position, const float* key,
                   const float* value) {
    uint8_t* block = sequence.pages[position / PAGE] + shape.at(layer, head);
    with_pages(shape.kind, [&](auto pages) { pages.append(shape.size, block, position % PAGE, key, value); });
}

// One span for ROWS queries, of which query r sees the positions from `seen_from[r]` to `seen_to[r]`, both included.
template <class Pages, int ROWS>
inline void attend_pages(const Heads& shape, const Sequence& sequence, int layer, int head, int span,
                         const uint8_t* queries, const int* seen_from, const int* seen_to, Part* parts) {
    alignas(64) float scores[ROWS * SPAN];
    int last = 0;
    for (int r = 0; r < ROWS; ++r) last = std::max(last, seen_to[r]);
    const int begin = span * SPAN, count = std::min(SPAN, last + 1 - begin + PAGE - 1) / PAGE, tokens = count * PAGE;
    uint8_t* const* const pages = sequence.pages + begin / PAGE;
    const size_t at = shape.at(layer, head);
    const float scale = 1.0f / std::sqrt(static_cast<float>(shape.size));
    Pages::template scores<ROWS>(pages, count, at, shape.size, queries, scale, scores);
    for (int r = 0; r < ROWS; ++r) {
        float* row = scores + r * SPAN;
        const auto hide = [&](float with) {
            for (int i = 0; i < std::min(seen_from[r] - begin, tokens); ++i) row[i] = with;
            for (int i = std::max(0, seen_to[r] + 1 - begin); i < tokens; ++i) row[i] = with;
        };
        hide(LEAST);
        Floats most = spread(LEAST), total = zero();
        for (int i = 0; i < tokens; i += LANES) most = larger(most, load(row + i));
        const float peak = largest(most);
        for (int i = 0; i < tokens; i += LANES) {
            store(row + i, peak > LEAST ? exponential(subtract(load(row + i), spread(peak))) : zero());
        }
        hide(0.0f);  // it would weigh e^-87, next to nothing; it must be nothing, or a page's garbage would count
        for (int i = 0; i < tokens; i += LANES) total = add(total, load(row + i));
        parts[r].most = peak;
        parts[r].weight = sum(total);
    }
    Pages::template values<ROWS>(pages, count, at, shape.size, scores, parts);
}

template <int ROWS>
inline void attend_span(const Heads& shape, const Sequence& sequence, int layer, int head, int span,
                        const uint8_t* queries, const int* seen_from, const int* seen_to, Part* parts) {
    with_pages(shape.kind, [&](auto pages) {
        attend_pages<decltype(pages), ROWS>(shape, sequence, layer, head, span, queries, seen_from, seen_to, parts);
    });
}

// What a span gives of which a query sees nothing.
inline void nothing(Part& part, int size) {
    part.most = LEAST, part.weight = 0.0f;
    for (int d = 0; d < size; d += LANES) store(part.values + d, zero());
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

}  // namespace mk
