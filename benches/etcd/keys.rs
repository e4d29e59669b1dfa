//! The keys of the comparison, and how they get there quickly.

use bytes::Bytes;
use cke::etcd::client::{self, Client};
use etcd_proto::etcdserverpb::TxnRequest;
use futures::{TryStreamExt as _, stream};
use tonic::transport::Channel;

use crate::Failure;

/// Keys under [`PREFIX`] when a case begins.
pub const KEYS: usize = 10_000;
pub const PREFIX: &str = "/registry/bench/";
/// Puts in one transaction; etcd takes 128 at most.
pub const TXN_PUTS: usize = 100;

pub fn key(index: usize) -> Bytes {
    Bytes::from(format!("{PREFIX}namespace/object-{index:06}"))
}

/// Puts the first so many keys, by transactions of [`TXN_PUTS`], each connection one at a time.
pub async fn fill(connections: &[Channel], keys: usize, value_bytes: usize) -> Result<(), Failure> {
    let value = Bytes::from(vec![b'x'; value_bytes]);
    let connections_and_numbers = connections.iter().enumerate();
    stream::iter(connections_and_numbers.map(Ok::<_, Failure>))
        .try_for_each_concurrent(None, |(number, connection)| {
            let client = Client::new(connection.clone());
            let value = value.clone();
            async move {
                let starts = (0..keys).step_by(TXN_PUTS);
                for start in starts.skip(number).step_by(connections.len()) {
                    let indices = start..keys.min(start + TXN_PUTS);
                    let success = indices.map(|it| client::put(key(it), value.clone()));
                    let request = TxnRequest {
                        success: success.collect(),
                        ..TxnRequest::default()
                    };
                    client.txn(request).await?;
                }
                Ok(())
            }
        })
        .await
}
