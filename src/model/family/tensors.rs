//! The list of a model's tensors, by Hugging Face name, in the order of the layers.

use super::{ExpertNames, QkNorm};
use crate::base::{Error, Result};
use crate::model::config::{Latent, ModelConfig};

/// What a dense tensor is for; the model finds its parameters by it, not by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Slot {
    Embed,
    FinalNorm,
    Head,
    InputNorm,
    Q,
    K,
    V,
    QBias,
    KBias,
    VBias,
    QNorm,
    KNorm,
    O,
    OBias,
    /// Queries' latent, its norm, and the queries out of it.
    QLatent,
    QLatentBias,
    QLatentNorm,
    QOut,
    /// Latent of keys and values with the shared rotated key, its norm, and both out of it.
    KvLatent,
    KvLatentBias,
    KvLatentNorm,
    KvOut,
    Sinks,
    PostNorm,
    Router,
    /// A bias on the router's logits, or a correction of its scores.
    RouterBias,
    DenseGateProj,
    DenseUpProj,
    DenseDownProj,
    SharedGateProj,
    SharedUpProj,
    SharedDownProj,
    SharedGate,
}

impl Slot {
    /// Tensors of one layer that are stored adjacently, so that one view spans them.
    pub(crate) fn group(self) -> Option<Self> {
        match self {
            Self::Q | Self::K | Self::V => Some(Self::Q),
            Self::QBias | Self::KBias | Self::VBias => Some(Self::QBias),
            Self::SharedGateProj | Self::SharedUpProj => Some(Self::SharedGateProj),
            _ => None,
        }
    }

    /// Whether matrix products read a copy in the compute type. Norms, the router and the
    /// shared expert's gate compute in f32.
    pub(crate) fn in_compute_type(self) -> bool {
        matches!(
            self,
            Self::Head
                | Self::Q
                | Self::K
                | Self::V
                | Self::QBias
                | Self::KBias
                | Self::VBias
                | Self::O
                | Self::SharedGateProj
                | Self::SharedUpProj
                | Self::SharedDownProj
        )
    }
}

/// One dense tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DenseTensor {
    pub slot: Slot,
    pub layer: Option<usize>,
    pub name: String,
    pub shape: Vec<usize>,
}

