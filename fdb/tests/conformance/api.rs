//! Reads, writes, selectors, atomic operations, versionstamps, retries.

use crate::engine::{each, fill, steps};
use bytes::Bytes;
use fdb::{Database, Error, KeySelector, MutationType, RangeOption, TransactionOption};
use futures::{StreamExt, TryStreamExt};

/// In a store with a=A b=B c=C d=D: the steps run in one transaction, the last one reads.
#[tokio::test]
async fn a_transaction_sees_its_own_writes() {
    const CASES: &[(&str, &str)] = &[
        ("get a", "A"),
        ("get x", "-"),
        ("set a 1; get a", "1"),
        ("set a 1; snapshot a", "1"),
        ("clear a; get a", "-"),
        ("clear-range a c; get b", "-"),
        ("clear-range a c; get c", "C"),
        ("clear-range a c; set b 2; get b", "2"),
        ("set b 2; clear-range a c; get b", "-"),
        ("append a x; get a", "Ax"),
        ("append x y; get x", "y"),
        ("append a x; append a y; get a", "Axy"),
        ("clear a; append a x; get a", "x"),
        ("set a 1; append a x; get a", "1x"),
        ("compare-and-clear a A; get a", "-"),
        ("compare-and-clear a B; get a", "A"),
        ("range a d", "a=A b=B c=C"),
        ("range a d limit 2", "a=A b=B +"),
        ("reverse a d", "c=C b=B a=A"),
        ("reverse a d limit 1", "c=C +"),
        ("range a d limit 0", ""),
        ("range b b", ""),
        ("range d a", ""),
        ("set aa 1; range a c", "a=A aa=1 b=B"),
        ("set aa 1; reverse a c", "b=B aa=1 a=A"),
        ("set aa 1; range a c limit 2", "a=A aa=1 +"),
        ("set b 2; range a d", "a=A b=2 c=C"),
        ("clear b; range a d", "a=A c=C"),
        ("clear-range a c; range a e", "c=C d=D"),
        ("clear-range a c; reverse a e", "d=D c=C"),
        ("clear-range a d; set b 2; range a e", "b=2 d=D"),
        ("clear-range a d; set b 2; reverse a e limit 2", "d=D b=2 +"),
        ("clear-range b c; clear-range d e; range a z", "a=A c=C"),
        ("append b x; range a d", "a=A b=Bx c=C"),
        ("append bb x; range a d", "a=A b=B bb=x c=C"),
        ("compare-and-clear b B; range a d", "a=A c=C"),
        ("set a 1; snapshot-range a c", "a=1 b=B"),
        ("set z 1; range x ~", "z=1"),
    ];
    each(|database| async move {
        fill(&database, &["a", "b", "c", "d"]).await;
        for (text, expect) in CASES {
            let transaction = database.create_transaction();
            assert_eq!(
                steps(&transaction, text).await.as_deref(),
                Ok(*expect),
                "{text}"
            );
        }
    })
    .await;
}

/// The same steps, committed, must leave what the transaction saw.
#[tokio::test]
async fn what_a_transaction_saw_is_what_it_leaves() {
    const CASES: &[(&str, &str)] = &[
        (
            "set a 1; append a x; clear b; append b y",
            "a=1x b=y c=C d=D",
        ),
        ("clear-range a c; set b 2; append e x", "b=2 c=C d=D e=x"),
        ("set b 2; clear-range a c; append a x", "a=x c=C d=D"),
        (
            "append a x; set a 1; append a y; append a z",
            "a=1yz b=B c=C d=D",
        ),
        (
            "compare-and-clear a A; compare-and-clear b A",
            "b=B c=C d=D",
        ),
        ("set a 1; clear a; clear-range b ~", ""),
        ("set  empty; append  !", "=empty! a=A b=B c=C d=D"),
        ("set  empty; clear-range  c", "c=C d=D"),
    ];
    each(|database| async move {
        for (text, expect) in CASES {
            let wipe = database.create_transaction();
            wipe.clear_range("", "~");
            wipe.commit().await.unwrap();
            fill(&database, &["a", "b", "c", "d"]).await;
            let transaction = database.create_transaction();
            let all = format!("{text}; range  ~");
            assert_eq!(
                steps(&transaction, &all).await.as_deref(),
                Ok(*expect),
                "before: {text}"
            );
            transaction.commit().await.unwrap();
            let after = steps(&database.create_transaction(), "range  ~").await;
            assert_eq!(after.as_deref(), Ok(*expect), "after: {text}");
        }
    })
    .await;
}

