//! Ranges of keys that somebody may read or write.

use etcd_proto::authpb::Permission;
use etcd_proto::authpb::permission::Type;

/// Up to where a range goes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Bound {
    /// Up to this key, exclusively.
    Before(Vec<u8>),
    /// To the last key. Greater than every other bound.
    Open,
}

/// From a key to a bound; an end of nothing is the key alone, and one zero byte is every key from it on.
fn range(key: &[u8], range_end: &[u8]) -> (Vec<u8>, Bound) {
    let end = match range_end {
        [] => Bound::Before([key, b"\0"].concat()),
        [0] => Bound::Open,
        end => Bound::Before(end.to_vec()),
    };
    (key.to_vec(), end)
}

/// Whether a permission for it can be given: the end is behind the key.
pub(super) fn is_valid(key: &[u8], range_end: &[u8]) -> bool {
    if key.is_empty() {
        return false;
    }
    range_end.is_empty() || range_end == [0] || key < range_end
}

/// Ranges, none of which touches another.
#[derive(Clone, Debug, Default)]
pub(super) struct Ranges(Vec<(Vec<u8>, Bound)>);

impl Ranges {
    fn new(mut ranges: Vec<(Vec<u8>, Bound)>) -> Ranges {
        ranges.retain(|(start, end)| Bound::Before(start.clone()) < *end);
        ranges.sort();
        let mut merged: Vec<(Vec<u8>, Bound)> = Vec::new();
        for (start, end) in ranges {
            match merged.last_mut() {
                Some((_, last)) if Bound::Before(start.clone()) <= *last => {
                    if *last < end {
                        *last = end;
                    }
                }
                _ => merged.push((start, end)),
            }
        }
        Ranges(merged)
    }

    /// Whether all of the range is in. A range that ends before it begins is in nothing.
    pub(super) fn covers(&self, key: &[u8], range_end: &[u8]) -> bool {
        let (start, end) = range(key, range_end);
        if Bound::Before(start.clone()) >= end {
            return false;
        }
        let at = self.0.partition_point(|(from, _)| *from <= start);
        let found = at.checked_sub(1).and_then(|at| self.0.get(at));
        found.is_some_and(|(_, to)| end <= *to)
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Permissions {
    pub(super) read: Ranges,
    pub(super) write: Ranges,
}

impl Permissions {
    pub(super) fn new<'a>(permissions: impl Iterator<Item = &'a Permission>) -> Permissions {
        let (mut read, mut write) = (Vec::new(), Vec::new());
        for permission in permissions {
            let range = range(&permission.key, &permission.range_end);
            match permission.perm_type() {
                Type::Read => read.push(range),
                Type::Write => write.push(range),
                Type::Readwrite => {
                    read.push(range.clone());
                    write.push(range);
                }
            }
        }
        Permissions {
            read: Ranges::new(read),
            write: Ranges::new(write),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ranges(of: &[(&str, &str)]) -> Ranges {
        let ranges = of
            .iter()
            .map(|(key, end)| range(key.as_bytes(), end.as_bytes()));
        Ranges::new(ranges.collect())
    }

    #[test]
    fn ranges_cover_what_lies_within_their_union() {
        let check = |of: &[(&str, &str)], key: &str, end: &str, expect: bool| {
            let found = ranges(of).covers(key.as_bytes(), end.as_bytes());
            assert_eq!(found, expect, "{of:?} {key:?}..{end:?}");
        };
        check(&[("a", "")], "a", "", true);
        check(&[("a", "")], "a", "b", false);
        check(&[("a", "")], "b", "", false);
        check(&[("a", "c")], "b", "", true);
        check(&[("a", "c")], "c", "", false);
        check(&[("a", "c"), ("c", "e")], "b", "d", true);
        check(&[("a", "c"), ("d", "e")], "b", "e", false);
        check(&[("a", "c"), ("b", "e")], "a", "e", true);
        check(&[("a", "\0")], "z", "\0", true);
        check(&[("a", "z")], "b", "\0", false);
        check(&[("b", "\0")], "a", "\0", false);
        check(&[], "a", "", false);
        check(&[("a", "z")], "c", "b", false);
    }

    #[test]
    fn a_permission_has_keys() {
        let check = |key: &[u8], end: &[u8], expect: bool| assert_eq!(is_valid(key, end), expect);
        check(b"a", b"", true);
        check(b"a", b"\0", true);
        check(b"a", b"b", true);
        check(b"b", b"a", false);
        check(b"a", b"a", false);
        check(b"", b"", false);
    }

    proptest! {
        /// Against looking at every key of a small alphabet.
        #[test]
        fn covers_as_a_scan_says(
            of in proptest::collection::vec((0..8_u8, 0..10_u8), 0..5),
            key in 0..8_u8,
            end in 0..10_u8,
        ) {
            let end_of = |end: u8| match end { 0 => vec![], 9 => vec![0], end => vec![end] };
            let contains = |from: u8, end: u8, at: u8| match end {
                0 => at == from,
                9 => at >= from,
                end => from <= at && at < end,
            };
            let all: Vec<u8> = (1..10).collect();
            let of: Vec<(u8, u8)> = of.into_iter().map(|(from, end)| (from + 1, end)).collect();
            let key = key + 1;
            let asked: Vec<u8> = all.iter().copied().filter(|at| contains(key, end, *at)).collect();
            // Keys longer than a byte lie between: a range is no union of points.
            let points = of.iter().any(|(_, end)| *end == 0);
            prop_assume!(end == 0 || !points);
            let open = end != 9 || of.iter().any(|(_, end)| *end == 9);
            let expect = !asked.is_empty() && open
                && asked.iter().all(|at| of.iter().any(|(from, end)| contains(*from, *end, *at)));
            let ranges = Ranges::new(of.iter().map(|(from, end)| range(&[*from], &end_of(*end))).collect());
            prop_assert_eq!(ranges.covers(&[key], &end_of(end)), expect);
        }
    }
}
