//! Files that the `gguf` package wrote (tests/fixtures/gguf/make.py), and hostile ones.

use super::*;
use crate::model::checkpoint::Source;
use crate::model::family::{dense_tensors, expert_tensors};
use crate::model::forward::Tensors;
use crate::model::hf::Checkpoint;
use crate::model::kernels::linear::{Encoding, GateUp, Matrix, decode_row};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn rows(matrix: &Matrix<'_>) -> Vec<f32> {
    let mut out = vec![0.0; matrix.rows * matrix.cols];
    for (row, out) in out.chunks_mut(matrix.cols).enumerate() {
        decode_row(matrix, row, out).unwrap();
    }
    out
}

/// What the Hugging Face fixture has, rounded as the GGUF file has it.
fn expected(hf: &Checkpoint, name: &str, encoding: Encoding) -> Vec<f32> {
    let mut out = vec![0.0; hf.info(name).unwrap().1.elements() as usize];
    hf.read_f32(name, &mut out).unwrap();
    if encoding == Encoding::F16 {
        out.iter_mut().for_each(|value| *value = half::f16::from_f32(*value).to_f32());
    }
    out
}

#[test]
fn models_hold_what_their_hugging_face_folders_hold() {
    for family in ["olmoe", "mixtral", "qwen2_moe", "qwen3_moe"] {
        let source = Source::open(&fixture(&format!("gguf/{family}.gguf"))).unwrap();
        let hf = fixture(&format!("hf/{family}"));
        let mut config = crate::model::config::ModelConfig::from_hf(&hf).unwrap();
        // Matters to training alone, and a GGUF file does not say it.
        config.init_std = source.config().init_std;
        config.router_aux_coef = source.config().router_aux_coef;
        // GGUF keeps both in f32.
        config.norm_eps = f64::from(config.norm_eps as f32);
        config.rope_theta = f64::from(config.rope_theta as f32);
        assert_eq!(*source.config(), config, "{family}");
        let hf = Checkpoint::open(&hf).unwrap();
        for tensor in dense_tensors(&config) {
            let matrix = source.tensor(&tensor.name, &tensor.shape).unwrap();
            let wanted = expected(&hf, &tensor.name, matrix.encoding);
            assert!(rows(&matrix.view()) == wanted, "{family} {}", tensor.name);
        }
        for (layer, e) in [(0, 0), (1, 5), (2, 7)] {
            let pieces = source.read_expert(layer, e).unwrap();
            let pieces: Vec<&[u8]> = pieces.iter().map(|piece| &**piece).collect();
            let expert = source.expert(layer, e, &pieces).unwrap();
            let GateUp::Apart { gate, up } = expert.gate_up else { panic!("fused") };
            let names = expert_tensors(&config, layer, e).unwrap();
            let found = [gate.matrix, up.matrix, expert.down.matrix];
            for ((name, _), matrix) in names.iter().zip(found) {
                assert_eq!(matrix.encoding, Encoding::F16);
                assert!(rows(&matrix) == expected(&hf, name, Encoding::F16), "{family} {name}");
            }
        }
        let tokenizer = source.tokenizer().unwrap();
        assert_eq!(tokenizer.encode("the a").unwrap(), [259, 3 + 101, 3 + 32, 3 + 97]);
        let template = source.chat_template(&tokenizer, SystemTime::UNIX_EPOCH).unwrap().unwrap();
        let line = json!({ "messages": [{ "role": "user", "content": "hi" }] });
        let text = template
            .render(&serde_json::from_value::<minijinja::Value>(line).unwrap(), false)
            .unwrap();
        assert_eq!(text, "[user] hi\n");
    }
}

