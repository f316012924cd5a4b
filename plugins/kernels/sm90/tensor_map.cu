#include "tensor_map.h"

namespace svdq::sm90 {
namespace {

using EncodeFn = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                              const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                              CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

cudaError_t encoder(EncodeFn* fn) {
    void* symbol = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    const cudaError_t e =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &symbol, 12000, cudaEnableDefault, &found);
    if (e != cudaSuccess) return e;
    if (found != cudaDriverEntryPointSuccess || !symbol) return cudaErrorNotSupported;
    *fn = reinterpret_cast<EncodeFn>(symbol);
    return cudaSuccess;
}

cudaError_t encode_one(EncodeFn fn, CUtensorMap* map, const MatrixMap& m) {
    const cuuint64_t dims[2] = {static_cast<cuuint64_t>(m.cols), static_cast<cuuint64_t>(m.rows)};
    const cuuint64_t strides[1] = {static_cast<cuuint64_t>(m.row_bytes)};
    const cuuint32_t box[2] = {static_cast<cuuint32_t>(m.box_cols), static_cast<cuuint32_t>(m.box_rows)};
    const cuuint32_t steps[2] = {1, 1};
    // Elements are only moved, never converted: the integer type of their size serves all.
    const auto type = m.elem_bytes == 1   ? CU_TENSOR_MAP_DATA_TYPE_UINT8
                      : m.elem_bytes == 2 ? CU_TENSOR_MAP_DATA_TYPE_UINT16
                                          : CU_TENSOR_MAP_DATA_TYPE_UINT32;
    const CUresult r =
        fn(map, type, 2, const_cast<void*>(m.base), dims, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, m.swizzle,
           CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return r == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t encode_one(EncodeFn fn, CUtensorMap* map, const HeadMap& m) {
    const cuuint64_t dims[4] = {static_cast<cuuint64_t>(m.head_size), static_cast<cuuint64_t>(m.heads),
                                static_cast<cuuint64_t>(m.tokens), static_cast<cuuint64_t>(m.batch)};
    const cuuint64_t token_bytes = 2 * static_cast<cuuint64_t>(m.token_stride);
    const cuuint64_t strides[3] = {2 * dims[0], token_bytes, token_bytes * dims[2]};
    const cuuint32_t box[4] = {static_cast<cuuint32_t>(m.box_cols), 1, static_cast<cuuint32_t>(m.box_tokens), 1};
    const cuuint32_t steps[4] = {1, 1, 1, 1};
    const CUresult r = fn(map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 4, const_cast<void*>(m.base), dims, strides, box, steps,
                          CU_TENSOR_MAP_INTERLEAVE_NONE, m.swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                          CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return r == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace

cudaError_t encode(std::initializer_list<std::pair<CUtensorMap*, MatrixMap>> maps) {
    EncodeFn fn = nullptr;
    if (const cudaError_t e = encoder(&fn); e != cudaSuccess) return e;
    for (const auto& [map, matrix] : maps)
        if (const cudaError_t e = encode_one(fn, map, matrix); e != cudaSuccess) return e;
    return cudaSuccess;
}

cudaError_t encode_heads(CUtensorMap* map, const HeadMap& heads) {
    EncodeFn fn = nullptr;
    const cudaError_t e = encoder(&fn);
    return e == cudaSuccess ? encode_one(fn, map, heads) : e;
}

}  // namespace svdq::sm90
