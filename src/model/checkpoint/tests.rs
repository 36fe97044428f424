//! Checkpoints of every format and encoding, opened, and the bytes that their pieces name.

use super::*;
use crate::model::config::ModelConfig;
use crate::model::family::{ExpertNames, dense_tensors, expert_tensors};
use crate::model::forward::Tensors;
use crate::model::hf::Checkpoint;
use crate::model::kernels::linear::{Encoding, ExpertWeights, GateUp, Matrix, decode_row};
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};
use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

pub(super) fn fixture(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hf").join(family)
}

pub(super) const FAMILIES: [&str; 7] =
    ["olmoe", "mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v3", "glm4_moe", "gpt_oss"];

/// Raw tensors of a folder: what a test changes and writes as another.
pub(super) struct Raw(pub BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>);

impl Raw {
    pub fn of(dir: &Path) -> Self {
        let mut all = BTreeMap::new();
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if !name.starts_with("model") || !name.ends_with(".safetensors") {
                continue;
            }
            let bytes = std::fs::read(&path).unwrap();
            let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            for (name, view) in tensors.tensors() {
                all.insert(name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()));
            }
        }
        Self(all)
    }

    /// Every f32 tensor as bf16.
    pub fn round_to_bf16(&mut self) {
        for (dtype, _, bytes) in self.0.values_mut() {
            if *dtype == Dtype::F32 {
                *dtype = Dtype::BF16;
                *bytes = bytes
                    .as_chunks::<4>()
                    .0
                    .iter()
                    .flat_map(|b| half::bf16::from_f32(f32::from_le_bytes(*b)).to_le_bytes())
                    .collect();
            }
        }
    }

    pub fn write(&self, from: &Path, to: &Path) {
        std::fs::create_dir_all(to).unwrap();
        std::fs::copy(from.join("config.json"), to.join("config.json")).unwrap();
        let views: Vec<(&String, TensorView<'_>)> = self
            .0
            .iter()
            .map(|(name, (dtype, shape, bytes))| {
                (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
            })
            .collect();
        serialize_to_file(views, None, &to.join("model.safetensors")).unwrap();
    }
}

/// An expert's pieces as their files hold them.
fn bytes_of(source: &Source, layer: usize, expert: usize) -> Vec<Vec<u8>> {
    let read = |piece: &Piece| {
        let mut bytes = vec![0; piece.len as usize];
        let file = std::fs::File::open(&source.files()[piece.file]).unwrap();
        file.read_exact_at(&mut bytes, piece.offset).unwrap();
        bytes
    };
    source.pieces(layer, expert).iter().map(read).collect()
}

fn rows(matrix: &Matrix<'_>) -> Vec<f32> {
    let mut out = vec![0.0; matrix.rows * matrix.cols];
    for (row, out) in out.chunks_mut(matrix.cols).enumerate() {
        decode_row(matrix, row, out).unwrap();
    }
    out
}

fn matrices<'a>(expert: &ExpertWeights<'a>) -> Vec<Matrix<'a>> {
    match &expert.gate_up {
        GateUp::Apart { gate, up } => vec![gate.matrix, up.matrix, expert.down.matrix],
        GateUp::Stacked(both) | GateUp::Interleaved(both) => vec![both.matrix, expert.down.matrix],
    }
}

fn read(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let mut out = vec![0.0; checkpoint.info(name).unwrap().1.elements() as usize];
    checkpoint.read_f32(name, &mut out).unwrap();
    out
}

/// Numbers of an expert as another reader of the folder has them, row by row of each matrix.
fn expected(checkpoint: &Checkpoint, config: &ModelConfig, l: usize, e: usize) -> Vec<Vec<f32>> {
    if let ExpertNames::Each(_) = config.family.spec().expert_names {
        let names = expert_tensors(config, l, e).unwrap();
        return names.iter().map(|(name, _)| read(checkpoint, name)).collect();
    }
    let (h, f) = (config.hidden, config.expert_width);
    let part = |name: &str, rows: usize, cols: usize| {
        let all = read(checkpoint, &format!("model.layers.{l}.mlp.experts.{name}"));
        let own = &all[e * rows * cols..(e + 1) * rows * cols];
        // [cols, rows] as [rows, cols].
        (0..rows * cols).map(|i| own[i % cols * rows + i / cols]).collect()
    };
    vec![part("gate_up_proj", 2 * f, h), part("down_proj", h, f)]
}

