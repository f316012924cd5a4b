#include "log.h"

#include <atomic>
#include <cstdio>

namespace svdq::trt {
namespace {

// The one piece of process-wide state: where TensorRT's logger is found. Set by TensorRT, never owned.
std::atomic<nvinfer1::ILoggerFinder*> g_logger_finder{nullptr};

nvinfer1::ILogger* find_logger() noexcept {
    try {
        auto* finder = g_logger_finder.load(std::memory_order_acquire);
        return finder ? finder->findLogger() : nullptr;
    } catch (...) {
        return nullptr;  // findLogger() is not noexcept
    }
}

}  // namespace

std::string to_string(Problem const& problem) {
    std::string text = problem.where + ": " + problem.got + ", want " + problem.want + ".";
    return problem.fix.empty() ? text : text + " " + problem.fix;
}

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept {
    g_logger_finder.store(finder, std::memory_order_release);
}

void log_error(char const* message) noexcept {
    if (auto* logger = find_logger()) {
        logger->log(nvinfer1::ILogger::Severity::kERROR, message);
    } else {
        std::fprintf(stderr, "[svdq] error: %s\n", message);
    }
}

void log_error(Problem const& problem) noexcept {
    try {
        log_error(to_string(problem).c_str());
    } catch (...) {
        log_error("svdq plugin: out of memory while writing an error message");
    }
}

}  // namespace svdq::trt
