# shellcheck shell=bash disable=SC2154 # sourced by bench_peers.sh
# Trains the model of model.toml with semoe, transformers and DeepSpeed. For a trial of the script
# SEMOE_BENCH_LAYERS=1; SEMOE_BENCH_MODES="f32 autocast" leaves out a mode of transformers (without
# bf16 instructions a step in pure bf16 takes minutes).
layers=${SEMOE_BENCH_LAYERS:-8}
modes=${SEMOE_BENCH_MODES:-f32 autocast bf16}
limit=$((6 << 30))

export DS_ACCELERATOR=cpu TORCH_EXTENSIONS_DIR=$python_env/ops
# A build that was interrupted leaves a lock that waits for ever.
mkdir -p "$TORCH_EXTENSIONS_DIR"
find "$TORCH_EXTENSIONS_DIR" -name lock -delete
say "building DeepSpeed's Adam and NVMe operators"
python -c 'from deepspeed.ops.op_builder.cpu import AsyncIOBuilder, CPUAdamBuilder
AsyncIOBuilder().load(verbose=False); CPUAdamBuilder().load(verbose=False)' >/dev/null

# train NAME BYTES SETTING...: a run of semoe; NAME.json gets its summary.
train() {
    local name=$1 bytes=$2 wrap=()
    shift 2
    [ "$bytes" = 0 ] || wrap=(limited "$name" "$bytes")
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

# Where memory is not short, activations are kept, as transformers keeps them.
train memory 0 actors.dense.activations=keep
python scripts/peers/tokens.py data/kjv.txt.zst "$work/tokenizer.json" "$work/tokens.bin"
same=(--layers "$layers" --tokens "$work/tokens.bin" --seconds "$patience")
for mode in $modes; do
    peer "transformers-$mode" 0 python scripts/peers/train_peer.py "$mode" "${same[@]}"
done
# Where it does not start under the limit, it gets more until it does: then the ratio is of semoe's rate
# under the limit and of DeepSpeed's with what it needs.
for gib in $((limit >> 30)) 8 10 12 14; do
    rm -f "$work/deepspeed.failed"
    echo "$gib" >"$work/deepspeed.gib"
    mkdir "$work/offload"
    peer deepspeed $((gib << 30)) python scripts/peers/train_peer.py deepspeed \
        --offload "$work/offload" "${same[@]}"
    rm -rf "$work/offload"
    [ -e "$work/deepspeed.failed" ] || break
done
train streamed $limit "storage.host=$(budget)"
large=(train.batch=64 train.micro_batch=8 train.steps=6)
train memory-large 0 "${large[@]}"
train streamed-large $limit "${large[@]}" "storage.host=$(budget "${large[@]}")"
echo "$layers" >"$work/layers"
