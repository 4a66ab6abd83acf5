// What the decoder's step works on: the model's weights, the step's tokens, and the space between them.
#pragma once

#include <cmath>
#include <cstddef>
#include <vector>

#include "adapters.h"
#include "attention.h"
#include "product.h"
#include "team.h"

namespace mk {

// Where row `row` of a table of `width` begins.
inline size_t at(int row, int width) { return static_cast<size_t>(row) * width; }

// What a norm multiplies `count` numbers by whose squares sum up to `squares` (https://arxiv.org/abs/1910.07467).
inline float norm_factor(float squares, int count, float epsilon) {
    return 1.0f / std::sqrt(squares / static_cast<float>(count) + epsilon);
}

struct Layer {
    Matrix query, key, value, output, gate, up, down;
    const float* attention_norm;  // [hidden]
    const float* ffn_norm;        // [hidden]
    const float* query_norm;      // [size], or null
    const float* key_norm;        // [size], or null
    int64_t window;               // tokens seen, 0: all
};

struct Model {
    int32_t hidden, ffn, layers, heads, kv_heads, size, vocabulary;
    float epsilon;
    PageKind pages;
    Matrix table;            // embedding: a row for each token
    Matrix head;             // to the vocabulary
    const float* norm;       // [hidden]
    const float* rotations;  // [positions][size / 2][cosine, sine]
    const Layer* layer;      // [layers]

    Heads shape() const { return {layers, heads, kv_heads, size, pages}; }
};

// The work of a step. A sequence's tokens lie beside each other, in the order of their positions; so do those of all
// sequences with the same adapter.
struct Batch {
    int32_t tokens, sequences, wanted, threads;
    const int32_t* ids;         // [tokens]
    const Sequence* sequence;   // [sequences]
    const int32_t* rows;        // [wanted]: places of the tokens whose logits are wanted
    float* logits;              // [wanted][vocabulary]
    const Adapted* adapter;     // [adapters]
    int32_t adapters, rank;     // the largest rank among them, a multiple of 16
};

}  // namespace mk
