//! Compiles `program/main.rs`, a program without any library, with the `rustc` and the linker
//! that cargo uses for the target. Nothing else is needed than what every other crate needs,
//! and cross compiling works where it works for them.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=program/main.rs");
    println!("cargo:rerun-if-env-changed=RUSTC_LINKER");
    let set = |name: &str| env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"));
    let out = PathBuf::from(set("OUT_DIR")).join("init");
    let mut rustc = Command::new(set("RUSTC"));
    rustc
        .args([
            "--edition",
            "2024",
            "--crate-type",
            "bin",
            "--crate-name",
            "init",
        ])
        .args(["--target", &set("TARGET")])
        .args([
            "-C",
            "opt-level=s",
            "-C",
            "panic=abort",
            "-C",
            "debuginfo=0",
        ])
        .args([
            "-C",
            "strip=symbols",
            "-C",
            "codegen-units=1",
            "-C",
            "overflow-checks=off",
        ])
        // At a fixed address: there is nobody to relocate it.
        .args([
            "-C",
            "relocation-model=static",
            "-C",
            "target-feature=+crt-static",
        ])
        .args(["-C", "link-arg=-nostartfiles", "-C", "link-arg=-nostdlib"])
        .args([
            "-C",
            "link-arg=-Wl,--build-id=none",
            "-C",
            "link-arg=-Wl,-z,noexecstack",
        ])
        .arg("-o")
        .arg(&out)
        .arg("program/main.rs");
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        rustc.args(["-C", &format!("linker={linker}")]);
    }
    let status = rustc.status();
    assert!(
        status.as_ref().is_ok_and(std::process::ExitStatus::success),
        "the init program cannot be compiled: {status:?}"
    );
}
