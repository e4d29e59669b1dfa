//! The model's watches: the difference of each revision to the one before it.

use std::time::Duration;

use bytes::Bytes;
use etcd_proto::etcdserverpb::watch_create_request::FilterType;
use etcd_proto::etcdserverpb::{WatchCreateRequest, WatchResponse};
use etcd_proto::mvccpb::event::EventType;
use etcd_proto::mvccpb::{Event, KeyValue};
use rand::Rng as _;

use super::super::Fixture;
use super::{Model, Source, within};
use crate::etcd::client::{Client, ClientError, Watch};

/// Watches that follow a run while it goes on.
const FOLLOWERS: usize = 3;
/// Watches that replay a run when it is over.
const REPLAYS: usize = 6;
/// An event that has not come in so long does not come.
const PATIENCE: Duration = Duration::from_secs(20);

impl Model {
    /// What a watch sees of the revision, by key.
    fn events(&self, revision: i64, asked: &WatchCreateRequest) -> Vec<Event> {
        let at = usize::try_from(revision).expect("positive");
        let (before, after) = (&self.revisions[at - 1], &self.revisions[at]);
        let mut keys: Vec<&Bytes> = before.keys().chain(after.keys()).collect();
        keys.sort_unstable();
        keys.dedup();
        let wanted = |filter: FilterType| !asked.filters.contains(&filter.into());
        let event = |key: &Bytes| {
            let (old, new) = (before.get(key), after.get(key));
            let (kind, kv) = match new {
                Some(kv) if kv.mod_revision == revision => (EventType::Put, kv.clone()),
                None if old.is_some() => {
                    let tombstone = KeyValue {
                        key: key.clone(),
                        mod_revision: revision,
                        ..KeyValue::default()
                    };
                    (EventType::Delete, tombstone)
                }
                _ => return None,
            };
            let filter = match kind {
                EventType::Put => FilterType::Noput,
                EventType::Delete => FilterType::Nodelete,
            };
            wanted(filter).then(|| Event {
                r#type: kind.into(),
                kv: Some(kv),
                prev_kv: old.filter(|_| asked.prev_kv).cloned(),
            })
        };
        keys.into_iter()
            .filter(|key| within(key, &asked.key, &asked.range_end))
            .filter_map(event)
            .collect()
    }
}

pub(super) struct Follower {
    asked: WatchCreateRequest,
    /// The first revision that it has not been told of; there may be nothing in it for this watch.
    next: i64,
    watch: Watch,
}

fn key_of(event: &Event) -> Option<&Bytes> {
    event.kv.as_ref().map(|kv| &kv.key)
}

fn revision_of(event: &Event) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

impl Follower {
    async fn open(fixture: &Fixture, source: &mut Source, next: i64, start: i64) -> Follower {
        let key = source.key();
        let filter = [FilterType::Noput, FilterType::Nodelete][source.0.random_range(0..2)];
        let asked = WatchCreateRequest {
            range_end: match source.0.random_range(0..3) {
                0 => Bytes::new(),
                1 => Bytes::from_static(b"\0"),
                // No empty range: that is refused.
                _ => Bytes::from([key.as_ref(), b"\0"].concat()),
            },
            key,
            start_revision: start,
            prev_kv: source.0.random(),
            filters: if source.0.random_ratio(1, 4) {
                vec![filter.into()]
            } else {
                Vec::new()
            },
            ..WatchCreateRequest::default()
        };
        let client = Client::new(fixture.channel());
        let watch = client.watch(asked.clone()).await.expect("a watch");
        Follower { asked, next, watch }
    }

    /// Hears everything up to the model's revision: each revision in one answer, in order, nothing else.
    pub(super) async fn check(&mut self, model: &Model) {
        let asked = self.asked.clone();
        let is_due = |next: i64| {
            let mut due = next..=model.revision();
            due.any(|revision| !model.events(revision, &asked).is_empty())
        };
        while is_due(self.next) {
            let next = tokio::time::timeout(PATIENCE, self.watch.next());
            let next = next.await;
            let response = match next.unwrap_or_else(|_| panic!("not told: {:?}", self.asked)) {
                Ok(response) => response,
                Err(ClientError::WatchCompacted(compacted)) => {
                    assert!(
                        self.next < compacted && compacted <= model.compacted,
                        "{:?}",
                        self.asked
                    );
                    return;
                }
                Err(error) => panic!("{error}: {:?}", self.asked),
            };
            self.check_response(model, &response);
        }
    }

    fn check_response(&mut self, model: &Model, response: &WatchResponse) {
        for told in response
            .events
            .chunk_by(|a, b| revision_of(a) == revision_of(b))
        {
            let revision = revision_of(&told[0]);
            while self.next < revision && model.events(self.next, &self.asked).is_empty() {
                self.next += 1;
            }
            assert_eq!(self.next, revision, "{:?}", self.asked);
            let mut told = told.to_vec();
            told.sort_by(|a, b| key_of(a).cmp(&key_of(b)));
            let mut expected = model.events(revision, &self.asked);
            for (told, expected) in told.iter().zip(&mut expected) {
                // The revision before a compacted one can no longer be read.
                if told.prev_kv.is_none() && revision <= model.compacted {
                    expected.prev_kv = None;
                }
            }
            assert_eq!(told, expected, "{:?}", self.asked);
            self.next += 1;
        }
    }
}

/// Watches from now on.
pub(super) async fn follow(fixture: &Fixture, model: &Model, source: &mut Source) -> Vec<Follower> {
    let mut followers = Vec::new();
    for _ in 0..FOLLOWERS {
        let next = model.revision() + 1;
        followers.push(Follower::open(fixture, source, next, 0).await);
    }
    followers
}

/// Watches from any revision on, compacted ones included.
pub(super) async fn replay(fixture: &Fixture, model: &Model, source: &mut Source) {
    for _ in 0..REPLAYS {
        let start = source.0.random_range(1..=model.revision());
        let mut follower = Follower::open(fixture, source, start, start).await;
        follower.check(model).await;
    }
}
