//! Bytes that were changed at random, from valid headers: the parsers answer with tensors inside
//! the file or with an error, never with a panic. Runs for SEMOE_FUZZ_SECONDS (2) each; the draws
//! have a seed, so that what fails once fails again. `make fuzz` has libFuzzer look for more.

#[path = "../fuzz/looks.rs"]
mod looks;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// SplitMix64 (Steele et al. 2014).
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// Numbers that lie well.
const HOSTILE: [u64; 10] =
    [0, 1, 31, 0xff, 0x7fff_ffff, 0xffff_ffff, 1 << 40, i64::MAX as u64, u64::MAX - 7, u64::MAX];

/// One to eight changes: bits, numbers, digits, pieces moved, the end cut off.
fn mutate(bytes: &mut Vec<u8>, draw: &mut Draw) {
    for _ in 0..=draw.below(8) {
        let at = draw.below(bytes.len());
        match draw.below(7) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << draw.below(8),
            1 if !bytes.is_empty() => bytes[at] = draw.next() as u8,
            2 | 3 => {
                let number = HOSTILE[draw.below(HOSTILE.len())].to_le_bytes();
                let width = if draw.below(2) == 0 { 4 } else { 8 };
                for (to, from) in bytes[at..].iter_mut().zip(&number[..width]) {
                    *to = *from;
                }
            }
            4 => {
                let digits = HOSTILE[draw.below(HOSTILE.len())].to_string();
                let digit = bytes[at..].iter().position(u8::is_ascii_digit).map(|i| at + i);
                if let Some(i) = digit {
                    bytes.splice(i..=i, digits.bytes());
                }
            }
            5 => {
                let end = (at + draw.below(64)).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                let to = draw.below(bytes.len());
                bytes.splice(to..to, piece);
            }
            _ => bytes.truncate(at.max(bytes.len() / 2)),
        }
    }
}

/// Mutates `seeds` until the time is over; `look` says whether a header was accepted.
fn run(seeds: &[Vec<u8>], look: fn(&[u8]) -> bool) {
    let seconds = std::env::var("SEMOE_FUZZ_SECONDS").ok();
    let seconds = seconds.map_or(2, |text| text.parse().expect("SEMOE_FUZZ_SECONDS is a number"));
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut draw = Draw(20_261_124);
    let (mut tried, mut accepted) = (0u64, 0u64);
    for seed in seeds {
        assert!(look(seed), "a seed is refused");
    }
    while Instant::now() < until {
        let mut bytes = seeds[draw.below(seeds.len())].clone();
        mutate(&mut bytes, &mut draw);
        accepted += u64::from(look(&bytes));
        tried += 1;
    }
    println!("{tried} headers, {accepted} accepted");
    assert!(tried > 100 && accepted < tried, "{tried} {accepted}");
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

#[test]
fn safetensors() {
    let small = r#"{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"__metadata__":{"x":"y"},"b":{"dtype":"BF16","shape":[3],"data_offsets":[16,22]}}"#;
    // The text, then the length of the data as a number.
    let seed = |json: &[u8], data: u64| [json, &data.to_le_bytes()].concat();
    let file = std::fs::read(fixture("hf/gpt_oss/model.safetensors")).unwrap();
    let len = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let real = seed(&file[8..8 + len], (file.len() - 8 - len) as u64);
    run(&[seed(small.as_bytes(), 22), real], looks::safetensors);
}

#[test]
fn gguf_files() {
    let read = |name: &str| std::fs::read(fixture(name)).unwrap();
    // Of a model the header and enough bytes to stand for the data.
    let seeds = [read("gguf/types.gguf"), read("gguf/spm.gguf"), read("gguf/bpe.gguf")];
    run(&seeds, looks::gguf);
}
