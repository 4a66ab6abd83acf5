// Attention in a step: who attends for which queries, from what the products gave to what the next one takes.
#pragma once

#include "decoder.h"
#include "space.h"

namespace mk {

class Attention {
  public:
    // Plans the step: which queries are attended for together. Several tokens of a prompt share what is read of the
    // pages; where there are few queries of long contexts, their spans are shared among the threads. Where each sequence
    // has one token, who attends for it turns it, too.
    Attention(const Model& model, Space& space, const Batch& batch)
        : model_(model), shape_(model.shape()), space_(space), batch_(batch), alone_(batch.sequences == batch.tokens) {
        const int group = shape_.group(), together = std::max(1, MOST_QUERIES / group);
        int items = 0;
        for (int s = 0; s < batch_.sequences; ++s) {
            const Sequence& sequence = batch_.sequence[s];
            items += (sequence.count + together - 1) / together * model_.kv_heads;
            for (int i = 0; i < sequence.count; ++i) places_.push_back({sequence.first + i, s, sequence.start + i});
        }
        for (const Place& place : places_) spans_ = std::max(spans_, place.position / SPAN + 1);
        parted_ = batch_.tokens <= FEW && items < 4 * batch_.threads && batch_.threads > 1 && spans_ > 1;
        if (parted_) parts_ = space_.parts(at(batch_.tokens * model_.heads, spans_), model_.size);
        for (int s = 0; s < batch_.sequences; ++s) {
            const Sequence& sequence = batch_.sequence[s];
            for (int token = 0; token < sequence.count; token += parted_ ? 1 : together) {
                const int count = parted_ ? 1 : std::min(together, sequence.count - token);
                for (int head = 0; head < model_.kv_heads; ++head) {
                    const int spans = parted_ ? (sequence.start + token) / SPAN + 1 : 1;
                    for (int span = 0; span < spans; ++span) items_.push_back({s, token, count, head, parted_ ? span : -1});
                }
            }
        }
    }

    // How many pieces of work each part of it has; nobody begins a part before all have ended the one before.
    int turns() const { return alone_ ? 0 : static_cast<int>(places_.size()) * model_.kv_heads; }
    int items() const { return static_cast<int>(items_.size()); }
    int gathers() const { return parted_ ? batch_.tokens * model_.kv_heads : 0; }

    // Norm and turn the heads of a token that share a key head, make the queries ready, and append key and value.
    void turn(int thread, const Layer& layer, int index, int turn) const {
        const Place& place = places_[turn / model_.kv_heads];
        const int head = turn % model_.kv_heads;
        for (int i = head * shape_.group(); i < (head + 1) * shape_.group(); ++i) {
            turn_query(thread, layer, place, i, space_.queries + (at(place.token, model_.heads) + i) * shape_.query());
        }
        turn_key(thread, layer, index, place, head);
    }

    void attend(int thread, const Layer& layer, int index, int number, Rounding to) const {
        const Item& item = items_[number];
        const int group = shape_.group();
        if (alone_) {
            const Sequence& sequence = batch_.sequence[item.sequence];
            const bool has_newest = item.span < 0 || item.span == sequence.start / SPAN;
            if (has_newest) turn_key(thread, layer, index, {sequence.first, item.sequence, sequence.start}, item.head);
        }
        for (int first = 0; first < item.count * group;) {
            const int rows = std::min(MOST_QUERIES, item.count * group - first);
            first += attend_rows(thread, layer, index, item, first, rows, to);
        }
    }

    // Puts the spans of a token's heads together.
    void gather(int number, Rounding to) const {
        const int token = number / model_.kv_heads, head = number % model_.kv_heads, group = shape_.group();
        const int spans = places_[token].position / SPAN + 1;
        for (int i = head * group; i < (head + 1) * group; ++i) {
            Part* whole = part_of(token, i, 0);
            for (int span = 1; span < spans; ++span) join(*whole, *part_of(token, i, span), model_.size);
            take_attended(token, i, *whole, to);
        }
    }

  private:
    // Queries of a sequence that one thread attends for: `count` tokens from `token` on, of one key head.
    struct Item {
        int sequence, token, count, head, span;  // span -1: all of them
    };

    struct Place {
        int token, sequence, position;
    };

    static constexpr int FEW = 4;  // tokens of which several threads share one's context

    // Norm and turn a head's query, and make it ready for the pages.
    void turn_query(int thread, const Layer& layer, const Place& place, int head, uint8_t* out) const {
        float* row = space_.scratch(thread).values;
        turn_head(place, head, layer.query_norm, row);
        take_query(shape_, row, out);
    }

    // Norm and turn a head's key, and append it and the value to the pages.
    void turn_key(int thread, const Layer& layer, int index, const Place& place, int head) const {
        float* key = space_.scratch(thread).values;
        float* value = key + model_.size;
        turn_head(place, model_.heads + head, layer.key_norm, key);
        const int tiles = model_.size / LANES, first = (model_.heads + model_.kv_heads + head) * tiles;
        for (int i = 0; i < tiles; ++i) store(value + i * LANES, load(space_.qkv_of(place.token, first + i)));
        append(shape_, batch_.sequence[place.sequence], index, head, place.position, key, value);
    }

