//! HTTP at the two ends: the listener that samples come in by, the client that scores leave by.

mod basic_auth;
pub mod body;
pub mod client;
pub mod config;
mod transport;
pub mod access;
mod insecure;
mod oauth2;
pub mod server;
pub mod tls;
pub mod web_config;
