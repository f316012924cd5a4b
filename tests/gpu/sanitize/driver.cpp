// Runs a named list of small linears, MLPs and attentions through the C API, for compute-sanitizer, which slows a program 10 to 100
// times: no torch, no Python, nothing but the kernels. The list reaches every kernel that the C API can pick
// on the GPU at hand; sanitize.sh checks that.
//
//   driver [part of a case's name ...]    all cases without arguments
//
// Each case runs twice on fresh, uninitialized y and workspace (initcheck sees what is read unwritten, also
// by the copy of y back), the second time on another stream; both results must be finite and equal.
#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "svdq/contract.h"
#include "svdq/svdq.h"

namespace {

struct Case {
    const char* name;
    int32_t format, activation, act_unsigned;
    int32_t m, n, k, r;
};

// svdq_mlp(): K -> hidden -> N.
struct MlpCase {
    const char* name;
    int32_t format, activation, act_unsigned;  // of fc1
    int32_t m, k, hidden, n, r1, r2;
};

constexpr int32_t kInt4 = SVDQ_FORMAT_INT4, kW4A8 = SVDQ_FORMAT_W4A8, kNvfp4 = SVDQ_FORMAT_NVFP4,
                  kW4A16 = SVDQ_FORMAT_W4A16;

// Every case runs in f16 and in bf16. Large tiles need about 130 of them before they are chosen.
constexpr Case kCases[] = {
    {"int4-few", kInt4, SVDQ_ACT_NONE, 0, 17, 72, 192, 32},
    {"int4-medium", kInt4, SVDQ_ACT_GEGLU, 0, 70, 144, 128, 16},
    {"int4-large", kInt4, SVDQ_ACT_NONE, 0, 1001, 1080, 64, 16},
    {"int4-rows32", kInt4, SVDQ_ACT_NONE, 0, 4099, 72, 128, 16},
    {"int4-medium-swiglu", kInt4, SVDQ_ACT_SWIGLU, 0, 70, 144, 128, 16},
    {"int4-split", kInt4, SVDQ_ACT_GEGLU, 0, 70, 144, 576, 48},
    {"int4-rank", kInt4, SVDQ_ACT_SILU, 0, 33, 72, 128, 96},
    {"int4u-few", kInt4, SVDQ_ACT_NONE, 1, 17, 72, 192, 0},
    {"int4u-medium", kInt4, SVDQ_ACT_GELU, 1, 70, 144, 128, 16},
    {"int4u-large", kInt4, SVDQ_ACT_NONE, 1, 1001, 1080, 64, 0},
    {"nvfp4-few", kNvfp4, SVDQ_ACT_NONE, 0, 17, 72, 192, 32},
    {"nvfp4-medium", kNvfp4, SVDQ_ACT_GEGLU, 0, 70, 144, 128, 16},
    {"nvfp4-medium-swiglu", kNvfp4, SVDQ_ACT_SWIGLU, 0, 70, 144, 128, 16},
    {"nvfp4-large", kNvfp4, SVDQ_ACT_NONE, 0, 1001, 1080, 64, 16},
    {"nvfp4-rows32", kNvfp4, SVDQ_ACT_NONE, 0, 4099, 72, 128, 16},
    {"nvfp4-rank", kNvfp4, SVDQ_ACT_GELU_TANH, 0, 33, 72, 128, 96},
    {"w4a16-few", kW4A16, SVDQ_ACT_NONE, 0, 17, 72, 192, 32},
    {"w4a16-medium", kW4A16, SVDQ_ACT_GEGLU, 0, 77, 144, 128, 16},
    {"w4a16-medium-swiglu", kW4A16, SVDQ_ACT_SWIGLU, 0, 77, 144, 128, 16},
    {"w4a16-large", kW4A16, SVDQ_ACT_NONE, 0, 1001, 1080, 64, 16},
    {"w4a16-rows32", kW4A16, SVDQ_ACT_NONE, 0, 4099, 72, 128, 16},
    {"w4a16-split", kW4A16, SVDQ_ACT_NONE, 0, 77, 136, 1024, 16},
    {"w4a16-split-few", kW4A16, SVDQ_ACT_SILU, 0, 19, 72, 512, 16},
    {"w4a16-rank", kW4A16, SVDQ_ACT_SILU, 0, 33, 72, 128, 96},
    {"gemv-1", kW4A16, SVDQ_ACT_SILU, 0, 1, 72, 320, 32},
    {"gemv-8-geglu", kW4A16, SVDQ_ACT_GEGLU, 0, 8, 144, 192, 0},
    {"gemv-8-swiglu", kW4A16, SVDQ_ACT_SWIGLU, 0, 8, 144, 192, 0},
    {"gemv-16", kW4A16, SVDQ_ACT_NONE, 0, 16, 72, 1088, 16},
    {"gemv-9-geglu", kW4A16, SVDQ_ACT_GEGLU, 0, 9, 144, 1088, 32},
    {"gemv-1-rows", kW4A16, SVDQ_ACT_NONE, 0, 1, 6168, 192, 32},
    {"gemv-3-rows-geglu", kW4A16, SVDQ_ACT_GEGLU, 0, 3, 6160, 128, 16},
    {"gemv-8-all-rows", kW4A16, SVDQ_ACT_NONE, 0, 8, 12296, 192, 32},
    {"gemv-1-all-rows-geglu", kW4A16, SVDQ_ACT_GEGLU, 0, 1, 12304, 128, 16},
    {"gemv-1-even", kW4A16, SVDQ_ACT_NONE, 0, 1, 12296, 192, 32},
    {"gemv-8-even-geglu", kW4A16, SVDQ_ACT_GEGLU, 0, 8, 12304, 192, 32},
    {"gemv-1-64-rows", kW4A16, SVDQ_ACT_NONE, 0, 1, 12680, 192, 32},
    {"gemv-8-64-rows-geglu", kW4A16, SVDQ_ACT_GEGLU, 0, 8, 12688, 192, 32},
    {"gemv-16-64-rows", kW4A16, SVDQ_ACT_NONE, 0, 16, 6344, 192, 32},
    {"gemv-9-64-rows-geglu", kW4A16, SVDQ_ACT_GEGLU, 0, 9, 6352, 192, 32},
    {"gemv-16-rows", kW4A16, SVDQ_ACT_GELU, 0, 13, 6168, 1088, 112},
    {"gemv-16-rows-geglu", kW4A16, SVDQ_ACT_GEGLU, 0, 16, 6160, 192, 16},
    // svdq_linear_portable(): also where wgmma exists.
    {"portable-w4a8-few", kW4A8, SVDQ_ACT_NONE, 0, 17, 72, 192, 32},
    {"portable-w4a8-medium", kW4A8, SVDQ_ACT_GEGLU, 0, 70, 144, 128, 16},
    {"portable-w4a8-medium-swiglu", kW4A8, SVDQ_ACT_SWIGLU, 0, 70, 144, 128, 16},
    {"portable-w4a8-large", kW4A8, SVDQ_ACT_NONE, 0, 1001, 1080, 64, 16},
    {"portable-w4a8-rows32", kW4A8, SVDQ_ACT_NONE, 0, 4099, 72, 128, 16},
    {"portable-w4a8-rank", kW4A8, SVDQ_ACT_SILU, 0, 33, 72, 128, 96},
    // Below: wgmma on sm_90, portable elsewhere. The streaming quantizer and the general one, every tile.
    {"w4a8-tiny", kW4A8, SVDQ_ACT_NONE, 0, 1, 72, 64, 0},
    {"w4a8-64", kW4A8, SVDQ_ACT_GELU, 0, 50, 72, 192, 32},
    {"w4a8-64-geglu", kW4A8, SVDQ_ACT_GEGLU, 0, 130, 272, 320, 16},
    {"w4a8-64-swiglu", kW4A8, SVDQ_ACT_SWIGLU, 0, 130, 272, 320, 16},
    {"w4a8-128", kW4A8, SVDQ_ACT_NONE, 0, 1300, 776, 128, 32},
    {"w4a8-128-unary", kW4A8, SVDQ_ACT_SILU, 0, 1300, 776, 128, 32},
    {"w4a8-128-geglu", kW4A8, SVDQ_ACT_GEGLU, 0, 1300, 784, 128, 32},
    {"w4a8-128-swiglu", kW4A8, SVDQ_ACT_SWIGLU, 0, 1300, 784, 128, 32},
    {"w4a8-160", kW4A8, SVDQ_ACT_NONE, 0, 1300, 1544, 128, 32},
    {"w4a8-160-unary", kW4A8, SVDQ_ACT_GELU_TANH, 0, 1300, 1544, 128, 32},
    {"w4a8-160-geglu", kW4A8, SVDQ_ACT_GEGLU, 0, 1300, 1552, 128, 32},
    {"w4a8-160-swiglu", kW4A8, SVDQ_ACT_SWIGLU, 0, 1300, 1552, 128, 32},
    {"w4a8-256", kW4A8, SVDQ_ACT_NONE, 0, 1300, 2056, 128, 32},
    {"w4a8-256-unary", kW4A8, SVDQ_ACT_GELU, 0, 1300, 2056, 128, 32},
    {"w4a8-256-geglu", kW4A8, SVDQ_ACT_GEGLU, 0, 1300, 2064, 128, 32},
    {"w4a8-256-swiglu", kW4A8, SVDQ_ACT_SWIGLU, 0, 1300, 2064, 128, 32},
    {"w4a8-192", kW4A8, SVDQ_ACT_NONE, 0, 1300, 3080, 128, 32},
    {"w4a8-192-unary", kW4A8, SVDQ_ACT_GELU, 0, 1300, 3080, 128, 32},
    {"w4a8-192-geglu", kW4A8, SVDQ_ACT_GEGLU, 0, 1300, 3088, 128, 32},
    {"w4a8-192-swiglu", kW4A8, SVDQ_ACT_SWIGLU, 0, 1300, 3088, 128, 32},
    {"w4a8-sdxl", kW4A8, SVDQ_ACT_NONE, 0, 260, 136, 1280, 32},
    {"w4a8-flux", kW4A8, SVDQ_ACT_NONE, 0, 260, 136, 3072, 32},
    {"w4a8-long", kW4A8, SVDQ_ACT_NONE, 0, 70, 136, 12288, 32},
    {"w4a8-longest", kW4A8, SVDQ_ACT_NONE, 0, 70, 136, 15360, 32},
    {"w4a8-rank64", kW4A8, SVDQ_ACT_NONE, 0, 70, 136, 3072, 64},
    {"w4a8-rank128", kW4A8, SVDQ_ACT_NONE, 0, 70, 136, 3072, 128},
    {"w4a8-rank144", kW4A8, SVDQ_ACT_NONE, 0, 70, 136, 1024, 144},
};

// The chain; the kernel that quantizes the hidden, by its tiles; the sum of its parts.
constexpr MlpCase kMlpCases[] = {
    {"mlp-int4-chain", kInt4, SVDQ_ACT_GEGLU, 0, 19, 128, 128, 72, 16, 32},
    {"mlp-int4-medium", kInt4, SVDQ_ACT_GELU_TANH, 0, 77, 192, 192, 72, 16, 32},
    {"mlp-int4-large", kInt4, SVDQ_ACT_GELU, 0, 2050, 64, 192, 72, 16, 32},
    {"mlp-int4-large-geglu", kInt4, SVDQ_ACT_GEGLU, 0, 2050, 64, 128, 72, 0, 16},
    {"mlp-int4-large-swiglu", kInt4, SVDQ_ACT_SWIGLU, 0, 2050, 64, 128, 72, 0, 16},
    {"mlp-int4u-medium", kInt4, SVDQ_ACT_GELU, 1, 77, 128, 128, 72, 16, 16},
    {"mlp-int4u-large", kInt4, SVDQ_ACT_GELU, 1, 2050, 64, 64, 72, 16, 0},
    {"mlp-nvfp4-medium", kNvfp4, SVDQ_ACT_GELU, 0, 77, 192, 192, 72, 16, 32},
    {"mlp-nvfp4-large", kNvfp4, SVDQ_ACT_GELU_TANH, 0, 2050, 64, 192, 72, 16, 32},
    {"mlp-nvfp4-large-geglu", kNvfp4, SVDQ_ACT_GEGLU, 0, 2050, 64, 128, 72, 0, 16},
    {"mlp-nvfp4-large-swiglu", kNvfp4, SVDQ_ACT_SWIGLU, 0, 2050, 64, 128, 72, 0, 16},
    {"mlp-int4-split", kInt4, SVDQ_ACT_GELU, 0, 70, 128, 1024, 72, 16, 16},
};

// svdq_attention(), or svdq_attention_portable(). `second`: tokens of a second stream; of each that of queries and keys.
struct AttentionCase {
    const char* name;
    int32_t q_tokens, kv_tokens, second, heads, kv_heads, head_size;
    bool prepared, bias;  // norms and rotation; a bias on the logits
};

// Every tile that is chosen on 132 multiprocessors, with a bias and without; preparation by its lanes per head.
constexpr AttentionCase kAttentionCases[] = {
    {"portable-attention-8", 150, 70, 0, 2, 1, 8, false, false},
    {"portable-attention-32", 50, 130, 0, 2, 2, 32, false, true},
    {"portable-attention-64", 150, 77, 0, 3, 1, 64, false, false},
    {"portable-attention-64-bias", 50, 200, 0, 2, 2, 64, false, true},
    {"portable-attention-72", 150, 77, 0, 2, 2, 72, false, false},
    {"portable-attention-72-bias", 50, 200, 0, 2, 2, 72, false, true},
    {"portable-attention-104-joint", 70, 70, 7, 2, 1, 104, true, false},
    {"portable-attention-128", 150, 77, 0, 2, 2, 128, false, false},
    {"portable-attention-128-bias", 50, 200, 0, 2, 2, 128, false, true},
    // Below: sm_90's own there.
    {"attention-64-joint", 70, 70, 7, 3, 1, 64, true, false},
    {"attention-72-prepared", 150, 150, 0, 3, 1, 72, true, false},
    {"attention-64-2x160", 100, 150, 0, 2, 2, 64, false, false},
    {"attention-64-2x160-bias", 100, 150, 0, 2, 2, 64, false, true},
    {"attention-64-2x128", 100, 128, 0, 2, 2, 64, false, false},
    {"attention-64-2x128-bias", 100, 128, 0, 2, 2, 64, false, true},
    {"attention-64-3x80", 2112, 77, 0, 12, 12, 64, false, false},
    {"attention-64-3x80-bias", 2112, 77, 0, 12, 12, 64, false, true},
    {"attention-64-3x128", 2112, 128, 0, 12, 12, 64, false, false},
    {"attention-64-3x128-bias", 2112, 128, 0, 12, 12, 64, false, true},
    {"attention-72-2x160", 100, 150, 0, 2, 2, 72, false, false},
    {"attention-72-2x160-bias", 100, 150, 0, 2, 2, 72, false, true},
    {"attention-72-2x128", 100, 128, 0, 2, 2, 72, false, false},
    {"attention-72-2x128-bias", 100, 128, 0, 2, 2, 72, false, true},
    {"attention-72-3x80", 2112, 77, 0, 12, 12, 72, false, false},
    {"attention-72-3x80-bias", 2112, 77, 0, 12, 12, 72, false, true},
    {"attention-72-3x128", 2112, 128, 0, 12, 12, 72, false, false},
    {"attention-72-3x128-bias", 2112, 128, 0, 12, 12, 72, false, true},
    {"attention-128", 200, 300, 0, 2, 1, 128, false, false},
    {"attention-128-bias", 200, 300, 0, 2, 1, 128, false, true},
};

int32_t rows_per_feature(int32_t activation) { return svdq::contract::kActivations[activation].rows_per_feature; }

#define CUDA_OK(call) \
    do { \
        const cudaError_t e_ = (call); \
        if (e_ != cudaSuccess) { \
            std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, cudaGetErrorString(e_)); \
            std::exit(2); \
        } \
    } while (0)

