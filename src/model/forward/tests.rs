//! The forward pass against transformers on the fixtures of all families, and law 4: however a
//! text is cut into calls, its numbers are the same.

use super::*;
use crate::model::config::Precision;
use crate::model::family::{ExpertNames, expert_tensors};
use crate::model::hf::Checkpoint;
use crate::model::kernels::linear::{
    self, Activations, ExpertWeights, GateUp, Matrix, Projection, Vector,
};
use std::path::PathBuf;

const FAMILIES: [&str; 7] =
    ["olmoe", "mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v3", "glm4_moe", "gpt_oss"];

fn fixture(family: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hf").join(family)
}

/// The routed experts of one layer.
enum Experts {
    Each(Vec<[OwnedMatrix; 3]>),
    /// gate_up, its bias, down, its bias.
    Fused(Box<[OwnedMatrix; 4]>),
}

impl Experts {
    fn load(config: &ModelConfig, checkpoint: &Checkpoint, layer: usize) -> Self {
        if config.family.spec().expert_names == ExpertNames::Fused {
            let (e, h, f) = (config.experts, config.hidden, config.expert_width);
            let shapes: [(&str, &[usize]); 4] = [
                ("gate_up_proj", &[e, h, 2 * f]),
                ("gate_up_proj_bias", &[e, 2 * f]),
                ("down_proj", &[e, f, h]),
                ("down_proj_bias", &[e, h]),
            ];
            return Self::Fused(Box::new(shapes.map(|(name, shape)| {
                let name = format!("model.layers.{layer}.mlp.experts.{name}");
                checkpoint.tensor(&name, shape).unwrap()
            })));
        }
        let load = |(name, shape): (String, [usize; 2])| checkpoint.tensor(&name, &shape).unwrap();
        let expert = |e| expert_tensors(config, layer, e).unwrap().map(load);
        Self::Each((0..config.experts).map(expert).collect())
    }

    fn weights(&self, config: &ModelConfig, expert: usize) -> ExpertWeights<'_> {
        let activation = config.activation;
        match self {
            Self::Each(all) => {
                let [gate, up, down] = &all[expert];
                let gate_up = GateUp::Apart { gate: gate.view().into(), up: up.view().into() };
                ExpertWeights { gate_up, down: down.view().into(), activation }
            }
            Self::Fused(all) => {
                let [gate_up, gate_up_bias, down, down_bias] = &**all;
                let (h, f) = (config.hidden, config.expert_width);
                let gate_up = fused(gate_up, gate_up_bias, expert, [2 * f, h]);
                let down = fused(down, down_bias, expert, [h, f]);
                ExpertWeights { gate_up: GateUp::Interleaved(gate_up), down, activation }
            }
        }
    }
}

fn fused<'a>(
    all: &'a OwnedMatrix,
    bias: &'a OwnedMatrix,
    expert: usize,
    [rows, cols]: [usize; 2],
) -> Projection<'a> {
    let part = |m: &'a OwnedMatrix, bytes: usize| &m.data[expert * bytes..(expert + 1) * bytes];
    let data = part(all, rows * cols * 4);
    Projection {
        matrix: Matrix::transposed(all.encoding, rows, cols, data).unwrap(),
        bias: Some(Vector { encoding: bias.encoding, data: part(bias, rows * 4) }),
    }
}

/// A model with all its experts in memory.
struct Model {
    forward: Forward,
    experts: Vec<Option<Experts>>,
    work: Work,
    routes: Routes,
}

impl Model {
    fn load(family: &str, threads: usize) -> Self {
        let checkpoint = Checkpoint::open(&fixture(family)).unwrap();
        let config = ModelConfig::from_hf(&fixture(family)).unwrap();
        let experts =
            |layer| (!config.is_dense(layer)).then(|| Experts::load(&config, &checkpoint, layer));
        Self {
            forward: Forward::load(&config, &checkpoint).unwrap(),
            experts: (0..config.layers).map(experts).collect(),
            work: Work::new(threads, Activations::F32).unwrap(),
            routes: Routes::default(),
        }
    }

    fn cache(&self, kind: KvType) -> KvCache {
        KvCache::new(self.forward.config(), 40, kind)
    }

    /// Logits of every row.
    fn call(&mut self, tokens: &[u32], rows: &[Row], caches: &mut [KvCache]) -> Vec<f32> {
        self.call_for(tokens, rows, None, caches)
    }

