//! The world as a whole: everything that the store holds, what the clock reads, and the seed. It can be written
//! to a file, read back from one, and begun anew.
//!
//! ```text
//! cke-world 1\n
//! {"clock":1767225600000,"seed":1,"apiFaults":[]}\n
//! key length (4 bytes, big endian), value length (4), key, value      ─ so often as there are pairs
//! 0xffff_ffff, number of pairs (8), CRC-32C of all before it (4)
//! ```
//!
//! A snapshot is of one instant. A file is read to its end, and its sum checked, before anything of a world
//! is changed by it.
//!
//! Loading takes many transactions. The first clears everything and leaves a mark, the last takes the mark
//! away: a store with the mark is cleared when it is opened, so that half a world is never served.

use std::io::{self, BufRead, BufReader, Read, Write};

use bytes::Bytes;
use fdb::Database;
use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;

const MAGIC: &str = "cke-world 1\n";
/// In the place of a key's length.
const END: u32 = u32::MAX;
/// Of the second line: a client's faults of the API are in it.
const HEADER_LIMIT: u64 = 1 << 20;
/// What one transaction of a load writes at most; a store allows 10 MB.
const BATCH_BYTES: usize = 1 << 20;
/// Everything that anybody may write to a store.
const FIRST: &[u8] = b"";
const AFTER_LAST: &[u8] = b"\xff";
/// Outside of what etcd keeps.
const LOADING: &[u8] = b"\xfecke/loading";
const SEED: &[u8] = b"\xfecke/seed";

#[derive(Debug, thiserror::Error)]
pub enum WorldError {
    #[error("the store: {0}")]
    Store(#[from] fdb::Error),
    #[error("this is no snapshot of a world: {0}")]
    Invalid(String),
    #[error("cannot read or write the snapshot: {0}")]
    Io(#[from] io::Error),
}

fn invalid(reason: impl Into<String>) -> WorldError {
    WorldError::Invalid(reason.into())
}

/// What a snapshot says beside the store's content.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Header {
    /// What the clock read.
    pub clock: Timestamp,
    pub seed: u64,
    /// Faults of the REST API that were set; their form is theirs who set them.
    #[serde(default)]
    pub api_faults: serde_json::Value,
}

/// A writer or a reader that sums what goes through it.
struct Summed<T> {
    inner: T,
    sum: u32,
}

impl<T> Summed<T> {
    fn new(inner: T) -> Summed<T> {
        Summed { inner, sum: 0 }
    }
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.sum = crc32c::crc32c_append(self.sum, &bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Read for Summed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.sum = crc32c::crc32c_append(self.sum, &buffer[..read]);
        Ok(read)
    }
}

/// The content of a store at one instant, which may be written out later.
pub struct Content {
    pairs: fdb::Pairs,
}

impl Content {
    /// As of now. `None` of a store that other processes write to as well.
    pub fn of(database: &Database) -> Result<Option<Content>, WorldError> {
        let pairs = database.pairs(FIRST, b"\xfe")?;
        Ok(pairs.map(|pairs| Content { pairs }))
    }

    /// Writes a snapshot. Blocks: call it on a thread of its own.
    pub fn write(self, header: &Header, to: impl Write) -> Result<(), WorldError> {
        let mut to = Summed::new(io::BufWriter::with_capacity(1 << 16, to));
        to.write_all(MAGIC.as_bytes())?;
        serde_json::to_writer(&mut to, header).map_err(io::Error::from)?;
        to.write_all(b"\n")?;
        let length = |bytes: &Bytes| {
            // Far less than that by the store's limits.
            u32::try_from(bytes.len()).map_err(io::Error::other)
        };
        let mut count: u64 = 0;
        for pair in self.pairs {
            let (key, value) = pair?;
            to.write_all(&length(&key)?.to_be_bytes())?;
            to.write_all(&length(&value)?.to_be_bytes())?;
            to.write_all(&key)?;
            to.write_all(&value)?;
            count += 1;
        }
        to.write_all(&END.to_be_bytes())?;
        to.write_all(&count.to_be_bytes())?;
        let sum = to.sum;
        to.write_all(&sum.to_be_bytes())?;
        to.flush()?;
        Ok(())
    }
}

/// A snapshot that is read from its beginning to its end.
struct Reader<R> {
    from: BufReader<Summed<R>>,
    count: u64,
}

fn number<const N: usize>(from: &mut impl Read) -> Result<[u8; N], WorldError> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)
        .map_err(|_| invalid("it ends early"))?;
    Ok(bytes)
}

