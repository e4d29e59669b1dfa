//! Lists: all objects of a kind, or of a kind in a namespace, at one revision, in pages.

use bytes::Bytes;
use etcd_proto::etcdserverpb::RangeRequest;
use serde_json::{Value, json};

use super::selector::Selector;
use super::{Continue, Place, Registry, decode};
use crate::etcd::client::{header_revision, prefix_end};
use crate::kubernetes::status::ApiError;

/// Objects read from etcd at a time while a selector drops some.
const PAGE: i64 = 500;

#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    pub selector: Selector,
    /// 0 is no limit.
    pub limit: i64,
    pub continue_token: String,
    /// Empty: the newest. With `exact`, the state at this very version; else at least as new.
    pub resource_version: String,
    pub exact: bool,
}

/// A list's objects, and what its metadata says.
#[derive(Debug)]
pub struct List {
    pub items: Vec<Value>,
    pub resource_version: i64,
    pub continue_token: Option<String>,
    /// How many there are beyond this page, if no selector hides it.
    pub remaining: Option<i64>,
}

impl List {
    pub fn metadata(&self) -> Value {
        let mut metadata = json!({"resourceVersion": self.resource_version.to_string()});
        if let Some(token) = &self.continue_token {
            metadata["continue"] = json!(token);
        }
        if let Some(remaining) = self.remaining {
            metadata["remainingItemCount"] = json!(remaining);
        }
        metadata
    }
}

impl Registry {
    pub async fn list(&self, place: Place<'_>, options: &ListOptions) -> Result<List, ApiError> {
        let prefix = place.resource.prefix(place.namespace);
        let range_end = prefix_end(prefix.as_bytes());
        let (mut key, mut revision) = (Bytes::from(prefix.clone()), 0);
        if !options.continue_token.is_empty() {
            let token = Continue::decode(&options.continue_token)?;
            if !token.after.starts_with(&prefix) {
                return Err(ApiError::bad_request("continue key is not valid"));
            }
            revision = token.revision;
            key = after(token.after.as_bytes());
        } else if options.exact {
            revision = parse_version(&options.resource_version)?;
        }
        let limit = usize::try_from(options.limit).unwrap_or(0);
        let mut items = Vec::new();
        loop {
            let page = match limit {
                0 => 0,
                _ if options.selector.is_everything() => options.limit,
                _ => PAGE,
            };
            let response = self
                .client()
                .range(RangeRequest {
                    key: key.clone(),
                    range_end: range_end.clone(),
                    limit: page,
                    revision,
                    ..RangeRequest::default()
                })
                .await?;
            if revision == 0 {
                revision = header_revision(response.header);
            }
            let total = response.count;
            let fetched = response.kvs.len();
            for (index, kv) in response.kvs.iter().enumerate() {
                let object = decode(kv)?;
                if !options.selector.matches(&object) {
                    continue;
                }
                items.push(object);
                let rest = total - i64::try_from(index).unwrap_or(0) - 1;
                if limit > 0 && items.len() == limit && rest > 0 {
                    let token = Continue {
                        revision,
                        after: String::from_utf8_lossy(&kv.key).into_owned(),
                    };
                    return Ok(List {
                        items,
                        resource_version: revision,
                        continue_token: Some(token.encode()),
                        remaining: options.selector.is_everything().then_some(rest),
                    });
                }
            }
            match response.kvs.last() {
                Some(last) if response.more && fetched > 0 => key = after(&last.key),
                _ => break,
            }
        }
        Ok(List {
            items,
            resource_version: revision,
            continue_token: None,
            remaining: None,
        })
    }
}

fn after(key: &[u8]) -> Bytes {
    Bytes::from([key, b"\0"].concat())
}

pub fn parse_version(text: &str) -> Result<i64, ApiError> {
    match text.parse::<i64>() {
        Ok(version) if version >= 0 => Ok(version),
        _ => Err(ApiError::bad_request(format!(
            "invalid resource version {text:?}"
        ))),
    }
}
