// The TensorRT plugin interface: the official headers where CMake found them, else our own declaration.
#pragma once

#ifdef SVDQ_OFFICIAL_TENSORRT_HEADERS
#include <NvInferRuntime.h>
#else
#include "abi/plugin_abi.h"
#endif
