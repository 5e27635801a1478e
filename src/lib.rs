//! Anomaly detection beside Prometheus.
//!
//! ```text
//!                POST /api/v1/write
//!                       │ http, ingest: access, size limits
//!                       ▼
//!   prom (decode) ─► series (index) ─► window (cells, rows) ─► detect (score) ─► remote write
//!                                       ▲   ▲      │             ▲
//!          snapshot (after a restart) ──┘   │      │             │
//!          history (training, gaps) ────────┘      ▼             │
//!                                  features ─► train ─► models (registry, import)
//!                                                 └─► backtest, report
//!   window, incidents, counts ─► status (web pages, JSON), notebooks (tables)
//! ```
//!
//! A sample arrives as bytes, becomes a cell in a row, the row gets a score, and the score leaves as a sample.
//! `config` composes the rooms' configurations, `pipeline` connects the rooms, and `cli` runs them. Each room imports
//! only rooms that are declared before it.

pub mod build_info;
pub mod error;
pub mod time;
pub mod fs;
pub mod stats;
pub mod budget;
pub mod telemetry;
pub mod prom;
pub mod forest;
pub mod yaml;
pub mod http;
pub mod tenant;
pub mod ingest;
pub mod kafka;
pub mod window;
pub mod series;
pub mod features;
pub mod detect;
pub mod models;
pub mod detector;
pub mod remote_write;
pub mod remote_read;
pub mod history;
pub mod snapshot;
pub mod table;
pub mod report;
pub mod train;
pub mod backtest;
pub mod status;
pub mod notebooks;
pub mod config;
pub mod pipeline;
pub mod doctor;
pub mod cli;
