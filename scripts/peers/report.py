"""Writes the text of docs/benchmarks.md from what a run of bench_peers.sh measured.

    report.py FOLDER LAYERS
"""

import json
import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from statistics import median

work, layers = Path(sys.argv[1]), int(sys.argv[2])


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


def failure(name):
    """Why a run has no figures."""
    path = work / f"{name}.failed"
    if not path.exists():
        return "not run"
    status = int(path.read_text())
    return "killed: it needs more memory" if status == 137 else f"failed with status {status}"


def gb(value):
    return "" if value is None else f"{value / 1e9:.1f} GB"


def cpu():
    text = Path("/proc/cpuinfo").read_text()
    name = re.search(r"model name\s*: (.*)", text)[1]
    flags = set(re.search(r"flags\s*: (.*)", text)[1].split())
    notable = ["avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16"]
    return name, os.cpu_count(), [flag for flag in notable if flag in flags], flags


name, cores, notable, flags = cpu()
memory = int(re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())[1]) * 1024
peers = {mode: peer(f"transformers-{mode}") for mode in ("f32", "autocast", "bf16")}
deepspeed = peer("deepspeed")
ours = {run: semoe(run) for run in ("memory", "streamed", "memory-large", "streamed-large")}
versions = next(found["versions"] for found in peers.values() if found)
rows = [
    ("transformers, f32", "transformers-f32", peers["f32"], "all in memory"),
    ("transformers, f32 masters, bf16 autocast", "transformers-autocast", peers["autocast"],
     "all in memory"),
    ("transformers, pure bf16 without masters", "transformers-bf16", peers["bf16"],
     "all in memory"),
    ("semoe, f32 masters, bf16", "memory", ours["memory"], "all in memory"),
    ("DeepSpeed ZeRO-3, bf16, parameters and states on NVMe", "deepspeed", deepspeed, "6 GiB"),
    ("semoe, f32 masters, bf16, streamed", "streamed", ours["streamed"], "6 GiB"),
    ("semoe, 8 times the batch", "memory-large", ours["memory-large"], "all in memory"),
    ("semoe, 8 times the batch, streamed", "streamed-large", ours["streamed-large"], "6 GiB"),
]


def ratio(name, ours, theirs, target):
    if ours is None or theirs is None:
        return f"| {name} | not measured | {target} | |"
    found = ours["rate"] / theirs["rate"]
    return f"| {name} | {found:.2f} | {target} | {'met' if found >= target else 'missed'} |"


print("# Benchmarks\n")
print("Written by `make bench-peers`; nothing here is edited by hand. All runs of a table took")
print("place one after the other on one machine. Figures are medians over the steps behind the")
print("warm-up; the range is from the slowest step to the fastest.\n")
print("## Machine and versions\n")
disk = subprocess.run(["findmnt", "-no", "SOURCE,FSTYPE", "-T", work], capture_output=True,
                      text=True).stdout.strip()
print(f"- {cores} cores of {name} ({', '.join(notable)}), {gb(memory)} of memory, disk {disk}")
print(f"- Linux {platform.release()}, Python {versions['python']}, torch {versions['torch']}, "
      f"transformers {versions['transformers']}, DeepSpeed {metadata.version('deepspeed')}")
print(f"- {(work / 'version').read_text().strip()}")
if "avx512_bf16" not in flags and "amx_bf16" not in flags:
    print("- This processor has no bf16 instructions: libtorch's bf16 products, which the peers")
    print("  use, run in generic code, and semoe's in its own kernels for AVX2, which widen bf16 to")
    print("  f32 in registers. On a processor with AVX-512 BF16 or AMX the peers' bf16 rows rise.")
parameters = layers * 64 * 3 * 512 * 1024 + layers * (4 * 512 * 512 + 64 * 512) + 2 * 8192 * 512
print(f"\nThe model: `olmoe`, hidden 512, {layers} layers, 64 experts of width 1024, top 2, 8 heads,")
print(f"vocabulary 8192: {parameters / 1e6:.0f} M parameters. Sequences of 256 tokens of the King James Bible, 8 a")
print("step, no clipping. transformers runs its `grouped_mm` experts and torch's fused AdamW;")
print("every peer runs with `MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=200000000000`")
print("`MALLOC_TOP_PAD_=268435456`. \"6 GiB\" is a memory cgroup around the whole process.\n")
print("## Tokens a second\n")
print("| run | memory | tokens/s | range | steps | peak | read a step | written a step |")
print("|---|---|---|---|---|---|---|---|")
for label, run, found, where in rows:
    if found is None:
        print(f"| {label} | {where} | {failure(run)} | | | | | |")
        continue
    low, high = found["spread"]
    print(f"| {label} | {where} | {found['rate']:.0f} | {low:.0f} to {high:.0f} | "
          f"{found['steps']} | {gb(found['memory'])} | {gb(found['read'])} | "
          f"{gb(found['written'])} |")
print("\n## Ratios\n")
print("| ratio of rates | measured | target | |")
print("|---|---|---|---|")
print(ratio("in memory: semoe over bf16 autocast", ours["memory"], peers["autocast"], 2.0))
best = max((found for found in peers.values() if found), key=lambda found: found["rate"])
label = next(mode for mode, found in peers.items() if found is best)
print(ratio(f"in memory: semoe over the fastest transformers run ({label})",
            ours["memory"], best, 1.0))
print(ratio("under 6 GiB: semoe over DeepSpeed", ours["streamed"], deepspeed, 3.0))
print(ratio("8 times the batch: streamed over in memory",
            ours["streamed-large"], ours["memory-large"], 0.85))
print("\n## Forecast\n")
print("`semoe plan`'s seconds a step, taken at the start of each run, beside the median measured;")
print("the share of a step in which computation waited for the disk.\n")
print("| run | forecast | measured | off | exposed io |")
print("|---|---|---|---|---|")
for label, run in ours.items():
    if run and run["forecast"]:
        off = run["forecast"] / run["seconds"] - 1
        print(f"| {label} | {run['forecast']:.2f} s | {run['seconds']:.2f} s | {off:+.0%} | "
              f"{run['exposed']:.0%} |")
