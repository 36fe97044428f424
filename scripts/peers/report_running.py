"""Writes the chapter on running of docs/benchmarks.md: report_running.py FOLDER OUT."""

import json
import sys
from importlib import metadata
from pathlib import Path

from chapters import failure, gb, machine, ratio, write

work, out = Path(sys.argv[1]), sys.argv[2]
TESTS = ["prompt 128", "prompt 512", "decode 64", "greedy 64"]


def load(name):
    path = work / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def rates(name):
    """Tokens a second of each test: of several runs the fastest."""
    best = {}
    for found in filter(None, map(load, (name, f"{name}-again"))):
        of = found.get("rates") or {row["test"]: row["tokens_per_s"] for row in found["rows"]}
        best |= {test: max(rate, best.get(test, 0)) for test, rate in of.items()}
    return best


def row(label, name, where):
    found, report = rates(name), load(name)
    if report is None:
        return f"| {label} | {where} | {failure(work, name)} | | | | | | | |"
    cells = [f"{found[test]:.2f}" if test in found else "" for test in TESTS]
    peak = work / f"{name}.peak"
    peak = int(peak.read_text()) if peak.exists() else report.get("peak_bytes",
                                                                report.get("peak_rss_bytes"))
    cells.append(gb(peak))
    if "rows" in report:
        decode = next(row for row in report["rows"] if row["test"] == "decode 64")
        cells += [f"{decode['bytes_read_per_token'] / 1e6:.0f} MB", f"{decode['hit_rate']:.0%}",
                  f"{decode['disk_busy_share']:.0%}"]
    else:
        cells += ["", "", ""]
    return f"| {label} | {where} | " + " | ".join(cells) + " |"


runs = [(kind, None) for kind in ("bf16", "Q8_0", "Q4_0")]
runs += [("bf16", 4096), ("bf16", 8192), ("Q8_0", 2048), ("Q4_0", 1536)]
suffix = lambda kind, mib: kind if mib is None else f"{kind}-{mib}"
sizes = {kind: int((work / f"{kind}.bytes").read_text()) for kind in ("bf16", "Q8_0", "Q4_0")}
llama = next(found for found in map(load, (f"llama-{suffix(*run)}" for run in runs)) if found)
transformers = rates("transformers-bf16")
lines = machine(work)
lines += [
    f"- llama-cpp-python {llama['version']}, built for this processor: "
    f"{llama['system'].strip().strip('|').strip()}",
    f"- transformers {metadata.version('transformers')}, torch {metadata.version('torch')}",
    f"""
The checkpoint: `semoe random-checkpoint`, OLMoE-1B-7B's shape. bf16 is {gb(sizes['bf16'])}; Q8_0
({gb(sizes['Q8_0'])}) and Q4_0 ({gb(sizes['Q4_0'])}) are llama.cpp's quantisations of it, and both
programs read the same file; in bf16 semoe reads the safetensors and llama.cpp a GGUF file of the same
tensors. "4 GiB" is a memory cgroup around the whole process; llama.cpp maps its file, with a
readahead {(work / 'readahead').read_text().strip()}. Prompts are tokens drawn at random. "decode" takes 64
tokens after one, drawn too, as llama-bench does; "greedy" takes the likeliest token each time, of which a
model with random weights soon repeats a few, so that few experts are asked for. Keys and values have 16
bits: f16 in llama.cpp, bf16 in the others.
The page cache was empty before each run. What stays in memory was filled with prompts first; every test
ran once to warm up and then up to three times, of which the median counts; a peer's first time counts
where it was the fastest. In memory everything ran twice, in turn, and the faster run counts: the memory of
some machines has two rates, which change within minutes. Figures beside decoding: bytes read a token, share
of experts found in memory, share of the time in which the disk was reading.

| run | memory | prompt 128 | prompt 512 | decode | greedy | peak | read a token | hits | disk busy |
|---|---|---|---|---|---|---|---|---|---|""",
]
for kind, mib in runs:
    where = "all in memory" if mib is None else f"{mib / 1024:g} GiB"
    lines.append(row(f"llama.cpp, {kind}", f"llama-{suffix(kind, mib)}", where))
    if mib is None and kind == "bf16":
        lines.append(row("transformers, bf16", "transformers-bf16", where))
    lines.append(row(f"semoe, {kind}", f"semoe-{suffix(kind, mib)}", where))
lines.append("\n| ratio of rates | measured | target | |\n|---|---|---|---|")
for kind, mib in runs:
    ours, theirs = rates(f"semoe-{suffix(kind, mib)}"), rates(f"llama-{suffix(kind, mib)}")
    for test in TESTS:
        decode = not test.startswith("prompt")
        peer, best = "llama.cpp", theirs.get(test)
        if mib is None:
            target = 1.1 if decode else 1.5
            other = transformers.get(test) if kind == "bf16" and not decode else None
            if other is not None and (best is None or other > best):
                peer, best = "transformers", other
        else:
            # Targets are set where the limit is under half of the file.
            target = 3.0 if mib << 20 < sizes[kind] / 2 else None
        where = "in memory" if mib is None else f"under {mib / 1024:g} GiB"
        lines.append(ratio(f"{kind} {where}, {test}: semoe over {peer}", ours.get(test), best,
                           target))
ceiling = max(point["rate"] for point in load("doctor")["disk"]["points"])
lines.append(f"""
What semoe read under a limit: bytes a token, the rate of the disk while it was reading, the share of the time
in which it was, and in which computation waited for it; and how much was read ahead on a guess that turned
out right, and in vain. `semoe doctor` measured {ceiling / 1e9:.2f} GB/s at
most, at the start of this run.

| run | test | read a token | GB/s | disk busy | waiting | ahead | in vain |
|---|---|---|---|---|---|---|---|""")
for kind, mib in runs:
    report = load(f"semoe-{suffix(kind, mib)}") if mib is not None else None
    for test in report["rows"] if report else []:
        read, busy = test["bytes_read_per_token"], test["disk_busy_share"]
        vain = test["bytes_in_vain_per_token"]
        ahead = test["bytes_ahead_per_token"] - vain
        rate = read * test["tokens_per_s"] / busy if busy else 0.0
        lines.append(f"| {kind}, {mib / 1024:g} GiB | {test['test']} | {read / 1e6:.0f} MB | "
                     f"{rate / 1e9:.2f} | {busy:.0%} | {test['exposed_io_share']:.0%} | "
                     f"{ahead / 1e6:.0f} MB | {vain / 1e6:.0f} MB |")
lines.append("""
`semoe plan --model`'s tokens/s of decoding at the hit rate of the run, beside those measured.

| run | forecast | measured | off |
|---|---|---|---|""")
for kind, mib in runs:
    report = load(f"semoe-{suffix(kind, mib)}")
    if report and report.get("forecast"):
        forecast = report["forecast"]["tokens_per_s"]
        measured = rates(f"semoe-{suffix(kind, mib)}")["decode 64"]
        where = "in memory" if mib is None else f"{mib / 1024:g} GiB"
        lines.append(f"| {kind}, {where} | {forecast:.2f} | {measured:.2f} | "
                     f"{forecast / measured - 1:+.0%} |")
write(out, "Running", lines)
