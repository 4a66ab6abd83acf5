// The numbers between two products of a step, in one block that grows to the largest step there was.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <new>

#include "decoder.h"

namespace mk {

inline constexpr int FEW = 4;  // so many tokens are rounded by each thread for itself: that is cheaper than to wait

class Space {
  public:
    float *x, *qkv, *attended, *activated;
    uint8_t* queries;
    Inputs hidden, heads, ffn;  // rounded inputs of the three widths, shared by all threads
    Inputs low[3];              // those of adapters' second matrices, for matrices that share their inputs

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

    // A thread's own inputs of a width, for FEW tokens.
    const Inputs& own(int thread, const Inputs& shared) const {
        const int width = &shared == &hidden ? 0 : &shared == &heads ? 1 : 2;
        return own_[3 * thread + width];
    }

    // What a thread works in, while it makes one row of inputs or attends for a few queries.
    struct Scratch {
        float* values;
        uint8_t* queries;
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
        used_ = 0;
        const size_t heads_width = static_cast<size_t>(model.heads) * model.size;
        const size_t kv_width = static_cast<size_t>(model.kv_heads) * model.size;
        x = take<float>(block, tokens * model.hidden);
        qkv = take<float>(block, tokens * (heads_width + 2 * kv_width));
        attended = take<float>(block, tokens * heads_width);
        activated = take<float>(block, tokens * model.ffn);
        queries = take<uint8_t>(block, tokens * model.heads * model.shape().query());
        hidden = inputs(block, tokens, model.hidden);
        heads = inputs(block, tokens, heads_width);
        ffn = inputs(block, tokens, model.ffn);
        for (Inputs& each : low) {
            each = {nullptr, nullptr, nullptr, take<uint16_t>(block, tokens * rank), rank, static_cast<int>(tokens)};
        }
        const size_t widest = std::max<size_t>({heads_width, static_cast<size_t>(model.hidden), static_cast<size_t>(model.ffn)});
        const size_t queried = static_cast<size_t>(MOST_QUERIES) * model.size;
        own_.clear();
        scratch_.clear();
        added_.clear();
        for (int thread = 0; thread < threads; ++thread) {
            own_.push_back(inputs(block, FEW, model.hidden));
            own_.push_back(inputs(block, FEW, heads_width));
            own_.push_back(inputs(block, FEW, model.ffn));
            float* values = take<float>(block, std::max(widest, 2 * queried));
            scratch_.push_back({values, take<uint8_t>(block, MOST_QUERIES * model.shape().query())});
            added_.push_back(rank > 0 ? take<float>(block, tokens * LANES) : nullptr);
        }
    }

    Inputs inputs(char* block, size_t tokens, size_t columns) {
        const size_t groups = columns / 32;
        return {take<int8_t>(block, tokens * columns), take<float>(block, tokens * groups * 2),
                take<float>(block, tokens * groups * 3), take<uint16_t>(block, tokens * columns),
                static_cast<int>(columns), 0};
    }

    template <class T>
    T* take(char* block, size_t count) {
        T* here = reinterpret_cast<T*>(block + (block == nullptr ? 0 : used_));
        used_ += (count * sizeof(T) + 63) / 64 * 64;
        return here;
    }

    char* block_ = nullptr;
    size_t room_ = 0, used_ = 0;
    std::vector<Inputs> own_;
    std::vector<Scratch> scratch_;
    std::vector<float*> added_;
    std::vector<Part> parts_;
    std::vector<float> values_;
};

}  // namespace mk
