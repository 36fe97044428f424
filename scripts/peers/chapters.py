"""docs/benchmarks.md: a head and a chapter for each part of bench_peers.sh on each kind of processor."""

import os
import platform
import re
import subprocess
from pathlib import Path

HEAD = """# Benchmarks

Written by `make bench-peers`; nothing here is edited by hand. All runs of a chapter took place
one after the other on one machine; a chapter is replaced by the next run on that kind of processor.
"""
PARTS = ["Training", "Running"]
# What decides which kernels run, the best first.
KINDS = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 BF16", "avx512f": "AVX-512", "avx2": "AVX2"}


def cpu_flags():
    return set(re.search(r"flags\s*: (.*)", Path("/proc/cpuinfo").read_text())[1].split())


def machine(work):
    """One line on the machine and one on what ran on it."""
    name = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]
    memory = int(re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())[1]) * 1024
    disk = subprocess.run(["findmnt", "-no", "SOURCE,FSTYPE", "-T", work], capture_output=True,
                          text=True).stdout.strip()
    flags = cpu_flags()
    notable = [flag for flag in ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")
               if flag in flags]
    version = (Path(work) / "version").read_text().strip()
    return [
        f"- {os.cpu_count()} cores of {name} ({', '.join(notable)}), {gb(memory)} of memory, "
        f"disk {disk}",
        f"- {version}, Linux {platform.release()}, Python {platform.python_version()}",
    ]


def gb(value):
    return "" if value is None else f"{value / 1e9:.1f} GB"


def ratio(name, ours, theirs, target):
    """A row: rates, or None where there is none."""
    if ours is None or theirs is None:
        return f"| {name} | not measured | {target or ''} | |"
    found = ours / theirs
    verdict = "" if target is None else "met" if found >= target else "missed"
    return f"| {name} | {found:.2f} | {target or ''} | {verdict} |"


def failure(work, name):
    """Why a run has no figures."""
    path = Path(work) / f"{name}.failed"
    if not path.exists():
        return "not run"
    status = int(path.read_text())
    return "killed: it needs more memory" if status == 137 else f"failed with status {status}"


def kind():
    flags = cpu_flags()
    return next((name for flag, name in KINDS.items() if flag in flags), platform.machine())


def write(out, part, lines):
    """Puts the chapter into the file, beside the others."""
    path = Path(out)
    text = path.read_text() if path.exists() else ""
    chapters = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", text, re.M | re.S))
    chapters[f"{part} on {kind()}"] = "\n" + "\n".join(lines).strip() + "\n\n"
    titles = [f"{part} on {name}" for part in PARTS for name in KINDS.values()]
    found = [title for title in titles if title in chapters]
    found += [title for title in chapters if title not in titles]
    body = "".join(f"## {title}\n{chapters[title]}" for title in found)
    path.write_text(f"{HEAD}\n{body}".rstrip() + "\n")
