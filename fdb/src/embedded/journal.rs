//! Cuts a torn batch off the end of fjall's journal before fjall reads it.
//!
//! fjall itself discards a last batch that simply stops. But a write that was under way when the power went can
//! leave more than that: the disk may have stored a later page and not an earlier one, and fjall takes the zeros
//! in between for data, finds a wrong checksum and refuses to open ([`fjall::JournalRecoveryError`]). Such a batch
//! was never acknowledged, because the store writes a batch only after the one before it is on disk: so the last
//! batch alone can be torn, and it may go.
//!
//! A broken batch with a whole one *behind* it is something else: data that was on disk has changed. Then nothing
//! is touched, and opening the store fails. So it does for anything broken in an older journal: those were complete
//! and on disk before the next one was begun, but fjall takes some kinds of damage there for an unfinished end and
//! would go on without the rest.
//!
//! A batch counts as whole only if its sequence number follows the one before it. fjall's checksum does not cover
//! that number, but by it fjall decides which of two writes is newer, and which ones it has in its tables already.
//!
//! The format (fjall 3, one byte of tag each): `Start` = 1, item count, sequence number; `Item` = 2, kind,
//! compression, keyspace, lengths of key, value and stored value, key, stored value; `Clear` = 4, keyspace; `End`
//! = 3, xxh3 of the items, four magic bytes. Integers are little-endian. Files are zeros behind the last batch.

use std::{
    fs, io,
    path::{Path, PathBuf},
};
use xxhash_rust::xxh3::Xxh3;

const MAGIC: [u8; 4] = *b"FJL\x03";
/// fjall numbers batches one after the other; flushes take numbers as well, but never so many between two batches.
const SEQUENCE_GAP: u64 = 1 << 32;

/// What stands at the end of a journal.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Tail {
    /// Nothing: the file ends, or is zeros from here on.
    Clean,
    /// A broken batch, and nothing whole behind it. So many bytes of whole batches are before it.
    Torn { whole_bytes: usize },
    /// A broken batch at this position with a whole one behind it.
    Corrupt { position: usize },
}

/// Checks the journals of the fjall database in `directory` and repairs the newest.
///
/// Reads them once, 256 MB at most: a tenth of a second from memory.
///
/// # Errors
/// `InvalidData` if a journal is corrupt before the last batch; whatever the file system says.
pub(super) fn repair(directory: &Path) -> io::Result<()> {
    let mut sequence = None;
    let mut journals = journals(directory)?.into_iter().peekable();
    while let Some(path) = journals.next() {
        let bytes = fs::read(&path)?;
        let tail = match examine(&bytes, &mut sequence) {
            Tail::Torn { whole_bytes } if journals.peek().is_some() => Tail::Corrupt {
                position: whole_bytes,
            },
            tail => tail,
        };
        finish(&path, &tail)?;
    }
    Ok(())
}

fn finish(path: &Path, tail: &Tail) -> io::Result<()> {
    match *tail {
        Tail::Clean => Ok(()),
        Tail::Torn { whole_bytes } => {
            tracing::warn!(journal = %path.display(), whole_bytes, "cutting off a commit that a crash left unfinished");
            let file = fs::File::options().write(true).open(path)?;
            file.set_len(whole_bytes as u64)?;
            file.sync_all()
        }
        Tail::Corrupt { position } => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{} is corrupt at byte {position}", path.display()),
        )),
    }
}

/// The oldest first.
fn journals(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut journals = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let number = path
            .file_name()
            .and_then(|name| name.to_str()?.strip_suffix(".jnl")?.parse::<u64>().ok());
        if let Some(number) = number {
            journals.push((number, path));
        }
    }
    journals.sort_unstable();
    Ok(journals.into_iter().map(|(_, path)| path).collect())
}

/// `sequence` is the number of the last batch before, and becomes that of the last whole one.
fn examine(journal: &[u8], sequence: &mut Option<u64>) -> Tail {
    let mut position = 0;
    while let Some(batch) = journal.get(position..).and_then(whole_batch) {
        let follows = sequence.is_none_or(|before| {
            let gap = batch.sequence.checked_sub(before);
            gap.is_some_and(|gap| (1..SEQUENCE_GAP).contains(&gap))
        });
        if !follows {
            // No torn write leaves the items whole and the number before them not.
            return Tail::Corrupt { position };
        }
        *sequence = Some(batch.sequence);
        position += batch.length;
    }
    let rest = journal.get(position..).unwrap_or_default();
    if rest.iter().all(|byte| *byte == 0) {
        return Tail::Clean;
    }
    // `Start` is the tag 1; everything else cannot begin a batch. The first byte is the broken one's own.
    let whole_behind = rest
        .iter()
        .enumerate()
        .skip(1)
        .filter(|(_, byte)| **byte == 1)
        .any(|(at, _)| rest.get(at..).and_then(whole_batch).is_some());
    if whole_behind {
        Tail::Corrupt { position }
    } else {
        Tail::Torn {
            whole_bytes: position,
        }
    }
}

struct Batch {
    length: usize,
    sequence: u64,
}

