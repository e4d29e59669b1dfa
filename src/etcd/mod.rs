//! Materia etcd: the etcd v3 API over the ordered key-value store, one keyspace per cluster.
//!
//! May use `fdb` and `clock`; knows nothing of clusters, Kubernetes or the platform. The layers
//! above reach it only through [`client::Client`], which speaks gRPC and so may be pointed at any
//! etcd.

pub mod client;
