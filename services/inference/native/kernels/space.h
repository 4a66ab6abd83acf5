// The numbers between two products of a step, in one block that grows to the largest step there was.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <new>

#include "decoder.h"

namespace mk {

class Space {
  public:
    // 16 numbers of all tokens beside each other, as tiles make them: a row for each token would be written across.
    float* x;    // [hidden / 16][tokens][16]: the residual stream
    float* qkv;  // [all heads' queries, keys and values / 16][tokens][16]
    float* squares;  // [hidden / 16][tokens, filled up to a multiple of 16]: sums of x's squares, 16 at a time
    uint8_t* queries;
    Inputs hidden, heads, ffn;  // rounded inputs of the three widths
    Inputs low[3];              // those of adapters' second matrices, for matrices that share their inputs

    float* x_of(int token, int tile) const { return x + (at(tile, tokens_) + token) * LANES; }
    float* qkv_of(int token, int tile) const { return qkv + (at(tile, tokens_) + token) * LANES; }

    Space() = default;
    Space(const Space&) = delete;
    ~Space() { std::free(block_); }

    // Room for `tokens` tokens of `model`, adapters of `rank` (0: none), and `threads` threads. Done anew for each
    // step: models take turns.
    void reserve(const Model& model, int tokens, int rank, int threads) {
        place(model, tokens, rank, threads, nullptr);
        if (used_ > room_) {
            std::free(block_);
            room_ = 0;
            block_ = static_cast<char*>(std::aligned_alloc(64, used_));
            if (block_ == nullptr) throw std::bad_alloc();
            room_ = used_;
        }
        place(model, tokens, rank, threads, block_);
    }

    // What a thread works in.
    struct Scratch {
        float* row;        // [hidden]
        float* values;     // while it attends for a few queries
        uint8_t* queries;  // those
        float* by;         // [tokens, filled up]: factors of the norm that it is behind
        float* gate;       // [tokens][16]
    };
    const Scratch& scratch(int thread) const { return scratch_[thread]; }

    // What adapters add to the tile that a thread is at, [tokens][16].
    float* added(int thread) const { return added_[thread]; }

    // Parts of attention: `count` of `size` values, for queries whose spans several threads share.
    Part* parts(size_t count, int size) {
        values_.resize(count * size);
        parts_.resize(count);
        for (size_t i = 0; i < count; ++i) parts_[i].values = values_.data() + i * size;
        return parts_.data();
    }

  private:
    void place(const Model& model, size_t tokens, int rank, int threads, char* block) {
        tokens_ = static_cast<int>(tokens);
        used_ = 0;
        const size_t heads_width = static_cast<size_t>(model.heads) * model.size;
        const size_t kv_width = static_cast<size_t>(model.kv_heads) * model.size;
        x = take<float>(block, tokens * model.hidden);
        qkv = take<float>(block, tokens * (heads_width + 2 * kv_width));
        const size_t filled = (tokens + LANES - 1) / LANES * LANES;
        squares = take<float>(block, filled * (model.hidden / LANES));
        queries = take<uint8_t>(block, tokens * model.heads * model.shape().query());
        hidden = inputs(block, tokens, model.hidden);
        heads = inputs(block, tokens, heads_width);
        ffn = inputs(block, tokens, model.ffn);
        for (Inputs& each : low) {
            each = {nullptr, nullptr, nullptr, take<Factor>(block, Inputs::room(tokens) * rank), rank, static_cast<int>(tokens)};
        }
        const size_t queried = static_cast<size_t>(MOST_QUERIES) * model.size;
        scratch_.clear();
        added_.clear();
        for (int thread = 0; thread < threads; ++thread) {
            float* row = take<float>(block, model.hidden);
            float* values = take<float>(block, 2 * queried);
            uint8_t* rows = take<uint8_t>(block, MOST_QUERIES * model.shape().query());
            float* by = take<float>(block, filled);
            scratch_.push_back({row, values, rows, by, take<float>(block, tokens * LANES)});
            added_.push_back(rank > 0 ? take<float>(block, tokens * LANES) : nullptr);
        }
    }

    Inputs inputs(char* block, size_t tokens, size_t columns) {
        const size_t groups = columns / 32, room = Inputs::room(tokens);
        return {take<int8_t>(block, room * columns), take<float>(block, room * groups * 2),
                take<float>(block, room * groups * 3), take<Factor>(block, room * columns),
                static_cast<int>(columns), static_cast<int>(tokens)};
    }

    template <class T>
    T* take(char* block, size_t count) {
        T* here = reinterpret_cast<T*>(block + (block == nullptr ? 0 : used_));
        used_ += (count * sizeof(T) + 63) / 64 * 64;
        return here;
    }

    char* block_ = nullptr;
    size_t room_ = 0, used_ = 0;
    int tokens_ = 0;
    std::vector<Scratch> scratch_;
    std::vector<float*> added_;
    std::vector<Part> parts_;
    std::vector<float> values_;
};

}  // namespace mk
