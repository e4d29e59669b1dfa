//! Which of many key ranges contain a key, in logarithmic time.
//!
//! A treap ordered by the ranges' starts; each node knows the greatest end below it, so that a
//! search leaves out whole subtrees.
//!
//! Worked example: with `[a, d)`, `[b, c)` and `[e, open)`, key `b` is in the first two; key `d` in none,
//! and the search does not look below `[b, c)`; key `z` is in the last.

use std::cmp::Ordering;

use bytes::Bytes;

use crate::etcd::key_range::{End, KeyRange};

/// Ranges, each with a value of type `T`.
pub struct IntervalMap<T> {
    root: Link<T>,
    /// State of the generator that balances the tree.
    random: u64,
    len: usize,
}

type Link<T> = Option<Box<Node<T>>>;

struct Node<T> {
    range: KeyRange,
    value: T,
    priority: u64,
    /// Greatest end in this subtree; `None` is an open end.
    greatest_end: Option<Bytes>,
    left: Link<T>,
    right: Link<T>,
}

/// `None` is open. Single keys are not kept here.
fn end_of(range: &KeyRange) -> Option<Bytes> {
    match &range.end {
        End::Before(end) => Some(end.clone()),
        End::Single => Some(range.start.clone()),
        End::Open => None,
    }
}

fn greater_end(a: Option<Bytes>, b: Option<Bytes>) -> Option<Bytes> {
    Some(a?.max(b?))
}

fn order(a: &KeyRange, b: &KeyRange) -> Ordering {
    let ends = || match (end_of(a), end_of(b)) {
        (Some(a), Some(b)) => a.cmp(&b),
        (None, None) => Ordering::Equal,
        (None, Some(_)) => Ordering::Greater,
        (Some(_), None) => Ordering::Less,
    };
    a.start.cmp(&b.start).then_with(ends)
}

/// Every value, in no order.
fn values<T>(link: Link<T>, into: &mut Vec<T>) {
    if let Some(node) = link {
        let Node {
            value, left, right, ..
        } = *node;
        into.push(value);
        values(left, into);
        values(right, into);
    }
}

impl<T> Node<T> {
    fn update(&mut self) {
        let mut greatest = end_of(&self.range);
        for child in [&self.left, &self.right].into_iter().flatten() {
            greatest = greater_end(greatest, child.greatest_end.clone());
        }
        self.greatest_end = greatest;
    }
}

/// Those before `range`, and the rest.
fn split<T>(link: Link<T>, range: &KeyRange) -> (Link<T>, Link<T>) {
    let Some(mut node) = link else {
        return (None, None);
    };
    if order(&node.range, range) == Ordering::Less {
        let (left, right) = split(node.right.take(), range);
        node.right = left;
        node.update();
        (Some(node), right)
    } else {
        let (left, right) = split(node.left.take(), range);
        node.left = right;
        node.update();
        (left, Some(node))
    }
}

/// Everything in `left` comes before everything in `right`.
fn merge<T>(left: Link<T>, right: Link<T>) -> Link<T> {
    match (left, right) {
        (None, link) | (link, None) => link,
        (Some(mut left), Some(mut right)) => {
            if left.priority > right.priority {
                left.right = merge(left.right.take(), Some(right));
                left.update();
                Some(left)
            } else {
                right.left = merge(Some(left), right.left.take());
                right.update();
                Some(right)
            }
        }
    }
}

fn remove<T>(link: &mut Link<T>, range: &KeyRange) -> Option<T> {
    let node = link.as_mut()?;
    let removed = match order(range, &node.range) {
        Ordering::Less => remove(&mut node.left, range),
        Ordering::Greater => remove(&mut node.right, range),
        Ordering::Equal => {
            let node = link.take()?;
            *link = merge(node.left, node.right);
            return Some(node.value);
        }
    };
    node.update();
    removed
}

impl<T> Default for IntervalMap<T> {
    fn default() -> Self {
        IntervalMap {
            root: None,
            random: 0x9e37_79b9_7f4a_7c15,
            len: 0,
        }
    }
}

