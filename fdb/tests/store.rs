//! The embedded engine as its users see it: files, age, faults, a disk that fails.

use bytes::Bytes;
use fdb::{
    Database, EmbeddedOptions, Error, Faults, ManualTime, OpenError, Transaction,
    TransactionOption, WriteStage,
};
use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

async fn open(directory: &Path) -> Database {
    Database::open_embedded(directory, EmbeddedOptions::default())
        .await
        .unwrap()
}

async fn open_with(directory: &Path, change: impl FnOnce(&mut EmbeddedOptions)) -> Database {
    let mut options = EmbeddedOptions {
        fsync: false,
        ..EmbeddedOptions::default()
    };
    change(&mut options);
    Database::open_embedded(directory, options).await.unwrap()
}

async fn set(database: &Database, key: &'static str, value: &'static str) -> Result<i64, Error> {
    let transaction = database.create_transaction();
    transaction.set(key, value);
    Ok(transaction.commit().await?.version)
}

async fn get(database: &Database, key: &'static str) -> Result<Option<Bytes>, Error> {
    database
        .create_transaction()
        .get(key.as_bytes(), false)
        .await
}

#[tokio::test]
async fn what_was_committed_is_there_after_reopening() {
    let directory = tempfile::tempdir().unwrap();
    let database = open(directory.path()).await;
    let transaction = database.create_transaction();
    transaction.set("a", "1");
    transaction.set("", "empty");
    let first = transaction.commit().await.unwrap();
    assert!(first.version > 0);
    database.close().await;
    assert_eq!(get(&database, "a").await, Err(Error::SHUTDOWN_IN_PROGRESS));
    assert_eq!(
        set(&database, "a", "2").await,
        Err(Error::SHUTDOWN_IN_PROGRESS)
    );

    // The old handle is still there: closing was enough.
    let database = open(directory.path()).await;
    assert_eq!(get(&database, "a").await, Ok(Some("1".into())));
    assert_eq!(get(&database, "").await, Ok(Some("empty".into())));
    assert!(database.size_bytes() > 0);
    let version = database
        .create_transaction()
        .get_read_version()
        .await
        .unwrap();
    assert!(version > first.version, "versions never go back");
}

#[tokio::test]
async fn a_directory_has_one_opener() {
    let directory = tempfile::tempdir().unwrap();
    let database = open(directory.path()).await;
    let second = Database::open_embedded(directory.path(), EmbeddedOptions::default()).await;
    let error = second.map(drop).unwrap_err();
    assert!(matches!(error, OpenError::InUse { .. }), "{error:?}");
    assert_eq!(
        error.to_string(),
        format!(
            "{} is in use by another process",
            directory.path().display()
        )
    );
    drop(database);
    open(directory.path()).await;
}

#[tokio::test]
async fn a_directory_that_cannot_be_made_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = Database::open_embedded(&file.join("store"), EmbeddedOptions::default())
        .await
        .map(drop)
        .unwrap_err();
    assert!(matches!(error, OpenError::Io { .. }), "{error:?}");
}

/// The process died while the store was being created: nothing was acknowledged, so it begins anew.
#[tokio::test]
async fn a_half_created_store_is_created_again() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(directory.path().join("store.new/keyspaces")).unwrap();
    std::fs::write(directory.path().join("store.new/0.jnl"), "half").unwrap();
    let database = open(directory.path()).await;
    set(&database, "a", "1").await.unwrap();
    assert!(!directory.path().join("store.new").exists());
}

#[tokio::test]
async fn a_transaction_lives_five_seconds() {
    let directory = tempfile::tempdir().unwrap();
    let time = Arc::new(ManualTime::default());
    let database = open_with(directory.path(), |options| options.time = time.clone()).await;
    set(&database, "a", "1").await.unwrap();
    let started = |_: ()| async {
        let transaction = database.create_transaction();
        transaction.get(b"a", false).await.unwrap();
        transaction.set("b", "");
        transaction
    };
    let (reader, writer, late_reader, late_writer) = (
        started(()).await,
        started(()).await,
        started(()).await,
        started(()).await,
    );
    let blind = database.create_transaction();
    blind.set("c", "");
    time.advance(Duration::from_secs(5));
    assert_eq!(reader.get(b"a", false).await, Ok(Some("1".into())));
    writer.commit().await.unwrap();
    time.advance(Duration::from_millis(1));
    assert_eq!(
        late_reader.get(b"a", false).await,
        Err(Error::TRANSACTION_TOO_OLD)
    );
    assert_eq!(
        late_reader.watch("a").await,
        Err(Error::TRANSACTION_TOO_OLD)
    );
    let failed = late_writer.commit().await.unwrap_err();
    assert_eq!(failed.error, Error::TRANSACTION_TOO_OLD);
    let again = failed.transaction.on_error(failed.error).await.unwrap();
    assert_eq!(again.get(b"a", false).await, Ok(Some("1".into())));
    blind.commit().await.unwrap(); // it has read nothing that could be too old
}

