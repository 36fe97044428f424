//! Which rows an expert takes, and the sum of what the experts of a row give.
//!
//! Law 4: outputs land in `[T,K,H]` and are summed in the order of K, so the order in which
//! experts arrive and compute changes nothing.
//!
//! Legend: T rows of a pass, K experts a row, H hidden, N rows of one expert.

use crate::base::{Error, Result};
use crate::model::forward::{Routes, each_row};
use crate::model::kernels::linear::{
    Aligned, ExpertWeights, Routed, Work, can_group, expert_at, experts_of_row, experts_of_rows,
};
use crate::model::kernels::rows::add_sum;
use std::ops::Range;

/// The routed experts of one layer and pass. Its buffers grow to the largest pass and stay.
#[derive(Debug, Default)]
pub struct Mix {
    hidden: usize,
    top_k: usize,
    /// `[T,K]`.
    weights: Vec<f32>,
    /// Places `t·K + k`, those of one expert together, in order.
    places: Vec<u32>,
    /// For each chosen expert, ascending: the expert, and where its places begin.
    chosen: Vec<(usize, usize)>,
    /// Of a pass of one row: the places of the experts at hand.
    row_places: Vec<usize>,
    /// `[T,K,H]`.
    out_tkh: Aligned<f32>,
    x_nh: Vec<f32>,
    weight_n: Vec<f32>,
}

impl Mix {
    /// Takes in the routes of a layer.
    pub fn begin(&mut self, routes: &Routes, hidden: usize) {
        (self.hidden, self.top_k) = (hidden, routes.top_k);
        self.weights.clear();
        self.weights.extend_from_slice(&routes.weights);
        self.places.clear();
        self.places.extend(0..routes.experts.len() as u32);
        let expert_at = |place: u32| routes.experts[place as usize];
        self.places.sort_unstable_by_key(|place| (expert_at(*place), *place));
        self.chosen.clear();
        for (at, place) in self.places.iter().enumerate() {
            let expert = usize::from(expert_at(*place));
            if self.chosen.last().is_none_or(|(last, _)| *last != expert) {
                self.chosen.push((expert, at));
            }
        }
    }