uint32_t random_state = 1;
uint32_t random_word() {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    return random_state ^= random_state << 5;
}

// 16-bit floats of magnitude 2^exponent .. 2^(exponent + 1), of both signs unless `positive`.
uint16_t random_float(bool bf16, int exponent, bool positive) {
    const uint32_t r = random_word() >> 8;
    const uint32_t sign = positive ? 0 : r & 0x8000u;
    return static_cast<uint16_t>(bf16 ? sign | static_cast<uint32_t>(127 + exponent) << 7 | (r & 0x7fu)
                                      : sign | static_cast<uint32_t>(15 + exponent) << 10 | (r & 0x3ffu));
}

// Device memory of exactly the operand's size, so that memcheck sees the first byte past it.
struct Buffer {
    void* p = nullptr;
    explicit Buffer(size_t bytes) { CUDA_OK(cudaMalloc(&p, bytes ? bytes : 16)); }
    ~Buffer() { cudaFree(p); }
    Buffer(const Buffer&) = delete;
};

template <class T, class Make>
Buffer* upload(size_t count, Make make) {
    constexpr size_t kPeriod = 65521;  // a prime: repeats at another place of every row
    std::vector<T> host(count);
    for (size_t i = 0; i < count; ++i) host[i] = i < kPeriod ? make() : host[i - kPeriod];
    Buffer* b = new Buffer(count * sizeof(T));
    if (count) CUDA_OK(cudaMemcpy(b->p, host.data(), count * sizeof(T), cudaMemcpyHostToDevice));
    return b;
}

