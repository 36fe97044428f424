//! What a checkpoint will do in a given memory, from its headers and figures of the machine: what
//! is resident, what streams, and the speed at several hit rates.

use super::forecast::{Forecast, Pass, Rates, Workload};
use super::opened::Opened;
use super::options::Options;
use crate::base::Result;
use crate::base::ledger::Ledger;
use crate::base::units::Bytes;
use serde::Serialize;
use std::fmt;

/// The hit rates that are foretold, beside that of uniform routing.
const HIT_RATES: [f64; 5] = [0.0, 0.5, 0.75, 0.9, 1.0];

/// What headers alone tell.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outline {
    pub family: String,
    pub layers: usize,
    pub experts_per_layer: usize,
    pub experts_per_token: usize,
    /// What the process will hold at most.
    pub ledger: Ledger,
    pub memory_bytes: u64,
    pub context: usize,
    pub threads: usize,
    pub experts_resident: u32,
    pub experts: u32,
    /// Bytes of the experts' slots.
    pub resident_bytes: u64,
    /// Bytes of the experts that have no slot: they are read when they are needed.
    pub streamed_bytes: u64,
    /// Bytes of weights that a token computes with.
    pub active_bytes_per_token: u64,
    pub workload: Workload,
}

impl Outline {
    /// Reads the headers of `options`' checkpoint and plans its memory, as the generator does.
    ///
    /// # Errors
    /// As [`super::generator::Generator::open`], up to where weights are read.
    pub fn new(options: &Options) -> Result<Self> {
        let Opened { config, needs, plan, workload, .. } = Opened::new(options)?;
        let (slots, blocks) = (plan.slots, needs.blocks);
        let streamed = f64::from(blocks - slots) * workload.expert_read;
        Ok(Self {
            family: config.family.to_string(),
            layers: config.layers,
            experts_per_layer: config.experts,
            experts_per_token: config.top_k,
            memory_bytes: plan.ledger.total(),
            ledger: plan.ledger,
            context: needs.context,
            threads: needs.threads,
            experts_resident: slots,
            experts: blocks,
            resident_bytes: u64::from(slots) * needs.slot_bytes,
            streamed_bytes: streamed.round() as u64,
            active_bytes_per_token: workload.active_bytes().round() as u64,
            workload,
        })
    }

    /// The plan on a machine of these rates.
    pub fn on(self, rates: &Rates<'_>) -> Plan {
        let uniform_hit_rate = self.workload.uniform_hit_rate();
        let mut hit_rates = HIT_RATES.to_vec();
        if !hit_rates.contains(&uniform_hit_rate) {
            hit_rates.push(uniform_hit_rate);
        }
        hit_rates.sort_by(f64::total_cmp);
        let at = |hit_rate: &f64| {
            Forecast::of(&self.workload, rates, &Pass::of_a_token(&self.workload, *hit_rate))
        };
        let forecasts = hit_rates.iter().map(at).collect();
        Plan { outline: self, uniform_hit_rate, forecasts }
    }
}

/// An outline with forecasts, at the beginning of a text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    #[serde(flatten)]
    pub outline: Outline,
    /// Where every expert is as likely as any other.
    pub uniform_hit_rate: f64,
    /// By hit rate, ascending; that of uniform routing is among them.
    pub forecasts: Vec<Forecast>,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let o = &self.outline;
        let megabytes = |bytes: f64| format!("{:.2} MB", bytes * 1e-6);
        writeln!(
            f,
            "{} of {} layers, {} experts, {} a token",
            o.family, o.layers, o.experts_per_layer, o.experts_per_token
        )?;
        writeln!(f, "memory\n{}", o.ledger)?;
        let (resident, streamed) = (Bytes(o.resident_bytes), Bytes(o.streamed_bytes));
        let (held, all) = (o.experts_resident, o.experts);
        writeln!(f, "experts    {held} of {all} resident ({resident}), {streamed} stream")?;
        let work = &o.workload;
        writeln!(
            f,
            "a token    computes with {} of weights: {} dense, {} of experts; each position before \
             it adds {:.4} MB",
            megabytes(work.active_bytes()),
            megabytes(work.dense.total()),
            megabytes(work.needed() * work.expert.total()),
            work.kv_per_position as f64 * 1e-6,
        )?;
        writeln!(f, "{:>8} {:>14} {:>10}  limited by", "hits", "read a token", "tokens/s")?;
        for forecast in &self.forecasts {
            let Forecast { hit_rate, tokens_per_s, bytes_read_per_token, limit, .. } = forecast;
            let read = megabytes(*bytes_read_per_token);
            let note = match *hit_rate == self.uniform_hit_rate {
                true => ", if all experts are equally likely",
                false => "",
            };
            let hits = format!("{:.1}%", 100.0 * hit_rate);
            writeln!(f, "{hits:>8} {read:>14} {tokens_per_s:>10.2}  {limit}{note}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ErrorKind;
    use crate::infer::forecast::DiskRate;
    use crate::infer::machine::ComputeFigures;
    use std::path::Path;

    fn options(family: &str) -> Options {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hf");
        Options::new(fixtures.join(family))
    }

    fn compute() -> ComputeFigures {
        ComputeFigures {
            threads: 2,
            memory: 10e9,
            kernels: std::collections::BTreeMap::new(),
            layer_seconds: 1e-5,
            expert_seconds: 1e-5,
        }
    }

    #[test]
    fn every_family_is_outlined_from_its_headers() {
        for family in
            ["olmoe", "mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v3", "glm4_moe", "gpt_oss"]
        {
            let outline = Outline::new(&options(family)).unwrap();
            let work = &outline.workload;
            assert_eq!(outline.experts_resident, outline.experts, "{family}");
            assert!(work.routed_layers >= 1 && work.routed_layers <= work.layers, "{family}");
            // A fetch moves whole pages around what is computed with.
            assert!(work.expert_read >= work.expert.total() && work.expert.total() > 0.0);
            assert!(work.expert_requests >= 1.0 && work.dense.total() > 0.0, "{family}");
            assert!(work.active_bytes() > work.dense.total(), "{family}");
        }
    }

    #[test]
    fn more_hits_read_less_and_are_never_slower() {
        let few = Options { slots: Some(3), ..options("olmoe") };
        let compute = compute();
        let rates = Rates { disk: DiskRate::Said(1e8), compute: &compute };
        let plan = Outline::new(&few).unwrap().on(&rates);
        assert_eq!(plan.outline.experts_resident, 3);
        assert_eq!(plan.forecasts.len(), 6);
        let pairs = plan.forecasts.windows(2);
        for pair in pairs {
            assert!(pair[0].hit_rate < pair[1].hit_rate);
            assert!(pair[0].bytes_read_per_token > pair[1].bytes_read_per_token);
            assert!(pair[0].tokens_per_s <= pair[1].tokens_per_s);
        }
        let text = plan.to_string();
        assert!(text.contains("if all experts are equally likely"), "{text}");
        let value = serde_json::to_value(&plan).unwrap();
        assert_eq!(value["experts_resident"], 3);
        assert_eq!(value["forecasts"][0]["hit_rate"], 0.0);
    }

    #[test]
    fn a_budget_that_is_too_small_is_refused_as_by_the_generator() {
        let small = Options { memory: Some(Bytes(1 << 20)), ..options("mixtral") };
        let planned = Outline::new(&small).unwrap_err();
        let opened = crate::infer::generator::Generator::open(&small).err().unwrap();
        assert_eq!((planned.kind(), planned.message()), (ErrorKind::Budget, opened.message()));
        assert!(planned.to_string().contains("smallest="), "{planned}");
    }
}
