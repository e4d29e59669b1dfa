//! FoundationDB's limits and the errors beyond them.

use crate::engine::each;
use bytes::Bytes;
use fdb::{Error, KEY_SIZE_LIMIT, MutationType, Transaction, TransactionOption, VALUE_SIZE_LIMIT};

fn bytes(length: usize) -> Bytes {
    vec![b'x'; length].into()
}

#[tokio::test]
async fn a_write_beyond_a_limit_fails_the_next_read_and_the_commit() {
    type Write = fn(&Transaction);
    const CASES: &[(&str, Write, Option<Error>)] = &[
        ("longest key", |t| t.set(bytes(KEY_SIZE_LIMIT), ""), None),
        (
            "too long a key",
            |t| t.set(bytes(KEY_SIZE_LIMIT + 1), ""),
            Some(Error::KEY_TOO_LARGE),
        ),
        (
            "longest value",
            |t| t.set("k", bytes(VALUE_SIZE_LIMIT)),
            None,
        ),
        (
            "too long a value",
            |t| t.set("k", bytes(VALUE_SIZE_LIMIT + 1)),
            Some(Error::VALUE_TOO_LARGE),
        ),
        ("empty key and value", |t| t.set("", ""), None),
        ("last user key", |t| t.set(vec![0xfe, 0xff, 0xff], ""), None),
        (
            "system key",
            |t| t.set(vec![0xff], ""),
            Some(Error::KEY_OUTSIDE_LEGAL_RANGE),
        ),
        (
            "system key cleared",
            |t| t.clear(vec![0xff, 1]),
            Some(Error::KEY_OUTSIDE_LEGAL_RANGE),
        ),
        (
            "too long a key cleared",
            |t| t.clear(bytes(KEY_SIZE_LIMIT + 1)),
            None,
        ),
        (
            "everything cleared",
            |t| t.clear_range("", vec![0xff]),
            None,
        ),
        (
            "beyond cleared",
            |t| t.clear_range("", vec![0xff, 0]),
            Some(Error::KEY_OUTSIDE_LEGAL_RANGE),
        ),
        (
            "inverted clear",
            |t| t.clear_range("b", "a"),
            Some(Error::INVERTED_RANGE),
        ),
        ("empty clear", |t| t.clear_range("a", "a"), None),
        (
            "inverted read conflict",
            |t| t.add_read_conflict_range("b", "a"),
            Some(Error::INVERTED_RANGE),
        ),
        (
            "inverted write conflict",
            |t| t.add_write_conflict_range("b", "a"),
            Some(Error::INVERTED_RANGE),
        ),
        (
            "operand too long",
            |t| t.atomic_op("k", bytes(VALUE_SIZE_LIMIT + 1), MutationType::Add),
            Some(Error::VALUE_TOO_LARGE),
        ),
        (
            "versionstamp without an offset",
            |t| t.atomic_op("k", "abc", MutationType::SetVersionstampedValue),
            Some(Error::CLIENT_INVALID_OPERATION),
        ),
        (
            "versionstamp without room",
            |t| {
                t.atomic_op(
                    &b"short\0\0\0\0"[..],
                    "",
                    MutationType::SetVersionstampedKey,
                );
            },
            Some(Error::CLIENT_INVALID_OPERATION),
        ),
        (
            "size limit too small",
            |t| t.set_option(TransactionOption::SizeLimit(31)),
            Some(Error::INVALID_OPTION_VALUE),
        ),
        (
            "size limit too large",
            |t| t.set_option(TransactionOption::SizeLimit(10_000_001)),
            Some(Error::INVALID_OPTION_VALUE),
        ),
    ];
    each(|database| async move {
        for (name, write, expect) in CASES {
            let transaction = database.create_transaction();
            write(&transaction);
            let read = transaction.get(b"unrelated", false).await;
            assert_eq!(read, expect.map_or(Ok(None), Err), "{name}");
            let committed = transaction.commit().await.map_err(|failed| failed.error);
            assert_eq!(committed.err(), *expect, "{name}");
        }
    })
    .await;
}

#[tokio::test]
async fn reads_outside_the_keys_are_refused() {
    each(|database| async move {
        let transaction = database.create_transaction();
        assert_eq!(
            transaction.get(b"\xff", false).await,
            Err(Error::KEY_OUTSIDE_LEGAL_RANGE)
        );
        assert_eq!(
            transaction.get(&bytes(KEY_SIZE_LIMIT + 1), false).await,
            Ok(None)
        );
        let all = (Bytes::new(), Bytes::from_static(b"\xff"));
        assert!(transaction.get_range(all.into()).await.is_ok());
        let beyond = (Bytes::new(), Bytes::from_static(b"\xff\x01"));
        assert_eq!(
            transaction.get_range(beyond.into()).await,
            Err(Error::KEY_OUTSIDE_LEGAL_RANGE)
        );
        assert_eq!(
            transaction.watch(&b"\xff"[..]).await,
            Err(Error::KEY_OUTSIDE_LEGAL_RANGE)
        );
    })
    .await;
}

#[tokio::test]
async fn a_transaction_has_a_largest_size() {
    each(|database| async move {
        let fitting = database.create_transaction();
        for n in 0..99 {
            fitting.set(format!("{n:02}"), bytes(VALUE_SIZE_LIMIT));
        }
        assert!((9_900_000..10_000_000).contains(&fitting.get_approximate_size().await.unwrap()));
        fitting.commit().await.unwrap();

        let large = database.create_transaction();
        for n in 0..101 {
            large.set(format!("{n:03}"), bytes(VALUE_SIZE_LIMIT));
        }
        let failed = large.commit().await.unwrap_err();
        assert_eq!(failed.error, Error::TRANSACTION_TOO_LARGE);

        let limited = database.create_transaction();
        limited.set_option(TransactionOption::SizeLimit(1_000));
        limited.set("k", bytes(1_000));
        assert_eq!(
            limited.commit().await.unwrap_err().error,
            Error::TRANSACTION_TOO_LARGE
        );
    })
    .await;
}

/// A range clear whose bounds are longer than any key still ends where it should.
#[tokio::test]
async fn long_bounds_are_cut_behind_the_longest_key() {
    each(|database| async move {
        let transaction = database.create_transaction();
        transaction.set(bytes(KEY_SIZE_LIMIT), "longest");
        transaction.set("y", "behind");
        transaction.clear_range("a", bytes(KEY_SIZE_LIMIT + 50));
        assert_eq!(
            transaction.get(&bytes(KEY_SIZE_LIMIT), false).await,
            Ok(None)
        );
        transaction.commit().await.unwrap();
        let reader = database.create_transaction();
        assert_eq!(reader.get(b"y", false).await, Ok(Some("behind".into())));
        assert_eq!(reader.get(&bytes(KEY_SIZE_LIMIT), false).await, Ok(None));
    })
    .await;
}
