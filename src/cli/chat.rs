//! `semoe chat`: a conversation with a checkpoint. What was said stays in the cache of keys and
//! values, so only what is new is read.

use super::generate::{chat_template, encode_chat};
use super::model::{ModelArgs, SamplingArgs, announce};
use super::{interrupt, output};
use crate::base::{Error, Result};
use crate::infer::generator::Generator;
use crate::infer::session::Said;
use crate::infer::stream::TextStream;
use clap::Args;
use serde_json::{Value, json};
use std::io::BufRead;
use std::sync::Arc;
use std::sync::atomic::Ordering;

#[derive(Debug, Args)]
pub struct ChatArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// What the system says first.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Tokens of an answer at most.
    #[arg(long, short = 'n', default_value_t = 1024)]
    tokens: usize,
}

impl ChatArgs {
    /// Runs the command: reads lines until the end of the input. `/new` starts over, `/figures`
    /// tells what the answers cost, `/quit` ends.
    ///
    /// # Errors
    /// As [`Generator::open`] and [`Generator::run`].
    pub fn run(self) -> Result<()> {
        self.sampling.sampling().check()?;
        let mut generator = Generator::open(&self.model.options(1)?)?;
        // Before anything is said.
        chat_template(&generator)?;
        announce(&generator)?;
        output::note("Ctrl-C ends an answer; /new starts over, /figures, /quit\n")?;
        let mut messages = self.opening();
        let mut lines = std::io::stdin().lock().lines();
        loop {
            output::print("> ")?;
            let Some(line) = lines.next() else { break };
            let line = line.map_err(|e| Error::io("reading standard input", e))?;
            match line.trim() {
                "" => {}
                "/quit" => break,
                "/new" => messages = self.opening(),
                "/figures" => output::note(&generator.take_figures()?.table())?,
                text => {
                    messages.push(json!({ "role": "user", "content": text }));
                    let answer = self.answer(&mut generator, &messages)?;
                    messages.push(json!({ "role": "assistant", "content": answer }));
                }
            }
        }
        output::print("\n")?;
        let figures = generator.finish()?;
        output::note(&figures.table())
    }

    fn opening(&self) -> Vec<Value> {
        let system = self.system.iter();
        system.map(|text| json!({ "role": "system", "content": text })).collect()
    }

    fn answer(&self, generator: &mut Generator, messages: &[Value]) -> Result<String> {
        let prompt = encode_chat(generator, messages)?;
        let job = generator.job(prompt, self.sampling.sampling(), self.tokens);
        let stop = Arc::clone(&job.stop);
        let listening = interrupt::flags(vec![Arc::clone(&stop)])?;
        let mut stream = TextStream::new(generator.tokenizer()?, Vec::new());
        let mut answer = String::new();
        generator.run(vec![job], |said| {
            let fresh = match said {
                Said::Token { token, .. } => stream.push(*token)?,
                Said::Ended { .. } => stream.finish()?,
                Said::Logits { .. } => String::new(),
            };
            answer.push_str(&fresh);
            output::print(&fresh)
        })?;
        let cut = listening.was_hit() || stop.load(Ordering::Relaxed);
        output::print(if cut { " …\n" } else { "\n" })?;
        Ok(answer)
    }
}
