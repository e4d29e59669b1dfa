//! Reading a keyspace: its head, its log, its leases and users.

use bytes::Bytes;
use etcd_proto::authpb::{Role, User};
use fdb::{RangeOption, RangeResult, Transaction};
use prost::Message;

use super::{Store, StoreError};
use crate::etcd::alarm::Alarms;
use crate::etcd::auth::AuthState;
use crate::etcd::encoding::{BatchId, CHUNKED, Head};
use crate::etcd::lease::Granted;
use crate::etcd::record::{Record, Revision};
use crate::etcd::view::{FIRST_REVISION, NEVER_COMPACTED};

/// Bytes that one read of the log asks for.
pub(super) const READ_BYTES: usize = 1 << 20;

/// The head; that of an empty keyspace if there is none.
pub(super) fn decode_head(found: Option<Bytes>) -> Result<Head, StoreError> {
    match found {
        Some(head) => Head::decode(&head).ok_or(StoreError::Damaged("head of a keyspace")),
        None => Ok(Head {
            revision: FIRST_REVISION,
            compacted: NEVER_COMPACTED,
            batch: BatchId::default(),
            spilled: false,
            changes: 0,
        }),
    }
}

impl Store {
    /// The head; that of an empty keyspace if nothing was written yet.
    pub async fn head(&self) -> Result<Head, StoreError> {
        let mut transaction = self.database.create_transaction();
        loop {
            match self.read_head(&transaction).await {
                Ok(head) => return Ok(head),
                Err(StoreError::Store(error)) => transaction = transaction.on_error(error).await?,
                Err(error) => return Err(error),
            }
        }
    }

    pub(super) async fn read_head(&self, transaction: &Transaction) -> Result<Head, StoreError> {
        decode_head(transaction.get(&self.space.head(), false).await?)
    }

    pub async fn auth(&self) -> Result<AuthState, StoreError> {
        let found = self.get(&self.space.auth()).await?;
        let Some(found) = found else {
            return Ok(AuthState::default());
        };
        let damaged = StoreError::Damaged("authentication of a keyspace");
        let Some((enabled, revision)) = found.split_first() else {
            return Err(damaged);
        };
        let Ok(revision) = revision.try_into() else {
            return Err(damaged);
        };
        let users = self.messages::<User>(self.space.users()).await?;
        let roles = self.messages::<Role>(self.space.roles()).await?;
        let revision = u64::from_be_bytes(revision);
        Ok(AuthState::new(*enabled != 0, revision, users, roles))
    }

    async fn messages<M: Message + Default>(
        &self,
        (begin, end): (Bytes, Bytes),
    ) -> Result<Vec<M>, StoreError> {
        let mut messages = Vec::new();
        self.read_all(begin, end, |_, value| {
            let message = M::decode(value.clone());
            messages.push(message.map_err(|_| StoreError::Damaged("user or role"))?);
            Ok(())
        })
        .await?;
        Ok(messages)
    }

    pub async fn alarms(&self) -> Result<Alarms, StoreError> {
        let found = self.get(&self.space.alarms()).await?;
        match found.as_deref() {
            None => Ok(Alarms::default()),
            Some([bits]) => Ok(Alarms::from_bits(*bits)),
            Some(_) => Err(StoreError::Damaged("alarms of a keyspace")),
        }
    }

    /// Records from `from` up to and including revision `upto`, in order: one read's worth.
    /// The second value says where to go on; `None` at the end.
    pub async fn read_log(
        &self,
        from: Revision,
        upto: i64,
    ) -> Result<(Vec<Record>, Option<Revision>), StoreError> {
        let end = self.space.log_from(upto.saturating_add(1));
        let page = self.read(self.space.log(from), end).await?;
        let records = self.decode_log(&page).await?;
        let next = match page.kvs.last() {
            Some((last, _)) if page.more => {
                let last = self.space.parse_log(last);
                let last = last.ok_or(StoreError::Damaged("key of the log"))?;
                Some(Revision {
                    main: last.main,
                    sub: last.sub.saturating_add(1),
                })
            }
            _ => None,
        };
        Ok((records, next))
    }

