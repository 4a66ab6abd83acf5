// What attention over pages of either kind shares: how much is looked at together, and what comes of it.
#pragma once

#include "simd.h"

namespace mk {

inline constexpr int PAGE = 16;   // tokens
inline constexpr int SPAN = 256;  // tokens

// What one span gives a query: weighted values, unnormalised, behind the largest score and the sum of weights.
struct Part {
    float most, weight;
    float* values;  // [size]
};

}  // namespace mk
