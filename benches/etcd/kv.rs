//! Clients that put, update, get and list.

use bytes::Bytes;
use cke::etcd::client::{self, Client};
use etcd_proto::etcdserverpb::{RangeRequest, TxnRequest};
use tonic::transport::Channel;

use crate::Failure;
use crate::keys::{KEYS, PREFIX, key};
use crate::load::Worker;

/// Keys in a page of a list.
const PAGE: i64 = 500;

#[derive(Clone, Copy)]
pub enum Operation {
    Put,
    /// As kube-apiserver updates: compare the mod revision, put, else read. Each client has a key of its own.
    Update,
    Get {
        serializable: bool,
    },
    /// Every key, in pages of [`PAGE`]; one operation is the whole list.
    List,
}

pub struct KvClient {
    client: Client,
    operation: Operation,
    /// The key that is next.
    index: usize,
    /// From one key of this client to the next.
    step: usize,
    value: Bytes,
    /// Of this client's last write to the key.
    revision: i64,
}

/// One client for each connection; they share the keys evenly.
pub fn clients(
    connections: Vec<Channel>,
    operation: Operation,
    value_bytes: usize,
) -> Vec<KvClient> {
    let value = Bytes::from(vec![b'y'; value_bytes]);
    let step = connections.len();
    let numbered = connections.into_iter().enumerate();
    numbered
        .map(|(index, channel)| KvClient {
            client: Client::new(channel),
            operation,
            index,
            step,
            value: value.clone(),
            revision: 0,
        })
        .collect()
}

impl Worker for KvClient {
    async fn work(&mut self) -> Result<(), Failure> {
        let key = key(self.index % KEYS);
        match self.operation {
            Operation::Put => {
                self.client.put(key, self.value.clone()).await?;
            }
            Operation::Update => return self.update(key).await,
            Operation::Get { serializable } => self.get(key, serializable).await?,
            Operation::List => self.list().await?,
        }
        self.index += self.step;
        Ok(())
    }
}

impl KvClient {
    async fn update(&mut self, key: Bytes) -> Result<(), Failure> {
        let request = TxnRequest {
            compare: vec![client::mod_revision_is(key.clone(), self.revision)],
            success: vec![client::put(key.clone(), self.value.clone())],
            failure: vec![client::get(key.clone())],
        };
        let response = self.client.txn(request).await?;
        self.revision = if response.succeeded {
            client::header_revision(response.header)
        } else {
            let found = self.client.get(key).await?.value;
            found.map_or(0, |kv| kv.mod_revision)
        };
        Ok(())
    }

    async fn get(&self, key: Bytes, serializable: bool) -> Result<(), Failure> {
        let request = RangeRequest {
            key,
            serializable,
            ..RangeRequest::default()
        };
        let response = self.client.range(request).await?;
        if response.kvs.len() != 1 {
            return Err("a key is missing".into());
        }
        Ok(())
    }

    async fn list(&self) -> Result<(), Failure> {
        let (mut from, end) = client::prefix_range(Bytes::from_static(PREFIX.as_bytes()));
        let (mut revision, mut seen) = (0, 0);
        loop {
            let request = RangeRequest {
                key: from,
                range_end: end.clone(),
                limit: PAGE,
                revision,
                ..RangeRequest::default()
            };
            let page = self.client.range(request).await?;
            seen += page.kvs.len();
            match page.kvs.last() {
                Some(last) if page.more => from = Bytes::from([&last.key[..], b"\0"].concat()),
                _ => break,
            }
            revision = client::header_revision(page.header);
        }
        if seen != KEYS {
            return Err(format!("a list has {seen} keys instead of {KEYS}").into());
        }
        Ok(())
    }
}
