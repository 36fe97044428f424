//! One JSON object a step, appended to `metrics.jsonl`.
//!
//! The law: after a resume no step is there twice. The file is cut back to the last commit; a
//! line that a kill or a power cut tore is not a step.

use super::recorded::Recorded;
use crate::base::file::sync_name;
use crate::base::{Error, Result, Step};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

/// What a step did. JSON knows no NaN or infinity: they are written and read as null.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    pub step: Step,
    /// `lm_loss` and the weighted auxiliary losses.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// Mean cross-entropy over the step's targets, in nats.
    #[serde(deserialize_with = "null_is_nan")]
    pub lm_loss: f64,
    #[serde(deserialize_with = "null_is_nan")]
    pub aux_loss: f64,
    /// The global norm before clipping.
    #[serde(deserialize_with = "null_is_nan")]
    pub grad_norm: f64,
    #[serde(deserialize_with = "null_is_nan")]
    pub lr: f64,
    pub tokens: u64,
    pub seconds: f64,
    /// Seconds that the executor waited for the SSD.
    pub exposed_io_seconds: f64,
    pub cache_hits: u64,
    pub cache_misses: u64,
    pub bytes_read: u64,
    pub bytes_written: u64,
    /// (token, expert) pairs over an expert's capacity.
    pub dropped_tokens: u64,

    /// Mean loss over the validation batches, on the steps that evaluate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_loss: Option<f64>,
    /// Busy share of each lane, 0 to 1.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub utilisation: BTreeMap<String, f64>,
    /// Seconds that the executor waited, by the lane it waited for.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub exposed_seconds: BTreeMap<String, f64>,
    /// Seconds that the executor idled while its work was in transit: the messages' own cost. With
    /// the lanes' exposed seconds and the busy ones they are the step's.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub overhead_seconds: f64,
    /// True when the update was left out because the loss or a gradient was not finite.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skipped: bool,
}

impl StepMetrics {
    pub fn tokens_per_second(&self) -> f64 {
        if self.seconds > 0.0 { self.tokens as f64 / self.seconds } else { 0.0 }
    }
}

fn is_zero(seconds: &f64) -> bool {
    *seconds == 0.0
}

fn null_is_nan<'de, D: Deserializer<'de>>(d: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(d)?.unwrap_or(f64::NAN))
}

/// Appends steps to a metrics file.
#[derive(Debug)]
pub struct MetricsWriter {
    path: PathBuf,
    file: File,
    last: Step,
    recorded: Recorded,
}

impl MetricsWriter {
    /// Opens the metrics file of a run whose last commit is `committed` (0 for a new run): later
    /// steps in it, and a torn last line, are cut off.
    ///
    /// # Errors
    /// When the file cannot be opened, or a line before the last commit is no step.
    pub fn open(path: &Path, committed: Step) -> Result<Self> {
        let last = truncate_after(path, committed)?;
        let opening = |e| Error::io(format!("opening metrics {}", path.display()), e);
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(opening)?;
        // Its name is durable before any commit counts on its lines.
        sync_name(path).map_err(opening)?;
        // Lines before the last commit may be missing (the file was removed): it counts as there.
        let recorded = Recorded::new(path, file.try_clone().map_err(opening)?, committed);
        Ok(Self { path: path.to_owned(), file, last, recorded })
    }

    /// Appends one step. A process that is killed afterwards has written it. Where it fails, no
    /// later step is committed.
    ///
    /// # Errors
    /// When the step is not after the last one, or writing fails.
    pub fn append(&mut self, metrics: &StepMetrics) -> Result<()> {
        let written = self.write(metrics);
        match written {
            Ok(()) => self.recorded.reach(metrics.step),
            Err(_) => self.recorded.give_up(),
        }
        written
    }

    /// How far the file has come, for who commits.
    pub fn recorded(&self) -> Recorded {
        self.recorded.clone()
    }

    fn write(&mut self, metrics: &StepMetrics) -> Result<()> {
        if metrics.step <= self.last {
            return Err(Error::bug("a step was to be written to the metrics twice")
                .with("step", metrics.step)
                .with("last", self.last));
        }
        let mut line = serde_json::to_string(metrics)
            .map_err(|e| Error::bug("writing metrics as JSON").from_source(e))?;
        line.push('\n');
        // One write: a reader, or a resume, sees a whole line or a torn one, never a mixture.
        self.file
            .write_all(line.as_bytes())
            .map_err(|e| Error::io(format!("writing metrics {}", self.path.display()), e))?;
        self.last = metrics.step;
        Ok(())
    }
}

