//! What the clients do: drawn from the seed, on few keys, so that they get in each other's way.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use rand::seq::IndexedRandom as _;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio_util::sync::CancellationToken;

use crate::client::Client;
use crate::history::{Answer, Request};
use crate::request::{Keys, KvAnswer, KvRequest, Op, OpAnswer};

/// The shape of one round.
#[derive(Clone, Debug)]
pub struct Profile {
    pub clients: usize,
    pub keys: usize,
    /// Largest pause of a client between two requests.
    pub pause: Duration,
    /// One in so many values is large: 0 for none.
    pub large_values: u32,
}

impl Profile {
    pub fn draw(random: &mut ChaCha8Rng) -> Profile {
        Profile {
            clients: random.random_range(4..14),
            keys: random.random_range(3..12),
            pause: Duration::from_millis(random.random_range(0..12)),
            large_values: [0, 300, 60][random.random_range(0..3)],
        }
    }
}

/// Leases that may still be alive; at most so many are remembered.
const LEASES: usize = 16;

/// What the clients of a round share.
pub struct Shared {
    pub profile: Profile,
    /// A few granted leases.
    leases: Mutex<Vec<i64>>,
    /// Past revisions from this one on may be read; it follows behind compaction.
    pub oldest: Mutex<i64>,
}

impl Shared {
    pub fn new(profile: Profile) -> Shared {
        Shared {
            profile,
            leases: Mutex::default(),
            oldest: Mutex::new(1),
        }
    }
}

struct Source {
    random: ChaCha8Rng,
    client: usize,
    shared: Arc<Shared>,
    /// Makes values and lease ids that nobody else makes.
    count: i64,
    /// The mod revision that each key was last seen with; 0 for absent.
    last_seen: HashMap<Bytes, i64>,
    newest: i64,
}

pub fn key(number: usize) -> Bytes {
    Bytes::from(format!("k{number:02}"))
}

impl Source {
    fn key(&mut self) -> Bytes {
        key(self.random.random_range(0..self.shared.profile.keys))
    }

    fn range(&mut self) -> Keys {
        if self.random.random_ratio(1, 3) {
            return Keys::all();
        }
        let (a, b) = (self.key(), self.key());
        let (start, end) = if a <= b { (a, b) } else { (b, a) };
        Keys { start, end }
    }

    fn value(&mut self) -> Bytes {
        self.count += 1;
        let mut value = format!("{}.{}.", self.client, self.count).into_bytes();
        let large = self.shared.profile.large_values;
        if large > 0 && self.random.random_ratio(1, large) {
            // More than one record of the store takes.
            value.resize(self.random.random_range(1_000..250_000), b'x');
        }
        Bytes::from(value)
    }

    fn lease(&mut self) -> Option<i64> {
        self.shared.leases.lock().choose(&mut self.random).copied()
    }

    fn put(&mut self) -> Op {
        let lease = if self.random.random_ratio(1, 5) {
            self.lease().unwrap_or(0)
        } else {
            0
        };
        Op::Put {
            key: self.key(),
            value: self.value(),
            lease,
        }
    }

    fn read(&mut self, keys: Keys) -> Op {
        Op::Range {
            keys,
            revision: 0,
            limit: 0,
        }
    }

    fn past_read(&mut self) -> Op {
        let oldest = *self.shared.oldest.lock();
        // Now and then just below what has been compacted.
        let from = (oldest - 3).max(1);
        Op::Range {
            keys: self.range(),
            revision: self.random.random_range(from..=self.newest.max(from)),
            limit: self.random.random_range(0..4),
        }
    }

    fn swap(&mut self) -> KvRequest {
        let key = self.key();
        let expected = self.last_seen.get(&key).copied().unwrap_or(0);
        let success = if self.random.random_ratio(1, 4) {
            Op::Delete {
                keys: Keys::one(&key),
            }
        } else {
            Op::Put {
                key: key.clone(),
                value: self.value(),
                lease: 0,
            }
        };
        let failure = self.read(Keys::one(&key));
        KvRequest {
            compares: vec![(key, expected)],
            success: vec![success],
            failure: vec![failure],
            serializable: false,
        }
    }

