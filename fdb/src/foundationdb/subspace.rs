//! The prefix that an installation has to itself.

use crate::limits::MAX_KEY;
use bytes::Bytes;

/// All keys that begin with a prefix, known to the outside without it.
#[derive(Debug, Clone)]
pub(super) struct Subspace {
    prefix: Bytes,
    /// The first key after all of them.
    end: Bytes,
}

impl Subspace {
    /// The keys of the tuple `(name,)` and of every longer one that begins so: no two names share any.
    pub(super) fn new(name: &str) -> Subspace {
        let prefix = [b"\x02", name.as_bytes(), b"\x00"].concat();
        let mut end = prefix.clone();
        // The last byte is zero, so this is the next prefix of the same length.
        end.pop();
        end.push(1);
        Subspace {
            prefix: Bytes::from(prefix),
            end: Bytes::from(end),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.prefix.len()
    }

    pub(super) fn begin(&self) -> &[u8] {
        &self.prefix
    }

    pub(super) fn end(&self) -> &[u8] {
        &self.end
    }

    /// The key in the database.
    pub(super) fn pack(&self, key: &[u8]) -> Vec<u8> {
        [&self.prefix, key].concat()
    }

    /// The same for the end of a range, which may be after all keys.
    pub(super) fn pack_bound(&self, key: &[u8]) -> Vec<u8> {
        if key >= MAX_KEY {
            self.end.to_vec()
        } else {
            self.pack(key)
        }
    }

    /// The key as the outside knows it: `""` if it is before all of them, `"\xff"` if after.
    pub(super) fn unpack(&self, key: &[u8]) -> Bytes {
        match key.strip_prefix(self.prefix.as_ref()) {
            Some(key) => Bytes::copy_from_slice(key),
            None if key < self.prefix.as_ref() => Bytes::new(),
            None => Bytes::from_static(MAX_KEY),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_known_without_the_prefix() {
        let space = Subspace::new("cke");
        assert_eq!(space.end(), b"\x02cke\x01");
        assert_eq!(space.pack(b"k"), b"\x02cke\x00k");
        assert_eq!(space.pack_bound(b"k"), b"\x02cke\x00k");
        assert_eq!(space.pack_bound(b"\xff"), b"\x02cke\x01");
        for (key, known) in [
            (&b"\x02cke\x00k"[..], &b"k"[..]),
            (b"\x02cke\x00", b""),
            (b"\x02cka\x00k", b""),
            (b"\x02cke\x01", b"\xff"),
            (b"\x02cke2\x00k", b"\xff"),
            (b"\xff", b"\xff"),
        ] {
            assert_eq!(space.unpack(key), known, "{key:?}");
        }
    }

    #[test]
    fn names_that_begin_alike_share_nothing() {
        let (short, long) = (Subspace::new("a"), Subspace::new("ab"));
        assert!(short.end() <= long.begin() || long.end() <= short.begin());
    }
}
