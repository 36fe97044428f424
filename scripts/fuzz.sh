#!/usr/bin/env bash
# Runs the libFuzzer targets of fuzz/ for SEMOE_FUZZ_SECONDS (60) each, with the compiler that builds
# the project: coverage comes from LLVM's pass, by the flags that `cargo fuzz run --sanitizer none` gives.
# No sanitizer: our parsers hold no unsafe code, bounds and overflows are checked in this profile, and
# libFuzzer itself limits time and memory.
# What was found stays in target/fuzz: the corpus, and the input of a failure.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

seconds=${SEMOE_FUZZ_SECONDS:-60}
host=$(rustc -vV | sed -n 's/^host: //p')
corpus=$PWD/target/fuzz
export LD_LIBRARY_PATH=$PWD/.libtorch/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing"

# With --target the flags are not those of build scripts and macros, which run while compiling.
run() { cargo run --locked --quiet --package semoe-fuzz --target "$host" "$@"; }

mkdir -p "$corpus"/{safetensors,gguf}_header
cp tests/fixtures/gguf/{types,spm,bpe}.gguf "$corpus/gguf_header"
# As fuzz/looks.rs takes them: the header's text, then the length of the data.
python3 - "$corpus/safetensors_header" tests/fixtures/gguf/types.safetensors tests/fixtures/hf/*/model.safetensors <<'PY'
import pathlib, sys
to = pathlib.Path(sys.argv[1])
for number, name in enumerate(sys.argv[2:]):
    file = pathlib.Path(name).read_bytes()
    length = int.from_bytes(file[:8], "little")
    data = len(file) - 8 - length
    (to / f"seed-{number}").write_bytes(file[8 : 8 + length] + data.to_bytes(8, "little"))
PY
for name in safetensors_header gguf_header; do
    echo "fuzz: $name, $seconds s" >&2
    run --bin "$name" -- -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -verbosity=0 \
        -print_final_stats=1 -artifact_prefix="$corpus/$name-" "$corpus/$name" 2>&1 | grep -v "# Uses:" >&2
done
