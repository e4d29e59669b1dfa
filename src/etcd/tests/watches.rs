//! What etcd promises of watches, and the bugs that it had there (contracts: past bugs by number).

use std::collections::VecDeque;

use bytes::Bytes;
use etcd_proto::etcdserverpb::watch_client::WatchClient;
use etcd_proto::etcdserverpb::watch_create_request::FilterType;
use etcd_proto::etcdserverpb::watch_request::RequestUnion;
use etcd_proto::etcdserverpb::{
    DeleteRangeRequest, TxnRequest, WatchCancelRequest, WatchCreateRequest, WatchProgressRequest,
    WatchRequest, WatchResponse,
};
use etcd_proto::mvccpb::event::EventType;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{Fixture, bytes};
use crate::etcd::EtcdConfig;
use crate::etcd::client;

struct WatchStream {
    requests: mpsc::Sender<WatchRequest>,
    answers: Streaming<WatchResponse>,
    /// Answers that came while another was waited for.
    early: VecDeque<WatchResponse>,
}

fn all(start_revision: i64) -> WatchCreateRequest {
    WatchCreateRequest {
        key: Bytes::from_static(b"\0"),
        range_end: Bytes::from_static(b"\0"),
        start_revision,
        ..WatchCreateRequest::default()
    }
}

fn one(key: &str, start_revision: i64) -> WatchCreateRequest {
    WatchCreateRequest {
        key: bytes(key),
        start_revision,
        ..WatchCreateRequest::default()
    }
}

/// `put k=v@revision`, `delete k@revision`, with the previous value in brackets.
fn show(response: &WatchResponse) -> Vec<String> {
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    let event = |event: &etcd_proto::mvccpb::Event| {
        let kv = event.kv.as_ref().expect("a key");
        let mut line = match event.r#type() {
            EventType::Put => format!(
                "put {}={}@{}",
                text(&kv.key),
                text(&kv.value),
                kv.mod_revision
            ),
            EventType::Delete => format!("delete {}@{}", text(&kv.key), kv.mod_revision),
        };
        if let Some(previous) = &event.prev_kv {
            line += &format!(" [{}@{}]", text(&previous.value), previous.mod_revision);
        }
        line
    };
    response.events.iter().map(event).collect()
}

impl WatchStream {
    async fn open(fixture: &Fixture) -> WatchStream {
        let (requests, outgoing) = mpsc::channel(1000);
        let answers = WatchClient::new(fixture.channel())
            .max_decoding_message_size(usize::MAX)
            .watch(ReceiverStream::new(outgoing))
            .await
            .expect("a stream")
            .into_inner();
        WatchStream {
            requests,
            answers,
            early: VecDeque::new(),
        }
    }

    async fn send(&self, union: RequestUnion) {
        let request = WatchRequest {
            request_union: Some(union),
        };
        self.requests.send(request).await.expect("sent");
    }

    async fn create(&mut self, request: WatchCreateRequest) -> WatchResponse {
        self.send(RequestUnion::CreateRequest(request)).await;
        self.wait_for(|response| response.created).await
    }

    async fn cancel(&mut self, watch_id: i64) -> WatchResponse {
        let request = WatchCancelRequest { watch_id };
        self.send(RequestUnion::CancelRequest(request)).await;
        self.wait_for(|response| response.canceled).await
    }

    async fn request_progress(&self) {
        self.send(RequestUnion::ProgressRequest(WatchProgressRequest {}))
            .await;
    }

    async fn wait_for(&mut self, wanted: impl Fn(&WatchResponse) -> bool) -> WatchResponse {
        loop {
            let response = self.receive().await;
            if wanted(&response) {
                return response;
            }
            self.early.push_back(response);
        }
    }

    async fn receive(&mut self) -> WatchResponse {
        self.answers
            .message()
            .await
            .expect("open")
            .expect("an answer")
    }

    async fn next(&mut self) -> WatchResponse {
        match self.early.pop_front() {
            Some(response) => response,
            None => self.receive().await,
        }
    }

    /// The next `count` events, however they are grouped.
    async fn events(&mut self, count: usize) -> Vec<String> {
        let mut events = Vec::new();
        while events.len() < count {
            let response = self.next().await;
            assert!(!response.canceled && !response.created, "{response:?}");
            events.extend(show(&response));
        }
        events
    }
}

