# TensorRT::TensorRT: headers and runtime library of TensorRT-RTX or of full TensorRT.
#
# Hints:   TENSORRT_INCLUDE_DIR, TENSORRT_LIBRARY_DIR (cache or environment), TensorRT_ROOT.
# Results: TensorRT_FOUND, TensorRT_INCLUDE_DIR, TensorRT_LIBRARY.
find_path(TensorRT_INCLUDE_DIR NvInferRuntime.h
    HINTS "${TENSORRT_INCLUDE_DIR}" ENV TENSORRT_INCLUDE_DIR)
# Python wheels carry the library with its version as suffix, and no bare name.
find_library(TensorRT_LIBRARY
    NAMES tensorrt_rtx libtensorrt_rtx.so.1 nvinfer libnvinfer.so.11 libnvinfer.so.10
    HINTS "${TENSORRT_LIBRARY_DIR}" ENV TENSORRT_LIBRARY_DIR)

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(TensorRT
    REQUIRED_VARS TensorRT_LIBRARY TensorRT_INCLUDE_DIR
    REASON_FAILURE_MESSAGE "set TENSORRT_INCLUDE_DIR (folder of NvInferRuntime.h) and TENSORRT_LIBRARY_DIR")

if(TensorRT_FOUND AND NOT TARGET TensorRT::TensorRT)
    add_library(TensorRT::TensorRT UNKNOWN IMPORTED)
    set_target_properties(TensorRT::TensorRT PROPERTIES
        IMPORTED_LOCATION "${TensorRT_LIBRARY}"
        INTERFACE_INCLUDE_DIRECTORIES "${TensorRT_INCLUDE_DIR}"
        INTERFACE_SYSTEM_INCLUDE_DIRECTORIES "${TensorRT_INCLUDE_DIR}")
endif()
mark_as_advanced(TensorRT_INCLUDE_DIR TensorRT_LIBRARY)
