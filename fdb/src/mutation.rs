//! What a transaction writes, and FoundationDB's atomic operations.

use crate::{Error, limits::VALUE_SIZE_LIMIT};
use bytes::{Bytes, BytesMut};
use std::borrow::Cow;

/// An atomic operation: the new value is computed from the old one when the transaction commits, so that
/// concurrent transactions that only operate on a key do not conflict.
///
/// Integers are little-endian and unsigned; operands of different length are padded with zeros, and the result
/// has the length of the parameter. As in FoundationDB since API version 510, an absent value makes `BitAnd` and
/// `Min` store the parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MutationType {
    /// Addition; overflow wraps.
    Add,
    /// Bitwise and.
    BitAnd,
    /// Bitwise or.
    BitOr,
    /// Bitwise exclusive or.
    BitXor,
    /// Appends the parameter unless the result would exceed the value limit; then nothing changes.
    AppendIfFits,
    /// The larger integer.
    Max,
    /// The smaller integer.
    Min,
    /// The bytewise smaller value.
    ByteMin,
    /// The bytewise larger value.
    ByteMax,
    /// Clears the key if its value is the parameter.
    CompareAndClear,
    /// The *key*'s last four bytes are a little-endian offset; they are cut off, and the ten bytes at that offset
    /// become the commit's versionstamp. The parameter is the value.
    SetVersionstampedKey,
    /// As `SetVersionstampedKey`, but it is the parameter (the value) that carries offset and stamp.
    SetVersionstampedValue,
}

/// A versionstamp is this long: eight bytes of commit version and two bytes of order within it, big-endian.
pub const VERSIONSTAMP_LENGTH: usize = 10;

/// One write of a transaction, in the order in which it was made.
#[derive(Debug, Clone)]
pub(crate) enum Mutation {
    Set {
        key: Bytes,
        value: Bytes,
    },
    Clear {
        key: Bytes,
    },
    ClearRange {
        begin: Bytes,
        end: Bytes,
    },
    Atomic {
        key: Bytes,
        param: Bytes,
        op: MutationType,
    },
}

/// Makes the versionstamp of the transaction that is number `order` of the batch with `version`.
pub(crate) fn versionstamp(version: i64, order: u16) -> [u8; VERSIONSTAMP_LENGTH] {
    let mut stamp = [0; VERSIONSTAMP_LENGTH];
    let (high, low) = stamp.split_at_mut(8);
    high.copy_from_slice(&version.to_be_bytes());
    low.copy_from_slice(&order.to_be_bytes());
    stamp
}

/// Splits a versionstamped operand into what is stored and where the stamp goes.
///
/// # Errors
/// [`Error::CLIENT_INVALID_OPERATION`] if there are no four bytes of offset or the stamp does not fit.
pub(crate) fn split_offset(operand: &Bytes) -> Result<(Bytes, usize), Error> {
    let Some((body, offset)) = operand.split_last_chunk::<4>() else {
        return Err(Error::CLIENT_INVALID_OPERATION);
    };
    let offset = usize::try_from(i32::from_le_bytes(*offset))
        .map_err(|_| Error::CLIENT_INVALID_OPERATION)?;
    if offset.saturating_add(VERSIONSTAMP_LENGTH) > body.len() {
        return Err(Error::CLIENT_INVALID_OPERATION);
    }
    Ok((operand.slice(..body.len()), offset))
}

/// Puts `stamp` into a versionstamped operand. The operand was checked by [`split_offset`] when it was written.
pub(crate) fn place_versionstamp(
    operand: &Bytes,
    stamp: &[u8; VERSIONSTAMP_LENGTH],
) -> Result<Bytes, Error> {
    let (body, offset) = split_offset(operand)?;
    let mut bytes = BytesMut::from(body.as_ref());
    match bytes.get_mut(offset..offset + VERSIONSTAMP_LENGTH) {
        Some(place) => place.copy_from_slice(stamp),
        None => return Err(Error::CLIENT_INVALID_OPERATION),
    }
    Ok(bytes.freeze())
}

