// Sixteen lanes on AVX2 with FMA and F16C: two registers each. See simd.h for what each name promises.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace mk {

struct Floats {
    __m256 a, b;
};
struct Ints {
    __m256i a, b;
};
struct Bytes {
    __m256i a, b;
};

inline constexpr int MOST_TOKENS = 2;
inline constexpr int MOST_QUERIES = 4;

inline Floats zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Floats spread(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Floats load(const float* at) { return {_mm256_loadu_ps(at), _mm256_loadu_ps(at + 8)}; }
inline void store(float* at, Floats x) {
    _mm256_storeu_ps(at, x.a);
    _mm256_storeu_ps(at + 8, x.b);
}
inline Floats add(Floats x, Floats y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline Floats subtract(Floats x, Floats y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline Floats multiply(Floats x, Floats y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline Floats divide(Floats x, Floats y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline Floats fma(Floats x, Floats y, Floats z) {
    return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
inline Floats larger(Floats x, Floats y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline Floats smaller(Floats x, Floats y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline Floats magnitude(Floats x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
inline float sum(Floats x) {
    const __m256 eight = _mm256_add_ps(x.a, x.b);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}
inline float largest(Floats x) {
    const __m256 eight = _mm256_max_ps(x.a, x.b);
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}
inline Floats halves(const uint16_t* at) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at))),
            _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at + 8)))};
}
inline __m256 nearest(__m256 x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Floats nearest(Floats x) { return {nearest(x.a), nearest(x.b)}; }
inline __m256 power_of_two(__m256 n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
inline Floats times_power_of_two(Floats x, Floats n) {
    return {_mm256_mul_ps(x.a, power_of_two(n.a)), _mm256_mul_ps(x.b, power_of_two(n.b))};
}

inline Ints no_ints() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline Ints spread_int(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline Floats to_floats(Ints x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline int32_t sum(Ints x) {
    const __m256i eight = _mm256_add_epi32(x.a, x.b);
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}
inline Ints add(Ints x, Ints y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
inline Ints rounded(Floats x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
inline __m128i as_words(__m256i x) {
    return _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
}
inline void store_as_bytes(int8_t* at, Ints x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(at), _mm_packs_epi16(as_words(x.a), as_words(x.b)));
}

inline Bytes load_bytes(const uint8_t* at) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)),
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + 32))};
}
inline Bytes mask(Bytes x, uint8_t bits) {
    const __m256i set = _mm256_set1_epi8(static_cast<char>(bits));
    return {_mm256_and_si256(x.a, set), _mm256_and_si256(x.b, set)};
}
template <int BY>
inline Bytes shift(Bytes x) {
    if constexpr (BY >= 0) {
        return {_mm256_slli_epi16(x.a, BY), _mm256_slli_epi16(x.b, BY)};
    } else {
        return {_mm256_srli_epi16(x.a, -BY), _mm256_srli_epi16(x.b, -BY)};
    }
}
inline Bytes low_nibbles(Bytes x) { return mask(x, 15); }
inline Bytes high_nibbles(Bytes x) { return mask(shift<-4>(x), 15); }
inline Bytes either(Bytes x, Bytes y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }

// Two products of bytes are added in 16 bits, which holds 2 x 63 x 127 but not 2 x 255 x 127: bytes around 128 become
// signed, and the product takes the weight's magnitude and gives its sign to the other side.
template <int ZERO>
inline Bytes centred(Bytes x) {
    if constexpr (ZERO == 128) {
        const __m256i top = _mm256_set1_epi8(static_cast<char>(0x80));
        return {_mm256_xor_si256(x.a, top), _mm256_xor_si256(x.b, top)};
    } else {
        return x;
    }
}
template <int ZERO>
constexpr bool subtracts_zero() {
    return ZERO == 128;
}
template <int ZERO>
inline __m256i dot(__m256i sums, __m256i weights, __m256i x) {
    if constexpr (ZERO == 128) {
        x = _mm256_sign_epi8(x, weights);
        weights = _mm256_abs_epi8(weights);
    }
#ifdef __AVXVNNI__
    return _mm256_dpbusd_avx_epi32(sums, weights, x);
#else
    const __m256i pairs = _mm256_maddubs_epi16(weights, x);
    return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
}
template <int ZERO>
inline Ints dot(Ints sums, Bytes weights, const int8_t* four) {
    int32_t quad;
    __builtin_memcpy(&quad, four, 4);
    const __m256i x = _mm256_set1_epi32(quad);
    return {dot<ZERO>(sums.a, weights.a, x), dot<ZERO>(sums.b, weights.b, x)};
}

inline __m256i as_bfloat16(__m256 x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    return _mm256_srli_epi32(up, 16);
}
inline void store_bfloat16(uint16_t* at, Floats x) {
    const __m256i both = _mm256_packus_epi32(as_bfloat16(x.a), as_bfloat16(x.b));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), _mm256_permute4x64_epi64(both, 0xd8));
}

inline __m256 turned(__m256 x, __m256 rotation) {
    const __m256 swapped = _mm256_permute_ps(x, 0xb1);
    return _mm256_fmaddsub_ps(x, _mm256_moveldup_ps(rotation), _mm256_mul_ps(swapped, _mm256_movehdup_ps(rotation)));
}
inline Floats turned(Floats x, Floats rotation) { return {turned(x.a, rotation.a), turned(x.b, rotation.b)}; }

using Pairs = Bytes;
inline Pairs load_pairs(const uint16_t* at) { return load_bytes(reinterpret_cast<const uint8_t*>(at)); }
using Factor = float;
inline void store_factors(Factor* at, Floats x) { store(at, x); }
inline __m256 dot(__m256 sums, __m256i pairs, __m256 first, __m256 second) {
    const __m256i high = _mm256_set1_epi32(static_cast<int32_t>(0xffff0000));
    sums = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)), first, sums);
    return _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_and_si256(pairs, high)), second, sums);
}
inline Floats dot(Floats sums, Pairs pairs, const Factor* two) {
    const __m256 first = _mm256_set1_ps(two[0]), second = _mm256_set1_ps(two[1]);
    return {dot(sums.a, pairs.a, first, second), dot(sums.b, pairs.b, first, second)};
}

}  // namespace mk
