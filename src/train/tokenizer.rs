//! Train: tokenizer.
