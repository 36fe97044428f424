//! What differs between two configurations, and which differences a resume accepts.

use std::collections::BTreeMap;
use toml::{Table, Value};

/// One key with two values. A key that only one side has shows as `unset` on the other.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Change {
    /// The key, dotted.
    pub key: String,
    /// As TOML.
    pub old: String,
    /// As TOML.
    pub new: String,
}

/// Keys, and tables with all their keys, that a resume may change without being told so: what
/// leaves the meaning of the states alone.
const RESUMABLE: [&str; 20] = [
    "name",
    "train.steps",
    "train.lr",
    "train.min_lr",
    "train.warmup",
    "train.schedule",
    "train.commit_every",
    "train.keep_every",
    "train.eval_every",
    "train.eval_batches",
    "train.nonfinite",
    "storage",
    "actors.dense",
    "actors.expert",
    "actors.prefetcher",
    "actors.communicator",
    "actors.optimizer",
    "actors.gate.aux_coef",
    "graph",
    "trace",
];

impl Change {
    /// Whether a resume accepts the change without `--allow-change KEY`: budgets, actors, trace,
    /// number of steps and learning rate.
    pub fn is_resumable(&self) -> bool {
        let under = |allowed: &str| {
            let rest = self.key.strip_prefix(allowed);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        // The store is where the states are: another folder is another run.
        self.key != "storage.dir" && RESUMABLE.iter().any(|allowed| under(allowed))
    }
}

pub fn changes(old: &Table, new: &Table) -> Vec<Change> {
    let (old, new) = (flat(old), flat(new));
    let mut keys: Vec<&String> = old.keys().chain(new.keys()).collect();
    keys.sort();
    keys.dedup();
    let show = |side: &BTreeMap<String, String>, key: &str| {
        side.get(key).cloned().unwrap_or_else(|| "unset".to_owned())
    };
    let change =
        |key: &String| Change { key: key.clone(), old: show(&old, key), new: show(&new, key) };
    keys.into_iter().map(change).filter(|change| change.old != change.new).collect()
}

fn flat(table: &Table) -> BTreeMap<String, String> {
    fn walk(prefix: &str, table: &Table, out: &mut BTreeMap<String, String>) {
        for (name, value) in table {
            let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            match value {
                Value::Table(inner) => walk(&key, inner, out),
                value => drop(out.insert(key, value.to_string())),
            }
        }
    }
    let mut out = BTreeMap::new();
    walk("", table, &mut out);
    out
}
