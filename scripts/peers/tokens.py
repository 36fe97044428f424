"""The text as token ids, with the tokenizer that semoe trained: tokens.py TEXT TOKENIZER OUT."""

import sys

import numpy
import tokenizers
import zstandard

text, tokenizer, out = sys.argv[1:]
with open(text, "rb") as file:
    text = zstandard.ZstdDecompressor().stream_reader(file).read().decode()
ids = tokenizers.Tokenizer.from_file(tokenizer).encode(text).ids
numpy.array(ids, dtype=numpy.uint32).tofile(out)
