//! Builds the shim that the client's functions are called through.

fn main() {
    println!("cargo::rerun-if-changed=shim/fdb_c.c");
    #[cfg(feature = "client")]
    {
        // The crate `foundationdb-sys` names the library that is linked: it finds this one first.
        cc::Build::new().file("shim/fdb_c.c").cargo_metadata(false).compile("fdb_c");
        let directory = std::env::var("OUT_DIR").unwrap_or_default();
        println!("cargo::rustc-link-search=native={directory}");
    }
}