bool is_finite(uint16_t v, bool bf16) { return bf16 ? (v & 0x7f80) != 0x7f80 : (v & 0x7c00) != 0x7c00; }

// A linear's operands on the device, while it lives.
class Operands {
public:
    Operands() = default;
    Operands(const Operands&) = delete;
    ~Operands() {
        for (Buffer* b : held_) delete b;
    }

    // All but y and the workspace.
    svdq_linear_params make(const Case& c, bool bf16) {
        const size_t m = c.m, n = c.n, k = c.k, r = c.r;
        const auto floats = [&](size_t count, int exponent, bool positive = false) {
            return random_floats(count, bf16, exponent, positive);
        };
        svdq_linear_params p = {};
        p.format = c.format, p.activation = c.activation, p.dtype = bf16 ? SVDQ_BF16 : SVDQ_F16;
        p.act_unsigned = c.act_unsigned, p.act_shift = c.act_unsigned ? 0.17f : 0.f;
        p.m = c.m, p.n = c.n, p.k = c.k, p.r = c.r;
        p.x = floats(m * k, 0);
        p.qweight = hold(upload<uint8_t>(n * k / 2, [] {  // codes -7..7; e2m1 has no code to avoid
            const auto code = [] { return (random_word() % 15u - 7u) & 15u; };
            return static_cast<uint8_t>(code() | code() << 4);
        }));
        const size_t scales = k / 64 * n;
        if (c.format == kW4A8)
            p.wscale = hold(upload<uint8_t>(scales, [] { return uint8_t(1 + random_word() % 18); }));
        else if (c.format == kNvfp4)
            p.wscale = hold(upload<uint8_t>(4 * scales, [] { return uint8_t(0x28 + random_word() % 16); }));
        else
            p.wscale = floats(scales, -6, true);
        p.act_mul = floats(k, 0, true);
        p.lora_down = floats(r * k, -6);
        p.lora_up = floats(n * r, -3);
        p.bias = floats(n, 0);
        p.wscale2 = hold(upload<float>(n, [] { return 1e-3f; }));
        return p;
    }

