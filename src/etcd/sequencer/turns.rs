//! Who writes next, where several servers want to.
//!
//! Of two servers that commit at a time one is overtaken and has to catch up first, and whoever has just
//! committed starts earlier: left alone, it would win for ever. So a server that was overtaken announces in the store
//! that it wants to write, and takes the announcement back with its next commit. Whoever commits looks for
//! announcements meanwhile, and if there are any, lets another one write before it goes on, for [`TURN`] at most. What it
//! is asked for in the meantime makes its next batch larger, so turns cost latency, not throughput.

use std::sync::Arc;
use std::time::Duration;

use super::Sequencer;
use crate::etcd::store::{Intents, Store, StoreError};

/// How long a server waits for others that want to write. One that lets it pass is gone or stuck, and its announcement
/// is taken back.
const TURN: Duration = Duration::from_millis(50);

#[derive(Default)]
pub(super) struct Turns {
    /// We were overtaken and have said so.
    announced: bool,
    /// Others that wanted to write at our last commit.
    others: Intents,
}

impl Turns {
    pub(super) fn announced(&self) -> bool {
        self.announced
    }

    /// Sees a commit through, and looks for others that want to write meanwhile.
    pub(super) async fn watch<T>(
        &mut self,
        store: &Store,
        commit: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        if !store.is_shared() {
            return commit.await;
        }
        let (outcome, others) = tokio::join!(commit, store.intents());
        // To be fair is not worth a failure.
        self.others = others.unwrap_or_default();
        outcome
    }

    /// Our commit took the announcement back.
    pub(super) fn committed(&mut self) {
        self.announced = false;
    }
}

impl Sequencer {
    /// We were overtaken: takes over what others have written, and says that we want to write, unless we have.
    pub(super) async fn overtaken(&mut self) -> Result<(), StoreError> {
        let store = self.keyspace.store.clone();
        let announced = std::mem::replace(&mut self.turns.announced, store.is_shared());
        let announce = async {
            if store.is_shared() && !announced {
                store.announce().await?;
            }
            Ok(())
        };
        let (caught_up, announced) = tokio::join!(self.catch_up(), announce);
        caught_up.and(announced)
    }

    /// After a commit: lets another server write that wants to.
    pub(super) async fn give_way(&mut self) {
        let others = std::mem::take(&mut self.turns.others);
        let Some(follow) = self.keyspace.follow.clone() else {
            return;
        };
        if others.is_empty() {
            return;
        }
        let closed = self.keyspace.closed.clone();
        let turn = async {
            let before = self.head.batch;
            loop {
                follow.behind.notified().await;
                self.catch_up().await?;
                if self.head.batch != before {
                    return Ok::<_, StoreError>(());
                }
            }
        };
        let passed = tokio::select! {
            () = closed.cancelled() => return,
            passed = tokio::time::timeout(TURN, turn) => passed,
        };
        if passed.is_err() {
            let store = self.keyspace.store.clone();
            let others = Arc::new(others);
            tokio::spawn(async move {
                for other in others.iter() {
                    if let Err(error) = store.forget_intent(other).await {
                        tracing::debug!(%error, "cannot take an announcement back");
                    }
                }
            });
        }
    }
}