    void turn_head(const Place& place, int head, const float* norm, float* out) const {
        const float* rotation = model_.rotations + at(place.position, model_.size);
        const int tiles = model_.size / LANES;
        Floats squares = zero();
        for (int i = 0; i < tiles; ++i) {
            const Floats x = load(space_.qkv_of(place.token, head * tiles + i));
            squares = fma(x, x, squares);
            store(out + i * LANES, x);
        }
        const Floats by = spread(norm_factor(sum(squares), model_.size, model_.epsilon));
        for (int i = 0; i < model_.size; i += LANES) {
            const Floats normed = norm == nullptr ? load(out + i) : multiply(multiply(load(out + i), by), load(norm + i));
            store(out + i, turned(normed, load(rotation + i)));
        }
    }

    // Some of an item's rows, which are (token, head of the group) in that order; returns how many it took.
    int attend_rows(int thread, const Layer& layer, int index, const Item& item, int first, int rows, Rounding to) const {
        if constexpr (MOST_QUERIES >= 16) {
            if (rows >= 16) return attend_some<16>(thread, layer, index, item, first, to);
            if (rows >= 12) return attend_some<12>(thread, layer, index, item, first, to);
            if (rows >= 9) return attend_some<9>(thread, layer, index, item, first, to);
            if (rows >= 8) return attend_some<8>(thread, layer, index, item, first, to);
            if (rows >= 6) return attend_some<6>(thread, layer, index, item, first, to);
        }
        if (rows >= 4) return attend_some<4>(thread, layer, index, item, first, to);
        if (rows >= 3) return attend_some<3>(thread, layer, index, item, first, to);
        if (rows >= 2) return attend_some<2>(thread, layer, index, item, first, to);
        return attend_some<1>(thread, layer, index, item, first, to);
    }

    template <int ROWS>
    int attend_some(int thread, const Layer& layer, int index, const Item& item, int first, Rounding to) const {
        const Sequence& sequence = batch_.sequence[item.sequence];
        const int size = model_.size, group = shape_.group();
        const auto& scratch = space_.scratch(thread);
        const size_t width = shape_.query();
        int seen_from[ROWS], seen_to[ROWS], least = 0, most = 0;
        Part whole[ROWS], part[ROWS];
        for (int r = 0; r < ROWS; ++r) {
            const int token = item.token + (first + r) / group, head = item.head * group + (first + r) % group;
            const Place place = {sequence.first + token, item.sequence, sequence.start + token};
            if (alone_) {
                turn_query(thread, layer, place, head, scratch.queries + r * width);
            } else {
                std::memcpy(scratch.queries + r * width, space_.queries + (at(place.token, model_.heads) + head) * width, width);
            }
            seen_to[r] = place.position;
            seen_from[r] = layer.window > 0 ? std::max<int>(0, place.position + 1 - static_cast<int>(layer.window)) : 0;
            least = r == 0 ? seen_from[r] : std::min(least, seen_from[r]);
            most = std::max(most, seen_to[r]);
        }
        for (int r = 0; r < ROWS; ++r) {  // where heads were turned
            whole[r].values = scratch.values + r * size;
            part[r].values = scratch.values + (ROWS + r) * size;
        }
        const uint8_t* queries = scratch.queries;
        if (item.span >= 0) {
            for (int r = 0; r < ROWS; ++r) part[r] = *part_of(sequence.first + item.token, item.head * group + first + r, item.span);
            if (item.span < least / SPAN) {  // the window has left it behind
                for (Part& each : part) nothing(each, size);
            } else {
                attend_span<ROWS>(shape_, sequence, index, item.head, item.span, queries, seen_from, seen_to, part);
            }
            for (int r = 0; r < ROWS; ++r) *part_of(sequence.first + item.token, item.head * group + first + r, item.span) = part[r];
            return ROWS;
        }
        for (int span = least / SPAN; span <= most / SPAN; ++span) {
            const bool initial = span == least / SPAN;
            attend_span<ROWS>(shape_, sequence, index, item.head, span, queries, seen_from, seen_to, initial ? whole : part);
            if (!initial) {
                for (int r = 0; r < ROWS; ++r) join(whole[r], part[r], size);
            }
        }
        for (int r = 0; r < ROWS; ++r) {
            const int token = item.token + (first + r) / group, head = item.head * group + (first + r) % group;
            take_attended(sequence.first + token, head, whole[r], to);
        }
        return ROWS;
    }

    // What a query has seen, as inputs of the output's product.
    void take_attended(int token, int head, const Part& part, Rounding to) const {
        const int tiles = model_.size / LANES;
        const Floats by = spread(part.weight > 0.0f ? 1.0f / part.weight : 0.0f);
        for (int i = 0; i < tiles; ++i) {
            const Floats seen[] = {multiply(load(part.values + i * LANES), by)};
            space_.heads.take(token, head * tiles + i, seen, to);
        }
    }

    Part* part_of(int token, int head, int span) const { return parts_ + at(token * model_.heads + head, spans_) + span; }

    const Model& model_;
    const Heads shape_;
    Space& space_;
    const Batch& batch_;
    const bool alone_;  // each sequence has one token
    bool parted_ = false;
    int spans_ = 1;
    Part* parts_ = nullptr;
    std::vector<Place> places_;
    std::vector<Item> items_;
};

}  // namespace mk
