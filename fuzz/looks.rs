//! What a reader of file headers owes to any bytes: tensors inside the file, or an error that blames
//! the input. Whether the bytes were accepted is the answer; a broken promise is a panic.
//!
//! Shared by the libFuzzer targets and by `tests/hostile_headers.rs`.

use semoe::base::{ErrorKind, Result};
use semoe::model::{gguf, hf};

fn checked<T>(found: Result<T>) -> Option<T> {
    found.inspect_err(|e| assert_eq!(e.kind(), ErrorKind::Input, "{e}")).ok()
}

/// `bytes`: a safetensors header's text, then how many bytes of data follow it (8, little endian).
pub fn safetensors(bytes: &[u8]) -> bool {
    let Some((json, data)) = bytes.split_last_chunk::<8>() else { return false };
    let data = u64::from_le_bytes(*data).min(1 << 50);
    let start = 8 + json.len() as u64;
    let Some(tensors) = checked(hf::header::parse(json, data, start)) else { return false };
    let inside = |t: &hf::TensorInfo| t.offset >= start && t.offset + t.len <= start + data;
    assert!(tensors.iter().all(inside));
    true
}

/// `bytes`: a whole GGUF file.
pub fn gguf(bytes: &[u8]) -> bool {
    let Some(found) = checked(gguf::parse(bytes, bytes.len() as u64)) else { return false };
    assert!(found.tensors.iter().all(|t| t.offset + t.len <= bytes.len() as u64));
    checked(gguf::vocabulary(&found).and_then(|vocabulary| vocabulary.tokenizer()));
    checked(gguf::config(&found).and_then(|config| gguf::table(&found, &config, "file".as_ref())));
    true
}
