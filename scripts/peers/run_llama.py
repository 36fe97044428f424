"""llama.cpp on one GGUF file: prompts read and tokens made, as `semoe bench` counts them.

    llama.py FILE --prompts 128,512 --tokens 64 --threads N --seconds S --json OUT [--repack]
    llama.py FILE --quantize TYPE --to OUT

Every test is taken once to warm up and then `--repeats` times; none begins after S seconds, so that
at least one time counts. Tokens follow a prompt of one token: "decode" takes drawn ones, as llama-bench
does, "greedy" the likeliest. The file is mapped, as llama.cpp does by default; --repack, for a model that
stays in memory, has weights laid out anew where llama.cpp has faster kernels for that, and two prompts
read first.
"""

import argparse
import ctypes
import json
import resource
import time
from statistics import median

import llama_cpp as llama
import numpy

parser = argparse.ArgumentParser()
parser.add_argument("file")
parser.add_argument("--prompts", default="128,512")
parser.add_argument("--tokens", type=int, default=64)
parser.add_argument("--repeats", type=int, default=3)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--seconds", type=float, default=120)
parser.add_argument("--repack", action="store_true")
parser.add_argument("--quantize", choices=["Q8_0", "Q4_0"])
parser.add_argument("--to")
parser.add_argument("--json")
given = parser.parse_args()

llama.llama_backend_init()
if given.quantize:
    params = llama.llama_model_quantize_default_params()
    params.nthread = given.threads
    params.ftype = getattr(llama, f"LLAMA_FTYPE_MOSTLY_{given.quantize}")
    done = llama.llama_model_quantize(given.file.encode(), given.to.encode(), ctypes.byref(params))
    raise SystemExit(done)

params = llama.llama_model_default_params()
params.use_mmap = True
params.use_extra_bufts = given.repack
model = llama.llama_load_model_from_file(given.file.encode(), params)
assert model, f"{given.file} cannot be loaded"
vocab = llama.llama_n_vocab(llama.llama_model_get_vocab(model))
prompts = [int(length) for length in given.prompts.split(",")]
params = llama.llama_context_default_params()
params.n_ctx = max([*prompts, given.tokens + 1]) + 16
params.n_batch = params.n_ubatch = 512
params.n_threads = params.n_threads_batch = given.threads
context = llama.llama_new_context_with_model(model, params)
assert context, "no context"


def decode(ids):
    array = (llama.llama_token * len(ids))(*ids)
    found = llama.llama_decode(context, llama.llama_batch_get_one(array, len(ids)))
    assert found == 0, found


def likeliest():
    logits = llama.llama_get_logits_ith(context, -1)
    return int(numpy.ctypeslib.as_array(logits, (vocab,)).argmax())


def draws(seed, length):
    return numpy.random.default_rng(seed).integers(0, vocab, length).tolist()


def prompt(seed, length):
    decode(draws(seed, length))
    return length


def generate(seed, count, choose):
    decode(draws(seed, 1))
    start = time.perf_counter()
    made = 0
    while made < count and (made == 0 or time.perf_counter() - begun < given.seconds):
        decode([choose(made)])
        made += 1
    return made, time.perf_counter() - start


def drawn(seed, count):
    tokens = draws(2000 + seed, count)
    return generate(seed, count, lambda made: tokens[made])


def greedy(seed, count):
    return generate(seed, count, lambda made: likeliest())


if given.repack:
    # All of it in memory before anything is timed.
    for seed in range(2):
        prompt(1000 + seed, max(prompts))
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
begun = time.perf_counter()
tests = {f"prompt {length}": (prompt, length) for length in prompts}
if given.tokens:
    tests[f"decode {given.tokens}"] = (drawn, given.tokens)
    tests[f"greedy {given.tokens}"] = (greedy, given.tokens)
rates = {}
for name, (test, size) in tests.items():
    begun = time.perf_counter()
    rates[name] = []
    for repeat in range(given.repeats + 1):
        if len(rates[name]) > 1 and time.perf_counter() - begun > given.seconds:
            break
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        start = time.perf_counter()
        done = test(repeat, size)
        made, seconds = done if isinstance(done, tuple) else (done, time.perf_counter() - start)
        rates[name].append(made / seconds)
        print(f"llama.cpp: {name}: {rates[name][-1]:.2f} tokens/s", flush=True)
result = {
    # The first time warms up; where a later one found less in memory, it counts.
    "rates": {name: max(found[0], median(found[1:] or found)) for name, found in rates.items()},
    "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    "system": llama.llama_print_system_info().decode(),
    "version": llama.__version__,
}
if given.json:
    with open(given.json, "w") as file:
        json.dump(result, file)
