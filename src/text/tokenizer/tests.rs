//! Ids are the same after training again, saving and loading.

use super::*;

const TEXT: &str = "In the beginning God created the heaven and the earth.\n é世🙂\0 <| \n";

#[test]
fn bytes_are_their_own_ids() {
    let tokenizer = Tokenizer::bytes().unwrap();
    assert_eq!(tokenizer.vocab_size(), BYTES_VOCAB);
    let specials = (tokenizer.bos(), tokenizer.eos(), tokenizer.pad());
    assert_eq!(specials, (Some(256), Some(257), Some(258)));
    let ids = tokenizer.encode(TEXT).unwrap();
    assert_eq!(ids, TEXT.bytes().map(u32::from).collect::<Vec<_>>());
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), TEXT);
    assert_eq!(tokenizer.encode("a<|eos|>b").unwrap(), [97, 257, 98]);
    // Without a special token in sight the short way must agree with the crate's.
    let all: String = (0..0x500).filter_map(char::from_u32).collect();
    let slow: Vec<u32> =
        tokenizer.encode_with_offsets(&all).unwrap().into_iter().map(|(id, _)| id).collect();
    assert_eq!(tokenizer.encode(&all).unwrap(), slow);
}

fn corpus() -> Vec<String> {
    (0..200).map(|i| format!("and the {} of the earth said unto him, {i}\n", i * 7919)).collect()
}

#[test]
fn a_trained_bpe_is_the_same_each_time_and_survives_saving() {
    let tokenizer = Tokenizer::train_bpe(400, &corpus()).unwrap();
    let again = Tokenizer::train_bpe(400, &corpus()).unwrap();
    assert_eq!(tokenizer.to_json().unwrap(), again.to_json().unwrap());
    assert!(tokenizer.vocab_size() <= 400 && tokenizer.vocab_size() > BYTES_VOCAB);
    let ids = tokenizer.encode(TEXT).unwrap();
    assert!(ids.len() < TEXT.len());
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), TEXT);

    let dir = tempfile::tempdir().unwrap();
    tokenizer.save(dir.path()).unwrap();
    let loaded = Tokenizer::load(dir.path()).unwrap();
    assert_eq!(loaded.encode(TEXT).unwrap(), ids);
    assert_eq!(loaded.eos(), tokenizer.eos());
    assert_eq!(loaded.fingerprint().unwrap(), tokenizer.fingerprint().unwrap());
}

#[test]
fn saved_bytes_load_as_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = Tokenizer::bytes().unwrap();
    tokenizer.save(dir.path()).unwrap();
    let loaded = Tokenizer::load(&dir.path().join("tokenizer.json")).unwrap();
    assert!(loaded.bytes);
    assert_eq!(loaded.vocab_size(), BYTES_VOCAB);
    assert_eq!(loaded.fingerprint().unwrap(), tokenizer.fingerprint().unwrap());
    // And without our own key the crate's way gives the same ids.
    std::fs::remove_file(dir.path().join("tokenizer_config.json")).unwrap();
    let plain = Tokenizer::load(dir.path()).unwrap();
    assert!(!plain.bytes && plain.eos().is_none());
    assert_eq!(plain.encode(TEXT).unwrap(), tokenizer.encode(TEXT).unwrap());
}

#[test]
fn special_ids_come_from_the_model_when_the_tokenizer_names_none() {
    let dir = tempfile::tempdir().unwrap();
    Tokenizer::bytes().unwrap().save(dir.path()).unwrap();
    std::fs::remove_file(dir.path().join("tokenizer_config.json")).unwrap();
    let config = r#"{"eos_token_id": [257, 258], "bos_token_id": 256}"#;
    std::fs::write(dir.path().join("generation_config.json"), config).unwrap();
    let tokenizer = Tokenizer::load(dir.path()).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(256), Some(257)));
    assert_eq!(tokenizer.eos_text(), EOS);
}

#[test]
fn bad_tokenizers_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let e = Tokenizer::load(dir.path()).unwrap_err();
    assert!(e.to_string().contains("give a tokenizer.json"), "{e}");
    std::fs::write(dir.path().join("tokenizer.json"), "{").unwrap();
    let e = Tokenizer::load(dir.path()).unwrap_err();
    assert!(e.to_string().contains("tokenizer.json is not a tokenizer"), "{e}");
    let e = Tokenizer::train_bpe(100, &corpus()).unwrap_err();
    assert!(e.to_string().contains("259 is the least"), "{e}");
}