/// Removes the lines after step `committed`, and a torn last line. Returns the last step that is
/// left, 0 when there is none. A file that does not exist has no lines.
///
/// # Errors
/// When the file cannot be read or cut, or a line that is to stay is no step.
pub fn truncate_after(path: &Path, committed: Step) -> Result<Step> {
    let mut keep = 0;
    let mut last = 0;
    // What follows the last commit was never synced: a power cut may leave anything there.
    let len = match committed {
        0 => std::fs::metadata(path).map_or(0, |metadata| metadata.len()),
        _ => scan(path, |end, metrics| {
            if metrics.step <= committed {
                (keep, last) = (end, metrics.step);
            }
            metrics.step < committed
        })?,
    };
    if keep < len {
        let cutting = |e| Error::io(format!("cutting back metrics {}", path.display()), e);
        let file = OpenOptions::new().write(true).open(path).map_err(cutting)?;
        file.set_len(keep).and_then(|()| file.sync_all()).map_err(cutting)?;
    }
    Ok(last)
}

/// The steps of a metrics file, in order; a torn last line is passed over.
///
/// # Errors
/// When the file cannot be read, or a line before the last is no step.
pub fn read(path: &Path) -> Result<Vec<StepMetrics>> {
    let mut all = Vec::new();
    scan(path, |_, metrics| {
        all.push(metrics);
        true
    })?;
    Ok(all)
}

/// Calls `each` with the end (in bytes) and the content of every whole line for as long as it
/// answers true; returns the length of the file.
fn scan(path: &Path, mut each: impl FnMut(u64, StepMetrics) -> bool) -> Result<u64> {
    let reading = |e| Error::io(format!("reading metrics {}", path.display()), e);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(e) => return Err(reading(e)),
    };
    let len = file.metadata().map_err(reading)?.len();
    let mut reader = BufReader::new(file);
    let (mut line, mut number, mut end) = (Vec::new(), 0u64, 0u64);
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line).map_err(reading)?;
        if read == 0 {
            return Ok(len);
        }
        number += 1;
        end += read as u64;
        match serde_json::from_slice(&line) {
            Ok(metrics) if line.ends_with(b"\n") => {
                if !each(end, metrics) {
                    return Ok(len);
                }
            }
            // A power cut leaves the last line short, or with a block of zeros in it.
            _ if end >= len => return Ok(len),
            Ok(_) => return Ok(len),
            Err(e) => {
                return Err(Error::corrupt(format!(
                    "{}:{number} is not a step's metrics: remove the line to go on",
                    path.display()
                ))
                .from_source(e));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: Step) -> StepMetrics {
        StepMetrics { step, loss: 1.0 / step as f64, tokens: 2048, ..Default::default() }
    }

    fn write(path: &Path, steps: std::ops::RangeInclusive<Step>) {
        let mut writer = MetricsWriter::open(path, steps.start() - 1).unwrap();
        for i in steps {
            writer.append(&step(i)).unwrap();
        }
        writer.recorded().wait(writer.last).unwrap();
    }

    #[test]
    fn a_resume_writes_no_step_twice() {
        let dir = tempfile::tempdir().unwrap();
        let (path, whole) = (dir.path().join("a.jsonl"), dir.path().join("b.jsonl"));
        write(&whole, 1..=9);
        write(&path, 1..=7);
        // Killed while writing step 8, resumed from the commit of step 5.
        std::fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(b"{\"step\":8,\"lo")
            .unwrap();
        assert_eq!(read(&path).unwrap().len(), 7);
        write(&path, 6..=9);
        assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(&whole).unwrap());
        let mut writer = MetricsWriter::open(&path, 9).unwrap();
        assert!(writer.append(&step(9)).is_err());
    }

    #[test]
    fn the_fields_are_those_that_readers_know() {
        let text = serde_json::to_string(&step(1)).unwrap();
        insta::assert_snapshot!(text, @r#"{"step":1,"loss":1.0,"lm_loss":0.0,"aux_loss":0.0,"grad_norm":0.0,"lr":0.0,"tokens":2048,"seconds":0.0,"exposed_io_seconds":0.0,"cache_hits":0,"cache_misses":0,"bytes_read":0,"bytes_written":0,"dropped_tokens":0}"#);
    }

    #[test]
    fn what_is_not_finite_survives() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.jsonl");
        let mut writer = MetricsWriter::open(&path, 0).unwrap();
        let bad = StepMetrics { step: 1, loss: f64::NAN, grad_norm: f64::INFINITY, ..step(1) };
        writer.append(&bad).unwrap();
        let back = read(&path).unwrap();
        assert!(back[0].loss.is_nan() && back[0].grad_norm.is_nan());
    }

    #[test]
    fn a_line_in_the_middle_that_is_no_step_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.jsonl");
        write(&path, 1..=2);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{}\n{}", &text[..20], text)).unwrap();
        let e = read(&path).unwrap_err().to_string();
        assert!(e.contains("m.jsonl:1 is not a step's metrics"), "{e}");
        // After the last commit it is what a power cut left.
        let text = text.replacen('\n', "\n\0\0\n", 1);
        std::fs::write(&path, &text).unwrap();
        assert!(MetricsWriter::open(&path, 2).is_err());
        assert_eq!(MetricsWriter::open(&path, 1).unwrap().last, 1);
        assert_eq!(read(&path).unwrap().len(), 1);
    }
}
