//! Writes a bbolt database file, front to back, in one pass.
//!
//! That is the format of etcd's snapshots, so `etcdctl snapshot status` and `restore` read ours. What is in the file is
//! laid out first, from the sizes of keys and values alone: then the pages can be streamed in order, although the
//! first ones point at the last.
//!
//! | pages | hold |
//! |---|---|
//! | 0, 1 | the meta pages, the same twice but for the transaction id |
//! | 2 | the free list, empty |
//! | 3.. | for each bucket its leaves, then its branches level by level, the root last |
//! | last | the leaf of buckets |
//!
//! Integers are little-endian. A page that is longer than [`PAGE_BYTES`] goes on in the pages behind it.

use bytes::{BufMut as _, Bytes, BytesMut};

pub const PAGE_BYTES: usize = 4096;
const PAGE_HEADER_BYTES: usize = 16;
const ELEMENT_BYTES: usize = 16;
/// Elements of a page are counted in two bytes.
const PAGE_ELEMENTS: usize = 0xfffe;

const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
const META: u16 = 0x04;
const FREE_LIST: u16 = 0x10;
/// Flag of a leaf element whose value is a bucket.
const BUCKET: u32 = 0x01;

const MAGIC: u32 = 0xed0c_daed;
const VERSION: u32 = 2;

/// Lengths of a key and its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    pub key: usize,
    pub value: usize,
}

impl Sizes {
    fn bytes(self) -> usize {
        ELEMENT_BYTES + self.key + self.value
    }
}

/// One page that is planned: so many elements, from where on, in so many pages of the file.
#[derive(Clone, Copy, Debug)]
struct Planned {
    id: u64,
    first: usize,
    count: usize,
    pages: u64,
}

/// Where a bucket's pages are.
#[derive(Clone, Debug)]
pub struct BucketPlan {
    leaves: Vec<Planned>,
    /// The level above the leaves first; the elements of each are the pages of the level below.
    branches: Vec<Vec<Planned>>,
    root: u64,
}

impl BucketPlan {
    /// The elements of each leaf: from, count.
    pub fn leaves(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.leaves.iter().map(|leaf| (leaf.first, leaf.count))
    }
}

/// Gives out pages of the file.
pub struct Layout {
    next_page: u64,
    buckets: Vec<(&'static str, u64)>,
}

impl Default for Layout {
    fn default() -> Self {
        Layout {
            next_page: 3,
            buckets: Vec::new(),
        }
    }
}

impl Layout {
    /// Lays out a bucket whose elements have these sizes, in the order of their keys. Buckets come in the order of their
    /// names. `key_len` is that of each element's key, for the branches.
    pub fn bucket(&mut self, name: &'static str, elements: &[Sizes]) -> BucketPlan {
        let mut leaves = self.pages(elements);
        if leaves.is_empty() {
            leaves.push(self.page(0, 0, 0));
        }
        let mut branches: Vec<Vec<Planned>> = Vec::new();
        let mut level = leaves.clone();
        // The first element of each page below, for its key.
        let mut firsts: Vec<usize> = leaves.iter().map(|leaf| leaf.first).collect();
        while level.len() > 1 {
            let sizes: Vec<Sizes> = firsts
                .iter()
                .map(|first| Sizes {
                    key: elements[*first].key,
                    value: 0,
                })
                .collect();
            let above = self.pages(&sizes);
            firsts = above.iter().map(|page| firsts[page.first]).collect();
            branches.push(above.clone());
            level = above;
        }
        let root = level[0].id;
        self.buckets.push((name, root));
        BucketPlan {
            leaves,
            branches,
            root,
        }
    }

    fn pages(&mut self, elements: &[Sizes]) -> Vec<Planned> {
        let mut pages = Vec::new();
        let (mut first, mut bytes) = (0, PAGE_HEADER_BYTES);
        for (at, element) in elements.iter().enumerate() {
            let count = at - first;
            if count > 0 && (bytes + element.bytes() > PAGE_BYTES || count == PAGE_ELEMENTS) {
                pages.push(self.page(first, count, bytes));
                (first, bytes) = (at, PAGE_HEADER_BYTES);
            }
            bytes += element.bytes();
        }
        if first < elements.len() {
            pages.push(self.page(first, elements.len() - first, bytes));
        }
        pages
    }

