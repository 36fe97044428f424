//! The pipeline of a run: everything that a configuration describes, put together, with any part
//! replaceable by the caller's own.
//!
//! ```no_run
//! use semoe::config::Config;
//! use semoe::train::pipeline::Pipeline;
//!
//! let config = Config::load("configs/tiny.toml".as_ref(), &[])?;
//! let summary = Pipeline::new(config).run_dir("runs/tiny").train()?;
//! println!("loss {:.3} after {} steps", summary.loss, summary.step);
//! # Ok::<(), semoe::base::Error>(())
//! ```

use super::data::DataSource;
use super::model_of;
use super::trainer::{self, Summary};
use crate::base::Result;
use crate::config::Config;
use crate::graph::planner::predictor::Predictor;
use crate::model::config::ModelConfig;
use crate::model::gate::Gate;
use crate::model::optim::Optimizer;
use crate::storage::policy::Policy;
use std::path::PathBuf;
use std::sync::Arc;

/// Makes a gate for a rank.
pub type MakeGate = Box<dyn Fn(&ModelConfig) -> Result<Box<dyn Gate>> + Send + Sync>;
/// Makes a predictor for a rank.
pub type MakePredictor = Box<dyn Fn() -> Box<dyn Predictor> + Send + Sync>;
/// Makes a cache policy for one part's slots.
pub type MakePolicy = Box<dyn Fn() -> Box<dyn Policy> + Send + Sync>;
/// Makes a data source for a rank.
pub type MakeData = Box<dyn Fn() -> Result<Box<dyn DataSource>> + Send + Sync>;

/// See the module.
pub struct Pipeline {
    pub(super) config: Config,
    pub(super) run_dir: Option<PathBuf>,
    pub(super) resume: bool,
    pub(super) allow: Vec<String>,
    pub(super) gate: Option<MakeGate>,
    pub(super) predictor: Option<MakePredictor>,
    pub(super) policy: Option<MakePolicy>,
    pub(super) optimizer: Option<Arc<dyn Optimizer>>,
    pub(super) data: Option<MakeData>,
}

impl Pipeline {
    /// The pipeline that the configuration describes.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            run_dir: None,
            resume: false,
            allow: Vec::new(),
            gate: None,
            predictor: None,
            policy: None,
            optimizer: None,
            data: None,
        }
    }

    /// The run folder; `runs/NAME` if none is named.
    #[must_use]
    pub fn run_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.run_dir = Some(dir.into());
        self
    }

    /// Goes on with the run in the folder. `allow` names keys that may differ although a resume
    /// would refuse them.
    #[must_use]
    pub fn resume(mut self, allow: Vec<String>) -> Self {
        (self.resume, self.allow) = (true, allow);
        self
    }

    /// A gate of the caller's own. It replaces `actors.gate.kind`.
    #[must_use]
    pub fn gate(
        mut self,
        make: impl Fn(&ModelConfig) -> Result<Box<dyn Gate>> + Send + Sync + 'static,
    ) -> Self {
        self.gate = Some(Box::new(make));
        self
    }

    /// A predictor of the caller's own. It replaces `actors.prefetcher.predictor`.
    #[must_use]
    pub fn predictor(
        mut self,
        make: impl Fn() -> Box<dyn Predictor> + Send + Sync + 'static,
    ) -> Self {
        self.predictor = Some(Box::new(make));
        self
    }

    /// A cache policy of the caller's own. It replaces `storage.policy`.
    #[must_use]
    pub fn policy(mut self, make: impl Fn() -> Box<dyn Policy> + Send + Sync + 'static) -> Self {
        self.policy = Some(Box::new(make));
        self
    }

    /// An optimizer of the caller's own, for dense and expert parameters. It replaces the AdamW
    /// of `actors.optimizer`.
    #[must_use]
    pub fn optimizer(mut self, optimizer: Arc<dyn Optimizer>) -> Self {
        self.optimizer = Some(optimizer);
        self
    }

    /// A data source of the caller's own. It replaces `data.files`.
    #[must_use]
    pub fn data(
        mut self,
        make: impl Fn() -> Result<Box<dyn DataSource>> + Send + Sync + 'static,
    ) -> Self {
        self.data = Some(Box::new(make));
        self
    }

    /// Trains until `train.steps`, or until the run is interrupted.
    ///
    /// # Errors
    /// Whatever is wrong with the configuration, data, budgets or disk; nothing committed is
    /// lost by it.
    pub fn train(self) -> Result<Summary> {
        trainer::train(self)
    }

    pub(super) fn make_gate(&self, model: &ModelConfig) -> Result<Box<dyn Gate>> {
        match &self.gate {
            Some(make) => make(model),
            None => model_of::gate(&self.config, model),
        }
    }

    pub(super) fn make_predictor(&self) -> Box<dyn Predictor> {
        match &self.predictor {
            Some(make) => make(),
            None => model_of::predictor(&self.config),
        }
    }

    pub(super) fn make_optimizer(&self) -> Arc<dyn Optimizer> {
        match &self.optimizer {
            Some(optimizer) => Arc::clone(optimizer),
            None => Arc::new(model_of::optimizer(&self.config)),
        }
    }
}
