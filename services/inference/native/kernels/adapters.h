// Low-rank adapters in a step (https://arxiv.org/abs/2106.09685): y += b(a(x)) for the tokens that have one.
//
// Tokens with the same adapter lie beside each other in a step, so that they share what is read of it. First all of
// a(x) is computed, a few numbers for each token; b of that is added where the tiles of the model's own products are
// stored. A token's sums are in the same order whatever else is in the step, and one without an adapter gets the bits
// that it gets without any.
#pragma once

#include <span>
#include <vector>

#include "product.h"

namespace mk {

// Both bfloat16, ranks filled up to a multiple of 16 with zeros; the adapter's scale is within b. Without rows: none.
struct LowRank {
    Matrix a, b;  // rank x inputs, outputs x rank
};

struct AdapterLayer {
    LowRank query, key, value, output, gate, up, down;
};

using Target = LowRank AdapterLayer::*;
using Targets = std::span<const Target>;

// Tokens of a step that have the same adapter: `count` of them from place `first` on.
struct Adapted {
    int32_t first, count;
    const AdapterLayer* layer;  // [layers]
};

class Adapters {
  public:
    // `ranges` in the order of their tokens. `low` has room for a(x) of as many targets as share their inputs.
    Adapters(std::span<const Adapted> ranges, const Inputs* low) : low_(low) {
        for (const Adapted& range : ranges) {
            for (int done = 0; done < range.count; done += TOGETHER) {
                ranges_.push_back({range.first + done, std::min(TOGETHER, range.count - done), range.layer});
            }
        }
    }

    // Whether anything is added to any of `targets` in a layer.
    bool have(int layer, Targets targets) const {
        for (const Adapted& range : ranges_) {
            for (const Target target : targets) {
                if ((range.layer[layer].*target).a.rows > 0) return true;
            }
        }
        return false;
    }

    // How many pieces of work a(x) is.
    int pieces(Targets targets) const { return static_cast<int>(ranges_.size() * targets.size()) * tiles(); }

    // One of them: 16 numbers of a(x) for the tokens of a range and one target, rounded.
    void lower(int layer, Targets targets, const Inputs& inputs, int piece) const {
        const int tile = piece % tiles(), number = piece / tiles() % static_cast<int>(targets.size());
        const Adapted& range = ranges_[piece / tiles() / targets.size()];
        const Matrix& a = (range.layer[layer].*targets[number]).a;
        if (tile >= a.tiles()) return;
        const Inputs& low = low_[number];
        each_token<BFloat16>(a, tile, inputs, {range.first, range.count}, {}, [&](int first, const auto& sums) {
            low.take_factors(first, tile, sums);
        });
    }

    // What is to be added to a tile of target `number`, written to `out` [tokens][16]; null where that is nothing.
    const float* added(int layer, Targets targets, int number, int tile, int tokens, float* out) const {
        if (!have(layer, targets.subspan(number, 1))) return nullptr;
        int end = 0;
        const auto leave = [&](int first) {  // x + -0 is x, whatever x is
            for (; end < first; ++end) store(out + end * LANES, spread(-0.0f));
        };
        for (const Adapted& range : ranges_) {
            const Matrix& b = (range.layer[layer].*targets[number]).b;
            if (b.rows == 0) continue;
            leave(range.first);
            each_token<BFloat16>(b, tile, low_[number], {range.first, range.count}, {}, [&](int first, const auto& sums) {
                for (const Floats& each : sums) store(out + first++ * LANES, each);
            });
            end = range.first + range.count;
        }
        leave(tokens);
        return out;
    }

  private:
    static constexpr int TOGETHER = 48;  // tokens of a piece: enough to read a matrix for, few enough for all threads

    int tiles() const { return low_->columns / LANES; }

    const Inputs* low_;
    std::vector<Adapted> ranges_;
};

}  // namespace mk
