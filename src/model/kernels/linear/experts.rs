//! Several experts of one row, as decoding has them: in two regions of the threads for all, where each by
//! itself would take two.
//!
//! Legend: E experts, K places of a row, H hidden, F expert width.

use super::biases::Biases;
use super::expert::{ExpertWeights, GateUpCall, add_all, expert_at, take};
use super::pool::Disjoint;
use super::product::{self, Outputs};
use super::work::{Scratch, Work, sized};
use crate::base::{Error, Result};
use crate::model::kernels::rows::weigh;

/// Several experts of one row: `out[places[e], :] = weight[places[e]] · expert_e(x)` for x `[H]` and out
/// `[K,H]`, in two regions of the threads for all of them. The bits are those of [`expert_at`].
///
/// # Errors
/// As [`expert_at`].
pub fn experts_of_row(
    experts: &[ExpertWeights<'_>],
    x_h: &[f32],
    weight_k: &[f32],
    places: &[usize],
    out_kh: &mut [f32],
    work: &mut Work,
) -> Result<()> {
    let Some(like) = experts.first() else { return Ok(()) };
    let (hidden, width) = like.shape()?;
    let fit = places.len() == experts.len()
        && out_kh.len() == weight_k.len() * hidden
        && places.iter().all(|place| *place < weight_k.len())
        && (1..places.len()).all(|nth| !places[..nth].contains(&places[nth]));
    if !fit || x_h.len() != hidden {
        return Err(Error::bug(
            "the experts of a row, their weights and outputs do not fit together",
        )
        .with("experts", experts.len())
        .with("places", places.len())
        .with("out", out_kh.len()));
    }
    if !experts.iter().all(|e| e.is_like(like, work.level)) {
        for (e, place) in experts.iter().zip(places) {
            expert_at(e, x_h, &weight_k[*place..=*place], &[*place as u32], out_kh, work)?;
        }
        return Ok(());
    }
    let Work { pool, scratch, level } = work;
    let Scratch { inputs, gate_up, act, out, bias } = scratch;
    let (count, level) = (experts.len(), *level);
    let biases = Biases::decode(experts.iter(), (hidden, width), bias)?;
    let act_ef = sized(act, count * width);

    like.take_in(inputs, x_h, hidden, level, pool)?;
    let gate_up = Disjoint::new(sized(gate_up, count * 2 * width));
    let all = Disjoint::new(act_ef);
    let step = product::task_rows(like.first(), 2, level, pool.threads(), count);
    let tasks = width.div_ceil(step);
    pool.run(count * tasks, &|_, task| {
        let (index, from) = (task / tasks, task % tasks * step);
        let call = GateUpCall {
            e: &experts[index],
            level,
            x_nh: x_h,
            inputs,
            bias: biases.of(index).map(|(bias, _)| bias),
            width,
            first: index,
            gate_up: gate_up.again(),
            act: all.again(),
        };
        // SAFETY: matrices are checked, x was taken in, each task has columns of its own.
        unsafe { call.columns(from, width.min(from + step)) }
    })?;

    let [input, _] = inputs;
    take(input, &like.down.matrix, act_ef, level, pool)?;
    let y = Disjoint::new(sized(out, count * hidden));
    let (out, act_ef, input) = (Disjoint::new(out_kh), &*act_ef, &*input);
    let step = product::task_rows(&like.down.matrix, 1, level, pool.threads(), count);
    let tasks = hidden.div_ceil(step);
    pool.run(count * tasks, &|_, task| {
        let (index, from) = (task / tasks, task % tasks * step);
        let (to, place) = (hidden.min(from + step), places[index]);
        let y = Outputs { all: y.again(), stride: hidden, offset: index * hidden, add: false };
        let (down, act) = (&experts[index].down.matrix, &act_ef[index * width..][..width]);
        // SAFETY: as above; each expert has a place of its own.
        let (out, y) = unsafe {
            product::rows_from(level, down, act, input, index, &y, from, to);
            let (at, len) = (index * hidden + from, to - from);
            (out.range(place * hidden + from, len), y.all.range(at, len))
        };
        if let Some((_, bias)) = biases.of(index) {
            add_all(y, &bias[from..to]);
        }
        weigh(weight_k[place], y, out);
    })
}
