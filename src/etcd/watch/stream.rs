//! One watch stream: its watchers, their replay, and the order of what it says.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use etcd_proto::etcdserverpb::watch_create_request::FilterType;
use etcd_proto::etcdserverpb::watch_request::RequestUnion;
use etcd_proto::etcdserverpb::{ResponseHeader, WatchCreateRequest, WatchRequest, WatchResponse};
use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt as _};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::frame::{EventsFrame, Frame};
use super::hub::{self, CatchUp, Delivery, Filter, Subscription, WatcherKey};
use super::queue::{Queue, Waiting};
use crate::etcd::auth::Credentials;
use crate::etcd::error::Error;
use crate::etcd::event::{Event, RevisionEvents};
use crate::etcd::key_range::KeyRange;
use crate::etcd::keyspace::Keyspace;
use crate::etcd::metrics::StreamGauge;
use crate::etcd::record::{Revision, SharedRecord};
use crate::etcd::service::Headers;
use crate::etcd::store::StoreError;
use crate::etcd::view::View as _;

/// Answers that wait for the connection.
pub const ANSWERS_LEN: usize = 16;
/// Id of answers that concern no watcher, or all.
const NO_WATCHER: i64 = -1;
/// An answer takes no further revision when it has so many bytes of events.
const ANSWER_BYTES: usize = 64 << 10;

/// Reasons of a cancellation, as etcd words them.
const DUPLICATE_ID: &str = "mvcc: duplicate watch ID provided on the WatchStream";
const EMPTY_RANGE: &str = "mvcc: watcher range is empty";

#[derive(Clone, Copy, Debug)]
pub struct StreamConfig {
    /// How long a watcher that wants progress may be silent.
    pub progress_interval: Duration,
    /// Answers of watchers that asked for fragments are cut below this.
    pub max_response_bytes: usize,
}

struct Watcher {
    id: i64,
    range: KeyRange,
    filter: Filter,
    /// First revision that it asked for; 0 if it did not care.
    start_revision: i64,
    previous: bool,
    fragment: bool,
    progress_notify: bool,
    /// It was sent nothing since the last tick.
    quiet: bool,
}

pub struct WatchStream {
    keyspace: Arc<Keyspace>,
    headers: Headers,
    /// Of whoever opened the stream; each watch is asked for with them.
    credentials: Credentials,
    config: StreamConfig,
    queue: Arc<Queue>,
    /// What was taken from the queue.
    taken: Waiting,
    answers: mpsc::Sender<Result<Frame, Status>>,
    watchers: HashMap<WatcherKey, Watcher>,
    ids: HashMap<i64, WatcherKey>,
    next_id: i64,
    /// Watchers that are not synced, with the revision that they miss next.
    lagging: BTreeMap<WatcherKey, i64>,
    /// A progress notification is due once all watchers are synced.
    progress_requested: bool,
    gauge: StreamGauge,
}

/// The stream is over.
enum Over {
    ClientGone,
    Failed(Error),
}

impl From<StoreError> for Over {
    fn from(error: StoreError) -> Self {
        Over::Failed(error.into())
    }
}

impl Drop for WatchStream {
    fn drop(&mut self) {
        for (key, watcher) in &self.watchers {
            self.keyspace.hub.unsubscribe(&watcher.range, *key);
        }
        self.gauge.end(&self.keyspace.metrics);
    }
}

impl WatchStream {
    pub fn new(
        keyspace: Arc<Keyspace>,
        headers: Headers,
        credentials: Credentials,
        config: StreamConfig,
        answers: mpsc::Sender<Result<Frame, Status>>,
    ) -> WatchStream {
        // What happens within this process is not to wait for a timer of real time.
        let paced = !credentials.is_trusted();
        WatchStream {
            keyspace,
            headers,
            credentials,
            config,
            queue: Arc::new(Queue::new(paced)),
            taken: Waiting::default(),
            answers,
            watchers: HashMap::new(),
            ids: HashMap::new(),
            next_id: 0,
            lagging: BTreeMap::new(),
            progress_requested: false,
            gauge: StreamGauge::default(),
        }
    }

    /// Serves the stream until the client closes or leaves it, or the keyspace or the server stops.
    pub async fn run(
        mut self,
        mut requests: impl Stream<Item = Result<WatchRequest, Status>> + Unpin,
        draining: CancellationToken,
    ) {
        let closed = self.keyspace.closed.clone();
        let answers = self.answers.clone();
        let over = tokio::select! {
            () = closed.cancelled() => Over::Failed(Error::Stopped),
            () = draining.cancelled() => Over::Failed(Error::Stopped),
            () = answers.closed() => Over::ClientGone,
            over = self.serve(&mut requests) => over,
        };
        if let Over::Failed(error) = over {
            // The client may be slow, or gone: it then learns from the closed connection.
            let _ = answers.try_send(Err(error.into()));
        }
    }

