//! A budget that cannot work is refused with the figure that does.

use crate::program::{checked, config, semoe, train};
use std::path::Path;
use std::process::Command;

/// The budget that a refused command names.
fn named(mut command: Command) -> String {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{text}");
    let named = text.split("set it to ").nth(1).and_then(|rest| rest.split(" or more").next());
    named.unwrap_or_else(|| panic!("no figure in {text}")).to_owned()
}

fn the_figure_works(dir: &Path, shape: &[&str]) {
    let small = [shape, &["storage.host=4KiB"]].concat();
    let mut args = vec!["plan".to_owned()];
    args.extend(config(dir, &small));
    let planned = named(semoe(&args));
    assert_eq!(planned, named(semoe(&train(dir, "refused", &small))));
    let host = format!("storage.host={planned}");
    checked(semoe(&train(dir, "run", &[shape, &[host.as_str(), "train.steps=2"]].concat())));
}

#[test]
fn the_named_budget_works() {
    let dir = tempfile::tempdir().unwrap();
    the_figure_works(dir.path(), &[]);
}

#[test]
fn the_named_budget_works_for_ranks_and_odd_sizes() {
    let dir = tempfile::tempdir().unwrap();
    let odd = ["model.hidden=72", "model.expert_width=57", "parallel.expert=2"];
    the_figure_works(dir.path(), &odd);
}
