// Products of weights with the step's tokens: sixteen outputs of a few tokens at a time, in registers.
//
// A token's inputs are rounded to 8 bits, a scale for each 16 of them: with one for 32, as llama.cpp's Q8 has it, an
// instruction less is needed, and what the model says is nearly twice as far off. What an output sums up, and in which
// order, does not depend on how many tokens there are: the same bits alone or in any batch.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "formats.h"

namespace mk {

// A matrix of `rows` outputs (a multiple of 16 in memory) and `columns` inputs (a multiple of 32).
struct Matrix {
    Kind kind;
    int32_t rows, columns;
    const uint8_t* quants;   // [tiles][groups][Format::BYTES]; bfloat16: [tiles][columns / 2][16][2]
    const uint16_t* scales;  // [tiles][groups * SCALES][16], float16
    const uint16_t* minima;  // the same, where the format has them
    const float* bias;       // [rows], or null

    int tiles() const { return (rows + LANES - 1) / LANES; }
};

// Inputs of `columns` for `tokens` tokens, rounded. Tokens lie beside each other, so that a product of several of them
// needs few addresses.
struct Inputs {
    int8_t* quants;     // [columns / 32][tokens][32]
    float* scales;      // [columns / 32][2][tokens]
    float* totals;      // [columns / 32][3][tokens]: scale * sum of quants, of all 32, of the first 16, and of the others
    uint16_t* rounded;  // [columns / 2][tokens][2] bfloat16, for matrices of that kind
    int columns, tokens;

    // Round one token's inputs `x`; for bytes, for bfloat16, or both.
    void take(int token, const float* x, bool bytes, bool pairs) const {
        if (bytes) {
            for (int group = 0; group < columns / 32; ++group) quantise(token, group, x + 32 * group);
        }
        if (pairs) {
            uint16_t row[LANES];
            for (int i = 0; i < columns; i += LANES) {
                store_bfloat16(row, load(x + i));
                for (int j = 0; j < LANES; j += 2) std::memcpy(rounded + (static_cast<size_t>(i + j) / 2 * tokens + token) * 2, row + j, 4);
            }
        }
    }

  private:
    void quantise(int token, int group, const float* x) const {
        const size_t at = static_cast<size_t>(group) * tokens + token;
        float* scale = scales + static_cast<size_t>(group) * 2 * tokens + token;
        float* total = totals + static_cast<size_t>(group) * 3 * tokens + token;
        total[tokens] = quantise_half(x, quants + 32 * at, scale[0]);
        total[2 * tokens] = quantise_half(x + LANES, quants + 32 * at + LANES, scale[tokens]);
        total[0] = total[tokens] + total[2 * tokens];
    }

