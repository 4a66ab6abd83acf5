// How the quantised weights of sixteen rows and thirty-two columns lie in memory, and how they become bytes.
//
// A tile is 16 rows. For each group of 32 columns it holds the rows' weights side by side: register j of eight has the
// four columns 4j to 4j + 3 of all 16 rows, which is what one dot product of bytes takes. Where weights have fewer bits
// than 8, a 64-byte line of low nibbles holds registers 2i (low) and 2i + 1 (high), and further lines hold the bits
// above: 2 bits (four registers a line) or 1 bit (eight). A weight's value is scale * (quant - ZERO) + minimum; scales
// and minima are float16, 16 rows side by side for each group (with SCALES 2, for each half of it).
#pragma once

#include "simd.h"

namespace mk {

enum class Kind : int32_t { BITS4 = 0, BITS4_MINIMUM = 1, BITS5 = 2, BITS5_MINIMUM = 3, BITS6 = 4, BITS8 = 5, BFLOAT16 = 6 };

template <int BITS_, int ZERO_, bool MINIMUM_, int SCALES_>
struct Format {
    static constexpr int BITS = BITS_, ZERO = ZERO_, SCALES = SCALES_;
    static constexpr bool MINIMUM = MINIMUM_;
    static constexpr int BYTES = BITS * 64;  // a group of a tile: 512 weights

    // The eight registers of one group.
    static inline void unpack(const uint8_t* at, Bytes (&quads)[8]) {
        if constexpr (BITS == 8) {
            for (int j = 0; j < 8; ++j) quads[j] = centred<ZERO>(load_bytes(at + 64 * j));
            return;
        }
        for (int i = 0; i < 4; ++i) {
            const Bytes line = load_bytes(at + 64 * i);
            quads[2 * i] = low_nibbles(line);
            quads[2 * i + 1] = high_nibbles(line);
        }
        if constexpr (BITS == 6) {
            for (int i = 0; i < 2; ++i) {
                const Bytes line = load_bytes(at + 256 + 64 * i);
                quads[4 * i] = either(quads[4 * i], mask(shift<4>(line), 0x30));
                quads[4 * i + 1] = either(quads[4 * i + 1], mask(shift<2>(line), 0x30));
                quads[4 * i + 2] = either(quads[4 * i + 2], mask(line, 0x30));
                quads[4 * i + 3] = either(quads[4 * i + 3], mask(shift<-2>(line), 0x30));
            }
        }
        if constexpr (BITS == 5) {
            const Bytes line = load_bytes(at + 256);
            quads[0] = either(quads[0], mask(shift<4>(line), 0x10));
            quads[1] = either(quads[1], mask(shift<3>(line), 0x10));
            quads[2] = either(quads[2], mask(shift<2>(line), 0x10));
            quads[3] = either(quads[3], mask(shift<1>(line), 0x10));
            quads[4] = either(quads[4], mask(line, 0x10));
            quads[5] = either(quads[5], mask(shift<-1>(line), 0x10));
            quads[6] = either(quads[6], mask(shift<-2>(line), 0x10));
            quads[7] = either(quads[7], mask(shift<-3>(line), 0x10));
        }
        if constexpr (ZERO != 0) {
            for (int j = 0; j < 8; ++j) quads[j] = centred<ZERO>(quads[j]);
        }
    }

    // The reverse, for one weight: `quant` of (row, column) of the group, into bytes that were zero.
    static inline void put(uint8_t* at, int row, int column, int quant) {
        const int quad = column / 4, lane = row * 4 + column % 4;
        if constexpr (BITS == 8) {
            at[64 * quad + lane] = static_cast<uint8_t>(quant);
            return;
        }
        at[64 * (quad / 2) + lane] |= static_cast<uint8_t>((quant & 15) << 4 * (quad % 2));
        if constexpr (BITS == 6) at[256 + 64 * (quad / 4) + lane] |= static_cast<uint8_t>((quant >> 4) << 2 * (quad % 4));
        if constexpr (BITS == 5) at[256 + lane] |= static_cast<uint8_t>((quant >> 4) << quad);
    }

    static inline int get(const uint8_t* at, int row, int column) {
        const int quad = column / 4, lane = row * 4 + column % 4;
        if constexpr (BITS == 8) return at[64 * quad + lane];
        int quant = at[64 * (quad / 2) + lane] >> 4 * (quad % 2) & 15;
        if constexpr (BITS == 6) quant |= (at[256 + 64 * (quad / 4) + lane] >> 2 * (quad % 4) & 3) << 4;
        if constexpr (BITS == 5) quant |= (at[256 + lane] >> quad & 1) << 4;
        return quant;
    }
};

using Bits4 = Format<4, 8, false, 1>;           // Q4_0
using Bits4Minimum = Format<4, 0, true, 1>;     // Q4_1, Q4_K
using Bits5 = Format<5, 16, false, 1>;          // Q5_0
using Bits5Minimum = Format<5, 0, true, 1>;     // Q5_1, Q5_K
using Bits6 = Format<6, 32, false, 2>;          // Q6_K
using Bits8 = Format<8, 128, false, 1>;         // Q8_0

// Calls `use` with the format of `kind` as a value; BFLOAT16 is none of them.
template <class Use>
inline void with_format(Kind kind, Use use) {
    switch (kind) {
        case Kind::BITS4: return use(Bits4{});
        case Kind::BITS4_MINIMUM: return use(Bits4Minimum{});
        case Kind::BITS5: return use(Bits5{});
        case Kind::BITS5_MINIMUM: return use(Bits5Minimum{});
        case Kind::BITS6: return use(Bits6{});
        case Kind::BITS8: return use(Bits8{});
        case Kind::BFLOAT16: return;
    }
}

}  // namespace mk
