//! A randomized check of strict serializability, in the manner of FoundationDB's binding tester.
//!
//! Several transactions do random things at the same time; everything that they did and saw is written down. The
//! history is checked afterwards against a plain map:
//!
//! - what a transaction read is what the map held at its read version, with its own writes on top, whether or not
//!   it then committed;
//! - replayed in the order of their versionstamps, the transactions that committed read the same again: so nothing
//!   that they depended on changed between their read version and their commit;
//! - without faults, a transaction that failed with 1020 had a reason;
//! - an unknown result (1021) is resolved by looking: every attempt writes a key of its own with its versionstamp;
//! - the store ends as the map does.
//!
//! `FDB_MODEL_SEEDS` sets how many histories are tried; a failure names its seed.

use crate::engine::{Engine, embedded};
use bytes::Bytes;
use fdb::{
    Committed, Database, Error, Faults, KeySelector, MutationType, RangeOption, RangeResult,
    Transaction, TransactionOption,
};
use rand::{Rng, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// All keys that are read; ranges begin and end at these.
const KEYS: [&str; 10] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
/// Each attempt's own key is under this one, behind all ranges.
const MARKER: &str = "marker/";

type Map = BTreeMap<Bytes, Bytes>;

#[derive(Debug, Clone)]
enum Operation {
    Get {
        key: Bytes,
        snapshot: bool,
    },
    GetKey {
        selector: KeySelector,
        snapshot: bool,
    },
    GetRange(RangeOption),
    Set {
        key: Bytes,
        value: Bytes,
    },
    Clear {
        key: Bytes,
    },
    ClearRange {
        begin: Bytes,
        end: Bytes,
    },
    Atomic {
        key: Bytes,
        param: Bytes,
        op: MutationType,
    },
    ReadConflict {
        begin: Bytes,
        end: Bytes,
    },
    WriteConflict {
        begin: Bytes,
        end: Bytes,
    },
}

#[derive(Debug, Clone, PartialEq)]
enum Seen {
    Nothing,
    Value(Result<Option<Bytes>, Error>),
    Key(Result<Bytes, Error>),
    Pairs(Result<RangeResult, Error>),
}

/// One attempt of a transaction, from its first operation to its end.
#[derive(Debug)]
struct Attempt {
    id: u64,
    /// None if it could not be taken.
    read_version: Option<i64>,
    operations: Vec<(Operation, Seen)>,
    /// None if it was dropped without committing.
    result: Option<Result<Committed, Error>>,
    /// No later commit can have made it fail.
    ended_at: i64,
}

fn random_key(random: &mut ChaCha8Rng) -> Bytes {
    Bytes::from_static(KEYS.choose(random).unwrap().as_bytes())
}

/// Begin and end, in order, the end possibly behind the last key.
fn random_range(random: &mut ChaCha8Rng) -> (Bytes, Bytes) {
    let begin = random.random_range(0..KEYS.len());
    let end = random.random_range(begin..=KEYS.len());
    (
        Bytes::from_static(KEYS[begin].as_bytes()),
        Bytes::from_static(KEYS.get(end).unwrap_or(&"k").as_bytes()),
    )
}

fn random_operation(random: &mut ChaCha8Rng, selectors: bool) -> Operation {
    let key = random_key(random);
    let snapshot = random.random_bool(0.2);
    let value = Bytes::from(vec![random.random_range(0..4); random.random_range(0..3)]);
    match random.random_range(0..100) {
        0..20 => Operation::Get { key, snapshot },
        20..26 if selectors => Operation::GetKey {
            selector: KeySelector {
                key,
                or_equal: random.random(),
                offset: random.random_range(-2..4),
            },
            snapshot,
        },
        20..45 => {
            let (begin, end) = random_range(random);
            let mut range = RangeOption::new(begin, end);
            range.limit = random.random_bool(0.6).then(|| random.random_range(0..4));
            range.target_bytes = if random.random_bool(0.2) { 3 } else { 0 };
            range.reverse = random.random();
            range.snapshot = snapshot;
            Operation::GetRange(range)
        }
        45..65 => Operation::Set { key, value },
        65..70 => Operation::Clear { key },
        70..75 => {
            let (begin, end) = random_range(random);
            Operation::ClearRange { begin, end }
        }
        75..92 => {
            use MutationType as M;
            let ops = [
                M::Add,
                M::BitXor,
                M::Max,
                M::Min,
                M::ByteMin,
                M::ByteMax,
                M::AppendIfFits,
                M::CompareAndClear,
            ];
            let op = *ops.choose(random).unwrap();
            Operation::Atomic {
                key,
                param: value,
                op,
            }
        }
        92..94 => Operation::Atomic {
            key,
            param: Bytes::from_static(b"..........\0\0\0\0"),
            op: MutationType::SetVersionstampedValue,
        },
        94..97 => {
            let (begin, end) = random_range(random);
            Operation::ReadConflict { begin, end }
        }
        _ => {
            let (begin, end) = random_range(random);
            Operation::WriteConflict { begin, end }
        }
    }
}

async fn run(transaction: &Transaction, operation: &Operation) -> Seen {
    match operation.clone() {
        Operation::Get { key, snapshot } => {
            return Seen::Value(transaction.get(&key, snapshot).await);
        }
        Operation::GetKey { selector, snapshot } => {
            return Seen::Key(transaction.get_key(&selector, snapshot).await);
        }
        Operation::GetRange(range) => return Seen::Pairs(transaction.get_range(range).await),
        Operation::Set { key, value } => transaction.set(key, value),
        Operation::Clear { key } => transaction.clear(key),
        Operation::ClearRange { begin, end } => transaction.clear_range(begin, end),
        Operation::Atomic { key, param, op } => transaction.atomic_op(key, param, op),
        Operation::ReadConflict { begin, end } => transaction.add_read_conflict_range(begin, end),
        Operation::WriteConflict { begin, end } => transaction.add_write_conflict_range(begin, end),
    }
    Seen::Nothing
}

/// One client: `attempts` transactions, one after the other.
///
/// FoundationDB's library counts a key that the transaction's own `CompareAndClear` removed when it resolves a selector, so
/// there none follows one.
async fn client(
    database: Database,
    on_foundationdb: bool,
    seed: u64,
    first_id: u64,
    attempts: u64,
) -> Vec<Attempt> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut history = Vec::new();
    for id in first_id..first_id + attempts {
        let transaction = database.create_transaction();
        let read_version = transaction.get_read_version().await.ok();
        let mut operations = Vec::new();
        let mut selectors = true;
        for _ in 0..random.random_range(1..9) {
            let operation = random_operation(&mut random, selectors);
            if let Operation::Atomic {
                op: MutationType::CompareAndClear,
                ..
            } = operation
            {
                selectors &= !on_foundationdb;
            }
            let seen = run(&transaction, &operation).await;
            operations.push((operation, seen));
            if random.random_bool(0.3) {
                tokio::task::yield_now().await;
            }
        }
        let result = if random.random_bool(0.1) {
            None
        } else {
            // Nobody shall conflict with it: selectors can run into the markers.
            transaction.set_option(TransactionOption::NextWriteNoWriteConflictRange);
            transaction.atomic_op(
                format!("{MARKER}{id}"),
                &b"..........\0\0\0\0"[..],
                MutationType::SetVersionstampedValue,
            );
            Some(transaction.commit().await.map_err(|failed| failed.error))
        };
        let ended_at = loop {
            if let Ok(version) = database.create_transaction().get_read_version().await {
                break version;
            }
        };
        history.push(Attempt {
            id,
            read_version,
            operations,
            result,
            ended_at,
        });
    }
    history
}

