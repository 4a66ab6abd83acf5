// Sixteen lanes on ARM NEON with the dot product of bytes, and that of bfloat16 where it is: four registers each. See
// simd.h for what each name promises. Written and tested in emulation; nothing here was chosen by measuring.
#pragma once

#include <arm_neon.h>

#include <cstdint>

namespace mk {

struct Floats {
    float32x4_t v[4];
};
struct Ints {
    int32x4_t v[4];
};
struct Bytes {
    uint8x16_t v[4];
};

inline constexpr int MOST_TOKENS = 4;
inline constexpr int MOST_QUERIES = 4;

// `make(i)` for each of the four registers.
template <class Result, class Make>
inline Result four_of(Make make) {
    return {{make(0), make(1), make(2), make(3)}};
}

inline Floats spread(float x) {
    return four_of<Floats>([&](int) { return vdupq_n_f32(x); });
}
inline Floats zero() { return spread(0.0f); }
inline Floats load(const float* at) {
    return four_of<Floats>([&](int i) { return vld1q_f32(at + 4 * i); });
}
inline void store(float* at, Floats x) {
    for (int i = 0; i < 4; ++i) vst1q_f32(at + 4 * i, x.v[i]);
}
inline Floats add(Floats x, Floats y) {
    return four_of<Floats>([&](int i) { return vaddq_f32(x.v[i], y.v[i]); });
}
inline Floats subtract(Floats x, Floats y) {
    return four_of<Floats>([&](int i) { return vsubq_f32(x.v[i], y.v[i]); });
}
inline Floats multiply(Floats x, Floats y) {
    return four_of<Floats>([&](int i) { return vmulq_f32(x.v[i], y.v[i]); });
}
inline Floats divide(Floats x, Floats y) {
    return four_of<Floats>([&](int i) { return vdivq_f32(x.v[i], y.v[i]); });
}
inline Floats fma(Floats x, Floats y, Floats z) {
    return four_of<Floats>([&](int i) { return vfmaq_f32(z.v[i], x.v[i], y.v[i]); });
}
inline Floats larger(Floats x, Floats y) {
    return four_of<Floats>([&](int i) { return vmaxq_f32(x.v[i], y.v[i]); });
}
inline Floats smaller(Floats x, Floats y) {
    return four_of<Floats>([&](int i) { return vminq_f32(x.v[i], y.v[i]); });
}
inline Floats magnitude(Floats x) {
    return four_of<Floats>([&](int i) { return vabsq_f32(x.v[i]); });
}
inline float sum(Floats x) { return vaddvq_f32(vaddq_f32(vaddq_f32(x.v[0], x.v[1]), vaddq_f32(x.v[2], x.v[3]))); }
inline float largest(Floats x) { return vmaxvq_f32(vmaxq_f32(vmaxq_f32(x.v[0], x.v[1]), vmaxq_f32(x.v[2], x.v[3]))); }
inline Floats halves(const uint16_t* at) {
    return four_of<Floats>([&](int i) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(at + 4 * i))); });
}
inline Floats nearest(Floats x) {
    return four_of<Floats>([&](int i) { return vrndnq_f32(x.v[i]); });
}
inline Floats times_power_of_two(Floats x, Floats n) {
    return four_of<Floats>([&](int i) {
        const int32x4_t power = vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n.v[i]), vdupq_n_s32(127)), 23);
        return vmulq_f32(x.v[i], vreinterpretq_f32_s32(power));
    });
}

inline Ints spread_int(int32_t x) {
    return four_of<Ints>([&](int) { return vdupq_n_s32(x); });
}
inline Ints no_ints() { return spread_int(0); }
inline Floats to_floats(Ints x) {
    return four_of<Floats>([&](int i) { return vcvtq_f32_s32(x.v[i]); });
}
inline int32_t sum(Ints x) { return vaddvq_s32(vaddq_s32(vaddq_s32(x.v[0], x.v[1]), vaddq_s32(x.v[2], x.v[3]))); }
inline Ints add(Ints x, Ints y) {
    return four_of<Ints>([&](int i) { return vaddq_s32(x.v[i], y.v[i]); });
}
inline Ints rounded(Floats x) {
    return four_of<Ints>([&](int i) { return vcvtnq_s32_f32(x.v[i]); });
}
inline void store_as_bytes(int8_t* at, Ints x) {
    const int16x8_t low = vcombine_s16(vqmovn_s32(x.v[0]), vqmovn_s32(x.v[1]));
    const int16x8_t high = vcombine_s16(vqmovn_s32(x.v[2]), vqmovn_s32(x.v[3]));
    vst1q_s8(at, vcombine_s8(vqmovn_s16(low), vqmovn_s16(high)));
}

