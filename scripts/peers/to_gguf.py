"""The safetensors of an `olmoe` checkpoint as one GGUF file, as llama.cpp's converter writes it.

    to_gguf.py DIR OUT

Matrices keep their bf16, vectors and routers are f32, the experts of a layer are one tensor. The
vocabulary is one token a byte, filled up with names that no text has: random weights have no
other.
"""

import json
import sys
from pathlib import Path

import numpy
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType

folder, out = Path(sys.argv[1]), sys.argv[2]
config = json.loads((folder / "config.json").read_text())
layers, experts = config["num_hidden_layers"], config["num_experts"]
index = folder / "model.safetensors.index.json"
index = json.loads(index.read_text())["weight_map"] if index.exists() else {}
headers = {}


def raw(name):
    """A tensor's bf16 as u16, mapped."""
    path = folder / index.get(name, "model.safetensors")
    if path not in headers:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            headers[path] = (json.loads(file.read(size)), 8 + size)
    header, start = headers[path]
    entry = header[name]
    assert entry["dtype"] == "BF16", entry
    return numpy.memmap(path, numpy.uint16, "r", start + entry["data_offsets"][0],
                        tuple(entry["shape"]))


def wide(name):
    return (numpy.asarray(raw(name)).astype(numpy.uint32) << 16).view(numpy.float32)


def plan():
    """Name, shape, whether f32, and how to get it, of every tensor."""
    yield "token_embd.weight", "model.embed_tokens.weight", False
    for l in range(layers):
        block, layer = f"blk.{l}.", f"model.layers.{l}."
        yield block + "attn_norm.weight", layer + "input_layernorm.weight", True
        for part in "qkv":
            yield block + f"attn_{part}.weight", layer + f"self_attn.{part}_proj.weight", False
        yield block + "attn_output.weight", layer + "self_attn.o_proj.weight", False
        for part in "qk":
            yield block + f"attn_{part}_norm.weight", layer + f"self_attn.{part}_norm.weight", True
        yield block + "ffn_norm.weight", layer + "post_attention_layernorm.weight", True
        yield block + "ffn_gate_inp.weight", layer + "mlp.gate.weight", True
        for part in ("gate", "up", "down"):
            names = [layer + f"mlp.experts.{e}.{part}_proj.weight" for e in range(experts)]
            yield block + f"ffn_{part}_exps.weight", names, False
    yield "output_norm.weight", "model.norm.weight", True
    yield "output.weight", "lm_head.weight", False


def byte_letters():
    """GPT-2's letter of each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters, spare = {byte: chr(byte) for byte in plain}, 256
    for byte in range(256):
        if byte not in letters:
            letters[byte] = chr(spare)
            spare += 1
    return [letters[byte] for byte in range(256)]


writer = GGUFWriter(out, "olmoe")
writer.add_file_type(LlamaFileType.MOSTLY_BF16)
writer.add_block_count(layers)
writer.add_context_length(config["max_position_embeddings"])
writer.add_embedding_length(config["hidden_size"])
writer.add_feed_forward_length(config["intermediate_size"])
writer.add_head_count(config["num_attention_heads"])
writer.add_head_count_kv(config["num_key_value_heads"])
writer.add_rope_freq_base(config["rope_theta"])
writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
writer.add_expert_count(experts)
writer.add_expert_used_count(config["num_experts_per_tok"])
tokens = byte_letters() + ["th"]
tokens += [f"<unused_{n}>" for n in range(config["vocab_size"] - len(tokens))]
writer.add_tokenizer_model("gpt2")
writer.add_tokenizer_pre("olmo")
writer.add_token_list(tokens)
writer.add_token_types([TokenType.NORMAL if n <= 256 else TokenType.UNUSED
                        for n in range(len(tokens))])
writer.add_token_merges(["t h"])
writer.add_add_bos_token(False)

for name, source, is_f32 in plan():
    first = raw(source if isinstance(source, str) else source[0])
    shape = first.shape if isinstance(source, str) else (len(source), *first.shape)
    if is_f32:
        writer.add_tensor_info(name, shape, numpy.dtype(numpy.float32), int(numpy.prod(shape)) * 4)
    else:
        bytes_shape = (*shape[:-1], shape[-1] * 2)
        writer.add_tensor_info(name, bytes_shape, numpy.dtype(numpy.uint8),
                               int(numpy.prod(bytes_shape)), GGMLQuantizationType.BF16)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_ti_data_to_file()
for name, source, is_f32 in plan():
    if is_f32:
        data = wide(source)
    elif isinstance(source, str):
        data = numpy.asarray(raw(source)).view(numpy.uint8)
    else:
        data = numpy.stack([raw(one) for one in source]).view(numpy.uint8)
    writer.write_tensor_data(data)
writer.close()
