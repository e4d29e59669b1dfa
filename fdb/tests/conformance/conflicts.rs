//! Which transactions conflict.

use crate::engine::{each, fill, steps};
use fdb::Error;

/// In a store with a=A b=B c=C d=D: `first` runs, then `second` runs and commits, then the first one commits.
#[tokio::test]
async fn a_transaction_conflicts_with_later_writes_of_what_it_read() {
    const CONFLICT: Result<(), Error> = Err(Error::NOT_COMMITTED);
    const FINE: Result<(), Error> = Ok(());
    const CASES: &[(&str, &str, Result<(), Error>)] = &[
        ("get a; set z", "set a", CONFLICT),
        ("get a; set z", "set a A", CONFLICT), // also if the value stays the same
        ("get a; set z", "set b", FINE),
        ("get a; set z", "clear a", CONFLICT),
        ("get x; set z", "clear x", CONFLICT), // also if there was nothing
        ("get b; set z", "clear-range a c", CONFLICT),
        ("get c; set z", "clear-range a c", FINE),
        ("get a; set z", "append a x", CONFLICT),
        ("get a; set z", "write-conflict a b", CONFLICT),
        ("get b; set z", "write-conflict a b", FINE),
        ("get a; set z", "quiet; set a", FINE),
        ("get b; set z", "quiet; set a; set b", CONFLICT),
        ("get a", "set a", FINE), // read-only
        ("set a", "set a", FINE), // blind writes
        ("append a x", "append a y", FINE),
        ("clear-range a d", "set b", FINE),
        ("snapshot a; set z", "set a", FINE),
        ("snapshot-range a c; set z", "set b", FINE),
        ("range a c; set z", "set b", CONFLICT),
        ("range a c; set z", "set bb", CONFLICT), // a phantom
        ("range a c; set z", "set c", FINE),
        ("range a c; set z", "clear-range bb e", CONFLICT),
        ("range a d limit 1; set z", "set b", FINE), // not read yet
        ("range a d limit 1; set z", "set a", CONFLICT),
        ("range a d limit 2; set z", "set aa", CONFLICT),
        ("reverse a d limit 1; set z", "set b", FINE),
        ("reverse a d limit 1; set z", "set c", CONFLICT),
        ("reverse a d limit 1; set z", "set cc", CONFLICT),
        ("set a 1; get a; set z", "set a", FINE), // known without reading
        ("clear a; get a; set z", "set a", FINE),
        ("append a x; get a; set z", "set a", CONFLICT),
        ("clear-range a c; range a d; set z", "set b", FINE),
        ("clear-range a c; range a d; set z", "set c", CONFLICT),
        ("set b 2; range a c; set z", "set b", FINE),
        ("set b 2; range a c; set z", "set bb", CONFLICT),
        ("append b x; range a c; set z", "set b", CONFLICT),
        ("version; read-conflict a c; set z", "set b", CONFLICT),
        ("version; read-conflict a c; set z", "set c", FINE),
        ("read-conflict a c; set z", "set b", FINE), // it reads when it commits
        ("version; set b; read-conflict a c", "set b", FINE),
        ("version; stamped b; read-conflict a c", "set b", FINE),
        ("version; append b x; read-conflict a c", "set b", CONFLICT),
        ("get a; write-conflict y z", "set a", CONFLICT),
        ("range a b limit 0; set z", "set a", FINE),
    ];
    each(|database| async move {
        for (first, second, expect) in CASES {
            fill(&database, &["a", "b", "c", "d"]).await;
            let one = database.create_transaction();
            steps(&one, first).await.unwrap();
            let other = database.create_transaction();
            // A blind write takes no read version: make the first one older all the same.
            steps(&other, second).await.unwrap();
            other.commit().await.unwrap();
            let result = one.commit().await.map(drop).map_err(|failed| failed.error);
            assert_eq!(&result, expect, "{first} | {second}");
        }
    })
    .await;
}

#[tokio::test]
async fn selectors_conflict_over_what_they_passed() {
    each(|database| async move {
        let cases = [("cc", true), ("d", true), ("b", false), ("e", false)];
        for (written, conflicts) in cases {
            let wipe = database.create_transaction();
            wipe.clear_range("", "~");
            wipe.commit().await.unwrap();
            fill(&database, &["a", "d", "f"]).await;
            let one = database.create_transaction();
            let selector = fdb::KeySelector::first_greater_or_equal("c");
            assert_eq!(one.get_key(&selector, false).await.unwrap(), "d");
            one.set("z", "");
            fill(&database, &[written]).await;
            assert_eq!(one.commit().await.is_err(), conflicts, "{written}");
        }
    })
    .await;
}

/// Two transactions that each read what the other writes, committed at the same time: one of them must fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn write_skew_is_impossible_even_within_a_batch() {
    each(|database| async move {
        for _ in 0..50 {
            fill(&database, &["a", "b"]).await;
            let (one, other) = (database.create_transaction(), database.create_transaction());
            steps(&one, "get a; set b").await.unwrap();
            steps(&other, "get b; set a").await.unwrap();
            let (one, other) =
                tokio::join!(tokio::spawn(one.commit()), tokio::spawn(other.commit()));
            let committed = [one.unwrap().is_ok(), other.unwrap().is_ok()];
            assert!(
                committed == [true, false] || committed == [false, true],
                "{committed:?}"
            );
        }
    })
    .await;
}
