// The tiles that are compiled, for one dtype. `cost` is measured: benchmarks/LOG.md.
#pragma once

#include <iterator>

#include "attention.cuh"
#include "attention_kernels.h"

namespace svdq::sm90 {

template <class Tile, class T>
constexpr AttentionRow row_of(float cost) {
    return {Tile::kD,
            Tile::kWgs,
            Tile::kKeys,
            Tile::kSmem,
            cost,
            attention_kernel<Tile, T, false>,
            attention_kernel<Tile, T, true>};
}

template <class T>
AttentionTable attention_table() {
    static constexpr AttentionRow kRows[] = {
        row_of<AttentionTile<64, 3, 128>, T>(1.f),  row_of<AttentionTile<64, 2, 128>, T>(1.13f),
        row_of<AttentionTile<64, 3, 80>, T>(1.05f), row_of<AttentionTile<64, 2, 160>, T>(1.13f),
        row_of<AttentionTile<72, 3, 128>, T>(1.f),  row_of<AttentionTile<72, 2, 128>, T>(1.13f),
        row_of<AttentionTile<72, 3, 80>, T>(1.05f), row_of<AttentionTile<72, 2, 160>, T>(1.13f),
        row_of<AttentionTile<128, 2, 128>, T>(1.f),
    };
    return {std::begin(kRows), std::end(kRows)};
}

}  // namespace svdq::sm90