    /// Logits of every row, or of those that are asked for.
    fn call_for(
        &mut self,
        tokens: &[u32],
        rows: &[Row],
        asked: Option<&[usize]>,
        caches: &mut [KvCache],
    ) -> Vec<f32> {
        let Self { forward, experts, work, routes } = self;
        let config = forward.config();
        let h = config.hidden;
        let mut x = vec![0.0; rows.len() * h];
        let mut y = vec![0.0; rows.len() * h];
        forward.embed(tokens, &mut x).unwrap();
        for (layer, experts) in experts.iter().enumerate() {
            match asked {
                Some(asked) if layer + 1 == config.layers => {
                    let (x_th, y_th) = (&mut x, &mut y);
                    forward.attention_of(layer, x_th, rows, asked, caches, y_th, work).unwrap();
                    x.truncate(asked.len() * h);
                    y.truncate(asked.len() * h);
                }
                _ => forward.attention(layer, &mut x, rows, caches, &mut y, work).unwrap(),
            }
            let sparse = forward.route(layer, &y, routes, work).unwrap();
            assert_eq!(sparse, experts.is_some());
            forward.shared(layer, &y, &mut x, work).unwrap();
            let Some(experts) = experts else { continue };
            for (row, (x, y)) in x.chunks_mut(h).zip(y.chunks(h)).enumerate() {
                let (chosen, weights) = routes.row(row);
                for (expert, weight) in chosen.iter().zip(weights) {
                    let expert = experts.weights(config, usize::from(*expert));
                    linear::expert(&expert, y, &[*weight], x, work).unwrap();
                }
            }
        }
        let mut logits = Vec::new();
        forward.head(&x, &mut logits, work).unwrap();
        logits
    }

    /// Logits of a whole text, `chunk` tokens a call.
    fn run(&mut self, tokens: &[u32], chunk: usize, kind: KvType) -> Vec<f32> {
        let mut caches = [self.cache(kind)];
        let mut logits = Vec::new();
        for (i, tokens) in tokens.chunks(chunk).enumerate() {
            let rows = rows_of(0, i * chunk, tokens.len());
            logits.extend(self.call(tokens, &rows, &mut caches));
        }
        assert_eq!(caches[0].len(), tokens.len());
        logits
    }
}

fn rows_of(sequence: usize, first: usize, rows: usize) -> Vec<Row> {
    (first..first + rows).map(|position| Row { sequence, position }).collect()
}

struct Reference {
    /// [B][T]
    texts: Vec<Vec<u32>>,
    /// [B][T·V]
    logits: Vec<Vec<f32>>,
    greedy: Vec<u32>,
}

impl Reference {
    fn load(family: &str) -> Self {
        let file = Checkpoint::open_file(&fixture(family).join("expected.safetensors")).unwrap();
        let ids = |name| -> Vec<u32> {
            file.read_i64(name).unwrap().into_iter().map(|id| u32::try_from(id).unwrap()).collect()
        };
        let (_, info) = file.info("logits").unwrap();
        let (t, v) = (info.shape[1] as usize, info.shape[2] as usize);
        let mut logits = vec![0.0; info.elements() as usize];
        file.read_f32("logits", &mut logits).unwrap();
        Self {
            texts: ids("input_ids").chunks(t).map(<[u32]>::to_vec).collect(),
            logits: logits.chunks(t * v).map(<[f32]>::to_vec).collect(),
            greedy: ids("greedy"),
        }
    }
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = i;
        }
    }
    best as u32
}

#[test]
fn logits_match_transformers_for_every_family() {
    for family in FAMILIES {
        let reference = Reference::load(family);
        let mut model = Model::load(family, 2);
        for (text, want) in reference.texts.iter().zip(&reference.logits) {
            let off = worst(&model.run(text, text.len(), KvType::F32), want);
            assert!(off < 1e-4, "{family}: logits are off by {off}");
        }
    }
}

#[test]
fn greedy_tokens_match_transformers_for_every_family() {
    for family in FAMILIES {
        let want = Reference::load(family).greedy;
        let mut model = Model::load(family, 2);
        let mut caches = [model.cache(KvType::F32)];
        let vocab = model.forward.config().vocab;
        let mut text = want[..9].to_vec();
        let mut logits = model.call(&text, &rows_of(0, 0, 9), &mut caches);
        while text.len() < want.len() {
            text.push(argmax(&logits[logits.len() - vocab..]));
            let last = text.len() - 1;
            logits = model.call(&text[last..], &rows_of(0, last, 1), &mut caches);
        }
        assert_eq!(text, want, "{family}");
    }
}

#[test]
fn chunks_and_threads_leave_every_bit_alone() {
    for family in FAMILIES {
        let text = &Reference::load(family).texts[0];
        for kind in [KvType::F32, KvType::Bf16] {
            let whole = Model::load(family, 1).run(text, text.len(), kind);
            let mut model = Model::load(family, 3);
            for chunk in [1, 3, 16, text.len()] {
                assert!(model.run(text, chunk, kind) == whole, "{family} in chunks of {chunk}");
            }
        }
    }
}