    const void* random_floats(size_t count, bool bf16, int exponent, bool positive) {
        return hold(upload<uint16_t>(count, [&] { return random_float(bf16, exponent, positive); }));
    }
    const float* angles(size_t count) {  // as good as cosines and sines
        return static_cast<const float*>(hold(upload<float>(count, [] { return random_word() % 1000 * 1e-3f; })));
    }

private:
    const void* hold(Buffer* b) { return held_.push_back(b), b->p; }
    std::vector<Buffer*> held_;
};

// Calls launch(workspace, y, stream) twice. "" or what is wrong.
template <class Launch>
std::string run_twice(size_t workspace_bytes, size_t outputs, bool bf16, Launch launch) {
    std::vector<uint16_t> results[2];
    std::string problem;
    for (int i = 0; i < 2 && problem.empty(); ++i) {
        Buffer workspace(workspace_bytes), y(outputs * 2);
        cudaStream_t stream = nullptr;
        if (i == 1) CUDA_OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
        const svdq_status status = launch(workspace.p, y.p, stream);
        CUDA_OK(cudaDeviceSynchronize());
        if (status != SVDQ_OK) problem = svdq_status_string(status);
        results[i].resize(outputs);
        CUDA_OK(cudaMemcpy(results[i].data(), y.p, outputs * 2, cudaMemcpyDeviceToHost));
        if (stream != nullptr) CUDA_OK(cudaStreamDestroy(stream));
    }
    if (!problem.empty()) return problem;
    for (const uint16_t v : results[0])
        if (!is_finite(v, bf16)) return "y is not finite";
    return results[0] == results[1] ? "" : "the second run differs";
}

