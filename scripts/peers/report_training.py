"""Writes the chapter on training of docs/benchmarks.md: report_training.py FOLDER OUT."""

import json
import sys
from importlib import metadata
from pathlib import Path
from statistics import median

from chapters import cpu_flags, failure, gb, machine, ratio, write

work, out = Path(sys.argv[1]), sys.argv[2]
layers = int((work / "layers").read_text())


def load(name):
    path = work / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def peak(name):
    path = work / f"{name}.peak"
    return int(path.read_text()) if path.exists() else None


def semoe(name):
    """Tokens a second, bytes read and written a step, peak under the limit; medians and means."""
    summary = load(name)
    if summary is None:
        return None
    lines = [json.loads(line) for line in (work / f"{name}.jsonl").read_text().splitlines()]
    steady = lines[2:]
    seconds = median(line["seconds"] for line in steady)
    mean = lambda key: sum(line[key] for line in steady) / len(steady)
    return {
        "rate": steady[0]["tokens"] / seconds,
        "steps": len(steady),
        "spread": [steady[0]["tokens"] / max(line["seconds"] for line in steady),
                   steady[0]["tokens"] / min(line["seconds"] for line in steady)],
        "read": mean("bytes_read"),
        "written": mean("bytes_written"),
        "memory": peak(name),
        "forecast": (summary["forecast"] or {}).get("seconds"),
        "seconds": seconds,
        "exposed": mean("exposed_io_seconds") / seconds,
    }


def peer(name):
    found = load(name)
    if found is None:
        return None
    skip = 1 if len(found["seconds"]) < 4 else 2
    seconds, traffic = found["seconds"][skip:], found["traffic"][skip:]
    return {
        "rate": found["tokens"] / median(seconds),
        "steps": len(seconds),
        "spread": [found["tokens"] / max(seconds), found["tokens"] / min(seconds)],
        "read": sum(moved[0] for moved in traffic) / len(traffic),
        "written": sum(moved[1] for moved in traffic) / len(traffic),
        "memory": peak(name) or found["peak_bytes"],
        "versions": found["versions"],
    }


modes = {"f32": "f32", "autocast": "f32 masters, bf16 autocast",
         "bf16": "pure bf16 without masters"}
peers = {mode: peer(f"transformers-{mode}") for mode in modes}
deepspeed = peer("deepspeed")
deepspeed_gib = int((work / "deepspeed.gib").read_text())
ours = {run: semoe(run) for run in ("memory", "streamed", "memory-large", "streamed-large")}
versions = next(found["versions"] for found in peers.values() if found)
rows = [(f"transformers, {label}", f"transformers-{mode}", peers[mode], "all in memory")
        for mode, label in modes.items()]
rows += [
    ("semoe, f32 masters, bf16", "memory", ours["memory"], "all in memory"),
    ("DeepSpeed ZeRO-3, bf16, parameters and states on NVMe", "deepspeed", deepspeed,
     f"{deepspeed_gib} GiB"),
    ("semoe, f32 masters, bf16, streamed", "streamed", ours["streamed"], "6 GiB"),
    ("semoe, 8 times the batch", "memory-large", ours["memory-large"], "all in memory"),
    ("semoe, 8 times the batch, streamed", "streamed-large", ours["streamed-large"], "6 GiB"),
]
rate = lambda found: found and found["rate"]
parameters = layers * 64 * 3 * 512 * 1024 + layers * (4 * 512 * 512 + 64 * 512) + 2 * 8192 * 512
lines = machine(work)
lines.append(f"- torch {versions['torch']}, transformers {versions['transformers']}, "
             f"DeepSpeed {metadata.version('deepspeed')}")
if not cpu_flags() & {"avx512_bf16", "amx_bf16"}:
    lines += [
        "- This processor has no bf16 instructions: libtorch's bf16 products, which the peers",
        "  use, run in generic code, and semoe's in its own kernels for AVX2, which widen bf16 to",
        "  f32 in registers. On a processor with AVX-512 BF16 or AMX the peers' bf16 rows rise.",
    ]
lines += [f"""
The model: `olmoe`, hidden 512, {layers} layers, 64 experts of width 1024, top 2, 8 heads,
vocabulary 8192: {parameters / 1e6:.0f} M parameters. Sequences of 256 tokens of the King James Bible,
8 a step, no clipping. transformers runs its `grouped_mm` experts and torch's fused AdamW, and keeps
activations, as the first run of semoe does (the others compute those of the dense part again); every peer
runs with `MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=200000000000 MALLOC_TOP_PAD_=268435456`. "6 GiB"
is a memory cgroup around the whole process. Figures are medians over the steps behind the warm-up;
the range is from the slowest step to the fastest.

| run | memory | tokens/s | range | steps | peak | read a step | written a step |
|---|---|---|---|---|---|---|---|"""]
for label, run, found, where in rows:
    if found is None:
        lines.append(f"| {label} | {where} | {failure(work, run)} | | | | | |")
        continue
    low, high = found["spread"]
    lines.append(f"| {label} | {where} | {found['rate']:.0f} | {low:.0f} to {high:.0f} | "
                 f"{found['steps']} | {gb(found['memory'])} | {gb(found['read'])} | "
                 f"{gb(found['written'])} |")
best = max((mode for mode in peers if peers[mode]), key=lambda mode: peers[mode]["rate"])
lines += [
    "\n| ratio of rates | measured | target | |\n|---|---|---|---|",
    ratio("in memory: semoe over bf16 autocast", rate(ours["memory"]), rate(peers["autocast"]), 2.0),
    ratio(f"in memory: semoe over the fastest transformers run ({best})", rate(ours["memory"]),
          rate(peers[best]), None),
    ratio("under 6 GiB: semoe over DeepSpeed" if deepspeed_gib == 6 else
          f"semoe under 6 GiB over DeepSpeed under {deepspeed_gib} GiB (under less it was killed)",
          rate(ours["streamed"]), rate(deepspeed), 3.0),
    ratio("8 times the batch: streamed over in memory", rate(ours["streamed-large"]),
          rate(ours["memory-large"]), 0.85),
    """
`semoe plan`'s seconds a step, taken at the start of each run, beside the median measured; the share
of a step in which computation waited for the disk.

| run | forecast | measured | off | exposed io |
|---|---|---|---|---|""",
]
for label, run in ours.items():
    if run and run["forecast"]:
        off = run["forecast"] / run["seconds"] - 1
        lines.append(f"| {label} | {run['forecast']:.2f} s | {run['seconds']:.2f} s | {off:+.0%} | "
                     f"{run['exposed']:.0%} |")
write(out, "Training", lines)