#[test]
fn sequences_together_give_each_ones_bits() {
    for family in FAMILIES {
        let reference = Reference::load(family);
        let [a, b] = reference.texts.as_slice() else { panic!("two texts") };
        let mut model = Model::load(family, 2);
        let alone = [a, b].map(|text| model.run(text, text.len(), KvType::F32));
        let mut caches = [model.cache(KvType::F32), model.cache(KvType::F32)];
        let vocab = model.forward.config().vocab;
        let mut together = [Vec::new(), Vec::new()];
        // The first decodes token by token while the second is prefilled seven at a time.
        let (mut of_a, mut of_b) = (0, 0);
        while of_a < a.len() {
            let chunk = 7.min(b.len() - of_b);
            let mut rows = rows_of(1, of_b, chunk);
            let mut tokens = b[of_b..of_b + chunk].to_vec();
            rows.extend(rows_of(0, of_a, 1));
            tokens.push(a[of_a]);
            let logits = model.call(&tokens, &rows, &mut caches);
            let (second, first) = logits.split_at(chunk * vocab);
            together[0].extend_from_slice(first);
            together[1].extend_from_slice(second);
            (of_a, of_b) = (of_a + 1, of_b + chunk);
        }
        assert!(together == alone, "{family}");
    }
}

#[test]
fn a_cache_in_bf16_takes_half_and_stays_close() {
    for family in FAMILIES {
        let reference = Reference::load(family);
        let mut model = Model::load(family, 2);
        let config = model.forward.config().clone();
        let (half, whole) =
            (KvCache::bytes(&config, 40, KvType::Bf16), KvCache::bytes(&config, 40, KvType::F32));
        assert_eq!(2 * half, whole);
        let text = &reference.texts[0];
        let off = worst(&model.run(text, text.len(), KvType::Bf16), &reference.logits[0]);
        assert!(off > 0.0 && off < 2e-2, "{family}: logits are off by {off}");
    }
}

#[test]
fn a_truncated_cache_continues_as_if_never_longer() {
    for family in FAMILIES {
        let text = &Reference::load(family).texts[0];
        let mut model = Model::load(family, 2);
        let want = model.run(text, text.len(), KvType::F32);
        let mut caches = [model.cache(KvType::F32)];
        model.call(text, &rows_of(0, 0, text.len()), &mut caches);
        caches[0].truncate(20);
        let wrong: Vec<u32> = text[20..25].iter().rev().copied().collect();
        model.call(&wrong, &rows_of(0, 20, 5), &mut caches);
        caches[0].truncate(20);
        let rest = model.call(&text[20..], &rows_of(0, 20, text.len() - 20), &mut caches);
        assert!(rest == want[want.len() - rest.len()..], "{family}");
    }
}

/// Of the last layer only what is asked for is computed, and its numbers are those of all rows together.
#[test]
fn asked_rows_have_the_bits_that_they_have_among_all() {
    for family in FAMILIES {
        let reference = Reference::load(family);
        let mut model = Model::load(family, 2);
        let h = model.forward.config().hidden;
        let (layers, vocab) = (model.forward.config().layers, model.forward.config().vocab);
        // The first text whole, of the second six tokens; what follows decodes both.
        let mut rows = rows_of(0, 0, 20);
        rows.extend(rows_of(1, 0, 6));
        let tokens: Vec<u32> = [&reference.texts[0][..20], &reference.texts[1][..6]].concat();
        let mut caches = [model.cache(KvType::F32), model.cache(KvType::F32)];
        let all = model.call(&tokens, &rows, &mut caches);
        let next = [Row { sequence: 0, position: 20 }, Row { sequence: 1, position: 6 }];
        let after = model.call(&[5, 6], &next, &mut caches);
        for asked in [vec![], vec![19], vec![19, 25], vec![3, 4, 7, 20, 21], (0..26).collect()] {
            let mut caches = [model.cache(KvType::F32), model.cache(KvType::F32)];
            let logits = model.call_for(&tokens, &rows, Some(&asked), &mut caches);
            let want: Vec<f32> = asked
                .iter()
                .flat_map(|row| &all[row * vocab..(row + 1) * vocab])
                .copied()
                .collect();
            assert!(logits == want, "{family}: {asked:?}");
            assert!(model.call(&[5, 6], &next, &mut caches) == after, "{family}: keys and values");
        }
        let mut caches = [model.cache(KvType::F32), model.cache(KvType::F32)];
        let Model { forward, work, .. } = &mut model;
        let (mut x, mut y) = (vec![0.0; 26 * h], vec![0.0; 26 * h]);
        for wrong in [[0, 26], [4, 3], [4, 4]] {
            let (last, caches) = (layers - 1, &mut caches);
            let refused = forward.attention_of(last, &mut x, &rows, &wrong, caches, &mut y, work);
            assert!(refused.is_err(), "{wrong:?}");
        }
    }
}

