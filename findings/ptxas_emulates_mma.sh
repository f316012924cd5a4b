#!/usr/bin/env bash
# nvidia-cuda-nvcc 13.0.88 (its ptxas), nvidia-cuda-nvdisasm 13.5.37; no GPU
#
# Expected: an mma.sync that a GPU's tensor cores lack is refused for that GPU, or at least warned of, as newer instructions are on older GPUs.
# What happens: ptxas accepts it and writes a substitute. int4 m16n8k64 is one instruction on sm_80 to sm_89; from sm_90 on it is two int8
#   instructions and some 190 others that spread the nibbles. e4m3 m16n8k32 is one instruction on sm_89 and sm_120, but on sm_90, whose
#   fp8 tensor cores only wgmma reaches, two f16 instructions. No warning either way.
# Why it matters: a 4-bit kernel tuned on Ada compiles, passes its tests and is many times slower on Hopper and Blackwell; an fp8 kernel runs at f16's
#   speed on an H100. Only the machine code tells: a build for several GPUs has to choose the format per GPU.
source "$(dirname "$0")/common.sh"
install nvidia-cuda-nvcc==13.0.88 nvidia-cuda-nvdisasm==13.5.37
bin=$(echo venv/lib/python3*/site-packages/nvidia/cu13/bin)

# kernel TYPE REGISTER-TYPE SHAPE ARCH: PTX of one mma.sync between global loads and stores.
kernel() {
    cat <<PTX
.version 8.7
.target sm_$4
.address_size 64
.visible .entry one_mma(.param .u64 memory)
{
    .reg .b32 a<4>, b<2>;
    .reg .$2 zero, c<4>;
    .reg .b64 at;
    ld.param.u64 at, [memory];
    ld.global.v4.b32 {a0, a1, a2, a3}, [at];
    ld.global.v2.b32 {b0, b1}, [at + 16];
    mov.b32 zero, 0;
    mma.sync.aligned.$3.row.col.$2.$1.$1.$2 {c0, c1, c2, c3}, {a0, a1, a2, a3}, {b0, b1}, {zero, zero, zero, zero};
    st.global.v4.$2 [at], {c0, c1, c2, c3};
    ret;
}
PTX
}

# expect TYPE REGISTER-TYPE SHAPE ARCH WANT: compiles and compares the tensor core instructions with WANT.
expect() {
    kernel "$1" "$2" "$3" "$4" > one.ptx
    said=$("$bin/ptxas" -arch="sm_$4" -o one.cubin one.ptx 2>&1)
    "$bin/nvdisasm" -c one.cubin > one.sass
    total=$(grep -cE '^ +/\*[0-9a-f]{4}\*/' one.sass)
    got=$(grep -oE '[A-Z]MMA\.[0-9A-Z.]+' one.sass | sort | uniq -c | xargs)
    echo "$1 on sm_$4: $got, of $total instructions; ptxas says: '${said}'"
    [[ $got == "$5" && -z $said ]] || { echo "changed: it was $5, without a warning"; exit 1; }
}
for arch in 80 86 89; do expect s4 s32 m16n8k64 $arch "1 IMMA.16864.S4.S4"; done
for arch in 90 100 120; do expect s4 s32 m16n8k64 $arch "2 IMMA.16832.S8.S8"; done
for arch in 89 120; do expect e4m3 f32 m16n8k32 $arch "1 QMMA.16832.F32.E4M3.E4M3"; done
for arch in 90 100; do expect e4m3 f32 m16n8k32 $arch "2 HMMA.16816.F32"; done