    async fn serve(
        &mut self,
        requests: &mut (impl Stream<Item = Result<WatchRequest, Status>> + Unpin),
    ) -> Over {
        let clock = self.keyspace.clock.clone();
        let interval = self.config.progress_interval;
        let mut tick = std::pin::pin!(clock.sleep(interval));
        // Who has said all there is to ask still wants to be told.
        let mut asking = true;
        loop {
            if let Err(over) = self.advance().await {
                return over;
            }
            let (watchers, lagging) = (self.watchers.len(), self.lagging.len());
            self.gauge.set(&self.keyspace.metrics, watchers, lagging);
            let busy = lagging > 0;
            let queue = Arc::clone(&self.queue);
            let outcome = tokio::select! {
                biased;
                request = requests.next(), if asking => match request {
                    Some(Ok(request)) => self.handle(request).await,
                    None => {
                        asking = false;
                        Ok(())
                    }
                    Some(Err(_)) => return Over::ClientGone,
                },
                () = queue.notify.notified() => Ok(()),
                () = std::future::ready(()), if busy => Ok(()),
                activity = &mut tick => {
                    let outcome = self.notify_progress().await;
                    tick.set(clock.sleep(interval));
                    drop(activity);
                    outcome
                }
            };
            if let Err(over) = outcome {
                return over;
            }
        }
    }

    /// Sends what waits, lets lagging watchers catch up a step, and answers progress requests.
    async fn advance(&mut self) -> Result<(), Over> {
        self.drain().await?;
        if !self.lagging.is_empty() {
            let lagging = self.lagging.iter().map(|(key, next)| (*key, *next));
            for (key, next) in lagging.collect::<Vec<_>>() {
                self.catch_up(key, next).await?;
            }
        }
        if self.progress_requested {
            self.answer_progress().await?;
        }
        Ok(())
    }

    fn header(&self, revision: i64) -> ResponseHeader {
        self.headers.at(revision)
    }

    async fn send(&self, frame: Frame) -> Result<(), Over> {
        let sent = self.answers.send(Ok(frame)).await;
        sent.map_err(|_| Over::ClientGone)
    }

    async fn control(&self, revision: i64, response: WatchResponse) -> Result<(), Over> {
        self.send(Frame::Control(Box::new(WatchResponse {
            header: Some(self.header(revision)),
            ..response
        })))
        .await
    }