/// The batch that begins here, if it is whole.
fn whole_batch(bytes: &[u8]) -> Option<Batch> {
    let mut reader = Reader { bytes, position: 0 };
    if reader.u8()? != 1 {
        return None;
    }
    let items = reader.u32()?;
    let sequence = reader.u64()?;
    let mut checksum = Xxh3::new();
    for _ in 0..items {
        let from = reader.position;
        match reader.u8()? {
            2 => {
                // Kind, compression, keyspace.
                reader.take(1 + 1 + 8)?;
                let key_length = reader.u16()?;
                let _value_length = reader.u32()?;
                let stored_length = reader.u32()?;
                reader.take(usize::from(key_length))?;
                reader.take(usize::try_from(stored_length).ok()?)?;
            }
            4 => {
                reader.take(8)?;
            }
            _ => return None,
        }
        checksum.update(bytes.get(from..reader.position)?);
    }
    let whole = reader.u8()? == 3 && reader.u64()? == checksum.digest() && reader.take(4)? == MAGIC;
    whole.then_some(Batch {
        length: reader.position,
        sequence,
    })
}

struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let end = self.position.checked_add(length)?;
        let taken = self.bytes.get(self.position..end)?;
        self.position = end;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn examine(journal: &[u8]) -> Tail {
        super::examine(journal, &mut None)
    }

    /// A batch as fjall writes it, of `(key, value)` items.
    fn batch(sequence: u64, items: &[(&str, &str)]) -> Vec<u8> {
        let mut body = Vec::new();
        for (key, value) in items {
            body.extend([2, 0, 0]);
            body.extend(1u64.to_le_bytes());
            body.extend(u16::try_from(key.len()).unwrap().to_le_bytes());
            let length = u32::try_from(value.len()).unwrap().to_le_bytes();
            body.extend(length);
            body.extend(length);
            body.extend(key.as_bytes());
            body.extend(value.as_bytes());
        }
        let mut bytes = vec![1];
        bytes.extend(u32::try_from(items.len()).unwrap().to_le_bytes());
        bytes.extend(sequence.to_le_bytes());
        bytes.extend(&body);
        bytes.push(3);
        bytes.extend(xxhash_rust::xxh3::xxh3_64(&body).to_le_bytes());
        bytes.extend(MAGIC);
        bytes
    }

    #[test]
    fn whole_batches_are_clean_also_before_zeros() {
        let mut journal = batch(7, &[("a", "1"), ("b", "2")]);
        journal.extend(batch(8, &[("c", "3")]));
        assert_eq!(examine(&journal), Tail::Clean);
        journal.extend([0; 100]);
        assert_eq!(examine(&journal), Tail::Clean);
        assert_eq!(examine(&[]), Tail::Clean);
    }

    #[test]
    fn a_last_batch_with_any_byte_missing_or_changed_is_torn() {
        let first = batch(7, &[("a", "1")]);
        let last = batch(8, &[("c", "3"), ("d", "4")]);
        let torn = Tail::Torn {
            whole_bytes: first.len(),
        };
        for at in 0..last.len() {
            let mut cut = first.clone();
            cut.extend(&last[..at]);
            let expect = if at == 0 { &Tail::Clean } else { &torn };
            assert_eq!(&examine(&cut), expect, "cut at {at}");

            let mut changed = first.clone();
            changed.extend(&last);
            changed[first.len() + at] ^= 0x40;
            let corrupt = Tail::Corrupt {
                position: first.len(),
            };
            let expect = match at {
                // A sequence number that is a little higher contradicts nothing.
                5..9 => &Tail::Clean,
                9..13 => &corrupt,
                _ => &torn,
            };
            assert_eq!(&examine(&changed), expect, "changed at {at}");
        }
    }

    #[test]
    fn sequence_numbers_rise() {
        for (second, whole) in [
            (8, true),
            (900, true),
            (7, false),
            (6, false),
            (0, false),
            (u64::MAX, false),
        ] {
            let mut journal = batch(7, &[("a", "1")]);
            let position = journal.len();
            journal.extend(batch(second, &[("b", "2")]));
            let corrupt = Tail::Corrupt { position };
            let expect = if whole { &Tail::Clean } else { &corrupt };
            assert_eq!(&examine(&journal), expect, "{second}");
        }
    }

    #[test]
    fn only_the_newest_journal_may_be_torn() {
        let write = |old: &[u8], new: &[u8]| {
            let directory = tempfile::tempdir().unwrap();
            fs::write(directory.path().join("9.jnl"), old).unwrap();
            fs::write(directory.path().join("10.jnl"), new).unwrap();
            let repaired = repair(directory.path()).map_err(|error| error.kind());
            (repaired, fs::read(directory.path().join("10.jnl")).unwrap())
        };
        let (old, new) = (batch(7, &[("a", "1")]), batch(8, &[("b", "2")]));
        let damaged = Err(io::ErrorKind::InvalidData);
        assert_eq!(write(&old, &new), (Ok(()), new.clone()));
        assert_eq!(write(&old, &new[..20]), (Ok(()), Vec::new()));
        assert_eq!(write(&old[..20], &new), (damaged, new.clone()));
        // The newer one's numbers go on where the older one's end.
        assert_eq!(write(&new, &old), (damaged, old.clone()));
    }

    #[test]
    fn a_broken_batch_before_a_whole_one_is_corruption() {
        let mut journal = batch(7, &[("a", "1")]);
        let position = journal.len();
        journal.extend(batch(8, &[("b", "2")]));
        journal[position + 20] ^= 1;
        journal.extend(batch(9, &[("c", "3")]));
        assert_eq!(examine(&journal), Tail::Corrupt { position });
    }
}
