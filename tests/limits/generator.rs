//! The promise of a generator: memory and page cache together stay within `--memory` through a thousand tokens
//! and through twenty prompts, and nothing of the checkpoint stays in the page cache.

use crate::cached::cached_bytes;
use crate::cgroup::Cgroup;
use crate::program::{checked, json, semoe};
use std::fs::{self, File};
use std::path::Path;

/// What memory may grow by from two prompts to twenty.
const GROWTH: f64 = 0.01;

fn args(parts: &[&str]) -> Vec<String> {
    parts.iter().map(|part| (*part).to_owned()).collect()
}

/// Mebibytes that a generator of `model` works with and that leave most experts on the disk.
fn budget(model: &str) -> u64 {
    let plan = ["plan", "--model", model, "--context", "1100", "--chunk", "64", "--memory", "1MiB"];
    let output = semoe(&args(&plan)).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let smallest = text.split("smallest=").nth(1).and_then(|rest| rest.split("MiB").next());
    smallest.unwrap_or_else(|| panic!("no figure in {text}")).parse::<u64>().unwrap() + 8
}

/// What a run came to, in bytes.
#[derive(Debug, Clone, Copy)]
struct Peaks {
    /// The most that was resident.
    resident: u64,
    /// The most that was charged, and what of it is left in the page cache after the run: pages of the program
    /// and of libtorch. Which of them are charged to a run depends on who else uses them at that time.
    charged: u64,
    left: u64,
}

/// Peaks of a run in which `tokens` follow each of `prompts`.
fn peaks(dir: &Path, memory: u64, prompts: usize, tokens: usize) -> Peaks {
    let (model, report) = (dir.join("model"), dir.join("report.json"));
    let lines: Vec<String> = (0..prompts).map(|p| format!("prompt {p} is of one line")).collect();
    let file = dir.join("prompts");
    fs::write(&file, lines.join("\n")).unwrap();
    let (memory, tokens) = (format!("{memory}MiB"), tokens.to_string());
    let [model, file, report] = [&model, &file, &report].map(|path| path.to_str().unwrap());
    let command = semoe(&args(&[
        "generate",
        "--model",
        model,
        "--context",
        "1100",
        "--chunk",
        "64",
        "--memory",
        &memory,
        "--prompts",
        file,
        "-n",
        &tokens,
        "--temperature",
        "2",
        "--ignore-eos",
        "--json",
        report,
    ]));
    let bytes = memory.trim_end_matches("MiB").parse::<u64>().unwrap() << 20;
    let group = Cgroup::new(&format!("generator-{prompts}"), 2 * bytes);
    match &group {
        Ok(group) => checked(group.enter(&command)),
        Err(why) => {
            println!("no memory cgroup ({why}): peak resident memory alone is compared");
            checked(command)
        }
    };
    let told = json(Path::new(report));
    let resident = told["peak_rss_bytes"].as_u64().unwrap();
    let streamed = told["settings"]["effective"]["slots"].as_u64().unwrap();
    assert!(streamed < told["settings"]["effective"]["blocks"].as_u64().unwrap(), "{told}");
    let (charged, left) = group.map_or((0, 0), |group| (group.peak(), group.cached()));
    Peaks { resident, charged, left }
}

#[test]
fn a_generator_keeps_its_promise() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    let model = model.to_str().unwrap();
    // This also reads libtorch into the page cache, which is charged to whoever does it first.
    checked(semoe(&args(&["random-checkpoint", model, "--shape", "small"])));
    let weights = |file: &Path| file.extension().is_some_and(|end| end == "safetensors");
    for entry in fs::read_dir(model).unwrap() {
        let file = File::open(entry.unwrap().path()).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }
    assert_eq!(cached_bytes(Path::new(model), &weights), 0, "pages could not be given back");
    let memory = budget(model);
    let [long, few, many] = [(1, 1000), (2, 40), (20, 40)]
        .map(|(prompts, tokens)| peaks(dir.path(), memory, prompts, tokens));
    println!("promised {memory} MiB: {long:?}, {few:?}, {many:?}");
    for run in [long, few, many] {
        assert!(run.resident <= memory << 20 && run.charged <= memory << 20, "{run:?}");
    }
    let own = |run: Peaks| run.charged - run.left;
    for (few, many) in [(few.resident, many.resident), (own(few), own(many))] {
        let grown = many as f64 / few.max(1) as f64 - 1.0;
        assert!(many == 0 || grown < GROWTH, "memory grew from {few} to {many}");
    }
    let left = cached_bytes(Path::new(model), &weights);
    assert_eq!(left, 0, "{left} bytes of the checkpoint are in the page cache");
}
