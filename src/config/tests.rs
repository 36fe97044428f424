//! The configuration resolves, refuses, and reads back what it prints.

use super::*;

const TINY: &str = r#"
[model]
hidden = 32
layers = 2
heads = 4
experts = 4
expert_width = 16
top_k = 2

[data]
files = ["a.txt", { path = "b.jsonl", weight = 2 }]
tokenizer = { kind = "bytes" }

[train]
steps = 3
seq = 16
lr = 0.0003
seed = 7

[storage]
host = "1MiB"
"#;

fn parse(sets: &[&str]) -> Result<Config> {
    let sets: Vec<String> = sets.iter().map(|s| (*s).to_owned()).collect();
    Config::parse(TINY, Path::new("dir/tiny.toml"), &sets)
}

#[test]
fn every_default_is_resolved() {
    let config = parse(&[]).unwrap();
    assert_eq!(config.name, "tiny");
    let shape = config.model.shape().unwrap();
    assert_eq!((shape.kv_heads, shape.head_dim, shape.max_position, shape.seed), (4, 8, 16, 7));
    assert_eq!((config.data.seed, config.train.micro_batch), (7, 8));
    assert_eq!(config.train.min_lr, 3e-5);
    assert_eq!(config.data.files[0].path, Path::new("a.txt"));
    assert_eq!(config.data.files[1].weight, 2.0);
    assert_eq!(config.actors.gate.renormalise, Some(false));
    config.validate().unwrap();
}

#[test]
fn what_is_printed_is_read_back_as_the_same() {
    for sets in [&[][..], &["model.family=mixtral"], &["actors.gate.kind=gshard"]] {
        let config = parse(sets).unwrap();
        let text = config.to_toml().unwrap();
        assert_eq!(Config::parse(&text, Path::new("other.toml"), &[]).unwrap(), config, "{text}");
    }
}

#[test]
fn set_overrides_any_key() {
    let config = parse(&[
        "actors.prefetcher.lookahead=2",
        "train.precision=f32",
        "name=7",
        "data.files=[\"c.txt\"]",
        "data.tokenizer={kind=\"bpe\"}",
    ])
    .unwrap();
    assert_eq!(config.actors.prefetcher.lookahead, 2);
    assert_eq!(config.train.precision, Precision::F32);
    assert_eq!(config.name, "7");
    assert_eq!(config.data.tokenizer, Tokenizer::Bpe { vocab: 4096 });
    let refused = parse(&["actors.prefetcher.lookahed=2"]).unwrap_err().to_string();
    assert_eq!(
        refused,
        "--set actors.prefetcher.lookahed=2: `actors.prefetcher.lookahed` is not a key: the \
         nearest is `actors.prefetcher.lookahead`"
    );
    assert!(parse(&["train"]).is_err());
    assert!(parse(&["name.x=1", "name.x.y=2"]).is_err());
}

#[test]
fn a_checkpoint_gives_the_shape() {
    let text = TINY
        .replace("hidden = 32\nlayers = 2\nheads = 4\n", "from = \"ckpt\"\n")
        .replace("experts = 4\nexpert_width = 16\ntop_k = 2\n", "")
        .replace("tokenizer = { kind = \"bytes\" }\n", "");
    let config = Config::parse(&text, Path::new("tune.toml"), &[]).unwrap();
    assert_eq!(config.model.from().unwrap(), Path::new("ckpt"));
    let path = PathBuf::from("ckpt/tokenizer.json");
    assert_eq!(config.data.tokenizer, Tokenizer::File { path });
    assert_eq!(config.actors.gate.renormalise, None);
}

#[test]
fn code_built_values_are_checked_too() {
    let mut config = parse(&[]).unwrap();
    config.train.steps = 0;
    let refused = config.validate().unwrap_err().to_string();
    assert_eq!(refused, "`train.steps` = 0 is impossible: it must be at least 1");
    config.train.steps = 1;
    config.train.lr = f64::NAN;
    assert!(config.validate().is_err());
}
