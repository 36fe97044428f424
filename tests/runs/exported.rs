//! What a finished run is good for: it is evaluated, exported and sampled from.

use crate::common::{semoe, train};

#[test]
fn a_run_is_exported_evaluated_and_sampled() {
    let dir = tempfile::tempdir().unwrap();
    let run = train(dir.path(), "run", &["storage.host=864KiB"]);
    for args in [
        vec!["eval", run.to_str().unwrap(), "--batches", "2"],
        vec!["export", run.to_str().unwrap(), "--dtype", "f32"],
        vec!["sample", run.to_str().unwrap(), "--prompt", "In", "--tokens", "8"],
    ] {
        let output = semoe(&args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    for file in ["config.json", "model.safetensors", "tokenizer.json", "generation_config.json"] {
        let whole = run.join("export").join(file).exists();
        assert!(
            whole
                || (file == "model.safetensors"
                    && run.join("export/model.safetensors.index.json").exists()),
            "{file}"
        );
    }
}
