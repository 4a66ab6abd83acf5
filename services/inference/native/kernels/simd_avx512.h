// Sixteen lanes on AVX512 (F, BW, VL, DQ, VNNI): one register each. See simd.h for what each name promises.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace mk {

using Floats = __m512;
using Ints = __m512i;
using Bytes = __m512i;

inline constexpr int MOST_TOKENS = 16;  // columns of one tile product that stay in registers
inline constexpr int MOST_QUERIES = 16;

inline Floats zero() { return _mm512_setzero_ps(); }
inline Floats spread(float x) { return _mm512_set1_ps(x); }
inline Floats load(const float* at) { return _mm512_loadu_ps(at); }
inline void store(float* at, Floats x) { _mm512_storeu_ps(at, x); }
inline Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
inline Floats subtract(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
inline Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats divide(Floats a, Floats b) { return _mm512_div_ps(a, b); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats larger(Floats a, Floats b) { return _mm512_max_ps(a, b); }
inline Floats smaller(Floats a, Floats b) { return _mm512_min_ps(a, b); }
inline Floats magnitude(Floats a) { return _mm512_abs_ps(a); }
inline float sum(Floats x) { return _mm512_reduce_add_ps(x); }
inline float largest(Floats x) { return _mm512_reduce_max_ps(x); }
inline Floats halves(const uint16_t* at) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
}
inline Floats nearest(Floats x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Floats times_power_of_two(Floats x, Floats n) { return _mm512_scalef_ps(x, n); }

inline Ints no_ints() { return _mm512_setzero_si512(); }
inline Ints spread_int(int32_t x) { return _mm512_set1_epi32(x); }
inline Floats to_floats(Ints x) { return _mm512_cvtepi32_ps(x); }
inline int32_t sum(Ints x) { return _mm512_reduce_add_epi32(x); }
inline Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
inline Ints rounded(Floats x) { return _mm512_cvtps_epi32(x); }
inline void store_as_bytes(int8_t* at, Ints x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(at), _mm512_cvtsepi32_epi8(x));
}

inline Bytes load_bytes(const uint8_t* at) { return _mm512_loadu_si512(at); }
inline Bytes low_nibbles(Bytes x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
inline Bytes high_nibbles(Bytes x) { return _mm512_and_si512(_mm512_srli_epi16(x, 4), _mm512_set1_epi8(15)); }
template <int BY>  // to the left where positive, to the right where negative; bits cross bytes, a mask follows
inline Bytes shift(Bytes x) {
    if constexpr (BY >= 0) {
        return _mm512_slli_epi16(x, BY);
    } else {
        return _mm512_srli_epi16(x, -BY);
    }
}
inline Bytes mask(Bytes x, uint8_t bits) { return _mm512_and_si512(x, _mm512_set1_epi8(static_cast<char>(bits))); }
inline Bytes either(Bytes a, Bytes b) { return _mm512_or_si512(a, b); }

template <int ZERO>
inline Bytes centred(Bytes x) {
    return x;
}
template <int ZERO>
constexpr bool subtracts_zero() {
    return false;
}
template <int ZERO>
inline Ints dot(Ints sums, Bytes weights, const int8_t* four) {
    int32_t quad;
    __builtin_memcpy(&quad, four, 4);
    return _mm512_dpbusd_epi32(sums, weights, _mm512_set1_epi32(quad));
}

inline Floats turned(Floats x, Floats rotation) {
    const Floats swapped = _mm512_permute_ps(x, 0xb1);
    return _mm512_fmaddsub_ps(x, _mm512_moveldup_ps(rotation), _mm512_mul_ps(swapped, _mm512_movehdup_ps(rotation)));
}

#ifdef __AVX512BF16__
inline void store_bfloat16(uint16_t* at, Floats x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), (__m256i)_mm512_cvtneps_pbh(x));
}
using Pairs = __m512bh;
inline Pairs load_pairs(const uint16_t* at) { return (__m512bh)_mm512_loadu_si512(at); }
using Factor = uint16_t;
inline void store_factors(Factor* at, Floats x) { store_bfloat16(at, x); }
inline Floats dot(Floats sums, Pairs pairs, const Factor* two) {
    int32_t pair;
    __builtin_memcpy(&pair, two, 4);
    return _mm512_dpbf16_ps(sums, pairs, (__m512bh)_mm512_set1_epi32(pair));
}
#else
inline void store_bfloat16(uint16_t* at, Floats x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), _mm512_cvtepi32_epi16(_mm512_srli_epi32(up, 16)));
}
using Pairs = __m512i;
inline Pairs load_pairs(const uint16_t* at) { return _mm512_loadu_si512(at); }
using Factor = float;
inline void store_factors(Factor* at, Floats x) { store(at, x); }
inline Floats dot(Floats sums, Pairs pairs, const Factor* two) {
    const __m512i high = _mm512_set1_epi32(static_cast<int32_t>(0xffff0000));
    sums = fma(_mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)), spread(two[0]), sums);
    return fma(_mm512_castsi512_ps(_mm512_and_si512(pairs, high)), spread(two[1]), sums);
}
#endif

}  // namespace mk
