//! Link arguments of the freestanding build (the packer passes `--cfg freestanding`); other builds, of tests and lints,
//! are ordinary programs.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(freestanding)");
    if std::env::var_os("CARGO_CFG_FREESTANDING").is_none() {
        return;
    }
    for arg in [
        "-nostartfiles",
        "-nostdlib",
        "-static-pie",
        "-Wl,--entry=enclos_entry",
        "-Wl,--no-dynamic-linker",
        "-Wl,--build-id=none",
        "-Wl,--gc-sections",
        "-Wl,--hash-style=gnu",
        "-Wl,-z,max-page-size=4096",
        "-Wl,-z,separate-code",
        "-Wl,-z,norelro",
    ] {
        println!("cargo::rustc-link-arg-bins={arg}");
    }
}
