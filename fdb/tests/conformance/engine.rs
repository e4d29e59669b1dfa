//! The engines that the suite runs against: the embedded one, and FoundationDB if the crate is built with it and
//! `CKE_TEST_FDB_CLUSTER_FILE` names a cluster. A new engine is one more entry in [`each`].

use fdb::{Database, EmbeddedOptions, Faults, Transaction};
use tempfile::TempDir;

/// An empty database, and what must live as long as it.
pub struct Engine {
    pub database: Database,
    directory: Option<TempDir>,
}

impl std::ops::Deref for Engine {
    type Target = Database;

    fn deref(&self) -> &Database {
        &self.database
    }
}

/// An empty embedded database. Without fsync: what is tested here does not need the disk.
pub async fn embedded(faults: Option<Faults>) -> Engine {
    let directory = tempfile::tempdir().unwrap();
    let options = EmbeddedOptions {
        fsync: false,
        faults,
        ..EmbeddedOptions::default()
    };
    Engine {
        database: Database::open_embedded(directory.path(), options)
            .await
            .unwrap(),
        directory: Some(directory),
    }
}

/// An empty part of the cluster that `CKE_TEST_FDB_CLUSTER_FILE` names.
#[cfg(feature = "foundationdb")]
pub async fn foundationdb() -> Option<Engine> {
    use std::sync::atomic::{AtomicU64, Ordering};

    static PARTS: AtomicU64 = AtomicU64::new(0);
    let Some(cluster_file) = std::env::var_os("CKE_TEST_FDB_CLUSTER_FILE") else {
        eprintln!("not run against FoundationDB: CKE_TEST_FDB_CLUSTER_FILE names no cluster");
        return None;
    };
    let part = PARTS.fetch_add(1, Ordering::Relaxed);
    let prefix = format!("conformance-{}-{part}", std::process::id());
    let options = fdb::FoundationDbOptions::new(cluster_file, prefix);
    let database = Database::open_foundationdb(options).unwrap();
    let engine = Engine {
        database,
        directory: None,
    };
    engine.clear().await;
    Some(engine)
}

impl Engine {
    pub fn is_foundationdb(&self) -> bool {
        self.directory.is_none()
    }

    /// Removes everything.
    #[cfg(feature = "foundationdb")]
    pub async fn clear(&self) {
        let cleared = self.transact(async |transaction| {
            transaction.clear_range("", &b"\xff"[..]);
            Ok::<_, fdb::Error>(())
        });
        cleared.await.unwrap();
    }
}

/// Runs a test against an empty database of each engine.
pub async fn each<F: Future<Output = ()>>(test: impl Fn(Database) -> F) {
    let engine = embedded(None).await;
    test(engine.database.clone()).await;
    #[cfg(feature = "foundationdb")]
    if let Some(engine) = foundationdb().await {
        test(engine.database.clone()).await;
        engine.clear().await;
    }
}

/// Commits these keys, each with its name in upper case as its value.
pub async fn fill(database: &Database, keys: &[&'static str]) -> i64 {
    let transaction = database.create_transaction();
    for key in keys {
        transaction.set(*key, key.to_uppercase());
    }
    transaction.commit().await.unwrap().version
}

/// One step of a transaction as text:
///
/// - `get a`, `snapshot a`, `range a c`, `range a c limit 1`, `reverse a c limit 1`, `snapshot-range a c`;
/// - `set a`, `set a x`, `clear a`, `clear-range a c`, `append a x`, `compare-and-clear a x`, `stamped a`;
/// - `read-conflict a c`, `write-conflict a c`, `quiet` (the next write does not conflict), `version` (is taken).
///
/// Gives what was read, as text: `-` is absent, `x` a value, `a=A b=B` pairs with a trailing `+` for more.
pub async fn step(transaction: &Transaction, step: &str) -> Result<String, fdb::Error> {
    let words: Vec<String> = step.split(' ').map(str::to_owned).collect();
    let word = |at: usize| bytes::Bytes::from(words.get(at).cloned().unwrap_or_default());
    let mut read = String::new();
    match words[0].as_str() {
        command @ ("get" | "snapshot") => {
            let value = transaction.get(&word(1), command == "snapshot").await?;
            read = value.map_or("-".into(), |value| {
                String::from_utf8_lossy(&value).into_owned()
            });
        }
        command @ ("range" | "reverse" | "snapshot-range") => {
            let mut range = fdb::RangeOption::new(word(1), word(2));
            range.limit = words.get(4).map(|limit| limit.parse().unwrap());
            range.reverse = command == "reverse";
            range.snapshot = command == "snapshot-range";
            let result = transaction.get_range(range).await?;
            let pairs: Vec<String> = result
                .kvs
                .iter()
                .map(|(key, value)| {
                    format!(
                        "{}={}",
                        String::from_utf8_lossy(key),
                        String::from_utf8_lossy(value)
                    )
                })
                .collect();
            read = pairs.join(" ") + if result.more { " +" } else { "" };
        }
        "set" => transaction.set(
            word(1),
            if words.len() > 2 {
                word(2)
            } else {
                "new".into()
            },
        ),
        "clear" => transaction.clear(word(1)),
        "clear-range" => transaction.clear_range(word(1), word(2)),
        "append" => transaction.atomic_op(word(1), word(2), fdb::MutationType::AppendIfFits),
        "compare-and-clear" => {
            transaction.atomic_op(word(1), word(2), fdb::MutationType::CompareAndClear);
        }
        "stamped" => {
            transaction.atomic_op(
                word(1),
                &b"..........\0\0\0\0"[..],
                fdb::MutationType::SetVersionstampedValue,
            );
        }
        "read-conflict" => transaction.add_read_conflict_range(word(1), word(2)),
        "write-conflict" => transaction.add_write_conflict_range(word(1), word(2)),
        "version" => drop(transaction.get_read_version().await?),
        "quiet" => transaction.set_option(fdb::TransactionOption::NextWriteNoWriteConflictRange),
        other => panic!("no such step: {other}"),
    }
    Ok(read)
}

/// Runs the steps, separated by `; `, and gives what the last one read.
pub async fn steps(transaction: &Transaction, text: &str) -> Result<String, fdb::Error> {
    let mut last = String::new();
    for one in text.split("; ").filter(|one| !one.is_empty()) {
        last = step(transaction, one).await?;
    }
    Ok(last)
}
