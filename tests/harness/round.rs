//! One round: a server, its clients and what happens to it, from the first request to the verdict.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::check::{self, Violation};
use crate::client::{Client, Link};
use crate::history::{Answer, History, Recorder, Request};
use crate::instance::{Group, Kind};
use crate::nemesis;
use crate::plant::{Bug, Proxy};
use crate::request::{Keys, KvRequest, Op, OpAnswer};
use crate::traffic::{self, Profile, Shared};
use crate::watcher::{self, Scribe, Watcher};

/// Longer than the longest lease lives after its last keep-alive and a restart.
const LEASES_END: Duration = Duration::from_secs(30);
/// How long the last events may take to arrive.
const LAST_EVENTS: Duration = Duration::from_secs(30);
/// Revisions that are kept behind the scribe when the store is compacted, at most.
const KEPT: i64 = 400;

#[derive(Clone, Debug)]
pub struct Round {
    pub kind: Kind,
    /// On one store.
    pub servers: usize,
    pub seed: u64,
    pub length: Duration,
    pub bug: Option<Bug>,
}

/// What came of a round.
pub struct Verdict {
    pub history: History,
    pub violations: Vec<Violation>,
}

impl Round {
    pub async fn run(&self) -> Verdict {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        let profile = Profile::draw(&mut random);
        let recorder = Recorder::new();
        recorder.incident(format!("{self:?} {profile:?}"));
        let mut group = Group::new(self.kind.clone(), self.servers).await;
        // Each client stays with one of the servers.
        let links: Vec<Link> = group
            .instances
            .iter()
            .map(|instance| Link::new(instance.endpoint()))
            .collect();
        let link = |number: usize| links[number % links.len()].clone();
        let proxy = Arc::new(Proxy::new(self.bug, self.seed));
        let shared = Arc::new(Shared::new(profile.clone()));
        let stop = CancellationToken::new();
        let (finish, finished) = watch::channel(None);
        let (seen, mut scribed) = watch::channel(1);
        for instance in &mut group.instances {
            instance.start().await;
        }

        let mut watchers = JoinSet::new();
        let scribe = Scribe {
            link: link(0),
            recorder: recorder.clone(),
            seen,
            finish: finished.clone(),
        };
        watchers.spawn(scribe.run());
        for number in 0..random.random_range(2..6) {
            let watcher = Watcher {
                number,
                link: link(number),
                recorder: recorder.clone(),
                proxy: Arc::clone(&proxy),
                finish: finished.clone(),
                keys: profile.keys,
                random: watcher::random(self.seed, number),
            };
            watchers.spawn(watcher.run());
        }
        let client = |number: usize| {
            let proxy = Arc::clone(&proxy);
            Client::new(number, link(number), recorder.clone(), proxy)
        };
        let mut clients = JoinSet::new();
        for number in 0..profile.clients {
            let seed = random.random();
            let run = traffic::run(client(number), seed, Arc::clone(&shared), stop.clone());
            clients.spawn(run);
        }
        clients.spawn(compact(
            client(profile.clients),
            random.random(),
            scribed.clone(),
            Arc::clone(&shared),
            stop.clone(),
        ));

        let until = Instant::now() + self.length;
        let lose_writes = self.bug == Some(Bug::LostWrite);
        nemesis::run(&mut group, &recorder, random.random(), until, lose_writes).await;
        stop.cancel();
        while let Some(ended) = clients.join_next().await {
            ended.expect("clients do not panic");
        }
        // From here on nothing disturbs the server.
        let mut last = client(profile.clients + 1);
        let ended = tokio::time::timeout(LEASES_END, until_no_lease(&mut last, &mut scribed));
        let revision = match ended.await {
            Ok(revision) => revision,
            Err(_) => {
                recorder.missed("keys of leases that had run out were still there");
                *scribed.borrow()
            }
        };
        finish.send_replace(Some(revision));
        let told = async { while watchers.join_next().await.is_some() {} };
        if tokio::time::timeout(LAST_EVENTS, told).await.is_err() {
            recorder.missed(format!(
                "somebody was not told of everything up to {revision}"
            ));
            watchers.shutdown().await;
        }
        group.kill().await;
        let history = recorder.take();
        let violations = check::check(&history);
        Verdict {
            history,
            violations,
        }
    }
}

/// Compacts now and then, up to at most what the scribe has been told of.
async fn compact(
    mut client: Client,
    seed: u64,
    scribed: watch::Receiver<i64>,
    shared: Arc<Shared>,
    stop: CancellationToken,
) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let longest = Duration::from_millis(random.random_range(100..2_000));
    while !stop.is_cancelled() {
        tokio::time::sleep(longest.mul_f64(random.random())).await;
        let revision = *scribed.borrow() - random.random_range(0..KEPT);
        if revision <= *shared.oldest.lock() {
            continue;
        }
        if random.random_ratio(1, 4) {
            client.defragment().await;
        }
        let answer = client.send(Request::Compact { revision }).await;
        if answer.is_some() {
            *shared.oldest.lock() = revision;
        }
    }
}

/// Waits until no key hangs on a lease, and returns the store's revision then.
async fn until_no_lease(client: &mut Client, scribed: &mut watch::Receiver<i64>) -> i64 {
    loop {
        let everything = KvRequest::single(Op::Range {
            keys: Keys::all(),
            revision: 0,
            limit: 0,
        });
        let Some(Answer::Kv(answer)) = client.send(Request::Kv(everything)).await else {
            continue;
        };
        let [OpAnswer::Range { kvs, .. }] = answer.answers.as_slice() else {
            continue;
        };
        // The end of a lease is an event like any other.
        let told = scribed.wait_for(|seen| *seen >= answer.revision).await;
        drop(told);
        if kvs.iter().all(|kv| kv.lease == 0) {
            return answer.revision;
        }
        // An error means that the scribe is gone: the caller's patience ends it.
        let _ = scribed.wait_for(|seen| *seen > answer.revision).await;
    }
}

impl Verdict {
    /// Writes the history down and fails, with what is needed to see it again, unless all is well.
    #[track_caller]
    pub fn must_be_right(&self, round: &Round, test: &str) {
        if self.violations.is_empty() {
            return;
        }
        let path = self.write(round, test);
        let told: Vec<String> = self.violations.iter().map(Violation::to_string).collect();
        panic!(
            "seed {}: {} violations; the history is in {}\nreplay: CKE_HARNESS_SEED={} CKE_HARNESS_SECONDS={} \
             cargo test --test harness {test}\n{}",
            round.seed,
            told.len(),
            path.display(),
            round.seed,
            round.length.as_secs(),
            told.join("\n")
        );
    }

    fn write(&self, round: &Round, test: &str) -> PathBuf {
        let name = format!("harness-{test}-{}.history", round.seed);
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        let violations: Vec<String> = self.violations.iter().map(Violation::to_string).collect();
        self.history
            .write(&path, &violations)
            .expect("the history can be written");
        path
    }
}
