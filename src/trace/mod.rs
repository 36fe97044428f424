//! Timelines: what each lane did and when, as a picture and as numbers.
//!
//! ```text
//! actors ── Recorder::span ──┐
//!                            ├─▶ recorder (a ring: the last steps) ─▶ chrome   trace.json
//! tracing spans ── layer ────┘                                     ├▶ picture  timeline.svg
//!                                                                  └▶ report   busy, exposed
//! ```
//!
//! The law: recording never waits for anything but a short lock, never grows beyond its ring,
//! and changes no result.

pub mod chrome;
pub mod layer;
pub mod picture;
pub mod recorder;
pub mod report;

pub use layer::LaneLayer;
pub use recorder::{Recorder, RecorderOptions, Span, Timeline};
pub use report::Report;
