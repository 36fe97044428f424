//! What batching, chunks, threads, budgets and the order of arrival may not change, and what they
//! may cost.

use crate::common::{fixture, generate, options, prompts, text_of};
use semoe::infer::foresight::PredictorKind;
use semoe::infer::generator::Generator;
use semoe::infer::options::Options;
use semoe::infer::sampler::Sampling;
use semoe::infer::session::Said;
use semoe::model::config::{ModelConfig, Precision};
use semoe::model::family::Family;
use semoe::model::kernels::linear::Activations;
use semoe::model::random::{Draw, write};
use semoe::storage::disk::{DirectChoice, EngineChoice};
use semoe::storage::policy::{PolicyConfig, PolicyKind};

#[test]
fn texts_made_together_are_those_made_alone_while_evicting() {
    let prompts = prompts(3);
    let warm = Sampling { temperature: 1.5, top_k: 20, seed: 3, ..Sampling::greedy() };
    for sampling in [Sampling::greedy(), warm] {
        let mut alone = Vec::new();
        for prompt in &prompts {
            let resident = options("qwen2_moe", None, 1);
            let (texts, _) =
                generate(&resident, std::slice::from_ref(prompt), sampling, 12).unwrap();
            alone.extend(texts);
        }
        assert!(alone.iter().all(|text| text.len() == 12));
        for (slots, sequences) in [(1, 2), (3, 3), (5, 1)] {
            let few = options("qwen2_moe", Some(slots), sequences);
            let (together, figures) = generate(&few, &prompts, sampling, 12).unwrap();
            assert_eq!(together, alone, "{slots} slots, {sequences} at once");
            assert!(figures.decode.misses > 0, "nothing was evicted: {figures:?}");
        }
    }
}

/// As fixtures are in f32: a checkpoint in bf16, with what activations the processor likes best and
/// with f32.
#[test]
fn in_bf16_neither_budget_nor_chunks_nor_company_change_a_text() {
    let folder = tempfile::tempdir().unwrap();
    let config = ModelConfig {
        vocab: 128,
        hidden: 96,
        layers: 3,
        heads: 4,
        kv_heads: 2,
        head_dim: 24,
        experts: 8,
        top_k: 2,
        expert_width: 80,
        max_position: 128,
        ..ModelConfig::of_family(Family::Olmoe)
    };
    write(folder.path(), &config, &Draw::default(), Precision::Bf16, 1 << 30, |_, _| ()).unwrap();
    let prompts = prompts(2);
    for activations in [Activations::best(), Activations::F32] {
        let base =
            Options { activations: Some(activations), sequences: 2, ..Options::new(folder.path()) };
        let make = |options: &Options| generate(options, &prompts, Sampling::greedy(), 24).unwrap();
        let (expected, _) = make(&base);
        for (slots, chunk, sequences) in [(Some(1), 512, 2), (Some(3), 5, 1), (None, 1, 2)] {
            let options = Options { slots, chunk, sequences, ..base.clone() };
            let (texts, figures) = make(&options);
            assert_eq!(texts, expected, "{activations:?} {slots:?} {chunk} {sequences}");
            assert_eq!(slots.is_some(), figures.decode.misses > 8, "{figures:?}");
        }
    }
}

/// Given tokens stand where made ones would: what follows them is what follows a prompt with them, and a
/// text that a sampler made is made again when it is given.
#[test]
fn given_tokens_are_a_text_like_made_ones() {
    let mut generator = Generator::open(&options("olmoe", Some(3), 1)).unwrap();
    let mut make = |prompt: &[u32], given: &[u32], most| {
        let mut job = generator.job(prompt.to_vec(), Sampling::greedy(), most);
        job.ends.clear();
        job.given = given.to_vec();
        text_of(&mut generator, job)
    };
    let (prompt, given) = ([5, 17, 3], [40, 8, 2, 61]);
    let text = make(&prompt, &given, 9);
    assert_eq!(text[..4], given);
    assert_eq!(text[4..], make(&[prompt.as_slice(), &given].concat(), &[], 5));
    assert_eq!(make(&prompt, &given, 2), given[..2]);
    let free = make(&prompt, &[], 9);
    assert_ne!(free, text);
    assert_eq!(make(&prompt, &free[..6], 9), free);
}

