//! What the provider refused to a cluster's components, and when they ask again.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use super::cloud_api::CloudApiError;
use super::component::Pause;
use crate::clock::Timestamp;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// For want of room, which may come.
    pub quota: bool,
    /// As the provider says it.
    pub message: String,
    /// What was asked for: when that changes, it is asked for at once.
    asked: String,
    again_at: Timestamp,
    pause: Pause,
}

/// By cluster and name of what was asked for. In memory alone: a new process asks once more.
#[derive(Default)]
pub struct Refusals {
    by_cluster: Mutex<BTreeMap<String, BTreeMap<String, Refusal>>>,
}

impl Refusals {
    pub fn get(&self, cluster: &str, name: &str) -> Option<Refusal> {
        let all = self.by_cluster.lock();
        all.get(cluster)?.get(name).cloned()
    }

    pub fn of_cluster(&self, cluster: &str) -> BTreeMap<String, Refusal> {
        let all = self.by_cluster.lock();
        all.get(cluster).cloned().unwrap_or_default()
    }

    /// Whether it is too early to ask again.
    pub fn hold(&self, cluster: &str, name: &str, asked: &str, now: Timestamp) -> bool {
        let before = self.get(cluster, name);
        before.is_some_and(|before| before.asked == asked && now < before.again_at)
    }

    /// Keeps a refusal. The pause before the next try grows while the same is asked for.
    pub fn refuse(
        &self,
        cluster: &str,
        name: &str,
        asked: &str,
        error: &CloudApiError,
        now: Timestamp,
    ) {
        let before = self.get(cluster, name);
        let pause = before
            .filter(|before| before.asked == asked)
            .map_or_else(Pause::default, |before| before.pause);
        let (pause, wait) = pause.next();
        let refusal = Refusal {
            quota: error.is_quota(),
            message: match error {
                CloudApiError::Refused { message, .. } => message.clone(),
                other => other.to_string(),
            },
            asked: asked.to_owned(),
            again_at: now.saturating_add(wait),
            pause,
        };
        let mut all = self.by_cluster.lock();
        let of_cluster = all.entry(cluster.to_owned()).or_default();
        of_cluster.insert(name.to_owned(), refusal);
    }

    pub fn granted(&self, cluster: &str, name: &str) {
        self.retain(cluster, |other| other != name);
    }

    pub fn forget(&self, cluster: &str) {
        self.by_cluster.lock().remove(cluster);
    }

    /// Forgets what concerns names that are gone.
    pub fn retain(&self, cluster: &str, keep: impl Fn(&str) -> bool) {
        let mut all = self.by_cluster.lock();
        if let Some(of_cluster) = all.get_mut(cluster) {
            of_cluster.retain(|name, _| keep(name));
            if of_cluster.is_empty() {
                all.remove(cluster);
            }
        }
    }

    /// There may be room: what was refused for want of it may be asked for at once. Whether anything was.
    pub fn make_room(&self, cluster: &str) -> bool {
        let mut all = self.by_cluster.lock();
        let Some(of_cluster) = all.get_mut(cluster) else {
            return false;
        };
        let mut any = false;
        for refusal in of_cluster.values_mut().filter(|refusal| refusal.quota) {
            refusal.again_at = Timestamp(0);
            any = true;
        }
        any
    }

    /// When to ask again, if nothing changes before.
    pub fn wake(&self, cluster: &str) -> Option<Timestamp> {
        let all = self.by_cluster.lock();
        all.get(cluster)?
            .values()
            .map(|refusal| refusal.again_at)
            .min()
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    #[test]
    fn the_same_is_asked_for_again_after_pauses_that_grow() {
        let refusals = Refusals::default();
        let error = CloudApiError::Refused {
            status: StatusCode::INSUFFICIENT_STORAGE,
            code: String::from("clever.core.quota-exceeded"),
            message: String::from("no room"),
        };
        let at = |seconds: i64| Timestamp(seconds * 1000);
        refusals.refuse("c", "web", "80", &error, at(0));
        assert!(refusals.hold("c", "web", "80", at(4)));
        assert!(!refusals.hold("c", "web", "443", at(4)));
        assert!(!refusals.hold("d", "web", "80", at(4)));
        assert_eq!(refusals.wake("c"), Some(at(5)));
        refusals.refuse("c", "web", "80", &error, at(5));
        assert!(refusals.hold("c", "web", "80", at(14)));
        assert!(refusals.make_room("c"));
        assert!(!refusals.hold("c", "web", "80", at(6)));
        refusals.refuse("c", "web", "443", &error, at(6));
        assert_eq!(refusals.wake("c"), Some(at(11)));
        refusals.granted("c", "web");
        assert_eq!(refusals.get("c", "web"), None);
        assert!(!refusals.make_room("c"));
        assert_eq!(refusals.wake("c"), None);
    }
}