#[test]
fn rows_that_do_not_continue_their_cache_are_refused() {
    let mut model = Model::load("olmoe", 1);
    let mut caches = [model.cache(KvType::F32)];
    let Model { forward, work, .. } = &mut model;
    let (mut x, mut y) = (vec![0.0; 64], vec![0.0; 64]);
    let mut attend = |position, x: &mut [f32]| {
        let row = [Row { sequence: 0, position }];
        forward.attention(0, x, &row, &mut caches, &mut y, work)
    };
    assert!(attend(1, &mut x[..]).is_err());
    attend(0, &mut x[..]).unwrap();
    assert!(attend(0, &mut x[..]).unwrap_err().to_string().contains("next=1"));
    assert!(attend(1, &mut x[..63]).is_err());
    for position in 1..40 {
        attend(position, &mut x[..]).unwrap();
    }
    assert!(attend(40, &mut x[..]).unwrap_err().to_string().contains("capacity=40"));
    assert!(forward.embed(&[272], &mut x).unwrap_err().to_string().contains("272"));
}

#[test]
fn a_guess_on_the_layers_own_input_is_its_route() {
    for family in FAMILIES {
        let mut model = Model::load(family, 2);
        let mut caches = [model.cache(KvType::F32)];
        let Model { forward, work, .. } = &mut model;
        let tokens = &Reference::load(family).texts[0][..5];
        let h = forward.config().hidden;
        let (mut x, mut y) = (vec![0.0; 5 * h], vec![0.0; 5 * h]);
        forward.embed(tokens, &mut x).unwrap();
        let layer = forward.config().dense_layers;
        forward.attention(layer, &mut x, &rows_of(0, 0, 5), &mut caches, &mut y, work).unwrap();
        let (mut routed, mut guessed) = (Routes::default(), Routes::default());
        assert!(forward.route(layer, &y, &mut routed, work).unwrap());
        assert!(forward.guess(layer, &x, None, &mut guessed, work).unwrap());
        assert_eq!(routed, guessed);
        assert_eq!(routed.rows(), 5);
        assert!(forward.guess(layer, &x, Some(&[1, 4]), &mut guessed, work).unwrap());
        assert_eq!(guessed.rows(), 2);
        assert_eq!([guessed.row(0), guessed.row(1)], [routed.row(1), routed.row(4)]);
        if layer > 0 {
            assert!(!forward.guess(0, &x, None, &mut guessed, work).unwrap());
            assert_eq!(guessed.rows(), 0);
        }
    }
}

#[test]
fn resident_bytes_are_known_before_loading() {
    for family in FAMILIES {
        let checkpoint = Checkpoint::open(&fixture(family)).unwrap();
        let config = ModelConfig::from_hf(&fixture(family)).unwrap();
        let want: u64 = crate::model::family::dense_tensors(&config)
            .iter()
            .map(|tensor| 4 * tensor.elements() as u64)
            .sum();
        assert_eq!(Forward::resident_bytes(&config, &checkpoint).unwrap(), want, "{family}");
        let mut wrong = config.clone();
        wrong.hidden += 2;
        let error = Forward::resident_bytes(&wrong, &checkpoint).unwrap_err();
        assert!(error.to_string().contains("model.embed_tokens.weight"), "{error}");
    }
}

#[test]
fn buffers_stay_within_what_is_planned() {
    fn is_send<T: Send>() {}
    is_send::<Forward>();
    for family in FAMILIES {
        let text = &Reference::load(family).texts[0];
        let mut model = Model::load(family, 3);
        let within = |model: &Model, sequences: usize| {
            let buffers = model.forward.buffers.borrow();
            let of_router = buffers.router.bytes() + 4 * buffers.normed.capacity();
            let found = (buffers.attention.bytes() + of_router) as u64;
            let planned = Forward::buffer_bytes(model.forward.config(), 11, sequences, 40, 3);
            assert!(found <= planned, "{family}: {found} bytes, {planned} planned");
            assert!(planned < 2 * found, "{family}: {found} bytes, {planned} planned");
        };
        model.run(text, 11, KvType::Bf16);
        within(&model, 1);
        let mut caches: Vec<KvCache> = (0..11).map(|_| model.cache(KvType::F32)).collect();
        let rows: Vec<Row> = (0..11).map(|sequence| Row { sequence, position: 0 }).collect();
        model.call(&text[..11], &rows, &mut caches);
        within(&model, 11);
    }
}

#[test]
fn configs_are_written_as_they_are_read() {
    for family in FAMILIES {
        let config = ModelConfig::from_hf(&fixture(family)).unwrap();
        let text = config.to_hf_json(Precision::F32).to_string();
        let back = crate::model::hf::config::parse(&text, &fixture(family)).unwrap();
        assert_eq!(back, config, "{family}");
    }
}