fn revision(response: &WatchResponse) -> i64 {
    response.header.expect("header").revision
}

#[tokio::test]
async fn a_watch_from_now_sees_what_comes() {
    let fixture = Fixture::new().await;
    fixture.put("a", "1").await;
    let mut stream = WatchStream::open(&fixture).await;
    let created = stream.create(all(0)).await;
    assert_eq!((created.watch_id, revision(&created)), (0, 2));
    fixture.put("a", "2").await;
    fixture.delete("a").await;
    assert_eq!(stream.events(2).await, ["put a=2@3", "delete a@4"]);
}

#[tokio::test]
async fn a_watch_from_a_past_revision_replays_then_follows() {
    let fixture = Fixture::new().await;
    for value in ["1", "2", "3"] {
        fixture.put("a", value).await;
    }
    let expected = ["put a=2@3", "put a=3@4", "put a=4@5"];
    let mut stream = WatchStream::open(&fixture).await;
    stream.create(one("a", 3)).await;
    fixture.put("b", "not for this one").await;
    assert_eq!(stream.events(2).await, expected[..2]);
    // The same from the log, after a restart has emptied the memory.
    let fixture = fixture.restart().await;
    let mut stream = WatchStream::open(&fixture).await;
    stream.create(one("a", 3)).await;
    fixture.put("a", "4").await;
    assert_eq!(
        stream.events(3).await,
        ["put a=2@3", "put a=3@4", "put a=4@6"]
    );
}

#[tokio::test]
async fn previous_values_and_filters() {
    for cache in [usize::MAX, 0] {
        let config = EtcdConfig {
            value_cache_bytes: cache,
            ..EtcdConfig::default()
        };
        let fixture = Fixture::with(config, None).await;
        let mut stream = WatchStream::open(&fixture).await;
        let with_previous = WatchCreateRequest {
            prev_kv: true,
            ..one("a", 2)
        };
        stream.create(with_previous.clone()).await;
        fixture.put("a", "1").await;
        fixture.put("a", "2").await;
        fixture.delete("a").await;
        let expected = ["put a=1@2", "put a=2@3 [1@2]", "delete a@4 [2@3]"];
        assert_eq!(stream.events(3).await, expected);
        let mut late = WatchStream::open(&fixture).await;
        late.create(with_previous).await;
        assert_eq!(late.events(3).await, expected);
        for (filter, expected) in [
            (FilterType::Noput, vec!["delete a@4"]),
            (FilterType::Nodelete, vec!["put a=1@2", "put a=2@3"]),
        ] {
            let mut filtered = WatchStream::open(&fixture).await;
            let request = WatchCreateRequest {
                filters: vec![filter.into()],
                ..one("a", 1)
            };
            filtered.create(request).await;
            assert_eq!(filtered.events(expected.len()).await, expected);
        }
    }
}

#[tokio::test]
async fn a_revision_comes_in_one_answer() {
    let fixture = Fixture::new().await;
    let mut stream = WatchStream::open(&fixture).await;
    stream.create(all(0)).await;
    let mut other = WatchStream::open(&fixture).await;
    other.create(one("b", 0)).await;
    let request = TxnRequest {
        success: vec![
            client::put("b", "2"),
            client::put("a", "1"),
            client::get("a"),
        ],
        ..TxnRequest::default()
    };
    // 17247: puts and ranges of the same keys in one transaction.
    fixture.kv().txn(request).await.expect("txn");
    assert_eq!(show(&stream.next().await), ["put b=2@2", "put a=1@2"]);
    assert_eq!(show(&other.next().await), ["put b=2@2"]);
    let request = DeleteRangeRequest {
        key: bytes("a"),
        range_end: bytes("z"),
        prev_kv: false,
    };
    fixture.kv().delete_range(request).await.expect("delete");
    assert_eq!(show(&stream.next().await), ["delete a@3", "delete b@3"]);
    assert_eq!(show(&other.next().await), ["delete b@3"]);
}

