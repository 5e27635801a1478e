//! Remote read: its formats, and the server that makes the windows queryable.
//!
//! The client is one of the sources of `history`.

pub mod frames;
pub mod server;
pub mod xor;
