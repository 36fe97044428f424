//! Writing a checkpoint back as a Hugging Face folder, streaming.
//!
//! Law: a tensor whose encoding Hugging Face has is written byte for byte; all others become bf16.

use super::entries::Origin;
use super::layout::MatrixAt;
use super::source::Source;
use super::store::recode;
use super::stored::{Stored, scales_shape};
use crate::base::file::{read_json, write_whole};
use crate::base::{Error, Result};
use crate::model::config::Precision;
use crate::model::family::{ExpertNames, dense_tensors, expert_tensors};
use crate::model::forward::{Tensors, matrix_shape};
use crate::model::hf::{Dtype, ShardTensor, Shards};
use crate::model::kernels::linear::{Encoding, Matrix};
use std::path::Path;

/// Writes `source` to the folder `to`, in files of at most `shard_bytes`. `progress` hears of
/// tensors and experts written, and of all.
///
/// # Errors
/// Input: `to` already holds a checkpoint, or is the one exported; Io.
pub fn export(
    source: &Source,
    to: &Path,
    shard_bytes: u64,
    mut progress: impl FnMut(u64, u64),
) -> Result<()> {
    for name in ["model.safetensors", "model.safetensors.index.json", super::store::INDEX] {
        if to.join(name).exists() {
            return Err(Error::input(format!(
                "{} already holds a checkpoint; give another folder, or remove it",
                to.display()
            )));
        }
    }
    let mut export = Export { source, native: is_native(source), shards: None };
    let tensors = export.list()?;
    export.shards = Some(Shards::create(to, tensors, shard_bytes)?);
    let config = source.config();
    let dense = dense_tensors(config);
    let experts = source.experts().layers.iter().map(Vec::len).sum::<usize>();
    let total = (dense.len() + experts) as u64;
    let mut done = 0;
    let mut step = || {
        done += 1;
        progress(done, total);
    };
    for tensor in &dense {
        export.write_dense(&tensor.name, &tensor.shape)?;
        step();
    }
    for layer in 0..config.layers {
        for expert in 0..source.experts().layers[layer].len() {
            export
                .write_expert(layer, expert)
                .map_err(|e| e.with("layer", layer).with("expert", expert))?;
            step();
        }
    }
    let native = export.native;
    if let Some(shards) = export.shards {
        shards.finish()?;
    }
    write_beside(source, to, native)
}

/// Whether every matrix is in an encoding that Hugging Face has, and all experts in the same one:
/// then nothing is decoded, and `quantization_config` stays true.
fn is_native(source: &Source) -> bool {
    let mut experts = source.experts().layers.iter().flatten();
    let first = experts.next().map(|expert| expert.layout.down.encoding);
    let same = experts
        .flat_map(|expert| expert.layout.matrices())
        .all(|matrix| Some(matrix.encoding) == first);
    let native = |encoding: Encoding| {
        encoding.is_float() || matches!(encoding, Encoding::Fp8 | Encoding::Mxfp4)
    };
    let dense = source.table().tensors.values().map(|place| place.stored);
    let dense_native = dense.clone().filter_map(Stored::encoding).all(native);
    // Experts that were brought to floats leave no FP8 beside them that a reader would expect.
    let fp8 = dense.filter_map(Stored::encoding).any(|encoding| encoding == Encoding::Fp8);
    same && dense_native && first.is_some_and(native) && (!fp8 || first == Some(Encoding::Fp8))
}

struct Export<'a> {
    source: &'a Source,
    native: bool,
    shards: Option<Shards>,
}