#[tokio::test]
async fn versions_advance_by_a_million_a_second() {
    let directory = tempfile::tempdir().unwrap();
    let time = Arc::new(ManualTime::default());
    let database = open_with(directory.path(), |options| options.time = time.clone()).await;
    let first = set(&database, "a", "1").await.unwrap();
    assert_eq!(set(&database, "a", "2").await, Ok(first + 1));
    time.advance(Duration::from_secs(2));
    assert_eq!(set(&database, "a", "3").await, Ok(first + 2_000_001));
}

#[tokio::test]
async fn a_timeout_ends_a_transaction_and_survives_retries() {
    let directory = tempfile::tempdir().unwrap();
    let time = Arc::new(ManualTime::default());
    let database = open_with(directory.path(), |options| options.time = time.clone()).await;
    let begin = || {
        let transaction = database.create_transaction();
        transaction.set_option(TransactionOption::Timeout(100));
        transaction.set_option(TransactionOption::MaxRetryDelay(0));
        transaction.set("a", "1");
        transaction
    };
    let (reader, committer, retrier, failed) = (begin(), begin(), begin(), begin());
    time.advance(Duration::from_millis(99));
    assert_eq!(reader.get(b"x", false).await, Ok(None));
    let retrier = retrier.on_error(Error::NOT_COMMITTED).await.unwrap();
    time.advance(Duration::from_millis(1));
    assert_eq!(
        reader.get(b"x", false).await,
        Err(Error::TRANSACTION_TIMED_OUT)
    );
    assert_eq!(
        retrier.get(b"x", false).await,
        Err(Error::TRANSACTION_TIMED_OUT)
    );
    assert_eq!(
        committer.commit().await.unwrap_err().error,
        Error::TRANSACTION_TIMED_OUT
    );
    assert_eq!(
        failed.on_error(Error::NOT_COMMITTED).await.unwrap_err(),
        Error::TRANSACTION_TIMED_OUT
    );
    assert_eq!(get(&database, "a").await, Ok(None));
}

#[tokio::test]
async fn transact_can_be_spawned_and_counts_exactly() {
    let directory = tempfile::tempdir().unwrap();
    let database = open(directory.path()).await;
    let mut tasks = Vec::new();
    for _ in 0..8 {
        let database = database.clone();
        tasks.push(tokio::spawn(async move {
            for _ in 0..10 {
                database.transact(count).await?;
            }
            Ok::<_, Error>(())
        }));
    }
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_eq!(get(&database, "counter").await, Ok(Some(vec![80].into())));
}

async fn count(transaction: Transaction) -> Result<(), Error> {
    let count = transaction.get(b"counter", false).await?;
    let count = count.map_or(0, |count| count[0]);
    transaction.set("counter", vec![count + 1]);
    Ok(())
}

/// Both outcomes of an unknown result must occur, and equal seeds decide equally.
#[tokio::test]
async fn faults_are_seeded_and_an_unknown_result_goes_both_ways() {
    async fn outcomes(seed: u64) -> Vec<(Result<(), Error>, bool)> {
        let directory = tempfile::tempdir().unwrap();
        let database = open_with(directory.path(), |options| {
            options.faults = Some(Faults {
                seed,
                not_committed: 0.2,
                commit_unknown_result: 0.5,
                ..Faults::default()
            });
        })
        .await;
        let mut outcomes = Vec::new();
        for n in 0..50 {
            let transaction = database.create_transaction();
            transaction.set(format!("{n}"), "");
            let result = transaction
                .commit()
                .await
                .map(drop)
                .map_err(|failed| failed.error);
            let key = format!("{n}");
            let committed = database
                .create_transaction()
                .get(key.as_bytes(), false)
                .await
                .unwrap()
                .is_some();
            outcomes.push((result, committed));
        }
        outcomes
    }
    let first = outcomes(1).await;
    for outcome in [
        (Ok(()), true),
        (Err(Error::NOT_COMMITTED), false),
        (Err(Error::COMMIT_UNKNOWN_RESULT), true),
        (Err(Error::COMMIT_UNKNOWN_RESULT), false),
    ] {
        assert!(first.contains(&outcome), "{outcome:?} never happened");
    }
    let impossible = [(Ok(()), false), (Err(Error::NOT_COMMITTED), true)];
    assert!(!first.iter().any(|outcome| impossible.contains(outcome)));
    assert_eq!(outcomes(1).await, first);
    assert_ne!(outcomes(2).await, first);
}

