//! A year of an organisation that grows, with failures, updates, autoscaling and changes of rates: what is
//! billed is what an independent computation finds in the stream of changes.
//!
//! The computation knows nothing of the meter's own records. It reads the changes of VMs, load balancers and
//! volumes as JSON, as `/_sim/events` tells them, and adds up levels between instants in whole numbers.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;

use super::super::billing::{Invoice, LineKind, Unit};
use super::super::load_balancer::{Configuration, CreateLoadBalancer, FLAVOR};
use super::super::quota::Limits;
use super::super::rates::{Rate, RatesChange, VmRates};
use super::*;
use crate::infra::record::Record;

const DAY: u64 = 86_400;
const DAY_MS: i64 = 86_400_000;

/// A change of a record: when, its key, and what it is from then on.
type Change = (Timestamp, String, Option<Value>);

/// Something that was there: whose, what of, and from when to when.
struct Stay {
    owner: String,
    /// vCPU, GB, load balancers, MiB.
    level: [u64; 4],
    from: i64,
    until: i64,
}

/// How much of what the record counts for, if it does.
fn level(key: &str, record: &Value) -> Option<[u64; 4]> {
    let number = |value: &Value| value.as_u64().expect("a number");
    if key.starts_with("/load-balancer/") {
        // The one in front of an API server comes with the control plane.
        let domain = record["domainName"].as_str().expect("a name");
        return domain.contains(".lb.").then_some([0, 0, 1, 0]);
    }
    if key.starts_with("/volume/") {
        return Some([0, 0, 0, number(&record["sizeBytes"]).div_ceil(1 << 20)]);
    }
    let wanted = record["requested"] == "running" && record["health"] == "healthy";
    let spec = &record["spec"];
    (wanted && runs_since(record).is_some())
        .then(|| [number(&spec["vcpus"]), number(&spec["ramGb"]), 0, 0])
}

fn runs_since(record: &Value) -> Option<i64> {
    record["observed"]["running"]["since"].as_i64()
}

fn stays(changes: &[Change], end: i64) -> Vec<Stay> {
    let mut last: BTreeMap<&str, &Value> = BTreeMap::new();
    let mut open: BTreeMap<&str, ([u64; 4], i64, String)> = BTreeMap::new();
    let mut stays = Vec::new();
    for (Timestamp(at), key, record) in changes {
        let before = last.get(key.as_str()).copied();
        let now = record.as_ref().and_then(|record| level(key, record));
        if open.get(key.as_str()).map(|(level, ..)| *level) != now {
            if let Some((level, from, owner)) = open.remove(key.as_str()) {
                // The probes know since when.
                let failed = record
                    .as_ref()
                    .filter(|record| record["requested"] == "running")
                    .and_then(|record| record["health"]["unhealthy"]["since"].as_i64());
                let until = failed.unwrap_or(*at);
                stays.push(Stay {
                    owner,
                    level,
                    from,
                    until,
                });
            }
            if let (Some(level), Some(record)) = (now, record) {
                let owner = record["owner"]
                    .as_str()
                    .or(record["spec"]["owner"].as_str());
                let ran = before.is_some_and(|before| runs_since(before).is_some());
                // A boot is known to the millisecond; a recovery is when it is seen.
                let from = runs_since(record).filter(|_| !ran).unwrap_or(*at);
                open.insert(key, (level, from, owner.expect("an owner").to_owned()));
            }
        }
        match record {
            Some(record) => last.insert(key, record),
            None => last.remove(key.as_str()),
        };
    }
    let rest = open.into_values();
    stays.extend(rest.map(|(level, from, owner)| Stay {
        owner,
        level,
        from,
        until: end,
    }));
    stays
}

/// Rates from an instant on, in millionths of a euro: of vCPU and GB of compute and of control planes, of a
/// load balancer, of a GB of storage.
type RatesFrom = (i64, [i128; 6]);

/// What an invoice's line comes to: unit-milliseconds of up to two units, and millionths of a euro a month
/// times milliseconds times 1024.
type Sums = BTreeMap<(String, u8, i64), ([i128; 2], i128)>;

