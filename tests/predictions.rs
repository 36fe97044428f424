//! What `semoe doctor` measures is kept, `semoe plan --model` foretells with it from headers alone,
//! and `semoe generate` and `semoe bench` show the prediction beside what they measured.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A checkpoint without a tokenizer, so prompts are token ids.
fn model() -> String {
    let fixture = "tests/fixtures/hf/mixtral";
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(fixture).display().to_string()
}

/// Status, standard output and standard error of a command of the user whose cache is `cache`.
fn semoe(cache: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_semoe"));
    let out = command.args(args).env("XDG_CACHE_HOME", cache).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (out.status.code(), text(out.stdout), text(out.stderr))
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn a_machine_is_measured_once_and_foretells_what_runs_then_measure() {
    let dir = tempfile::tempdir().unwrap();
    let (cache, disk, report) =
        (dir.path().join("cache"), dir.path().join("disk"), dir.path().join("report.json"));
    std::fs::create_dir(&disk).unwrap();
    let (disk_text, report_text) = (disk.to_str().unwrap(), report.to_str().unwrap());
    let model = model();
    let generate =
        ["generate", "--model", &model, "--ids", "5,17,3", "-n", "8", "--ignore-eos", "--json"];
    let generate = [&generate[..], &[report_text]].concat();

    // Nobody has measured yet: said, and no prediction is made up.
    let (status, _, error) = semoe(&cache, &generate);
    assert_eq!(status, Some(0), "{error}");
    assert!(error.contains("run `semoe doctor` for a prediction"), "{error}");
    assert_eq!(json(&report)["forecast"], Value::Null);

    let (status, out, error) =
        semoe(&cache, &["doctor", "--dir", disk_text, "--json", report_text]);
    assert_eq!(status, Some(0), "{error}");
    for thing in ["io_uring", "registered buffers", "huge pages", "libtorch", "weights in int8"] {
        assert!(out.contains(thing), "{thing} is not in\n{out}");
    }
    let machine = json(&report);
    assert_eq!(machine, json(&cache.join("semoe/machine.json")));
    assert_eq!(machine["disk"]["points"].as_array().unwrap().len(), 9);
    let above_zero = |value: &Value| value.as_f64().is_some_and(|number| number > 0.0);
    assert!(machine["disk"]["points"].as_array().unwrap().iter().all(|p| above_zero(&p["rate"])));
    assert!(machine["compute"]["kernels"].as_object().unwrap().values().all(above_zero));
    for figure in ["memory", "layer_seconds", "expert_seconds"] {
        assert!(above_zero(&machine["compute"][figure]), "{figure}: {machine}");
    }
    assert!(above_zero(&machine["torch"]["f32_flops"]) && above_zero(&machine["memory_bytes"]));
    assert_eq!(std::fs::read_dir(&disk).unwrap().count(), 0, "the disk's file stayed");

    plans_from_headers(&cache, &model, &report);

    let (status, _, error) = semoe(&cache, &generate);
    assert_eq!(status, Some(0), "{error}");
    assert!(error.contains("a token        forecast    measured"), "{error}");
    assert!(!error.contains("run `semoe doctor`"), "{error}");
    assert!(above_zero(&json(&report)["forecast"]["tokens_per_s"]));

    let bench =
        [["bench", "--model", &model, "-p", "4"], ["-n", "4", "-r", "1", "--decode=drawn,greedy"]];
    let bench = bench.concat();
    let (status, table, error) = semoe(&cache, &[&bench[..], &["--json", report_text]].concat());
    assert_eq!(status, Some(0), "{error}");
    assert!(error.contains("a token        forecast    measured"), "{error}");
    assert!(above_zero(&json(&report)["forecast"]["tokens_per_s"]));
    let rows = json(&report)["rows"].as_array().unwrap().clone();
    let tests: Vec<&str> = rows.iter().map(|row| row["test"].as_str().unwrap()).collect();
    assert_eq!(tests, ["prompt 4", "decode 4", "greedy 4"], "{table}");
    assert_eq!(json(&report)["decode_tokens_per_s"], rows[1]["tokens_per_s"]);
}

fn plans_from_headers(cache: &Path, model: &str, report: &Path) {
    let report_text = report.to_str().unwrap();
    let plan = |args: &[&str]| {
        let all = [&["plan", "--model", model, "--json", report_text], args].concat();
        let (status, out, error) = semoe(cache, &all);
        (status, out, error)
    };
    // The smallest budget that works is named, as generate names it, and works.
    let (status, _, refusal) = plan(&["--memory", "1MiB"]);
    assert_eq!(status, Some(2), "{refusal}");
    let smallest = refusal.split("smallest=").nth(1).unwrap();
    let smallest: u64 = smallest.split("MiB").next().unwrap().parse().unwrap();
    let generate = ["generate", "--model", model, "--ids", "5", "-n", "1", "--memory", "1MiB"];
    let (status, _, by_generate) = semoe(cache, &generate);
    let before = |text: &str| text.split("memory=").next().unwrap().to_owned();
    assert_eq!((status, before(&by_generate)), (Some(2), before(&refusal)));

    // A little more, for a program that differs by some pages from start to start.
    let memory = format!("{}MiB", smallest + 4);
    let (status, out, error) = plan(&["--memory", &memory, "--ssd-gbps", "0.001"]);
    assert_eq!(status, Some(0), "{error}");
    assert!(out.contains("expert slots") && out.contains("measured by `semoe doctor`"), "{out}");
    assert!(!error.contains("measuring it once"), "{error}");
    let planned = json(report);
    let number = |value: &Value| value.as_f64().unwrap();
    assert!(planned["experts_resident"].as_u64() >= Some(1));
    assert!(number(&planned["memory_bytes"]) <= f64::from(1 << 20) * (smallest + 4) as f64);
    assert_eq!(planned["ssd_gbps"], 0.001);
    let forecasts = planned["forecasts"].as_array().unwrap();
    let (none, all) = (&forecasts[0], &forecasts[forecasts.len() - 1]);
    assert_eq!((&none["hit_rate"], &all["hit_rate"]), (&0.0.into(), &1.0.into()));
    assert_eq!(number(&all["bytes_read_per_token"]), 0.0);
    // At a megabyte a second nothing but the disk counts.
    assert_eq!(none["limit"], "disk");
    let seconds = number(&none["bytes_read_per_token"]) / 1e6;
    let foretold = 1.0 / number(&none["tokens_per_s"]);
    assert!(foretold >= seconds && foretold < seconds * 1.5, "{none}");
    assert!(number(&all["tokens_per_s"]) > number(&none["tokens_per_s"]));

    for wrong in ["--ssd-gbps=0", "--ssd-gbps=-1", "--ssd-gbps=nan"] {
        let (status, _, error) = plan(&[wrong]);
        assert_eq!(status, Some(2), "{wrong}: {error}");
    }
    // Either a run or a checkpoint.
    let both = ["plan", "configs/tiny.toml", "--model", model];
    assert_eq!(semoe(cache, &both).0, Some(2));
    assert_eq!(semoe(cache, &["plan"]).0, Some(2));
}
