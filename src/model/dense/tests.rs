//! The dense part against transformers: forward and backward on the fixtures, with routed
//! experts as a plain loop under autograd.

use super::*;
use crate::model::family::{QkNorm, expert_tensors};
use crate::model::hf::{Checkpoint, Writer, expert as hf_expert};
use std::path::PathBuf;
use tch::Device;

pub(super) const FAMILIES: [&str; 4] = ["olmoe", "mixtral", "qwen2_moe", "qwen3_moe"];

fn fixture(family: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hf").join(family)
}

fn read(checkpoint: &Checkpoint, name: &str) -> Tensor {
    let (_, info) = checkpoint.info(name).unwrap();
    let shape: Vec<i64> = info.shape.iter().map(|dim| *dim as i64).collect();
    if info.dtype == crate::model::hf::Dtype::I64 {
        return Tensor::from_slice(&checkpoint.read_i64(name).unwrap()).view(shape.as_slice());
    }
    let mut values = vec![0.0f32; info.elements() as usize];
    checkpoint.read_f32(name, &mut values).unwrap();
    Tensor::from_slice(&values).view(shape.as_slice())
}

struct Whole {
    dense: DenseModel,
    /// [layer][expert][gate, up, down]
    experts: Vec<Vec<[Tensor; 3]>>,
}

impl Whole {
    fn load(family: &str) -> Self {
        let checkpoint = Checkpoint::open(&fixture(family)).unwrap();
        let config = ModelConfig::from_hf(&fixture(family)).unwrap();
        let experts = (0..config.layers)
            .map(|l| {
                let expert = |e| {
                    expert_tensors(&config, l, e)
                        .unwrap()
                        .map(|(name, _)| read(&checkpoint, &name).set_requires_grad(true))
                };
                (0..config.experts).map(expert).collect()
            })
            .collect();
        let params = DenseParams::load(&config, Precision::F32, &checkpoint).unwrap();
        Self { dense: DenseModel::new(config, Precision::F32, params).unwrap(), experts }
    }

    /// Routed experts of layer `l`, differentiable.
    fn moe(&self, l: usize, y_th: &Tensor, logits_te: &Tensor) -> Tensor {
        let config = self.dense.config();
        let probs = logits_te.softmax(-1, Kind::Float);
        let (mut weights, chosen) = probs.topk(config.top_k as i64, -1, true, true);
        if config.norm_topk {
            weights = &weights / weights.sum_dim_intlist([-1i64].as_slice(), true, Kind::Float);
        }
        let mut out = y_th.zeros_like();
        for (e, [gate, up, down]) in self.experts[l].iter().enumerate() {
            let hit = chosen.eq(e as i64).to_kind(Kind::Float);
            let w = (&weights * hit).sum_dim_intlist([-1i64].as_slice(), true, Kind::Float);
            let act = y_th.linear(gate, None::<&Tensor>).silu() * y_th.linear(up, None::<&Tensor>);
            out += act.linear(down, None::<&Tensor>) * w;
        }
        out
    }

    fn last_hidden(&self, ids: &Tensor) -> Tensor {
        let mut x = self.dense.embed(ids).unwrap();
        for l in 0..self.dense.config().layers {
            let out = self.dense.layer(l, &x).unwrap();
            let moe = tch::no_grad(|| self.moe(l, &out.y_th, &out.logits_te));
            x = (out.h_th + moe).view_as(&x);
        }
        x
    }

    fn logits(&self, ids: &Tensor) -> Tensor {
        self.dense.head_logits(&self.last_hidden(ids)).unwrap()
    }
}

fn shifted(ids: &Tensor) -> Tensor {
    let (b, _) = ids.size2().unwrap();
    let last = Tensor::full([b, 1], loss::IGNORE, (Kind::Int64, Device::Cpu));
    Tensor::cat(&[ids.slice(1, 1, None, 1), last], 1)
}

fn worst(a: &Tensor, b: &Tensor) -> f64 {
    (a.reshape([-1]) - b.reshape([-1])).abs().max().double_value(&[])
}

#[test]
fn logits_and_greedy_tokens_are_those_of_transformers() {
    for family in FAMILIES {
        let model = Whole::load(family);
        let expected =
            Checkpoint::open_file(&fixture(family).join("expected.safetensors")).unwrap();
        let ids = read(&expected, "input_ids");
        let logits = model.logits(&ids);
        let off = worst(&logits, &read(&expected, "logits"));
        assert!(off < 1e-3, "{family}: logits differ by {off}");

        let x = model.last_hidden(&ids);
        let nll = model.dense.head_nll(&x, &shifted(&ids)).unwrap();
        let (b, s) = ids.size2().unwrap();
        let mean = nll.sum(Kind::Double).double_value(&[]) / (b * (s - 1)) as f64;
        let want = read(&expected, "mean_nll").double_value(&[0]);
        assert!((mean - want).abs() < 1e-4, "{family}: nll {mean}, not {want}");

        let greedy = read(&expected, "greedy");
        let mut tokens = greedy.narrow(1, 0, 9);
        for _ in 0..24 {
            let logits = model.logits(&tokens);
            let next = logits.get(tokens.size()[1] - 1).argmax(-1, false).view([1, 1]);
            tokens = Tensor::cat(&[tokens, next], 1);
        }
        assert_eq!(tokens, greedy, "{family}: greedy tokens differ");
    }
}