/// By line: the path of whose it is, the kind, and the start of its period.
fn computed(
    stays: &[Stay],
    is_all_in_one: &BTreeMap<String, bool>,
    rates: &[RatesFrom],
    month: (i64, i64),
) -> Sums {
    let mut sums = Sums::new();
    for (index, (rates_from, rate)) in rates.iter().enumerate() {
        let rates_until = rates.get(index + 1).map_or(i64::MAX, |next| next.0);
        let (from, until) = (month.0.max(*rates_from), month.1.min(rates_until));
        for stay in stays {
            let ms = stay.until.min(until) - stay.from.max(from);
            if ms <= 0 {
                continue;
            }
            let parts: Vec<&str> = stay.owner.split('/').collect();
            let compute = parts.len() == 3 || is_all_in_one[parts[1]];
            let vm = if compute {
                [rate[0], rate[1]]
            } else {
                [rate[2], rate[3]]
            };
            let [vcpus, ram, load_balancers, mib] =
                stay.level.map(|it| i128::from(it) * i128::from(ms));
            let mut add = |kind: u8, counts: [i128; 2], cost: i128| {
                if counts != [0, 0] {
                    let sum = sums.entry((stay.owner.clone(), kind, from)).or_default();
                    sum.0[0] += counts[0];
                    sum.0[1] += counts[1];
                    sum.1 += cost;
                }
            };
            add(
                if parts.len() == 3 { 1 } else { 0 },
                [vcpus, ram],
                (vcpus * vm[0] + ram * vm[1]) * 1024,
            );
            add(2, [load_balancers, 0], load_balancers * rate[4] * 1024);
            add(3, [mib, 0], mib * rate[5]);
        }
    }
    sums
}

/// The invoice's lines in the same form, as far as they say it exactly: cost to 12 places.
fn billed(invoice: &Invoice, owner: &str) -> BTreeMap<(String, u8, i64), ([String; 2], String)> {
    let lines = invoice.lines.iter().map(|line| {
        let group = line.node_group_id.as_ref().map(|id| format!("/{id}"));
        let path = format!("{owner}/{}{}", line.cluster_id, group.unwrap_or_default());
        let kind = match line.kind {
            LineKind::ControlPlane => 0,
            LineKind::NodeGroup => 1,
            LineKind::LoadBalancers => 2,
            LineKind::Storage => 3,
        };
        let mut counts = [String::from("0"), String::from("0")];
        for charge in &line.charges {
            let index = usize::from(charge.unit == Unit::RamGb);
            counts[index] = charge.unit_ms.to_string();
        }
        let cost = line.amount.shown(12).normalize().to_string();
        ((path, kind, line.since.0), (counts, cost))
    });
    lines.collect()
}

