//! Gives back the memory of keyspaces that nobody uses.
//!
//! Whoever works with a keyspace holds it by an `Arc`: a request until it is answered, a watch
//! stream while it is open, a compaction until it is done. So a keyspace is unused when nobody
//! holds it but its slot and its sequencer, and that is looked at under the slot's lock, where
//! nobody can get hold of it meanwhile. A keyspace with leases is in use: they run out by
//! themselves. A request that comes while a keyspace is being unloaded waits, and loads it again.
//!
//! So nothing may hold a keyspace's `Arc` without end, or it is never unloaded.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::server::{Inner, Open, Slot};
use crate::clock::Timestamp;

/// How often in an idle timeout keyspaces are looked at.
const LOOKS: u32 = 4;
/// Shortest pause between two looks.
const MIN_PAUSE: Duration = Duration::from_millis(10);
/// How often budgets are set if keyspaces are never unloaded.
const BUDGET_PAUSE: Duration = Duration::from_secs(10);

impl Open {
    /// Whether nothing is under way, and nothing will be without a request.
    fn is_unused(&self) -> bool {
        let keyspace = &self.keyspace;
        Arc::strong_count(keyspace) == 2
            && keyspace.pending() == 0
            && keyspace.leases.lock().len() == 0
    }
}

impl Slot {
    /// Whether nobody has asked for the keyspace for so long.
    fn has_rested(&self, now: Timestamp, timeout: Duration) -> bool {
        if self.touched.swap(false, Ordering::Relaxed) {
            self.used_at.store(now.0, Ordering::Relaxed);
            return false;
        }
        let used_at = Timestamp(self.used_at.load(Ordering::Relaxed));
        used_at.until(now) >= timeout
    }

    /// Takes the keyspace out of memory if it is unused.
    async fn unload(&self) -> bool {
        // Being loaded or removed: not now.
        let Ok(_changing) = self.changing.try_lock() else {
            return false;
        };
        let open = {
            let mut place = self.open.write();
            match &*place {
                Some(open) if open.is_unused() => place.take(),
                _ => None,
            }
        };
        let Some(Open {
            keyspace,
            sequencer,
        }) = open
        else {
            return false;
        };
        keyspace.closed.cancel();
        if let Err(error) = sequencer.await {
            tracing::error!(keyspace = %self.name, %error, "the sequencer had died");
        }
        true
    }
}

impl Inner {
    /// Unloads keyspaces as they become idle, until the server is gone.
    pub fn spawn_unloading(self: &Arc<Inner>) {
        let timeout = self.config.keyspace_idle_timeout;
        let pause = match timeout {
            None => BUDGET_PAUSE,
            Some(timeout) => (timeout / LOOKS).max(MIN_PAUSE),
        };
        let (clock, shutdown) = (self.clock.clone(), self.shutdown.clone());
        let server = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                let activity = tokio::select! {
                    () = shutdown.cancelled() => return,
                    activity = clock.sleep(pause) => activity,
                };
                let Some(server) = server.upgrade() else {
                    return;
                };
                if let Some(timeout) = timeout {
                    server.unload_idle(timeout).await;
                }
                server.share_memory();
                drop(activity);
            }
        });
    }

    async fn unload_idle(&self, timeout: Duration) {
        let slots: Vec<_> = {
            let mut slots = self.slots.lock();
            // Whoever uses a slot has it from here, under this lock.
            slots.retain(|_, slot| Arc::strong_count(slot) > 1 || slot.open.read().is_some());
            slots.values().cloned().collect()
        };
        let now = self.clock.now();
        for slot in slots {
            // The default one is what the server is for when there is no other.
            if *slot.name == *self.config.default_keyspace
                || slot.open.read().is_none()
                || !slot.has_rested(now, timeout)
            {
                continue;
            }
            if slot.unload().await {
                self.loaded_count.fetch_sub(1, Ordering::Relaxed);
                self.config.metrics.keyspaces_unloaded.inc();
                tracing::debug!(keyspace = %slot.name, "unloaded");
            }
        }
    }

    /// Sets what each keyspace may have of the memory for values: as much as one may have while
    /// all together fit, else an equal share. A keyspace follows with its next write.
    fn share_memory(&self) {
        let loaded = self.loaded();
        let used: usize = loaded.iter().map(|it| it.cached_bytes.used()).sum();
        let config = &self.config;
        let budget = if used <= config.total_value_cache_bytes {
            config.value_cache_bytes
        } else {
            config.value_cache_share(loaded.len())
        };
        for keyspace in loaded {
            keyspace.cached_bytes.set_budget(budget);
        }
    }
}