/// The model of one transaction over the map that it starts from.
struct Replay {
    map: Map,
    /// Keys whose value no longer depends on the store.
    known: BTreeSet<Bytes>,
    unreadable: BTreeSet<Bytes>,
    /// What a conflict is decided on.
    reads: BTreeSet<Bytes>,
    writes: BTreeSet<Bytes>,
    stamp: [u8; 10],
}

/// The keys of a range, and the gap behind each as a key of its own: a range that is cleared or read conflicts over
/// the gaps, too.
fn keys_of(begin: &Bytes, end: &Bytes) -> Vec<Bytes> {
    let keys = KEYS
        .iter()
        .flat_map(|key| [(*key).to_owned(), format!("{key}~")])
        .map(Bytes::from);
    keys.filter(|key| begin <= key && key < end).collect()
}

impl Replay {
    fn new(map: &Map, stamp: [u8; 10]) -> Self {
        Replay {
            map: map.clone(),
            known: BTreeSet::new(),
            unreadable: BTreeSet::new(),
            reads: BTreeSet::new(),
            writes: BTreeSet::new(),
            stamp,
        }
    }

    fn read(&mut self, keys: impl IntoIterator<Item = Bytes>, snapshot: bool) {
        for key in keys {
            if !snapshot && !self.known.contains(&key) {
                self.reads.insert(key);
            }
        }
    }

