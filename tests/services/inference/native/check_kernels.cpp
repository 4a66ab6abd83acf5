// The kernels against plain scalar code, and whole steps against themselves: alone or together, on any threads, in any
// chunks. It includes their source, so sanitizers and emulators see all of it; what it reads lies in pieces of exactly
// the size that they need. Prints what failed; the exit code says whether anything did.
#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>

#include "kernels.cpp"

extern "C" const char* __asan_default_options() { return "allocator_may_return_null=1"; }
extern "C" const char* __tsan_default_options() { return "allocator_may_return_null=1"; }

namespace {

int failures = 0;

void check(bool right, const std::string& what) {
    if (!right && ++failures <= 20) std::printf("wrong: %s\n", what.c_str());
}

std::mt19937 generator(7);
float uniform(float from, float to) { return std::uniform_real_distribution<float>(from, to)(generator); }
int integer(int from, int to) { return std::uniform_int_distribution<int>(from, to)(generator); }

float from_bfloat16(uint16_t half) {
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

uint16_t to_bfloat16(float x) {
    uint16_t out[LANES];
    store_bfloat16(out, spread(x));
    return out[0];
}

void check_functions() {
    for (int i = 0; i <= 87000; i += LANES) {
        float x[LANES], got[LANES], gated[LANES];
        for (int j = 0; j < LANES; ++j) x[j] = static_cast<float>(-(i + j)) / 1000.0f + uniform(-0.0005f, 0.0f);
        for (float& value : x) value = std::clamp(value, -87.0f, 0.0f);
        store(got, exponential(load(x)));
        for (float& value : x) value = -value / 4;
        store(gated, silu(load(x)));
        for (int j = 0; j < LANES; ++j) {
            const double exact = std::exp(static_cast<double>(-4 * x[j]));
            check(std::abs(got[j] / exact - 1) < 2e-7, "exponential of " + std::to_string(-4 * x[j]));
            const double gate = x[j] / (1 + std::exp(-static_cast<double>(x[j])));
            check(std::abs(gated[j] - gate) <= 3e-7 * std::abs(gate), "silu of " + std::to_string(x[j]));
        }
    }
    for (int sign = -1; sign <= 1; sign += 2) {
        float far[LANES];
        store(far, silu(spread(300.0f * static_cast<float>(sign))));
        check(far[0] == (sign > 0 ? 300.0f : 0.0f) || std::abs(far[0]) < 1e-30f, "silu far from 0");
    }
    for (uint32_t bits = 0; bits < 0x10000; ++bits) {
        if ((bits & 0x7c00) == 0x7c00) continue;
        const auto half = static_cast<uint16_t>(bits);
        check(to_half(from_half(reinterpret_cast<const uint8_t*>(&half))) == half, "float16 " + std::to_string(bits));
    }
    check(to_bfloat16(1.00390625f) == 0x3f80 && to_bfloat16(1.01171875f) == 0x3f82, "bfloat16 rounds halves to even");
    float x[LANES];
    for (int j = 0; j < LANES; ++j) x[j] = static_cast<float>(j * 7 % LANES) - 20.5f;
    float rotation[LANES], got[LANES];
    for (int j = 0; j < LANES; ++j) rotation[j] = static_cast<float>(j + 1) / 4;
    store(got, turned(load(x), load(rotation)));
    for (int j = 0; j < LANES; j += 2) {
        const float a = x[j] * rotation[j] - x[j + 1] * rotation[j + 1], b = x[j + 1] * rotation[j] + x[j] * rotation[j + 1];
        check(std::abs(got[j] - a) < 1e-4f && std::abs(got[j + 1] - b) < 1e-4f, "a pair of lanes turned");
    }
    check(sum(load(x)) == -208.0f && largest(load(x)) == -5.5f, "sum or largest over the lanes");
}

// A packed matrix of random content; every byte of quants is a valid one.
struct RandomMatrix {
    Matrix matrix{};
    std::vector<uint8_t> quants;
    std::vector<uint16_t> scales, minima;
    std::vector<float> bias;

    RandomMatrix(Kind kind, int rows, int columns, bool biased = false) {
        int64_t sizes[3];
        mk_sizes(static_cast<int32_t>(kind), rows, columns, sizes);
        quants.resize(sizes[0]), scales.resize(sizes[1] / 2), minima.resize(sizes[2] / 2);
        const float usual = 1.0f / std::sqrt(static_cast<float>(columns));
        if (kind == Kind::BFLOAT16) {
            auto* weights = reinterpret_cast<uint16_t*>(quants.data());
            for (size_t i = 0; i < quants.size() / 2; ++i) weights[i] = to_bfloat16(uniform(-2 * usual, 2 * usual));
        } else {
            const int bits = kind <= Kind::BITS4_MINIMUM ? 4 : kind <= Kind::BITS5_MINIMUM ? 5 : kind == Kind::BITS6 ? 6 : 8;
            const float step = usual * 4 / static_cast<float>(1 << bits);
            for (uint8_t& each : quants) each = static_cast<uint8_t>(integer(0, 255));
            for (uint16_t& each : scales) each = to_half(uniform(step / 2, step));
            for (uint16_t& each : minima) each = to_half(uniform(-2 * usual, -usual));
        }
        if (biased) {
            bias.resize((rows + LANES - 1) / LANES * LANES);
            for (float& each : bias) each = uniform(-1, 1);
        }
        matrix = {kind, rows, columns, quants.data(), scales.data(), minima.data(), biased ? bias.data() : nullptr};
    }

    float weight(int row, int column) const {
        const int tile = row / LANES, lane = row % LANES, groups = matrix.columns / 32, group = tile * groups + column / 32;
        if (matrix.kind == Kind::BFLOAT16) {
            const auto* weights = reinterpret_cast<const uint16_t*>(quants.data());
            return from_bfloat16(weights[(tile * matrix.columns + column / 2 * 2) * LANES + lane * 2 + column % 2]);
        }
        float value = 0;
        with_format(matrix.kind, [&](auto format) {
            using Format = decltype(format);
            const auto half = [](const uint16_t& at) { return from_half(reinterpret_cast<const uint8_t*>(&at)); };
            const int quant = Format::get(quants.data() + group * Format::BYTES, lane, column % 32) - Format::ZERO;
            const int part = group * Format::SCALES + column % 32 * Format::SCALES / 32;
            value = half(scales[part * LANES + lane]) * static_cast<float>(quant);
            if (Format::MINIMUM) value += half(minima[group * LANES + lane]);
        });
        return value;
    }
};

struct RoundedInputs {
    std::vector<int8_t> quants;
    std::vector<float> scales, totals;
    std::vector<Factor> factors;
    Inputs inputs;

    RoundedInputs(int tokens, int columns)
        : quants(Inputs::room(tokens) * columns), scales(Inputs::room(tokens) * columns / 16),
          totals(3 * Inputs::room(tokens) * columns / 32), factors(Inputs::room(tokens) * columns),
          inputs{quants.data(), scales.data(), totals.data(), factors.data(), columns, tokens} {}

    void take(int token, const std::vector<float>& x) {
        for (size_t tile = 0; tile < x.size() / LANES; ++tile) {
            const Floats some[] = {load(x.data() + tile * LANES)};
            inputs.take(token, tile, some, {true, true});
        }
    }

    float value(Kind kind, int token, int column) const {
        const size_t block = inputs.block(), lane = token % Inputs::BLOCK;
        if (kind == Kind::BFLOAT16) {
            const Factor factor = factors[inputs.start_of_factors(token) + (column / 2 * block + lane) * 2 + column % 2];
            if constexpr (std::is_same_v<Factor, float>) return factor; else return from_bfloat16(factor);
        }
        return scales[inputs.start(token, 2) + column / 16 * block + lane] *
               quants[inputs.start(token, 32) + 32 * (column / 32 * block + lane) + column % 32];
    }
};

void check_products(Kind kind) {
    constexpr int ROWS = 50, COLUMNS = 96;
    const RandomMatrix packed(kind, ROWS, COLUMNS, true);
    for (int tokens : {1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 17, 23, 30}) {
        const std::string what = "product of kind " + std::to_string(static_cast<int>(kind)) + ", " + std::to_string(tokens) + " tokens";
        RoundedInputs all(tokens, COLUMNS), one(1, COLUMNS);
        std::vector<float> by(tokens), added(tokens * LANES);
        for (float& each : by) each = uniform(0.5f, 2.0f);
        for (float& each : added) each = uniform(-1, 1);
        for (int token = 0; token < tokens; ++token) {
            std::vector<float> x(COLUMNS);
            for (float& each : x) each = token == 2 ? 0.0f : uniform(-3, 3);
            all.take(token, x), one.take(0, x);
            for (int column = 0; column < COLUMNS; ++column) {
                const float of = std::abs(all.value(kind, token, column) - x[column]);
                check(of <= 3.0f / (kind == Kind::BFLOAT16 ? 256 : 254) * 1.01f, what + ": inputs");
            }
            if (token != tokens - 1) continue;
            for (int tile = 0; tile < packed.matrix.tiles(); ++tile) {
                float together[LANES], alone[LANES];
                each_token(packed.matrix, tile, all.inputs, {0, tokens}, {by.data(), added.data()},
                           [&](int first, const auto& sums) {
                               for (const Floats& each : sums) if (first++ == token) store(together, each);
                           });
                each_token(packed.matrix, tile, one.inputs, {0, 1}, {by.data() + token, added.data() + token * LANES},
                           [&](int, const auto& sums) { store(alone, sums[0]); });
                check(std::memcmp(together, alone, sizeof alone) == 0, what + ": not the same bits as alone");
            }
        }
        for (int tile = 0; tile < packed.matrix.tiles(); ++tile) {
            each_token(packed.matrix, tile, all.inputs, {0, tokens}, {by.data(), added.data()}, [&](int token, const auto& sums) {
                for (const Floats& each : sums) {
                    float got[LANES];
                    store(got, each);
                    for (int row = tile * LANES; row < std::min(ROWS, (tile + 1) * LANES); ++row) {
                        double exact = added[token * LANES + row % LANES], size = std::abs(exact) + std::abs(packed.bias[row]);
                        for (int column = 0; column < COLUMNS; ++column) {
                            const double term = static_cast<double>(packed.weight(row, column)) * all.value(kind, token, column);
                            exact += term, size += std::abs(term);
                        }
                        exact = exact * by[token] + packed.bias[row];
                        check(std::abs(got[row % LANES] - exact) <= 8e-6 * size, what);
                    }
                    ++token;
                }
            });
        }
    }
}

void check_packing(Source source, int block, int bytes) {
    constexpr int ROWS = 19;
    const int columns = 2 * std::max(block, 32);
    std::vector<uint8_t> blocks(static_cast<size_t>(ROWS) * columns / block * bytes);
    for (uint8_t& each : blocks) each = static_cast<uint8_t>(integer(0, 255));
    static const std::map<Source, Kind> KINDS = {
        {Source::Q4_0, Kind::BITS4}, {Source::Q4_1, Kind::BITS4_MINIMUM}, {Source::Q4_K, Kind::BITS4_MINIMUM},
        {Source::Q5_0, Kind::BITS5}, {Source::Q5_1, Kind::BITS5_MINIMUM}, {Source::Q5_K, Kind::BITS5_MINIMUM},
        {Source::Q6_K, Kind::BITS6}, {Source::Q8_0, Kind::BITS8}};
    const auto found = KINDS.find(source);
    const Kind kind = found == KINDS.end() ? Kind::BFLOAT16 : found->second;
    RandomMatrix target(kind, ROWS, columns);
    std::fill(target.quants.begin(), target.quants.end(), 0);
    mk_pack(static_cast<int32_t>(kind), static_cast<int32_t>(source), blocks.data(), columns / block * bytes, 0, ROWS, columns,
            target.quants.data(), target.scales.data(), target.minima.data());
    if (kind == Kind::BFLOAT16) return;
    for (int column = 0; column < columns; ++column) {
        const Group group = read_group(source, blocks.data() + static_cast<size_t>(ROWS - 1) * columns / block * bytes, column / 32);
        with_format(kind, [&](auto format) {
            using Format = decltype(format);
            const uint8_t* last = target.quants.data() + (columns / 32 + column / 32) * Format::BYTES;
            check(Format::get(last, (ROWS - 1) % LANES, column % 32) == group.quants[column % 32], "a packed quant");
        });
    }
}

struct Pages {
    std::vector<std::unique_ptr<uint8_t[]>> pages;
    std::vector<uint8_t*> table;

    Pages(const Heads& shape, int tokens) {
        for (int i = 0; i < (tokens + PAGE - 1) / PAGE; ++i) {
            pages.push_back(std::make_unique<uint8_t[]>(shape.page()));
            table.push_back(pages.back().get());
            for (size_t j = 0; j < shape.page(); j += 4) {  // left by another: finite, as scales or as two bfloat16
                const float far = uniform(-1e30f, 1e30f);
                const uint16_t two[] = {to_bfloat16(far), to_bfloat16(far)};
                std::memcpy(table.back() + j, two, 4);
            }
        }
    }
};

// A token's numbers as a page keeps them: in 8 bits with one scale for `group` of them.
std::vector<float> kept(PageKind kind, const std::vector<float>& x, size_t group) {
    std::vector<float> result(x.size());
    for (size_t i = 0; i < x.size(); ++i) {
        if (kind == PageKind::BFLOAT16) {
            result[i] = from_bfloat16(to_bfloat16(x[i]));
            continue;
        }
        float most = 0;
        for (size_t j = i / group * group; j < std::min(x.size(), (i / group + 1) * group); ++j) most = std::max(most, std::abs(x[j]));
        result[i] = most > 0 ? std::nearbyint(x[i] * (127 / most)) * (most / 127) : 0;
    }
    return result;
}

template <int ROWS>
void check_attention(PageKind kind, int size, int window, int end) {
    const Heads shape{2, 2, 2, size, kind};
    const std::string what = "attention of " + std::to_string(ROWS) + " rows of " + std::to_string(size) + ", window " + std::to_string(window) +
                             ", end " + std::to_string(end) + ", pages of kind " + std::to_string(static_cast<int>(kind));
    Pages pages(shape, end);
    const Sequence sequence{pages.table.data(), 0, ROWS, end - ROWS};
    std::vector<std::vector<float>> keys(end, std::vector<float>(size)), values(keys);
    for (int token = 0; token < end; ++token) {
        for (int d = 0; d < size && token != 3; ++d) {  // the fourth is all zeros
            keys[token][d] = uniform(-2, 2) * (d / 32 % 2 ? 20.0f / size : 1), values[token][d] = uniform(-1, 1);
        }
        append(shape, sequence, 1, 1, token, keys[token].data(), values[token].data());
        keys[token] = kept(kind, keys[token], 32), values[token] = kept(kind, values[token], size);
    }
    std::vector<uint8_t> queries(ROWS * shape.query());
    std::vector<std::vector<float>> exact_queries(ROWS, std::vector<float>(size));
    for (int r = 0; r < ROWS; ++r) {
        for (float& each : exact_queries[r]) each = r == 1 ? 0 : from_bfloat16(to_bfloat16(uniform(-2, 2)));
        take_query(shape, exact_queries[r].data(), queries.data() + r * shape.query());
    }
    int from[ROWS], to[ROWS];
    std::vector<float> store_of(2 * ROWS * size);
    Part whole[ROWS], part[ROWS];
    for (int r = 0; r < ROWS; ++r) {
        to[r] = end - ROWS + r, from[r] = window > 0 ? std::max(0, to[r] + 1 - window) : 0;
        whole[r].values = store_of.data() + r * size, part[r].values = store_of.data() + (ROWS + r) * size;
    }
    for (int span = from[0] / SPAN; span <= to[ROWS - 1] / SPAN; ++span) {
        attend_span<ROWS>(shape, sequence, 1, 1, span, queries.data(), from, to, span == from[0] / SPAN ? whole : part);
        for (int r = 0; span != from[0] / SPAN && r < ROWS; ++r) join(whole[r], part[r], size);
    }
    for (int r = 0; r < ROWS; ++r) {
        std::vector<float> got(whole[r].values, whole[r].values + size);
        for (float& each : got) each /= whole[r].weight;
        std::vector<double> weights(end), exact(size);
        double most = -1e30, total = 0;
        for (int token = from[r]; token <= to[r]; ++token) {
            for (int d = 0; d < size; ++d) {
                weights[token] += static_cast<double>(exact_queries[r][d]) * keys[token][d];
            }
            most = std::max(most, weights[token] /= std::sqrt(static_cast<double>(size)));
        }
        for (int token = from[r]; token <= to[r]; ++token) {
            total += weights[token] = std::exp(weights[token] - most);
            for (int d = 0; d < size; ++d) exact[d] += weights[token] * values[token][d];
        }
        const double close = kind == PageKind::INT8 ? 2e-4 : 1.0 / 256;  // weights and queries: 15 bits, weights: 9 bits
        for (int d = 0; d < size; ++d) check(std::abs(got[d] - exact[d] / total) < close, what);
    }
}

struct RandomModel {
    std::vector<std::unique_ptr<RandomMatrix>> matrices;
    std::vector<std::unique_ptr<std::vector<float>>> vectors;
    std::vector<Layer> layers;
    Model model{};

    Matrix matrix(Kind kind, int rows, int columns, bool biased = false) {
        return matrices.emplace_back(std::make_unique<RandomMatrix>(kind, rows, columns, biased))->matrix;
    }
    const float* vector(int count, float from, float to) {
        auto& made = *vectors.emplace_back(std::make_unique<std::vector<float>>(count));
        for (float& each : made) each = uniform(from, to);
        return made.data();
    }

    RandomModel(int hidden, int ffn, int heads, int kv_heads, int size, int vocabulary, int positions, int64_t window,
                PageKind pages = PageKind::BFLOAT16) {
        for (int i = 0; i < 2; ++i) {
            layers.push_back({matrix(Kind::BITS4_MINIMUM, heads * size, hidden, true), matrix(Kind::BITS5, kv_heads * size, hidden, true),
                              matrix(i ? Kind::BFLOAT16 : Kind::BITS8, kv_heads * size, hidden, true),
                              matrix(Kind::BITS6, hidden, heads * size), matrix(Kind::BITS4, ffn, hidden),
                              matrix(Kind::BITS4, ffn, hidden), matrix(Kind::BITS5_MINIMUM, hidden, ffn),
                              vector(hidden, 0.5, 1.5), vector(hidden, 0.5, 1.5), i ? vector(size, 0.5, 1.5) : nullptr,
                              i ? vector(size, 0.5, 1.5) : nullptr, i ? window : 0});
        }
        model = {hidden, ffn, 2, heads, kv_heads, size, vocabulary, 1e-5f, pages, matrix(Kind::BITS8, vocabulary, hidden),
                 matrix(Kind::BFLOAT16, vocabulary, hidden), vector(hidden, 0.5, 1.5), vector(positions * size, -0.7f, 0.7f),
                 layers.data()};
    }
};

// Adapters of a model: some matrices of some layers, of ranks that differ.
struct RandomAdapter {
    std::vector<std::unique_ptr<RandomMatrix>> matrices;
    std::vector<AdapterLayer> layers;

    RandomAdapter(const Model& model, int rank) {
        const Target targets[] = {&AdapterLayer::query, &AdapterLayer::key, &AdapterLayer::value, &AdapterLayer::output,
                                  &AdapterLayer::gate, &AdapterLayer::up, &AdapterLayer::down};
        for (int i = 0; i < model.layers; ++i) {
            const Layer& of = model.layer[i];
            const Matrix base[] = {of.query, of.key, of.value, of.output, of.gate, of.up, of.down};
            layers.push_back({});
            for (int t = 0; t < 7; ++t) {
                if (integer(0, 2) == 0) continue;
                auto& a = *matrices.emplace_back(std::make_unique<RandomMatrix>(Kind::BFLOAT16, rank, base[t].columns));
                auto& b = *matrices.emplace_back(std::make_unique<RandomMatrix>(Kind::BFLOAT16, base[t].rows, rank));
                layers.back().*targets[t] = {a.matrix, b.matrix};
            }
        }
    }
};

struct Prompt {
    std::vector<int32_t> ids;
    const RandomAdapter* adapter = nullptr;
};

struct Runner {
    Team* team;
    Space* space = mk_space_new();
    explicit Runner(int threads) : team(mk_team_new(threads)) {}
    ~Runner() { mk_team_free(team), mk_space_free(space); }

    // Feeds `prompts`, those with the same adapter beside each other, in steps of `chunk` tokens each, all of them
    // together; the last token's logits of each.
    std::vector<std::vector<float>> feed(const Model& model, const std::vector<Prompt>& prompts, int chunk, int threads) {
        std::vector<Pages> pages;
        for (const auto& prompt : prompts) pages.emplace_back(model.shape(), static_cast<int>(prompt.ids.size()));
        std::vector<std::vector<float>> result(prompts.size());
        for (size_t start = 0;; start += chunk) {
            std::vector<Sequence> sequences;
            std::vector<int32_t> ids, rows;
            std::vector<size_t> whose;
            std::vector<Adapted> adapted;
            int rank = 0;
            for (size_t i = 0; i < prompts.size(); ++i) {
                const auto& [prompt, adapter] = prompts[i];
                if (start >= prompt.size()) continue;
                const int count = static_cast<int>(std::min<size_t>(chunk, prompt.size() - start));
                const auto first = static_cast<int32_t>(ids.size());
                sequences.push_back({pages[i].table.data(), first, count, static_cast<int32_t>(start)});
                if (adapter != nullptr) {
                    for (const auto& each : adapter->matrices) rank = std::max(rank, std::min(each->matrix.rows, each->matrix.columns));
                    if (adapted.empty() || adapted.back().layer != adapter->layers.data()) adapted.push_back({first, 0, adapter->layers.data()});
                    adapted.back().count += count;
                }
                ids.insert(ids.end(), prompt.begin() + start, prompt.begin() + start + count);
                if (start + count == prompt.size()) rows.push_back(static_cast<int32_t>(ids.size()) - 1), whose.push_back(i);
            }
            if (sequences.empty()) return result;
            std::vector<float> logits(rows.size() * model.vocabulary);
            const Batch batch{static_cast<int32_t>(ids.size()), static_cast<int32_t>(sequences.size()), static_cast<int32_t>(rows.size()),
                              threads, ids.data(), sequences.data(), rows.data(), logits.data(),
                              adapted.data(), static_cast<int32_t>(adapted.size()), rank};
            check(mk_step(&model, team, space, &batch) == 0, "a step found no memory");
            for (size_t i = 0; i < whose.size(); ++i) {
                result[whose[i]].assign(logits.begin() + i * model.vocabulary, logits.begin() + (i + 1) * model.vocabulary);
            }
        }
    }
};

void check_steps(const RandomModel& random, const std::vector<int>& lengths, Runner& runner, const std::string& what, bool adapted = false) {
    const Model& model = random.model;
    const RandomAdapter adapters[] = {{model, 16}, {model, 48}};
    std::vector<Prompt> prompts;
    for (int length : lengths) {
        const size_t third = prompts.size() * 3 / lengths.size();
        prompts.push_back({{}, adapted && third != 1 ? &adapters[third / 2] : nullptr});
        for (int i = 0; i < length; ++i) prompts.back().ids.push_back(integer(0, model.vocabulary - 1));
    }
    std::vector<std::vector<float>> alone;
    for (const auto& prompt : prompts) alone.push_back(runner.feed(model, {prompt}, 1 << 20, 1)[0]);
    for (const auto& logits : alone) {
        float most = 0;
        for (float each : logits) check(std::isfinite(each), what + ": a logit that is not finite"), most = std::max(most, std::abs(each));
        check(most > 0.01f, what + ": no logits");
    }
    for (int threads : {1, 2, 1000}) {  // of which there are 3
        check(runner.feed(model, prompts, 1 << 20, threads) == alone, what + ": others in the step change bits");
        check(runner.feed(model, prompts, 37, threads) == alone, what + ": chunks change bits");
        if (lengths[0] > 1000) continue;
        check(runner.feed(model, {prompts[0]}, 1, threads)[0] == alone[0], what + ": single tokens change bits");
    }
}

// More than any address space holds: refused before anything is read, and the next step finds all as it was.
void check_short_memory(Runner& runner) {
    Model model{};
    model.hidden = model.ffn = 1 << 30, model.heads = model.kv_heads = 1, model.size = 16;
    const Batch batch{1 << 30, 0, 0, 3, nullptr, nullptr, nullptr, nullptr, nullptr, 0, 0};
    check(mk_step(&model, runner.team, runner.space, &batch) == 1, "a step that no memory holds is refused");
}

void check_parts() {
    check_functions();
    for (int kind = 0; kind <= 6; ++kind) check_products(static_cast<Kind>(kind));
    const struct { Source source; int block, bytes; } packings[] = {
        {Source::F32, 1, 4}, {Source::F16, 1, 2}, {Source::BF16, 1, 2}, {Source::Q4_0, 32, 18}, {Source::Q4_1, 32, 20},
        {Source::Q5_0, 32, 22}, {Source::Q5_1, 32, 24}, {Source::Q8_0, 32, 34}, {Source::Q4_K, 256, 144},
        {Source::Q5_K, 256, 176}, {Source::Q6_K, 256, 210}};
    for (const auto& each : packings) check_packing(each.source, each.block, each.bytes);
    for (PageKind kind : {PageKind::BFLOAT16, PageKind::INT8}) {
        for (int size : {16, 48, 128}) {
            for (int window : {0, 1, 300}) {
                for (int end : {16, 17, 257, 600}) {
                    check_attention<1>(kind, size, window, end), check_attention<3>(kind, size, window, end);
                    check_attention<MOST_QUERIES>(kind, size, window, end);
                }
            }
        }
        for (int size : {32, 64, 80, 96, 112, 256}) check_attention<2>(kind, size, 300, 340), check_attention<4>(kind, size, 0, 35);
    }
}

}  // namespace

int main(int count, char** arguments) {
    const std::string which = count > 1 ? arguments[1] : "all";
    if (which != "steps") check_parts();
    Runner runner(3);
    {
        const RandomModel small(32, 64, 2, 1, 16, 50, 8192, 0);  // grouped, and a vocabulary that fills no tile
        check_steps(small, {300, 1, 40}, runner, "a small model");
        if (which == "long") check_steps(small, {5000, 3}, runner, "5000 tokens");
    }
    const RandomModel wide(96, 128, 20, 1, 32, 131, 1024, 77);  // more heads in a group than are attended for at once
    check_steps(wide, {270, 5, 33, 1, 1, 1, 1, 90}, runner, "a model with a group of 20 and a window");
    check_steps(wide, {270, 5, 1, 1, 33, 1, 1, 90}, runner, "adapters, and none among them", true);
    const RandomModel bytes(96, 64, 6, 2, 80, 33, 1024, 77, PageKind::INT8);  // keys of two and a half groups of 32
    check_steps(bytes, {400, 5, 33, 1, 1, 90}, runner, "a model with pages of 8 bits");
    for (int group = 1; group <= 2 * MOST_QUERIES; ++group) {  // rows are attended for in every number that there is
        const PageKind kind = group % 2 ? PageKind::BFLOAT16 : PageKind::INT8;
        const RandomModel grouped(32, 32, group, 1, 32, 17 + group, 64, 9, kind);
        check_steps(grouped, {20, 3}, runner, "a model with a group of " + std::to_string(group));
    }
    const RandomModel again(64, 96, 6, 3, 32, 16, 1024, 0);  // takes turns with others in one Space
    check_steps(again, {20, 600}, runner, "a third model");
    check_short_memory(runner);
    check_steps(again, {33, 2}, runner, "after memory was short");
    check_steps(again, {1, 70, 3}, runner, "adapters of a third model", true);
    std::printf(failures ? "%d failures\n" : "all right\n", failures);
    return failures ? 1 : 0;
}
