//! Every family gives what transformers gives, and gives it bit for bit whatever is resident.

use crate::common::{FAMILIES, fixture, options};
use semoe::infer::verify::{PROMPT, Request, verify};

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