#[test]
fn every_family_is_opened_where_it_lies() {
    for family in FAMILIES {
        let dir = fixture(family);
        let source = Source::open(&dir).unwrap();
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let config = source.config();
        for layer in 0..config.layers {
            if config.is_dense(layer) {
                assert!(source.pieces(layer, 0).is_empty());
                continue;
            }
            for e in 0..config.experts {
                let bytes = bytes_of(&source, layer, e);
                let bytes: Vec<&[u8]> = bytes.iter().map(Vec::as_slice).collect();
                let expert = source.expert(layer, e, &bytes).unwrap();
                assert_eq!(expert.shape().unwrap(), (config.hidden, config.expert_width));
                let found: Vec<_> = matrices(&expert).iter().map(rows).collect();
                assert_eq!(found, expected(&checkpoint, config, layer, e), "{family} {layer} {e}");
            }
        }
        for tensor in dense_tensors(config) {
            let matrix = source.tensor(&tensor.name, &tensor.shape).unwrap();
            assert_eq!(rows(&matrix.view()), read(&checkpoint, &tensor.name), "{}", tensor.name);
        }
    }
}

#[test]
fn a_fetch_reads_what_the_expert_has_and_nothing_more() {
    let source = Source::open(&fixture("mixtral")).unwrap();
    let c = source.config();
    let read: u64 = source.pieces(1, 3).iter().map(|piece| piece.len).sum();
    assert_eq!(read as usize, 3 * c.hidden * c.expert_width * 4);
}

#[test]
fn fp8_stays_fp8() {
    let dir = fixture("deepseek_v3");
    let mut raw = Raw::of(&dir);
    let name = "model.layers.1.mlp.experts.2.up_proj.weight";
    let (_, shape, _) = raw.0[name].clone();
    let data: Vec<u8> = (0..shape[0] * shape[1]).map(|i| (i * 37 % 120) as u8).collect();
    raw.0.insert(name.into(), (Dtype::F8_E4M3, shape.clone(), data.clone()));
    let scale = 0.5f32.to_le_bytes().to_vec();
    raw.0.insert(format!("{name}_scale_inv"), (Dtype::F32, vec![1, 1], scale));
    let to = tempfile::tempdir().unwrap();
    raw.write(&dir, to.path());
    let source = Source::open(to.path()).unwrap();
    let bytes = bytes_of(&source, 1, 2);
    let bytes: Vec<&[u8]> = bytes.iter().map(Vec::as_slice).collect();
    let up = matrices(&source.expert(1, 2, &bytes).unwrap())[1];
    assert_eq!(up.encoding, Encoding::Fp8);
    assert_eq!(up.data, data);
    // 0x38 is 1.0 in e4m3.
    let at = data.iter().position(|b| *b == 0x38).unwrap();
    assert_eq!(rows(&up)[at], 0.5);

    raw.0.remove(&format!("{name}_scale_inv"));
    raw.write(&dir, to.path());
    let e = Source::open(to.path()).unwrap_err().to_string();
    assert!(e.contains("missing") && e.contains("up_proj.weight_scale_inv"), "{e}");
}

