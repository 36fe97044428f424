"""One peer's training run: the model of docs/benchmarks.md on the same text.

    train_peer.py MODE --layers L --tokens FILE --seconds S --json OUT [--offload DIR]

MODE is f32, autocast (f32 masters, bf16 compute) or bf16 (no masters) with transformers alone,
or deepspeed (ZeRO-3, parameters and optimizer states on NVMe, bf16 with f32 masters). The result
is one JSON object: seconds of each step, losses, peak memory, versions, bytes moved. At least two
steps are taken, the first of which warms up, and at most twelve; none begins after S seconds.
"""

import argparse
import json
import os
import platform
import resource
import time

import numpy
import torch
import transformers

SEQ, VOCAB, SEED = 256, 8192, 0


def config(layers):
    return transformers.OlmoeConfig(
        vocab_size=VOCAB,
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        num_experts=64,
        num_experts_per_tok=2,
        max_position_embeddings=SEQ,
        output_router_logits=True,
        router_aux_loss_coef=0.01,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


def batches(path, batch):
    """Token ids [batch, SEQ + 1] of the text in a shuffled order, for ever."""
    tokens = torch.from_numpy(numpy.fromfile(path, dtype=numpy.uint32).astype(numpy.int64))
    rows = tokens[: len(tokens) // SEQ * SEQ].view(-1, SEQ)
    generator = torch.Generator().manual_seed(SEED)
    while True:
        order = torch.randperm(len(rows), generator=generator)
        for at in range(0, len(rows) - batch + 1, batch):
            yield rows[order[at : at + batch]]


def build(kind, layers):
    torch.manual_seed(SEED)
    torch.set_default_dtype(kind)
    model = transformers.OlmoeForCausalLM._from_config(
        config(layers), attn_implementation="sdpa", experts_implementation="grouped_mm"
    )
    torch.set_default_dtype(torch.float32)
    return model.train()


def io_counters():
    with open("/proc/self/io") as file:
        found = dict(line.strip().split(": ") for line in file)
    return int(found["read_bytes"]), int(found["write_bytes"])


def plain(mode, layers):
    """A step of transformers with torch's fused AdamW."""
    model = build(torch.bfloat16 if mode == "bf16" else torch.float32, layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.1, fused=True)

    def step(ids):
        with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def deepspeed_step(folder, batch, layers):
    """A step of DeepSpeed ZeRO-3, everything on NVMe.

    The buffers are as few and as small as DeepSpeed takes: the largest parameter (the experts' fused
    gate and up projections of a layer) has to fit one, and Adam has four tensors of it.
    """
    for key, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1",
                       "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}.items():
        os.environ.setdefault(key, value)
    import deepspeed
    from transformers.integrations import HfDeepSpeedConfig

    largest = 64 * 2 * 1024 * 512
    settings = {
        "train_micro_batch_size_per_gpu": batch,
        "bf16": {"enabled": True},
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": 3e-4, "weight_decay": 0.1},
        },
        "zero_force_ds_cpu_optimizer": True,
        "zero_optimization": {
            "stage": 3,
            "offload_param": {
                "device": "nvme",
                "nvme_path": folder,
                "buffer_count": 4,
                "buffer_size": largest,
                "max_in_cpu": 0,
                "pin_memory": False,
            },
            "offload_optimizer": {
                "device": "nvme",
                "nvme_path": folder,
                "buffer_count": 4,
                "pin_memory": False,
                "pipeline_read": False,
                "pipeline_write": False,
                "fast_init": False,
            },
            "sub_group_size": 50_000_000,
            "stage3_prefetch_bucket_size": 0,
            "stage3_param_persistence_threshold": 100_000,
            "stage3_max_live_parameters": largest,
            "stage3_max_reuse_distance": 0,
            "reduce_bucket_size": 1_000_000,
        },
        "aio": {
            "block_size": 1 << 20,
            "queue_depth": 32,
            "intra_op_parallelism": 2,
            "single_submit": False,
            "overlap_events": True,
        },
        "wall_clock_breakdown": False,
        "steps_per_print": 1 << 30,
    }
    deepspeed.init_distributed(dist_backend="gloo")
    # As long as this lives, transformers divides parameters as it makes them.
    zero3 = HfDeepSpeedConfig(settings)
    model = build(torch.bfloat16, layers)
    assert zero3.is_zero3()
    engine, *_ = deepspeed.initialize(model=model, config=settings)

    def step(ids):
        loss = engine(input_ids=ids, labels=ids).loss
        engine.backward(loss)
        engine.step()
        return loss.item()

    return step


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=["f32", "autocast", "bf16", "deepspeed"])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--tokens", required=True)
    parser.add_argument("--seconds", type=float, default=150)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--offload")
    parser.add_argument("--json", required=True)
    given = parser.parse_args()
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    if given.mode == "deepspeed":
        step = deepspeed_step(given.offload, given.batch, given.layers)
    else:
        step = plain(given.mode, given.layers)
    seconds, losses, traffic = [], [], []
    source = batches(given.tokens, given.batch)
    begun = time.perf_counter()
    for number in range(12):
        if number >= 2 and time.perf_counter() - begun > given.seconds:
            break
        before, start = io_counters(), time.perf_counter()
        losses.append(step(next(source)))
        seconds.append(time.perf_counter() - start)
        after = io_counters()
        traffic.append([after[0] - before[0], after[1] - before[1]])
        print(f"{given.mode}: step {number + 1}: loss {losses[-1]:.4f}, "
              f"{given.batch * SEQ / seconds[-1]:.0f} tokens/s", flush=True)
    result = {
        "mode": given.mode,
        "tokens": given.batch * SEQ,
        "seconds": seconds,
        "losses": losses,
        "traffic": traffic,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "versions": versions,
    }
    with open(given.json, "w") as file:
        json.dump(result, file)


main()
