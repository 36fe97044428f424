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
        // Without it at::parallel_for, a template, is a plain loop on the calling thread.
        .flag("-fopenmp")
        .file("native/torch_ext.cpp")
        .include(torch.join("include"))
        .include(torch.join("include/torch/csrc/api/include"))
        .compile("semoe_torch_ext");
    // libtorch's own copy of the OpenMP runtime: a second one would bring a second set of threads.
    if torch.join("lib/libgomp.so.1").exists() {
        println!("cargo:rustc-link-search=native={}", torch.join("lib").display());
        println!("cargo:rustc-link-lib=dylib:+verbatim=libgomp.so.1");
    } else {
        println!("cargo:rustc-link-lib=dylib=gomp");
    }
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", torch.join("lib").display());
}
