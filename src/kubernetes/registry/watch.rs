//! Watches: what becomes of the objects of a list, as a stream of JSON lines.

use std::time::Duration;

use bytes::Bytes;
use etcd_proto::etcdserverpb::WatchCreateRequest;
use etcd_proto::mvccpb::Event;
use etcd_proto::mvccpb::event::EventType;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::list::{ListOptions, parse_version};
use super::selector::Selector;
use super::{Place, Registry, decode, with_version};
use crate::etcd::client::{self, ClientError};
use crate::kubernetes::status::ApiError;

/// Events on their way to one client; a client that falls further behind slows only its own watch,
/// whose rest waits in etcd.
const BUFFER: usize = 64;
/// How often an idle watch that asked for it is told how far it is. In real time, as the watch's end is: the
/// client counts its own seconds, and an advance over an idle year would otherwise ask half a million times.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);
/// How long a watch lasts that does not say: then the client comes again.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(45 * 60);

#[derive(Clone, Debug, Default)]
pub struct WatchOptions {
    pub selector: Selector,
    /// Empty or `0`: begin with what there is.
    pub resource_version: String,
    pub bookmarks: bool,
    /// Begin with what there is, and say where that ends.
    pub initial_events: Option<bool>,
    pub timeout: Option<Duration>,
}

/// How an object is shown in an event.
pub type Render = Box<dyn Fn(Value) -> Value + Send + Sync>;

impl Registry {
    /// Opens a watch. The stream ends at its timeout, on an error, which it tells, or when
    /// `cancel` says so.
    pub async fn watch(
        &self,
        place: Place<'_>,
        options: WatchOptions,
        render: Render,
        cancel: CancellationToken,
    ) -> Result<mpsc::Receiver<Bytes>, ApiError> {
        let prefix = place.resource.prefix(place.namespace);
        let from_now = options.resource_version.is_empty() || options.resource_version == "0";
        let initial = options.initial_events.unwrap_or(from_now);
        let mut first = Vec::new();
        let start = if initial {
            let list = self
                .list(
                    place,
                    &ListOptions {
                        selector: options.selector.clone(),
                        ..ListOptions::default()
                    },
                )
                .await?;
            for object in list.items {
                first.push(line("ADDED", render(object)));
            }
            if options.initial_events == Some(true) {
                let mut bookmark = bookmark(place, list.resource_version);
                bookmark["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
                first.push(line("BOOKMARK", bookmark));
            }
            list.resource_version
        } else if from_now {
            self.list(
                place,
                &ListOptions {
                    limit: 1,
                    ..ListOptions::default()
                },
            )
            .await?
            .resource_version
        } else {
            parse_version(&options.resource_version)?
        };
        let key = Bytes::from(prefix);
        let watch = self
            .client()
            .watch(WatchCreateRequest {
                range_end: client::prefix_end(&key),
                key,
                start_revision: start + 1,
                prev_kv: true,
                progress_notify: options.bookmarks,
                ..WatchCreateRequest::default()
            })
            .await?;
        let (sender, receiver) = mpsc::channel(BUFFER);
        let follow = Follow {
            selector: options.selector,
            bookmarks: options.bookmarks,
            version: start,
            bookmark: bookmark(place, 0),
            render,
        };
        // Clients count their own seconds: a watch's end is in real time.
        let timeout = options.timeout.unwrap_or(DEFAULT_TIMEOUT);
        tokio::spawn(async move {
            let run = async {
                for line in first {
                    if sender.send(line).await.is_err() {
                        return;
                    }
                }
                follow.run(watch, &sender).await;
            };
            tokio::select! {
                () = run => {}
                () = sender.closed() => {}
                () = cancel.cancelled() => {}
                () = tokio::time::sleep(timeout) => {}
            }
        });
        Ok(receiver)
    }
}

struct Follow {
    selector: Selector,
    bookmarks: bool,
    /// Everything up to here was told.
    version: i64,
    bookmark: Value,
    render: Render,
}

impl Follow {
    async fn run(mut self, mut watch: client::Watch, sender: &mpsc::Sender<Bytes>) {
        let progress = watch.progress_requester();
        loop {
            let response = tokio::select! {
                response = watch.next() => response,
                () = tokio::time::sleep(BOOKMARK_INTERVAL), if self.bookmarks => {
                    // The answer comes as a response without events.
                    if progress.request().await.is_err() {
                        return;
                    }
                    continue;
                }
            };
            let response = match response {
                Ok(response) => response,
                Err(error) => {
                    let _ = sender
                        .send(line("ERROR", self.error(&error).to_value()))
                        .await;
                    return;
                }
            };
            let revision = client::header_revision(response.header);
            let idle = response.events.is_empty();
            for event in &response.events {
                let told = match self.event(event) {
                    Ok(told) => told,
                    Err(error) => {
                        let _ = sender.send(line("ERROR", error.to_value())).await;
                        return;
                    }
                };
                if let Some(told) = told
                    && sender.send(told).await.is_err()
                {
                    return;
                }
            }
            if idle && self.bookmarks && revision > self.version {
                self.version = revision;
                let bookmark = with_version(self.bookmark.clone(), revision);
                if sender.send(line("BOOKMARK", bookmark)).await.is_err() {
                    return;
                }
            }
            self.version = self.version.max(revision);
        }
    }

    fn error(&self, error: &ClientError) -> ApiError {
        match error {
            ClientError::WatchCompacted(compacted) => ApiError::expired(format!(
                "too old resource version: {} ({compacted})",
                self.version
            )),
            other => ApiError::unavailable(format!("etcd: {other}")),
        }
    }

    /// What the change is to somebody who sees only what the selector selects.
    fn event(&self, event: &Event) -> Result<Option<Bytes>, ApiError> {
        let previous = event.prev_kv.as_ref().map(decode).transpose()?;
        let was = previous.filter(|object| self.selector.matches(object));
        let kv = event
            .kv
            .as_ref()
            .ok_or_else(|| ApiError::internal("an event without a key"))?;
        let is = if event.r#type() == EventType::Put {
            Some(decode(kv)?).filter(|object| self.selector.matches(object))
        } else {
            None
        };
        Ok(match (was, is) {
            (None, Some(object)) => Some(line("ADDED", (self.render)(object))),
            (Some(_), Some(object)) => Some(line("MODIFIED", (self.render)(object))),
            (Some(object), None) => {
                let gone = with_version(object, kv.mod_revision);
                Some(line("DELETED", (self.render)(gone)))
            }
            (None, None) => None,
        })
    }
}

fn bookmark(place: Place<'_>, version: i64) -> Value {
    json!({
        "kind": place.resource.kind,
        "apiVersion": place.resource.api_version(),
        "metadata": {"resourceVersion": version.to_string(), "creationTimestamp": null},
    })
}

fn line(kind: &str, object: Value) -> Bytes {
    let mut text = json!({"type": kind, "object": object}).to_string();
    text.push('\n');
    Bytes::from(text)
}