impl Export<'_> {
    /// The encoding that a matrix is written in.
    fn target(&self, encoding: Encoding) -> Encoding {
        if encoding.is_float() || self.native { encoding } else { Encoding::Bf16 }
    }

    /// All tensors to be written: each layer's experts follow that layer's dense tensors.
    fn list(&self) -> Result<Vec<ShardTensor>> {
        let config = self.source.config();
        let mut list = Vec::new();
        let mut layer = None;
        for tensor in dense_tensors(config) {
            if let Some(last) = layer.filter(|last| tensor.layer != Some(*last)) {
                self.list_experts(last, &mut list)?;
            }
            layer = tensor.layer;
            let encoding = self.target(self.source.encoding(&tensor.name, &tensor.shape)?);
            push(&mut list, &tensor.name, &tensor.shape, encoding)?;
        }
        Ok(list)
    }

    fn list_experts(&self, layer: usize, list: &mut Vec<ShardTensor>) -> Result<()> {
        let config = self.source.config();
        let experts = &self.source.experts().layers[layer];
        let Some(first) = experts.first() else { return Ok(()) };
        if config.family.spec().expert_names == ExpertNames::Fused {
            let names = ["gate_up_proj", "down_proj"];
            for (name, matrix) in names.into_iter().zip(first.layout.matrices()) {
                self.list_fused(layer, name, matrix, experts.len(), list);
            }
            return Ok(());
        }
        for (number, expert) in experts.iter().enumerate() {
            let names = expert_tensors(config, layer, number)?;
            for ((name, shape), matrix) in names.iter().zip(expert.layout.matrices()) {
                push(list, name, shape, self.target(matrix.encoding))?;
            }
        }
        Ok(())
    }

    fn list_fused(
        &self,
        layer: usize,
        name: &str,
        matrix: &MatrixAt,
        experts: usize,
        list: &mut Vec<ShardTensor>,
    ) {
        let name = self.fused(layer, name);
        let (rows, cols) = (matrix.rows, matrix.cols);
        let mut add = |suffix: &str, dtype: Dtype, shape: &[usize]| {
            list.push(ShardTensor {
                name: format!("{name}{suffix}"),
                dtype,
                shape: shape.to_vec(),
            });
        };
        match self.target(matrix.encoding) {
            Encoding::Mxfp4 => {
                let block = Encoding::Mxfp4.block();
                add("_blocks", Dtype::U8, &[experts, rows, cols / block, block / 2]);
                add("_scales", Dtype::U8, &[experts, rows, cols / block]);
            }
            float => add("", dtype_of(float), &[experts, cols, rows]),
        }
        if let Some(bias) = &matrix.bias {
            add("_bias", dtype_of(bias.encoding), &[experts, rows]);
        }
    }

    fn fused(&self, layer: usize, name: &str) -> String {
        format!("model.layers.{layer}.{}.{name}", self.source.config().family.spec().experts)
    }

    fn put(&mut self, name: &str, at: usize, bytes: &[u8]) -> Result<()> {
        let shards = self.shards.as_mut().ok_or_else(|| Error::bug("no file was started"))?;
        shards.write(name, at as u64, bytes)
    }

    fn write_dense(&mut self, name: &str, shape: &[usize]) -> Result<()> {
        let source = self.source;
        let to = self.target(source.encoding(name, shape)?);
        let (mut at, mut scales_at) = (0, 0);
        let scales_name = scales_shape(to, 1, matrix_shape(shape).1).map(|(suffix, _)| suffix);
        source.each_slice(name, shape, |slice| {
            let (data, scales) = recoded(slice, to)?;
            self.put(name, at, &data)?;
            at += data.len();
            if let Some(suffix) = scales_name {
                self.put(&format!("{name}{suffix}"), scales_at, &scales)?;
                scales_at += scales.len();
            }
            Ok(())
        })
    }

    fn write_expert(&mut self, layer: usize, expert: usize) -> Result<()> {
        let source = self.source;
        let pieces = source.read_expert(layer, expert)?;
        let pieces: Vec<&[u8]> = pieces.iter().map(|piece| &**piece).collect();
        let layout = source.layout(layer, expert)?;
        if source.config().family.spec().expert_names == ExpertNames::Fused {
            let names = ["gate_up_proj", "down_proj"];
            for (name, matrix) in names.into_iter().zip(layout.matrices()) {
                self.write_fused(&self.fused(layer, name), expert, matrix, &pieces)?;
            }
            return Ok(());
        }
        let names = expert_tensors(source.config(), layer, expert)?;
        for ((name, _), matrix) in names.iter().zip(layout.matrices()) {
            let to = self.target(matrix.encoding);
            let (data, scales) = recoded(&matrix.view(&pieces)?.matrix, to)?;
            self.put(name, 0, &data)?;
            if let Some((suffix, _)) = scales_shape(to, matrix.rows, matrix.cols) {
                self.put(&format!("{name}{suffix}"), 0, &scales)?;
            }
        }
        Ok(())
    }

    fn write_fused(
        &mut self,
        name: &str,
        expert: usize,
        at: &MatrixAt,
        pieces: &[&[u8]],
    ) -> Result<()> {
        let projection = at.view(pieces)?;
        let matrix = &projection.matrix;
        if let Some(bias) = projection.bias {
            self.put(&format!("{name}_bias"), expert * bias.data.len(), bias.data)?;
        }
        let to = self.target(matrix.encoding);
        if to == Encoding::Mxfp4 {
            self.put(&format!("{name}_blocks"), expert * matrix.data.len(), matrix.data)?;
            return self.put(
                &format!("{name}_scales"),
                expert * matrix.scales.len(),
                matrix.scales,
            );
        }
        let data = if matrix.transposed {
            matrix.data.to_vec()
        } else {
            let (data, _) = recoded(matrix, to)?;
            transposed(&data, matrix.rows, matrix.cols)
        };
        self.put(name, expert * data.len(), &data)
    }
}