    fn page(&mut self, first: usize, count: usize, bytes: usize) -> Planned {
        let pages = bytes.div_ceil(PAGE_BYTES).max(1) as u64;
        let id = self.next_page;
        self.next_page += pages;
        Planned {
            id,
            first,
            count,
            pages,
        }
    }

    /// The layout is complete: what stands before the first bucket, what stands behind the last, and the file's length.
    pub fn finish(mut self, transaction: u64) -> (Bytes, Bytes, u64) {
        let sizes: Vec<Sizes> = self
            .buckets
            .iter()
            .map(|(name, _)| Sizes {
                key: name.len(),
                value: 16,
            })
            .collect();
        let bytes = PAGE_HEADER_BYTES + sizes.iter().map(|size| size.bytes()).sum::<usize>();
        let planned = self.page(0, sizes.len(), bytes);
        let entries: Vec<(Bytes, Bytes)> = self
            .buckets
            .iter()
            .map(|(name, root)| {
                let mut header = BytesMut::with_capacity(16);
                header.put_u64_le(*root);
                header.put_u64_le(0);
                (Bytes::from_static(name.as_bytes()), header.freeze())
            })
            .collect();
        let last = leaf(planned, &entries, BUCKET);
        let mut first = BytesMut::with_capacity(3 * PAGE_BYTES);
        for page in [0, 1] {
            let meta = meta(page, planned.id, self.next_page, transaction + page);
            first.extend_from_slice(&meta);
        }
        let free_list = Planned {
            id: 2,
            first: 0,
            count: 0,
            pages: 1,
        };
        let mut page = header(free_list, FREE_LIST);
        page.resize(PAGE_BYTES, 0);
        first.extend_from_slice(&page);
        (first.freeze(), last, self.next_page * PAGE_BYTES as u64)
    }
}

impl BucketPlan {
    /// The bytes of leaf number `at` with its elements.
    pub fn leaf(&self, at: usize, elements: &[(Bytes, Bytes)]) -> Bytes {
        leaf(self.leaves[at], elements, 0)
    }

