//! Bearer tokens of clusters: as what a cluster's own components ask the platform.
//!
//! A token names its owner and its cluster, and proves them by a MAC whose key is made once and kept in the
//! store: so it is the same at every start, and nothing is kept for each cluster. It opens what
//! [`crate::clever::authentication::Actor`] guards, for its own cluster, and nothing else.

use std::sync::Arc;

use etcd_proto::etcdserverpb::TxnRequest;
use hmac::digest::KeyInit;
use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::clever::api_token::KEYSPACE;
use crate::clever::authentication::same_secret;
use crate::etcd::client::{ClientError, SharedKeyspaces, mod_revision_is, put};
use crate::platform::model::{ClusterId, OwnerId};

const KEY: &str = "/clever/cluster-token-key";
/// A block of SHA-256, which HMAC takes as it is.
const KEY_BYTES: usize = 64;
/// First part of every token.
const MARK: &str = "cluster";

/// Whose token it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterIdentity {
    pub owner: OwnerId,
    pub cluster: ClusterId,
}

/// Issues tokens and tells whose they are. Cheap to clone.
#[derive(Clone)]
pub struct ClusterTokens {
    key: Arc<[u8; KEY_BYTES]>,
}

impl ClusterTokens {
    /// Reads the key, or makes it on a fresh store.
    pub async fn load(keyspaces: &SharedKeyspaces) -> Result<ClusterTokens, ClientError> {
        let client = keyspaces.client(KEYSPACE);
        let fresh: [u8; KEY_BYTES] = rand::random();
        client
            .txn(TxnRequest {
                compare: vec![mod_revision_is(KEY, 0)],
                success: vec![put(KEY, fresh.to_vec())],
                failure: Vec::new(),
            })
            .await?;
        let kept = client.get(KEY).await?.value;
        // What is of another length nobody of ours has written; then tokens last as long as this process.
        let kept = kept.and_then(|kv| <[u8; KEY_BYTES]>::try_from(&kv.value[..]).ok());
        Ok(ClusterTokens {
            key: Arc::new(kept.unwrap_or(fresh)),
        })
    }

    pub fn issue(&self, owner: &OwnerId, cluster: &ClusterId) -> String {
        let named = format!("{MARK}.{owner}.{cluster}");
        let mac = self.mac(&named);
        format!("{named}.{mac}")
    }

    /// `None` if it is not a token of a cluster, or not a true one.
    pub fn verify(&self, token: &str) -> Option<ClusterIdentity> {
        let (named, mac) = token.rsplit_once('.')?;
        let mut parts = named.split('.');
        if parts.next() != Some(MARK) {
            return None;
        }
        let identity = ClusterIdentity {
            owner: parts.next()?.parse().ok()?,
            cluster: parts.next()?.parse().ok()?,
        };
        // Written once more: an id in another spelling would be another text, and so another token.
        let genuine = self.issue(&identity.owner, &identity.cluster);
        let (_, expected) = genuine.rsplit_once('.')?;
        (parts.next().is_none() && same_secret(mac, expected)).then_some(identity)
    }

    fn mac(&self, text: &str) -> String {
        use std::fmt::Write;
        let mut mac = <Hmac<Sha256> as KeyInit>::new(&(*self.key).into());
        mac.update(text.as_bytes());
        let bytes = mac.finalize().into_bytes();
        bytes.iter().fold(String::new(), |mut text, byte| {
            // Writing into a string cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

#[cfg(test)]
mod tests;