/// Decimal text of a fraction to 12 places, half up, without trailing zeros.
fn decimal(numerator: i128, denominator: i128) -> String {
    let places = 10i128.pow(12);
    let (whole, rest) = (numerator / denominator, numerator % denominator);
    let part = (rest * places * 2 + denominator) / (2 * denominator);
    let (whole, part) = (whole + part / places, part % places);
    let text = format!("{whole}.{part:012}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// What an organisation does in its year: see [`Story::week`].
struct Story {
    world: World,
    random: rand_chacha::ChaCha8Rng,
    clusters: BTreeMap<&'static str, ClusterId>,
    load_balancer: Option<String>,
}

impl Story {
    async fn create(
        &mut self,
        name: &'static str,
        version: &str,
        topology: Topology,
        groups: Vec<CreateNodeGroup>,
    ) {
        let mut order = request(name, topology);
        order.features.csi = true;
        order.version = Some(version.to_owned());
        order.features.autoscaling_enabled = true;
        order.node_groups = groups;
        let view = self
            .world
            .platform
            .create_cluster(&owner(), order)
            .await
            .unwrap();
        self.clusters.insert(name, view.cluster.id);
    }

    async fn groups(&self, name: &str) -> Vec<NodeGroup> {
        let id = &self.clusters[name];
        let us = owner();
        let groups = self.world.platform.list_node_groups(&us, id, &[]);
        groups.await.unwrap()
    }

    /// Of every node of the cluster.
    async fn load(&self, name: &str, percent: u64) {
        for group in self.groups(name).await {
            for node in &group.nodes {
                let load = crate::infra::Load {
                    cpu_millis: u64::from(group.flavor.size().vcpus) * 10 * percent,
                    memory_kib: 0,
                };
                let vm = crate::infra::VmId(node.id.to_string());
                // It may be on its way out.
                let _ = self.world.cloud.set_user_load(&vm, Some(load)).await;
            }
        }
    }

    /// What happens in a week, besides failures.
    async fn week(&mut self, week: u64) {
        let platform = self.world.platform.clone();
        let cloud = self.world.cloud.clone();
        let path = |id: &ClusterId| format!("{}/{id}", owner());
        match week {
            0 => {
                let workers = CreateNodeGroup {
                    min_node_count: Some(1),
                    max_node_count: Some(3),
                    ..CreateNodeGroup::new("web", Flavor::Xxs, 1)
                };
                self.create("shop", "1.34", SMALL, vec![workers]).await;
            }
            3 => {
                let order = CreateLoadBalancer {
                    cluster: self.clusters["shop"].clone(),
                    flavor: FLAVOR.to_owned(),
                    tags: vec![String::from("web")],
                    configuration: Configuration::default(),
                };
                let made = platform
                    .create_load_balancer(&owner(), order)
                    .await
                    .unwrap();
                self.load_balancer = Some(made.id);
                let path = path(&self.clusters["shop"]);
                cloud.create_volume("data", &path, 10 << 30).await.unwrap();
            }
            5 => self.load("shop", 95).await,
            6 => self.load("shop", 5).await,
            9 => {
                let limits = Limits {
                    vcpus: 200,
                    ram_gb: 300,
                    ips: 4,
                };
                platform.set_limits(&owner(), limits).await.unwrap();
                self.create("api", "1.36", BUNDLE, Vec::new()).await;
            }
            12 => {
                let id = &self.clusters["shop"];
                platform.update_version(&owner(), id, "1.35").await.unwrap();
            }
            15 => {
                let lost = crate::infra::DatacenterState::Lost;
                cloud.set_datacenter(Datacenter::Par2, lost).await.unwrap();
                self.world.advance(7200).await;
                let up = crate::infra::DatacenterState::Up;
                cloud.set_datacenter(Datacenter::Par2, up).await.unwrap();
            }
            18 => {
                let components = Components::uniform(ComponentConfig {
                    flavor: Flavor::Xxs,
                    replication_factor: 1,
                });
                let groups = vec![CreateNodeGroup::new("batch", Flavor::M, 2)];
                self.create("core", "1.36", Topology::Distributed { components }, groups)
                    .await;
            }
            20 => cloud.resize_volume("data", 25 << 30).await.unwrap(),
            24 => {
                let id = &self.clusters["shop"];
                platform.update_version(&owner(), id, "1.36").await.unwrap();
            }
            27 | 33 => self.load("shop", 95).await,
            30 | 36 => self.load("shop", 5).await,
            38 => {
                let id = &self.clusters["core"];
                let group = self.groups("core").await[0].id.clone();
                platform
                    .delete_node_group(&owner(), id, &group)
                    .await
                    .unwrap();
            }
            41 => {
                let id = self.clusters.remove("api").unwrap();
                platform.delete_cluster(&owner(), &id).await.unwrap();
            }
            44 => {
                let id = self.load_balancer.take().unwrap();
                platform.delete_load_balancer(&owner(), &id).await.unwrap();
            }
            48 => cloud.delete_volume("data").await.unwrap(),
            _ => {}
        }
    }

    /// One VM fails, in a way or another.
    async fn failure(&mut self) {
        let vms = self.world.cloud.list_vms();
        if vms.is_empty() {
            return;
        }
        let vm = vms[self.random.random_range(0..vms.len())].spec.id.clone();
        match self.random.random_range(0..3) {
            0 => self.world.cloud.wedge_vm(&vm, true).await.unwrap(),
            1 => {
                self.world.cloud.wedge_vm(&vm, true).await.unwrap();
                // Long enough to be unhealthy, not to be replaced.
                self.world.advance(45).await;
                let _ = self.world.cloud.wedge_vm(&vm, false).await;
            }
            _ => self.world.cloud.kill_vm(&vm).await.unwrap(),
        }
    }
}

/// The rates of the year: the catalog's, dearer compute from within April on, and the end of the beta within
/// August.
const APRIL: Timestamp = Timestamp(super::super::testing::ORIGIN.0 + 99 * DAY_MS + 37_123_456);
const AUGUST: Timestamp = Timestamp(super::super::testing::ORIGIN.0 + 225 * DAY_MS + 1);
const RATES_OF_THE_YEAR: [RatesFrom; 3] = [
    (i64::MIN, [2_000_000, 4_000_000, 3_000_000, 6_000_000, 0, 0]),
    (APRIL.0, [2_345_678, 4_100_001, 3_000_000, 6_000_000, 0, 0]),
    (
        AUGUST.0,
        [
            2_345_678, 4_100_001, 3_000_000, 6_000_000, 12_500_000, 99_999,
        ],
    ),
];

async fn plan_rates(platform: &Platform) {
    let april = RatesChange {
        compute: Some(VmRates {
            vcpu: "2.345678".parse().unwrap(),
            ram_gb: "4.100001".parse().unwrap(),
        }),
        // Known long before it is billed.
        load_balancer: Some("12.5".parse().unwrap()),
        storage_gb: Some("0.099999".parse::<Rate>().unwrap()),
        ..RatesChange::default()
    };
    let august = RatesChange {
        beta: Some(false),
        ..RatesChange::default()
    };
    let changes = [(Some(APRIL), april), (Some(AUGUST), august)];
    platform.plan_rates(&changes).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_years_invoices_are_what_the_stream_of_changes_comes_to() {
    let world = World::new().await;
    let stream: Arc<Mutex<Vec<Change>>> = Arc::default();
    let (log, clock) = (Arc::clone(&stream), world.clock.clone());
    world.cloud.observe(Box::new(move |change| {
        let told = ["/vm/", "/load-balancer/", "/volume/"];
        if told.iter().any(|prefix| change.key.starts_with(prefix)) {
            let record = change.new.map(|record: &Arc<Record>| record.to_json());
            log.lock()
                .push((clock.now(), change.key.to_owned(), record));
        }
        true
    }));
    plan_rates(&world.platform).await;
    world
        .platform
        .give_credit(&owner(), "welcome", 20_000, "beta")
        .await
        .unwrap();
    let mut story = Story {
        world,
        random: rand_chacha::ChaCha8Rng::seed_from_u64(2026),
        clusters: BTreeMap::new(),
        load_balancer: None,
    };
    let mut all_in_one = BTreeMap::new();
    let mut versions = std::collections::BTreeSet::new();
    for week in 0..WEEKS {
        story.week(week).await;
        story.world.advance(DAY).await;
        for (name, id) in &story.clusters {
            all_in_one.insert(id.to_string(), *name == "api");
            let view = story
                .world
                .platform
                .get_cluster(&owner(), id)
                .await
                .unwrap();
            versions.insert(view.cluster.running_version);
        }
        story.failure().await;
        story.world.advance(6 * DAY).await;
        story.world.check_invariants().await;
    }
    let world = &story.world;
    let end = world.clock.now();
    let stays = stays(&stream.lock(), end.0);
    let bills = world.platform.bills(&owner(), None).await.unwrap();
    let (mut left, mut total) = (20_000, 0);
    for bill in &bills {
        let month = (bill.month.start().0, bill.month.end().0);
        let expect = computed(&stays, &all_in_one, &RATES_OF_THE_YEAR, month);
        let euro = 1024 * 1_000_000 * 720 * 3_600_000;
        let sum: i128 = expect.values().map(|(_, cost)| cost).sum();
        let shown = expect.into_iter().map(|(key, (counts, cost))| {
            let parts = if key.1 == 3 { 1024 } else { 1 };
            (
                key,
                (
                    counts.map(|count| decimal(count, parts)),
                    decimal(cost, euro),
                ),
            )
        });
        let found = billed(&bill.invoice, owner().as_str());
        assert_eq!(found, shown.collect::<BTreeMap<_, _>>(), "{}", bill.month);
        // Half up, by another way than the invoice's.
        let cents = (sum * 100 + euro / 2) / euro;
        let used = cents.min(left);
        assert_eq!(i128::from(bill.payment.total), cents, "{}", bill.month);
        assert_eq!(i128::from(bill.payment.due), cents - used, "{}", bill.month);
        left -= used;
        total += cents;
    }
    // It was a year worth the name.
    let killed = stays.len();
    assert_eq!(bills.len(), 12, "{}", bills.len());
    assert!(killed > 60, "{killed} stays");
    assert!(versions.len() == 3, "{versions:?}");
    assert!(
        bills.iter().all(|bill| bill.payment.total > 0) && total > 300_000,
        "{total} cents"
    );
    let kinds: std::collections::BTreeSet<LineKind> = bills
        .iter()
        .flat_map(|bill| &bill.invoice.lines)
        .map(|line| line.kind)
        .collect();
    assert_eq!(kinds.len(), 4);
    story.world.shutdown().await;
}

/// To the middle of December.
const WEEKS: u64 = 50;