inline Bytes load_bytes(const uint8_t* at) {
    return four_of<Bytes>([&](int i) { return vld1q_u8(at + 16 * i); });
}
inline Bytes mask(Bytes x, uint8_t bits) {
    return four_of<Bytes>([&](int i) { return vandq_u8(x.v[i], vdupq_n_u8(bits)); });
}
template <int BY>
inline Bytes shift(Bytes x) {
    if constexpr (BY >= 0) {
        return four_of<Bytes>([&](int i) { return vshlq_n_u8(x.v[i], BY); });
    } else {
        return four_of<Bytes>([&](int i) { return vshrq_n_u8(x.v[i], -BY); });
    }
}
inline Bytes low_nibbles(Bytes x) { return mask(x, 15); }
inline Bytes high_nibbles(Bytes x) { return shift<-4>(x); }
inline Bytes either(Bytes x, Bytes y) {
    return four_of<Bytes>([&](int i) { return vorrq_u8(x.v[i], y.v[i]); });
}

// The dot product takes both sides signed: weights have their zero taken off as bytes, which all of them survive.
template <int ZERO>
inline Bytes centred(Bytes x) {
    return four_of<Bytes>([&](int i) { return vsubq_u8(x.v[i], vdupq_n_u8(ZERO)); });
}
template <int ZERO>
constexpr bool subtracts_zero() {
    return true;
}
template <int ZERO>
inline Ints dot(Ints sums, Bytes weights, const int8_t* four) {
    int32_t quad;
    __builtin_memcpy(&quad, four, 4);
    const int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(quad));
    return four_of<Ints>([&](int i) { return vdotq_s32(sums.v[i], vreinterpretq_s8_u8(weights.v[i]), x); });
}

#ifdef __ARM_FEATURE_BF16_VECTOR_ARITHMETIC
inline void store_bfloat16(uint16_t* at, Floats x) {
    for (int i = 0; i < 2; ++i) {
        const bfloat16x8_t eight = vcvtq_high_bf16_f32(vcvtq_low_bf16_f32(x.v[2 * i]), x.v[2 * i + 1]);
        vst1q_u16(at + 8 * i, vreinterpretq_u16_bf16(eight));
    }
}
#else
inline void store_bfloat16(uint16_t* at, Floats x) {
    for (int i = 0; i < 4; ++i) {
        const uint32x4_t bits = vreinterpretq_u32_f32(x.v[i]);
        const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
        vst1_u16(at + 4 * i, vshrn_n_u32(vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd), 16));
    }
}
#endif

inline Floats turned(Floats x, Floats rotation) {
    return four_of<Floats>([&](int i) {
        const float32x4_t cosine = vtrn1q_f32(rotation.v[i], rotation.v[i]), sine = vtrn2q_f32(rotation.v[i], rotation.v[i]);
        const uint32x4_t even = vreinterpretq_u32_u64(vdupq_n_u64(0x80000000));  // the sign of lanes 0 and 2
        const float32x4_t signed_sine = vreinterpretq_f32_u32(veorq_u32(vreinterpretq_u32_f32(sine), even));
        return vfmaq_f32(vmulq_f32(vrev64q_f32(x.v[i]), signed_sine), x.v[i], cosine);
    });
}

using Pairs = Bytes;
inline Pairs load_pairs(const uint16_t* at) { return load_bytes(reinterpret_cast<const uint8_t*>(at)); }
#ifdef __ARM_FEATURE_BF16_VECTOR_ARITHMETIC
using Factor = uint16_t;
inline void store_factors(Factor* at, Floats x) { store_bfloat16(at, x); }
inline Floats dot(Floats sums, Pairs pairs, const Factor* two) {
    uint32_t pair;
    __builtin_memcpy(&pair, two, 4);
    const bfloat16x8_t both = vreinterpretq_bf16_u32(vdupq_n_u32(pair));
    return four_of<Floats>([&](int i) { return vbfdotq_f32(sums.v[i], vreinterpretq_bf16_u8(pairs.v[i]), both); });
}
#else
using Factor = float;
inline void store_factors(Factor* at, Floats x) { store(at, x); }
inline Floats dot(Floats sums, Pairs pairs, const Factor* two) {
    const float32x4_t first = vdupq_n_f32(two[0]), second = vdupq_n_f32(two[1]);
    return four_of<Floats>([&](int i) {
        const uint32x4_t both = vreinterpretq_u32_u8(pairs.v[i]);
        const float32x4_t more = vfmaq_f32(sums.v[i], vreinterpretq_f32_u32(vshlq_n_u32(both, 16)), first);
        return vfmaq_f32(more, vreinterpretq_f32_u32(vandq_u32(both, vdupq_n_u32(0xffff0000))), second);
    });
}
#endif

}  // namespace mk