/// The value that `op` makes of `old`; `None` is an absent key.
///
/// The two versionstamp operations are not functions of the old value: see [`place_versionstamp`]. Here they give
/// the parameter, so that the function is total.
pub(crate) fn apply(op: MutationType, old: Option<&Bytes>, param: &Bytes) -> Option<Bytes> {
    use MutationType as M;
    let Some(old) = old else {
        return match op {
            M::CompareAndClear => None,
            _ => Some(param.clone()),
        };
    };
    match op {
        M::CompareAndClear => (old != param).then(|| old.clone()),
        M::ByteMin => Some(old.min(param).clone()),
        M::ByteMax => Some(old.max(param).clone()),
        M::AppendIfFits => Some(append(old, param)),
        M::Add => Some(if old.is_empty() {
            param.clone()
        } else {
            add(old, param)
        }),
        M::BitAnd => Some(bitwise(old, param, |a, b| a & b)),
        M::BitOr => Some(bitwise(old, param, |a, b| a | b)),
        M::BitXor => Some(bitwise(old, param, |a, b| a ^ b)),
        M::Max => Some(larger_or_smaller(old, param, std::cmp::Ordering::Greater)),
        M::Min => Some(larger_or_smaller(old, param, std::cmp::Ordering::Less)),
        M::SetVersionstampedKey | M::SetVersionstampedValue => Some(param.clone()),
    }
}

fn append(old: &Bytes, param: &Bytes) -> Bytes {
    if param.is_empty() || old.len() + param.len() > VALUE_SIZE_LIMIT {
        return old.clone();
    }
    if old.is_empty() {
        return param.clone();
    }
    let mut joined = BytesMut::with_capacity(old.len() + param.len());
    joined.extend_from_slice(old);
    joined.extend_from_slice(param);
    joined.freeze()
}

/// `old` in the length of `param`: cut, or padded with zeros.
fn resized<'a>(old: &'a [u8], param: &[u8]) -> Cow<'a, [u8]> {
    match old.get(..param.len()) {
        Some(head) => Cow::Borrowed(head),
        None => {
            let mut padded = old.to_vec();
            padded.resize(param.len(), 0);
            Cow::Owned(padded)
        }
    }
}

fn bitwise(old: &Bytes, param: &Bytes, f: impl Fn(u8, u8) -> u8) -> Bytes {
    resized(old, param)
        .iter()
        .zip(param)
        .map(|(a, b)| f(*a, *b))
        .collect()
}

fn add(old: &Bytes, param: &Bytes) -> Bytes {
    let mut carry = 0u16;
    resized(old, param)
        .iter()
        .zip(param)
        .map(|(a, b)| {
            let sum = u16::from(*a) + u16::from(*b) + carry;
            carry = sum >> 8;
            sum.to_le_bytes()[0]
        })
        .collect()
}

