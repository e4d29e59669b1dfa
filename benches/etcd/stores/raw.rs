//! What FoundationDB's client does by itself: the measure that the server is held against.

#[cfg(not(feature = "foundationdb"))]
pub use without::Client;

#[cfg(feature = "foundationdb")]
pub use with::Client;

#[cfg(not(feature = "foundationdb"))]
mod without {
    use std::path::Path;
    use std::time::Duration;

    use crate::Failure;
    use crate::figures::Figures;

    /// Nobody has one.
    pub enum Client {}

    impl Client {
        pub fn open(_cluster_file: &Path) -> Result<Client, Failure> {
            Err("this needs --features foundationdb".into())
        }

        pub async fn clear(&self, _cluster_file: &Path, _prefix: &str) -> Result<(), Failure> {
            match *self {}
        }

        pub async fn put(&self, _puts: usize, _duration: Duration) -> Result<Figures, Failure> {
            match *self {}
        }
    }
}

#[cfg(feature = "foundationdb")]
mod with {
    use std::path::Path;
    use std::time::{Duration, Instant};

    use bytes::Bytes;
    use fdb::{Database, FoundationDbOptions, Transaction, TransactionOption};

    use crate::Failure;
    use crate::figures::Figures;

    /// Bytes of the keys and values that one put of 256 bytes is in the store, and of the head.
    const LOG_KEY_BYTES: usize = 18;
    const LOG_VALUE_BYTES: usize = 256 + 70;
    const HEAD_BYTES: usize = 33;

    pub struct Client {
        database: Database,
    }

    impl Drop for Client {
        fn drop(&mut self) {
            // Nothing is under way any more.
            fdb::stop_network();
        }
    }

    impl Client {
        pub fn open(cluster_file: &Path) -> Result<Client, Failure> {
            let prefix = format!("bench-raw-{}", std::process::id());
            let options = FoundationDbOptions::new(cluster_file, prefix);
            let database = Database::open_foundationdb(options)?;
            Ok(Client { database })
        }

        /// Removes what an installation has written.
        pub async fn clear(&self, cluster_file: &Path, prefix: &str) -> Result<(), Failure> {
            let options = FoundationDbOptions::new(cluster_file, prefix);
            clear(&Database::open_foundationdb(options)?).await
        }

        /// One batch of `puts` after the other for `duration`. An operation is a put, and takes as long as its batch.
        pub async fn put(&self, puts: usize, duration: Duration) -> Result<Figures, Failure> {
            let value = Bytes::from(vec![7; LOG_VALUE_BYTES]);
            let mut latencies = Vec::new();
            let mut at = None;
            let (started, mut revision) = (Instant::now(), 0_u64);
            while started.elapsed() < duration {
                let begun = Instant::now();
                let transaction = self.database.create_transaction();
                match at {
                    Some(version) => transaction.set_read_version(version),
                    None => drop(transaction.get(b"head", false).await?),
                }
                transaction.add_read_conflict_range("head", "head\0");
                for _ in 0..puts {
                    let mut key = vec![b'l'; LOG_KEY_BYTES - 8];
                    key.extend(revision.to_be_bytes());
                    transaction.set_option(TransactionOption::NextWriteNoWriteConflictRange);
                    transaction.set(key, value.clone());
                    revision += 1;
                }
                transaction.set("head", vec![1; HEAD_BYTES]);
                let committed = transaction.commit().await.map_err(|failed| failed.error)?;
                at = Some(committed.version);
                latencies.extend(std::iter::repeat_n(begun.elapsed(), puts));
            }
            let elapsed = started.elapsed();
            clear(&self.database).await?;
            Figures::of(latencies, elapsed, Duration::ZERO)
        }
    }

    async fn clear(database: &Database) -> Result<(), Failure> {
        database
            .transact(|transaction: Transaction| async move {
                transaction.clear_range("", "\u{ff}");
                Ok::<_, fdb::Error>(())
            })
            .await?;
        Ok(())
    }
}