#[test]
fn mxfp4_stays_mxfp4() {
    let dir = fixture("gpt_oss");
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap();
    config["intermediate_size"] = 64.into();
    let mut raw = Raw::of(&dir);
    let (experts, h, f) = (8usize, 64usize, 64usize);
    for layer in 0..3 {
        for (name, rows, cols) in [("gate_up_proj", 2 * f, h), ("down_proj", h, f)] {
            let name = format!("model.layers.{layer}.mlp.experts.{name}");
            raw.0.remove(&name);
            let blocks = (0..experts * rows * cols / 2).map(|i| (i * 7 % 256) as u8).collect();
            let scales = (0..experts * rows * cols / 32).map(|i| 120 + (i % 9) as u8).collect();
            let shape = vec![experts, rows, cols / 32];
            let blocks_shape = [shape.clone(), vec![16]].concat();
            raw.0.insert(format!("{name}_blocks"), (Dtype::U8, blocks_shape, blocks));
            raw.0.insert(format!("{name}_scales"), (Dtype::U8, shape, scales));
            let bias = vec![0; experts * rows * 2];
            raw.0.insert(format!("{name}_bias"), (Dtype::BF16, vec![experts, rows], bias));
        }
    }
    let to = tempfile::tempdir().unwrap();
    raw.write(&dir, to.path());
    std::fs::write(to.path().join("config.json"), config.to_string()).unwrap();
    let source = Source::open(to.path()).unwrap();
    let bytes = bytes_of(&source, 2, 5);
    let bytes: Vec<&[u8]> = bytes.iter().map(Vec::as_slice).collect();
    let expert = source.expert(2, 5, &bytes).unwrap();
    let GateUp::Interleaved(both) = expert.gate_up else { panic!("not interleaved") };
    let whole = &raw.0["model.layers.2.mlp.experts.gate_up_proj_blocks"].2;
    let each = whole.len() / experts;
    assert_eq!(both.matrix.encoding, Encoding::Mxfp4);
    assert_eq!(both.matrix.data, &whole[5 * each..6 * each]);
    assert_eq!(both.bias.unwrap().encoding, Encoding::Bf16);
    expert.shape().unwrap();
}

#[test]
fn a_checkpoint_that_was_written_down_is_opened_without_its_headers() {
    let from = fixture("qwen3_moe");
    let dir = tempfile::tempdir().unwrap();
    Raw::of(&from).write(&from, dir.path());
    let source = Source::open(dir.path()).unwrap();
    let text = serde_json::to_string(&source.entries()).unwrap();
    let entries = || serde_json::from_str::<Entries>(&text).unwrap();
    let again = Source::from_entries(dir.path(), entries()).unwrap();
    assert_eq!(again.entries(), source.entries());
    assert_eq!(again.pieces(2, 7), source.pieces(2, 7));
    let mut torn = entries();
    torn.rows.pop();
    assert!(Source::from_entries(dir.path(), torn).is_err());

    // Written again with the same bytes: another time, so another checkpoint.
    let file = dir.path().join("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    std::fs::write(&file, bytes).unwrap();
    let e = Source::from_entries(dir.path(), entries()).unwrap_err();
    assert!(e.to_string().contains("not those that were opened"), "{e}");
}

/// The message of opening the changed fixture, without the folder's name.
fn refusal(change: impl FnOnce(&mut Raw)) -> String {
    let dir = fixture("olmoe");
    let mut raw = Raw::of(&dir);
    change(&mut raw);
    let to = tempfile::tempdir().unwrap();
    raw.write(&dir, to.path());
    let e = Source::open(to.path()).unwrap_err();
    e.to_string().replace(&to.path().display().to_string(), "DIR")
}

#[test]
fn tensors_that_do_not_fit_are_refused_by_name() {
    const UP: &str = "model.layers.1.mlp.experts.3.up_proj.weight";
    let mut messages = vec![
        refusal(|raw| drop(raw.0.remove(UP))),
        refusal(|raw| raw.0.get_mut(UP).unwrap().1.reverse()),
        refusal(|raw| raw.0.get_mut(UP).unwrap().0 = Dtype::I32),
        refusal(|raw| drop(raw.0.remove("model.norm.weight"))),
        refusal(|raw| {
            let bias = (Dtype::F32, vec![1], vec![0; 4]);
            raw.0.insert("model.layers.0.self_attn.q_proj.bias".into(), bias);
        }),
    ];
    let e = Source::open(Path::new("/no/such/checkpoint")).unwrap_err();
    messages.push(e.to_string());
    insta::assert_snapshot!(messages.join("\n"));
}
