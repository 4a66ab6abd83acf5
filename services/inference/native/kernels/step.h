// A step: the tokens of several sequences through all layers, on all threads of a team together.
//
// A layer is five phases: queries, keys and values; attention; its output; gate and up; down. At the end of each
// everybody waits for everybody. Whoever makes numbers that a product reads rounds them at once, 16 as they come. A norm
// is a factor of the whole token, which is known when all of it is there: it is multiplied to what the product gives.
// What a token gets is the same whoever computes it and whatever else is in the step. The residual stays float32.
#pragma once

#include "attend.h"
#include "space.h"

namespace mk {

class Step {
  public:
    Step(const Model& model, Team& team, Space& space, const Batch& batch)
        : model_(model), team_(team), space_(space), batch_(batch), tokens_(batch.tokens),
          adapters_({batch.adapter, static_cast<size_t>(batch.adapters)}, space.low), attention_(model, space, batch) {}

    // What one thread does; all of them together do the step. Whatever needs memory was done before.
    void operator()(int thread) noexcept {
        split(thread, tokens_, [&](int token) { embed(thread, token); });
        team_.meet(thread);
        for (int index = 0; index < model_.layers; ++index) {
            attention_half(thread, model_.layer[index], index);
            feed_forward_half(thread, model_.layer[index], index);
        }
        Inputs last = space_.hidden;
        last.tokens = batch_.wanted;
        split(thread, batch_.wanted, [&](int row) { take_last(row, last); });
        team_.meet(thread);
        split(thread, model_.head.tiles(), [&](int tile) {
            each_token(model_.head, tile, last, {0, batch_.wanted}, {}, [&](int row, const auto& sums) {
                for (const Floats& each : sums) give_logits(row++, tile, each);
            });
        });
    }

  private:
    using Matrices = std::initializer_list<const Matrix*>;

    // `use(i)` for i from 0 to count - 1, together with the other threads.
    template <class Use>
    void split(int thread, int count, Use use) {
        // Small enough that no thread waits long for another one's last piece, large enough that counting costs little.
        team_.split(thread, count, std::max(1, count / (PIECES * batch_.threads)), use);
    }

    // From the table to the residual, and to the first layer's inputs.
    void embed(int thread, int token) {
        const Matrix& table = model_.table;
        const int id = batch_.ids[token], tile = id / LANES, row = id % LANES, columns = table.columns;
        float* out = space_.scratch(thread).row;
        if (table.kind == Kind::BFLOAT16) {
            const auto* pairs = reinterpret_cast<const uint16_t*>(table.quants) + at(tile, columns) * LANES + 2 * row;
            for (int i = 0; i < columns; ++i) {
                const uint32_t bits = static_cast<uint32_t>(pairs[i / 2 * 2 * LANES + i % 2]) << 16;
                std::memcpy(out + i, &bits, 4);
            }
        } else {
            with_format(table.kind, [&](auto format) {
                using Format = decltype(format);
                for (int i = 0; i < columns; ++i) {
                    const size_t group = at(tile, columns / 32) + i / 32;
                    const size_t scale = (group * Format::SCALES + i % 32 * Format::SCALES / 32) * LANES + row;
                    const int quant = Format::get(table.quants + group * Format::BYTES, row, i % 32);
                    out[i] = half(table.scales[scale]) * static_cast<float>(quant - Format::ZERO);
                    if constexpr (Format::MINIMUM) out[i] += half(table.minima[group * LANES + row]);
                }
            });
        }
        const Normed first = attention_inputs(0);
        for (int i = 0; i < columns / LANES; ++i) {
            const Floats x[] = {load(out + i * LANES)};
            store(space_.x_of(token, i), x[0]);
            enter(token, i, x, first);
        }
    }

    static float half(uint16_t bits) {
        uint16_t all[LANES] = {bits};
        float out[LANES];
        store(out, halves(all));
        return out[0];
    }

    // What the products behind a norm take of the residual.
    struct Normed {
        const float* weight;
        Rounding to;
    };
    Normed attention_inputs(int layer) const {
        const Layer& it = model_.layer[layer];
        return {it.attention_norm, rounding(layer, {&it.query, &it.key, &it.value}, ATTENTION)};
    }
    Normed feed_forward_inputs(int layer) const {
        const Layer& it = model_.layer[layer];
        return {it.ffn_norm, rounding(layer, {&it.gate, &it.up}, FEED_FORWARD)};
    }

