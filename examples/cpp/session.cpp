#include "session.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <mutex>
#include <vector>

#include "host/error.h"

namespace svdq {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::TensorIOMode;

// Keeps the last error of TensorRT and of the plugin: this thread's, as sessions are opened side by side, or where it has
// none that of any, as TensorRT has threads of its own.
class Logger final : public nvinfer1::ILogger {
public:
    void log(Severity severity, char const* message) noexcept override {
        if (severity > Severity::kERROR) return;
        try {
            std::lock_guard const lock(mutex_);
            own_ = any_ = message;
        } catch (...) {  // no memory for the text: the error itself is still told by the call that failed
        }
    }

    std::string last_error() {
        std::lock_guard const lock(mutex_);
        return own_.empty() ? any_ : own_;
    }

    void clear() {
        std::lock_guard const lock(mutex_);
        own_.clear(), any_.clear();
    }

private:
    std::mutex mutex_;
    static thread_local std::string own_;
    std::string any_;
};

thread_local std::string Logger::own_;

// One for all sessions: TensorRT keeps the first that a process gives it.
Logger& logger() {
    static Logger one;
    return one;
}

std::string said() {
    std::string const error = logger().last_error();
    return error.empty() ? "no reason given" : error;
}

void check(cudaError_t code, char const* what) {
    if (code != cudaSuccess) throw Error(what, cudaGetErrorString(code), "success");
}

std::string dtype_name(DataType type) {
    switch (type) {
        case DataType::kFLOAT: return "F32";
        case DataType::kHALF: return "F16";
        case DataType::kBF16: return "BF16";
        case DataType::kINT32: return "I32";
        case DataType::kINT64: return "I64";
        case DataType::kINT8: return "I8";
        case DataType::kUINT8: return "U8";
        case DataType::kBOOL: return "BOOL";
        default: throw Error("engine", "a tensor of an unknown type", "16, 32 or 64 bit");
    }
}

Dims dims_of(std::vector<int64_t> const& shape, std::string const& name) {
    if (shape.size() > static_cast<size_t>(Dims::MAX_DIMS)) throw Error("input " + name, "too many dimensions", "8");
    Dims dims{};
    dims.nbDims = static_cast<int32_t>(shape.size());
    for (size_t i = 0; i < shape.size(); ++i) dims.d[i] = shape[i];
    return dims;
}

// A file's bytes, mapped: copies of all plans that are opened side by side might not fit into memory.
class Mapped {
public:
    explicit Mapped(std::string const& path) {
        int const file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
        struct stat info{};
        if (file >= 0 && fstat(file, &info) == 0) {
            size_ = static_cast<size_t>(info.st_size);
            data_ = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file, 0);
        }
        if (file >= 0) close(file);
        if (data_ == MAP_FAILED) throw Error(path, "cannot be read", "a plan");
    }
    ~Mapped() { munmap(data_, size_); }
    Mapped(Mapped const&) = delete;
    Mapped& operator=(Mapped const&) = delete;

    void const* data() const { return data_; }
    size_t size() const { return size_; }

private:
    void* data_ = MAP_FAILED;
    size_t size_ = 0;
};

// TensorRT does not say that libraries may be loaded side by side.
bool load_library(nvinfer1::IRuntime& runtime, std::string const& path) {
    static std::mutex mutex;
    std::lock_guard const lock(mutex);
    return runtime.getPluginRegistry().loadLibrary(path.c_str()) != nullptr;
}

}  // namespace

Session::Session(EngineFolder const& folder, Options const& options)
    : device_(options.cuda_device()), inputs_(folder.inputs) {
    check(cudaSetDevice(device_), "cudaSetDevice");
    runtime_.reset(nvinfer1::createInferRuntime(logger()));
    if (!runtime_) throw Error("TensorRT", said(), "a runtime");
    if (!folder.plugin.empty() && !load_library(*runtime_, folder.plugin)) {
        throw Error(folder.plugin, said(), "a TensorRT plugin library");
    }
    runtime_->setEngineHostCodeAllowed(folder.host_code);
    {
        Mapped const plan(folder.plan);
        engine_.reset(runtime_->deserializeCudaEngine(plan.data(), plan.size()));
    }
    if (!engine_) throw Error(folder.plan, said(), "a plan that TensorRT loads");
    context_.reset(engine_->createExecutionContext());
    if (!context_) throw Error(folder.plan, said(), "an execution context");
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream");
}

