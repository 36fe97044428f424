//! `semoe generate`: a checkpoint continues one prompt, or many at once.

use super::model::{ModelArgs, SamplingArgs, announce};
use super::{output, prediction};
use crate::base::{Error, Result};
use crate::infer::figures::Figures;
use crate::infer::forecast::Forecast;
use crate::infer::foresight::Tally;
use crate::infer::generator::Generator;
use crate::infer::memory::peak_memory;
use crate::infer::session::{Job, Reason, Said};
use crate::infer::settings::Settings;
use crate::infer::stream::TextStream;
use crate::text::chat::ChatTemplate;
use clap::Args;
use serde::Serialize;
use serde_json::json;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

#[derive(Debug, Args)]
pub struct GenerateArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Text to continue.
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["prompts", "ids"])]
    prompt: Option<String>,
    /// A file with a prompt a line; lines that are JSON strings or {"prompt": …} are taken as such.
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Token ids to continue, such as 5,17,3: for a checkpoint without a tokenizer.
    #[arg(long, value_name = "IDS", value_delimiter = ',', conflicts_with = "prompts")]
    ids: Vec<u32>,
    /// Put each prompt into the checkpoint's chat template, as what the user says.
    #[arg(long)]
    chat: bool,
    /// What the system says first, with --chat.
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    /// Tokens to make.
    #[arg(long, short = 'n', default_value_t = 128)]
    tokens: usize,
    /// Texts at which the answer ends; may be given several times.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Go on past the model's end tokens.
    #[arg(long)]
    ignore_eos: bool,
    /// Prompts that are worked on at once.
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Also write texts, figures and settings as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// One answer.
#[derive(Debug, Default, Serialize)]
struct Answer {
    prompt: Vec<u32>,
    tokens: Vec<u32>,
    text: Option<String>,
    ended: Option<Reason>,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    answers: &'a [Answer],
    figures: Figures,
    predictor: Tally,
    /// What was foretold of decoding; None where this machine was not measured.
    forecast: Option<Forecast>,
    peak_rss_bytes: u64,
    settings: &'a Settings,
}

impl GenerateArgs {
    /// Runs the command.
    ///
    /// # Errors
    /// As [`Generator::open`] and [`Generator::run`]; `Input` for prompts that cannot be read.
    pub fn run(self) -> Result<()> {
        let options = self.model.options(self.batch)?;
        self.sampling.sampling().check()?;
        let mut generator = Generator::open(&options)?;
        announce(&generator)?;
        let prompts = self.encoded(&generator)?;
        let jobs: Vec<Job> = prompts
            .into_iter()
            .map(|prompt| {
                let mut job = generator.job(prompt, self.sampling.sampling(), self.tokens);
                if self.ignore_eos {
                    job.ends.clear();
                }
                job
            })
            .collect();
        let mut listener = Listener::new(&generator, &jobs, &self.stop)?;
        let stops: Vec<_> = jobs.iter().map(|job| job.stop.clone()).collect();
        let interrupted = super::interrupt::flags(stops)?;
        let ran = generator.run(jobs, |said| listener.hear(said));
        drop(interrupted);
        ran?;
        let answers = listener.finish()?;
        let settings = generator.settings().clone();
        let predictor = generator.tally();
        let work = generator.workload().clone();
        let figures = generator.finish()?;
        output::note(&figures.table())?;
        output::note(&predictor.lines(&figures.all()))?;
        let forecast = prediction::show(&prediction::Run {
            model: &self.model.model,
            work: &work,
            threads: settings.effective.threads,
            decode: &figures.decode,
            positions: mean_positions(&answers),
        })?;
        if let Some(path) = &self.json {
            let peak_rss_bytes = peak_memory()?;
            let report = Report {
                answers: &answers,
                figures,
                predictor,
                forecast,
                peak_rss_bytes,
                settings: &settings,
            };
            output::write_json(path, &report)?;
        }
        Ok(())
    }

    fn encoded(&self, generator: &Generator) -> Result<Vec<Vec<u32>>> {
        if !self.ids.is_empty() {
            return Ok(vec![self.ids.clone()]);
        }
        if !generator.source().has_tokenizer() {
            return Err(Error::input(
                "the checkpoint carries no tokenizer: give the prompt as --ids 5,17,3",
            )
            .with("model", self.model.model.display()));
        }
        let texts = match (&self.prompt, &self.prompts) {
            (Some(prompt), _) => vec![prompt.clone()],
            (None, Some(path)) => read_prompts(path)?,
            (None, None) => {
                return Err(Error::config("give --prompt TEXT, --prompts FILE or --ids 5,17,3"));
            }
        };
        texts.iter().map(|text| self.encode(generator, text)).collect()
    }

    fn encode(&self, generator: &Generator, text: &str) -> Result<Vec<u32>> {
        if !self.chat {
            return generator.encode(text);
        }
        let mut messages = Vec::new();
        if let Some(system) = &self.system {
            messages.push(json!({ "role": "system", "content": system }));
        }
        messages.push(json!({ "role": "user", "content": text }));
        encode_chat(generator, &messages)
    }
}

