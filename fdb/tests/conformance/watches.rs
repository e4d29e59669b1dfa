//! Watches.

use crate::engine::{each, embedded, fill, steps};
use fdb::{Error, MAX_WATCHES, Watch};
use futures::FutureExt;

/// Has it fired by now? Watches fire right after the commit that they wait for is answered, so give the engine as
/// many turns as another commit takes.
async fn fired(database: &fdb::Database, watch: &mut Watch) -> Option<Result<(), Error>> {
    fill(database, &["unrelated"]).await;
    watch.now_or_never()
}

#[tokio::test]
async fn a_watch_fires_when_the_value_changes() {
    /// What the watching transaction does before it watches `a` (which is A), what another one then commits, and
    /// whether the watch fires.
    const CASES: &[(&str, &str, bool)] = &[
        ("", "set a B", true),
        ("", "set a A", false), // the same value
        ("", "clear a", true),
        ("", "clear-range a b", true),
        ("", "append a x", true),
        ("", "set b", false),
        ("set a B", "set b", false), // its own write is what it saw
        ("set a B", "set a C", true),
        ("set a B", "set a B", false),
        ("clear a", "clear a", false),
        ("clear a", "set a A", true),
    ];
    each(|database| async move {
        for (before, other, expect) in CASES {
            let reset = database.create_transaction();
            reset.set("a", "A");
            reset.commit().await.unwrap();
            let transaction = database.create_transaction();
            steps(&transaction, before).await.unwrap();
            let mut watch = transaction.watch("a");
            transaction.commit().await.unwrap();
            assert_eq!(
                fired(&database, &mut watch).await,
                None,
                "before: {before} | {other}"
            );
            let transaction = database.create_transaction();
            steps(&transaction, other).await.unwrap();
            transaction.commit().await.unwrap();
            let now = fired(&database, &mut watch).await;
            assert_eq!(now, expect.then_some(Ok(())), "{before} | {other}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_change_between_read_and_commit_is_not_missed() {
    each(|database| async move {
        let transaction = database.create_transaction();
        let watch = transaction.watch("a");
        fill(&database, &["a"]).await;
        transaction.commit().await.unwrap(); // read-only
        assert_eq!(watch.await, Ok(()));
    })
    .await;
}

#[tokio::test]
async fn a_watch_ends_with_its_transaction_unless_that_commits() {
    each(|database| async move {
        let mut transaction = database.create_transaction();
        let watch = transaction.watch("a");
        transaction.reset();
        assert_eq!(watch.await, Err(Error::TRANSACTION_CANCELLED));
        let watch = transaction.watch("a");
        drop(transaction);
        assert_eq!(watch.await, Err(Error::TRANSACTION_CANCELLED));

        let transaction = database.create_transaction();
        let watch = transaction.watch("a");
        transaction.set("b", "");
        fill(&database, &["a"]).await; // a watch reads its key
        assert_eq!(
            transaction.commit().await.unwrap_err().error,
            Error::NOT_COMMITTED
        );
        assert_eq!(watch.await, Err(Error::NOT_COMMITTED));
    })
    .await;
}

/// Of the embedded engine. FoundationDB's client library has the same limit as a knob that an operator may set, and
/// says so only once it has read the keys' values.
#[tokio::test]
async fn there_is_a_largest_number_of_watches_and_dropping_one_makes_room() {
    let database = embedded(None).await;
    let transaction = database.create_transaction();
    let mut watches: Vec<Watch> = (0..MAX_WATCHES)
        .map(|n| transaction.watch(format!("{n}")))
        .collect();
    let one_more = transaction.watch("one more").await;
    assert_eq!(one_more, Err(Error::TOO_MANY_WATCHES));
    transaction.commit().await.unwrap();
    watches.pop();
    let transaction = database.create_transaction();
    let last = transaction.watch("one more");
    let refused = transaction.watch("too many").await;
    assert_eq!(refused, Err(Error::TOO_MANY_WATCHES));
    transaction.commit().await.unwrap();
    fill(&database, &["one more", "0"]).await;
    assert_eq!(last.await, Ok(()));
    assert_eq!(watches.swap_remove(0).await, Ok(()));
}
