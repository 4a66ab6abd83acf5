// A step: the tokens of several sequences through all layers, on all threads of a team together.
//
// Between the halves of a layer everybody waits for everybody; in between, pieces of work are taken from a counter. What
// a token gets is the same whoever computes it and whatever else is in the step. The residual stays float32.
#pragma once

#include "decoder.h"
#include "space.h"

namespace mk {

class Step {
  public:
    Step(const Model& model, Team& team, Space& space, const Batch& batch)
        : model_(model), shape_(model.shape()), team_(team), space_(space), batch_(batch), tokens_(batch.tokens),
          adapters_({batch.adapter, static_cast<size_t>(batch.adapters)}, space.low) {
        plan_attention();
    }

    // What one thread does; all of them together do the step. Whatever needs memory was done before.
    void operator()(int thread) noexcept {
        split(tokens_, [&](int token) { embed(token); });
        team_.meet();
        for (int index = 0; index < model_.layers; ++index) {
            const Layer& layer = model_.layer[index];
            attention_half(thread, layer, index);
            feed_forward_half(thread, layer, index);
        }
        const Inputs inputs = take(thread, space_.hidden, batch_.wanted, {&model_.head}, [&](int row, float* out) {
            normalise_token(space_.x + at(batch_.rows[row], model_.hidden), model_.norm, out);
        });
        multiply_all(thread, {&model_.head}, inputs, batch_.wanted, {}, [&](int, int tile, int row, Floats sums) {
            float* out = batch_.logits + at(row, model_.vocabulary) + tile * LANES;
            if (tile * LANES + LANES <= model_.vocabulary) return store(out, sums);
            float last[LANES];
            store(last, sums);
            std::memcpy(out, last, sizeof(float) * (model_.vocabulary - tile * LANES));
        });
    }

  private:
    struct Item {  // queries of a sequence that one thread attends for: `count` tokens from `token` on, of one key head
        int sequence, token, count, head, span, part;  // span -1: all of them
    };

    static size_t at(int row, int width) { return static_cast<size_t>(row) * width; }

    // `use(i)` for i from 0 to count - 1, by whoever comes first; in pieces that are not too small to be counted.
    template <class Use>
    void split(int count, Use use) {
        const int piece = piece_of(count);
        for (int first; (first = team_.next() * piece) < count;) {
            for (int i = first; i < std::min(first + piece, count); ++i) use(i);
        }
    }

