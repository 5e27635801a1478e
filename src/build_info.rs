//! Version, revision and compiler of the program.

/// The version of the package.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit that a release was built from, or `unknown`.
pub const REVISION: &str = env!("PROMFOREST_BUILD_REVISION");
/// The version of the compiler.
pub const RUST_VERSION: &str = env!("PROMFOREST_BUILD_RUST");
/// All in one line.
pub const LINE: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (revision ",
    env!("PROMFOREST_BUILD_REVISION"),
    ", rust ",
    env!("PROMFOREST_BUILD_RUST"),
    ")"
);