fn push(
    list: &mut Vec<ShardTensor>,
    name: &str,
    shape: &[usize],
    encoding: Encoding,
) -> Result<()> {
    let tensor = |name: String, dtype, shape| ShardTensor { name, dtype, shape };
    list.push(tensor(name.to_owned(), dtype_of(encoding), shape.to_vec()));
    let (rows, cols) = matrix_shape(shape);
    if let Some((suffix, shape)) = scales_shape(encoding, rows, cols) {
        list.push(tensor(format!("{name}{suffix}"), Dtype::F32, shape));
    }
    Ok(())
}

fn dtype_of(encoding: Encoding) -> Dtype {
    match Stored::of(encoding) {
        Stored::Plain(dtype) => dtype,
        Stored::Blocks(_) => Dtype::U8,
    }
}

/// Data and scales of a matrix in the encoding `to`.
fn recoded(matrix: &Matrix<'_>, to: Encoding) -> Result<(Vec<u8>, Vec<u8>)> {
    let mut data = vec![0; to.data_bytes(matrix.rows, matrix.cols)?];
    let mut scales = vec![0; to.scale_bytes(matrix.rows, matrix.cols)];
    recode(matrix, to, false, &mut data, &mut scales)?;
    Ok((data, scales))
}

/// [rows, cols] as [cols, rows].
fn transposed(data: &[u8], rows: usize, cols: usize) -> Vec<u8> {
    let width = data.len() / (rows * cols).max(1);
    let mut out = Vec::with_capacity(data.len());
    for col in 0..cols {
        for row in 0..rows {
            let at = (row * cols + col) * width;
            out.extend_from_slice(&data[at..at + width]);
        }
    }
    out
}

/// Configuration, tokenizer and chat template.
fn write_beside(source: &Source, to: &Path, native: bool) -> Result<()> {
    super::store::write_beside(source, to)?;
    if native || source.origin() == Origin::Gguf {
        return Ok(());
    }
    let path = to.join("config.json");
    let Some(serde_json::Value::Object(mut config)) = read_json(&path)? else {
        let config = source.config().to_hf_json(Precision::Bf16);
        return write_whole(&path, format!("{config:#}\n").as_bytes());
    };
    config.remove("quantization_config");
    for key in ["dtype", "torch_dtype"] {
        if config.contains_key(key) {
            config.insert(key.into(), "bfloat16".into());
        }
    }
    let config = serde_json::Value::Object(config);
    write_whole(&path, format!("{config:#}\n").as_bytes())
}