/// The checkpoint's chat template.
///
/// # Errors
/// `Input` where it has none, or one that cannot be read.
pub fn chat_template(generator: &Generator) -> Result<ChatTemplate> {
    let tokenizer = generator.tokenizer()?;
    let template = generator.source().chat_template(&tokenizer, SystemTime::now())?;
    template.ok_or_else(|| {
        Error::input(
            "the checkpoint has no chat template: give it a chat_template.jinja, or let it go on with plain \
             text by `semoe generate` without --chat",
        )
    })
}

/// Token ids of a conversation, up to where the model is to go on.
///
/// # Errors
/// As [`chat_template`], and `Input` where it refuses the conversation.
pub fn encode_chat(generator: &Generator, messages: &[serde_json::Value]) -> Result<Vec<u32>> {
    let template = chat_template(generator)?;
    let line: minijinja::Value = serde_json::from_value(json!({ "messages": messages }))
        .map_err(|e| Error::bug("a conversation has no form for templates").from_source(e))?;
    let text = template.render(&line, true)?;
    generator.tokenizer()?.encode(&text)
}

/// Positions before a token that was made, on average over all of them.
fn mean_positions(answers: &[Answer]) -> f64 {
    let made: usize = answers.iter().map(|answer| answer.tokens.len()).sum();
    let before = |answer: &Answer| {
        let (prompt, made) = (answer.prompt.len() as f64, answer.tokens.len() as f64);
        made * (prompt + made / 2.0)
    };
    answers.iter().map(before).sum::<f64>() / made.max(1) as f64
}

/// A prompt a line, as text or as JSON.
fn read_prompts(path: &std::path::Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Error::io(format!("cannot read {}", path.display()), e))?;
    let mut prompts = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let parsed = serde_json::from_str::<serde_json::Value>(line).ok();
        let prompt = parsed.as_ref().and_then(|value| {
            value.as_str().or_else(|| value.get("prompt").and_then(serde_json::Value::as_str))
        });
        prompts.push(prompt.unwrap_or(line).to_owned());
    }
    if prompts.is_empty() {
        return Err(Error::input("the file has no prompts").with("file", path.display()));
    }
    Ok(prompts)
}

/// Turns what is said into text. One answer is shown as it comes, several one after another.
struct Listener {
    /// By job: its place among the answers.
    places: HashMap<u64, usize>,
    stops: Vec<std::sync::Arc<std::sync::atomic::AtomicBool>>,
    answers: Vec<Answer>,
    streams: Vec<Option<TextStream>>,
}

impl Listener {
    fn new(generator: &Generator, jobs: &[Job], stop: &[String]) -> Result<Self> {
        let tokenizer = match generator.source().has_tokenizer() {
            true => Some(generator.tokenizer()?),
            false if stop.is_empty() => None,
            false => {
                return Err(Error::config("--stop needs a checkpoint with a tokenizer"));
            }
        };
        let stream = |_| tokenizer.clone().map(|t| TextStream::new(t, stop.to_vec()));
        Ok(Self {
            places: jobs.iter().enumerate().map(|(place, job)| (job.id, place)).collect(),
            stops: jobs.iter().map(|job| job.stop.clone()).collect(),
            answers: jobs
                .iter()
                .map(|job| Answer { prompt: job.prompt.clone(), ..Answer::default() })
                .collect(),
            streams: jobs.iter().map(stream).collect(),
        })
    }

    fn hear(&mut self, said: &Said) -> Result<()> {
        match said {
            Said::Token { id, token } => {
                let Some(place) = self.places.get(id).copied() else { return Ok(()) };
                let fresh = match &mut self.streams[place] {
                    Some(stream) if stream.is_stopped() => return Ok(()),
                    Some(stream) => {
                        let fresh = stream.push(*token)?;
                        if stream.is_stopped() {
                            self.stops[place].store(true, Ordering::Relaxed);
                        }
                        fresh
                    }
                    None => format!("{token} "),
                };
                self.answers[place].tokens.push(*token);
                self.show(place, &fresh)
            }
            Said::Ended { id, reason, .. } => {
                let Some(place) = self.places.get(id).copied() else { return Ok(()) };
                self.answers[place].ended = Some(*reason);
                let rest = match &mut self.streams[place] {
                    Some(stream) => stream.finish()?,
                    None => String::new(),
                };
                self.show(place, &rest)
            }
            Said::Logits { .. } => Ok(()),
        }
    }

    fn show(&mut self, place: usize, fresh: &str) -> Result<()> {
        self.answers[place].text.get_or_insert_default().push_str(fresh);
        match self.answers.len() {
            1 => output::print(fresh),
            _ => Ok(()),
        }
    }

    fn finish(self) -> Result<Vec<Answer>> {
        if self.answers.len() == 1 {
            output::print("\n")?;
            return Ok(self.answers);
        }
        for (nth, answer) in self.answers.iter().enumerate() {
            let text = answer.text.as_deref().unwrap_or_default();
            output::print(&format!("[{}] {text}\n", nth + 1))?;
        }
        Ok(self.answers)
    }
}
