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
#include <utility>

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

// How inputs are rounded: to bytes, to factors of bfloat16 weights, or both. Where the halves of a group may come from
// different threads (`apart`), `complete` follows when all have come.
struct Rounding {
    bool bytes = false, factors = false, apart = false;
};

// Inputs of `columns` for `tokens` tokens, rounded. Sixteen tokens are a block, in which they lie beside each other, so
// that a product of several of them needs few addresses, and one of many reads one block after the other.
struct Inputs {
    static constexpr int BLOCK = 16;

    int8_t* quants;   // [blocks][columns / 32][block][32]
    float* scales;    // [blocks][columns / 32][2][block]
    float* totals;    // [blocks][columns / 32][3][block]: scale * sum of quants, of all 32, the first 16, and the others
    Factor* factors;  // [blocks][columns / 2][block][2]
    int columns, tokens;

    int block() const { return std::min(tokens, BLOCK); }
    static size_t room(size_t tokens) { return tokens <= BLOCK ? tokens : (tokens + BLOCK - 1) / BLOCK * BLOCK; }

    // Where the numbers of a token's block begin, for what a group has `each` of for each token; and its factors.
    size_t start(int token, int each) const { return static_cast<size_t>(token / BLOCK) * (columns / 32) * each * block(); }
    size_t start_of_factors(int token) const { return static_cast<size_t>(token / BLOCK) * columns * block(); }

    // Round inputs from column 16 * tile on, 16 of each of TOKENS tokens of a block; a group's halves one after the other.
    template <int TOKENS>
    void take(int first, int tile, const Floats (&x)[TOKENS], Rounding to) const {
        if (to.bytes) take_bytes(first, tile, x, to.apart);
        if (to.factors) take_factors(first, tile, x);
    }

    template <int TOKENS>
    void take_factors(int first, int tile, const Floats (&x)[TOKENS]) const {
        const int stride = 2 * block();
        Factor* out = factors + start_of_factors(first) + static_cast<size_t>(tile) * (LANES / 2) * stride + first % BLOCK * 2;
        for (int t = 0; t < TOKENS; ++t) {
            Factor row[LANES];
            store_factors(row, x[t]);
            for (int j = 0; j < LANES / 2; ++j) std::memcpy(out + j * stride + 2 * t, row + 2 * j, 2 * sizeof(Factor));
        }
    }

    // The totals of a token's groups.
    void complete(int token) const {
        for (int group = 0; group < columns / 32; ++group) {
            float* total = totals + start(token, 3) + group * 3 * block() + token % BLOCK;
            total[0] = total[block()] + total[2 * block()];
        }
    }

  private:
    template <int TOKENS>
    __attribute__((noinline)) void take_bytes(int first, int tile, const Floats (&x)[TOKENS], bool apart) const {
        const int group = tile / 2, half = tile % 2, stride = block(), lane = first % BLOCK;
        int8_t* const bytes = quants + start(first, 32) + 32 * (group * stride + lane) + LANES * half;
        float* const scale = scales + start(first, 2) + (group * 2 + half) * stride + lane;
        float* const total = totals + start(first, 3) + group * 3 * stride + lane;
        // Beside each other: each waits for the sums over its lanes.
        constexpr int BESIDE = TOKENS % 4 == 0 ? 4 : TOKENS % 3 == 0 ? 3 : TOKENS;
        for (int t = 0; t < TOKENS; t += BESIDE) {
            float most[BESIDE], by[BESIDE];
            int32_t sums[BESIDE];
#pragma GCC unroll 4
            for (int i = 0; i < BESIDE; ++i) most[i] = largest(magnitude(x[t + i]));
#pragma GCC unroll 4
            for (int i = 0; i < BESIDE; ++i) by[i] = most[i] > 0.0f ? 127.0f / most[i] : 0.0f;
#pragma GCC unroll 4
            for (int i = 0; i < BESIDE; ++i) {
                const Ints near = rounded(multiply(x[t + i], spread(by[i])));
                store_as_bytes(bytes + 32 * (t + i), near);
                sums[i] = sum(near);
            }
#pragma GCC unroll 4
            for (int i = 0; i < BESIDE; ++i) {
                scale[t + i] = most[i] * (1.0f / 127.0f);
                total[(1 + half) * stride + t + i] = scale[t + i] * static_cast<float>(sums[i]);
                if (half == 1 && !apart) total[t + i] = total[stride + t + i] + total[2 * stride + t + i];
            }
        }
    }
};

// Bytes: the processor's own fetching ahead stops at each page's end. With 8 tokens this gave half as much again.
inline constexpr int AHEAD = 4096;