/// The old value is compared in the parameter's length: bytes beyond it do not count, as in FoundationDB.
fn larger_or_smaller(old: &Bytes, param: &Bytes, keep_old_if: std::cmp::Ordering) -> Bytes {
    let old = resized(old, param);
    if old.iter().rev().cmp(param.iter().rev()) == keep_old_if {
        Bytes::copy_from_slice(&old)
    } else {
        param.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(op: MutationType, old: Option<&[u8]>, param: &[u8], expect: Option<&[u8]>) {
        let got = apply(
            op,
            old.map(Bytes::copy_from_slice).as_ref(),
            &Bytes::copy_from_slice(param),
        );
        assert_eq!(got.as_deref(), expect, "{op:?} {old:?} {param:?}");
    }

    #[test]
    fn add_is_little_endian_and_takes_the_parameters_length() {
        use MutationType::Add;
        check(Add, None, &[5, 0], Some(&[5, 0]));
        check(Add, Some(&[]), &[5, 0], Some(&[5, 0]));
        check(Add, Some(&[255, 0]), &[1, 0], Some(&[0, 1]));
        check(Add, Some(&[255]), &[1, 0, 0], Some(&[0, 1, 0]));
        check(Add, Some(&[255, 255]), &[1], Some(&[0]));
        check(Add, Some(&[255, 255]), &[1, 0], Some(&[0, 0]));
        check(Add, Some(&[7]), &[], Some(&[]));
    }

    #[test]
    fn bits() {
        use MutationType::{BitAnd, BitOr, BitXor};
        check(BitAnd, None, &[0b11], Some(&[0b11]));
        check(BitAnd, Some(&[0b10]), &[0b11, 0b11], Some(&[0b10, 0]));
        check(BitAnd, Some(&[]), &[0b11], Some(&[0]));
        check(BitOr, None, &[1], Some(&[1]));
        check(BitOr, Some(&[2]), &[1, 4], Some(&[3, 4]));
        check(BitOr, Some(&[2, 2]), &[1], Some(&[3]));
        check(BitXor, None, &[1], Some(&[1]));
        check(BitXor, Some(&[3]), &[1, 1], Some(&[2, 1]));
    }

    #[test]
    fn larger_and_smaller() {
        use MutationType::{ByteMax, ByteMin, Max, Min};
        check(Max, None, &[0], Some(&[0]));
        check(Max, Some(&[0, 1]), &[255, 0], Some(&[0, 1]));
        check(Max, Some(&[1]), &[0, 0], Some(&[1, 0]));
        check(Max, Some(&[0, 0, 9]), &[5, 0], Some(&[5, 0]));
        check(Min, None, &[9], Some(&[9]));
        check(Min, Some(&[]), &[9], Some(&[0]));
        check(Min, Some(&[0, 1]), &[255, 0], Some(&[255, 0]));
        check(Min, Some(&[3]), &[4, 1], Some(&[3, 0]));
        check(ByteMin, None, b"b", Some(b"b"));
        check(ByteMin, Some(b"a"), b"b", Some(b"a"));
        check(ByteMin, Some(b"aa"), b"a", Some(b"a"));
        check(ByteMax, None, b"b", Some(b"b"));
        check(ByteMax, Some(b"ab"), b"a", Some(b"ab"));
    }

    #[test]
    fn append_and_compare() {
        use MutationType::{AppendIfFits, CompareAndClear};
        check(AppendIfFits, None, b"x", Some(b"x"));
        check(AppendIfFits, Some(b"x"), b"y", Some(b"xy"));
        let full = vec![0; VALUE_SIZE_LIMIT];
        check(AppendIfFits, Some(&full), b"y", Some(&full));
        check(CompareAndClear, None, b"x", None);
        check(CompareAndClear, Some(b"x"), b"x", None);
        check(CompareAndClear, Some(b"x"), b"y", Some(b"x"));
    }

    #[test]
    fn versionstamps_go_where_the_offset_says() {
        let check = |operand: &[u8], expect: Result<&[u8], Error>| {
            let got =
                place_versionstamp(&Bytes::copy_from_slice(operand), &versionstamp(0x0102, 3));
            assert_eq!(
                got.as_deref(),
                expect.as_ref().map(|bytes| *bytes),
                "{operand:?}"
            );
        };
        check(b"k..........\x01\0\0\0", Ok(b"k\0\0\0\0\0\0\x01\x02\0\x03"));
        check(b"..........z\0\0\0\0", Ok(b"\0\0\0\0\0\0\x01\x02\0\x03z"));
        check(
            b"..........\x01\0\0\0",
            Err(Error::CLIENT_INVALID_OPERATION),
        );
        check(
            b"..........\xff\xff\xff\xff",
            Err(Error::CLIENT_INVALID_OPERATION),
        );
        check(b"abc", Err(Error::CLIENT_INVALID_OPERATION));
        check(b"", Err(Error::CLIENT_INVALID_OPERATION));
    }
}
