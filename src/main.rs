//! The `semoe` command: parse, run, and say in one line what went wrong.

use clap::Parser;
use semoe::cli::Cli;
use semoe::trace::LaneLayer;
use std::process::ExitCode;
use tracing_subscriber::filter::{EnvFilter, filter_fn};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_env("SEMOE_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    let log = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_filter(filter);
    // Spans that name a lane belong to the run's timeline, whatever the log shows.
    let has_lane = filter_fn(|metadata| metadata.fields().field("lane").is_some());
    let timeline = LaneLayer::of_the_process().with_filter(has_lane);
    tracing_subscriber::registry().with(log).with(timeline).init();
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(u8::try_from(error.exit_status()).unwrap_or(1))
        }
    }
}
