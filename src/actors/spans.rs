//! The timeline of a rank: what each lane did when, and what its executor waited for.

use crate::base::BlockId;
use crate::base::clock::Nanos;
use crate::graph::planner::{Task, Work};
use crate::graph::{Cause, Lane, NodeId};
use crate::storage::disk::{IoDone, IoOp};
use crate::trace::{Recorder, Span};

/// Turns finished nodes and transfers into spans. Clones share the recorder.
#[derive(Debug, Clone)]
pub struct Spans {
    recorder: Recorder,
    /// End of the executor's last node.
    busy_until: Nanos,
}

impl Spans {
    /// `recorder` must count from the moment at which the run's clock read zero.
    pub fn new(recorder: Recorder) -> Self {
        Self { recorder, busy_until: 0 }
    }

    pub fn begin_step(&self, step: u64) {
        self.recorder.begin_step(step);
    }

    /// A node ended. The executor's idle time before it counts as exposed on the lane that
    /// enabled it last.
    pub fn node(
        &mut self,
        id: NodeId,
        lane: Lane,
        task: Task,
        cause: &Cause,
        span: (Nanos, Nanos),
    ) {
        if !self.recorder.enabled() {
            return;
        }
        let (start, end) = span;
        // Ids of spans begin at 1.
        let mut made = Span::new(lane.name(), name_of(task.work), start, end).id(id + 1);
        made.step = task.step;
        if let Some((by, _)) = cause.by {
            made = made.after(by + 1);
        }
        self.recorder.record(made);
        if lane != Lane::Compute {
            return;
        }
        if start > self.busy_until && cause.lane() != Lane::Compute {
            self.recorder.exposed(cause.lane().name(), self.busy_until, start);
        }
        self.busy_until = self.busy_until.max(end);
    }

    /// A block was read or written.
    pub fn io(&self, block: BlockId, done: &IoDone) {
        if !self.recorder.enabled() {
            return;
        }
        let op = match done.op {
            IoOp::Read if done.given_up => "read in part",
            IoOp::Read if done.idle > 0 => "read ahead",
            IoOp::Read => "read",
            IoOp::Write => "write",
        };
        let start = self.recorder.nanos_at(done.started);
        let end = self.recorder.nanos_at(done.finished);
        let span = Span::new("io", format!("{op} {block}"), start, end);
        self.recorder.record(span.arg("bytes", done.bytes));
    }
}

fn name_of(work: Work) -> String {
    match work {
        Work::Dense { layer, mb } => format!("dense {layer}.{mb}"),
        Work::Gate { layer, mb } => format!("gate {layer}.{mb}"),
        Work::Expert { layer, expert } => format!("expert {layer}/{expert}"),
        Work::ExpertGrad { layer, expert } => format!("expert grad {layer}/{expert}"),
        Work::GateGrad { layer, mb } => format!("gate grad {layer}.{mb}"),
        Work::DenseGrad { layer, mb } => format!("dense grad {layer}.{mb}"),
        Work::Dispatch { layer, mb } => format!("dispatch {layer}.{mb}"),
        Work::Combine { layer, mb } => format!("combine {layer}.{mb}"),
        Work::DispatchGrad { layer, mb } => format!("dispatch grad {layer}.{mb}"),
        Work::CombineGrad { layer, mb } => format!("combine grad {layer}.{mb}"),
        Work::Update { layer, expert, .. } => format!("update {layer}/{expert}"),
        Work::CatchUp { layer, expert, .. } => format!("catch up {layer}/{expert}"),
        Work::Advance { layer } => format!("advance {layer}"),
        Work::Head { mb } => format!("head {mb}"),
        work => work.to_string().to_lowercase(),
    }
}
