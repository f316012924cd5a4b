#!/bin/sh
# Builds sdxl-tiny engines on this machine and runs what needs engines on a GPU: Session, bench, the plugin's life in
# TensorRT, examples/cpp with a pipeline of engines. Needs a TensorRT that runs here; SVDQ_PLUGIN_LIBRARY, TENSORRT_INCLUDE_DIR as the tests do.
# Usage, from the root of the tree:  tests/gpu/run_engines.sh [options of bench_engine.py, such as --graphs DIR]
set -u
work=$(mktemp -d)
export SVDQ_REQUIRE="${SVDQ_REQUIRE-gpu,trt}" PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
make_engine() {
    name=$1
    shift
    python3 benchmarks/bench_engine.py --stage make --model sdxl-tiny --formats w4a8 --work "$work/$name" "$@"
}
make_engine dynamic --weight-streaming "$@" &
make_engine static --batch 2 --height 128 --width 128 "$@" && wait || exit 1
# A pipeline's engines are built where its text encoders' library is, or were elsewhere: SVDQ_TEST_PIPELINE.
if [ -z "${SVDQ_TEST_PIPELINE-}" ] && python3 -c "import transformers" 2>"$work/none"; then
    python3 -m tests.harness.tiny_pipelines "$work/sdxl" &&
        python3 build_engines.py --model sdxl-tiny --arch sm_89 --preset fast --no-check --batch 2 --height 128 --width 128 \
            --checkpoint "$work/sdxl" --pipeline "$work/sdxl" --out "$work/pipeline" || exit 1
    export SVDQ_TEST_PIPELINE="$work/pipeline/sdxl-tiny-sm_89"
fi
export SVDQ_TEST_ENGINE="$work/dynamic/w4a8" SVDQ_TEST_STATIC_ENGINE="$work/static/w4a8"
python3 -m pytest -q --tb=short -rfEs -p no:cacheprovider --durations=5 \
    tests/gpu/test_session.py tests/gpu/test_bench.py tests/trt/test_plugin_gpu.py \
    tests/trt/test_cpp_example.py tests/trt/test_abi.py
code=$?
rm -rf "$work"
exit $code