std::string run_case(const Case& c, bool bf16) {
    Operands operands;
    svdq_linear_params p = operands.make(c, bf16);
    if (svdq_workspace_bytes(p.format, p.m, p.n, p.k, p.r, &p.workspace_bytes) != SVDQ_OK) return "workspace refused";
    const bool portable = std::strncmp(c.name, "portable", 8) == 0;
    const size_t outputs = size_t(c.m) * c.n / rows_per_feature(c.activation);
    return run_twice(p.workspace_bytes, outputs, bf16, [&](void* workspace, void* y, cudaStream_t stream) {
        p.workspace = workspace, p.y = y;
        return portable ? svdq_linear_portable(&p, stream) : svdq_linear(&p, stream);
    });
}

std::string run_case(const MlpCase& c, bool bf16) {
    Operands operands;
    const int32_t n1 = c.hidden * rows_per_feature(c.activation);
    svdq_mlp_params p = {};
    p.fc1 = operands.make({c.name, c.format, c.activation, c.act_unsigned, c.m, n1, c.k, c.r1}, bf16);
    p.fc2 = operands.make({c.name, c.format, SVDQ_ACT_NONE, 0, c.m, c.n, c.hidden, c.r2}, bf16);
    p.fc2.x = nullptr;
    if (svdq_mlp_workspace_bytes(&p, &p.workspace_bytes) != SVDQ_OK) return "workspace refused";
    const size_t outputs = size_t(c.m) * c.n;
    return run_twice(p.workspace_bytes, outputs, bf16, [&](void* workspace, void* y, cudaStream_t stream) {
        p.workspace = workspace, p.fc2.y = y;
        return svdq_mlp(&p, stream);
    });
}

