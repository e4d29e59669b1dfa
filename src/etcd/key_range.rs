//! The keys that a request means.

use bytes::Bytes;

/// One key, or an interval of keys, as `key` and `range_end` of a request spell it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyRange {
    pub start: Bytes,
    pub end: End,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// The range is the one key `start`.
    Single,
    /// Everything before this key.
    Before(Bytes),
    /// Everything from `start` on.
    Open,
}

impl KeyRange {
    /// An empty `range_end` is the one key; a single zero byte is everything from `key` on.
    pub fn new(key: &Bytes, range_end: &Bytes) -> KeyRange {
        let end = match range_end.as_ref() {
            b"" => End::Single,
            b"\0" => End::Open,
            _ => End::Before(range_end.clone()),
        };
        KeyRange {
            start: key.clone(),
            end,
        }
    }

    /// Copies the bounds out of the request's frame, for a range that outlives the request.
    pub fn to_owned_range(&self) -> KeyRange {
        KeyRange {
            start: Bytes::copy_from_slice(&self.start),
            end: match &self.end {
                End::Before(end) => End::Before(Bytes::copy_from_slice(end)),
                other => other.clone(),
            },
        }
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        match self.end {
            End::Single => key == self.start,
            _ => key >= self.start.as_ref() && !self.is_before(key),
        }
    }

    /// The whole range lies before `key`.
    pub fn is_before(&self, key: &[u8]) -> bool {
        match &self.end {
            End::Single => key > self.start.as_ref(),
            End::Before(end) => key >= end.as_ref(),
            End::Open => false,
        }
    }

    pub fn is_empty(&self) -> bool {
        matches!(&self.end, End::Before(end) if *end <= self.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(key: &'static str, end: &'static str) -> KeyRange {
        KeyRange::new(
            &Bytes::from_static(key.as_bytes()),
            &Bytes::from_static(end.as_bytes()),
        )
    }

    #[test]
    fn contains_what_etcd_says() {
        fn check(key: &'static str, end: &'static str, inside: &[&str], outside: &[&str]) {
            let range = range(key, end);
            for key in inside {
                assert!(range.contains(key.as_bytes()), "{range:?} {key}");
            }
            for key in outside {
                assert!(!range.contains(key.as_bytes()), "{range:?} {key}");
            }
        }
        check("a", "", &["a"], &["", "aa", "b"]);
        check("a", "c", &["a", "aa", "b"], &["", "c", "ca"]);
        check("a", "\0", &["a", "aa", "zz"], &["", "A"]);
        check("b", "a", &[], &["a", "aa", "b", "c"]);
        assert!(range("b", "a").is_empty());
        assert!(range("b", "b").is_empty());
        assert!(!range("b", "\0").is_empty());
    }
}