/// One training step's losses and gradient norm, all gradients through the tapes.
#[test]
fn gradients_are_those_of_transformers() {
    for family in FAMILIES {
        let mut model = Whole::load(family);
        let reference = Checkpoint::open_file(&fixture(family).join("train.safetensors")).unwrap();
        let first = |name| read(&reference, name).double_value(&[0]);
        let ids = read(&reference, "input_ids");
        let config = model.dense.config().clone();
        let (experts, k) = (config.experts as i64, config.top_k as i64);

        let mut x = model.dense.embed(&ids).unwrap();
        let mut steps = Vec::new();
        for l in 0..config.layers {
            let tape = model.dense.layer_tape(l, &x).unwrap();
            let out = model.dense.layer_out(&tape).unwrap();
            let y = out.y_th.detach().set_requires_grad(true);
            let logits = out.logits_te.detach().set_requires_grad(true);
            let moe = model.moe(l, &y, &logits);
            x = (&out.h_th + moe.detach()).view_as(&x);
            steps.push((tape, y, logits, moe));
        }
        let targets = shifted(&ids);
        let count = targets.ne(loss::IGNORE).sum(Kind::Int64).int64_value(&[]);
        let head = model.dense.head_loss(&x, &targets, 1.0 / count as f64).unwrap();
        assert_eq!(head.targets as i64, count);
        let lm_loss = head.nll_sum / count as f64;
        assert!((lm_loss / first("lm_loss") - 1.0).abs() < 2e-4, "{family}: lm_loss {lm_loss}");

        let all: Vec<&Tensor> = steps.iter().map(|step| &step.2).collect();
        let joined = Tensor::cat(&all, 0);
        let probs = joined.softmax(-1, Kind::Float);
        let (_, chosen) = probs.topk(k, -1, true, true);
        let share = chosen.one_hot(experts).to_kind(Kind::Float);
        let share = share.mean_dim([0i64].as_slice(), false, Kind::Float);
        let mean = probs.mean_dim([0i64].as_slice(), false, Kind::Float);
        let aux = (share * mean).sum(Kind::Float) * experts as f64;
        let seen = aux.double_value(&[]);
        assert!((seen / first("aux_loss") - 1.0).abs() < 2e-4, "{family}: aux_loss {seen}");
        let aux_grads = Tensor::run_backward(&[aux * 0.01], &all, true, false);

        let mut dx = head.dx.view([-1, config.hidden as i64]);
        let mut squares = 0.0;
        for (l, (tape, y, logits, moe)) in steps.into_iter().enumerate().rev() {
            let mut inputs = vec![&y, &logits];
            inputs.extend(model.experts[l].iter().flatten());
            let mut grads =
                Tensor::run_backward(&[(moe * &dx).sum(Kind::Float)], &inputs, false, false);
            for grad in &grads[2..] {
                squares += grad.square().sum(Kind::Double).double_value(&[]);
            }
            let dlogits = &grads[1] + &aux_grads[l];
            dx = model.dense.layer_backward(tape, &dx, grads.swap_remove(0), &dlogits).unwrap();
            dx = dx.view([-1, config.hidden as i64]);
        }
        model.dense.embed_backward(&ids, &dx).unwrap();
        let grad = model.dense.params_mut().buffers().grad;
        squares += grad.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>();
        let norm = squares.sqrt();
        let want = first("grad_norm");
        assert!((norm / want - 1.0).abs() < 1e-3, "{family}: grad norm {norm}, not {want}");
    }
}

/// A config with every switch of a family, small, from scratch.
pub(super) fn small(family: &str) -> ModelConfig {
    let mut config = ModelConfig::from_hf(&fixture(family)).unwrap();
    config.layers = 2;
    config
}

#[test]
fn tape_and_plain_forward_agree_bit_for_bit() {
    for family in FAMILIES {
        for precision in [Precision::F32, Precision::Bf16] {
            let config = small(family);
            let params = DenseParams::init(&config, precision, 3).unwrap();
            let model = DenseModel::new(config, precision, params).unwrap();
            let ids = Tensor::randint(272, [2, 19], (Kind::Int64, Device::Cpu));
            let x = model.embed(&ids).unwrap();
            let plain = model.layer(1, &x).unwrap();
            let tape = model.layer_out(&model.layer_tape(1, &x).unwrap()).unwrap();
            assert_eq!(plain.h_th, tape.h_th);
            assert_eq!(plain.y_th, tape.y_th);
            assert_eq!(plain.logits_te, tape.logits_te);
            assert_eq!(plain.h_th.kind(), Kind::Float);
            assert_eq!(plain.y_th.kind(), precision.kind());
        }
    }
}