    static constexpr Target ATTENTION[] = {&AdapterLayer::query, &AdapterLayer::key, &AdapterLayer::value};
    static constexpr Target OUTPUT[] = {&AdapterLayer::output}, DOWN[] = {&AdapterLayer::down};
    static constexpr Target FEED_FORWARD[] = {&AdapterLayer::gate, &AdapterLayer::up};

    Rounding rounding(int layer, Matrices matrices, Targets targets) const {
        Rounding to = {.factors = adapters_.have(layer, targets)};
        for (const Matrix* matrix : matrices) (matrix->kind == Kind::BFLOAT16 ? to.factors : to.bytes) = true;
        return to;
    }

    // Sixteen numbers of some tokens' residual as inputs of the products behind a norm, whose factor comes later.
    template <int TOKENS>
    void enter(int first, int tile, const Floats (&x)[TOKENS], const Normed& normed) const {
        const Floats weight = load(normed.weight + tile * LANES);
        float* squares = space_.squares + at(tile, filled()) + first;
        Floats weighted[TOKENS];
        for (int t = 0; t < TOKENS; ++t) {
            squares[t] = sum(multiply(x[t], x[t]));
            weighted[t] = multiply(x[t], weight);
        }
        space_.hidden.take(first, tile, weighted, normed.to);
    }

    int filled() const { return (tokens_ + LANES - 1) / LANES * LANES; }

    // The norm's factor of each token, [tokens].
    const float* norms(int thread) const {
        float* by = space_.scratch(thread).by;
        const int tiles = model_.hidden / LANES;
        for (int token = 0; token < tokens_; token += LANES) {
            Floats squares = zero();
            for (int tile = 0; tile < tiles; ++tile) squares = add(squares, load(space_.squares + at(tile, filled()) + token));
            float row[LANES];
            store(row, squares);
            for (int i = 0; i < std::min(LANES, tokens_ - token); ++i) {
                by[token + i] = norm_factor(row[i], model_.hidden, model_.epsilon);
            }
        }
        return by;
    }

    void give_logits(int row, int tile, Floats sums) const {
        float* out = batch_.logits + at(row, model_.vocabulary) + tile * LANES;
        if (tile * LANES + LANES <= model_.vocabulary) return store(out, sums);
        float last[LANES];
        store(last, sums);
        std::memcpy(out, last, sizeof(float) * (model_.vocabulary - tile * LANES));
    }

    // What the head takes of a token whose logits are wanted.
    void take_last(int row, const Inputs& last) const {
        const int token = batch_.rows[row];
        Floats squares = zero();
        for (int tile = 0; tile < model_.hidden / LANES; ++tile) {
            const Floats x = load(space_.x_of(token, tile));
            squares = fma(x, x, squares);
        }
        const Floats by = spread(norm_factor(sum(squares), model_.hidden, model_.epsilon));
        const Rounding to = rounding(0, {&model_.head}, {});
        for (int tile = 0; tile < model_.hidden / LANES; ++tile) {
            const Floats normed[] = {multiply(multiply(load(space_.x_of(token, tile)), by), load(model_.norm + tile * LANES))};
            last.take(row, tile, normed, to);
        }
    }

    // What adapters have between their two matrices, for all that read `inputs`.
    void lower(int thread, int layer, Targets targets, const Inputs& inputs) {
        if (!adapters_.have(layer, targets)) return;
        split(thread, adapters_.pieces(targets), [&](int piece) { adapters_.lower(layer, targets, inputs, piece); });
        team_.meet(thread);
    }

    // What adapters add to a tile of target `number`, or null.
    const float* added(int thread, int layer, Targets targets, int number, int tile) const {
        if (batch_.adapters == 0) return nullptr;
        return adapters_.added(layer, targets, number, tile, tokens_, space_.added(thread));
    }

    void attention_half(int thread, const Layer& layer, int index) {
        project(thread, layer, index);
        if (attention_.turns() > 0) {
            team_.meet(thread);
            split(thread, attention_.turns(), [&](int turn) { attention_.turn(thread, layer, index, turn); });
        }
        team_.meet(thread);
        const Rounding to = attended_rounding(layer, index);
        split(thread, attention_.items(), [&](int item) { attention_.attend(thread, layer, index, item, to); });
        if (attention_.gathers() > 0) {
            team_.meet(thread);
            split(thread, attention_.gathers(), [&](int gather) { attention_.gather(gather, to); });
        }
        if (to.apart) {
            team_.meet(thread);
            split(thread, tokens_, [&](int token) { space_.heads.complete(token); });
        }
        team_.meet(thread);
        lower(thread, index, OUTPUT, space_.heads);
        add_to_residual(thread, layer.output, space_.heads, index, OUTPUT, feed_forward_inputs(index));
        team_.meet(thread);
    }

