//! What is asked of the state when somebody scrapes.

use prometheus::{IntCounter, IntGauge, IntGaugeVec, Opts, TextEncoder};

use super::{Metrics, Registrar};
use crate::etcd::VERSION;
use crate::etcd::keyspace::Keyspace;
use crate::etcd::server::Inner;

/// Most keyspaces that are named one by one in an answer; the first in order of their names.
const NAMED_KEYSPACES: usize = 10_000;

/// Gauges that are set from the state, and counters under a second name.
pub struct Gauges {
    version: IntGaugeVec,
    cluster_version: IntGaugeVec,
    id: IntGaugeVec,
    quota: IntGauge,
    size: IntGauge,
    size_in_use: IntGauge,
    keys: IntGauge,
    revision: IntGauge,
    compacted: IntGauge,
    pending: IntGauge,
    applied: IntGauge,
    loaded: IntGauge,
    keyspace_revision: IntGaugeVec,
    keyspace_compacted: IntGaugeVec,
    keyspace_keys: IntGaugeVec,
    keyspace_leases: IntGaugeVec,
    keyspace_watchers: IntGaugeVec,
    keyspace_cached_bytes: IntGaugeVec,
    /// etcd before 3.6 calls these so; dashboards still do.
    debugging_ranges: IntCounter,
    debugging_puts: IntCounter,
    debugging_deletes: IntCounter,
    debugging_txns: IntCounter,
}

impl Gauges {
    pub(super) fn new(to: &Registrar) -> Gauges {
        let labelled = |name: &str, help: &str, label: &str| -> IntGaugeVec {
            to.add(IntGaugeVec::new(Opts::new(name, help), &[label]))
        };
        for (name, help, value) in [
            (
                "etcd_server_has_leader",
                "Whether or not a leader exists. 1 is existence, 0 is not.",
                1,
            ),
            (
                "etcd_server_is_leader",
                "Whether or not this member is a leader. 1 if is, 0 otherwise.",
                1,
            ),
            (
                "etcd_server_is_learner",
                "Whether or not this member is a learner. 1 if is, 0 otherwise.",
                0,
            ),
        ] {
            to.gauge(name, help).set(value);
        }
        // The one member has led since it started, as a single etcd counts it.
        to.counter(
            "etcd_server_leader_changes_seen_total",
            "The number of leader changes seen.",
        )
        .inc();
        let keyspace = |name: &str, help: &str| labelled(name, help, "keyspace");
        Gauges {
            version: labelled(
                "etcd_server_version",
                "Which version is running. 1 for 'server_version' label with current version.",
                "server_version",
            ),
            cluster_version: labelled(
                "etcd_cluster_version",
                "Which version is running. 1 for 'cluster_version' label with current cluster version",
                "cluster_version",
            ),
            id: labelled(
                "etcd_server_id",
                "Server or member ID in hexadecimal format. 1 for 'server_id' label with current ID.",
                "server_id",
            ),
            quota: to.gauge(
                "etcd_server_quota_backend_bytes",
                "Current backend storage quota size in bytes; 0 is none.",
            ),
            size: to.gauge(
                "etcd_mvcc_db_total_size_in_bytes",
                "Total size of the store on disk in bytes, all keyspaces together.",
            ),
            size_in_use: to.gauge(
                "etcd_mvcc_db_total_size_in_use_in_bytes",
                "Size of the store in use in bytes, all keyspaces together.",
            ),
            keys: to.gauge(
                "etcd_debugging_mvcc_keys_total",
                "Total number of keys in the loaded keyspaces.",
            ),
            revision: to.gauge(
                "etcd_debugging_mvcc_current_revision",
                "The current revision of the default keyspace.",
            ),
            compacted: to.gauge(
                "etcd_debugging_mvcc_compact_revision",
                "The revision of the last compaction of the default keyspace.",
            ),
            pending: to.gauge(
                "etcd_server_proposals_pending",
                "The current number of write requests that wait for a batch.",
            ),
            applied: to.gauge(
                "etcd_server_proposals_applied_total",
                "The total number of write requests applied.",
            ),
            loaded: to.gauge("cke_keyspaces_loaded", "Keyspaces that are in memory."),
            keyspace_revision: keyspace("cke_keyspace_revision", "The keyspace's revision."),
            keyspace_compacted: keyspace(
                "cke_keyspace_compact_revision",
                "The keyspace's last compaction.",
            ),
            keyspace_keys: keyspace("cke_keyspace_keys", "Keys in the keyspace."),
            keyspace_leases: keyspace("cke_keyspace_leases", "Leases in the keyspace."),
            keyspace_watchers: keyspace("cke_keyspace_watchers", "Watchers of the keyspace."),
            keyspace_cached_bytes: keyspace(
                "cke_keyspace_cached_bytes",
                "Bytes of the keyspace's values in memory.",
            ),
            debugging_ranges: to.counter(
                "etcd_debugging_mvcc_range_total",
                "Total number of ranges seen by this member.",
            ),
            debugging_puts: to.counter(
                "etcd_debugging_mvcc_put_total",
                "Total number of puts seen by this member.",
            ),
            debugging_deletes: to.counter(
                "etcd_debugging_mvcc_delete_total",
                "Total number of deletes seen by this member.",
            ),
            debugging_txns: to.counter(
                "etcd_debugging_mvcc_txn_total",
                "Total number of txns seen by this member.",
            ),
        }
    }

