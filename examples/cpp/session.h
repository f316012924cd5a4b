// One engine, one execution context, one stream.
#pragma once

#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine_folder.h"
#include "host/runner.h"

namespace svdq {

class Session final : public Runner {
public:
    // Deserializes the checked folder's plan. Throws Error with TensorRT's message where it refuses.
    Session(EngineFolder const& folder, Options const& options);
    ~Session() override;
    Session(Session const&) = delete;
    Session& operator=(Session const&) = delete;

    Tensors run(Tensors const& inputs) override;

    // Milliseconds of `repeat` further runs on the inputs of the last `run`, by CUDA events.
    float milliseconds(int64_t repeat);

private:
    struct Buffer {
        void* memory = nullptr;
        size_t bytes = 0;
    };

    void set_inputs(Tensors const& inputs);
    void enqueue();
    void* reserve(std::string const& name, size_t bytes);

    int device_;
    cudaStream_t stream_ = nullptr;
    std::unique_ptr<nvinfer1::IRuntime> runtime_;  // destroyed last of the three
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
    std::unique_ptr<nvinfer1::IExecutionContext> context_;
    std::vector<Input> inputs_;
    std::map<std::string, Buffer> buffers_;
};

}  // namespace svdq
