//! Mathematics on tensors: the dense part, the experts, the gates, the optimizer.

pub mod attention;
pub mod checkpoint;
pub mod compute;
pub mod config;
pub mod dense;
pub mod expert;
pub mod family;
pub mod forward;
pub mod gate;
pub mod gguf;
pub mod hf;
pub mod init;
pub mod kernels;
pub mod loss;
pub mod norm;
pub mod optim;
pub mod params;
pub mod random;
mod rotary;
pub mod shared;
pub mod switches;