std::string run_case(const AttentionCase& c, bool bf16) {
    constexpr int32_t kBatch = 2;
    Operands operands;
    const auto floats = [&](size_t count) { return operands.random_floats(count, bf16, 0, false); };
    svdq_attention_params p = {};
    p.dtype = bf16 ? SVDQ_BF16 : SVDQ_F16, p.batch = kBatch;
    p.heads = c.heads, p.kv_heads = c.kv_heads, p.head_size = c.head_size, p.num_streams = c.second > 0 ? 2 : 1;
    const int64_t q_width = int64_t{c.heads} * c.head_size, kv_width = int64_t{c.kv_heads} * c.head_size;
    size_t outputs[2] = {};
    for (int i = 0; i < p.num_streams; ++i) {
        svdq_attention_stream& s = p.streams[i];
        s.q_tokens = i == 0 ? c.q_tokens : c.second, s.kv_tokens = i == 0 ? c.kv_tokens : c.second;
        s.q_stride = q_width, s.kv_stride = kv_width;
        outputs[i] = size_t(kBatch) * s.q_tokens * q_width;
        s.q = floats(outputs[i]);
        s.k = floats(size_t(kBatch) * s.kv_tokens * kv_width), s.v = floats(size_t(kBatch) * s.kv_tokens * kv_width);
        if (c.prepared) s.q_norm = floats(c.head_size), s.k_norm = floats(c.head_size);
    }
    const size_t turned = size_t(c.q_tokens + c.second) * c.head_size;
    if (c.prepared) p.cos = operands.angles(turned), p.sin = operands.angles(turned);
    if (c.bias) p.bias = floats(size_t(kBatch) * c.kv_tokens);
    p.scale = 1.f / std::sqrt(static_cast<float>(c.head_size)), p.eps = 1e-6f;
    if (svdq_attention_workspace_bytes(&p, &p.workspace_bytes) != SVDQ_OK) return "workspace refused";
    const bool portable = std::strncmp(c.name, "portable", 8) == 0;
    return run_twice(p.workspace_bytes, outputs[0] + outputs[1], bf16,
                     [&](void* workspace, void* y, cudaStream_t stream) {
                         p.workspace = workspace, p.streams[0].y = y;
                         p.streams[1].y = static_cast<uint16_t*>(y) + outputs[0];
                         return portable ? svdq_attention_portable(&p, stream) : svdq_attention(&p, stream);
                     });
}

// Runs those of `cases` that the command line names, all without arguments.
template <class Cases>
void run_all(const Cases& cases, int argc, char** argv, int* run, int* failed) {
    for (const auto& c : cases) {
        bool wanted = argc == 1;
        for (int i = 1; i < argc; ++i) wanted = wanted || std::strstr(c.name, argv[i]) != nullptr;
        if (!wanted) continue;
        for (const bool bf16 : {false, true}) {
            const std::string problem = run_case(c, bf16);
            ++*run;
            if (problem.empty()) continue;
            ++*failed;
            std::printf("%s %s: %s\n", c.name, bf16 ? "bf16" : "f16", problem.c_str());
        }
    }
}

}  // namespace

int main(int argc, char** argv) {
    int run = 0, failed = 0;
    run_all(kCases, argc, argv, &run, &failed);
    run_all(kMlpCases, argc, argv, &run, &failed);
    run_all(kAttentionCases, argc, argv, &run, &failed);
    std::printf("%d cases, %d failed\n", run, failed);
    return failed == 0 && run > 0 ? 0 : 1;
}