impl<R: Read> Reader<R> {
    fn open(from: R) -> Result<(Header, Reader<R>), WorldError> {
        let mut from = BufReader::with_capacity(1 << 16, Summed::new(from));
        let mut magic = vec![0; MAGIC.len()];
        if from.read_exact(&mut magic).is_err() || magic != MAGIC.as_bytes() {
            return Err(invalid(format!(
                "it does not begin with `{}`",
                MAGIC.trim_end()
            )));
        }
        let mut line = Vec::new();
        (&mut from)
            .take(HEADER_LIMIT)
            .read_until(b'\n', &mut line)?;
        let header = serde_json::from_slice(&line).map_err(|error| invalid(error.to_string()))?;
        Ok((header, Reader { from, count: 0 }))
    }

    /// The next pair; `None` at a good end.
    fn next(&mut self) -> Result<Option<(Bytes, Bytes)>, WorldError> {
        let key_length = u32::from_be_bytes(number(&mut self.from)?);
        if key_length == END {
            let count = u64::from_be_bytes(number(&mut self.from)?);
            if count != self.count {
                return Err(invalid(format!("{} pairs of {count}", self.count)));
            }
            return Ok(None);
        }
        let value_length = u32::from_be_bytes(number(&mut self.from)?);
        let limits = (fdb::KEY_SIZE_LIMIT, fdb::VALUE_SIZE_LIMIT);
        let mut read = |length: u32, limit: usize| {
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            if length > limit {
                return Err(invalid(format!("{length} bytes at once")));
            }
            let mut bytes = vec![0; length];
            let all = self.from.read_exact(&mut bytes);
            all.map_err(|_| invalid("it ends early"))?;
            Ok(Bytes::from(bytes))
        };
        let pair = (read(key_length, limits.0)?, read(value_length, limits.1)?);
        self.count += 1;
        Ok(Some(pair))
    }
}

/// Reads a snapshot to its end, and checks it. Blocks.
pub fn check(mut from: impl Read) -> Result<Header, WorldError> {
    // The sum is of all bytes but the last four: those are held back.
    let mut held = HoldBack::new(&mut from)?;
    let (header, mut reader) = Reader::open(&mut held)?;
    while reader.next()?.is_some() {}
    let mut rest = Vec::new();
    reader.from.read_to_end(&mut rest)?;
    let sum = reader.from.get_ref().sum;
    if !rest.is_empty() {
        return Err(invalid("something follows its end"));
    }
    drop(reader);
    if held.tail != sum.to_be_bytes() {
        return Err(invalid("its sum is wrong"));
    }
    Ok(header)
}

/// All but the last four bytes of a reader.
struct HoldBack<R> {
    inner: R,
    tail: [u8; 4],
}

impl<R: Read> HoldBack<R> {
    fn new(mut inner: R) -> Result<HoldBack<R>, WorldError> {
        let tail = number(&mut inner)?;
        Ok(HoldBack { inner, tail })
    }
}

impl<R: Read> Read for HoldBack<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let read = self.inner.read(buffer)?;
        // What was held back comes first, and as much of the end is held back now.
        let mut window = Vec::with_capacity(read + self.tail.len());
        window.extend_from_slice(&self.tail);
        window.extend_from_slice(&buffer[..read]);
        let (now, later) = window.split_at(read);
        buffer[..read].copy_from_slice(now);
        self.tail.copy_from_slice(later);
        Ok(read)
    }
}

/// Takes everything away, and keeps the seed of what comes. One transaction.
pub async fn clear(database: &Database, seed: u64) -> Result<(), WorldError> {
    wipe(database, Some(seed), false).await
}

async fn wipe(database: &Database, seed: Option<u64>, loading: bool) -> Result<(), WorldError> {
    let write = |transaction: fdb::Transaction| async move {
        transaction.clear_range(FIRST, AFTER_LAST);
        if let Some(seed) = seed {
            transaction.set(SEED, seed.to_be_bytes().to_vec());
        }
        if loading {
            transaction.set(LOADING, Bytes::new());
        }
        Ok::<_, fdb::Error>(())
    };
    Ok(database.transact(write).await?)
}

