//! The embedded engine as its users see it.

use bytes::Bytes;
use fdb::{Database, EmbeddedOptions, Error};

async fn open(directory: &std::path::Path) -> Database {
    Database::open_embedded(directory, EmbeddedOptions::default())
        .await
        .unwrap()
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
    drop(database);

    let database = open(directory.path()).await;
    let transaction = database.create_transaction();
    assert_eq!(
        transaction.get(b"a", false).await,
        Ok(Some(Bytes::from("1")))
    );
    assert_eq!(
        transaction.get(b"", false).await,
        Ok(Some(Bytes::from("empty")))
    );
    let range = transaction
        .get_range((Bytes::new(), Bytes::from("z")).into())
        .await
        .unwrap();
    assert_eq!(range.kvs.len(), 2);
    assert!(transaction.get_read_version().await.unwrap() > first.version);
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
                let key = &Bytes::from("counter");
                database
                    .transact(|transaction| async move {
                        let count = transaction.get(key, false).await?;
                        let count = count.map_or(0, |count| count[0]);
                        transaction.set(key.clone(), vec![count + 1]);
                        Ok::<_, Error>(())
                    })
                    .await?;
            }
            Ok::<_, Error>(())
        }));
    }
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    let count = database
        .create_transaction()
        .get(b"counter", false)
        .await
        .unwrap();
    assert_eq!(count, Some(Bytes::from(vec![80])));
}