#[tokio::test]
async fn large_revisions_are_cut_if_asked_for() {
    let config = EtcdConfig {
        max_request_bytes: 1000,
        ..EtcdConfig::default()
    };
    // The limit of an answer is 1000 bytes and half a mebibyte.
    let fixture = Fixture::with(config, None).await;
    for n in 0..4 {
        let mut kv = fixture.kv();
        for part in 0..200 {
            let put = client::put(format!("{n}/{part}"), vec![b'x'; 800]);
            let request = TxnRequest {
                success: vec![put],
                ..TxnRequest::default()
            };
            kv.txn(request).await.expect("txn");
        }
    }
    let mut stream = WatchStream::open(&fixture).await;
    let request = WatchCreateRequest {
        fragment: true,
        prev_kv: true,
        ..all(0)
    };
    stream.create(request).await;
    let delete = DeleteRangeRequest {
        key: bytes("0"),
        range_end: bytes("9"),
        prev_kv: false,
    };
    fixture.kv().delete_range(delete).await.expect("delete");
    let first = stream.next().await;
    let second = stream.next().await;
    assert!(first.fragment && !second.fragment);
    assert_eq!(first.events.len() + second.events.len(), 800);
    assert!(first.events.iter().all(|event| event.prev_kv.is_some()));
}

#[tokio::test]
async fn ids_are_the_clients_choice_or_the_next_free_one() {
    let fixture = Fixture::new().await;
    let mut stream = WatchStream::open(&fixture).await;
    let with_id = |watch_id| WatchCreateRequest { watch_id, ..all(0) };
    assert_eq!(stream.create(with_id(1)).await.watch_id, 1);
    assert_eq!(stream.create(with_id(0)).await.watch_id, 0);
    assert_eq!(stream.create(with_id(0)).await.watch_id, 2);
    let refused = stream.create(with_id(1)).await;
    assert!(refused.canceled && refused.created);
    assert_eq!(refused.watch_id, -1);
    assert_eq!(
        refused.cancel_reason,
        "mvcc: duplicate watch ID provided on the WatchStream"
    );
    let inverted = WatchCreateRequest {
        key: bytes("b"),
        range_end: bytes("a"),
        ..WatchCreateRequest::default()
    };
    let refused = stream.create(inverted).await;
    assert_eq!(refused.cancel_reason, "mvcc: watcher range is empty");
    stream.cancel(1).await;
    stream.cancel(2).await;
    fixture.put("a", "1").await;
    let answer = stream.next().await;
    assert_eq!(
        (answer.watch_id, show(&answer)),
        (0, vec![String::from("put a=1@2")])
    );
    assert_eq!(stream.create(with_id(1)).await.watch_id, 1);
}

/// 18089, 19179: around a compacted tombstone.
#[tokio::test]
async fn a_watch_from_the_compacted_revision_sees_its_events() {
    for restart in [false, true] {
        let mut fixture = Fixture::new().await;
        fixture.put("a", "1").await; // 2
        fixture.put("b", "1").await; // 3
        fixture.delete("a").await; // 4
        fixture.put("c", "1").await; // 5
        for (compacted, events) in [
            (3, vec!["put b=1@3", "delete a@4", "put c=1@5"]),
            (4, vec!["delete a@4", "put c=1@5"]),
            (5, vec!["put c=1@5"]),
        ] {
            fixture.compact(compacted).await;
            if restart {
                fixture = fixture.restart().await;
            }
            let mut stream = WatchStream::open(&fixture).await;
            stream.create(all(compacted)).await;
            assert_eq!(stream.events(events.len()).await, events);
            let created = stream.create(all(compacted - 1)).await;
            assert!(!created.canceled);
            let canceled = stream.wait_for(|response| response.canceled).await;
            assert_eq!(canceled.watch_id, created.watch_id);
            assert_eq!(canceled.compact_revision, compacted);
        }
    }
}

/// 20221: nothing is said on a watch before its first revision.
#[tokio::test]
async fn a_future_revision_is_waited_for_in_silence() {
    let fixture = Fixture::new().await;
    let mut stream = WatchStream::open(&fixture).await;
    stream.create(all(5)).await;
    stream.request_progress().await;
    for value in ["2", "3", "4"] {
        fixture.put("a", value).await;
        stream.request_progress().await;
    }
    fixture.put("a", "5").await;
    assert_eq!(show(&stream.next().await), ["put a=5@5"]);
    stream.request_progress().await;
    let progress = stream.next().await;
    assert_eq!((progress.watch_id, revision(&progress)), (-1, 5));
}