    fn clear(&mut self, keys: Vec<Bytes>) {
        for key in keys {
            self.map.remove(&key);
            self.unreadable.remove(&key);
            self.known.insert(key.clone());
            self.writes.insert(key);
        }
    }

    /// The key that a selector names, `""` or `"\xff"` outside.
    fn select(&self, selector: &KeySelector) -> Bytes {
        let keys: Vec<&Bytes> = self.map.keys().collect();
        let before = keys
            .iter()
            .filter(|key| {
                if selector.or_equal {
                    **key <= &selector.key
                } else {
                    **key < &selector.key
                }
            })
            .count();
        let at = i64::try_from(before).unwrap() + i64::from(selector.offset) - 1;
        match usize::try_from(at) {
            Err(_) => Bytes::new(),
            Ok(at) => keys
                .get(at)
                .map_or(Bytes::from_static(b"\xff"), |key| (*key).clone()),
        }
    }

    /// What the operation gives, where the store saw `seen`: which of the rules of size ends a batch is the engine's.
    fn step(&mut self, operation: &Operation, seen: &Seen) -> Seen {
        match operation.clone() {
            Operation::Get { key, snapshot } => {
                if self.unreadable.contains(&key) {
                    return Seen::Value(Err(Error::ACCESSED_UNREADABLE));
                }
                self.read([key.clone()], snapshot);
                Seen::Value(Ok(self.map.get(&key).cloned()))
            }
            Operation::GetKey { selector, snapshot } => {
                let key = self.select(&selector);
                let mut point = selector.key.to_vec();
                if selector.or_equal {
                    point.push(0);
                }
                let point = Bytes::from(point);
                let mut passed = if selector.offset >= 1 {
                    let mut after = key.to_vec();
                    after.push(0);
                    keys_of(&point, &Bytes::from(after))
                } else {
                    keys_of(&key, &point)
                };
                passed.sort();
                if passed.iter().any(|key| self.unreadable.contains(key)) {
                    return Seen::Key(Err(Error::ACCESSED_UNREADABLE));
                }
                self.read(passed, snapshot);
                Seen::Key(Ok(key))
            }
            Operation::GetRange(range) => {
                let (begin, end) = (&range.begin.key, &range.end.key);
                let mut result = RangeResult::default();
                if range.limit == Some(0) || begin >= end {
                    return Seen::Pairs(Ok(result));
                }
                let mut pairs: Vec<_> = self.map.range(begin.clone()..end.clone()).collect();
                if range.reverse {
                    pairs.reverse();
                }
                let cut = match seen {
                    Seen::Pairs(Ok(seen)) if range.target_bytes > 0 && seen.more => seen.kvs.len(),
                    _ => usize::MAX,
                };
                let mut passed = keys_of(begin, end);
                for (key, value) in pairs {
                    result.kvs.push((key.clone(), value.clone()));
                    if result.kvs.len() == cut || Some(result.kvs.len()) == range.limit {
                        result.more = true;
                        passed.retain(|passed| {
                            if range.reverse {
                                passed >= key
                            } else {
                                passed <= key
                            }
                        });
                        break;
                    }
                }
                if passed.iter().any(|key| self.unreadable.contains(key)) {
                    return Seen::Pairs(Err(Error::ACCESSED_UNREADABLE));
                }
                self.read(passed, range.snapshot);
                Seen::Pairs(Ok(result))
            }
            Operation::Set { key, value } => {
                self.known.insert(key.clone());
                self.writes.insert(key.clone());
                self.map.insert(key, value);
                Seen::Nothing
            }
            Operation::Clear { key } => {
                self.clear(vec![key]);
                Seen::Nothing
            }
            Operation::ClearRange { begin, end } => {
                self.clear(keys_of(&begin, &end));
                Seen::Nothing
            }
            Operation::Atomic { key, param, op } => {
                self.writes.insert(key.clone());
                let value = if op == MutationType::SetVersionstampedValue {
                    self.unreadable.insert(key.clone());
                    // Conflicts are not decided by what cannot be read.
                    self.known.insert(key.clone());
                    Some(Bytes::copy_from_slice(&self.stamp))
                } else {
                    atomic(op, self.map.get(&key), &param)
                };
                match value {
                    Some(value) => self.map.insert(key, value),
                    None => self.map.remove(&key),
                };
                Seen::Nothing
            }
            Operation::ReadConflict { begin, end } => {
                self.read(keys_of(&begin, &end), false);
                Seen::Nothing
            }
            Operation::WriteConflict { begin, end } => {
                self.writes.extend(keys_of(&begin, &end));
                Seen::Nothing
            }
        }
    }
}