Session::~Session() {
    if (stream_) cudaStreamSynchronize(stream_);
    for (auto const& entry : buffers_) cudaFree(entry.second.memory);
    if (stream_) cudaStreamDestroy(stream_);
}

void* Session::reserve(std::string const& name, size_t bytes) {
    Buffer& buffer = buffers_[name];
    if (buffer.bytes < bytes || !buffer.memory) {
        check(cudaFree(buffer.memory), "cudaFree");
        buffer = {};
        check(cudaMalloc(&buffer.memory, bytes ? bytes : 1), "device memory");
        buffer.bytes = bytes;
    }
    return buffer.memory;
}

void Session::set_inputs(Tensors const& inputs) {
    size_t used = 0;
    for (int32_t i = 0; i < engine_->getNbIOTensors(); ++i) {
        std::string const name = engine_->getIOTensorName(i);
        if (engine_->getTensorIOMode(name.c_str()) != TensorIOMode::kINPUT) continue;
        auto const found = inputs.find(name);
        if (found == inputs.end()) throw Error("input " + name, "missing", "a tensor");
        Tensor const& tensor = found->second;
        std::string const want = dtype_name(engine_->getTensorDataType(name.c_str()));
        if (tensor.dtype != want) throw Error("input " + name, tensor.dtype, want);
        if (!context_->setInputShape(name.c_str(), dims_of(tensor.shape, name))) {
            throw Error("input " + name, text_of(tensor.shape) + ": " + said(), "a shape inside the engine's profile");
        }
        void* memory = reserve(name, tensor.data.size());
        check(cudaMemcpyAsync(memory, tensor.data.data(), tensor.data.size(), cudaMemcpyHostToDevice, stream_), "copy");
        context_->setTensorAddress(name.c_str(), memory);
        ++used;
    }
    if (used != inputs.size()) throw Error("inputs", std::to_string(inputs.size()), std::to_string(used));
    if (context_->inferShapes(0, nullptr) != 0) throw Error("inputs", "shapes that contradict each other", "one batch");
}

void Session::enqueue() {
    if (!context_->enqueueV3(stream_)) throw Error("engine", "the run failed: " + said(), "a run");
}

Tensors Session::run(Tensors const& inputs) {
    logger().clear();
    check(cudaSetDevice(device_), "cudaSetDevice");  // of this thread: another one may have opened the session
    check_inputs(inputs_, inputs);
    set_inputs(inputs);
    Tensors outputs;
    for (int32_t i = 0; i < engine_->getNbIOTensors(); ++i) {
        char const* name = engine_->getIOTensorName(i);
        if (engine_->getTensorIOMode(name) != TensorIOMode::kOUTPUT) continue;
        Dims const dims = context_->getTensorShape(name);
        Tensor& tensor = outputs[name];
        tensor.dtype = dtype_name(engine_->getTensorDataType(name));
        tensor.shape.assign(dims.d, dims.d + dims.nbDims);
        tensor.data.resize(element_count(tensor.shape) * element_size(tensor.dtype));
        context_->setTensorAddress(name, reserve(name, tensor.data.size()));
    }
    enqueue();
    for (auto& [name, tensor] : outputs) {
        check(cudaMemcpyAsync(tensor.data.data(), buffers_[name].memory, tensor.data.size(), cudaMemcpyDeviceToHost,
                              stream_),
              "copy");
    }
    check(cudaStreamSynchronize(stream_), "run");
    return outputs;
}

float Session::milliseconds(int64_t repeat) {
    cudaEvent_t start = nullptr, end = nullptr;
    check(cudaEventCreate(&start), "event");
    check(cudaEventCreate(&end), "event");
    check(cudaEventRecord(start, stream_), "event");
    for (int64_t i = 0; i < repeat; ++i) enqueue();
    check(cudaEventRecord(end, stream_), "event");
    check(cudaEventSynchronize(end), "run");
    float total = 0;
    check(cudaEventElapsedTime(&total, start, end), "event");
    cudaEventDestroy(start);
    cudaEventDestroy(end);
    return total / static_cast<float>(repeat);
}

}  // namespace svdq
