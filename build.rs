//! Compiles the one native file (what tch does not wrap) against libtorch's headers
//! and gives every binary an rpath to libtorch, so that none needs LD_LIBRARY_PATH.

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-changed=native/torch_ext.cpp");
    println!("cargo:rerun-if-changed=native/torch_ext.h");
    let torch = std::env::var("LIBTORCH").ok().and_then(|dir| std::fs::canonicalize(dir).ok());
    let Some(torch) = torch.filter(|dir: &PathBuf| dir.join("lib/libtorch_cpu.so").exists()) else {
        panic!(
            "libtorch 2.11.0 was not found: run scripts/bootstrap.sh once, or set LIBTORCH to a \
             folder that holds lib/libtorch_cpu.so"
        );
    };
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .warnings(false)
        .opt_level(3)
        // Without it at::parallel_for, a template, is a plain loop on the calling thread. The
        // runtime (libgomp) is the one that libtorch brings and torch-sys links.
        .flag("-fopenmp")
        .file("native/torch_ext.cpp")
        .include(torch.join("include"))
        .include(torch.join("include/torch/csrc/api/include"))
        .compile("semoe_torch_ext");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", torch.join("lib").display());
}