/// The atomic operations once more, by integers: values here are at most a few bytes long... or a versionstamp.
fn atomic(op: MutationType, old: Option<&Bytes>, param: &Bytes) -> Option<Bytes> {
    use MutationType as M;
    let number = |bytes: &[u8]| {
        bytes
            .iter()
            .rev()
            .fold(0u128, |sum, byte| sum << 8 | u128::from(*byte))
    };
    let Some(old) = old else {
        return (op != M::CompareAndClear).then(|| param.clone());
    };
    let mask = (1u128 << (8 * param.len())) - 1;
    let (a, b) = (number(old) & mask, number(param));
    let sized = |n: u128| Some(Bytes::copy_from_slice(&n.to_le_bytes()[..param.len()]));
    match op {
        M::Add => sized(a.wrapping_add(b) & mask),
        M::BitXor => sized(a ^ b),
        M::Max => sized(a.max(b)),
        M::Min => sized(a.min(b)),
        M::ByteMin => Some(old.min(param).clone()),
        M::ByteMax => Some(old.max(param).clone()),
        M::AppendIfFits => Some([old.as_ref(), param.as_ref()].concat().into()),
        M::CompareAndClear => (old != param).then(|| old.clone()),
        other => unreachable!("{other:?} is not generated"),
    }
}

/// What the markers say: which attempts committed, and in which order.
async fn markers(database: &Database) -> BTreeMap<[u8; 10], u64> {
    loop {
        let range = RangeOption::new(Bytes::from(MARKER), Bytes::from("marker0"));
        if let Ok(found) = database.create_transaction().get_range(range).await {
            let attempt = |key: &Bytes| {
                String::from_utf8_lossy(&key[MARKER.len()..])
                    .parse()
                    .unwrap()
            };
            return found
                .kvs
                .iter()
                .map(|(key, stamp)| (stamp.as_ref().try_into().unwrap(), attempt(key)))
                .collect();
        }
    }
}