    /// The bytes of all branches; `key_of` gives the key of an element.
    pub fn branches(&self, key_of: impl Fn(usize) -> Bytes) -> Bytes {
        let mut bytes = BytesMut::new();
        let mut below: Vec<(u64, usize)> = self
            .leaves
            .iter()
            .map(|leaf| (leaf.id, leaf.first))
            .collect();
        for level in &self.branches {
            for page in level {
                let children = &below[page.first..page.first + page.count];
                let children: Vec<(Bytes, u64)> = children
                    .iter()
                    .map(|(id, first)| (key_of(*first), *id))
                    .collect();
                bytes.extend_from_slice(&branch(*page, &children));
            }
            below = level
                .iter()
                .map(|page| (page.id, below[page.first].1))
                .collect();
        }
        debug_assert_eq!(below.first().map(|(id, _)| *id), Some(self.root));
        bytes.freeze()
    }
}

fn header(page: Planned, flags: u16) -> BytesMut {
    let mut bytes = BytesMut::with_capacity(PAGE_BYTES);
    bytes.put_u64_le(page.id);
    bytes.put_u16_le(flags);
    // Bounded by PAGE_ELEMENTS.
    bytes.put_u16_le(u16::try_from(page.count).unwrap_or(u16::MAX));
    bytes.put_u32_le(u32::try_from(page.pages - 1).unwrap_or(u32::MAX));
    bytes
}

fn pad(mut bytes: BytesMut, page: Planned) -> Bytes {
    bytes.resize(
        usize::try_from(page.pages).unwrap_or(usize::MAX) * PAGE_BYTES,
        0,
    );
    bytes.freeze()
}

fn length(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

fn leaf(page: Planned, elements: &[(Bytes, Bytes)], flags: u32) -> Bytes {
    let mut bytes = header(page, LEAF);
    // Positions count from the element itself.
    let mut position = elements.len() * ELEMENT_BYTES;
    for (key, value) in elements {
        bytes.put_u32_le(flags);
        bytes.put_u32_le(length(position));
        bytes.put_u32_le(length(key.len()));
        bytes.put_u32_le(length(value.len()));
        position = position + key.len() + value.len() - ELEMENT_BYTES;
    }
    for (key, value) in elements {
        bytes.put_slice(key);
        bytes.put_slice(value);
    }
    pad(bytes, page)
}

fn branch(page: Planned, children: &[(Bytes, u64)]) -> Bytes {
    let mut bytes = header(page, BRANCH);
    let mut position = children.len() * ELEMENT_BYTES;
    for (key, id) in children {
        bytes.put_u32_le(length(position));
        bytes.put_u32_le(length(key.len()));
        bytes.put_u64_le(*id);
        position = position + key.len() - ELEMENT_BYTES;
    }
    for (key, _) in children {
        bytes.put_slice(key);
    }
    pad(bytes, page)
}

fn meta(page: u64, root: u64, pages: u64, transaction: u64) -> Bytes {
    let planned = Planned {
        id: page,
        first: 0,
        count: 0,
        pages: 1,
    };
    let mut bytes = header(planned, META);
    bytes.put_u32_le(MAGIC);
    bytes.put_u32_le(VERSION);
    bytes.put_u32_le(length(PAGE_BYTES));
    bytes.put_u32_le(0);
    // The root bucket and its sequence, the free list, the end of the file.
    bytes.put_u64_le(root);
    bytes.put_u64_le(0);
    bytes.put_u64_le(2);
    bytes.put_u64_le(pages);
    bytes.put_u64_le(transaction);
    let checksum = fnv1a(&bytes[PAGE_HEADER_BYTES..]);
    bytes.put_u64_le(checksum);
    pad(bytes, planned)
}

/// FNV-1a of 64 bits.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a file back: all keys and values of a bucket, by the format's rules.
    fn read(file: &[u8], bucket: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
        let u32_at =
            |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().expect("4")) as usize;
        let u64_at = |at: usize| u64::from_le_bytes(file[at..at + 8].try_into().expect("8"));
        let count_at =
            |page: usize| u16::from_le_bytes(file[page + 10..page + 12].try_into().expect("2"));
        let flags_at =
            |page: usize| u16::from_le_bytes(file[page + 8..page + 10].try_into().expect("2"));
        let mut found = Vec::new();
        let mut pages = vec![u64_at(16 + 16)];
        let mut in_bucket = false;
        while let Some(id) = pages.pop() {
            let page = usize::try_from(id).expect("small") * PAGE_BYTES;
            assert_eq!(u64_at(page), id);
            let children: Vec<usize> = (0..usize::from(count_at(page)))
                .map(|n| page + PAGE_HEADER_BYTES + n * ELEMENT_BYTES)
                .collect();
            if flags_at(page) == BRANCH {
                pages.extend(children.iter().rev().map(|at| u64_at(at + 8)));
                continue;
            }
            assert_eq!(flags_at(page), LEAF);
            for at in children {
                let key = at + u32_at(at + 4);
                let value = key + u32_at(at + 8);
                let key = file[key..value].to_vec();
                let value = value..value + u32_at(at + 12);
                if in_bucket {
                    found.push((key, file[value].to_vec()));
                } else if key == bucket.as_bytes() {
                    pages.push(u64_at(value.start));
                }
            }
            in_bucket = true;
        }
        found
    }

    #[test]
    fn a_bucket_of_any_size_reads_back() {
        for (count, value) in [
            (0, 0),
            (1, 5),
            (3, 10_000),
            (500, 10),
            (40_000, 3),
            (20, 4080),
        ] {
            let elements: Vec<(Bytes, Bytes)> = (0..count)
                .map(|n: usize| (Bytes::from(format!("{n:08}")), Bytes::from(vec![7; value])))
                .collect();
            let sizes: Vec<Sizes> = elements
                .iter()
                .map(|(key, value)| Sizes {
                    key: key.len(),
                    value: value.len(),
                })
                .collect();
            let mut layout = Layout::default();
            let empty = layout.bucket("empty", &[]);
            let plan = layout.bucket("full", &sizes);
            let (first, last, file_bytes) = layout.finish(1);
            let mut file = BytesMut::from(first);
            file.extend_from_slice(&empty.leaf(0, &[]));
            for (at, (from, len)) in plan.leaves().enumerate() {
                file.extend_from_slice(&plan.leaf(at, &elements[from..from + len]));
            }
            file.extend_from_slice(&plan.branches(|at| elements[at].0.clone()));
            file.extend_from_slice(&last);
            assert_eq!(file.len() as u64, file_bytes, "{count} of {value}");
            let expect: Vec<(Vec<u8>, Vec<u8>)> = elements
                .iter()
                .map(|(key, value)| (key.to_vec(), value.to_vec()))
                .collect();
            assert_eq!(read(&file, "full"), expect);
            assert_eq!(read(&file, "empty"), []);
        }
    }
}