    void feed_forward_half(int thread, const Layer& layer, int index) {
        lower(thread, index, FEED_FORWARD, space_.hidden);
        const float* by = norms(thread);
        float* gate = space_.scratch(thread).gate;
        const Rounding to = rounding(index, {&layer.down}, DOWN);
        split(thread, layer.gate.tiles() / 2, [&](int pair) {
            for (int tile = 2 * pair; tile < 2 * pair + 2; ++tile) {
                const Finish gated = {by, added(thread, index, FEED_FORWARD, 0, tile)};
                each_token(layer.gate, tile, space_.hidden, {0, tokens_}, gated, [&](int first, const auto& sums) {
                    for (const Floats& each : sums) store(gate + at(first++, LANES), silu(each));
                });
                const Finish upped = {by, added(thread, index, FEED_FORWARD, 1, tile)};
                each_token(layer.up, tile, space_.hidden, {0, tokens_}, upped, [&]<int TOKENS>(int first, Floats (&sums)[TOKENS]) {
                    for (int t = 0; t < TOKENS; ++t) sums[t] = multiply(load(gate + at(first + t, LANES)), sums[t]);
                    space_.ffn.take(first, tile, sums, to);
                });
            }
        });
        team_.meet(thread);
        lower(thread, index, DOWN, space_.ffn);
        const bool last = index + 1 == model_.layers;
        add_to_residual(thread, layer.down, space_.ffn, index, DOWN, last ? Normed{} : attention_inputs(index + 1));
        team_.meet(thread);
    }

    // Queries, keys and values of all tokens.
    void project(int thread, const Layer& layer, int index) {
        lower(thread, index, ATTENTION, space_.hidden);
        const float* by = norms(thread);
        const Matrix* const matrices[] = {&layer.query, &layer.key, &layer.value};
        const int tiles = (model_.heads + 2 * model_.kv_heads) * model_.size / LANES;
        split(thread, tiles, [&](int all) {
            int number = 0, tile = all;
            for (; tile >= matrices[number]->tiles(); ++number) tile -= matrices[number]->tiles();
            const Finish finish = {by, added(thread, index, ATTENTION, number, tile)};
            each_token(*matrices[number], tile, space_.hidden, {0, tokens_}, finish, [&](int first, const auto& sums) {
                float* out = space_.qkv_of(first, all);
                for (const Floats& each : sums) store(out, each), out += LANES;
            });
        });
    }

    // Adds a product to the residual, of which `next` takes what it needs, unless nothing comes.
    void add_to_residual(int thread, const Matrix& matrix, const Inputs& inputs, int index, Targets targets, Normed next) {
        split(thread, matrix.tiles() / 2, [&](int pair) {
            for (int tile = 2 * pair; tile < 2 * pair + 2; ++tile) {
                const Finish finish = {nullptr, added(thread, index, targets, 0, tile)};
                each_token(matrix, tile, inputs, {0, tokens_}, finish, [&]<int TOKENS>(int first, Floats (&x)[TOKENS]) {
                    float* out = space_.x_of(first, tile);
                    for (int t = 0; t < TOKENS; ++t) x[t] = add(load(out + t * LANES), x[t]);
                    for (int t = 0; t < TOKENS; ++t) store(out + t * LANES, x[t]);
                    if (next.weight != nullptr) enter(first, tile, x, next);
                });
            }
        });
    }

    // What the output's product takes of attention. A group of 32 may belong to two heads.
    Rounding attended_rounding(const Layer& layer, int index) const {
        Rounding to = rounding(index, {&layer.output}, OUTPUT);
        to.apart = model_.size % 32 != 0;
        return to;
    }

    static constexpr int PIECES = 6;  // a thread and phase

    const Model& model_;
    Team& team_;
    Space& space_;
    const Batch& batch_;
    const int tokens_;
    const Adapters adapters_;
    const Attention attention_;
};

}  // namespace mk
