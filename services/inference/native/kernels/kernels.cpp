// The library's plain C interface; `library.py` beside this folder declares the same to Python.
//
// Nothing here keeps a pointer beyond a call, except a Team its threads and a Space its block.
#include <new>

#include "pack.h"
#include "step.h"

#ifndef MK_SOURCES
#define MK_SOURCES ""
#endif

using namespace mk;

namespace {

constexpr int32_t INTERFACE = 2;  // counted up when a call or a struct changes

// Bytes of a packed matrix: what its quants, its scales and its minima take.
void sizes_of(Kind kind, int64_t rows, int64_t columns, int64_t* out) {
    const int64_t tiles = (rows + LANES - 1) / LANES, groups = columns / 32;
    out[0] = out[1] = out[2] = 0;
    if (kind == Kind::BFLOAT16) {
        out[0] = tiles * LANES * columns * 2;
        return;
    }
    with_format(kind, [&](auto format) {
        using Format = decltype(format);
        out[0] = tiles * groups * Format::BYTES;
        out[1] = tiles * groups * Format::SCALES * LANES * 2;
        out[2] = Format::MINIMUM ? tiles * groups * LANES * 2 : 0;
    });
}

// One row of a matrix's tile. `rows` outside of the matrix are never asked for: their tile stays zero.
template <class Format>
void pack_row(Source source, const uint8_t* row, int lane, int columns, uint8_t* quants, uint16_t* scales, uint16_t* minima) {
    for (int index = 0; index < columns / 32; ++index) {
        const Group group = read_group(source, row, index);
        for (int i = 0; i < 32; ++i) Format::put(quants + static_cast<size_t>(index) * Format::BYTES, lane, i, group.quants[i]);
        for (int s = 0; s < Format::SCALES; ++s) scales[(index * Format::SCALES + s) * LANES + lane] = to_half(group.scale[s]);
        if constexpr (Format::MINIMUM) minima[index * LANES + lane] = to_half(group.minimum);
    }
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

int32_t mk_interface() { return INTERFACE; }

// The mark of the sources that this was built from; `recipe.py` looks for it in the file.
const char* mk_sources() { return MK_SOURCES; }

// Sizes of the structs that Python lays out, for it to compare with its own.
void mk_structs(int64_t* out) {
    out[0] = sizeof(Matrix), out[1] = sizeof(Layer), out[2] = sizeof(Model), out[3] = sizeof(Sequence), out[4] = sizeof(Batch);
}

void mk_sizes(int32_t kind, int64_t rows, int64_t columns, int64_t* out) {
    sizes_of(static_cast<Kind>(kind), rows, columns, out);
}

// Pack `rows` rows of `columns` weights, `stride` bytes apart from `from` on, as the rows of a packed matrix from
// `first` on. The target must have been zero; rows of one tile are packed by one thread.
void mk_pack(int32_t kind, int32_t source, const uint8_t* from, int64_t stride, int32_t first, int32_t rows, int32_t columns,
             uint8_t* quants, uint16_t* scales, uint16_t* minima) {
    const auto kind_ = static_cast<Kind>(kind);
    const auto source_ = static_cast<Source>(source);
    for (int32_t i = 0; i < rows; ++i) {
        const uint8_t* row = from + i * stride;
        const int64_t tile = (first + i) / LANES, lane = (first + i) % LANES;
        if (kind_ == Kind::BFLOAT16) {
            auto* pairs = reinterpret_cast<uint16_t*>(quants) + tile * LANES * columns + 2 * lane;
            for (int c = 0; c < columns; ++c) {
                uint16_t rounded[LANES];
                store_bfloat16(rounded, spread(read_float(source_, row, c)));
                pairs[c / 2 * 2 * LANES + c % 2] = rounded[0];
            }
            continue;
        }
        with_format(kind_, [&](auto format) {
            using Format = decltype(format);
            const int64_t groups = columns / 32, start = tile * groups;
            pack_row<Format>(source_, row, static_cast<int>(lane), columns, quants + start * Format::BYTES,
                             scales + start * Format::SCALES * LANES, minima + start * LANES);
        });
    }
}

Team* mk_team_new(int32_t threads) {
    try {
        return new Team(threads);
    } catch (...) {  // no thread to be had: the caller says so
        return nullptr;
    }
}
void mk_team_free(Team* team) { delete team; }

Space* mk_space_new() { return new (std::nothrow) Space(); }
void mk_space_free(Space* space) { delete space; }

// Returns 0, or 1 where memory was short: nothing was computed then.
int32_t mk_step(const Model* model, Team* team, Space* space, const Batch* batch) {
    try {
        space->reserve(*model, batch->tokens, team->size());
        Step step(*model, *team, *space, *batch);
        team->run(batch->threads, step);
        return 0;
    } catch (...) {  // std::bad_alloc, or a length that no vector has
        return 1;
    }
}

}  // extern "C"
#pragma GCC visibility pop
