//! How the binary is linked, beyond what `.cargo/config.toml` says.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let target = |name: &str| std::env::var(format!("CARGO_CFG_TARGET_{name}")).unwrap_or_default();
    if target("OS") != "linux" || target("ENV") != "gnu" {
        return;
    }
    // It begins with what is cheap before the C library starts: corten_runtime's `sys/entry.rs`.
    if target("ARCH") == "x86_64" {
        println!("cargo:rustc-link-arg-bin=corten=-Wl,-e,corten_entry");
    }
    // What the runtime executes lies together: less memory, fewer page faults at its start.
    // Function names for x86-64 (of the C library, too); a quick link matters more elsewhere.
    println!("cargo:rerun-if-changed=link-order.ld");
    if target("ARCH") == "x86_64" && std::env::var("PROFILE").as_deref() == Ok("release") {
        let here = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo:rustc-link-arg-bin=corten=-Wl,-T,{here}/link-order.ld");
    }
    // A static program for one address has nothing to relocate: ARCHITECTURE.md, "The binary".
    // What the compiler was told (position-independent code) stays as it is: only the link differs.
    let has = |feature: &str| {
        let features = std::env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
        features.split(',').any(|name| name == feature)
    };
    if target("ARCH") == "x86_64" && has("crt-static") {
        println!("cargo:rustc-link-arg-bin=corten=-no-pie");
        println!("cargo:rustc-link-arg-bin=corten=-static");
        return;
    }
    // Relocations as a bitmap: 1 MB less to read (and to count as memory) at every start.
    // A static program relocates itself, which the C library can do since 2.36.
    if std::env::var("HOST") == std::env::var("TARGET") && glibc() >= Some((2, 36)) {
        println!("cargo:rustc-link-arg-bin=corten=-Wl,-z,pack-relative-relocs");
    }
}

/// Version of the C library that will be linked.
fn glibc() -> Option<(u32, u32)> {
    let output = Command::new("getconf")
        .arg("GNU_LIBC_VERSION")
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (major, minor) = text.trim().strip_prefix("glibc ")?.split_once('.')?;
    let minor = minor.split('.').next()?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
