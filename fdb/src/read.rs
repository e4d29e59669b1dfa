//! Range reads: the store's pairs and the transaction's own writes, merged.

use crate::{
    Error,
    embedded::{Pair, View},
    overlay::{self, Lookup, Overlay},
    range::{RangeResult, key_after},
};
use bytes::Bytes;
use std::cmp::Ordering;

/// Up to `limit` pairs of `begin..end`, ending with the one that reaches `target_bytes`.
///
/// # Errors
/// 1036 if something in what was read is not known before commit; 1510.
pub(crate) fn range(
    view: &View,
    overlay: &Overlay,
    begin: &Bytes,
    end: &Bytes,
    reverse: bool,
    limit: usize,
    target_bytes: usize,
) -> Result<RangeResult, Error> {
    if begin >= end {
        return Ok(RangeResult::default());
    }
    let mut batch = Batch {
        result: RangeResult::default(),
        bytes: 0,
        limit,
        target_bytes,
    };
    if overlay.is_empty() {
        let stored = view.range(begin, end);
        if reverse {
            batch.fill(stored.rev())?;
        } else {
            batch.fill(stored)?;
        }
        return Ok(batch.result);
    }

    let mut segments = overlay.uncleared(begin, end);
    let stored: Box<dyn Iterator<Item = _>> = if reverse {
        segments.reverse();
        Box::new(
            segments
                .iter()
                .flat_map(|(begin, end)| view.range(begin, end).rev()),
        )
    } else {
        Box::new(
            segments
                .iter()
                .flat_map(|(begin, end)| view.range(begin, end)),
        )
    };
    let own: Box<dyn Iterator<Item = _>> = if reverse {
        Box::new(overlay.keys_in(begin, end).rev())
    } else {
        Box::new(overlay.keys_in(begin, end))
    };
    let mut stored = stored.peekable();
    let mut own = own.peekable();
    let merged = std::iter::from_fn(|| {
        loop {
            let order = match (stored.peek(), own.peek()) {
                (None, None) => return None,
                (Some(_), None) | (Some(Err(_)), _) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(Ok((stored, _))), Some((own, _))) if reverse => (*own).cmp(stored),
                (Some(Ok((stored, _))), Some((own, _))) => stored.cmp(own),
            };
            if order == Ordering::Less {
                return stored.next();
            }
            let under = if order == Ordering::Equal {
                stored.next()
            } else {
                None
            };
            let under = match under.transpose() {
                Ok(under) => under.map(|(_, value)| value),
                Err(error) => return Some(Err(error)),
            };
            let (key, pending) = own.next()?;
            let value = match pending.lookup() {
                Lookup::Untouched => under,
                Lookup::Known(value) => value.cloned(),
                Lookup::Operations(operations) => overlay::resolve(operations, under),
                Lookup::Unreadable => return Some(Err(Error::ACCESSED_UNREADABLE)),
            };
            if let Some(value) = value {
                return Some(Ok((key.clone(), value)));
            }
        }
    });
    batch.fill(merged)?;
    let result = batch.result;
    match result.kvs.last() {
        Some((last, _)) if result.more && reverse => overlay.check_readable(last, end)?,
        Some((last, _)) if result.more => overlay.check_readable(begin, &key_after(last))?,
        _ => overlay.check_readable(begin, end)?,
    }
    Ok(result)
}

/// A result that fills up to its limits.
struct Batch {
    result: RangeResult,
    bytes: usize,
    limit: usize,
    target_bytes: usize,
}

impl Batch {
    fn fill(&mut self, pairs: impl Iterator<Item = Result<Pair, Error>>) -> Result<(), Error> {
        if self.limit == 0 {
            return Ok(());
        }
        for pair in pairs {
            let (key, value) = pair?;
            self.bytes += key.len() + value.len();
            self.result.kvs.push((key, value));
            if self.result.kvs.len() >= self.limit || self.bytes >= self.target_bytes {
                self.result.more = true;
                return Ok(());
            }
        }
        Ok(())
    }
}