    async fn handle(&mut self, request: WatchRequest) -> Result<(), Over> {
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => self.create(create).await,
            Some(RequestUnion::CancelRequest(cancel)) => self.cancel(cancel.watch_id).await,
            Some(RequestUnion::ProgressRequest(_)) => {
                self.progress_requested = true;
                Ok(())
            }
            None => Ok(()),
        }
    }

    async fn create(&mut self, request: WatchCreateRequest) -> Result<(), Over> {
        // From now on is after what any server has acknowledged, and another server may have compacted what is still
        // in memory here.
        let current = self.keyspace.catch_up().await;
        current.map_err(Over::Failed)?;
        let revision = self.keyspace.hub.revision();
        // The smallest key, if none is given.
        let key = if request.key.is_empty() {
            Bytes::from_static(b"\0")
        } else {
            request.key
        };
        let range = KeyRange::new(&key, &request.range_end).to_owned_range();
        let permitted = self
            .credentials
            .caller(&self.keyspace)
            .and_then(|caller| caller.check_read(&key, &request.range_end));
        let refusal = if request.start_revision < 0 {
            Some(Error::Compacted.to_string())
        } else if let Err(error) = permitted {
            Some(error.status_text())
        } else if range.is_empty() {
            Some(EMPTY_RANGE.to_owned())
        } else if request.watch_id != 0 && self.ids.contains_key(&request.watch_id) {
            Some(DUPLICATE_ID.to_owned())
        } else {
            None
        };
        if let Some(cancel_reason) = refusal {
            let response = WatchResponse {
                watch_id: NO_WATCHER,
                created: true,
                canceled: true,
                cancel_reason,
                ..WatchResponse::default()
            };
            return self.control(revision, response).await;
        }
        let id = match request.watch_id {
            0 => self.free_id(),
            id => id,
        };
        let filters = |wanted: FilterType| request.filters.contains(&wanted.into());
        let next = match request.start_revision {
            0 => revision + 1,
            start => start,
        };
        let watcher = Watcher {
            id,
            range,
            filter: Filter {
                no_put: filters(FilterType::Noput),
                no_delete: filters(FilterType::Nodelete),
            },
            start_revision: request.start_revision,
            previous: request.prev_kv,
            fragment: request.fragment,
            progress_notify: request.progress_notify,
            quiet: true,
        };
        let key = self.keyspace.hub.new_watcher();
        self.ids.insert(id, key);
        self.watchers.insert(key, watcher);
        self.lagging.insert(key, next);
        let response = WatchResponse {
            watch_id: id,
            created: true,
            ..WatchResponse::default()
        };
        self.control(revision, response).await
    }

    fn free_id(&mut self) -> i64 {
        while self.ids.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        self.next_id - 1
    }

    fn forget(&mut self, key: WatcherKey) -> Option<Watcher> {
        let watcher = self.watchers.remove(&key)?;
        self.ids.remove(&watcher.id);
        self.lagging.remove(&key);
        self.keyspace.hub.unsubscribe(&watcher.range, key);
        Some(watcher)
    }

    /// An id that is not known gets no answer.
    async fn cancel(&mut self, id: i64) -> Result<(), Over> {
        let Some(key) = self.ids.get(&id).copied() else {
            return Ok(());
        };
        self.forget(key);
        let response = WatchResponse {
            watch_id: id,
            canceled: true,
            ..WatchResponse::default()
        };
        self.control(self.keyspace.hub.revision(), response).await
    }

    /// Sends everything that waits in the queue.
    async fn drain(&mut self) -> Result<(), Over> {
        let mut taken = std::mem::take(&mut self.taken);
        self.queue.take(&mut taken);
        let watcher = taken.deliveries.front().map(|first| first.watcher);
        if taken
            .deliveries
            .iter()
            .all(|it| Some(it.watcher) == watcher)
        {
            // Most streams have one watcher.
            self.deliver(taken.deliveries.drain(..)).await?;
        } else {
            let mut by_watcher: HashMap<WatcherKey, usize> = HashMap::new();
            let mut grouped: Vec<Vec<Delivery>> = Vec::new();
            for delivery in taken.deliveries.drain(..) {
                let at = *by_watcher.entry(delivery.watcher).or_insert(grouped.len());
                match grouped.get_mut(at) {
                    Some(group) => group.push(delivery),
                    None => grouped.push(vec![delivery]),
                }
            }
            for group in grouped {
                self.deliver(group).await?;
            }
        }
        for (key, missed) in taken.lagging.drain(..) {
            if self.watchers.contains_key(&key) {
                self.lagging.insert(key, missed);
            }
        }
        self.taken = taken;
        Ok(())
    }

    /// Sends one watcher's deliveries in order, several small revisions in one answer.
    async fn deliver(
        &mut self,
        deliveries: impl IntoIterator<Item = Delivery>,
    ) -> Result<(), Over> {
        let mut events = Vec::new();
        let mut bytes = 0;
        let mut deliveries = deliveries.into_iter().peekable();
        while let Some(delivery) = deliveries.next() {
            let Some(watcher) = self.watchers.get_mut(&delivery.watcher) else {
                return Ok(());
            };
            watcher.quiet = false;
            let (id, previous, fragment) = (watcher.id, watcher.previous, watcher.fragment);
            for event in delivery.events() {
                let encoded = if previous {
                    let fetched = self.fetch_previous(event).await?;
                    event.encoded_with_previous(fetched.as_ref())
                } else {
                    event.encoded()
                };
                bytes += encoded.len();
                events.push(encoded);
            }
            if deliveries.peek().is_some() && bytes < ANSWER_BYTES {
                continue;
            }
            bytes = 0;
            let sent = &self.keyspace.metrics.server.watch_events;
            sent.inc_by(events.len() as u64);
            let frame = EventsFrame {
                header: self.header(delivery.events.revision),
                watch_id: id,
                fragment: false,
                events: std::mem::take(&mut events),
            };
            if fragment {
                for part in frame.fragments(self.config.max_response_bytes) {
                    self.send(Frame::Events(part)).await?;
                }
            } else {
                self.send(Frame::Events(frame)).await?;
            }
        }
        Ok(())
    }

    /// The record before the event, if it exists and is not in memory. Compaction may have removed
    /// it since: then the event goes without.
    async fn fetch_previous(&self, event: &Event) -> Result<Option<SharedRecord>, StoreError> {
        match &event.previous {
            Some(previous) if !previous.is_cached() => {
                let record = self.keyspace.store.read_record(previous.revision).await?;
                Ok(record.map(Arc::new))
            }
            _ => Ok(None),
        }
    }

    /// Brings a lagging watcher forward from revision `next`, a bounded step.
    async fn catch_up(&mut self, key: WatcherKey, next: i64) -> Result<(), Over> {
        let Some(watcher) = self.watchers.get(&key) else {
            self.lagging.remove(&key);
            return Ok(());
        };
        if next < self.keyspace.state.read().compacted {
            return self.cancel_compacted(key).await;
        }
        let (range, filter) = (watcher.range.clone(), watcher.filter);
        let subscribe = || Subscription {
            watcher: key,
            queue: Arc::clone(&self.queue),
            filter,
            from_revision: next,
        };
        let (events, upto) = match self.keyspace.hub.catch_up(next, &range, subscribe) {
            CatchUp::Synced => {
                self.lagging.remove(&key);
                return Ok(());
            }
            CatchUp::Recent { events, upto } => (events, upto),
            CatchUp::InLog { upto } => {
                let (events, upto) = self.read_log(next, upto).await?;
                // What was compacted meanwhile, by whichever server, may be missing from what was read.
                let current = self.keyspace.catch_up().await;
                current.map_err(Over::Failed)?;
                if next < self.keyspace.state.read().compacted {
                    return self.cancel_compacted(key).await;
                }
                (events, upto)
            }
        };
        let selected = events.into_iter().filter_map(|events| {
            let selected = hub::select(&events, &range, filter)?;
            Some(Delivery {
                watcher: key,
                events,
                selected,
            })
        });
        self.deliver(selected).await?;
        self.lagging.insert(key, upto + 1);
        Ok(())
    }

    async fn cancel_compacted(&mut self, key: WatcherKey) -> Result<(), Over> {
        let Some(watcher) = self.forget(key) else {
            return Ok(());
        };
        let (revision, compact_revision) = {
            let state = self.keyspace.state.read();
            (state.revision, state.compacted)
        };
        let response = WatchResponse {
            watch_id: watcher.id,
            canceled: true,
            compact_revision,
            ..WatchResponse::default()
        };
        self.control(revision, response).await
    }

    /// Whole revisions from `next` on, up to `upto` or as far as one read goes; and how far that is.
    async fn read_log(
        &self,
        next: i64,
        upto: i64,
    ) -> Result<(Vec<Arc<RevisionEvents>>, i64), StoreError> {
        let mut records: Vec<SharedRecord> = Vec::new();
        let mut from = Revision { main: next, sub: 0 };
        let mut read_upto = upto;
        loop {
            let (page, more) = self.keyspace.store.read_log(from, upto).await?;
            records.extend(page.into_iter().map(Arc::new));
            let Some(more) = more else { break };
            from = more;
            let (Some(first), Some(last)) = (records.first(), records.last()) else {
                continue;
            };
            // The last revision may go on after this page.
            let last = last.revision.main;
            if first.revision.main < last {
                records.retain(|record| record.revision.main < last);
                read_upto = last - 1;
                break;
            }
        }
        let state = self.keyspace.state.read();
        let revisions = records.chunk_by(|a, b| a.revision.main == b.revision.main);
        let events = revisions.map(|revision| {
            let main = revision[0].revision.main;
            let events = revision.iter().map(|record| {
                let before = (main > state.compacted).then(|| state.get(&record.key, main - 1));
                Event::new(Arc::clone(record), before.flatten())
            });
            Arc::new(RevisionEvents::new(main, events.collect()))
        });
        Ok((events.collect(), read_upto))
    }

    /// How far all of the stream's watchers have been told everything; `None` if some lag.
    async fn progress(&mut self) -> Result<Option<i64>, Over> {
        // What was answered before the request must count, and the sequencer, which is about to hand it out,
        // needs no more than a moment.
        let visible = self.keyspace.revision();
        let revision = loop {
            let revision = self.keyspace.hub.revision();
            if revision >= visible {
                break revision;
            }
            tokio::task::yield_now().await;
        };
        // Read before draining: all up to it was in the queue already.
        self.drain().await?;
        Ok(self.lagging.is_empty().then_some(revision))
    }

    async fn answer_progress(&mut self) -> Result<(), Over> {
        if !self.lagging.is_empty() {
            return Ok(());
        }
        let Some(revision) = self.progress().await? else {
            return Ok(());
        };
        self.progress_requested = false;
        let mut watchers = self.watchers.values();
        // Silence until a watcher's first revision comes.
        if self.watchers.is_empty() || watchers.any(|w| w.start_revision > revision) {
            return Ok(());
        }
        let response = WatchResponse {
            watch_id: NO_WATCHER,
            ..WatchResponse::default()
        };
        self.control(revision, response).await
    }

    /// Tells quiet watchers that asked for it how far they are.
    async fn notify_progress(&mut self) -> Result<(), Over> {
        let Some(revision) = self.progress().await? else {
            return Ok(());
        };
        let mut due = Vec::new();
        for watcher in self.watchers.values_mut().filter(|w| w.progress_notify) {
            if watcher.quiet && watcher.start_revision <= revision {
                due.push(watcher.id);
            }
            watcher.quiet = true;
        }
        for watch_id in due {
            let response = WatchResponse {
                watch_id,
                ..WatchResponse::default()
            };
            self.control(revision, response).await?;
        }
        Ok(())
    }
}