    // Returns the sum of what was rounded.
    static float quantise_half(const float* x, int8_t* out, float& scale) {
        const Floats values = load(x);
        const float most = largest(magnitude(values));
        const Ints rounded_values = mk::rounded(multiply(values, spread(most > 0.0f ? 127.0f / most : 0.0f)));
        store_as_bytes(out, rounded_values);
        scale = most / 127.0f;
        return scale * static_cast<float>(sum(rounded_values));
    }
};

// Bytes: the processor's own fetching ahead stops at each page's end. With 8 tokens this gave half as much again.
inline constexpr int AHEAD = 4096;

// Outputs 16 * tile to 16 * tile + 15 of TOKENS tokens from `first` on.
template <class Format, int TOKENS>
inline void product(const Matrix& matrix, int tile, const Inputs& x, int first, Floats (&out)[TOKENS]) {
    constexpr bool CORRECTED = Format::ZERO != 0 && !subtracts_zero<Format::ZERO>();
    const int groups = matrix.columns / 32, tokens = x.tokens;
    const size_t start = static_cast<size_t>(tile) * groups;
    const uint8_t* quants = matrix.quants + start * Format::BYTES;
    const uint16_t* scales = matrix.scales + start * Format::SCALES * LANES;
    const uint16_t* minima = Format::MINIMUM ? matrix.minima + start * LANES : nullptr;
    const int8_t* inputs = x.quants + 32 * static_cast<size_t>(first);
    const float* by = x.scales + first;
    const float* totals = x.totals + first;
    Floats sums[TOKENS];
    for (int t = 0; t < TOKENS; ++t) sums[t] = zero();
    for (int group = 0; group < groups; ++group) {
        Bytes quads[8];
        Format::unpack(quants, quads);
        quants += Format::BYTES;
        for (int line = 0; line < Format::BYTES; line += 64) __builtin_prefetch(quants + AHEAD + line);
        const Floats scale = halves(scales);
        const Floats other = Format::SCALES == 2 ? halves(scales + LANES) : scale;
        // Where the dot product did not take ZERO off the weights, it comes off here: once for 32 of them.
        const Floats least = Format::MINIMUM ? halves(minima) : multiply(scale, spread(-Format::ZERO));
        const Floats other_least = multiply(other, spread(-Format::ZERO));
#pragma GCC unroll 16
        for (int t = 0; t < TOKENS; ++t) {
            const int8_t* four = inputs + 32 * t;
            // A chain for each half, and each sum waits for the one before: with one chain, 12 tokens ran at half the
            // speed.
            Ints low = no_ints(), high = no_ints();
            for (int j = 0; j < 4; ++j) low = dot<Format::ZERO>(low, quads[j], four + 4 * j);
            for (int j = 4; j < 8; ++j) high = dot<Format::ZERO>(high, quads[j], four + 4 * j);
            const Floats left = multiply(to_floats(low), spread(by[t])), right = to_floats(high);
            if constexpr (Format::SCALES == 1) {
                sums[t] = fma(fma(right, spread(by[tokens + t]), left), scale, sums[t]);
                if constexpr (Format::MINIMUM || CORRECTED) sums[t] = fma(least, spread(totals[t]), sums[t]);
            } else {
                sums[t] = fma(left, scale, sums[t]);
                sums[t] = fma(multiply(right, spread(by[tokens + t])), other, sums[t]);
                if constexpr (CORRECTED) {
                    sums[t] = fma(least, spread(totals[tokens + t]), sums[t]);
                    sums[t] = fma(other_least, spread(totals[2 * tokens + t]), sums[t]);
                }
            }
        }
        inputs += 32 * static_cast<size_t>(tokens);
        by += 2 * static_cast<size_t>(tokens);
        totals += 3 * static_cast<size_t>(tokens);
        scales += Format::SCALES * LANES;
        if constexpr (Format::MINIMUM) minima += LANES;
    }
    for (int t = 0; t < TOKENS; ++t) out[t] = sums[t];
}

struct BFloat16 {};

template <int TOKENS>
inline void product(const Matrix& matrix, int tile, const Inputs& x, int first, Floats (&out)[TOKENS]) {
    const int columns = matrix.columns;
    const auto* weights = reinterpret_cast<const uint16_t*>(matrix.quants) + static_cast<size_t>(tile) * columns * LANES;
    const uint16_t* inputs = x.rounded + 2 * static_cast<size_t>(first);
    Floats sums[TOKENS];
    for (int t = 0; t < TOKENS; ++t) sums[t] = zero();
    for (int column = 0; column < columns; column += 2) {
        const Pairs pairs = load_pairs(weights + static_cast<size_t>(column) * LANES);
#pragma GCC unroll 16
        for (int t = 0; t < TOKENS; ++t) sums[t] = dot(sums[t], pairs, inputs + 2 * t);
        inputs += 2 * static_cast<size_t>(x.tokens);
    }
    for (int t = 0; t < TOKENS; ++t) out[t] = sums[t];
}

// Every output of `tile` for `tokens` tokens: `use(token, sums)` is given each, bias added, and what is in `added`
// [tokens][16] if there is any. `use` stores 16 floats.
template <class Format, class Use>
inline void each_token(const Matrix& matrix, int tile, const Inputs& x, int tokens, Use use, const float* added = nullptr) {
    const Floats bias = matrix.bias ? load(matrix.bias + tile * LANES) : zero();
    int first = 0;
    auto some = [&]<int TOKENS>() {
        Floats out[TOKENS];
        if constexpr (std::is_same_v<Format, BFloat16>) {
            product<TOKENS>(matrix, tile, x, first, out);
        } else {
            product<Format, TOKENS>(matrix, tile, x, first, out);
        }
        for (int t = 0; t < TOKENS; ++t) {
            const Floats sums = matrix.bias ? add(out[t], bias) : out[t];
            use(first + t, added ? add(sums, load(added + (first + t) * LANES)) : sums);
        }
        first += TOKENS;
    };
    while (first < tokens) {
        const int left = tokens - first;
        if constexpr (MOST_TOKENS >= 12) {  // measured: 8 at once are slower than twice 4
            if (left == 12 || left >= 16) {
                some.template operator()<12>();
                continue;
            }
            if (left == 6 || left >= 9) {
                some.template operator()<6>();
                continue;
            }
        }
        if constexpr (MOST_TOKENS >= 4) {
            if (left == 4 || left >= 7) {
                some.template operator()<4>();
                continue;
            }
            if (left == 3 || left == 5) {
                some.template operator()<3>();
                continue;
            }
        }
        if (left >= 2) {
            some.template operator()<2>();
        } else {
            some.template operator()<1>();
        }
    }
}

template <class Use>
inline void each_token(const Matrix& matrix, int tile, const Inputs& x, int tokens, Use use, const float* added = nullptr) {
    if (matrix.kind == Kind::BFLOAT16) return each_token<BFloat16>(matrix, tile, x, tokens, use, added);
    with_format(matrix.kind, [&](auto format) { each_token<decltype(format)>(matrix, tile, x, tokens, use, added); });
}

}  // namespace mk