    void embed(int token) {
        const Matrix& table = model_.table;
        const int id = batch_.ids[token], tile = id / LANES, row = id % LANES, columns = table.columns;
        float* out = space_.x + at(token, model_.hidden);
        if (table.kind == Kind::BFLOAT16) {
            const auto* pairs = reinterpret_cast<const uint16_t*>(table.quants) + at(tile, columns) * LANES + 2 * row;
            for (int i = 0; i < columns; ++i) {
                const uint32_t bits = static_cast<uint32_t>(pairs[i / 2 * 2 * LANES + i % 2]) << 16;
                std::memcpy(out + i, &bits, 4);
            }
            return;
        }
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

    static float half(uint16_t bits) {
        uint16_t all[LANES] = {bits};
        float out[LANES];
        store(out, halves(all));
        return out[0];
    }

    void normalise_token(const float* x, const float* weight, float* out) const {
        Floats squares = zero();
        for (int i = 0; i < model_.hidden; i += LANES) squares = fma(load(x + i), load(x + i), squares);
        const float mean = sum(squares) / static_cast<float>(model_.hidden);
        const Floats by = spread(1.0f / std::sqrt(mean + model_.epsilon));
        for (int i = 0; i < model_.hidden; i += LANES) {
            store(out + i, multiply(multiply(load(x + i), by), load(weight + i)));
        }
    }

    using Matrices = std::initializer_list<const Matrix*>;

    // Matrices that share their inputs, as adapters have them, and in which layer.
    struct Adding {
        int layer = 0;
        Targets targets;
    };
    static constexpr Target ATTENTION[] = {&AdapterLayer::query, &AdapterLayer::key, &AdapterLayer::value};
    static constexpr Target OUTPUT[] = {&AdapterLayer::output}, DOWN[] = {&AdapterLayer::down};
    static constexpr Target FEED_FORWARD[] = {&AdapterLayer::gate, &AdapterLayer::up};

    // Inputs of `matrices` for `count` tokens, each rounded from what `make(token, out)` gives; and from these, what
    // adapters have in between.
    template <class Make>
    Inputs take(int thread, const Inputs& shared, int count, Matrices matrices, Make make, Adding adding = {}) {
        const bool adapted = adapters_.have(adding.layer, adding.targets);
        bool bytes = false, pairs = adapted;
        for (const Matrix* matrix : matrices) (matrix->kind == Kind::BFLOAT16 ? pairs : bytes) = true;
        Inputs inputs = count <= FEW ? space_.own(thread, shared) : shared;
        inputs.tokens = count;
        float* const row = space_.scratch(thread).values;
        const auto one = [&](int token) {
            make(token, row);
            inputs.take(token, row, bytes, pairs);
        };
        if (count <= FEW) {
            for (int token = 0; token < count; ++token) one(token);
        } else {
            split(count, one);
            team_.meet();
        }
        if (adapted) {
            split(adapters_.pieces(adding.targets), [&](int piece) { adapters_.lower(adding.layer, adding.targets, inputs, piece); });
            team_.meet();
        }
        return inputs;
    }

    // `use(number of the matrix, tile, token, sums)` for all outputs; the caller meets afterwards.
    template <class Use>
    void multiply_all(int thread, Matrices matrices, const Inputs& inputs, int tokens, Adding adding, Use use) {
        int tiles = 0;
        for (const Matrix* matrix : matrices) tiles += matrix->tiles();
        split(tiles, [&](int tile) {
            int number = 0;
            const Matrix* const* matrix = matrices.begin();
            for (; tile >= (*matrix)->tiles(); ++matrix, ++number) tile -= (*matrix)->tiles();
            each_token(**matrix, tile, inputs, tokens, [&](int token, Floats sums) { use(number, tile, token, sums); },
                       added(thread, adding, number, tile));
        });
    }

    // What adapters add to a tile of target `number`, or null.
    const float* added(int thread, Adding adding, int number, int tile) const {
        if (adding.targets.empty() || batch_.adapters == 0) return nullptr;
        return adapters_.added(adding.layer, adding.targets, number, tile, tokens_, space_.added(thread));
    }

    // Small enough that no thread waits long for another one's last piece, large enough that counting costs little.
    int piece_of(int tiles) const { return std::max(1, tiles / (PIECES * batch_.threads)); }

    void attention_half(int thread, const Layer& layer, int index) {
        const Matrices matrices = {&layer.query, &layer.key, &layer.value};
        const Adding adding = {index, ATTENTION};
        const auto make = [&](int token, float* out) {
            normalise_token(space_.x + at(token, model_.hidden), layer.attention_norm, out);
        };
        const Inputs inputs = take(thread, space_.hidden, tokens_, matrices, make, adding);
        const int heads_width = model_.heads * model_.size, kv_width = model_.kv_heads * model_.size;
        const int starts[] = {0, heads_width, heads_width + kv_width};
        multiply_all(thread, matrices, inputs, tokens_, adding, [&](int number, int tile, int token, Floats sums) {
            store(space_.qkv + at(token, heads_width + 2 * kv_width) + starts[number] + tile * LANES, sums);
        });
        team_.meet();
        split(static_cast<int>(places_.size()) * model_.kv_heads, [&](int item) {
            turn(layer, index, places_[item / model_.kv_heads], item % model_.kv_heads);
        });
        team_.meet();
        split(static_cast<int>(items_.size()), [&](int item) { attend(thread, layer, index, items_[item]); });
        team_.meet();
        if (parted_) {
            split(tokens_ * model_.kv_heads, [&](int item) { gather(item / model_.kv_heads, item % model_.kv_heads); });
            team_.meet();
        }
        const auto attended = [&](int token, float* out) {
            std::memcpy(out, space_.attended + at(token, heads_width), sizeof(float) * heads_width);
        };
        const Adding adding_output = {index, OUTPUT};
        const Inputs heads = take(thread, space_.heads, tokens_, {&layer.output}, attended, adding_output);
        add_to_residual(thread, layer.output, heads, adding_output);
    }

    void feed_forward_half(int thread, const Layer& layer, int index) {
        const Adding adding = {index, FEED_FORWARD}, adding_down = {index, DOWN};
        const auto make = [&](int token, float* out) {
            normalise_token(space_.x + at(token, model_.hidden), layer.ffn_norm, out);
        };
        const Inputs inputs = take(thread, space_.hidden, tokens_, {&layer.gate, &layer.up}, make, adding);
        const int tiles = layer.gate.tiles();
        split(tiles, [&](int tile) {
            float* out = space_.activated + tile * LANES;
            each_token(layer.gate, tile, inputs, tokens_, [&](int token, Floats sums) {
                store(out + at(token, model_.ffn), silu(sums));
            }, added(thread, adding, 0, tile));
            each_token(layer.up, tile, inputs, tokens_, [&](int token, Floats sums) {
                store(out + at(token, model_.ffn), multiply(load(out + at(token, model_.ffn)), sums));
            }, added(thread, adding, 1, tile));
        });
        team_.meet();
        const auto activated = [&](int token, float* out) {
            std::memcpy(out, space_.activated + at(token, model_.ffn), sizeof(float) * model_.ffn);
        };
        const Inputs ffn = take(thread, space_.ffn, tokens_, {&layer.down}, activated, adding_down);
        add_to_residual(thread, layer.down, ffn, adding_down);
    }

    void add_to_residual(int thread, const Matrix& matrix, const Inputs& inputs, Adding adding) {
        multiply_all(thread, {&matrix}, inputs, tokens_, adding, [&](int, int tile, int token, Floats sums) {
            float* out = space_.x + at(token, model_.hidden) + tile * LANES;
            store(out, add(load(out), sums));
        });
        team_.meet();
    }

    struct Place {
        int token, sequence, position;
    };

    // Norm and turn the heads that share a key head, round the queries, and append key and value to the pages.
    void turn(const Layer& layer, int index, const Place& place, int head) {
        const int size = model_.size, group = shape_.group();
        float* row = space_.qkv + at(place.token, (model_.heads + 2 * model_.kv_heads) * size);
        const float* rotation = model_.rotations + at(place.position, size);
        for (int i = 0; i < group; ++i) {
            float* query = row + (head * group + i) * size;
            turn_head(query, layer.query_norm, rotation);
            take_query(shape_, query, space_.queries + (at(place.token, model_.heads) + head * group + i) * shape_.query());
        }
        float* key = row + (model_.heads + head) * size;
        const float* value = row + (model_.heads + model_.kv_heads + head) * size;
        turn_head(key, layer.key_norm, rotation);
        append(shape_, batch_.sequence[place.sequence], index, head, place.position, key, value);
    }

    void turn_head(float* x, const float* norm, const float* rotation) const {
        if (norm != nullptr) {
            Floats squares = zero();
            for (int i = 0; i < model_.size; i += LANES) squares = fma(load(x + i), load(x + i), squares);
            const float mean = sum(squares) / static_cast<float>(model_.size);
            const Floats by = spread(1.0f / std::sqrt(mean + model_.epsilon));
            for (int i = 0; i < model_.size; i += LANES) store(x + i, multiply(multiply(load(x + i), by), load(norm + i)));
        }
        for (int i = 0; i < model_.size; i += 2) {
            const float a = x[i], b = x[i + 1], cosine = rotation[i], sine = rotation[i + 1];
            x[i] = a * cosine - b * sine;
            x[i + 1] = a * sine + b * cosine;
        }
    }

    // Which queries are attended for together. Several tokens of a prompt share what is read of the pages; where there
    // are few queries of long contexts, their spans are shared among the threads.
    void plan_attention() {
        const int group = shape_.group(), together = std::max(1, MOST_QUERIES / group);
        int alone = 0;
        for (int s = 0; s < batch_.sequences; ++s) {
            const Sequence& sequence = batch_.sequence[s];
            alone += (sequence.count + together - 1) / together * model_.kv_heads;
            for (int i = 0; i < sequence.count; ++i) places_.push_back({sequence.first + i, s, sequence.start + i});
        }
        parted_ = tokens_ <= FEW && alone < 4 * batch_.threads && batch_.threads > 1;
        spans_ = 1;
        for (const Place& place : places_) spans_ = std::max(spans_, place.position / SPAN + 1);
        parted_ = parted_ && spans_ > 1;
        if (parted_) parts_ = space_.parts(at(tokens_ * model_.heads, spans_), model_.size);
        for (int s = 0; s < batch_.sequences; ++s) {
            const Sequence& sequence = batch_.sequence[s];
            for (int token = 0; token < sequence.count; token += parted_ ? 1 : together) {
                const int count = parted_ ? 1 : std::min(together, sequence.count - token);
                for (int head = 0; head < model_.kv_heads; ++head) {
                    const int spans = parted_ ? (sequence.start + token) / SPAN + 1 : 1;
                    for (int span = 0; span < spans; ++span) {
                        items_.push_back({s, token, count, head, parted_ ? span : -1, 0});
                    }
                }
            }
        }
    }

    void attend(int thread, const Layer& layer, int index, const Item& item) {
        const int group = shape_.group();
        for (int first = 0; first < item.count * group;) {
            const int rows = std::min(MOST_QUERIES, item.count * group - first);
            first += attend_rows(thread, layer, index, item, first, rows);
        }
    }

    // Some of an item's rows, which are (token, head of the group) in that order; returns how many it took.
    int attend_rows(int thread, const Layer& layer, int index, const Item& item, int first, int rows) {
        if constexpr (MOST_QUERIES >= 16) {
            if (rows >= 16) return attend_some<16>(thread, layer, index, item, first);
            if (rows >= 12) return attend_some<12>(thread, layer, index, item, first);
            if (rows >= 9) return attend_some<9>(thread, layer, index, item, first);
            if (rows >= 8) return attend_some<8>(thread, layer, index, item, first);
            if (rows >= 6) return attend_some<6>(thread, layer, index, item, first);
        }
        if (rows >= 4) return attend_some<4>(thread, layer, index, item, first);
        if (rows >= 3) return attend_some<3>(thread, layer, index, item, first);
        if (rows >= 2) return attend_some<2>(thread, layer, index, item, first);
        return attend_some<1>(thread, layer, index, item, first);
    }

    template <int ROWS>
    int attend_some(int thread, const Layer& layer, int index, const Item& item, int first) {
        const Sequence& sequence = batch_.sequence[item.sequence];
        const int size = model_.size, group = shape_.group();
        const auto [values, queries] = space_.scratch(thread);
        const size_t width = shape_.query();
        int from[ROWS], to[ROWS], least = 0, most = 0;
        Part whole[ROWS], part[ROWS];
        for (int r = 0; r < ROWS; ++r) {
            const int token = item.token + (first + r) / group, head = item.head * group + (first + r) % group;
            std::memcpy(queries + r * width, space_.queries + (at(sequence.first + token, model_.heads) + head) * width, width);
            to[r] = sequence.start + token;
            from[r] = layer.window > 0 ? std::max<int>(0, to[r] + 1 - static_cast<int>(layer.window)) : 0;
            least = r == 0 ? from[r] : std::min(least, from[r]);
            most = std::max(most, to[r]);
            whole[r].values = values + r * size;
            part[r].values = values + (ROWS + r) * size;
        }
        if (item.span >= 0) {
            for (int r = 0; r < ROWS; ++r) part[r] = *part_of(sequence.first + item.token, item.head * group + first + r, item.span);
            if (item.span < least / SPAN) {  // the window has left it behind
                for (Part& each : part) nothing(each, size);
            } else {
                attend_span<ROWS>(shape_, sequence, index, item.head, item.span, queries, from, to, part);
            }
            for (int r = 0; r < ROWS; ++r) *part_of(sequence.first + item.token, item.head * group + first + r, item.span) = part[r];
            return ROWS;
        }
        for (int span = least / SPAN; span <= most / SPAN; ++span) {
            const bool initial = span == least / SPAN;
            attend_span<ROWS>(shape_, sequence, index, item.head, span, queries, from, to, initial ? whole : part);
            if (!initial) {
                for (int r = 0; r < ROWS; ++r) join(whole[r], part[r], size);
            }
        }
        for (int r = 0; r < ROWS; ++r) {
            const int token = item.token + (first + r) / group, head = item.head * group + (first + r) % group;
            normalise(whole[r], size, space_.attended + at(sequence.first + token, model_.heads * size) + at(head, size));
        }
        return ROWS;
    }

    Part* part_of(int token, int head, int span) { return parts_ + at(token * model_.heads + head, spans_) + span; }

    // Puts the spans of a token's heads together.
    void gather(int token, int head) {
        const int group = shape_.group(), size = model_.size, spans = places_[token].position / SPAN + 1;
        for (int i = head * group; i < (head + 1) * group; ++i) {
            Part* whole = part_of(token, i, 0);
            for (int span = 1; span < spans; ++span) join(*whole, *part_of(token, i, span), size);
            normalise(*whole, size, space_.attended + at(token, model_.heads * size) + at(i, size));
        }
    }

    static constexpr int PIECES = 6;  // a thread and phase

    const Model& model_;
    const Heads shape_;
    Team& team_;
    Space& space_;
    const Batch& batch_;
    const int tokens_;
    const Adapters adapters_;
    std::vector<Place> places_;
    std::vector<Item> items_;
    bool parted_ = false;
    int spans_ = 1;
    Part* parts_ = nullptr;
};

}  // namespace mk