#[test]
fn neither_chunks_nor_threads_nor_the_disk_nor_the_policy_change_a_text() {
    let prompts = prompts(2);
    let make = |options: &Options| generate(options, &prompts, Sampling::greedy(), 8).unwrap().0;
    let base = options("olmoe", Some(3), 2);
    let expected = make(&base);
    for chunk in [1, 7, 64] {
        assert_eq!(make(&Options { chunk, ..base.clone() }), expected, "chunks of {chunk}");
    }
    for threads in [1, 3] {
        assert_eq!(make(&Options { threads, ..base.clone() }), expected, "{threads} threads");
    }
    for kind in PolicyKind::ALL {
        let policy = PolicyConfig { kind, ..base.policy.clone() };
        assert_eq!(make(&Options { policy, ..base.clone() }), expected, "{kind}");
    }
    for engine in [EngineChoice::Auto, EngineChoice::Pool] {
        for direct in [DirectChoice::Auto, DirectChoice::Off] {
            let mut options = base.clone();
            (options.io.engine, options.io.direct) = (engine, direct);
            assert_eq!(make(&options), expected, "{engine:?} {direct:?}");
        }
    }
}

#[test]
fn a_chunk_of_a_prompt_reads_each_expert_at_most_once() {
    let config = ModelConfig::from_hf(&fixture("olmoe")).unwrap();
    let prompt: Vec<u32> = (0..60).map(|at| at * 7 % 90 + 3).collect();
    for (slots, chunk) in [(2, 64), (2, 20), (1, 64)] {
        let options = Options { chunk, ..options("olmoe", Some(slots), 1) };
        let mut generator = Generator::open(&options).unwrap();
        let blocks = u64::from(generator.settings().effective.blocks);
        let job = generator.job(prompt.clone(), Sampling::greedy(), 0);
        generator.run(vec![job], |_| Ok(())).unwrap();
        let loads = generator.cache().with(|hierarchy| hierarchy.stats().total().loads);
        let figures = generator.finish().unwrap();
        let chunks = prompt.len().div_ceil(chunk) as u64;
        assert_eq!(figures.prompt.passes, chunks);
        // Of the last layer nobody asks for more than the experts of the last token.
        let most = (blocks - config.experts as u64) * chunks + config.top_k as u64;
        assert!(loads <= most, "{loads} loads of {blocks} blocks in {chunks} chunks");
        assert!(loads > blocks / 2, "a prompt of 60 tokens uses most experts");
    }
}

/// A prompt that follows another finds in memory what the slots can hold of a sweep: uses alone would find
/// nothing, because each block would leave just before its turn.
#[test]
fn prompts_one_after_another_find_a_part_of_the_experts() {
    for kind in [PolicyKind::Adaptive, PolicyKind::Lfu, PolicyKind::Lru] {
        let base = options("olmoe", None, 1);
        let blocks = Generator::open(&base).unwrap().settings().effective.blocks;
        let policy = PolicyConfig { kind, ..base.policy.clone() };
        let slots = Some(blocks / 2);
        let options = Options { slots, policy, chunk: 64, predictor: PredictorKind::None, ..base };
        let mut generator = Generator::open(&options).unwrap();
        let mut hits = 0.0;
        for first in 0..4 {
            let prompt = (0..60).map(|at| (first * 13 + at * 7) % 90 + 3).collect();
            let mut job = generator.job(prompt, Sampling::greedy(), 0);
            // So that the last of its few layers is swept over too; such a pass counts as decoding.
            job.logits = true;
            generator.run(vec![job], |_| Ok(())).unwrap();
            hits = generator.take_figures().unwrap().decode.hit_rate();
        }
        generator.finish().unwrap();
        let sweeps = kind != PolicyKind::Lru;
        assert_eq!(hits > 0.3, sweeps, "{kind}: {hits}");
    }
}