// Outputs 16 * tile to 16 * tile + 15 of TOKENS tokens from `first` on, all of one block.
template <class Format, int TOKENS>
__attribute__((noinline)) void product(const Matrix& matrix, int tile, const Inputs& x, int first, Floats (&out)[TOKENS]) {
    constexpr bool CORRECTED = Format::ZERO != 0 && !subtracts_zero<Format::ZERO>();
    const int groups = matrix.columns / 32, tokens = x.block();
    const size_t start = static_cast<size_t>(tile) * groups;
    const uint8_t* quants = matrix.quants + start * Format::BYTES;
    const uint16_t* scales = matrix.scales + start * Format::SCALES * LANES;
    const uint16_t* minima = Format::MINIMUM ? matrix.minima + start * LANES : nullptr;
    const int lane = first % Inputs::BLOCK;
    const int8_t* inputs = x.quants + x.start(first, 32) + 32 * lane;
    const float* by = x.scales + x.start(first, 2) + lane;
    const float* totals = x.totals + x.start(first, 3) + lane;
    Floats sums[TOKENS];
#pragma GCC unroll 16
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
#pragma GCC unroll 16
    for (int t = 0; t < TOKENS; ++t) out[t] = sums[t];
}

struct BFloat16 {};

template <int TOKENS>
__attribute__((noinline)) void product(const Matrix& matrix, int tile, const Inputs& x, int first, Floats (&out)[TOKENS]) {
    const int columns = matrix.columns;
    const auto* weights = reinterpret_cast<const uint16_t*>(matrix.quants) + static_cast<size_t>(tile) * columns * LANES;
    const Factor* inputs = x.factors + x.start_of_factors(first) + first % Inputs::BLOCK * 2;
    Floats sums[TOKENS];
#pragma GCC unroll 16
    for (int t = 0; t < TOKENS; ++t) sums[t] = zero();
    for (int column = 0; column < columns; column += 2) {
        const Pairs pairs = load_pairs(weights + static_cast<size_t>(column) * LANES);
#pragma GCC unroll 16
        for (int t = 0; t < TOKENS; ++t) sums[t] = dot(sums[t], pairs, inputs + 2 * t);
        inputs += 2 * x.block();
    }
#pragma GCC unroll 16
    for (int t = 0; t < TOKENS; ++t) out[t] = sums[t];
}

// What is done to a tile's sums before they are used. Each may be null.
struct Finish {
    const float* by = nullptr;     // [tokens]: a factor of each token
    const float* added = nullptr;  // [tokens][16], multiplied too
};

struct Range {
    int first, count;
};

// Every output of `tile` for some tokens: `use(first, sums)` is given those of a few, with the matrix's bias.
template <class Format, class Use>
inline void each_token(const Matrix& matrix, int tile, const Inputs& x, Range tokens, Finish finish, Use use) {
    const Floats bias = matrix.bias ? load(matrix.bias + tile * LANES) : zero();
    int first = tokens.first;
    auto some = [&]<int TOKENS>() {
        Floats out[TOKENS];
        if constexpr (std::is_same_v<Format, BFloat16>) {
            product<TOKENS>(matrix, tile, x, first, out);
        } else {
            product<Format, TOKENS>(matrix, tile, x, first, out);
        }
        if (finish.added) {
            for (int t = 0; t < TOKENS; ++t) out[t] = add(out[t], load(finish.added + (first + t) * LANES));
        }
        if (finish.by) {
            for (int t = 0; t < TOKENS; ++t) out[t] = multiply(out[t], spread(finish.by[first + t]));
        }
        if (matrix.bias) {
            for (int t = 0; t < TOKENS; ++t) out[t] = add(out[t], bias);
        }
        use(first, out);
        first += TOKENS;
    };
    for (const int end = tokens.first + tokens.count; first < end;) {
        const int left = std::min(end - first, Inputs::BLOCK - first % Inputs::BLOCK);
        const auto at_once = [&]<int TOKENS>() {
            if constexpr (TOKENS <= MOST_TOKENS) {
                if (left >= TOKENS) some.template operator()<TOKENS>();
                return left >= TOKENS;
            }
            return false;
        };
        [&]<int... TOKENS>(std::integer_sequence<int, TOKENS...>) {
            (void)(at_once.template operator()<TOKENS>() || ...);
        }(std::integer_sequence<int, 16, 12, 8, 6, 4, 3, 2, 1>{});
    }
}

template <class Use>
inline void each_token(const Matrix& matrix, int tile, const Inputs& x, Range tokens, Finish finish, Use use) {
    if (matrix.kind == Kind::BFLOAT16) return each_token<BFloat16>(matrix, tile, x, tokens, finish, use);
    with_format(matrix.kind, [&](auto format) { each_token<decltype(format)>(matrix, tile, x, tokens, finish, use); });
}

}  // namespace mk