    /// Several keys at once, read before and after.
    fn transaction(&mut self) -> KvRequest {
        let mut keys: Vec<Bytes> = (0..3).map(|_| self.key()).collect();
        keys.sort_unstable();
        keys.dedup();
        let mut success = vec![self.read(Keys::all())];
        for key in keys {
            let op = if self.random.random_ratio(1, 3) {
                Op::Delete {
                    keys: Keys::one(&key),
                }
            } else {
                Op::Put {
                    value: self.value(),
                    key,
                    lease: 0,
                }
            };
            success.push(op);
        }
        success.push(self.read(Keys::all()));
        if self.random.random_ratio(1, 6) {
            let past = self.past_read();
            success.push(past);
        }
        KvRequest {
            success,
            ..KvRequest::default()
        }
    }

    fn request(&mut self) -> Request {
        let single = |op| Request::Kv(KvRequest::single(op));
        match self.random.random_range(0..100) {
            0..24 => single(self.put()),
            24..40 => {
                let keys = Keys::one(&self.key());
                single(self.read(keys))
            }
            40..48 => {
                let keys = self.range();
                single(self.read(keys))
            }
            48..56 => {
                let keys = self.range();
                let mut request = KvRequest::single(self.read(keys));
                request.serializable = true;
                Request::Kv(request)
            }
            56..61 => {
                let mut request = KvRequest::single(self.past_read());
                request.serializable = self.random.random();
                Request::Kv(request)
            }
            61..67 => single(Op::Delete {
                keys: Keys::one(&self.key()),
            }),
            67..69 => single(Op::Delete { keys: self.range() }),
            69..84 => Request::Kv(self.swap()),
            84..92 => Request::Kv(self.transaction()),
            92..95 => {
                self.count += 1;
                let client = i64::try_from(self.client).expect("few");
                Request::Grant {
                    id: ((client + 1) << 32) | self.count,
                    ttl: self.random.random_range(1..4),
                }
            }
            95..98 => match self.lease() {
                Some(id) => Request::KeepAlive { id },
                None => single(self.put()),
            },
            _ => match self.lease() {
                Some(id) => Request::Revoke { id },
                None => single(self.put()),
            },
        }
    }

    fn learn(&mut self, request: &Request, answer: Option<&Answer>) {
        match (request, answer) {
            (Request::Kv(request), Some(Answer::Kv(answer))) => self.learn_keys(request, answer),
            (Request::Grant { id, .. }, Some(Answer::Granted { .. })) => {
                let mut leases = self.shared.leases.lock();
                if leases.len() == LEASES {
                    leases.remove(0);
                }
                leases.push(*id);
            }
            // Not at once, so that some still try to use it.
            (Request::KeepAlive { id }, Some(Answer::KeptAlive { ttl: 0 })) => {
                self.shared.leases.lock().retain(|lease| lease != id);
            }
            _ => {}
        }
    }

    fn learn_keys(&mut self, request: &KvRequest, answer: &KvAnswer) {
        self.newest = self.newest.max(answer.revision);
        for (op, result) in request.branch(answer.succeeded).iter().zip(&answer.answers) {
            match (op, result) {
                (Op::Put { key, .. }, _) => {
                    self.last_seen.insert(key.clone(), answer.revision);
                }
                (
                    Op::Range {
                        keys, revision: 0, ..
                    },
                    OpAnswer::Range { kvs, .. },
                ) => {
                    if keys.end.is_empty() && kvs.is_empty() {
                        self.last_seen.insert(keys.start.clone(), 0);
                    }
                    for kv in kvs {
                        self.last_seen.insert(kv.key.clone(), kv.mod_revision);
                    }
                }
                (Op::Delete { keys }, _) => {
                    self.last_seen.retain(|key, _| !keys.contains(key));
                }
                _ => {}
            }
        }
    }
}

/// Sends requests until it is told to stop.
pub async fn run(mut client: Client, seed: u64, shared: Arc<Shared>, stop: CancellationToken) {
    let pause = shared.profile.pause;
    let mut source = Source {
        random: ChaCha8Rng::seed_from_u64(seed),
        client: client.number,
        shared,
        count: 0,
        last_seen: HashMap::new(),
        newest: 1,
    };
    while !stop.is_cancelled() {
        let request = source.request();
        let answer = tokio::select! {
            // A request that has been sent is always seen to its end: at the latest it times out.
            answer = client.send(request.clone()) => answer,
        };
        source.learn(&request, answer.as_ref());
        let share = source.random.random::<f64>();
        tokio::time::sleep(pause.mul_f64(share)).await;
    }
}
