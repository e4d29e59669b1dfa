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
    /// `prefix` is of printable ASCII, so there is a key after all that begin with it.
    pub(super) fn new(prefix: &str) -> Subspace {
        let end = match prefix.as_bytes().split_last() {
            None => MAX_KEY.to_vec(),
            Some((last, rest)) => [rest, &[last + 1]].concat(),
        };
        Subspace {
            prefix: Bytes::copy_from_slice(prefix.as_bytes()),
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
            Some(key) if !self.prefix.is_empty() || key < MAX_KEY => Bytes::copy_from_slice(key),
            Some(_) => Bytes::from_static(MAX_KEY),
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
        let space = Subspace::new("cke/");
        assert_eq!(space.end(), b"cke0");
        assert_eq!(space.pack(b"k"), b"cke/k");
        assert_eq!(space.pack_bound(b"k"), b"cke/k");
        assert_eq!(space.pack_bound(b"\xff"), b"cke0");
        for (key, known) in [
            (&b"cke/k"[..], &b"k"[..]),
            (b"cke/", b""),
            (b"cka", b""),
            (b"cke0", b"\xff"),
            (b"\xff", b"\xff"),
        ] {
            assert_eq!(space.unpack(key), known, "{key:?}");
        }
        let all = Subspace::new("");
        assert_eq!((all.begin(), all.end()), (&b""[..], &b"\xff"[..]));
        assert_eq!(all.unpack(b"k"), "k");
        assert_eq!(all.unpack(b"\xff/worker"), &b"\xff"[..]);
    }
}
