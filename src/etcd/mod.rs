//! Materia etcd: the etcd v3 API over the ordered key-value store, one keyspace per cluster.
//!
//! May use `fdb` and `clock`; knows nothing of clusters, Kubernetes or the platform. The layers
//! above reach it only through [`client::Client`], which speaks gRPC and so may be pointed at any
//! etcd.
//!
//! The way of a request:
//!
//! ```text
//!   connection ─ server ─ service/ ─┬─ write ─ sequencer: batch (txn, range) ─ store ─┐ durable
//!                                   │                                                 │
//!                                   └─ read ── view of the state ◄── index, leases ◄──┤
//!                                                                                     │
//!                        watch/stream ◄───────────── watch/hub ◄─── events ◄──────────┘
//! ```
//!
//! Invariants:
//! - the state that reads see changes only after the store has said that the change is durable;
//! - one task, the keyspace's sequencer, gives out revisions;
//! - what a key is, only its record in the log says: index, leases' keys and cached values are made
//!   from the log, and can be made again;
//! - no lock is held across an await.

mod alarm;
pub mod auth;
mod auto_compaction;
mod batch;
mod cache;
pub mod client;
mod coalesce;
mod config;
mod connection;
mod encoding;
mod error;
mod event;
mod follow;
mod gateway;
mod hash;
mod health;
mod history;
mod http;
mod idle;
mod in_process;
mod index;
mod key_range;
mod keyspace;
mod keyspace_choice;
mod lease;
pub mod limits;
mod metrics;
mod pings;
mod range;
mod record;
mod sequencer;
mod server;
mod service;
mod snapshot;
mod store;
#[cfg(test)]
mod tests;
pub mod tls;
mod txn;
mod view;
mod watch;

pub use auto_compaction::AutoCompaction;
pub use config::EtcdConfig;
pub use error::Error;
pub use keyspace_choice::{KeyspaceByCn, KeyspaceByUser};
pub use metrics::Metrics;
pub use server::{Listener, OpenError, ServeError, Server};

/// The etcd release whose API this is. A kube-apiserver reads it to decide what it may rely on.
pub const VERSION: &str = "3.6.13";
