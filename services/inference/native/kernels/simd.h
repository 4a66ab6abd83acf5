// Sixteen lanes, the one width that the kernels are written for; which registers hold them is chosen when compiling.
//
//   Floats   16 x float                  Ints    16 x int32
//   Bytes    16 x 4 bytes, unsigned      Pairs   16 x 2 bfloat16
//   Factor   what pairs are multiplied by: bfloat16, or float where the processor multiplies no others
//
//   dot<ZERO>(sums, bytes, four)   sums[i] += sum over j < 4 of bytes[i][j] * four[j], where `bytes` went through
//                                  centred<ZERO>: if subtracts_zero<ZERO>(), of (bytes[i][j] - ZERO) * four[j]
//   dot(sums, pairs, two)          sums[i] += pairs[i][0] * two[0] + pairs[i][1] * two[1]
//   sum, largest                   over all lanes, always in the same order
//   turned(x, rotation)            pairs of lanes turned by pairs of (cosine, sine)
//   halves, store_bfloat16         16 float16 as floats; floats as 16 bfloat16, to nearest even
//   store_factors                  floats as 16 factors
#pragma once

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512DQ__)
#include "simd_avx512.h"
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "simd_avx2.h"
#elif defined(__ARM_NEON) && defined(__ARM_FEATURE_DOTPROD)
#include "simd_neon.h"
#else
#error "no kernels for this instruction set: the torch decoder takes over"
#endif

namespace mk {

inline constexpr int LANES = 16;

// e^x for x <= 0, relative error below 2e-7: x = n ln 2 + r, and a polynomial of degree 6 in r (Cephes, expf).
inline Floats exponential(Floats x) {
    x = larger(x, spread(-87.0f));
    const Floats n = nearest(multiply(x, spread(1.44269504088896341f)));
    Floats r = fma(n, spread(-0.693359375f), x);
    r = fma(n, spread(2.12194440e-4f), r);
    Floats y = spread(1.9875691500e-4f);
    y = fma(y, r, spread(1.3981999507e-3f));
    y = fma(y, r, spread(8.3334519073e-3f));
    y = fma(y, r, spread(4.1665795894e-2f));
    y = fma(y, r, spread(1.6666665459e-1f));
    y = fma(y, r, spread(5.0000001201e-1f));
    y = add(fma(y, multiply(r, r), r), spread(1.0f));
    return times_power_of_two(y, n);
}

// x / (1 + e^-x), without a power of e that overflows.
inline Floats silu(Floats x) {
    const Floats small = exponential(subtract(zero(), magnitude(x)));
    const Floats one = spread(1.0f), negative = smaller(x, zero());
    // x >= 0: x / (1 + small); x < 0: x * small / (1 + small)
    const Floats positive = subtract(x, negative);
    return divide(fma(negative, small, positive), add(one, small));
}

}  // namespace mk