/// Makes the store's content that of a snapshot which [`check`] found good.
pub async fn load(database: &Database, from: impl Read) -> Result<Header, WorldError> {
    let (header, mut reader) = Reader::open(from)?;
    wipe(database, Some(header.seed), true).await?;
    loop {
        let (mut batch, mut size) = (Vec::new(), 0);
        let mut ended = false;
        while size < BATCH_BYTES {
            match reader.next()? {
                Some((key, value)) => {
                    size += key.len() + value.len();
                    batch.push((key, value));
                }
                None => {
                    ended = true;
                    break;
                }
            }
        }
        let batch = &batch;
        let write = |transaction: fdb::Transaction| async move {
            for (key, value) in batch {
                transaction.set(key.clone(), value.clone());
            }
            if ended {
                transaction.clear(LOADING);
            }
            Ok::<_, fdb::Error>(())
        };
        database.transact(write).await?;
        if ended {
            return Ok(header);
        }
    }
}

/// Clears a store that was being loaded when its process ended. Whether it was.
pub async fn recover(database: &Database) -> Result<bool, WorldError> {
    let read = |transaction: fdb::Transaction| async move { transaction.get(LOADING, true).await };
    let was_loading = database.transact(read).await?.is_some();
    if was_loading {
        wipe(database, None, false).await?;
    }
    Ok(was_loading)
}

/// The seed that a reset or a restored snapshot left.
pub async fn kept_seed(database: &Database) -> Result<Option<u64>, WorldError> {
    let read = |transaction: fdb::Transaction| async move { transaction.get(SEED, true).await };
    let kept = database.transact(read).await?;
    let seed = kept.and_then(|bytes| Some(u64::from_be_bytes(bytes.as_ref().try_into().ok()?)));
    Ok(seed)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn open(directory: &tempfile::TempDir) -> Database {
        let options = fdb::EmbeddedOptions::default();
        Database::open_embedded(directory.path(), options)
            .await
            .expect("a store")
    }

    async fn fill(database: &Database, pairs: usize, seed: u8) {
        let write = |transaction: fdb::Transaction| async move {
            for index in 0..pairs {
                transaction.set(format!("{seed}/{index:05}"), vec![seed; index % 300]);
            }
            Ok::<_, fdb::Error>(())
        };
        database.transact(write).await.expect("a commit");
    }

    fn all(database: &Database) -> Vec<(Bytes, Bytes)> {
        let pairs = database
            .pairs(FIRST, AFTER_LAST)
            .expect("a view")
            .expect("pairs");
        pairs.map(|pair| pair.expect("a pair")).collect()
    }

    fn header() -> Header {
        Header {
            clock: Timestamp(5),
            seed: 9,
            api_faults: serde_json::json!([{"number": 1}]),
        }
    }

    #[tokio::test]
    async fn what_was_there_comes_back_and_nothing_else() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let database = open(&one).await;
        fill(&database, 3_000, 1).await;
        let content = Content::of(&database).unwrap().expect("an embedded store");
        let before = all(&database);
        // What comes later is not in it.
        fill(&database, 10, 2).await;
        let mut file = Vec::new();
        content.write(&header(), &mut file).unwrap();
        assert_eq!(check(file.as_slice()).unwrap(), header());
        let second = open(&other).await;
        fill(&second, 50, 3).await;
        assert_eq!(load(&second, file.as_slice()).await.unwrap(), header());
        assert_eq!(kept_seed(&second).await.unwrap(), Some(9));
        let mut expect = before;
        expect.push((
            Bytes::from_static(SEED),
            9_u64.to_be_bytes().to_vec().into(),
        ));
        assert_eq!(all(&second), expect);
        assert!(!recover(&second).await.unwrap());
        clear(&second, 4).await.unwrap();
        assert_eq!(all(&second).len(), 1);
        assert_eq!(kept_seed(&second).await.unwrap(), Some(4));
    }

    #[tokio::test]
    async fn a_file_that_is_damaged_anywhere_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let database = open(&directory).await;
        fill(&database, 20, 1).await;
        let content = Content::of(&database).unwrap().expect("an embedded store");
        let mut file = Vec::new();
        content.write(&header(), &mut file).unwrap();
        check(file.as_slice()).unwrap();
        for length in 0..file.len() {
            assert!(check(&file[..length]).is_err(), "the first {length} bytes");
        }
        for index in 0..file.len() {
            let mut damaged = file.clone();
            damaged[index] ^= 1;
            assert!(check(damaged.as_slice()).is_err(), "byte {index}");
        }
        file.push(0);
        assert!(check(file.as_slice()).is_err());
    }

    #[tokio::test]
    async fn half_a_world_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let database = open(&directory).await;
        fill(&database, 5, 1).await;
        wipe(&database, Some(3), true).await.unwrap();
        fill(&database, 5, 2).await;
        assert!(recover(&database).await.unwrap());
        assert!(all(&database).is_empty());
    }
}
