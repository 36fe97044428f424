//! Hot loops over plain slices, and the few places where tensors become slices.
//!
//! Law 4: what a kernel computes depends on shapes, on the instruction set and on nothing
//! else: neither on how the work was divided between threads nor on addresses beyond 64-byte
//! alignment. All `unsafe` loops of the model layer lie in this folder.
//!
//! ```text
//! slot bytes ──view──▶ tensors, typed slices ──▶ experts, attention, norms, loss, adamw ──parallel──▶ threads
//! encoded weights, f32 activations ──▶ linear (with threads of its own)
//! ```

pub mod adamw;
pub mod allocator;
pub mod attend;
pub mod combine;
pub mod cross_entropy;
pub mod dispatch;
pub mod float;
pub mod libtorch;
pub mod linear;
#[cfg(test)]
pub mod noise;
pub mod norm;
pub mod parallel;
mod past_caches;
pub mod reduce;
pub mod rows;
mod shared;
mod softmax;
pub mod split;
pub mod swiglu;
#[cfg(target_arch = "x86_64")]
pub mod tiles;
pub mod turn;
pub mod vector;
pub mod view;
