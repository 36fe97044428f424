//! `tracing` spans with a `lane` field, recorded like every other span.
//!
//! So code that already uses `tracing::info_span!("export", lane = "io")` shows in the timeline
//! without knowing of it. A span runs from its first entry to its close. The `semoe` program has
//! this layer; a run that begins attaches its recorder to it ([`LaneLayer::attach`]).

use super::recorder::{Recorder, Span};
use crate::base::clock::Nanos;
use serde_json::Value;
use std::fmt::Debug;
use std::sync::Arc;
use std::sync::{LazyLock, Mutex, PoisonError};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

/// A layer that hands spans with a `lane` field to a [`Recorder`]. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct LaneLayer {
    recorder: Arc<Mutex<Option<Recorder>>>,
}

static OF_THE_PROCESS: LazyLock<LaneLayer> = LazyLock::new(LaneLayer::default);

impl LaneLayer {
    /// The layer that runs of this process attach to.
    pub fn of_the_process() -> Self {
        OF_THE_PROCESS.clone()
    }

    /// From now on spans go to `recorder`; `None` drops them.
    pub fn attach(&self, recorder: Option<Recorder>) {
        *self.recorder.lock().unwrap_or_else(PoisonError::into_inner) = recorder;
    }

    fn recorder(&self) -> Option<Recorder> {
        let recorder = self.recorder.lock().unwrap_or_else(PoisonError::into_inner).clone();
        recorder.filter(Recorder::enabled)
    }
}

/// What is known of an open span.
#[derive(Default)]
struct Open {
    lane: Option<String>,
    id: u64,
    after: Option<u64>,
    args: Vec<(&'static str, Value)>,
    entered: Option<Nanos>,
}

impl Open {
    fn set(&mut self, field: &Field, value: Value) {
        match field.name() {
            "lane" => self.lane = value.as_str().map(str::to_owned),
            "node" => self.id = value.as_u64().unwrap_or(0),
            "after" => self.after = value.as_u64(),
            name => self.args.push((name, value)),
        }
    }
}

impl Visit for Open {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, value.into());
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        // An untyped literal is an i64; ids and counts are not negative.
        self.set(field, u64::try_from(value).map_or_else(|_| value.into(), Value::from));
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, value.into());
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, value.into());
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, value.into());
    }
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.set(field, format!("{value:?}").into());
    }
}

impl<S> Layer<S> for LaneLayer
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, ctx: Context<'_, S>) {
        if attributes.fields().field("lane").is_none() || self.recorder().is_none() {
            return;
        }
        let mut open = Open::default();
        attributes.record(&mut open);
        if let Some(span) = ctx.span(id) {
            span.extensions_mut().insert(open);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, ctx: Context<'_, S>) {
        if let Some(span) = ctx.span(id)
            && let Some(open) = span.extensions_mut().get_mut::<Open>()
        {
            values.record(open);
        }
    }

    fn on_enter(&self, id: &Id, ctx: Context<'_, S>) {
        if let Some(span) = ctx.span(id)
            && let Some(open) = span.extensions_mut().get_mut::<Open>()
        {
            open.entered = open.entered.or_else(|| self.recorder().map(|recorder| recorder.now()));
        }
    }

    fn on_close(&self, id: Id, ctx: Context<'_, S>) {
        let Some(span) = ctx.span(&id) else { return };
        let Some(open) = span.extensions_mut().remove::<Open>() else { return };
        let (Some(lane), Some(start)) = (open.lane, open.entered) else { return };
        let Some(recorder) = self.recorder() else { return };
        let mut record = Span::new(lane, span.name(), start, recorder.now());
        record.id = open.id;
        record.after.extend(open.after);
        record.args = open.args;
        recorder.record(record);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::RecorderOptions;
    use std::time::Instant;
    use tracing_subscriber::layer::SubscriberExt;

    #[test]
    fn spans_with_a_lane_are_recorded_and_others_are_not() {
        let recorder = Recorder::new(RecorderOptions::default(), Instant::now());
        let layer = LaneLayer::default();
        let subscriber = tracing_subscriber::registry().with(layer.clone());
        tracing::subscriber::with_default(subscriber, || {
            tracing::info_span!("nobody listens", lane = "io").in_scope(|| {});
            layer.attach(Some(recorder.clone()));
            let _plain = tracing::info_span!("plain", layer = 1).entered();
            let never_entered = tracing::info_span!("waits", lane = "io");
            let write = tracing::info_span!("write", lane = "io", node = 7, after = 6, bytes = 512);
            write.in_scope(|| {});
            drop(never_entered);
        });
        let spans = recorder.timeline().spans;
        assert_eq!(spans.len(), 1);
        assert_eq!((spans[0].name.as_ref(), spans[0].lane.as_ref()), ("write", "io"));
        assert_eq!((spans[0].id, &spans[0].after[..]), (7, &[6][..]));
        assert_eq!(spans[0].args, [("bytes", Value::from(512u64))]);
    }
}