    pub(super) async fn decode_log(&self, page: &RangeResult) -> Result<Vec<Record>, StoreError> {
        let mut records = Vec::with_capacity(page.kvs.len());
        for (key, value) in &page.kvs {
            let revision = self.space.parse_log(key);
            let revision = revision.ok_or(StoreError::Damaged("key of the log"))?;
            records.extend(self.decode(revision, value).await?);
        }
        Ok(records)
    }

    /// One page of a range, read in a transaction of its own.
    async fn read(&self, begin: Bytes, end: Bytes) -> Result<RangeResult, StoreError> {
        let mut transaction = self.database.create_transaction();
        loop {
            let mut option = RangeOption::new(begin.clone(), end.clone());
            option.target_bytes = READ_BYTES;
            option.snapshot = true;
            match transaction.get_range(option).await {
                Ok(page) => return Ok(page),
                Err(error) => transaction = transaction.on_error(error).await?,
            }
        }
    }

    /// `None` if compaction has removed the record meanwhile.
    async fn decode(
        &self,
        revision: Revision,
        value: &Bytes,
    ) -> Result<Option<Record>, StoreError> {
        let stored = match value.first() {
            Some(&CHUNKED) => match self.read_chunks(revision, value).await? {
                Some(stored) => stored,
                None if self.get(&self.space.log(revision)).await?.is_none() => return Ok(None),
                None => return Err(StoreError::Damaged("length of a large record")),
            },
            // A copy: the page that it was read from is larger.
            _ => Bytes::copy_from_slice(value),
        };
        let record = Record::decode(revision, stored);
        let record = record.map_err(|source| StoreError::Record { revision, source })?;
        Ok(Some(record))
    }

    /// `None` if the chunks do not make up what `entry` says.
    async fn read_chunks(
        &self,
        revision: Revision,
        entry: &[u8],
    ) -> Result<Option<Bytes>, StoreError> {
        let len = match entry[1..].try_into() {
            Ok(len) => u32::from_be_bytes(len) as usize,
            Err(_) => return Ok(None),
        };
        let (begin, end) = self.space.chunks(revision);
        let mut stored = Vec::new();
        self.read_all(begin, end, |_, chunk| {
            stored.extend_from_slice(chunk);
            Ok(())
        })
        .await?;
        Ok((stored.len() == len).then(|| Bytes::from(stored)))
    }

    /// Every pair of the range, in order; page by page, so not at one moment.
    pub(super) async fn read_all(
        &self,
        mut begin: Bytes,
        end: Bytes,
        mut visit: impl FnMut(&[u8], &Bytes) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        loop {
            let page = self.read(begin, end.clone()).await?;
            for (key, value) in &page.kvs {
                visit(key, value)?;
            }
            match page.kvs.last() {
                Some((last, _)) if page.more => begin = Bytes::from([&last[..], b"\0"].concat()),
                _ => return Ok(()),
            }
        }
    }

    /// One value as it is now.
    async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let mut transaction = self.database.create_transaction();
        loop {
            match transaction.get(key, true).await {
                Ok(value) => return Ok(value),
                Err(error) => transaction = transaction.on_error(error).await?,
            }
        }
    }

    /// One record; `None` if compaction has removed it.
    pub async fn read_record(&self, revision: Revision) -> Result<Option<Record>, StoreError> {
        match self.get(&self.space.log(revision)).await? {
            None => Ok(None),
            Some(value) => self.decode(revision, &value).await,
        }
    }

    /// Every lease.
    pub async fn leases(&self) -> Result<Vec<(i64, Granted)>, StoreError> {
        let (begin, end) = self.space.leases();
        let mut leases = Vec::new();
        self.read_all(begin, end, |key, value| {
            let lease = self.space.parse_lease(key).zip(Granted::decode(value));
            leases.push(lease.ok_or(StoreError::Damaged("lease"))?);
            Ok(())
        })
        .await?;
        Ok(leases)
    }
}
