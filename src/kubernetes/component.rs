//! What the vendor's components have in common: they are told when to look, and what they look with.
//!
//! A component works on whole clusters, in the order of their ids. It looks at a cluster when
//! an object of a kind of its own was written there, or when the provider says that something of the
//! cluster's changed on its side; what it then sees, it sees over the two APIs. So a cluster where nothing
//! happens costs nothing.

use parking_lot::Mutex;
use serde_json::Value;

use super::KubernetesError;

/// Clusters that a component works on side by side when many of them wait: they have nothing in common, and share the
/// waits for the disk.
pub const CLUSTERS_AT_ONCE: usize = 64;

/// What changed on the provider's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Notice {
    NodeGroups,
    LoadBalancers,
    /// There may be room for what was refused.
    Quota,
}

/// Told of a cluster where there may be something to do. Must not wait.
pub type Wake = Box<dyn Fn(&str) + Send + Sync>;

/// A component, as whoever tells it of changes sees it. Must not wait.
pub trait Listener: Send + Sync {
    /// The object under `key` of the cluster's keyspace is `object` now, or gone.
    fn written(&self, cluster: &str, key: &str, object: Option<&Value>);

    /// Something changed on the provider's side.
    fn noticed(&self, cluster: &str, notice: Notice);

    /// Anything about the cluster may have changed, such as which instances of the components work.
    fn cluster_changed(&self, cluster: &str);
}

/// Wakes a component for some kinds of objects and some notices.
pub struct Bell {
    /// Keys of the objects that it looks at begin so, in the cluster's keyspace.
    pub prefixes: &'static [&'static str],
    pub notices: &'static [Notice],
    pub wake: Wake,
}

impl Listener for Bell {
    fn written(&self, cluster: &str, key: &str, _: Option<&Value>) {
        let prefixes = self.prefixes.iter();
        if prefixes.into_iter().any(|prefix| key.starts_with(prefix)) {
            (self.wake)(cluster);
        }
    }

    fn noticed(&self, cluster: &str, notice: Notice) {
        if self.notices.contains(&notice) {
            (self.wake)(cluster);
        }
    }

    fn cluster_changed(&self, cluster: &str) {
        (self.wake)(cluster);
    }
}

/// Who is told of what. Empty while this process does not act.
#[derive(Default)]
pub struct Listeners {
    list: Mutex<Vec<Box<dyn Listener>>>,
}

impl Listeners {
    pub fn add(&self, listener: impl Listener + 'static) {
        self.list.lock().push(Box::new(listener));
    }

    pub fn clear(&self) {
        self.list.lock().clear();
    }

    /// The object under `key` is `object` now, or gone.
    pub fn written(&self, cluster: &str, key: &str, object: Option<&Value>) {
        for listener in self.list.lock().iter() {
            listener.written(cluster, key, object);
        }
    }

    pub fn notify(&self, cluster: &str, notice: Notice) {
        for listener in self.list.lock().iter() {
            listener.noticed(cluster, notice);
        }
    }

    /// Anything about the cluster may have changed.
    pub fn cluster_changed(&self, cluster: &str) {
        for listener in self.list.lock().iter() {
            listener.cluster_changed(cluster);
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ComponentError {
    #[error(transparent)]
    Kubernetes(#[from] KubernetesError),
    #[error(transparent)]
    Api(Box<kube::Error>),
    #[error(transparent)]
    Cloud(#[from] super::cloud_api::CloudApiError),
    #[error("an object cannot be written: {0}")]
    Encode(#[from] serde_json::Error),
}

impl From<kube::Error> for ComponentError {
    fn from(error: kube::Error) -> Self {
        ComponentError::Api(Box::new(error))
    }
}

/// A repetition of what was refused: the pause doubles from 5 s to 5 min, as the service controller's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pause {
    failures: u32,
}

impl Pause {
    pub fn next(self) -> (Pause, std::time::Duration) {
        const FIRST: std::time::Duration = std::time::Duration::from_secs(5);
        const LONGEST: std::time::Duration = std::time::Duration::from_secs(300);
        let pause = FIRST.saturating_mul(1 << self.failures.min(6)).min(LONGEST);
        let failures = self.failures.saturating_add(1);
        (Pause { failures }, pause)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn pauses_double_to_five_minutes() {
        let mut pause = Pause::default();
        let mut seconds = Vec::new();
        for _ in 0..9 {
            let (next, wait) = pause.next();
            pause = next;
            seconds.push(wait.as_secs());
        }
        assert_eq!(seconds, [5, 10, 20, 40, 80, 160, 300, 300, 300]);
    }

    #[test]
    fn a_listener_hears_of_its_own_objects_and_notices() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&told);
        let listeners = Listeners::default();
        listeners.add(Bell {
            prefixes: &["/registry/minions/"],
            notices: &[Notice::Quota],
            wake: Box::new(move |cluster| log.lock().push(cluster.to_owned())),
        });
        listeners.written("a", "/registry/minions/x", None);
        listeners.written("b", "/registry/pods/default/x", None);
        listeners.notify("c", Notice::Quota);
        listeners.notify("d", Notice::NodeGroups);
        listeners.cluster_changed("e");
        assert_eq!(*told.lock(), ["a", "c", "e"]);
    }
}