impl DenseTensor {
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// All tensors that are not routed experts: embedding, layers in order, final norm, head
/// (absent where it is tied to the embedding).
pub fn dense_tensors(config: &ModelConfig) -> Vec<DenseTensor> {
    let (h, v) = (config.hidden, config.vocab);
    let mut all = vec![DenseTensor {
        slot: Slot::Embed,
        layer: None,
        name: "model.embed_tokens.weight".into(),
        shape: vec![v, h],
    }];
    for layer in 0..config.layers {
        layer_tensors(config, layer, &mut all);
    }
    all.push(DenseTensor {
        slot: Slot::FinalNorm,
        layer: None,
        name: "model.norm.weight".into(),
        shape: vec![h],
    });
    if !config.tie_embeddings {
        all.push(DenseTensor {
            slot: Slot::Head,
            layer: None,
            name: "lm_head.weight".into(),
            shape: vec![v, h],
        });
    }
    all
}

fn layer_tensors(config: &ModelConfig, layer: usize, all: &mut Vec<DenseTensor>) {
    let spec = config.family.spec();
    let h = config.hidden;
    let mut add = |slot: Slot, name: &str, shape: &[usize]| {
        let name = format!("model.layers.{layer}.{name}");
        all.push(DenseTensor { slot, layer: Some(layer), name, shape: shape.to_vec() });
    };
    add(Slot::InputNorm, "input_layernorm.weight", &[h]);
    match &config.latent {
        Some(latent) => latent_tensors(config, latent, &mut add),
        None => attention_tensors(config, &mut add),
    }
    add(Slot::O, "self_attn.o_proj.weight", &[h, config.value_width()]);
    if config.o_bias {
        add(Slot::OBias, "self_attn.o_proj.bias", &[h]);
    }
    if config.sinks {
        add(Slot::Sinks, "self_attn.sinks", &[config.heads]);
    }
    add(Slot::PostNorm, "post_attention_layernorm.weight", &[h]);
    if config.is_dense(layer) {
        let width = config.dense_width;
        add(Slot::DenseGateProj, "mlp.gate_proj.weight", &[width, h]);
        add(Slot::DenseUpProj, "mlp.up_proj.weight", &[width, h]);
        add(Slot::DenseDownProj, "mlp.down_proj.weight", &[h, width]);
        return;
    }
    add(Slot::Router, spec.router, &[config.experts, h]);
    if let Some(bias) = spec.router_bias {
        add(Slot::RouterBias, bias, &[config.experts]);
    }
    if let (Some(shared), Some(width)) = (&spec.shared, config.shared_width) {
        let name = |projection: &str| format!("{}.{projection}.weight", shared.expert);
        add(Slot::SharedGateProj, &name("gate_proj"), &[width, h]);
        add(Slot::SharedUpProj, &name("up_proj"), &[width, h]);
        add(Slot::SharedDownProj, &name("down_proj"), &[h, width]);
        if let Some(gate) = shared.gate {
            add(Slot::SharedGate, &format!("{gate}.weight"), &[1, h]);
        }
    }
}

fn attention_tensors(config: &ModelConfig, add: &mut impl FnMut(Slot, &str, &[usize])) {
    let (h, q, kv) = (config.hidden, config.q_width(), config.kv_width());
    add(Slot::Q, "self_attn.q_proj.weight", &[q, h]);
    add(Slot::K, "self_attn.k_proj.weight", &[kv, h]);
    add(Slot::V, "self_attn.v_proj.weight", &[kv, h]);
    if config.qkv_bias {
        add(Slot::QBias, "self_attn.q_proj.bias", &[q]);
        add(Slot::KBias, "self_attn.k_proj.bias", &[kv]);
        add(Slot::VBias, "self_attn.v_proj.bias", &[kv]);
    }
    let norms = match config.qk_norm {
        QkNorm::None => None,
        QkNorm::Full => Some((q, kv)),
        QkNorm::PerHead => Some((config.head_dim, config.head_dim)),
    };
    if let Some((q_norm, k_norm)) = norms {
        add(Slot::QNorm, "self_attn.q_norm.weight", &[q_norm]);
        add(Slot::KNorm, "self_attn.k_norm.weight", &[k_norm]);
    }
}

fn latent_tensors(
    config: &ModelConfig,
    latent: &Latent,
    add: &mut impl FnMut(Slot, &str, &[usize]),
) {
    let (h, q) = (config.hidden, config.q_width());
    match latent.q_rank {
        None => add(Slot::Q, "self_attn.q_proj.weight", &[q, h]),
        Some(rank) => {
            add(Slot::QLatent, "self_attn.q_a_proj.weight", &[rank, h]);
            if latent.bias {
                add(Slot::QLatentBias, "self_attn.q_a_proj.bias", &[rank]);
            }
            add(Slot::QLatentNorm, "self_attn.q_a_layernorm.weight", &[rank]);
            add(Slot::QOut, "self_attn.q_b_proj.weight", &[q, rank]);
        }
    }
    let cached = latent.kv_rank + latent.rope;
    add(Slot::KvLatent, "self_attn.kv_a_proj_with_mqa.weight", &[cached, h]);
    if latent.bias {
        add(Slot::KvLatentBias, "self_attn.kv_a_proj_with_mqa.bias", &[cached]);
    }
    add(Slot::KvLatentNorm, "self_attn.kv_a_layernorm.weight", &[latent.kv_rank]);
    let out = config.heads * (latent.nope + latent.value);
    add(Slot::KvOut, "self_attn.kv_b_proj.weight", &[out, latent.kv_rank]);
}

/// Whether a checkpoint may hold `name` without the model using it: layers past the last, which
/// predict further tokens.
pub fn is_skipped(config: &ModelConfig, name: &str) -> bool {
    let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next());
    layer.and_then(|layer| layer.parse::<usize>().ok()).is_some_and(|layer| layer >= config.layers)
}

/// Names and shapes of one routed expert's gate `[F,H]`, up `[F,H]` and down `[H,F]` projections.
///
/// # Errors
/// Bug for a family whose experts are not tensors of their own.
pub fn expert_tensors(
    config: &ModelConfig,
    layer: usize,
    expert: usize,
) -> Result<[(String, [usize; 2]); 3]> {
    let spec = config.family.spec();
    let (h, f) = (config.hidden, config.expert_width);
    let ExpertNames::Each([gate, up, down]) = spec.expert_names else {
        return Err(Error::bug(format!("experts of family {} share tensors", config.family)));
    };
    let name = |projection: &str| {
        format!("model.layers.{layer}.{}.{expert}.{projection}.weight", spec.experts)
    };
    Ok([(name(gate), [f, h]), (name(up), [f, h]), (name(down), [h, f])])
}
