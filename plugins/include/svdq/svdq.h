// The C API of the kernels: one struct per linear, one launcher per op. No TensorRT, no torch, no Python.
//
//   y = act( Q(x^)·Q(W)^T + (x·lora_down^T)·lora_up^T + bias ),   x^ = round((x + act_shift)·act_mul)
//
// Every function returns a status, checks every argument on the host, and never exits, aborts, throws,
// allocates device memory or synchronizes. Launches are asynchronous on `stream`, deterministic and
// CUDA-graph capturable. No global mutable state: any stream, any device, several at once.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define SVDQ_API __attribute__((visibility("default")))
#else
#define SVDQ_API
#endif

typedef enum {
    SVDQ_FORMAT_INT4 = 0,
    SVDQ_FORMAT_W4A8 = 1,
    SVDQ_FORMAT_NVFP4 = 2,
    SVDQ_FORMAT_W4A16 = 3,
} svdq_format;

typedef enum {
    SVDQ_ACT_NONE = 0,
    SVDQ_ACT_GELU = 1,  // exact (erf)
    SVDQ_ACT_GELU_TANH = 2,
    SVDQ_ACT_SILU = 3,
    // Gated: of n sums v, y = v[:, :n/2] * function(v[:, n/2:]); y has n/2 columns.
    SVDQ_ACT_GEGLU = 4,  // gelu
    SVDQ_ACT_SWIGLU = 5  // silu
} svdq_activation;

typedef enum { SVDQ_F16 = 0, SVDQ_BF16 = 1 } svdq_dtype;

typedef enum {
    SVDQ_OK = 0,
    SVDQ_BAD_ARGUMENT = 1,  // a null pointer, size or enum that cannot be
    SVDQ_UNSUPPORTED = 2,   // no kernel for this format on this device
    SVDQ_WORKSPACE = 3,     // workspace missing or too small
    SVDQ_CUDA = 4           // a CUDA call failed; svdq_last_cuda_error() of this thread tells which
} svdq_status;

// All pointers are device pointers, 16-byte aligned. m may be 0 (nothing is launched).
typedef struct {
    int32_t format;        // svdq_format
    int32_t activation;    // svdq_activation
    int32_t dtype;         // svdq_dtype of x, act_mul, lora_*, bias, y (and wscale of int4, w4a16)
    int32_t act_unsigned;  // int4 only: u4 codes
    float act_shift;
    int32_t m, n, k, r;     // n % 8 == 0 (gated: n % 16 == 0), k % 64 == 0, r % 16 == 0, r <= 1024
    const void* x;          // [m, k] dtype
    const void* qweight;    // [n, k/2] int8, low nibble = even k
    const void* wscale;     // [k/64, n] dtype | [k/64, n] int8 | [k/64, n, 4] e4m3
    const void* act_mul;    // [k] dtype
    const void* lora_down;  // [r, k] dtype
    const void* lora_up;    // [n, r] dtype
    const void* bias;       // [n] dtype
    const void* wscale2;    // [n] f32
    void* y;                // [m, n] dtype, or [m, n/2] if gated
    void* workspace;        // svdq_workspace_bytes() bytes, any content
    size_t workspace_bytes;
} svdq_linear_params;

// Bytes of workspace for sizes up to (m, n, k, r). Makes no CUDA call: usable where there is no GPU.
SVDQ_API svdq_status svdq_workspace_bytes(int32_t format, int32_t m, int32_t n, int32_t k, int32_t r, size_t* bytes);

// The whole linear: quantize (smoothing, codes, low-rank down), then gemm (product, low-rank up, bias, activation).
// `stream` is a cudaStream_t.
SVDQ_API svdq_status svdq_linear(const svdq_linear_params* p, void* stream);

// Its two halves, for tests and benchmarks: the first fills the workspace, the second reads it.
SVDQ_API svdq_status svdq_linear_quantize(const svdq_linear_params* p, void* stream);
SVDQ_API svdq_status svdq_linear_gemm(const svdq_linear_params* p, void* stream);

// svdq_linear() with the kernels that run on every supported GPU, also where this one has faster ones of its own:
// so that they can be tested there.
SVDQ_API svdq_status svdq_linear_portable(const svdq_linear_params* p, void* stream);

