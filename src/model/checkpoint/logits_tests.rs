//! Whole models out of opened checkpoints, against the outputs of transformers: the same numbers
//! from a folder, from the store that it is imported to, and from a GGUF file.

use super::store::{Options, import};
use super::tests::{FAMILIES, fixture};
use super::*;
use crate::model::forward::{Forward, KvCache, KvType, Routes, Row};
use crate::model::hf::Checkpoint;
use crate::model::kernels::linear::{Activations, Encoding, Work, expert};

/// Tokens of the first reference text, and what it gave.
fn reference(family: &str) -> (Vec<u32>, Vec<f32>) {
    let file = Checkpoint::open_file(&fixture(family).join("expected.safetensors")).unwrap();
    let tokens = file.info("input_ids").unwrap().1.shape[1] as usize;
    let ids = file.read_i64("input_ids").unwrap();
    let shape = &file.info("logits").unwrap().1.shape;
    let mut logits = vec![0.0; shape.iter().product::<u64>() as usize];
    file.read_f32("logits", &mut logits).unwrap();
    logits.truncate(tokens * shape[2] as usize);
    (ids[..tokens].iter().map(|id| *id as u32).collect(), logits)
}

fn logits(source: &Source, tokens: &[u32]) -> Vec<f32> {
    let config = source.config();
    let forward = Forward::load(config, source).unwrap();
    let mut work = Work::new(1, Activations::F32).unwrap();
    let mut routes = Routes::default();
    let mut caches = [KvCache::new(config, tokens.len(), KvType::F32)];
    let rows: Vec<Row> = (0..tokens.len()).map(|position| Row { sequence: 0, position }).collect();
    let h = config.hidden;
    let mut x = vec![0.0; tokens.len() * h];
    let mut y = x.clone();
    forward.embed(tokens, &mut x).unwrap();
    for layer in 0..config.layers {
        forward.attention(layer, &mut x, &rows, &mut caches, &mut y, &mut work).unwrap();
        let sparse = forward.route(layer, &y, &mut routes, &mut work).unwrap();
        forward.shared(layer, &y, &mut x, &mut work).unwrap();
        if !sparse {
            continue;
        }
        for (row, (x, y)) in x.chunks_mut(h).zip(y.chunks(h)).enumerate() {
            let (chosen, weights) = routes.row(row);
            for (number, weight) in chosen.iter().zip(weights) {
                let pieces = source.read_expert(layer, usize::from(*number)).unwrap();
                let pieces: Vec<&[u8]> = pieces.iter().map(|piece| &**piece).collect();
                let found = source.expert(layer, usize::from(*number), &pieces).unwrap();
                expert(&found, y, &[*weight], x, &mut work).unwrap();
            }
        }
    }
    let mut out = Vec::new();
    forward.head(&x, &mut out, &mut work).unwrap();
    out
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn a_folder_and_its_store_give_the_same_logits_bit_for_bit() {
    for family in FAMILIES {
        let (tokens, wanted) = reference(family);
        let folder = Source::open(&fixture(family)).unwrap();
        let found = logits(&folder, &tokens);
        let difference = largest_difference(&found, &wanted);
        assert!(difference < 1e-3, "{family} {difference}");
        let work = tempfile::tempdir().unwrap();
        let store = work.path().join("store");
        import(&folder, &store, &Options::default(), |_, _| {}).unwrap();
        assert!(logits(&Source::open(&store).unwrap(), &tokens) == found, "{family}");
    }
}

#[test]
fn gguf_files_give_the_logits_of_their_folders() {
    for family in ["olmoe", "mixtral", "qwen2_moe", "qwen3_moe"] {
        let (tokens, wanted) = reference(family);
        let path = fixture(family).join(format!("../../gguf/{family}.gguf"));
        let found = logits(&Source::open(&path).unwrap(), &tokens);
        // Their matrices are f16.
        let difference = largest_difference(&found, &wanted);
        assert!(difference < 5e-3, "{family} {difference}");
    }
}

#[test]
fn quantised_stores_stay_near_their_folders() {
    for (encoding, bound) in [(Encoding::Int8, 0.1), (Encoding::Int4 { group: 32 }, 1.0)] {
        for family in ["olmoe", "deepseek_v3", "gpt_oss"] {
            let (tokens, wanted) = reference(family);
            let work = tempfile::tempdir().unwrap();
            let store = work.path().join("store");
            let options = Options { experts: Some(encoding), dense: None };
            let folder = Source::open(&fixture(family)).unwrap();
            import(&folder, &store, &options, |_, _| {}).unwrap();
            let found = logits(&Source::open(&store).unwrap(), &tokens);
            let difference = largest_difference(&found, &wanted);
            assert!(difference > 0.0 && difference < bound, "{family} {encoding:?} {difference}");
        }
    }
}
