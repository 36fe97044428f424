//! Every family gives what transformers gives, and gives it bit for bit whatever is resident.

use crate::common::{FAMILIES, fixture, options};
use semoe::infer::generator::Generator;
use semoe::infer::perplexity::perplexity;
use semoe::infer::verify::{PROMPT, Request, verify};
use semoe::model::hf::Checkpoint;

#[test]
fn every_family_agrees_with_its_reference_resident_and_with_a_single_slot() {
    for family in FAMILIES {
        let found = verify(&Request {
            options: options(family, None, 2),
            reference: fixture(family).join("expected.safetensors"),
            tolerance: 1e-3,
            prompt: PROMPT,
        })
        .unwrap_or_else(|error| panic!("{family}: {error}"));
        assert!(found.passed, "{family}: {found:?}");
        assert_eq!(found.greedy_total, 24, "{family}");
        assert_eq!(found.smallest_slots, 1, "{family}");
        assert!(found.resident_slots > 1 && found.smallest_bytes_read > 0, "{family}: {found:?}");
    }
}

/// Perplexity is what the reference's logits say of the same tokens, resident and streamed.
#[test]
fn a_texts_perplexity_is_that_of_the_references_logits() {
    let file = Checkpoint::open_file(&fixture("olmoe").join("expected.safetensors")).unwrap();
    let shape = &file.info("logits").unwrap().1.shape;
    let (length, vocab) = (shape[1] as usize, shape[2] as usize);
    let mut logits = vec![0.0; length * vocab * shape[0] as usize];
    file.read_f32("logits", &mut logits).unwrap();
    let ids: Vec<u32> =
        file.read_i64("input_ids").unwrap().iter().map(|id| u32::try_from(*id).unwrap()).collect();
    let mut surprise = 0.0;
    for (at, row) in logits.chunks(vocab).enumerate() {
        if (at + 1) % length != 0 {
            let sum: f64 = row.iter().map(|logit| f64::from(*logit).exp()).sum();
            surprise += sum.ln() - f64::from(row[ids[at + 1] as usize]);
        }
    }
    let mut found = Vec::new();
    for slots in [None, Some(2)] {
        let mut generator = Generator::open(&options("olmoe", slots, 1)).unwrap();
        let mut windows = 0;
        found.push(
            perplexity(&mut generator, &ids, length, |done, all| {
                windows += 1;
                assert!(done == windows && done <= all);
                Ok(())
            })
            .unwrap(),
        );
        assert!(perplexity(&mut generator, &ids, 1, |_, _| Ok(())).is_err());
        assert!(perplexity(&mut generator, &ids[..1], 8, |_, _| Ok(())).is_err());
        generator.finish().unwrap();
    }
    assert_eq!(found[0], found[1], "streaming changes nothing");
    assert_eq!(found[0].tokens as usize, ids.len() - ids.len() / length);
    let want = surprise / found[0].tokens as f64;
    assert!((found[0].loss() - want).abs() < 1e-5, "{} instead of {want}", found[0].loss());
}
