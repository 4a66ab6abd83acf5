// From the blocks of a GGUF file to tiles: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
#pragma once

#include <cmath>
#include <cstring>

#include "formats.h"

namespace mk {

enum class Source : int32_t { F32 = 0, F16 = 1, Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8, Q4_K = 12, Q5_K = 13, Q6_K = 14, BF16 = 30 };

// 32 weights of a row as a tile takes them: quants, and a scale and minimum (for 6 bits a scale for each 16).
struct Group {
    uint8_t quants[32];
    float scale[2], minimum;
};

inline float from_half(const uint8_t* at) {
    uint16_t all[LANES] = {};
    std::memcpy(all, at, 2);
    float out[LANES];
    store(out, halves(all));
    return out[0];
}

inline uint16_t to_half(float x) {  // to nearest even
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    const uint32_t sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    if (rest >= 0x47800000) return static_cast<uint16_t>(sign | (rest > 0x7f800000 ? 0x7e00 : 0x7c00));
    if (rest < 0x38800000) {  // below 2^-14: a multiple of 2^-24
        float magnitude;
        std::memcpy(&magnitude, &rest, 4);
        return static_cast<uint16_t>(sign | static_cast<uint32_t>(std::nearbyint(magnitude * 16777216.0f)));
    }
    const uint32_t up = rest + 0xfff + (rest >> 13 & 1);
    return static_cast<uint16_t>(sign | ((up - 0x38000000) >> 13));
}

inline void scale_and_minimum(const uint8_t* packed, int j, int& scale, int& minimum) {  // 6 bits each, of Q4_K and Q5_K
    if (j < 4) {
        scale = packed[j] & 63, minimum = packed[j + 4] & 63;
    } else {
        scale = (packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4;
        minimum = packed[j + 4] >> 4 | (packed[j] >> 6) << 4;
    }
}

// Group `index` of a row of blocks.
inline Group read_group(Source source, const uint8_t* row, int index) {
    Group group{};
    const auto nibbles = [&](const uint8_t* bytes) {
        for (int i = 0; i < 16; ++i) group.quants[i] = bytes[i] & 15, group.quants[16 + i] = bytes[i] >> 4;
    };
    const auto fifth_bits = [&](const uint8_t* bytes) {
        uint32_t bits;
        std::memcpy(&bits, bytes, 4);
        for (int i = 0; i < 32; ++i) group.quants[i] |= (bits >> i & 1) << 4;
    };
    const int j = index % 8;
    switch (source) {
        case Source::Q4_0:
            row += index * 18, group.scale[0] = from_half(row), nibbles(row + 2);
            break;
        case Source::Q4_1:
            row += index * 20, group.scale[0] = from_half(row), group.minimum = from_half(row + 2), nibbles(row + 4);
            break;
        case Source::Q5_0:
            row += index * 22, group.scale[0] = from_half(row), nibbles(row + 6), fifth_bits(row + 2);
            break;
        case Source::Q5_1:
            row += index * 24, group.scale[0] = from_half(row), group.minimum = from_half(row + 2);
            nibbles(row + 8), fifth_bits(row + 4);
            break;
        case Source::Q8_0:
            row += index * 34, group.scale[0] = from_half(row);
            for (int i = 0; i < 32; ++i) group.quants[i] = static_cast<uint8_t>(row[2 + i] + 128);
            break;
        case Source::Q4_K:
        case Source::Q5_K: {
            const bool five = source == Source::Q5_K;
            row += index / 8 * (five ? 176 : 144);
            int scale, minimum;
            scale_and_minimum(row + 4, j, scale, minimum);
            group.scale[0] = from_half(row) * scale, group.minimum = -from_half(row + 2) * minimum;
            const uint8_t* low = row + (five ? 48 : 16) + j / 2 * 32;
            for (int i = 0; i < 32; ++i) group.quants[i] = low[i] >> 4 * (j % 2) & 15;
            if (five) {
                for (int i = 0; i < 32; ++i) group.quants[i] |= (row[16 + i] >> j & 1) << 4;
            }
            break;
        }
        case Source::Q6_K: {
            row += index / 8 * 210;
            const uint8_t* low = row + j / 4 * 64 + j % 2 * 32;
            const uint8_t* high = row + 128 + j / 4 * 32;
            const auto* scales = reinterpret_cast<const int8_t*>(row + 192) + j * 2;
            for (int i = 0; i < 32; ++i) {
                const int above = high[i] >> 2 * (j % 4) & 3;
                group.quants[i] = static_cast<uint8_t>((low[i] >> (j % 4 < 2 ? 0 : 4) & 15) | above << 4);
            }
            const float all = from_half(row + 208);
            group.scale[0] = all * scales[0], group.scale[1] = all * scales[1];
            break;
        }
        default:
            break;
    }
    return group;
}

inline float read_float(Source source, const uint8_t* row, int column) {
    if (source == Source::F16) return from_half(row + 2 * column);
    uint32_t bits = 0;
    if (source == Source::BF16) {
        std::memcpy(reinterpret_cast<uint8_t*>(&bits) + 2, row + 2 * column, 2);
    } else {
        std::memcpy(&bits, row + 4 * column, 4);
    }
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

}  // namespace mk
