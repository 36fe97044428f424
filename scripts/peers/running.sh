# shellcheck shell=bash disable=SC2154,SC2034 # sourced by bench_peers.sh
# Runs one generated checkpoint of OLMoE-1B-7B's shape with semoe, llama.cpp and transformers, all in
# memory and under limits. For a trial of the script SEMOE_BENCH_SHAPE=small.
shape=${SEMOE_BENCH_SHAPE:-olmoe-1b-7b}
prompts=128,512
tokens=64

# llama.cpp maps its file: what it reads ahead of a page fault should be little. Some virtual machines
# have 8 MiB, with which it reads everything many times over.
device=$(lsblk -no PKNAME,NAME "$(findmnt -no SOURCE -T "$work")" | awk '{print $NF; exit}')
readahead=/sys/block/$device/queue/read_ahead_kb
if [ -w "$readahead" ]; then
    undo+=("echo $(cat "$readahead") >$readahead")
    echo 128 >"$readahead"
    echo "of 128 KiB" >"$work/readahead"
else
    say "the readahead of $device cannot be set; the report says so"
    echo "that could not be set" >"$work/readahead"
fi

# SEMOE_BENCH_FILES names a folder in which the generated files stay for the next run (25 GB).
files=${SEMOE_BENCH_FILES:-$work}
mkdir -p "$files"
# made FILE COMMAND... FILE.part: makes a file, or folder, that is not there yet.
made() {
    local file=$1
    shift
    [ -e "$file" ] || { rm -rf "$file.part" && "$@" "$file.part" && mv "$file.part" "$file"; }
}
quantised() {
    python scripts/peers/run_llama.py "$files/bf16.gguf" --quantize "$1" --to "$2" >"$work/quantize.log" 2>&1 ||
        die "llama.cpp cannot quantise to $1: $work/quantize.log"
}
say "generating the checkpoint and its GGUF files"
made "$files/bf16" "$semoe" random-checkpoint --shape "$shape" >&2
made "$files/bf16.gguf" python scripts/peers/to_gguf.py "$files/bf16"
for kind in Q8_0 Q4_0; do made "$files/$kind.gguf" quantised $kind; done
for kind in bf16 Q8_0 Q4_0; do stat -c %s "$files/$kind.gguf" >"$work/$kind.bytes"; done

# Nothing of a file is left in memory: pages that an earlier run brought in would be a gift to a run
# under a limit, which does not pay for them.
cold() { sync; echo 3 >/proc/sys/vm/drop_caches; }

# ours NAME BYTES MODEL: semoe bench with keys and values of 16 bits, as the peers have, and room for as many
# positions; NAME.json gets its report.
ours() {
    local name=$1 bytes=$2 model=$3 wrap=() memory=()
    if [ "$bytes" != 0 ]; then
        wrap=(limited "$name" "$bytes")
        memory=(--memory "$((bytes >> 20))MiB")
    fi
    say "$name"
    cold
    "${wrap[@]}" "$semoe" bench --model "$model" --context 528 --kv bf16 -p $prompts -n $tokens \
        --decode drawn,greedy "${memory[@]}" --json "$work/$name.json" >&2
}

# llama NAME BYTES FILE [--repack]
llama() {
    local name=$1 bytes=$2 file=$3
    shift 3
    cold
    peer "$name" "$bytes" python scripts/peers/run_llama.py "$file" --prompts $prompts \
        --tokens $tokens --threads "$(nproc)" --seconds "$patience" "$@"
}

"$semoe" doctor --json "$work/doctor.json" >&2
# In memory everything runs twice, in turn: some machines' memory has two rates, which change within minutes.
for again in "" -again; do
    for kind in bf16 Q8_0 Q4_0; do
        model=$files/$kind.gguf
        [ $kind != bf16 ] || model=$files/bf16
        llama "llama-$kind$again" 0 "$files/$kind.gguf" --repack
        ours "semoe-$kind$again" 0 "$model"
    done
    cold
    peer "transformers-bf16$again" 0 python scripts/peers/run_transformers.py "$files/bf16" \
        --prompts $prompts --tokens $tokens --seconds "$patience"
done
for run in bf16:4096 bf16:8192 Q8_0:2048 Q4_0:1536; do
    kind=${run%:*} mib=${run#*:}
    model=$files/$kind.gguf
    [ $kind != bf16 ] || model=$files/bf16
    llama "llama-$kind-$mib" $((mib << 20)) "$files/$kind.gguf"
    ours "semoe-$kind-$mib" $((mib << 20)) "$model"
done