/// 15220: progress never runs ahead of events.
#[tokio::test]
async fn progress_follows_events() {
    let fixture = Fixture::new().await;
    let mut stream = WatchStream::open(&fixture).await;
    stream.create(all(1)).await;
    let writer = async {
        for n in 0..200 {
            fixture.put(&format!("k{}", n % 7), &n.to_string()).await;
        }
    };
    let requests = stream.requests.clone();
    let asker = async {
        let mut random = ChaCha8Rng::seed_from_u64(3);
        for _ in 0..300 {
            let union = RequestUnion::ProgressRequest(WatchProgressRequest {});
            let request = WatchRequest {
                request_union: Some(union),
            };
            requests.send(request).await.expect("sent");
            for _ in 0..random.random_range(0..20) {
                tokio::task::yield_now().await;
            }
        }
    };
    let reader = async {
        let (mut seen, mut told) = (1, 0);
        while seen < 201 {
            let response = stream.next().await;
            if response.events.is_empty() {
                assert_eq!(response.watch_id, -1);
                told = revision(&response);
                assert!(told <= seen, "progress {told}, but seen only {seen}");
            }
            for event in &response.events {
                let kv = event.kv.as_ref().expect("a key");
                assert_eq!(
                    kv.mod_revision,
                    seen + 1,
                    "in order, none left out, none twice"
                );
                assert!(kv.mod_revision > told);
                seen = kv.mod_revision;
            }
        }
    };
    tokio::join!(writer, asker, reader);
}

#[tokio::test]
async fn progress_tells_what_was_acknowledged_before_it_was_asked_for() {
    let fixture = Fixture::new().await;
    let mut stream = WatchStream::open(&fixture).await;
    stream.create(one("never written", 0)).await;
    for _ in 0..20 {
        let acknowledged = fixture.put("a", "1").await;
        stream.request_progress().await;
        let progress = stream.next().await;
        assert!(revision(&progress) >= acknowledged);
    }
}

#[tokio::test]
async fn idle_watches_are_told_of_progress() {
    let config = EtcdConfig::default();
    let interval = config.watch_progress_notify_interval;
    let fixture = Fixture::with(config, None).await;
    let mut stream = WatchStream::open(&fixture).await;
    let request = WatchCreateRequest {
        progress_notify: true,
        ..one("idle", 0)
    };
    let id = stream.create(request).await.watch_id;
    stream.create(one("idle", 0)).await;
    fixture.put("other", "1").await;
    for _ in 0..2 {
        fixture.clock.advance(interval).await;
        let progress = stream.next().await;
        assert_eq!((progress.watch_id, revision(&progress)), (id, 2));
        assert!(progress.events.is_empty());
    }
}

/// 17529: many watchers on one stream, a reader that sleeps, large values.
#[tokio::test]
async fn a_slow_stream_gets_everything_and_delays_nobody() {
    const WATCHERS: usize = 20;
    const PUTS: i64 = 300;
    let fixture = Fixture::new().await;
    let mut slow = WatchStream::open(&fixture).await;
    for _ in 0..WATCHERS {
        slow.create(all(0)).await;
    }
    let mut quick = WatchStream::open(&fixture).await;
    quick.create(all(0)).await;
    let value = "x".repeat(50_000);
    for _ in 0..PUTS {
        fixture.put("a", &value).await;
        assert_eq!(quick.next().await.events.len(), 1);
    }
    let mut seen = [1; WATCHERS];
    while seen.iter().any(|seen| *seen <= PUTS) {
        let response = slow.next().await;
        let watcher = usize::try_from(response.watch_id).expect("an id");
        for event in &response.events {
            let kv = event.kv.as_ref().expect("a key");
            assert_eq!(kv.mod_revision, seen[watcher] + 1);
            assert_eq!(kv.value.len(), value.len());
            seen[watcher] += 1;
        }
    }
}

#[tokio::test]
async fn a_removed_keyspace_ends_its_watches() {
    let fixture = Fixture::new().await;
    fixture.put("a", "1").await;
    let mut stream = WatchStream::open(&fixture).await;
    stream.create(all(0)).await;
    fixture
        .server
        .remove_keyspace("default")
        .await
        .expect("removed");
    let status = stream.answers.message().await.expect_err("ended");
    assert_eq!(status.message(), "etcdserver: server stopped");
    assert_eq!(fixture.dump().await, [""; 0]);
    assert_eq!(fixture.put("b", "1").await, 2);
}