#[test]
fn a_timeline_shows_what_was_read_and_computed() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["passes.json", "passes.svg"] {
        let file = folder.path().join(name);
        let options = Options { timeline: Some(file.clone()), ..options("olmoe", Some(2), 1) };
        let plain = generate(
            &Options { timeline: None, ..options.clone() },
            &prompts(1),
            Sampling::greedy(),
            8,
        );
        let drawn = generate(&options, &prompts(1), Sampling::greedy(), 8);
        assert_eq!(drawn.unwrap().0, plain.unwrap().0);
        let text = std::fs::read_to_string(&file).unwrap();
        if name.ends_with("svg") {
            assert!(text.starts_with("<svg"), "{text}");
            continue;
        }
        let trace: serde_json::Value = serde_json::from_str(&text).unwrap();
        for work in ["read layer1", "advance 0", "expert 1/"] {
            let events = trace["traceEvents"].as_array().unwrap();
            let of_it = |event: &serde_json::Value| {
                event["name"].as_str().is_some_and(|name| name.starts_with(work))
            };
            assert!(events.iter().any(of_it), "no \"{work}\" in {text}");
        }
    }
}

#[test]
fn a_warm_start_has_what_was_used_before_and_makes_the_same_text() {
    let index = tempfile::tempdir().unwrap();
    let make = |slots, warm, predictor| {
        let index = Some(index.path().to_owned());
        let options = Options { warm, predictor, index, ..options("olmoe", slots, 1) };
        let mut generator = Generator::open(&options).unwrap();
        let settings = generator.settings().clone();
        let mut job = generator.job(vec![7, 8], Sampling::greedy(), 6);
        job.ends.clear();
        let text = text_of(&mut generator, job);
        let misses = generator.cache().with(|hierarchy| hierarchy.stats().total().misses);
        generator.finish().unwrap();
        (text, misses, settings)
    };
    let (text, cold, first) = make(None, true, PredictorKind::None);
    assert_eq!(first.effective.warm, Some(0));
    assert!(first.to_string().contains("nothing is known of earlier runs"), "{first}");
    let (again, hot, second) = make(None, true, PredictorKind::None);
    assert_eq!(second.effective.warm, Some(cold as u32), "{second}");
    assert!(cold > 0 && hot == 0, "{cold} experts were missed, then {hot}");
    assert_eq!(again, text);
    // With less memory the hottest come, and what follows what is remembered too.
    for _ in 0..2 {
        let (few, _, settings) = make(Some(3), true, PredictorKind::Transitions);
        assert_eq!(few, text);
        assert_eq!(settings.effective.warm, Some(3));
    }
    assert_eq!(make(None, false, PredictorKind::None).2.effective.warm, None);
}

#[test]
fn every_use_of_an_expert_is_counted_whether_anything_is_read_or_not() {
    let config = ModelConfig::from_hf(&fixture("olmoe")).unwrap();
    let mut generator = Generator::open(&options("olmoe", None, 1)).unwrap();
    let job = generator.job(prompts(4).pop().unwrap(), Sampling::greedy(), 24);
    text_of(&mut generator, job);
    let decode = generator.finish().unwrap().decode;
    let uses = decode.passes * (config.layers * config.top_k) as u64;
    assert!(decode.passes > 10 && decode.hits > decode.misses, "{decode:?}");
    assert_eq!(decode.hits + decode.misses, uses, "{decode:?}");
}

#[test]
fn what_was_read_is_not_read_again() {
    let prompt = prompts(4).pop().unwrap();
    let mut generator = Generator::open(&options("olmoe", None, 1)).unwrap();
    let first = generator.job(prompt.clone(), Sampling::greedy(), 4);
    let text = [prompt, text_of(&mut generator, first), vec![5, 6, 7]].concat();
    let (length, mut found) = (text.len(), None);
    let next = generator.job(text, Sampling::greedy(), 1);
    generator
        .run(vec![next], |said| {
            if let Said::Ended { reused, .. } = said {
                found = Some(*reused);
            }
            Ok(())
        })
        .unwrap();
    // All but the last made token, which was told and never fed, and what is new.
    assert_eq!(found, Some(length - 4));
    generator.finish().unwrap();
}
