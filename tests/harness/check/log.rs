//! The log: every revision with what it changed.
//!
//! Worked example. Revision 2 puts `a`, revision 3 puts `a` and deletes nothing, revision 4 deletes
//! `a`: then `a` at 2 has version 1, at 3 version 2 with create revision 2, and from 4 on is absent.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use etcd_proto::mvccpb::KeyValue;

use super::{Rule, Violation};
use crate::history::{Change, show_kv};
use crate::request::Keys;

/// The first revision that a write can have.
pub const FIRST: i64 = 2;

#[derive(Debug, Default)]
pub struct Log {
    /// From revision [`FIRST`] on.
    revisions: Vec<Vec<Change>>,
    /// Each key's records, ascending; `None` from a deletion on.
    versions: BTreeMap<Bytes, Vec<(i64, Option<KeyValue>)>>,
}

impl Log {
    /// The log that these events tell of. What cannot be is told, and left out or taken as it is.
    pub fn build(told: &[Change], violations: &mut Vec<Violation>) -> Log {
        let mut log = Log::default();
        for revision in told.chunk_by(|a, b| a.revision == b.revision) {
            let (found, next) = (revision[0].revision, log.last() + 1);
            if found < next {
                violations.push(Violation::new(
                    Rule::Log,
                    format!("the scribe was told of {found} after {}", log.last()),
                ));
                continue;
            }
            for missing in next..found {
                let detail = format!("nobody was told what revision {missing} changed");
                violations.push(Violation::new(Rule::Log, detail));
                log.revisions.push(Vec::new());
            }
            for change in revision {
                if let Err(detail) = log.follows(change) {
                    violations.push(Violation::new(Rule::Log, detail));
                }
                let versions = log.versions.entry(change.key.clone()).or_default();
                versions.push((found, change.kv.clone()));
            }
            log.revisions.push(revision.to_vec());
        }
        log
    }

    /// Whether the change follows from what was before it.
    fn follows(&self, change: &Change) -> Result<(), String> {
        let before = self.get(&change.key, change.revision - 1);
        let Some(kv) = &change.kv else {
            let known = before.is_some();
            return known
                .then_some(())
                .ok_or_else(|| format!("{change}: there was nothing to delete"));
        };
        let expected = KeyValue {
            key: change.key.clone(),
            create_revision: before.map_or(change.revision, |before| before.create_revision),
            mod_revision: change.revision,
            version: before.map_or(1, |before| before.version + 1),
            value: kv.value.clone(),
            lease: kv.lease,
        };
        if *kv == expected {
            Ok(())
        } else {
            let expected = show_kv(&expected);
            Err(format!("{change}: expected {expected}"))
        }
    }

    /// The newest revision.
    pub fn last(&self) -> i64 {
        FIRST - 1 + i64::try_from(self.revisions.len()).expect("a history fits memory")
    }

    pub fn changes(&self, revision: i64) -> &[Change] {
        usize::try_from(revision - FIRST)
            .ok()
            .and_then(|at| self.revisions.get(at))
            .map_or(&[], Vec::as_slice)
    }

    pub fn get(&self, key: &[u8], revision: i64) -> Option<&KeyValue> {
        at(self.versions.get(key)?, revision)
    }

    /// The live records of the range, by key.
    pub fn scan(&self, keys: &Keys, revision: i64) -> Vec<&KeyValue> {
        if keys.end.is_empty() {
            return self.get(&keys.start, revision).into_iter().collect();
        }
        self.versions
            .range::<[u8], _>((Bound::Included(keys.start.as_ref()), Bound::Unbounded))
            .take_while(|(key, _)| keys.contains(key))
            .filter_map(|(_, versions)| at(versions, revision))
            .collect()
    }
}

fn at(versions: &[(i64, Option<KeyValue>)], revision: i64) -> Option<&KeyValue> {
    let after = versions.partition_point(|(at, _)| *at <= revision);
    versions[..after].last()?.1.as_ref()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::model::tests::{delete, put};

    fn check(told: &[Change], expect: &[Rule]) -> Log {
        let mut violations = Vec::new();
        let log = Log::build(told, &mut violations);
        let rules: Vec<Rule> = violations.iter().map(|violation| violation.rule).collect();
        assert_eq!(rules, expect, "{violations:?}");
        log
    }

    #[test]
    fn the_worked_example() {
        let log = check(
            &[
                put("a", "1", 2, 2, 1),
                put("a", "2", 3, 2, 2),
                delete("a", 4),
            ],
            &[],
        );
        assert_eq!(log.last(), 4);
        let versions: Vec<Option<i64>> = (1..6)
            .map(|at| log.get(b"a", at).map(|kv| kv.version))
            .collect();
        assert_eq!(versions, [None, Some(1), Some(2), None, None]);
    }

    #[test]
    fn what_cannot_be_is_told() {
        check(&[put("a", "1", 3, 3, 1)], &[Rule::Log]);
        check(&[put("a", "1", 2, 2, 2)], &[Rule::Log]);
        check(&[put("a", "1", 2, 1, 1)], &[Rule::Log]);
        check(&[delete("a", 2)], &[Rule::Log]);
        let (first, second) = (put("a", "1", 2, 2, 1), put("b", "1", 3, 3, 1));
        check(&[first.clone(), second.clone(), first], &[Rule::Log]);
        check(&[second], &[Rule::Log]);
    }
}
