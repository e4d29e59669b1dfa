//! Clients that watch: several watches on one stream, which break off and go on where they were.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use etcd_proto::etcdserverpb::watch_client::WatchClient;
use etcd_proto::etcdserverpb::watch_create_request::FilterType;
use etcd_proto::etcdserverpb::watch_request::RequestUnion;
use etcd_proto::etcdserverpb::{
    WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
};
use etcd_proto::mvccpb;
use etcd_proto::mvccpb::event::EventType;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::client::Link;
use crate::history::{Asked, Change, Heard, Nanos, Recorder, Said, WatchEvent, WatchRecord};
use crate::plant::Proxy;
use crate::request::{self, Keys};
use crate::traffic;

/// Requests that wait for the stream.
const REQUESTS: usize = 64;
/// Watches of one stream.
const WATCHES: usize = 5;
/// Longest pause between two things that a watcher does by itself.
const PACE: Duration = Duration::from_millis(120);
/// Pause of a client that was refused a stream.
const RETRY: Duration = Duration::from_millis(10);
/// How long the end of a round may take to reach a watcher.
const FINISH_TIMEOUT: Duration = Duration::from_secs(30);

/// The revision at which the round ends, once it is known.
pub type Finish = watch::Receiver<Option<i64>>;

/// One watch, over all its streams.
struct Line {
    asked: Asked,
    /// The first revision that it has not been told of completely; `None` if it began with "now" and has not been
    /// told where that is.
    next: Option<i64>,
}

/// One watch on the present stream.
struct Open {
    line: usize,
    record: WatchRecord,
    canceled: bool,
}

pub struct Watcher {
    pub number: usize,
    pub link: Link,
    pub recorder: Recorder,
    pub proxy: Arc<Proxy>,
    pub finish: Finish,
    pub keys: usize,
    pub random: ChaCha8Rng,
}

/// Why a stream is left.
enum Left {
    Broken,
    Finished,
}

struct Stream {
    requests: mpsc::Sender<WatchRequest>,
    answers: Streaming<WatchResponse>,
    open: HashMap<i64, Open>,
    next_id: i64,
}

fn change(kv: mvccpb::KeyValue, kind: EventType) -> Change {
    Change {
        key: kv.key.clone(),
        revision: kv.mod_revision,
        kv: (kind == EventType::Put).then_some(kv),
    }
}

fn heard(at: Nanos, response: WatchResponse) -> Heard {
    let revision = request::revision(response.header);
    let said = if response.created {
        Said::Created
    } else if response.canceled {
        Said::Canceled {
            compact_revision: response.compact_revision,
            reason: response.cancel_reason,
        }
    } else if response.events.is_empty() {
        Said::Progress
    } else {
        let events = response.events.into_iter().filter_map(|event| {
            let kind = event.r#type();
            Some(WatchEvent {
                change: change(event.kv?, kind),
                previous: event.prev_kv,
            })
        });
        Said::Events {
            events: events.collect(),
            fragment: response.fragment,
        }
    };
    Heard { at, revision, said }
}

impl Stream {
    /// Best effort: a stream that broke says so when it is read.
    async fn request(&self, union: RequestUnion) {
        let request = WatchRequest {
            request_union: Some(union),
        };
        let _ = self.requests.send(request).await;
    }

    async fn create(&mut self, watcher: usize, line: usize, asked: Asked, at: Nanos) {
        self.next_id += 1;
        let id = self.next_id;
        let filters = [
            asked.no_put.then_some(FilterType::Noput.into()),
            asked.no_delete.then_some(FilterType::Nodelete.into()),
        ];
        let create = WatchCreateRequest {
            key: asked.keys.start.clone(),
            range_end: asked.keys.end.clone(),
            start_revision: asked.start_revision,
            progress_notify: asked.progress_notify,
            filters: filters.into_iter().flatten().collect(),
            prev_kv: asked.prev_kv,
            watch_id: id,
            fragment: asked.fragment,
        };
        self.request(RequestUnion::CreateRequest(create)).await;
        let record = WatchRecord {
            watcher,
            asked,
            at,
            heard: Vec::new(),
            complete_to: None,
        };
        let open = Open {
            line,
            record,
            canceled: false,
        };
        self.open.insert(id, open);
    }

    async fn request_progress(&self) {
        self.request(RequestUnion::ProgressRequest(WatchProgressRequest {}))
            .await;
    }
}

async fn open(link: &mut Link) -> Option<Stream> {
    let channel = link.channel().await;
    let (requests, outgoing) = mpsc::channel(REQUESTS);
    let answers = WatchClient::new(channel)
        .max_decoding_message_size(usize::MAX)
        .watch(ReceiverStream::new(outgoing))
        .await
        .ok()?
        .into_inner();
    Some(Stream {
        requests,
        answers,
        open: HashMap::new(),
        next_id: 0,
    })
}

