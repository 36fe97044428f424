#!/usr/bin/env bash
# Trains the model of scripts/peers/model.toml with semoe, transformers and DeepSpeed, one after
# the other on this machine, and writes docs/benchmarks.md. Nothing in that file is edited by hand.
#
# The peers get a Python environment of their own in the user's cache. Runs "under 6 GiB" are in a
# memory cgroup, which needs root. SEMOE_BENCH_DIR names the disk to use (default: target/); 25 GB
# have to be free there. For a trial of the script: SEMOE_BENCH_LAYERS=1, SEMOE_BENCH_OUT=FILE, and
# SEMOE_BENCH_MODES="f32 autocast" leaves out a mode of transformers.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

limit=$((6 << 30))
python_env=${XDG_CACHE_HOME:-$HOME/.cache}/semoe/peers-env
scratch=${SEMOE_BENCH_DIR:-${CARGO_TARGET_DIR:-$PWD/target}}
# Seconds after which a run of a peer begins no further step.
patience=${SEMOE_BENCH_SECONDS:-150}
layers=${SEMOE_BENCH_LAYERS:-8}
out=${SEMOE_BENCH_OUT:-docs/benchmarks.md}
# How transformers runs: without bf16 instructions a step in pure bf16 takes minutes.
modes=${SEMOE_BENCH_MODES:-f32 autocast bf16}

say() { echo "bench-peers: $*" >&2; }
die() { say "$*"; exit 1; }

[ "$(id -u)" -eq 0 ] || die "the memory limit of 6 GiB needs a cgroup: run as root"

missing=()
[ -e /usr/include/libaio.h ] || missing+=(libaio-dev)
command -v g++ >/dev/null || missing+=(g++)
python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
[ -e "$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] ||
    missing+=(python3-dev)
if [ ${#missing[@]} -gt 0 ]; then
    say "installing ${missing[*]}"
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
        "${missing[@]}" >&2 || die "missing packages: ${missing[*]}"
fi

if ! cmp -s scripts/peers/requirements.txt "$python_env/installed.txt"; then
    say "making $python_env (about 7 GB: torch comes with its CUDA libraries)"
    rm -rf "$python_env"
    python3 -m venv "$python_env"
    pip="$python_env/bin/pip install --quiet --no-cache-dir"
    # DeepSpeed's set-up looks at the torch that is there.
    grep -v '^deepspeed' scripts/peers/requirements.txt | $pip -r /dev/stdin
    $pip --no-build-isolation "$(grep '^deepspeed' scripts/peers/requirements.txt)"
    cp scripts/peers/requirements.txt "$python_env/installed.txt"
fi
export PATH=$python_env/bin:$PATH DS_ACCELERATOR=cpu TORCH_EXTENSIONS_DIR=$python_env/ops
# A build that was interrupted leaves a lock that waits for ever.
mkdir -p "$TORCH_EXTENSIONS_DIR"
find "$TORCH_EXTENSIONS_DIR" -name lock -delete
say "building DeepSpeed's Adam and NVMe operators"
python -c 'from deepspeed.ops.op_builder.cpu import AsyncIOBuilder, CPUAdamBuilder
AsyncIOBuilder().load(verbose=False); CPUAdamBuilder().load(verbose=False)' >/dev/null

cargo build --release --locked --bin semoe
semoe=${CARGO_TARGET_DIR:-target}/release/semoe

work=$(mktemp -d "$scratch/bench-peers.XXXXXX")
if [ -d /sys/fs/cgroup/memory ]; then
    group=/sys/fs/cgroup/memory/semoe-bench-$$
    mkdir "$group"
    echo $limit >"$group/memory.limit_in_bytes"
else
    group=/sys/fs/cgroup/semoe-bench-$$
    echo +memory >/sys/fs/cgroup/cgroup.subtree_control
    mkdir "$group"
    echo $limit >"$group/memory.max"
    echo 0 >"$group/memory.swap.max" 2>/dev/null || true
fi
trap 'rm -rf "$work"; rmdir "$group" 2>/dev/null || true' EXIT

# limited NAME COMMAND...: the command under the limit; NAME.peak gets the highest use.
limited() {
    local name=$1
    shift
    if [ -d /sys/fs/cgroup/memory ]; then
        echo 0 >"$group/memory.max_usage_in_bytes"
    fi
    (
        echo $BASHPID >"$group/cgroup.procs"
        exec "$@"
    ) || return
    if [ -d /sys/fs/cgroup/memory ]; then
        cat "$group/memory.max_usage_in_bytes" >"$work/$name.peak"
    else
        cat "$group/memory.peak" >"$work/$name.peak"
    fi
}

# train NAME [limited] SETTING...: a run of semoe; NAME.json gets its summary.
train() {
    local name=$1 wrap=()
    shift
    if [ "${1:-}" = limited ]; then
        wrap=(limited "$name")
        shift
    fi
    local sets=(--set "model.layers=$layers")
    for setting; do sets+=(--set "$setting"); done
    say "semoe, $name"
    "${wrap[@]}" "$semoe" train scripts/peers/model.toml --run "$work/$name" \
        --json "$work/$name.json" "${sets[@]}"
    mv "$work/$name/metrics.jsonl" "$work/$name.jsonl"
    cp -n "$work/$name/tokenizer/tokenizer.json" "$work/tokenizer.json"
    rm -rf "${work:?}/$name"
}

# budget SETTING...: what the slots may take so that the whole ledger stays within the limit.
budget() {
    local sets=(--set "model.layers=$layers")
    for setting; do sets+=(--set "$setting"); done
    "$semoe" plan scripts/peers/model.toml --disk "$work" --json "$work/plan.json" \
        --set storage.host=1GiB "${sets[@]}" >/dev/null
    python - "$work/plan.json" $limit <<'END'
import json, sys
plan, limit = json.load(open(sys.argv[1])), int(sys.argv[2])
# The ledger's total without the slots, and a little that no ledger sees: page tables, the kernel's
# own part of io.
beside = plan["memory_bytes"] - (1 << 30)
print(f"{(limit - beside) // (1 << 20) - 128}MiB")
END
}

# peer NAME [limited] COMMAND...: a run of a peer; NAME.json gets its result.
peer() {
    local name=$1 wrap=()
    shift
    if [ "$1" = limited ]; then
        wrap=(limited "$name")
        shift
    fi
    say "$name"
    # The settings that suit them: tensors from a heap that is not given back to the kernel.
    "${wrap[@]}" env MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=200000000000 \
        MALLOC_TOP_PAD_=268435456 "$@" --layers "$layers" --tokens "$work/tokens.bin" \
        --seconds "$patience" --json "$work/$name.json" || {
        echo $? >"$work/$name.failed"
        say "$name failed; the report says so"
    }
}

train memory
python scripts/peers/tokens.py data/kjv.txt.zst "$work/tokenizer.json" "$work/tokens.bin"
for mode in $modes; do
    peer "transformers-$mode" python scripts/peers/peer.py $mode
done
mkdir "$work/offload"
peer deepspeed limited python scripts/peers/peer.py deepspeed --offload "$work/offload"
rm -rf "$work/offload"
train streamed limited "storage.host=$(budget)"
large=(train.batch=64 train.micro_batch=8 train.steps=6)
train memory-large "${large[@]}"
train streamed-large limited "${large[@]}" "storage.host=$(budget "${large[@]}")"

"$semoe" --version >"$work/version"
python scripts/peers/report.py "$work" "$layers" >"$work/report.md"
mv "$work/report.md" "$out"
say "wrote $out"