fn version_of(stamp: &[u8; 10]) -> i64 {
    i64::from_be_bytes(stamp[..8].try_into().unwrap())
}

/// A fault may take the place of any read.
fn same(model: &Seen, store: &Seen) -> bool {
    model == store || is_fault(store)
}

fn is_fault(seen: &Seen) -> bool {
    matches!(seen, Seen::Value(Err(e)) | Seen::Key(Err(e)) | Seen::Pairs(Err(e)) if e.is_retryable())
}

/// A read that ran into something unreadable fails the commit.
fn is_refused(seen: &Seen) -> bool {
    const REFUSED: Error = Error::ACCESSED_UNREADABLE;
    matches!(seen, Seen::Value(Err(e)) | Seen::Key(Err(e)) | Seen::Pairs(Err(e)) if *e == REFUSED)
}

/// Which marker a selector ran into is not protected by a conflict.
fn serializable(seen: Seen) -> Seen {
    match seen {
        Seen::Key(Ok(key)) if key.as_ref() > b"j".as_slice() => {
            Seen::Key(Ok(Bytes::from_static(b"beyond")))
        }
        seen => seen,
    }
}

fn check(history: &[Attempt], order: &BTreeMap<[u8; 10], u64>, end: &Map, faults: bool) {
    let attempts: BTreeMap<u64, &Attempt> = history
        .iter()
        .map(|attempt| (attempt.id, attempt))
        .collect();
    let stamps: BTreeMap<u64, [u8; 10]> = order.iter().map(|(stamp, id)| (*id, *stamp)).collect();

    // In commit order: the map after each commit, and what it wrote.
    let mut map = Map::new();
    let mut after: Vec<([u8; 10], Map, BTreeSet<Bytes>)> = Vec::new();
    for (stamp, id) in order {
        let attempt = attempts[id];
        match attempt.result {
            Some(Ok(committed)) => assert_eq!(committed.versionstamp, Some(*stamp), "{attempt:?}"),
            Some(Err(Error::COMMIT_UNKNOWN_RESULT)) => assert!(faults),
            ref other => panic!("committed although {other:?}: {attempt:?}"),
        }
        let mut replay = Replay::new(&map, *stamp);
        for (operation, seen) in &attempt.operations {
            let snapshot = match operation {
                Operation::Get { snapshot, .. } | Operation::GetKey { snapshot, .. } => *snapshot,
                Operation::GetRange(range) => range.snapshot,
                _ => false,
            };
            let model = serializable(replay.step(operation, seen));
            assert!(
                snapshot || same(&model, &serializable(seen.clone())),
                "not serializable: {operation:?} gave {seen:?}, not {model:?}: {attempt:?}"
            );
        }
        replay.map.insert(
            format!("{MARKER}{id}").into(),
            Bytes::copy_from_slice(stamp),
        );
        map = replay.map;
        after.push((*stamp, map.clone(), replay.writes));
    }
    assert_eq!(&map, end, "the store ends differently");

    for attempt in history {
        let Some(read_version) = attempt.read_version else {
            assert!(faults);
            continue;
        };
        let visible = after.partition_point(|(stamp, _, _)| version_of(stamp) <= read_version);
        let start = visible
            .checked_sub(1)
            .map_or_else(Map::new, |last| after[last].1.clone());
        let mut replay = Replay::new(&start, [0; 10]);
        for (operation, seen) in &attempt.operations {
            let reads = is_fault(seen).then(|| replay.reads.clone());
            let model = replay.step(operation, seen);
            if let Some(reads) = reads {
                replay.reads = reads; // nothing was read
            }
            assert!(
                same(&model, seen),
                "read at {read_version}: {operation:?} gave {seen:?}, not {model:?}: {attempt:?}"
            );
        }
        let conflict = |from: usize, before: usize| {
            after[from..before]
                .iter()
                .find(|(_, _, writes)| !writes.is_disjoint(&replay.reads))
        };
        let refused = attempt.operations.iter().any(|(_, seen)| is_refused(seen));
        match &attempt.result {
            Some(Ok(committed)) => {
                assert!(!refused, "committed although a read failed: {attempt:?}");
                let own =
                    after.partition_point(|(stamp, _, _)| Some(*stamp) < committed.versionstamp);
                let missed = conflict(visible, own);
                assert!(
                    missed.is_none(),
                    "a conflict with {missed:?} was missed: {attempt:?}"
                );
                assert_eq!(stamps.get(&attempt.id).copied(), committed.versionstamp);
            }
            Some(Err(Error::NOT_COMMITTED)) if !faults => {
                let until =
                    after.partition_point(|(stamp, _, _)| version_of(stamp) <= attempt.ended_at);
                assert!(
                    conflict(visible, until).is_some(),
                    "no reason to fail: {attempt:?}"
                );
            }
            Some(Err(Error::ACCESSED_UNREADABLE)) => assert!(refused, "{attempt:?}"),
            Some(Err(error)) => {
                assert!(faults && error.is_retryable(), "{error}: {attempt:?}");
                assert!(
                    *error == Error::COMMIT_UNKNOWN_RESULT || !stamps.contains_key(&attempt.id)
                );
            }
            None => assert!(!stamps.contains_key(&attempt.id)),
        }
    }
}

