#!/usr/bin/env bash
# Compares semoe with transformers, DeepSpeed and llama.cpp, one after the other on this machine, and
# writes docs/benchmarks.md. Nothing in that file is edited by hand.
#
#   scripts/bench_peers.sh [training] [running]     both without an argument
#
# A part that is not run keeps its chapter, and so do other kinds of processors. The peers get a Python environment of their own in the
# user's cache. Runs under a limit are in a memory cgroup, and the readahead of the disk is set for
# the peers that map files; both need root. SEMOE_BENCH_DIR names the disk to use (default: target/):
# 25 GB have to be free there for training, 45 GB for running; SEMOE_BENCH_FILES keeps the files that
# are run for the next time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python_env=${XDG_CACHE_HOME:-$HOME/.cache}/semoe/peers-env
scratch=${SEMOE_BENCH_DIR:-${CARGO_TARGET_DIR:-$PWD/target}}
# Seconds after which a run of a peer begins no further step.
patience=${SEMOE_BENCH_SECONDS:-150}
out=docs/benchmarks.md
parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(training running)

say() { echo "bench-peers: $*" >&2; }
die() { say "$*"; exit 1; }

for part in "${parts[@]}"; do
    [ -f "scripts/peers/$part.sh" ] || die "there is no part \"$part\": training, running"
done
[ "$(id -u)" -eq 0 ] || die "limits of memory need a cgroup: run as root"

missing=()
[ -e /usr/include/libaio.h ] || missing+=(libaio-dev)
command -v g++ >/dev/null || missing+=(g++)
# GCC 12 drops most of a tile configuration (its _tile_loadconfig names eight bytes as read): built with it,
# llama.cpp's code for AMX ends in an illegal instruction.
compiler=
if grep -qw amx_int8 /proc/cpuinfo; then
    compiler="-DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++"
    command -v clang++ >/dev/null || missing+=(clang)
    dpkg -s libomp-dev >/dev/null 2>&1 || missing+=(libomp-dev)
fi
python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
[ -e "$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] ||
    missing+=(python3-dev)
if [ ${#missing[@]} -gt 0 ]; then
    say "installing ${missing[*]}"
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
        "${missing[@]}" >&2 || die "missing packages: ${missing[*]}"
fi

wanted=$(cat scripts/peers/requirements.txt && echo "# llama.cpp: $compiler")
if [ "$(cat "$python_env/installed.txt" 2>/dev/null)" != "$wanted" ]; then
    say "making $python_env (about 7 GB: torch comes with its CUDA libraries)"
    rm -rf "$python_env"
    python3 -m venv "$python_env"
    pip="$python_env/bin/pip install --quiet --no-cache-dir"
    # DeepSpeed's set-up looks at the torch that is there.
    grep -v '^deepspeed\|^llama' scripts/peers/requirements.txt | $pip -r /dev/stdin
    $pip --no-build-isolation "$(grep '^deepspeed' scripts/peers/requirements.txt)"
    say "building llama.cpp for this processor"
    CMAKE_ARGS="-DGGML_NATIVE=ON $compiler" $pip "$(grep '^llama' scripts/peers/requirements.txt)"
    echo "$wanted" >"$python_env/installed.txt"
fi
export PATH=$python_env/bin:$PATH

cargo build --release --locked --bin semoe
semoe=${CARGO_TARGET_DIR:-target}/release/semoe

work=$(mktemp -d "$scratch/bench-peers.XXXXXX")
group=
# Not empty where figures would be lost.
kept=
# What is undone at the end, whatever the end.
undo=()
cleanup() {
    for step in "${undo[@]}"; do eval "$step"; done
    [ -z "$group" ] || rmdir "$group" 2>/dev/null || true
    [ -n "$kept" ] || rm -rf "$work"
}
trap cleanup EXIT

# limited NAME BYTES COMMAND...: the command in a memory cgroup of its own; NAME.peak gets the
# highest use.
limited() {
    local name=$1 bytes=$2 status=0 highest=memory.peak
    shift 2
    if [ -d /sys/fs/cgroup/memory ]; then
        group=/sys/fs/cgroup/memory/semoe-bench-$$
        mkdir "$group"
        echo "$bytes" >"$group/memory.limit_in_bytes"
        highest=memory.max_usage_in_bytes
    else
        group=/sys/fs/cgroup/semoe-bench-$$
        echo +memory >/sys/fs/cgroup/cgroup.subtree_control
        mkdir "$group"
        echo "$bytes" >"$group/memory.max"
        echo 0 >"$group/memory.swap.max" 2>/dev/null || true
    fi
    (
        echo $BASHPID >"$group/cgroup.procs"
        exec "$@"
    ) || status=$?
    [ $status -ne 0 ] || cat "$group/$highest" >"$work/$name.peak"
    rmdir "$group" 2>/dev/null || { sleep 1; rmdir "$group"; }
    group=
    return $status
}

# peer NAME BYTES COMMAND...: a run of a peer, unlimited if BYTES is 0, that writes NAME.json.
peer() {
    local name=$1 bytes=$2 wrap=()
    shift 2
    [ "$bytes" = 0 ] || wrap=(limited "$name" "$bytes")
    say "$name"
    # The settings that suit them: tensors from a heap that is not given back to the kernel.
    "${wrap[@]}" env MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=200000000000 \
        MALLOC_TOP_PAD_=268435456 "$@" --json "$work/$name.json" || {
        echo $? >"$work/$name.failed"
        say "$name failed; the report says so"
    }
}

"$semoe" --version >"$work/version"
for part in "${parts[@]}"; do
    # shellcheck source=/dev/null # the parts are beside this script
    source "scripts/peers/$part.sh"
    python "scripts/peers/report_$part.py" "$work" "$out" || {
        kept=yes
        die "no report could be written; the figures are in $work"
    }
done
say "wrote $out"