    fn set_keyspace(&self, keyspace: &Keyspace, named: bool) {
        let (revision, compacted, keys) = {
            let state = keyspace.state.read();
            (state.revision, state.compacted, state.index.len())
        };
        let leases = keyspace.leases.lock().len();
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.keys.add(number(keys));
        self.pending.add(number(keyspace.pending()));
        if !named {
            return;
        }
        let name = &[keyspace.name.as_ref()];
        let set = |gauge: &IntGaugeVec, value| gauge.with_label_values(name).set(value);
        set(&self.keyspace_revision, revision);
        set(&self.keyspace_compacted, compacted);
        set(&self.keyspace_keys, number(keys));
        set(&self.keyspace_leases, number(leases));
        set(&self.keyspace_watchers, keyspace.metrics.watchers());
        set(
            &self.keyspace_cached_bytes,
            number(keyspace.cached_bytes.used()),
        );
    }

    fn set(&self, server: &Inner) {
        let labels = [&self.keyspace_revision, &self.keyspace_compacted];
        let more = [&self.keyspace_keys, &self.keyspace_leases];
        let last = [&self.keyspace_watchers, &self.keyspace_cached_bytes];
        for gauge in labels.into_iter().chain(more).chain(last) {
            // Those that were unloaded or removed since are gone.
            gauge.reset();
        }
        self.keys.set(0);
        self.pending.set(0);
        let mut loaded = server.loaded();
        loaded.sort_by(|a, b| a.name.cmp(&b.name));
        self.loaded
            .set(i64::try_from(loaded.len()).unwrap_or(i64::MAX));
        for (at, keyspace) in loaded.iter().enumerate() {
            self.set_keyspace(keyspace, at < NAMED_KEYSPACES);
            if *keyspace.name == *server.config.default_keyspace {
                let state = keyspace.state.read();
                self.revision.set(state.revision);
                self.compacted.set(state.compacted);
            }
        }
        let size = i64::try_from(server.size_bytes()).unwrap_or(i64::MAX);
        self.size.set(size);
        self.size_in_use.set(size);
        let one = |gauge: &IntGaugeVec, label: &str| gauge.with_label_values(&[label]).set(1);
        one(&self.version, VERSION);
        one(
            &self.cluster_version,
            VERSION.rsplit_once('.').map_or(VERSION, |(minor, _)| minor),
        );
        one(&self.id, &format!("{:x}", server.identity.member_id));
        self.quota.set(0);
    }
}

/// Gives the counter the other's value. Only a scrape writes to it, one at a time.
fn mirror(counter: &IntCounter, of: &IntCounter) {
    counter.inc_by(of.get().saturating_sub(counter.get()));
}

impl Metrics {
    /// Everything, in Prometheus' text format 0.0.4.
    ///
    /// # Errors
    /// A metric that cannot be written in that format.
    pub fn render(&self, server: &Inner) -> Result<String, prometheus::Error> {
        let gauges = self.scraping.lock();
        gauges.set(server);
        gauges
            .applied
            .set(i64::try_from(self.committed.get()).unwrap_or(i64::MAX));
        mirror(&gauges.debugging_ranges, &self.ranges);
        mirror(&gauges.debugging_puts, &self.puts);
        mirror(&gauges.debugging_deletes, &self.deletes);
        mirror(&gauges.debugging_txns, &self.txns);
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}
