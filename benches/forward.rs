//! What the dense part of a token costs at OLMoE-1B-7B's sizes in bf16, and how much of it is not
//! products: norms, rotation, attention over the cache, softmax, top-k.
//!
//! The products alone (the same matrices, one after the other) are timed in the same rounds, and
//! the median of each counts. A token of that model also multiplies 1.6 GB of routed experts,
//! which are taken at the products' own rate. Wanted: all that is no product below 5% of a token
//! at 128 positions.

use semoe::base::Result;
use semoe::model::config::ModelConfig;
use semoe::model::forward::{Forward, KvCache, KvType, Routes, Row, Tensors, matrix_shape};
use semoe::model::kernels::allocator::tune_allocator;
use semoe::model::kernels::linear::{
    Activations, AlignedBytes, Encoding, OwnedMatrix, Work, linear,
};
use std::time::Instant;

const ROUNDS: usize = 9;
const WANTED: f64 = 0.05;

/// Any tensor that is asked for, in bf16, small and pseudo-random.
struct Noise;

impl Tensors for Noise {
    fn has(&self, _: &str) -> bool {
        true
    }

    fn encoding(&self, _: &str, _: &[usize]) -> Result<Encoding> {
        Ok(Encoding::Bf16)
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<OwnedMatrix> {
        let (rows, cols) = matrix_shape(shape);
        let mut data = AlignedBytes::zeroed(rows * cols * 2);
        let mut state = name.bytes().fold(1u32, |s, b| s.wrapping_mul(31).wrapping_add(b.into()));
        for pair in data.as_chunks_mut::<2>().0 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Between 2^-7 and 2^-5, of either sign.
            let bits = 0x3c00 | (state >> 23) as u16 & 0x00ff | (state >> 16) as u16 & 0x8000;
            *pair = bits.to_le_bytes();
        }
        let scales = AlignedBytes::zeroed(0);
        Ok(OwnedMatrix { encoding: Encoding::Bf16, rows, cols, transposed: false, data, scales })
    }
}

struct Bench {
    forward: Forward,
    products: Vec<OwnedMatrix>,
    head: OwnedMatrix,
    work: Work,
    routes: Routes,
    logits: Vec<f32>,
}

impl Bench {
    fn new(threads: usize) -> Result<Self> {
        let config = ModelConfig::olmoe_1b_7b();
        let h = config.hidden;
        // Their own copies, so that neither side finds them in a cache.
        let attention = |_| Noise.tensor("product", &[4 * h, h]);
        Ok(Self {
            forward: Forward::load(&config, &Noise)?,
            products: (0..config.layers).map(attention).collect::<Result<_>>()?,
            head: Noise.tensor("head", &[config.vocab, h])?,
            work: Work::new(threads, Activations::best())?,
            routes: Routes::default(),
            logits: Vec::new(),
        })
    }

    /// The dense part for the rows given, and the logits of the last.
    fn token(&mut self, rows: &[Row], cache: &mut [KvCache]) -> Result<()> {
        let config = self.forward.config();
        let tokens = vec![17; rows.len()];
        let mut x = vec![0.0; rows.len() * config.hidden];
        let mut y = x.clone();
        self.forward.embed(&tokens, &mut x)?;
        for layer in 0..config.layers {
            self.forward.attention(layer, &mut x, rows, cache, &mut y, &mut self.work)?;
            self.forward.route(layer, &y, &mut self.routes, &mut self.work)?;
            self.forward.shared(layer, &y, &mut x, &mut self.work)?;
        }
        let last = &x[(rows.len() - 1) * config.hidden..];
        self.forward.head(last, &mut self.logits, &mut self.work)
    }

    /// The products of the same shapes alone.
    fn products(&mut self, rows: usize) -> Result<()> {
        let h = self.forward.config().hidden;
        let x = vec![0.5; rows * h];
        let mut out = vec![0.0; rows * h];
        for layer in &self.products {
            let quarter = layer.data.len() / 4;
            for part in layer.data.chunks(quarter) {
                let matrix =
                    semoe::model::kernels::linear::Matrix::new(layer.encoding, h, h, part)?;
                linear(&matrix, &x, &mut out, false, &mut self.work)?;
            }
        }
        linear(&self.head.view(), &x[..h], &mut self.logits, false, &mut self.work)
    }
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn seconds(work: impl FnOnce() -> Result<()>) -> f64 {
    let start = Instant::now();
    work().expect("the shapes fit");
    start.elapsed().as_secs_f64()
}

fn decode(bench: &mut Bench, context: usize, kind: KvType) -> f64 {
    let config = ModelConfig::olmoe_1b_7b();
    let mut cache = [KvCache::new(&config, context + ROUNDS + 1, kind)];
    fill(bench, &mut cache, context);
    let (mut whole, mut products) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let row = [Row { sequence: 0, position: context + round }];
        whole.push(seconds(|| bench.token(&row, &mut cache)));
        products.push(seconds(|| bench.products(1)));
    }
    let (whole, products) = (median(whole), median(products));
    let bytes = (config.layers * 4 * config.hidden + config.vocab) * config.hidden * 2;
    let experts = config.layers * config.top_k * 3 * config.hidden * config.expert_width * 2;
    let token = whole + products * experts as f64 / bytes as f64;
    let share = (whole - products) / token;
    println!(
        "decode at {context:>4} positions, cache {kind:?}: dense {:.2} ms, products {:.2} ms \
         ({:.1} GB/s), the rest {:.2} ms, {:.1}% of a token of {:.1} ms",
        whole * 1e3,
        products * 1e3,
        bytes as f64 / products / 1e9,
        (whole - products) * 1e3,
        share * 1e2,
        token * 1e3
    );
    share
}

fn fill(bench: &mut Bench, cache: &mut [KvCache], context: usize) {
    let rows: Vec<Row> = (0..context).map(|position| Row { sequence: 0, position }).collect();
    for rows in rows.chunks(128) {
        bench.token(rows, cache).expect("the cache has room");
    }
}

fn prefill(bench: &mut Bench, tokens: usize) {
    let config = ModelConfig::olmoe_1b_7b();
    let rows: Vec<Row> = (0..tokens).map(|position| Row { sequence: 0, position }).collect();
    let (mut whole, mut products) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let mut cache = [KvCache::new(&config, tokens, KvType::F32)];
        whole.push(seconds(|| bench.token(&rows, &mut cache)));
        products.push(seconds(|| bench.products(tokens)));
    }
    let (whole, products) = (median(whole), median(products));
    let heads = config.layers * config.heads * config.head_dim;
    let operations = 2.0 * (heads * tokens * (tokens + 1)) as f64;
    println!(
        "prefill of {tokens} tokens: dense {whole:.3} s, products {products:.3} s, the rest {:.3} s \
         ({:.1} GFLOP/s if all of it were attention)",
        whole - products,
        operations / (whole - products) / 1e9
    );
}

fn main() {
    tune_allocator().unwrap();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut bench = Bench::new(threads).expect("the model fits in memory");
    println!("OLMoE-1B-7B's dense part in bf16, {threads} threads");
    let share = decode(&mut bench, 128, KvType::F32);
    decode(&mut bench, 128, KvType::Bf16);
    decode(&mut bench, 1024, KvType::F32);
    decode(&mut bench, 1024, KvType::Bf16);
    prefill(&mut bench, 512);
    let verdict = if share < WANTED { "within" } else { "beyond" };
    println!(
        "the rest is {:.1}% of a token, {verdict} the {:.0}% wanted",
        share * 1e2,
        WANTED * 1e2
    );
}