impl<T> IntervalMap<T> {
    pub fn into_values(self) -> Vec<T> {
        let mut found = Vec::with_capacity(self.len);
        values(self.root, &mut found);
        found
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn get_mut(&mut self, range: &KeyRange) -> Option<&mut T> {
        let mut link = &mut self.root;
        while let Some(node) = link {
            match order(range, &node.range) {
                Ordering::Less => link = &mut node.left,
                Ordering::Greater => link = &mut node.right,
                Ordering::Equal => return Some(&mut node.value),
            }
        }
        None
    }

    /// Adds a range that is not there yet.
    pub fn insert(&mut self, range: KeyRange, value: T) {
        // xorshift: any stream of bits will do to balance a tree.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let (left, right) = split(self.root.take(), &range);
        let node = Node {
            greatest_end: end_of(&range),
            range,
            value,
            priority: self.random,
            left: None,
            right: None,
        };
        self.root = merge(merge(left, Some(Box::new(node))), right);
        self.len += 1;
    }

    pub fn remove(&mut self, range: &KeyRange) -> Option<T> {
        let removed = remove(&mut self.root, range);
        self.len -= usize::from(removed.is_some());
        removed
    }

    /// Visits the values of all ranges that contain `key`.
    pub fn visit(&mut self, key: &[u8], mut visit: impl FnMut(&KeyRange, &mut T)) {
        fn go<T>(link: &mut Link<T>, key: &[u8], visit: &mut impl FnMut(&KeyRange, &mut T)) {
            let Some(node) = link else { return };
            if node
                .greatest_end
                .as_ref()
                .is_some_and(|end| end.as_ref() <= key)
            {
                return;
            }
            go(&mut node.left, key, visit);
            if node.range.start.as_ref() <= key {
                if node.range.contains(key) {
                    visit(&node.range, &mut node.value);
                }
                go(&mut node.right, key, visit);
            }
        }
        go(&mut self.root, key, &mut visit);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(start: u8, end: u8) -> KeyRange {
        let end = if end > 200 {
            End::Open
        } else {
            End::Before(Bytes::copy_from_slice(&[end]))
        };
        KeyRange {
            start: Bytes::copy_from_slice(&[start]),
            end,
        }
    }

    fn containing(map: &mut IntervalMap<usize>, key: u8) -> Vec<usize> {
        let mut found = Vec::new();
        map.visit(&[key], |_, value| found.push(*value));
        found.sort_unstable();
        found
    }

    #[test]
    fn the_worked_example() {
        let mut map = IntervalMap::default();
        map.insert(range(b'a', b'd'), 1);
        map.insert(range(b'b', b'c'), 2);
        map.insert(range(b'e', 255), 3);
        assert_eq!(containing(&mut map, b'b'), [1, 2]);
        assert_eq!(containing(&mut map, b'd'), [0; 0]);
        assert_eq!(containing(&mut map, b'z'), [3]);
    }

    proptest! {
        #[test]
        fn finds_what_a_scan_finds(ops in prop::collection::vec((any::<bool>(), any::<u8>(), any::<u8>()), 1..300)) {
            let mut map = IntervalMap::default();
            let mut all: Vec<(KeyRange, usize)> = Vec::new();
            for (number, (add, start, end)) in ops.into_iter().enumerate() {
                let range = range(start, end);
                let known = all.iter().position(|(other, _)| *other == range);
                match known {
                    None if add => {
                        map.insert(range.clone(), number);
                        all.push((range, number));
                    }
                    Some(at) if !add => {
                        prop_assert_eq!(map.remove(&range), Some(all.remove(at).1));
                    }
                    Some(at) => prop_assert_eq!(map.get_mut(&range), Some(&mut all[at].1)),
                    None => prop_assert_eq!(map.remove(&range), None),
                }
                // Take one out now and then, so that removal is met often.
                if number % 5 == 4 && !all.is_empty() {
                    let (range, value) = all.remove(number % all.len());
                    prop_assert_eq!(map.remove(&range), Some(value));
                }
            }
            prop_assert_eq!(map.len(), all.len());
            for key in 0..=255 {
                let expected: Vec<usize> = all
                    .iter()
                    .filter(|(range, _)| range.contains(&[key]))
                    .map(|(_, value)| *value)
                    .collect();
                prop_assert_eq!(containing(&mut map, key), expected);
            }
        }
    }
}