impl Watcher {
    /// Watches until the round is over and all has been told.
    pub async fn run(mut self) {
        let mut lines: Vec<Line> = (0..self.random.random_range(1..=WATCHES))
            .map(|_| self.line(1))
            .collect();
        loop {
            let Some(mut stream) = open(&mut self.link).await else {
                tokio::time::sleep(RETRY).await;
                continue;
            };
            for (at, line) in lines.iter().enumerate() {
                let asked = Asked {
                    start_revision: line.next.unwrap_or(0),
                    ..line.asked.clone()
                };
                stream
                    .create(self.number, at, asked, self.recorder.now())
                    .await;
            }
            let left = self.listen(&mut stream, &mut lines).await;
            let records = stream.open.into_values().map(|open| open.record);
            self.recorder.watches(records.collect());
            if matches!(left, Left::Finished) {
                return;
            }
            // As clients do: a server that refuses streams is not asked again at once.
            tokio::time::sleep(PACE.mul_f64(self.random.random())).await;
        }
    }

    /// A watch of something; `newest` is about the newest revision.
    fn line(&mut self, newest: i64) -> Line {
        let (a, b) = (
            traffic::key(self.random.random_range(0..self.keys)),
            traffic::key(self.random.random_range(0..self.keys)),
        );
        let keys = match self.random.random_range(0..4) {
            0 => Keys::one(&a),
            1 if a != b => Keys {
                start: a.clone().min(b.clone()),
                end: a.max(b),
            },
            _ => Keys::all(),
        };
        let next = match self.random.random_range(0..4) {
            0 => Some((newest - self.random.random_range(0..300)).max(1)),
            1 => Some(newest + self.random.random_range(1..100)),
            _ => None,
        };
        Line {
            asked: Asked {
                keys,
                start_revision: 0,
                prev_kv: self.random.random(),
                no_put: self.random.random_ratio(1, 10),
                no_delete: self.random.random_ratio(1, 10),
                fragment: self.random.random_ratio(1, 3),
                progress_notify: self.random.random(),
            },
            next,
        }
    }

    async fn listen(&mut self, stream: &mut Stream, lines: &mut [Line]) -> Left {
        let mut newest = 1;
        loop {
            let pause = PACE.mul_f64(self.random.random());
            let (link, mut finish) = (self.link.clone(), self.finish.clone());
            let finished = async move {
                let finished = finish.wait_for(Option::is_some).await;
                finished.ok().and_then(|revision| *revision)
            };
            tokio::select! {
                message = stream.answers.message() => {
                    let Ok(Some(response)) = message else {
                        return Left::Broken;
                    };
                    newest = newest.max(self.hear(stream, lines, response));
                }
                () = link.down() => return Left::Broken,
                Some(revision) = finished => {
                    return self.finish(stream, lines, revision).await;
                }
                () = tokio::time::sleep(pause) => match self.random.random_range(0..12) {
                    0 => return Left::Broken,
                    1..4 => self.replace_one(stream, lines, newest).await,
                    // A slow reader: what comes meanwhile waits on the server's side.
                    4 => tokio::time::sleep(3 * PACE).await,
                    _ => stream.request_progress().await,
                },
            }
        }
    }

    /// Takes in one answer and returns its revision.
    fn hear(&self, stream: &mut Stream, lines: &mut [Line], response: WatchResponse) -> i64 {
        let revision = request::revision(response.header);
        let at = self.recorder.now();
        for response in self.proxy.watch(response) {
            let to = response.watch_id;
            let heard = heard(at, response);
            for (id, open) in &mut stream.open {
                let created = !open.record.heard.is_empty();
                let concerned = *id == to || (to == -1 && created);
                if concerned && !open.canceled {
                    open.hear(heard.clone(), &mut lines[open.line]);
                }
            }
        }
        revision
    }

    /// Cancels a watch and begins another in its place.
    async fn replace_one(&mut self, stream: &mut Stream, lines: &mut [Line], newest: i64) {
        let at = self.random.random_range(0..lines.len());
        let open = stream
            .open
            .iter()
            .find(|(_, open)| open.line == at && !open.canceled);
        if let Some((&watch_id, _)) = open {
            self.cancel(stream, watch_id).await;
        }
        lines[at] = self.line(newest);
        let line = &lines[at];
        let asked = Asked {
            start_revision: line.next.unwrap_or(0),
            ..line.asked.clone()
        };
        stream
            .create(self.number, at, asked, self.recorder.now())
            .await;
    }

