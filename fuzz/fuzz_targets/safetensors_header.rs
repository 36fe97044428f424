//! No bytes make the reader of safetensors headers fail in another way than with an error, or find
//! a tensor outside the file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use semoe::model::hf::header::parse;

fuzz_target!(|bytes: &[u8]| {
    let half = bytes.len() / 2;
    if let Ok(tensors) = parse(&bytes[..half], (bytes.len() - half) as u64, half as u64) {
        for tensor in tensors {
            assert!(tensor.offset + tensor.len <= bytes.len() as u64);
        }
    }
});
