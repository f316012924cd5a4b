#!/bin/sh
# Builds libsvdq.so for this machine's GPU and runs the GPU suite, the sanitizers over a small list, and the timings.
# Usage, from the root of the tree:  tests/gpu/run_all.sh [arch, such as 90a]
set -u
arch=${1:-90a}
cmake -S . -B build -G Ninja -DSVDQ_ARCHS="$arch" >build.log 2>&1 && ninja -C build >>build.log 2>&1 || { tail -40 build.log; exit 1; }
cmake -S . -B build-racecheck -G Ninja -DSVDQ_ARCHS="$arch" -DSVDQ_RACECHECK=ON >>build.log 2>&1 &&
    ninja -C build-racecheck plugins/libsvdq.so >>build.log 2>&1 || { tail -40 build.log; exit 1; }
export PYTHONPATH=. SVDQ_REQUIRE=gpu SVDQ_LIBRARY=build/plugins/libsvdq.so PYTHONUNBUFFERED=1
timeout 200 python3 -m pytest -q --tb=line -rN -p no:cacheprovider --durations=3 tests/gpu >tests.log 2>&1
grep -E "^E  |Error" tests.log | sort | uniq -c | sort -rn | cut -c1-220 | head -40
tail -6 tests.log
timeout 60 python3 benchmarks/time_kernels.py 4608 3072 9216 32 16 3072 18432 0 2048 1280 1280 128
RACECHECK_LIB=build-racecheck/plugins tests/gpu/sanitize.sh build/plugins
