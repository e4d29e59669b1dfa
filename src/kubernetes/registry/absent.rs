//! Kinds that a cluster has no object of: the components look at a dozen of them whenever something happens,
//! and in most clusters there is nothing to see.
//!
//! A kind is absent from when etcd said so until something of it is about to be written, whatever becomes of
//! that. So it holds only where all writes are made here.
//!
//! Worked example: somebody asks for Jobs, etcd is asked, and there are none; until a Job is created nobody
//! asks again. If it is created while etcd is being asked, the answer does not count.

use std::collections::BTreeMap;

use parking_lot::Mutex;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Known {
    /// etcd is being asked.
    Asking,
    Absent,
    /// There was one, or something was written: only etcd knows.
    Unknown,
}

/// By the prefix of the kind's keys. Bounded by the kinds that there are.
#[derive(Default)]
pub struct Absent {
    kinds: Mutex<BTreeMap<String, Known>>,
}

impl Absent {
    /// `None`: it has to be asked for, and the outcome is to be told to [`Absent::learn`].
    pub fn is_absent(&self, prefix: &str) -> Option<bool> {
        let mut kinds = self.kinds.lock();
        match kinds.get(prefix) {
            Some(Known::Absent) => Some(true),
            Some(Known::Unknown) => Some(false),
            Some(Known::Asking) | None => {
                kinds.insert(prefix.to_owned(), Known::Asking);
                None
            }
        }
    }

    pub fn learn(&self, prefix: &str, absent: bool) {
        let known = if absent {
            Known::Absent
        } else {
            Known::Unknown
        };
        if let Some(asking) = self.kinds.lock().get_mut(prefix)
            && *asking == Known::Asking
        {
            *asking = known;
        }
    }

    /// The key is about to be written.
    pub fn write(&self, key: &str) {
        for (prefix, known) in self.kinds.lock().iter_mut() {
            if key.starts_with(prefix.as_str()) {
                *known = Known::Unknown;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The worked example.
    #[test]
    fn nothing_is_asked_for_twice_until_something_is_written() {
        const JOBS: &str = "/registry/jobs/";
        let absent = Absent::default();
        assert_eq!(absent.is_absent(JOBS), None);
        absent.learn(JOBS, true);
        absent.write("/registry/pods/default/a");
        assert_eq!(absent.is_absent(JOBS), Some(true));
        absent.write("/registry/jobs/default/a");
        assert_eq!(absent.is_absent(JOBS), Some(false));
        absent.learn(JOBS, true);
        assert_eq!(absent.is_absent(JOBS), Some(false));
    }

    #[test]
    fn what_is_written_while_etcd_is_asked_counts() {
        const JOBS: &str = "/registry/jobs/";
        let absent = Absent::default();
        assert_eq!(absent.is_absent(JOBS), None);
        absent.write("/registry/jobs/default/a");
        absent.learn(JOBS, true);
        assert_eq!(absent.is_absent(JOBS), Some(false));
    }
}
