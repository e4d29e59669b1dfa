//! Bugs planted between the server and the recorder, to see that the checks find them.
//!
//! The server is the real one and knows nothing of this: a lost write is an old disk put under it while it is dead
//! (what a disk does that lies about fsync); the other two are a proxy's doing, which alters answers on their way.

use std::collections::HashMap;

use bytes::Bytes;
use etcd_proto::etcdserverpb::WatchResponse;
use parking_lot::Mutex;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::request::{KvAnswer, KvRequest, Op};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A crash takes acknowledged writes with it.
    LostWrite,
    /// A watch gets an answer twice.
    DuplicatedEvent,
    /// A linearizable read is answered from the past.
    StaleRead,
}

/// The proxy that all clients of a round share.
pub struct Proxy {
    bug: Option<Bug>,
    random: Mutex<ChaCha8Rng>,
    /// Of each key, an answer that some read once got.
    old: Mutex<HashMap<Bytes, KvAnswer>>,
}

/// One in so many answers is altered.
const RATE: u32 = 100;

impl Proxy {
    pub fn new(bug: Option<Bug>, seed: u64) -> Proxy {
        Proxy {
            bug,
            random: Mutex::new(ChaCha8Rng::seed_from_u64(seed)),
            old: Mutex::default(),
        }
    }

    fn happens(&self, bug: Bug) -> bool {
        self.bug == Some(bug) && self.random.lock().random_ratio(1, RATE)
    }

    pub fn answer(&self, request: &KvRequest, answer: KvAnswer) -> KvAnswer {
        if self.bug != Some(Bug::StaleRead) || request.serializable {
            return answer;
        }
        let Some(Op::Range {
            keys, revision: 0, ..
        }) = request.as_single()
        else {
            return answer;
        };
        if !keys.end.is_empty() {
            return answer;
        }
        let altered = self.happens(Bug::StaleRead);
        let mut old = self.old.lock();
        let kept = old
            .entry(keys.start.clone())
            .or_insert_with(|| answer.clone());
        if altered {
            std::mem::replace(kept, answer)
        } else {
            answer
        }
    }

    /// What arrives of one answer of a watch stream.
    pub fn watch(&self, response: WatchResponse) -> Vec<WatchResponse> {
        if !response.events.is_empty() && self.happens(Bug::DuplicatedEvent) {
            return vec![response.clone(), response];
        }
        vec![response]
    }
}