/// Runs one seed's clients on an empty database, and gives the number of commits.
async fn history(engine: &Engine, seed: u64, faults: bool) -> usize {
    let mut clients = Vec::new();
    for client_number in 0..5u64 {
        let seed = seed.wrapping_mul(1_000).wrapping_add(client_number);
        clients.push(tokio::spawn(client(
            engine.database.clone(),
            engine.is_foundationdb(),
            seed,
            client_number * 1_000,
            25,
        )));
    }
    let mut history = Vec::new();
    for client in clients {
        history.extend(client.await.unwrap());
    }
    let order = markers(engine).await;
    let end = loop {
        let all = (Bytes::new(), Bytes::from_static(b"\xff"));
        if let Ok(end) = engine.create_transaction().get_range(all.into()).await {
            break end.kvs.into_iter().collect();
        }
    };
    check(&history, &order, &end, faults);
    order.len()
}

fn seeds() -> u64 {
    std::env::var("FDB_MODEL_SEEDS").map_or(30, |seeds| seeds.parse().unwrap())
}

async fn histories(faults: impl Fn(u64) -> Option<Faults>) {
    let mut committed = 0;
    for seed in 0..seeds() {
        eprintln!("seed {seed}");
        let faults = faults(seed);
        let engine = embedded(faults.clone()).await;
        committed += history(&engine, seed, faults.is_some()).await;
    }
    must_be_many(committed);
}

#[track_caller]
fn must_be_many(committed: usize) {
    assert!(
        committed as u64 > 30 * seeds(),
        "only {committed} committed: the test tests little"
    );
}

#[cfg(feature = "foundationdb")]
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn random_transactions_are_serializable_on_foundationdb() {
    let mut committed = 0;
    for seed in 0..seeds() {
        let Some(engine) = crate::engine::foundationdb().await else {
            return;
        };
        eprintln!("seed {seed}");
        committed += history(&engine, seed, false).await;
        engine.clear().await;
    }
    must_be_many(committed);
}

#[tokio::test]
async fn random_transactions_are_serializable() {
    histories(|_| None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn random_transactions_on_several_threads_are_serializable() {
    histories(|_| None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn random_transactions_are_serializable_under_faults() {
    histories(|seed| {
        Some(Faults {
            seed,
            not_committed: 0.05,
            commit_unknown_result: 0.1,
            transaction_too_old: 0.01,
            future_version: 0.01,
            max_delay: Duration::from_micros(300),
        })
    })
    .await;
}
