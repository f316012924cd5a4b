#!/bin/sh
# memcheck, racecheck, synccheck and initcheck over a small list of linears that covers every kernel.
# Usage, from the root of the tree:  tests/gpu/sanitize.sh [folder of libsvdq.so, default build/plugins] [case ...]
# $RACECHECK_LIB: folder of a libsvdq.so built with -DSVDQ_RACECHECK=ON, for racecheck. Without it racecheck leaves out
# gemm_w4a8_kernel, for which it reports races that are none (sanitize/racecheck_limit.cu), and says so.
# Exit status 0 only if all four are clean and every kernel of the library for this GPU was launched. Logs go
# to the folder $LOGS, default build/sanitize.
set -u
lib=${1:-build/plugins}
racecheck_lib=${RACECHECK_LIB:-$lib}
[ $# -gt 0 ] && shift
logs=${LOGS:-build/sanitize}
mkdir -p "$logs"
driver=$logs/driver
nvcc -O2 -std=c++17 -Iplugins/include tests/gpu/sanitize/driver.cpp -o "$driver" -L"$lib" -lsvdq || exit 1
LD_LIBRARY_PATH=$lib "$driver" "$@" || exit 1

failed=0
options() {
    case $1 in
        memcheck) echo --leak-check full ;;
        racecheck)
            echo --racecheck-report all
            [ -n "${RACECHECK_LIB:-}" ] || echo --kernel-name-exclude kns=gemm_w4a8_kernel
            ;;
    esac
}
for tool in ${TOOLS:-memcheck racecheck synccheck initcheck}; do  # side by side: each leaves the GPU idle most of the time
    (
        start=$(date +%s)
        at=$lib
        [ $tool = racecheck ] && at=$racecheck_lib
        # shellcheck disable=SC2046
        LD_LIBRARY_PATH=$at timeout "${LIMIT:-300}" compute-sanitizer --tool $tool $(options $tool) \
            --error-exitcode 9 "$driver" "$@" >"$logs/$tool.log" 2>&1
        echo "$? $(($(date +%s) - start))" >"$logs/$tool.status"
    ) &
done
wait
for tool in ${TOOLS:-memcheck racecheck synccheck initcheck}; do
    read -r status seconds <"$logs/$tool.status"
    echo "$tool: exit $status, $seconds s: $(grep -E 'SUMMARY' "$logs/$tool.log" | tail -1 | sed 's/^=* *//')"
    if [ "$status" != 0 ]; then
        failed=1
        grep -vE '^=========\s*$' "$logs/$tool.log" | head -"${SHOW:-12}"
    fi
done
[ -n "${RACECHECK_LIB:-}" ] || echo "racecheck: without gemm_w4a8_kernel"
LD_LIBRARY_PATH=$lib python3 tests/gpu/sanitize/coverage.py "$driver" "$lib/libsvdq.so" "$@" || failed=1
exit $failed