#[tokio::test]
async fn selectors_name_keys() {
    async fn check(database: &Database, selector: KeySelector, expect: &str) {
        let transaction = database.create_transaction();
        let key = transaction.get_key(&selector, false).await.unwrap();
        assert_eq!(key, expect.as_bytes(), "{selector:?}");
    }
    fn at(mut selector: KeySelector, offset: i32) -> KeySelector {
        selector.offset += offset;
        selector
    }
    each(|database| async move {
        use KeySelector as S;
        fill(&database, &["b", "d", "f"]).await;
        for (selector, expect) in [
            (S::first_greater_or_equal("b"), "b"),
            (S::first_greater_or_equal("c"), "d"),
            (S::first_greater_than("b"), "d"),
            (S::first_greater_than("c"), "d"),
            (S::last_less_than("d"), "b"),
            (S::last_less_than("c"), "b"),
            (S::last_less_or_equal("d"), "d"),
            (S::last_less_or_equal("e"), "d"),
            (S::last_less_than("b"), ""),
            (at(S::first_greater_or_equal("b"), 1), "d"),
            (at(S::first_greater_or_equal("b"), 2), "f"),
            (at(S::last_less_or_equal("f"), -1), "d"),
            (at(S::last_less_or_equal("f"), -9), ""),
            (at(S::first_greater_than("d"), -1), "d"),
        ] {
            check(&database, selector, expect).await;
        }
        let transaction = database.create_transaction();
        transaction.clear("d");
        transaction.set("e", "E");
        let key = transaction
            .get_key(&S::first_greater_than("b"), false)
            .await
            .unwrap();
        assert_eq!(key, "e");
        let past = transaction
            .get_key(&S::first_greater_than("f"), false)
            .await
            .unwrap();
        assert_eq!(past.as_ref(), b"\xff");
        let between = RangeOption::new(S::first_greater_than("b"), S::first_greater_than("e"));
        let kvs = transaction.get_range(between).await.unwrap().kvs;
        assert_eq!(kvs, [(Bytes::from("e"), Bytes::from("E"))]);
    })
    .await;
}

#[tokio::test]
async fn a_stream_gives_the_whole_range_in_batches() {
    each(|database| async move {
        let transaction = database.create_transaction();
        for n in 0..500u32 {
            transaction.set(format!("k{n:04}"), vec![7; 100]);
        }
        transaction.commit().await.unwrap();
        for (reverse, limit, target_bytes) in [
            (false, None, 1_000),
            (true, None, 1_000),
            (false, Some(123), 1_000),
            (true, Some(123), 0),
            (false, None, 0),
        ] {
            let transaction = database.create_transaction();
            transaction.set("k0250", "own");
            let mut range = RangeOption::new(Bytes::from("k"), Bytes::from("l"));
            (range.reverse, range.limit, range.target_bytes) = (reverse, limit, target_bytes);
            let batches: Vec<_> = transaction.get_ranges(range).try_collect().await.unwrap();
            if target_bytes > 0 {
                assert!(batches.len() > 10);
                assert!(batches.iter().all(|batch| batch.kvs.len() <= 11));
            }
            let got: Vec<Bytes> = batches
                .into_iter()
                .flat_map(|batch| batch.kvs)
                .map(|pair| pair.0)
                .collect();
            let mut expect: Vec<Bytes> = (0..500).map(|n| format!("k{n:04}").into()).collect();
            if reverse {
                expect.reverse();
            }
            expect.truncate(limit.unwrap_or(500));
            assert_eq!(got, expect);
        }
        let transaction = database.create_transaction();
        transaction.set("\u{7f}".repeat(20_000), "too long");
        let mut stream = std::pin::pin!(
            transaction.get_ranges(RangeOption::new(Bytes::new(), Bytes::from("z")))
        );
        assert_eq!(stream.next().await, Some(Err(Error::KEY_TOO_LARGE)));
        assert_eq!(stream.next().await, None);
    })
    .await;
}

#[tokio::test]
async fn a_transaction_reads_at_one_version() {
    each(|database| async move {
        let first = fill(&database, &["a"]).await;
        let reader = database.create_transaction();
        let version = reader.get_read_version().await.unwrap();
        assert!(version >= first);
        let second = fill(&database, &["a", "b"]).await;
        assert!(
            second > version,
            "commit versions grow past every read version given out"
        );
        assert_eq!(steps(&reader, "range a z").await.as_deref(), Ok("a=A"));
        assert_eq!(reader.get_read_version().await, Ok(version));
        let committed = reader.commit().await.unwrap();
        assert_eq!((committed.version, committed.versionstamp), (-1, None));
        let later = database.create_transaction();
        assert!(later.get_read_version().await.unwrap() >= second);
    })
    .await;
}