#[test]
fn every_type_is_where_the_header_says() {
    let path = fixture("gguf/types.gguf");
    let gguf = Gguf::open(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let decoded = Checkpoint::open_file(&fixture("gguf/types.safetensors")).unwrap();
    assert_eq!(gguf.tensors.len(), 7);
    for tensor in &gguf.tensors {
        assert_eq!(tensor.shape, [4, 256], "{}", tensor.name);
        let data = &bytes[tensor.offset as usize..(tensor.offset + tensor.len) as usize];
        let encoding = tensor.stored.encoding().unwrap();
        let found = rows(&Matrix::new(encoding, 4, 256, data).unwrap());
        let mut wanted = vec![0.0; 1024];
        decoded.read_f32(&tensor.name, &mut wanted).unwrap();
        for (found, wanted) in found.iter().zip(&wanted) {
            let near = (found - wanted).abs() <= 1e-6 * wanted.abs().max(1.0);
            assert!(near, "{}: {found} is not {wanted}", tensor.name);
        }
    }
}

#[test]
fn vocabularies_encode_as_those_that_they_were_made_from() {
    for name in ["bpe", "spm"] {
        let gguf = Gguf::open(&fixture(&format!("gguf/{name}.gguf"))).unwrap();
        let tokenizer = vocabulary(&gguf).unwrap().tokenizer().unwrap();
        let golden = std::fs::read_to_string(fixture(&format!("gguf/{name}.json"))).unwrap();
        let golden: serde_json::Value = serde_json::from_str(&golden).unwrap();
        let texts = golden["texts"].as_array().unwrap();
        for (text, ids) in texts.iter().zip(golden["ids"].as_array().unwrap()) {
            let text = text.as_str().unwrap();
            let found = tokenizer.encode(text).unwrap();
            assert_eq!(json!(found), *ids, "{name}: {text:?}");
            assert_eq!(tokenizer.decode(&found, false).unwrap(), text, "{name}");
        }
        assert_eq!(tokenizer.add_bos(), name == "spm");
    }
}

/// A header by hand.
struct Header(Vec<u8>);

impl Header {
    fn new(tensors: u64, keys: u64) -> Self {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(tensors.to_le_bytes());
        bytes.extend(keys.to_le_bytes());
        Self(bytes)
    }

    fn text(mut self, text: &str) -> Self {
        self.0.extend((text.len() as u64).to_le_bytes());
        self.0.extend(text.as_bytes());
        self
    }

    fn u32(mut self, n: u32) -> Self {
        self.0.extend(n.to_le_bytes());
        self
    }

    fn u64(mut self, n: u64) -> Self {
        self.0.extend(n.to_le_bytes());
        self
    }

    fn tensor(self, name: &str, dims: &[u64], kind: u32, offset: u64) -> Self {
        let start = self.text(name).u32(dims.len() as u32);
        dims.iter().fold(start, |header, dim| header.u64(*dim)).u32(kind).u64(offset)
    }

    /// The message for it with `data` bytes behind, aligned.
    fn refused(mut self, data: usize) -> String {
        let start = self.0.len().next_multiple_of(32);
        self.0.resize(start + data, 0);
        parse(self.0.as_slice(), self.0.len() as u64).unwrap_err().to_string()
    }
}

#[test]
fn headers_that_lie_are_refused_by_name() {
    let new = Header::new;
    let messages = [
        parse(&b"GG"[..], 2).unwrap_err().to_string(),
        parse(&b"GGML\x03\0\0\0"[..], 8).unwrap_err().to_string(),
        parse(&b"GGUF\0\0\0\x03"[..], 8).unwrap_err().to_string(),
        new(u64::MAX, 0).refused(0),
        new(0, 1 << 60).refused(0),
        new(0, 1).text("a").u32(99).refused(64),
        new(0, 1).u64(1 << 40).refused(64),
        new(0, 1).text("a").u32(9).u32(8).u64(1 << 50).refused(64),
        new(0, 1).text("a").u32(9).u32(9).u64(1).refused(64),
        new(0, 2).text("a").u32(4).u32(1).text("a").u32(4).u32(1).refused(64),
        new(0, 1).text("general.alignment").u32(4).u32(24).refused(64),
        new(1, 0).tensor("w", &[32; 5], 0, 0).refused(64),
        new(1, 0).tensor("w", &[32], 13, 0).refused(64),
        new(1, 0).tensor("w", &[33], 8, 0).refused(64),
        new(1, 0).tensor("w", &[1 << 40, 1 << 40], 0, 0).refused(64),
        new(1, 0).tensor("w", &[32], 0, 0).refused(64),
        new(1, 0).tensor("w", &[8], 0, 64).refused(256),
        new(2, 0).tensor("v", &[32], 0, 0).tensor("w", &[32], 0, 64).refused(512),
        new(2, 0).tensor("w", &[8], 0, 0).tensor("w", &[8], 0, 32).refused(512),
    ];
    insta::assert_snapshot!(messages.join("\n"));
}

/// The message for the metadata of `keys` under the architecture.
fn config_refusal(change: impl FnOnce(&mut Gguf)) -> String {
    let mut gguf = Gguf::open(&fixture("gguf/qwen2_moe.gguf")).unwrap();
    change(&mut gguf);
    config(&gguf).and_then(|c| table(&gguf, &c, Path::new("FILE"))).unwrap_err().to_string()
}

#[test]
fn models_that_would_run_wrong_are_refused_by_name() {
    let set = |key: &str, value: Value| {
        let key = key.to_owned();
        config_refusal(move |gguf| drop(gguf.metadata.insert(key, value)))
    };
    let text = |text: &str| Value::Text(text.into());
    let messages = [
        set("general.architecture", text("bert")),
        set("qwen2moe.rope.scaling.type", text("yarn")),
        set("qwen2moe.new_trick", Value::Number(2.0)),
        set("qwen2moe.block_count", text("three")),
        set("qwen2moe.expert_count", Value::Whole(7)),
        config_refusal(|gguf| drop(gguf.metadata.remove("qwen2moe.embedding_length"))),
        config_refusal(|gguf| gguf.tensors.retain(|t| t.name != "blk.1.ffn_up_exps.weight")),
        config_refusal(|gguf| gguf.tensors[0].name = "blk.0.attn_q.lora".into()),
        {
            let mut gguf = Gguf::open(&fixture("gguf/bpe.gguf")).unwrap();
            gguf.metadata.insert("tokenizer.ggml.pre".into(), text("unheard-of"));
            vocabulary(&gguf).unwrap().tokenizer().unwrap_err().to_string()
        },
    ];
    insta::assert_snapshot!(messages.join("\n"));
}