#[test]
fn bf16_follows_its_masters_after_refresh() {
    let config = small("qwen2_moe");
    let params = DenseParams::init(&config, Precision::Bf16, 3).unwrap();
    let mut model = DenseModel::new(config.clone(), Precision::Bf16, params).unwrap();
    let ids = Tensor::randint(272, [2, 19], (Kind::Int64, Device::Cpu));
    let x = model.embed(&ids).unwrap();
    let before = model.layer(0, &x).unwrap().h_th;

    let params = DenseParams::init(&config, Precision::F32, 3).unwrap();
    let exact = DenseModel::new(config, Precision::F32, params).unwrap();
    let off = worst(&before, &exact.layer(0, &x).unwrap().h_th);
    let rounded = compute::dense(Precision::Bf16) == Precision::Bf16;
    assert!((off > 0.0) == rounded && off < 2e-3, "bf16 is off by {off}");

    for value in model.params_mut().buffers().master.iter_mut() {
        *value *= 1.5;
    }
    model.params_mut().refresh().unwrap();
    let x = model.embed(&ids).unwrap();
    assert!(worst(&before, &model.layer(0, &x).unwrap().h_th) > 1e-4);
}

#[test]
fn state_round_trips_and_layout_is_aligned() {
    for family in FAMILIES {
        let config = small(family);
        let mut params = DenseParams::init(&config, Precision::Bf16, 1).unwrap();
        assert_eq!(params.state_bytes() as u64, DenseParams::state_bytes_of(&config));
        let mut decayed = true;
        for spec in params.specs() {
            assert!(decayed || !spec.decay, "decayed parameters come first");
            decayed = spec.decay;
            assert_eq!(spec.decay, spec.shape.len() >= 2);
        }
        let mut state = vec![0; params.state_bytes()];
        params.write_state(&mut state).unwrap();
        let mut other = DenseParams::zeros(&config, Precision::Bf16).unwrap();
        other.read_state(&state).unwrap();
        assert_eq!(params.buffers().master, other.buffers().master);
        assert!(other.read_state(&state[4..]).is_err());
    }
}

#[test]
fn tied_embeddings_collect_both_gradients() {
    let mut config = small("qwen3_moe");
    config.tie_embeddings = true;
    assert_eq!(config.qk_norm, QkNorm::PerHead);
    let params = DenseParams::init(&config, Precision::F32, 3).unwrap();
    let mut model = DenseModel::new(config.clone(), Precision::F32, params).unwrap();
    let ids = Tensor::from_slice(&[5i64, 6, 7]).view([1, 3]);
    let x = model.embed(&ids).unwrap();
    let loss = model.head_loss(&x, &shifted(&ids), 1.0).unwrap();
    let by_head = model.params_mut().buffers().grad.to_vec();
    model.embed_backward(&ids, &loss.dx).unwrap();
    let h = config.hidden;
    let grad = &model.params_mut().buffers().grad;
    let dx: Vec<f32> = Vec::try_from(&loss.dx.reshape([-1])).unwrap();
    for i in 0..h {
        assert_eq!(grad[6 * h + i], by_head[6 * h + i] + dx[h + i]);
    }
    assert!(by_head[100 * h..101 * h].iter().any(|g| *g != 0.0), "the head's gradient is dense");
}

#[test]
fn a_target_outside_the_vocabulary_is_refused() {
    let config = small("olmoe");
    let params = DenseParams::init(&config, Precision::F32, 3).unwrap();
    let model = DenseModel::new(config, Precision::F32, params).unwrap();
    let ids = Tensor::from_slice(&[5i64, 6]).view([1, 2]);
    let x = model.embed(&ids).unwrap();
    let e = model.head_loss(&x, &Tensor::from_slice(&[1i64, 272]), 1.0).unwrap_err();
    assert!(e.to_string().contains("272"), "{e}");
    assert!(model.embed(&Tensor::from_slice(&[272i64]).view([1, 1])).is_err());
}

#[test]
fn an_exported_checkpoint_reads_back_bit_for_bit() {
    for (family, shard) in [("olmoe", u64::MAX), ("qwen2_moe", 200_000), ("mixtral", 400_000)] {
        let source = Checkpoint::open(&fixture(family)).unwrap();
        let config = ModelConfig::from_hf(&fixture(family)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::create(dir.path(), &config, Precision::F32, shard).unwrap();
        let shape = config.expert_shape(Precision::F32);
        let mut flat = vec![0.0; shape.elements()];
        // Any order will do: experts first, backwards.
        for l in (0..config.layers).rev() {
            for e in (0..config.experts).rev() {
                hf_expert::read(&source, &config, l, e, &mut flat).unwrap();
                hf_expert::write(&mut writer, &config, l, e, &flat).unwrap();
            }
        }
        let mut params = DenseParams::load(&config, Precision::F32, &source).unwrap();
        params.export(&mut writer).unwrap();
        writer.finish(&config).unwrap();

        let back = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(ModelConfig::from_hf(dir.path()).unwrap(), config);
        assert_eq!(back.names(), source.names());
        for name in source.names() {
            assert_eq!(read(&back, name), read(&source, name), "{name}");
        }
    }
}