#[tokio::test]
async fn versionstamps_are_the_commits_own() {
    each(|database| async move {
        let transaction = database.create_transaction();
        let stamped = |prefix: &[u8], at: u32| {
            let mut operand = prefix.to_vec();
            operand.extend([b'.'; 10]);
            operand.extend(at.to_le_bytes());
            operand
        };
        transaction.atomic_op(stamped(b"k/", 2), "v", MutationType::SetVersionstampedKey);
        transaction.atomic_op(
            "value",
            stamped(b"", 0),
            MutationType::SetVersionstampedValue,
        );
        assert_eq!(
            transaction.get(b"value", false).await,
            Err(Error::ACCESSED_UNREADABLE)
        );
        assert_eq!(
            steps(&transaction, "range k l").await,
            Err(Error::ACCESSED_UNREADABLE)
        );
        assert_eq!(steps(&transaction, "range a k").await.as_deref(), Ok(""));
        transaction.set("value", "still unreadable, as in FoundationDB");
        transaction.atomic_op(
            "value",
            stamped(b"", 0),
            MutationType::SetVersionstampedValue,
        );
        assert_eq!(
            transaction.get(b"value", false).await,
            Err(Error::ACCESSED_UNREADABLE)
        );
        let failed = transaction.commit().await.unwrap_err();
        assert_eq!(
            failed.error,
            Error::ACCESSED_UNREADABLE,
            "reads that failed"
        );

        let transaction = database.create_transaction();
        transaction.atomic_op(stamped(b"k/", 2), "v", MutationType::SetVersionstampedKey);
        transaction.atomic_op(
            "value",
            stamped(b"", 0),
            MutationType::SetVersionstampedValue,
        );
        let promised = transaction.get_versionstamp();
        let first = transaction.commit().await.unwrap();
        let stamp = first.versionstamp.unwrap();
        assert_eq!(promised.await, Ok(stamp));
        assert_eq!(stamp[..8], first.version.to_be_bytes());

        let reader = database.create_transaction();
        assert_eq!(
            reader.get(b"value", false).await.unwrap().unwrap().as_ref(),
            stamp
        );
        let key = [&b"k/"[..], &stamp].concat();
        assert_eq!(reader.get(&key, false).await, Ok(Some(Bytes::from("v"))));

        let next = database.create_transaction();
        next.atomic_op(
            "value",
            stamped(b"", 0),
            MutationType::SetVersionstampedValue,
        );
        next.clear("value");
        assert_eq!(
            next.get(b"value", false).await,
            Ok(None),
            "a clear makes it readable again"
        );
        let next = next.commit().await.unwrap();
        assert!(next.versionstamp.unwrap() > stamp);

        let read_only = database.create_transaction();
        let promised = read_only.get_versionstamp();
        read_only.commit().await.unwrap();
        assert_eq!(promised.await, Err(Error::NO_COMMIT_VERSION));
        let dropped = database.create_transaction().get_versionstamp();
        assert_eq!(dropped.await, Err(Error::TRANSACTION_CANCELLED));
    })
    .await;
}

#[tokio::test]
async fn on_error_retries_what_can_be_retried() {
    each(|database| async move {
        let transaction = database.create_transaction();
        transaction.set("a", "left behind");
        transaction.set_option(TransactionOption::RetryLimit(2));
        transaction.set_option(TransactionOption::MaxRetryDelay(0));
        let transaction = transaction.on_error(Error::NOT_COMMITTED).await.unwrap();
        assert_eq!(
            transaction.get(b"a", false).await,
            Ok(None),
            "it starts afresh"
        );
        let transaction = transaction
            .on_error(Error::COMMIT_UNKNOWN_RESULT)
            .await
            .unwrap();
        assert_eq!(
            transaction
                .on_error(Error::NOT_COMMITTED)
                .await
                .unwrap_err(),
            Error::NOT_COMMITTED
        );
        let transaction = database.create_transaction();
        assert_eq!(
            transaction
                .on_error(Error::VALUE_TOO_LARGE)
                .await
                .unwrap_err(),
            Error::VALUE_TOO_LARGE
        );
    })
    .await;
}

#[tokio::test]
async fn a_failed_commit_gives_the_transaction_back() {
    each(|database| async move {
        fill(&database, &["a"]).await;
        let transaction = database.create_transaction();
        steps(&transaction, "get a; set b").await.unwrap();
        fill(&database, &["a"]).await;
        let promised = transaction.get_versionstamp();
        let failed = transaction.commit().await.unwrap_err();
        assert_eq!(failed.error, Error::NOT_COMMITTED);
        assert_eq!(promised.await, Err(Error::NOT_COMMITTED));
        assert_eq!(
            failed.transaction.get(b"a", false).await,
            Err(Error::NOT_COMMITTED)
        );
        let again = failed.transaction.on_error(failed.error).await.unwrap();
        steps(&again, "get a; set b").await.unwrap();
        again.commit().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn transact_passes_other_errors_through() {
    #[derive(Debug, PartialEq)]
    enum Mine {
        Store(Error),
        Other,
    }
    impl From<Error> for Mine {
        fn from(error: Error) -> Self {
            Mine::Store(error)
        }
    }
    impl fdb::TransactError for Mine {
        fn try_into_error(self) -> Result<Error, Self> {
            match self {
                Mine::Store(error) => Ok(error),
                Mine::Other => Err(self),
            }
        }
    }
    each(|database| async move {
        let result: Result<(), Mine> = database
            .transact(|transaction| async move {
                transaction.set("a", "never");
                Err(Mine::Other)
            })
            .await;
        assert_eq!(result, Err(Mine::Other));
        let result: Result<(), Mine> = database
            .transact(|transaction| async move {
                transaction.set(vec![0xff], "never");
                Ok(())
            })
            .await;
        assert_eq!(result, Err(Mine::Store(Error::KEY_OUTSIDE_LEGAL_RANGE)));
        let kept = database
            .transact(|transaction| async move { Ok::<_, Error>(transaction) })
            .await
            .unwrap();
        assert_eq!(kept.get(b"a", false).await, Err(Error::USED_DURING_COMMIT));
    })
    .await;
}
