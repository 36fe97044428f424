//! The tensors of a GGUF file under their Hugging Face names: llama.cpp's names, its experts fused
//! to one tensor a projection, its order of the rows that rotate.

use super::header::{Gguf, Tensor};
use crate::base::{Error, Result};
use crate::model::checkpoint::{Piece, Place, RowOrder, Table};
use crate::model::config::ModelConfig;
use crate::model::family::{Family, Slot, dense_tensors, expert_tensors};
use std::collections::{BTreeMap, HashSet};
use std::path::Path;

/// llama.cpp's fused tensors of gate, up and down, in the order of [`expert_tensors`].
const EXPERTS: [&str; 3] = ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"];

/// The table of a file's tensors.
///
/// # Errors
/// Input, naming file and tensor: one that the model needs is missing or misshapen, or one is left
/// over, which might change the mathematics.
pub fn table(gguf: &Gguf, config: &ModelConfig, path: &Path) -> Result<Table> {
    let mut naming = Naming {
        tensors: gguf.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect(),
        used: HashSet::new(),
        table: Table { files: vec![path.to_owned()], ..Table::default() },
        path,
    };
    for tensor in dense_tensors(config) {
        let name = name_of(tensor.slot, tensor.layer)?;
        let found = naming.take(&name)?;
        // llama.cpp drops and adds dimensions of 1 as it pleases.
        let without_ones =
            |shape: &[u64]| -> Vec<u64> { shape.iter().copied().filter(|dim| *dim != 1).collect() };
        let wanted: Vec<u64> = tensor.shape.iter().map(|dim| *dim as u64).collect();
        if without_ones(&found.shape) != without_ones(&wanted) {
            return Err(naming.misshapen(found, &wanted));
        }
        let rows = row_order(tensor.slot, config);
        naming.add(tensor.name, found, 0, found.len, wanted, rows);
    }
    for layer in 0..config.layers {
        naming.add_experts(config, layer)?;
    }
    naming.finish(config)
}

struct Naming<'a> {
    tensors: BTreeMap<&'a str, &'a Tensor>,
    used: HashSet<String>,
    table: Table,
    path: &'a Path,
}

impl<'a> Naming<'a> {
    fn error(&self, message: impl Into<String>, tensor: &str) -> Error {
        Error::input(message).with("tensor", tensor).with("file", self.path.display())
    }

    fn take(&mut self, name: &str) -> Result<&'a Tensor> {
        self.used.insert(name.to_owned());
        let found = self.tensors.get(name).copied();
        found.ok_or_else(|| self.error("tensor is missing from the file", name))
    }

    fn misshapen(&self, found: &Tensor, wanted: &[u64]) -> Error {
        let message =
            format!("tensor has shape {:?} where the metadata asks for {wanted:?}", found.shape);
        self.error(message, &found.name)
    }

    fn add(
        &mut self,
        name: String,
        found: &Tensor,
        offset: u64,
        len: u64,
        shape: Vec<u64>,
        rows: RowOrder,
    ) {
        let piece = Piece { file: 0, offset: found.offset + offset, len };
        self.table.tensors.insert(name, Place { piece, stored: found.stored, shape, rows });
    }

    fn add_experts(&mut self, config: &ModelConfig, layer: usize) -> Result<()> {
        for (index, projection) in EXPERTS.into_iter().enumerate() {
            let found = self.take(&format!("blk.{layer}.{projection}.weight"))?;
            for expert in 0..config.experts {
                let (name, shape) = expert_tensors(config, layer, expert)?[index].clone();
                let [rows, cols] = shape.map(|dim| dim as u64);
                let wanted = [config.experts as u64, rows, cols];
                if found.shape != wanted {
                    return Err(self.misshapen(found, &wanted));
                }
                let len = found.len / config.experts as u64;
                let offset = len * expert as u64;
                self.add(name, found, offset, len, vec![rows, cols], RowOrder::Plain);
            }
        }
        Ok(())
    }

    fn finish(self, config: &ModelConfig) -> Result<Table> {
        if let Some(name) = self.tensors.keys().find(|name| !self.used.contains(**name)) {
            let message = format!(
                "tensor is not known for family {} and may change the mathematics, so the file is \
                 refused",
                config.family
            );
            return Err(self.error(message, name));
        }
        Ok(self.table)
    }
}

fn row_order(slot: Slot, config: &ModelConfig) -> RowOrder {
    match (config.family, slot) {
        (Family::Mixtral, Slot::Q) => RowOrder::Alternating { heads: config.heads },
        (Family::Mixtral, Slot::K) => RowOrder::Alternating { heads: config.kv_heads },
        _ => RowOrder::Plain,
    }
}

fn name_of(slot: Slot, layer: Option<usize>) -> Result<String> {
    let name = match slot {
        Slot::Embed => "token_embd.weight",
        Slot::FinalNorm => "output_norm.weight",
        Slot::Head => "output.weight",
        Slot::InputNorm => "attn_norm.weight",
        Slot::Q => "attn_q.weight",
        Slot::K => "attn_k.weight",
        Slot::V => "attn_v.weight",
        Slot::QBias => "attn_q.bias",
        Slot::KBias => "attn_k.bias",
        Slot::VBias => "attn_v.bias",
        Slot::QNorm => "attn_q_norm.weight",
        Slot::KNorm => "attn_k_norm.weight",
        Slot::O => "attn_output.weight",
        Slot::PostNorm => "ffn_norm.weight",
        Slot::Router => "ffn_gate_inp.weight",
        Slot::SharedGateProj => "ffn_gate_shexp.weight",
        Slot::SharedUpProj => "ffn_up_shexp.weight",
        Slot::SharedDownProj => "ffn_down_shexp.weight",
        Slot::SharedGate => "ffn_gate_inp_shexp.weight",
        other => return Err(Error::bug(format!("{other:?} has no name in a GGUF file"))),
    };
    Ok(layer.map_or_else(|| name.to_owned(), |layer| format!("blk.{layer}.{name}")))
}
