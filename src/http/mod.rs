//! HTTP: the server that receives samples, and the client that sends scores and reads history.

mod url;
mod secret;
pub mod tls;
pub mod config;
mod connector;
mod transport;
mod oauth2;
pub mod client;
pub mod body;
pub mod request_body;
pub mod response;
mod basic_auth;
pub mod web_config;
pub mod access;
pub mod same_origin;
mod connections;
mod write_timeout;
pub mod server;

pub use secret::{ReadFileError, Secret, SecretSource};
pub use url::{InvalidUrl, Url, encode_query, hide_query_values, parse_query, percent_encode};
