//! What the store holds besides keyspaces: who it is, and which keyspaces there are.

use bytes::{BufMut as _, Bytes, BytesMut};
use fdb::{Database, Transaction};

use super::StoreError;
use crate::etcd::encoding::{self, Subspace};

/// Who this store says it is. Random at first, then the same for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub cluster_id: u64,
    pub member_id: u64,
}

/// Reads the store's identity, or sets it to `new`.
pub async fn identity(database: &Database, new: Identity) -> Result<Identity, StoreError> {
    let found = database
        .transact(|transaction: Transaction| async move {
            let found = transaction.get(encoding::IDENTITY, false).await?;
            if found.is_none() {
                let mut value = BytesMut::with_capacity(16);
                value.put_u64(new.cluster_id);
                value.put_u64(new.member_id);
                transaction.set(encoding::IDENTITY, value.freeze());
            }
            Ok::<_, fdb::Error>(found)
        })
        .await?;
    let Some(found) = found else { return Ok(new) };
    let parse = |part: &[u8]| Some(u64::from_be_bytes(part.try_into().ok()?));
    match (
        found.get(..8).and_then(parse),
        found.get(8..).and_then(parse),
    ) {
        (Some(cluster_id), Some(member_id)) => Ok(Identity {
            cluster_id,
            member_id,
        }),
        _ => Err(StoreError::Damaged("identity")),
    }
}

/// The version that a downgrade was asked for.
pub async fn downgrade(database: &Database) -> Result<Option<String>, StoreError> {
    let found = database
        .transact(|transaction: Transaction| async move {
            transaction.get(encoding::DOWNGRADE, false).await
        })
        .await?;
    Ok(found.map(|version| String::from_utf8_lossy(&version).into_owned()))
}

pub async fn set_downgrade(database: &Database, version: Option<&str>) -> Result<(), StoreError> {
    let version = &version.map(|version| Bytes::copy_from_slice(version.as_bytes()));
    database
        .transact(|transaction: Transaction| async move {
            match version {
                Some(version) => transaction.set(encoding::DOWNGRADE, version.clone()),
                None => transaction.clear(encoding::DOWNGRADE),
            }
            Ok::<_, fdb::Error>(())
        })
        .await?;
    Ok(())
}

fn parse_number(value: &[u8]) -> Result<u32, StoreError> {
    let number = value.try_into().ok().map(u32::from_be_bytes);
    number.ok_or(StoreError::Damaged("number of a keyspace"))
}

/// The keyspace's subspace; a new one if there is none of that name yet.
pub async fn open_keyspace(database: &Database, name: &str) -> Result<Subspace, StoreError> {
    let key = &encoding::keyspace_name(name);
    let mut transaction = database.create_transaction();
    loop {
        let attempt = async {
            if let Some(found) = transaction.get(key, false).await? {
                return Ok((parse_number(&found)?, false));
            }
            let count = transaction.get(encoding::KEYSPACE_COUNT, false).await?;
            let number = count.map_or(Ok(0), |count| parse_number(&count))? + 1;
            let value = Bytes::copy_from_slice(&number.to_be_bytes());
            transaction.set(encoding::KEYSPACE_COUNT, value.clone());
            transaction.set(key.clone(), value);
            Ok((number, true))
        };
        let error = match attempt.await {
            Ok((number, false)) => return Ok(Subspace(number)),
            Ok((number, true)) => match transaction.commit().await {
                Ok(_) => return Ok(Subspace(number)),
                Err(failed) => {
                    transaction = failed.transaction;
                    failed.error
                }
            },
            Err(StoreError::Store(error)) => error,
            Err(error) => return Err(error),
        };
        transaction = transaction.on_error(error).await?;
    }
}

/// Removes the keyspace with all that it holds, if there is one of that name.
pub async fn remove_keyspace(database: &Database, name: &str) -> Result<(), StoreError> {
    let key = encoding::keyspace_name(name);
    let key = &key;
    let damaged = database
        .transact(|transaction: Transaction| async move {
            let Some(number) = transaction.get(key, false).await? else {
                return Ok(false);
            };
            let Ok(number) = parse_number(&number) else {
                return Ok(true);
            };
            let (start, end) = Subspace(number).all();
            transaction.clear_range(start, end);
            transaction.clear(key.clone());
            Ok::<_, fdb::Error>(false)
        })
        .await?;
    if damaged {
        return Err(StoreError::Damaged("number of a keyspace"));
    }
    Ok(())
}