/// After a failed write nothing is acknowledged, read or committed until the store is opened again; and that finds
/// the commit wholly or not at all.
#[tokio::test]
async fn a_failed_write_stops_the_store_until_it_is_reopened() {
    for (stage, durable) in [(WriteStage::Before, false), (WriteStage::After, true)] {
        let directory = tempfile::tempdir().unwrap();
        let broken = Arc::new(AtomicBool::new(false));
        let hook = {
            let broken = broken.clone();
            move |at| {
                if at == stage && broken.load(Ordering::SeqCst) {
                    Err(io::Error::other("injected"))
                } else {
                    Ok(())
                }
            }
        };
        let database = open_with(directory.path(), |options| {
            options.write_hook = Some(Arc::new(hook));
        })
        .await;
        set(&database, "a", "1").await.unwrap();
        let watching = database.create_transaction();
        let watch = watching.watch("a");
        watching.commit().await.unwrap();
        let old = database.create_transaction();
        assert_eq!(old.get(b"a", false).await, Ok(Some("1".into())));

        broken.store(true, Ordering::SeqCst);
        let transaction = database.create_transaction();
        transaction.set("a", "2");
        transaction.set("b", "2");
        assert_eq!(
            transaction.commit().await.unwrap_err().error,
            Error::COMMIT_UNKNOWN_RESULT
        );
        broken.store(false, Ordering::SeqCst);
        assert_eq!(set(&database, "a", "3").await, Err(Error::IO_ERROR));
        assert_eq!(get(&database, "a").await, Err(Error::IO_ERROR));
        assert_eq!(watch.await, Err(Error::IO_ERROR));
        let retried = database
            .transact(|transaction| async move {
                transaction.set("a", "4");
                Ok::<_, Error>(())
            })
            .await;
        assert_eq!(retried, Err(Error::IO_ERROR));
        drop(old);
        drop(database);

        let database = open(directory.path()).await;
        let expect = |value: &'static str| Ok(durable.then(|| Bytes::from(value)));
        assert_eq!(get(&database, "b").await, expect("2"), "{stage:?}");
        let a = if durable { "2" } else { "1" };
        assert_eq!(get(&database, "a").await, Ok(Some(a.into())), "{stage:?}");
        set(&database, "a", "5").await.unwrap();
    }
}

#[tokio::test]
async fn closing_ends_watches_and_finishes_commits() {
    let directory = tempfile::tempdir().unwrap();
    let database = open(directory.path()).await;
    let watching = database.create_transaction();
    let watch = watching.watch("a");
    watching.commit().await.unwrap();
    let commits: Vec<_> = (0..20)
        .map(|n| {
            let transaction = database.create_transaction();
            transaction.set(format!("{n}"), "");
            tokio::spawn(transaction.commit())
        })
        .collect();
    database.close().await;
    assert_eq!(watch.await, Err(Error::OPERATION_CANCELLED));
    let mut committed = 0;
    for commit in commits {
        match commit.await.unwrap() {
            Ok(_) => committed += 1,
            Err(failed) => assert_eq!(failed.error, Error::SHUTDOWN_IN_PROGRESS),
        }
    }
    let database = open(directory.path()).await;
    let all = (Bytes::new(), Bytes::from("z"));
    let found = database
        .create_transaction()
        .get_range(all.into())
        .await
        .unwrap();
    assert_eq!(found.kvs.len(), committed);
}

/// More than the memtable holds, several times over: flushes and journal rotation on the way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_larger_than_its_memory_is_read_back() {
    let directory = tempfile::tempdir().unwrap();
    let database = open_with(directory.path(), |options| options.cache_bytes = 1 << 20).await;
    for round in 0..2u8 {
        for n in 0..10u32 {
            let transaction = database.create_transaction();
            for m in 0..80u32 {
                transaction.set(format!("{:05}", n * 80 + m), vec![round; 90_000]);
            }
            transaction.commit().await.unwrap();
        }
    }
    database.close().await;
    let database = open(directory.path()).await;
    let transaction = database.create_transaction();
    for n in 0..800u32 {
        let value = transaction
            .get(format!("{n:05}").as_bytes(), true)
            .await
            .unwrap()
            .unwrap();
        assert!(
            value.len() == 90_000 && value.iter().all(|byte| *byte == 1),
            "{n}"
        );
    }
}
