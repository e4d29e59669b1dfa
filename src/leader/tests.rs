use fdb::{Database, EmbeddedOptions};

use super::*;
use crate::clock::TimeScale;
use crate::etcd::client::Keyspaces;
use crate::etcd::{EtcdConfig, Server};

struct Fixture {
    _directory: tempfile::TempDir,
    server: Server,
    clock: Clock,
}

impl Fixture {
    async fn new() -> Fixture {
        let directory = tempfile::tempdir().expect("a directory");
        let options = EmbeddedOptions {
            fsync: false,
            ..EmbeddedOptions::default()
        };
        let database = Database::open_embedded(directory.path(), options).await;
        let clock = Clock::new(TimeScale::Manual, Timestamp(1_000_000));
        let config = EtcdConfig::default();
        let server = Server::open(database.expect("a store"), clock.clone(), config).await;
        Fixture {
            _directory: directory,
            server: server.expect("a server"),
            clock,
        }
    }

    fn election(&self) -> Election {
        Election::new(self.server.client("k"), self.clock.clone(), "/leader")
    }

    async fn advance(&self, millis: u64) {
        self.clock.advance(Duration::from_millis(millis)).await;
    }
}

async fn win(election: &Election, value: &'static str) -> Term {
    let attempt = election.try_win(Bytes::from(value)).await;
    let term = match attempt.expect("an answer") {
        Attempt::Won(term) => term,
        Attempt::Lost(leader) => panic!("{:?} leads", leader.value),
    };
    // The task that renews arms its timer before the clock may move.
    tokio::task::yield_now().await;
    term
}

#[tokio::test]
async fn one_leads_as_long_as_it_renews_and_the_next_follows_its_death() {
    let fixture = Fixture::new().await;
    let first = win(&fixture.election(), "first").await;
    match fixture.election().try_win(Bytes::from("second")).await {
        Ok(Attempt::Lost(leader)) => assert_eq!(leader.value, "first"),
        _ => panic!("there are two"),
    }
    let campaigning = fixture.election();
    let second = tokio::spawn(async move { campaigning.campaign(|| Bytes::from("second")).await });
    fixture.advance(60_000).await;
    assert!(first.holds() && !second.is_finished());

    first.die();
    let mut waited = 0;
    while !second.is_finished() {
        assert!(waited < 10_000, "nobody took over");
        fixture.advance(100).await;
        waited += 100;
        // The second one's task ends some polls after it has the key.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(!(first.holds() && second.is_finished()), "two lead");
    }
    assert!(waited >= 4_000, "after {waited} ms");
    assert!(second.await.expect("a term").holds());
}

#[tokio::test]
async fn who_resigns_is_followed_at_once() {
    let fixture = Fixture::new().await;
    let first = win(&fixture.election(), "first").await;
    let campaigning = fixture.election();
    let second = tokio::spawn(async move { campaigning.campaign(|| Bytes::from("second")).await });
    fixture.advance(1_500).await;
    first.resign().await;
    first.over().await;
    assert!(!first.holds());
    // The clock stands still: only the watch can tell, or, if it was not yet there, one more look.
    fixture.advance(1_000).await;
    assert!(second.await.expect("a term").holds());
}

#[tokio::test]
async fn who_cannot_reach_the_store_stops_before_its_lease_ends() {
    let fixture = Fixture::new().await;
    let term = win(&fixture.election(), "cut off").await;
    fixture.advance(2_000).await;
    fixture.server.close().await;
    fixture.advance(3_000).await;
    assert!(term.holds());
    // Renewed last at 2 s.
    fixture.advance(1_500).await;
    assert!(!term.holds());
    term.over().await;
}

#[tokio::test]
async fn deleting_the_key_ends_the_term() {
    let fixture = Fixture::new().await;
    let term = win(&fixture.election(), "first").await;
    let client = fixture.server.client("k");
    client.delete_prefix("/leader").await.expect("an answer");
    fixture.advance(1_000).await;
    term.over().await;
    win(&fixture.election(), "second").await;
}