    /// What still comes of it is not heard any more.
    async fn cancel(&self, stream: &mut Stream, watch_id: i64) {
        let request = WatchCancelRequest { watch_id };
        stream.request(RequestUnion::CancelRequest(request)).await;
        if let Some(open) = stream.open.get_mut(&watch_id) {
            open.canceled = true;
        }
    }

    /// Waits until the stream has told of everything up to the revision.
    async fn finish(&mut self, stream: &mut Stream, lines: &mut [Line], revision: i64) -> Left {
        // A watch of the future would keep the stream from telling of its progress.
        let future = stream
            .open
            .iter()
            .filter(|(_, open)| open.record.asked.start_revision > revision);
        let future: Vec<i64> = future.map(|(id, _)| *id).collect();
        for id in future {
            self.cancel(stream, id).await;
        }
        if stream.open.values().all(|open| open.canceled) {
            return Left::Finished;
        }
        let told = async {
            let mut ask = tokio::time::interval(PACE);
            loop {
                // One of several servers may still be behind when it is asked.
                let message = tokio::select! {
                    message = stream.answers.message() => message,
                    _ = ask.tick() => {
                        stream.request_progress().await;
                        continue;
                    }
                };
                let Ok(Some(response)) = message else {
                    return Left::Broken;
                };
                let to_all = response.watch_id == -1 && !response.created;
                let told = self.hear(stream, lines, response);
                if to_all && told >= revision {
                    return Left::Finished;
                }
                // What all of them asked for may be compacted: then there is nobody to be told of progress.
                if stream.open.values().all(|open| open.canceled) {
                    return Left::Finished;
                }
            }
        };
        let Ok(left) = tokio::time::timeout(FINISH_TIMEOUT, told).await else {
            let what = format!(
                "watcher {} is not told of progress to {revision}",
                self.number
            );
            self.recorder.missed(what);
            return Left::Finished;
        };
        for open in stream.open.values_mut().filter(|open| !open.canceled) {
            open.record.complete_to = Some(revision);
        }
        left
    }
}

impl Open {
    fn hear(&mut self, heard: Heard, line: &mut Line) {
        let revision = heard.revision;
        match &heard.said {
            Said::Created => {
                line.next.get_or_insert(revision + 1);
            }
            Said::Events { events, fragment } => {
                if let Some(last) = events.last() {
                    // The same revision again, if the rest of it does not come.
                    line.next = Some(last.change.revision + i64::from(!fragment));
                }
            }
            Said::Progress => line.next = line.next.max(Some(revision + 1)),
            Said::Canceled { .. } => {
                self.canceled = true;
                line.next = None;
            }
        }
        self.record.heard.push(heard);
    }
}

/// The one watch that sees everything: what it is told becomes the log.
pub struct Scribe {
    pub link: Link,
    pub recorder: Recorder,
    /// The newest revision that it has been told of.
    pub seen: watch::Sender<i64>,
    pub finish: Finish,
}

impl Scribe {
    pub async fn run(mut self) {
        loop {
            let Some(mut stream) = open(&mut self.link).await else {
                tokio::time::sleep(RETRY).await;
                continue;
            };
            let asked = Asked {
                keys: Keys::all(),
                start_revision: *self.seen.borrow() + 1,
                prev_kv: false,
                no_put: false,
                no_delete: false,
                fragment: false,
                progress_notify: false,
            };
            stream
                .create(usize::MAX, 0, asked, self.recorder.now())
                .await;
            let mut finish = self.finish.clone();
            let mut seen = self.seen.subscribe();
            let finished = async {
                let revision = finish.wait_for(Option::is_some).await;
                let revision = revision.ok().and_then(|revision| *revision);
                let _ = seen.wait_for(|seen| Some(*seen) >= revision).await;
            };
            let link = self.link.clone();
            tokio::select! {
                () = self.listen(&mut stream) => {}
                () = link.down() => {}
                () = finished => return,
            }
        }
    }

    async fn listen(&self, stream: &mut Stream) {
        while let Ok(Some(response)) = stream.answers.message().await {
            if response.canceled {
                let why = response.cancel_reason;
                let at = response.compact_revision;
                self.recorder
                    .missed(format!("the scribe was cancelled: {why} {at}"));
                return;
            }
            let changes: Vec<Change> = response
                .events
                .into_iter()
                .filter_map(|event| {
                    let kind = event.r#type();
                    Some(change(event.kv?, kind))
                })
                .collect();
            if let Some(last) = changes.last() {
                let revision = last.revision;
                self.recorder.scribe(changes);
                self.seen.send_replace(revision);
            }
        }
    }
}

/// The watchers' seeds must not be the clients'.
pub fn random(seed: u64, number: usize) -> ChaCha8Rng {
    let number = u64::try_from(number).expect("few");
    ChaCha8Rng::seed_from_u64(seed.rotate_left(32) ^ number)
}
