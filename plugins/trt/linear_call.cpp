#include "linear.h"

namespace svdq::trt {
namespace {

// The linear's kind and sizes, which are all that a workspace depends on.
svdq_linear_params sized(contract::OpRow const& op, int32_t linear, LinearSizes const& sizes) {
    svdq_linear_params p{};
    p.format = op.format;
    p.activation = op.linears[linear].activation;
    p.m = static_cast<int32_t>(sizes.m);
    p.n = static_cast<int32_t>(sizes.n);
    p.k = static_cast<int32_t>(sizes.k);
    p.r = static_cast<int32_t>(sizes.r);
    return p;
}

svdq_linear_params filled(contract::OpRow const& op, int32_t linear, LinearAttributes const& attributes,
                          LinearSizes const& sizes, OpCall const& call) {
    auto const input = [&](contract::Input i) { return call.inputs[contract::input_of(linear, i)]; };
    svdq_linear_params p = sized(op, linear, sizes);
    p.dtype = call.act == nvinfer1::DataType::kBF16 ? SVDQ_BF16 : SVDQ_F16;
    p.act_unsigned = attributes.act_unsigned;
    p.act_shift = attributes.act_shift;
    p.x = input(contract::kX);  // a second linear's is not looked at
    p.qweight = input(contract::kQweight);
    p.wscale = input(contract::kWscale);
    p.act_mul = input(contract::kActMul);
    p.lora_down = input(contract::kLoraDown);
    p.lora_up = input(contract::kLoraUp);
    p.bias = input(contract::kBias);
    p.wscale2 = input(contract::kWscale2);
    p.y = call.outputs[0];  // nor is a first one's, where there is a second
    return p;
}

bool has_unknown(LinearSizes const& s) { return s.m < 0 || s.n < 0 || s.k < 0 || s.r < 0; }

std::string describe(contract::OpRow const& op, Linear::Sizes const& sizes) {
    std::string text;
    for (int32_t i = 0; i < op.num_linears; ++i) {
        std::string const prefix = op.linears[i].names.prefix;
        if (i == 0) text += "M=" + std::to_string(sizes[i].m);
        text += " " + prefix + "N=" + std::to_string(sizes[i].n) + " " + prefix + "K=" + std::to_string(sizes[i].k) +
                " " + prefix + "R=" + std::to_string(sizes[i].r);
    }
    return text;
}

}  // namespace

std::optional<Problem> Linear::workspace_bytes(std::string const& where, Row const& op, Attributes const&,
                                               Sizes const& sizes, size_t& bytes) {
    for (int32_t i = 0; i < op.num_linears; ++i) {
        if (has_unknown(sizes[i])) return no_limit(where);
    }
    svdq_status status;
    if (op.num_linears == 1) {
        auto const p = sized(op, 0, sizes[0]);
        status = svdq_workspace_bytes(p.format, p.m, p.n, p.k, p.r, &bytes);
    } else {
        svdq_mlp_params p{};
        p.fc1 = sized(op, 0, sizes[0]);
        p.fc2 = sized(op, 1, sizes[1]);
        status = svdq_mlp_workspace_bytes(&p, &bytes);
    }
    if (status == SVDQ_OK) return std::nullopt;
    return Problem{where, describe(op, sizes) + " (" + svdq_status_string(status) + ")",
                   "sizes that the kernels take (plugins/include/svdq/svdq.h)", "Leave this linear in 16 bit."};
}

std::optional<Problem> Linear::run(std::string const& where, Row const& op, Attributes const& attributes,
                                   Sizes const& sizes, OpCall const& call) {
    size_t bytes = 0;  // TensorRT does not pass the size on: it gave at least what these sizes need
    if (auto problem = workspace_bytes(where, op, attributes, sizes, bytes)) return problem;
    svdq_status status;
    if (op.num_linears == 1) {
        auto p = filled(op, 0, attributes.linears[0], sizes[0], call);
        p.workspace = call.workspace;
        p.workspace_bytes = bytes;
        status = svdq_linear(&p, call.stream);
    } else {
        svdq_mlp_params p{};
        p.fc1 = filled(op, 0, attributes.linears[0], sizes[0], call);
        p.fc2 = filled(op, 1, attributes.linears[1], sizes[1], call);
        p.workspace = call.workspace;
        p.workspace_bytes = bytes;
        status = svdq_mlp(&p, call.stream);
    }
    return launch_problem(where, status, "Build the engine with a format that this GPU has.");
}

}  // namespace svdq::trt
