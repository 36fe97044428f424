//! What these tests share: the fixtures, and running jobs on them.

use semoe::base::Result;
use semoe::infer::figures::Figures;
use semoe::infer::generator::Generator;
use semoe::infer::options::Options;
use semoe::infer::sampler::Sampling;
use semoe::infer::session::{Job, Said};
use std::path::PathBuf;

pub const FAMILIES: [&str; 7] =
    ["olmoe", "mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v3", "glm4_moe", "gpt_oss"];

pub fn fixture(family: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hf").join(family)
}

/// Options for a fixture with at most so many slots.
pub fn options(family: &str, slots: Option<u32>, sequences: usize) -> Options {
    Options { slots, sequences, chunk: 32, ..Options::new(fixture(family)) }
}

/// Tokens of each prompt, in order, and what it cost.
pub fn generate(
    options: &Options,
    prompts: &[Vec<u32>],
    sampling: Sampling,
    most: usize,
) -> Result<(Vec<Vec<u32>>, Figures)> {
    let mut generator = Generator::open(options)?;
    let mut texts = vec![Vec::new(); prompts.len()];
    let mut jobs = Vec::new();
    for prompt in prompts {
        let mut job = generator.job(prompt.clone(), sampling, most);
        job.ends.clear();
        jobs.push(job);
    }
    let first = jobs.first().map_or(0, |job| job.id);
    generator.run(jobs, |said| {
        if let Said::Token { id, token } = said {
            texts[(id - first) as usize].push(*token);
        }
        Ok(())
    })?;
    Ok((texts, generator.finish()?))
}

/// The tokens that one job makes.
pub fn text_of(generator: &mut Generator, job: Job) -> Vec<u32> {
    let mut text = Vec::new();
    let heard = generator.run(vec![job], |said| {
        if let Said::Token { token, .. } = said {
            text.push(*token);
        }
        Ok(())
    });
    heard.unwrap();
    text
}

/// Prompts of several lengths that share nothing.
pub fn prompts(count: usize) -> Vec<Vec<u32>> {
    let token = |p: usize, at: usize| ((p * 31 + at * 17 + at * at * 3) % 90 + 3) as u32;
    (0..count).map(|p| (0..5 + 9 * p).map(|at| token(p, at)).collect()).collect()
}