// Two linears with an activation between them, a transformer's feed-forward: y = fc2(act(fc1(x))), what svdq_linear()
// of one and then of the other gives. int4 and nvfp4. Where there are enough tokens the hidden act(fc1(x)) is quantized
// where it is made and never in memory as 16-bit numbers: its codes and scales are the same bit for bit, only the
// order in which fc2's t = h.lora_down^T is summed differs.
typedef struct {
    svdq_linear_params fc1;  // activation gelu, gelu_tanh, geglu or swiglu; y and the workspace are ignored
    svdq_linear_params
        fc2;          // activation none; format, dtype and m of fc1, k = columns of its y; x, workspace are ignored
    void* workspace;  // svdq_mlp_workspace_bytes() bytes, any content
    size_t workspace_bytes;
} svdq_mlp_params;

// Bytes of workspace for these sizes, and for the same with fewer tokens. Reads formats, activations and sizes only;
// makes no CUDA call.
SVDQ_API svdq_status svdq_mlp_workspace_bytes(const svdq_mlp_params* sizes, size_t* bytes);

SVDQ_API svdq_status svdq_mlp(const svdq_mlp_params* p, void* stream);

// Softmax attention: y = softmax(scale q^.k^^T + bias).v per head, q^ and k^ being q and k after a norm over the head and
// a rotation, where they have one:
//
//   q^ = round(rotate(q / sqrt(mean(q^2) + eps) * q_norm)),   rotate(a, b) = (a cos - b sin, b cos + a sin)
//
// in fp32, rounded once; so are logits, softmax and the sum, but for the weights, which may be rounded to dtype. A head
// of keys and values serves heads / kv_heads heads of queries.

// One part of the token sequence.
typedef struct {
    int32_t q_tokens, kv_tokens;
    const void* q;                // [batch, q_tokens, heads * head_size] dtype
    const void* k;                // [batch, kv_tokens, kv_heads * head_size] dtype
    const void* v;                // likewise
    int64_t q_stride, kv_stride;  // values between tokens, % 8 == 0; a batch follows the other: tokens * stride apart
    const void* q_norm;           // [head_size] dtype, or null for no norm, and then k_norm, too
    const void* k_norm;
    void* y;  // [batch, q_tokens, heads * head_size] dtype, without gaps
} svdq_attention_stream;

typedef struct {
    int32_t dtype;                              // svdq_dtype of all but cos and sin
    int32_t batch, heads, kv_heads, head_size;  // batch <= 65535; heads % kv_heads == 0; head_size % 8 == 0
    int32_t num_streams;                        // 1 or 2: the tokens of the second follow those of the first
    svdq_attention_stream streams[2];           // of two streams each has as many queries as keys
    const float* cos;  // [q_tokens of all streams, head_size], the value of a pair of features twice; or
    const float* sin;  // both null: no rotation. Then, too, a stream has as many queries as keys.
    const void* bias;  // [batch, kv_tokens] dtype, added to a key's logits; one stream; or null
    float scale, eps;
    void* workspace;  // svdq_attention_workspace_bytes() bytes, any content
    size_t workspace_bytes;
} svdq_attention_params;

// Bytes of workspace for these sizes, and for the same with a smaller batch or fewer tokens. Reads sizes, and which of
// q_norm and cos are null; makes no CUDA call. Never 0.
SVDQ_API svdq_status svdq_attention_workspace_bytes(const svdq_attention_params* sizes, size_t* bytes);

SVDQ_API svdq_status svdq_attention(const svdq_attention_params* p, void* stream);

// svdq_attention() with the kernel that runs on every supported GPU, also where this one has a faster one of its own:
// so that it can be tested there.
SVDQ_API svdq_status svdq_attention_portable(const svdq_attention_params* p, void* stream);

// 1 if there is an attention kernel for heads of this size compiled in for compute capability `sm`. No CUDA call.
SVDQ_API int32_t svdq_attention_supports(int32_t head_size, int32_t dtype, int32_t sm);

// 1 if a kernel for (format, dtype) is compiled in for compute capability `sm` (89, 90, ...). No CUDA call.
SVDQ_API int32_t svdq_supports(int32_t format, int32_t dtype, int32_t sm);

SVDQ_API const char* svdq_version(void);                 // "1.0.0"
SVDQ_API const char* svdq_status_string(svdq_status s);  // one sentence, static storage
SVDQ_API int32_t svdq_last_cuda_error(void);             // cudaError_t of the last SVDQ_CUDA on this thread

#ifdef __cplusplus
}
#endif
