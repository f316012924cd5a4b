// Speaking through TensorRT's logger, and keeping exceptions on this side of its vtables.
#pragma once

#include <exception>
#include <string>
#include <utility>

#include "trt.h"

namespace svdq::trt {

// A mistake in the input, told as `where: got, want. Fix.`
struct Problem {
    std::string where;
    std::string got;
    std::string want;
    std::string fix;
};

std::string to_string(Problem const& problem);

// TensorRT hands its finder over when it loads the library; null takes it back. Thread-safe.
void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept;

// To TensorRT's logger; to stderr when there is none. Thread-safe, never throws.
void log_error(char const* message) noexcept;
void log_error(Problem const& problem) noexcept;

// Runs the body of an override. An exception is logged and becomes `failure`, because nothing may be thrown
// across TensorRT.
template <class Result, class Body>
Result guard(char const* where, Result failure, Body&& body) noexcept {
    try {
        return std::forward<Body>(body)();
    } catch (std::exception const& error) {
        log_error(where);
        log_error(error.what());
    } catch (...) {
        log_error(where);
    }
    return failure;
}

}  // namespace svdq::trt
