//! Background tasks beside the engine.

pub mod gap_filler;