    /// The experts that any row chose, ascending.
    pub fn chosen(&self) -> impl Iterator<Item = usize> + '_ {
        self.chosen.iter().map(|(expert, _)| *expert)
    }

    /// Computes one expert on its rows of `y_th`.
    ///
    /// # Errors
    /// `Bug` for an expert that no row chose; as the kernel.
    pub fn run(
        &mut self,
        index: usize,
        weights: &ExpertWeights<'_>,
        y_th: &[f32],
        work: &mut Work,
    ) -> Result<()> {
        let (h, k) = (self.hidden, self.top_k.max(1));
        let places = &self.places[self.places_of(index)?];
        self.weight_n.clear();
        self.weight_n.extend(places.iter().map(|place| self.weights[*place as usize]));
        let needed = places.len() * h;
        if self.x_nh.len() < needed {
            self.x_nh.reserve_exact(needed - self.x_nh.len());
            self.x_nh.resize(needed, 0.0);
        }
        let x_nh = &mut self.x_nh[..needed];
        each_row(work.pool(), x_nh, h, |n, x| {
            x.copy_from_slice(&y_th[places[n] as usize / k * h..][..h]);
        })?;
        let out_kh = self.out_tkh.sized(self.weights.len() * h)?;
        expert_at(weights, x_nh, &self.weight_n, places, out_kh, work)
    }

    /// Computes some experts of a pass: of one row, or where their kernels can, all together.
    ///
    /// # Errors
    /// As [`Mix::run`].
    pub fn run_all(
        &mut self,
        experts: &[usize],
        weights: &[ExpertWeights<'_>],
        y_th: &[f32],
        work: &mut Work,
    ) -> Result<()> {
        if self.weights.len() == self.top_k {
            return self.run_row(experts, weights, y_th, work);
        }
        let mut routed = Vec::with_capacity(experts.len());
        for (index, weights) in experts.iter().zip(weights) {
            let places = &self.places[self.places_of(*index)?];
            routed.push(Routed { weights: *weights, places });
        }
        if can_group(&routed, work) {
            let out_tkh = self.out_tkh.sized(self.weights.len() * self.hidden)?;
            return experts_of_rows(&routed, y_th, self.top_k, &self.weights, out_tkh, work);
        }
        experts.iter().zip(weights).try_for_each(|(e, weights)| self.run(*e, weights, y_th, work))
    }

    /// [`Self::run_all`] of one row.
    fn run_row(
        &mut self,
        experts: &[usize],
        weights: &[ExpertWeights<'_>],
        y_h: &[f32],
        work: &mut Work,
    ) -> Result<()> {
        self.row_places.clear();
        for index in experts {
            let of = self.places_of(*index)?;
            self.row_places.push(self.places[of.start] as usize);
        }
        let out_kh = self.out_tkh.sized(self.weights.len() * self.hidden)?;
        experts_of_row(weights, y_h, &self.weights, &self.row_places, out_kh, work)
    }

    /// Where the places of a chosen expert are.
    fn places_of(&self, index: usize) -> Result<Range<usize>> {
        let nth = self.chosen.binary_search_by_key(&index, |(expert, _)| *expert);
        let none = |_| Error::bug("an expert computes that no row chose").with("expert", index);
        let nth = nth.map_err(none)?;
        let to = self.chosen.get(nth + 1).map_or(self.places.len(), |(_, at)| *at);
        Ok(self.chosen[nth].1..to)
    }

    /// Adds the sum over K of each row's experts to `x_th`.
    ///
    /// # Errors
    /// As the threads.
    pub fn add_to(&mut self, x_th: &mut [f32], work: &mut Work) -> Result<()> {
        let (h, k) = (self.hidden, self.top_k.max(1));
        let out_tkh = self.out_tkh.sized(self.weights.len() * h)?;
        each_row(work.pool(), x_th, h, |t, x| add_sum(x, &out_tkh[t * k * h..][..k * h]))
    }

    /// Bytes of the buffers of a pass of `rows` rows.
    pub fn bytes(rows: usize, top_k: usize, hidden: usize) -> u64 {
        let row = top_k * hidden + hidden + 2 * top_k + 2;
        4 * (rows * row) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::kernels::linear::{Activation, Activations, GateUp, OwnedMatrix, expert};

    const H: usize = 4;
    const F: usize = 3;

    struct Owned([OwnedMatrix; 3]);

    impl Owned {
        fn new(seed: usize) -> Self {
            let matrix = |rows, cols, salt: usize| {
                let value = |i: usize| ((i * 7 + seed * 13 + salt * 5) % 11) as f32 * 0.1 - 0.5;
                let values: Vec<f32> = (0..rows * cols).map(value).collect();
                OwnedMatrix::from_f32(rows, cols, &values).unwrap()
            };
            Self([matrix(F, H, 0), matrix(F, H, 1), matrix(H, F, 2)])
        }

        fn weights(&self) -> ExpertWeights<'_> {
            let [gate, up, down] = &self.0;
            let (gate, up) = (gate.view().into(), up.view().into());
            let gate_up = GateUp::Apart { gate, up };
            let activation = Activation::SwiGlu;
            ExpertWeights { gate_up, down: down.view().into(), activation }
        }
    }

    #[test]
    fn the_order_of_experts_changes_nothing_and_each_pair_counts_once() {
        let experts: Vec<Owned> = (0..4).map(Owned::new).collect();
        let routes = Routes {
            top_k: 2,
            experts: vec![2, 0, 0, 3, 2, 3],
            weights: vec![0.5, 0.25, 1.0, 0.125, 0.75, 2.0],
        };
        let y: Vec<f32> = (0..3 * H).map(|i| i as f32 * 0.3 - 1.0).collect();
        let mut work = Work::new(1, Activations::F32).unwrap();
        let mut results = Vec::new();
        for order in [[0, 2, 3], [3, 2, 0], [2, 3, 0]] {
            let mut mix = Mix::default();
            mix.begin(&routes, H);
            assert_eq!(mix.chosen().collect::<Vec<_>>(), [0, 2, 3]);
            for index in order {
                mix.run(index, &experts[index].weights(), &y, &mut work).unwrap();
            }
            let mut x = vec![1.0; 3 * H];
            mix.add_to(&mut x, &mut work).unwrap();
            results.push(x);
        }
        assert!(results.iter().all(|x| *x == results[0]));
        // The same, pair by pair.
        for (t, x) in results[0].chunks(H).enumerate() {
            let mut sum = [0.0; H];
            for k in 0..2 {
                let place = t * 2 + k;
                let mut out = [0.0; H];
                let weights = experts[usize::from(routes.experts[place])].weights();
                let weight = [routes.weights[place]];
                expert(&weights, &y[t * H..][..H], &weight, &mut out, &mut work).unwrap();
                sum.iter_mut().zip(out).for_each(|(sum, out)| *sum += out);
            }
            let expected: Vec<f32> = sum.iter().map(|sum| 1.0 + sum).collect();
            assert_eq!(x, expected);
        }
        // All experts of a row together.
        let row =
            Routes { experts: routes.experts[..2].to_vec(), weights: vec![0.5, 0.25], ..routes };
        let mut mix = Mix::default();
        mix.begin(&row, H);
        let chosen: Vec<usize> = mix.chosen().collect();
        let weights: Vec<_> = chosen.iter().map(|index| experts[*index].weights()).collect();
        mix.run_all(&chosen, &weights, &y[..H], &mut work).unwrap();
        let mut x = vec![1.0; H];
        mix.add_to(&mut x, &mut work).unwrap();
        assert_eq!(x, results[0][..H]);
        assert!(mix.run_all(&[1], &[experts[1].weights()], &y[..H], &mut work).is_err());
        let routes = row;
        let mut mix = Mix::default();
        mix.begin(&routes, H);
        assert!(mix.run(1, &experts[1].weights(), &y, &mut work).is_err());
    }
}
