//! No bytes make the reader of GGUF headers fail in another way than with an error, or find a
//! tensor outside the file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use semoe::model::gguf::{config, parse, table, vocabulary};

fuzz_target!(|bytes: &[u8]| {
    let Ok(gguf) = parse(bytes, bytes.len() as u64) else { return };
    for tensor in &gguf.tensors {
        assert!(tensor.offset + tensor.len <= bytes.len() as u64);
    }
    let _ = vocabulary(&gguf).and_then(|vocabulary| vocabulary.tokenizer());
    let _ = config(&gguf).and_then(|config| table(&gguf, &config, "file".as_ref()));
});
