// The sizes of heads that are compiled, for one dtype.
#pragma once

#include <iterator>

#include "portable.cuh"

namespace svdq::portable {

template <class Tile, class T>
constexpr AttentionRow row_of() {
    return {Tile::kD,
            Tile::kQueries,
            Tile::kThreads,
            Tile::kSharedBytes,
            attention_kernel<Tile, T, false>,
            attention_kernel<Tile, T, true>};
}

template <class T>
AttentionTable attention_table() {
    static constexpr AttentionRow kRows[] = {
        row_of<HeadTile<32, 64, 3>, T>(),
        row_of<HeadTile<64, 64, 3>, T>(),
        row_of<HeadTile<72, 64, 3>, T>(),
        row_of<HeadTile<128, 32, 2>, T>(),
    };
    return {std::begin(kRows), std::end(kRows)};
}

}  // namespace svdq::portable
