"""transformers on a checkpoint folder in bf16: prompts read and tokens made, as `semoe bench` counts.

    run_transformers.py DIR --prompts 128,512 --tokens 64 --seconds S --json OUT
"""

import argparse
import json
import resource
import time
from statistics import median

import torch
import transformers

parser = argparse.ArgumentParser()
parser.add_argument("folder")
parser.add_argument("--prompts", default="128,512")
parser.add_argument("--tokens", type=int, default=64)
parser.add_argument("--repeats", type=int, default=3)
parser.add_argument("--seconds", type=float, default=120)
parser.add_argument("--json", required=True)
given = parser.parse_args()
model = transformers.AutoModelForCausalLM.from_pretrained(
    given.folder, dtype=torch.bfloat16, attn_implementation="sdpa",
    experts_implementation="grouped_mm",
).eval()
vocab = model.config.vocab_size


def draws(seed, length):
    return torch.randint(vocab, (1, length), generator=torch.Generator().manual_seed(seed))


def generate(seed, count, choose):
    """Tokens made and seconds taken after a prompt of one token."""
    found = model(input_ids=draws(seed, 1), use_cache=True)
    start, made = time.perf_counter(), 0
    while made < count and (made == 0 or time.perf_counter() - begun < given.seconds):
        ids = choose(made, found)
        found = model(input_ids=ids, past_key_values=found.past_key_values, use_cache=True)
        made += 1
    return made, time.perf_counter() - start


def drawn(seed, count):
    tokens = draws(2000 + seed, count)
    return generate(seed, count, lambda made, found: tokens[:, made : made + 1])


def greedy(seed, count):
    return generate(seed, count, lambda made, found: found.logits[:, -1].argmax(-1, keepdim=True))


def prompt(seed, length):
    start = time.perf_counter()
    model(input_ids=draws(seed, length), use_cache=True, logits_to_keep=1)
    return length, time.perf_counter() - start


tests = {f"prompt {length}": (prompt, int(length)) for length in given.prompts.split(",")}
tests[f"decode {given.tokens}"] = (drawn, given.tokens)
tests[f"greedy {given.tokens}"] = (greedy, given.tokens)
rates = {}
with torch.inference_mode():
    for name, (test, size) in tests.items():
        begun = time.perf_counter()
        rates[name] = []
        for repeat in range(given.repeats + 1):
            if len(rates[name]) > 1 and time.perf_counter() - begun > given.seconds:
                break
            made, seconds = test(repeat, size)
            rates[name].append(made / seconds)
            print(f"transformers: {name}: {rates[name][-1]:.2f} tokens/s", flush=True)
result = {
    # The first time warms up; where a later one found less in memory, it counts.
    "rates": {name: max(found[0], median(found[1:] or found)) for name, found in rates.items()},
    "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    "version": transformers.__version__,
}
with open(given.json, "w") as file:
    json.dump(result, file)
