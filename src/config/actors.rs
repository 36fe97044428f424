//! `[actors.*]`: a table for each actor.

use crate::base::units::Duration;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One table for each actor.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Actors {
    /// The router: which experts a token goes to.
    pub gate: Gate,
    /// Attention, norms, embedding and head.
    pub dense: Dense,
    /// The routed experts' forward and backward.
    pub expert: Expert,
    /// What brings blocks into memory ahead of their use.
    pub prefetcher: Prefetcher,
    /// Exchanges between ranks.
    pub communicator: Communicator,
    /// AdamW over expert and dense parameters.
    pub optimizer: Optimizer,
}

/// The router.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Gate {
    /// How experts are chosen.
    pub kind: GateKind,
    /// Whether the chosen weights are divided by their sum (`topk`, `bias-corrected`).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-default" = "model.norm_topk, or the checkpoint's"))]
    pub renormalise: Option<bool>,
    /// Places of an expert as a multiple of an even share; tokens beyond are dropped and counted.
    /// 0 drops none. Only `topk`, `switch` and `gshard`.
    #[schemars(range(min = 0))]
    pub capacity_factor: f64,
    /// Relative width of the noise that multiplies the router's input in training (`switch`).
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub jitter: f64,
    /// Change of an expert's bias after each step (`bias-corrected`).
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub bias_rate: f64,
    /// Weight of the auxiliary load-balancing loss.
    #[schemars(range(min = 0))]
    pub aux_coef: f64,
    /// Whether that loss evens out the loads of each layer (`layer`) or of all layers together.
    pub aux_scope: AuxScope,
    /// Weight of the router z-loss.
    #[schemars(range(min = 0))]
    pub z_coef: f64,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            kind: GateKind::default(),
            renormalise: None,
            capacity_factor: 0.0,
            jitter: 0.0,
            bias_rate: 1e-3,
            aux_coef: 0.01,
            aux_scope: AuxScope::default(),
            z_coef: 0.0,
        }
    }
}

/// What the auxiliary loss evens out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AuxScope {
    /// The loads summed over all layers, as transformers trains these families.
    #[default]
    Model,
    /// The loads of each layer.
    Layer,
}

/// How experts are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum GateKind {
    /// The `model.top_k` largest softmax probabilities.
    #[default]
    Topk,
    /// Switch Transformer: the largest one, with jitter and capacity.
    Switch,
    /// GShard: the largest one and a random second.
    Gshard,
    /// DeepSeek-V3: sigmoid scores with a bias that balances the load without a loss.
    BiasCorrected,
}

/// What happens to the activations that backward needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Activations {
    /// Kept in memory from forward to backward.
    Keep,
    /// Computed again in backward.
    Recompute,
}

/// Attention, norms, embedding and head.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Dense {
    /// What happens to the activations inside a layer.
    pub activations: Activations,
}

impl Default for Dense {
    fn default() -> Self {
        Self { activations: Activations::Recompute }
    }
}

/// The routed experts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Expert {
    /// What happens to the activations inside an expert.
    pub activations: Activations,
    /// Threads of the executor, which dense compute shares; 0 takes all cores.
    #[schemars(range(max = 1024))]
    pub threads: usize,
    /// Compute nodes outstanding at once.
    #[schemars(range(min = 1, max = 65536))]
    pub credits: usize,
}

impl Default for Expert {
    fn default() -> Self {
        Self { activations: Activations::Keep, threads: 0, credits: 8 }
    }
}

/// What brings blocks in ahead of their use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Prefetcher {
    /// Layers ahead of the one that computes; 0 fetches on demand only.
    pub lookahead: usize,
    /// Which experts of a layer ahead are expected to be used.
    pub predictor: PredictorKind,
    /// Speculative fetches outstanding at once; what a node waits for is never held back.
    #[schemars(range(min = 1, max = 65536))]
    pub credits: usize,
}

impl Default for Prefetcher {
    fn default() -> Self {
        Self { lookahead: 1, predictor: PredictorKind::default(), credits: 64 }
    }
}

/// Which experts of a layer ahead are expected to be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PredictorKind {
    /// All of them.
    #[default]
    All,
    /// Those that the last step used.
    LastStep,
    /// None.
    None,
}

/// Exchanges between ranks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Communicator {
    /// How long a rank waits for another before it gives the other up.
    #[schemars(extend("x-positive" = true))]
    pub timeout: Duration,
    /// Exchanges outstanding at once.
    #[schemars(range(min = 1, max = 65536))]
    pub credits: usize,
}

impl Default for Communicator {
    fn default() -> Self {
        Self { timeout: Duration(std::time::Duration::from_secs(60)), credits: 4 }
    }
}

/// AdamW with decoupled decay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Optimizer {
    /// Decay of the first moment.
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub beta1: f64,
    /// Decay of the second moment.
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub beta2: f64,
    /// Added to the root of the second moment.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub eps: f64,
    /// Decoupled weight decay of matrices; vectors do not decay.
    #[schemars(range(min = 0))]
    pub weight_decay: f64,
    /// What an expert without tokens in a step misses.
    pub idle: Idle,
    /// Where updates are computed.
    pub place: Place,
    /// Threads of an update with `place = "thread"`.
    #[schemars(range(min = 1, max = 1024))]
    pub threads: usize,
    /// Of the updates whose states travel, the share that waits for the next forward pass, the
    /// gradients in memory, so that the disk has work in both passes. Where `train.clip` is set all
    /// updates wait for the norm, and with `graph.schedule = "sequential"` none is carried.
    #[schemars(range(min = 0, max = 0.5))]
    pub carry: f64,
    /// Updates outstanding at once.
    #[schemars(range(min = 1, max = 65536))]
    pub credits: usize,
}

impl Default for Optimizer {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            idle: Idle::default(),
            place: Place::default(),
            threads: 1,
            carry: 0.25,
            credits: 8,
        }
    }
}

/// What an expert without tokens in a step misses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Idle {
    /// Nothing: its zero-gradient updates are replayed, bit for bit, when it is next fetched.
    #[default]
    Exact,
    /// Those updates: neither decay nor momentum move it in that step.
    Skip,
}

/// Where updates are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// On the executor, with all its threads, between other nodes.
    #[default]
    Executor,
    /// On a thread beside the executor.
    Thread,
}
