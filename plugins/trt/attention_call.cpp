#include "attention.h"

namespace svdq::trt {
namespace {

namespace ca = contract::attention;

using Row = Attention::Row;
using Attributes = Attention::Attributes;
using Sizes = Attention::Sizes;

constexpr char kUseTensorRT[] = "Build the engine with --attention tensorrt.";

constexpr int64_t kItem = 2;  // bytes of a value of the act dtype

// The pointers of a call. Without one, a stand-in for each that the op has: a workspace depends on which there are.
struct Pointers {
    Row const& op;
    OpCall const* call;

    // An input, from its value number `first` on.
    void const* input(ca::Input input, int64_t first = 0) const {
        int32_t const i = op.position(input);
        if (i < 0) return nullptr;
        return call ? static_cast<char const*>(call->inputs[i]) + first * kItem : stand_in();
    }
    void* output(int32_t i) const { return call ? call->outputs[i] : stand_in(); }

private:
    static char* stand_in() {
        alignas(16) static char bytes[16];
        return bytes;
    }
};

// A stream whose q, k and v stand side by side.
svdq_attention_stream own_stream(Attributes const& a, Sizes const& s, Pointers const& p, ca::Input qkv,
                                 ca::Input q_norm, ca::Input k_norm, int64_t tokens, int32_t output) {
    svdq_attention_stream stream{};
    stream.q_tokens = stream.kv_tokens = static_cast<int32_t>(tokens);
    stream.q_stride = stream.kv_stride = s.head_size * (int64_t{a.heads} + 2 * int64_t{a.kv_heads});
    stream.q = p.input(qkv);
    stream.k = p.input(qkv, s.head_size * a.heads);
    stream.v = p.input(qkv, s.head_size * (int64_t{a.heads} + a.kv_heads));
    stream.q_norm = p.input(q_norm);
    stream.k_norm = p.input(k_norm);
    stream.y = p.output(output);
    return stream;
}

svdq_attention_stream cross_stream(Attributes const& a, Sizes const& s, Pointers const& p) {
    int64_t const row = s.head_size * a.kv_heads;
    svdq_attention_stream stream{};
    stream.q_tokens = static_cast<int32_t>(s.tokens);
    stream.kv_tokens = static_cast<int32_t>(s.text);
    stream.q_stride = s.head_size * a.heads;
    stream.kv_stride = s.kv_width;
    stream.q = p.input(ca::kQ);
    stream.k = p.input(ca::kKv, 2 * row * a.kv_part);
    stream.v = p.input(ca::kKv, 2 * row * a.kv_part + row);
    stream.y = p.output(0);
    return stream;
}

svdq_attention_params filled(Row const& op, Attributes const& a, Sizes const& s, OpCall const* call) {
    Pointers const p{op, call};
    svdq_attention_params params{};
    params.dtype = call && call->act == nvinfer1::DataType::kBF16 ? SVDQ_BF16 : SVDQ_F16;
    params.batch = static_cast<int32_t>(s.batch);
    params.heads = a.heads;
    params.kv_heads = a.kv_heads;
    params.head_size = static_cast<int32_t>(s.head_size);
    auto* next = params.streams;
    if (op.source == ca::Source::kJoint)
        *next++ = own_stream(a, s, p, ca::kAddedQkv, ca::kAddedQNorm, ca::kAddedKNorm, s.text, 1);
    *next++ = op.source == ca::Source::kCross ? cross_stream(a, s, p)
                                              : own_stream(a, s, p, ca::kQkv, ca::kQNorm, ca::kKNorm, s.tokens, 0);
    params.num_streams = static_cast<int32_t>(next - params.streams);
    params.cos = static_cast<float const*>(p.input(ca::kCos));
    params.sin = static_cast<float const*>(p.input(ca::kSin));
    params.bias = p.input(ca::kBias);
    params.scale = a.scale;
    params.eps = a.eps;
    return params;
}

std::string describe(Attributes const& a, Sizes const& s) {
    return "B=" + std::to_string(s.batch) + " L=" + std::to_string(s.tokens) + " T=" + std::to_string(s.text) +
           " H=" + std::to_string(a.heads) + " Hkv=" + std::to_string(a.kv_heads) + " D=" + std::to_string(s.head_size);
}

}  // namespace

std::optional<Problem> Attention::workspace_bytes(std::string const& where, Row const& op, Attributes const& a,
                                                  Sizes const& s, size_t& bytes) {
    if (s.batch < 0 || s.tokens < 0 || s.text < 0 || s.head_size < 0 || s.kv_width < 0) return no_limit(where);
    auto const params = filled(op, a, s, nullptr);
    svdq_status const status = svdq_attention_workspace_bytes(&params, &bytes);
    if (status == SVDQ_OK) return std::nullopt;
    return Problem{where, describe(a, s) + " (" + svdq_status_string(status) + ")",
                   "sizes that the kernels take (plugins/include/svdq/svdq.h)", kUseTensorRT};
}

std::optional<Problem> Attention::run(std::string const& where, Row const& op, Attributes const& a, Sizes const& s,
                                      OpCall const& call) {
    size_t bytes = 0;  // TensorRT does not pass the size on: it gave at least what these sizes need
    if (auto problem = workspace_bytes(where, op, a, s, bytes)) return problem;
    auto params = filled(op, a, s, &call);
    params.workspace = call.workspace;
    params.workspace_bytes = bytes;
    return launch_problem(where, svdq_attention(&params, call.stream), kUseTensorRT);
}

}  // namespace svdq::trt
