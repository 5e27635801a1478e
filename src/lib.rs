//! Anomaly detection beside Prometheus.
//!
//! ```text
//! POST /api/v1/write ─ snappy ─ wire visit ─ index ─ window ─ complete row ─ detect ─ publish ─ remote write
//!                                                    ▲ ▲ │                     ▲        │
//!                     snapshot (after a restart) ────┘ │ └─── POST /api/v1/read ────────┘
//!                       remote read (history, gaps) ───┴── train ── registry ──┤
//!                                                                      ▲       └─ backtest: the past replayed
//!                                                                      └ import: scikit-learn, ONNX
//! ```
//!
//! A sample arrives as bytes, becomes a cell in a row, the row gets a score, the score leaves as a
//! sample. The rooms stand in that order, and none looks back.

pub mod error;
pub mod time;
pub mod fs;
pub mod stats;
pub mod telemetry;
pub mod prom;
pub mod forest;
pub mod yaml;
pub mod http;
pub mod ingest;
pub mod window;
pub mod series;
pub mod features;
pub mod detect;
pub mod models;
pub mod detector;
pub mod remote_write;
pub mod remote_read;
pub mod snapshot;
pub mod table;
pub mod report;
pub mod train;
pub mod backtest;
pub mod config;
pub mod pipeline;
pub mod cli;
