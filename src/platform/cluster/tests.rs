//! The rules of `cluster`, without a store.

use super::super::creation;
use super::super::model::{
    ClusterId, ComponentConfig, Components, CreateCluster, Flavor, OwnerId, Topology,
};
use super::super::quota::Ledger;
use super::super::replacement::Replica as _;
use super::super::validation;
use super::*;
use crate::infra::Datacenter;

const NOW: Timestamp = Timestamp(1_000_000);

fn cluster_of(topology: Topology) -> Cluster {
    let owner: OwnerId = "orga_3547a882-e464-4c34-8168-add4b3e0c135".parse().unwrap();
    let order = validation::cluster_order(
        CreateCluster {
            name: String::from("demo"),
            topology: Some(topology),
            ..CreateCluster::default()
        },
        &super::super::Catalog::default(),
    );
    creation::cluster(&order.unwrap(), &mut Ledger::new(owner), 0, NOW)
}

fn cluster() -> Cluster {
    cluster_of(Topology::DedicatedCompute {
        flavor: Flavor::Xs,
        replication_factor: 2,
    })
}

/// Everything that a cluster can want to see.
fn all_there(cluster: &Cluster) -> Seen {
    let running = VmState::Running {
        since: NOW,
        healthy: true,
        reachable: true,
    };
    let vms = cluster.control_plane.iter();
    Seen {
        vms: vms.map(|vm| (vm.id.clone(), running)).collect(),
        network_group: true,
        load_balancer_network: true,
        load_balancer: Some(LoadBalancer {
            id: String::from("lb"),
            flavor: String::from("XS-duo"),
            ips: vec![String::from("192.0.2.1")],
            domain_name: String::from("x.test"),
        }),
        ..Seen::default()
    }
}

/// Goes on until nothing changes; returns the statuses and steps on the way, and the time it took.
fn run(cluster: &mut Cluster, seen: impl Fn(&Cluster) -> Seen) -> (Vec<String>, Duration) {
    let mut now = NOW;
    let mut way = Vec::new();
    for _ in 0..100 {
        let decision = decide(cluster, &seen(cluster), now);
        match (decision.next, decision.wake) {
            (Some(next), _) => {
                *cluster = next;
                let operation = cluster.operation.as_ref();
                let step = operation.and_then(|operation| operation.step);
                let step = step.map_or("", |step| step.as_str());
                way.push(format!("{} {step}", cluster.status).trim_end().to_owned());
            }
            // The certificates' turn is not waited for.
            (None, Some(wake)) if wake > NOW.saturating_add(ROTATE_EVERY / 2) => {
                return (way, NOW.until(now));
            }
            (None, Some(wake)) => {
                assert!(wake > now, "a wake that is due would spin");
                now = wake;
            }
            (None, None) => return (way, NOW.until(now)),
        }
    }
    panic!("no end: {way:?}");
}

#[test]
fn a_creation_takes_its_steps() {
    let mut cluster = cluster();
    let (mut way, took) = run(&mut cluster, all_there);
    way.dedup();
    assert_eq!(
        way,
        [
            "DEPLOYING NETWORK_GROUP",
            "DEPLOYING LOADBALANCER_NETWORK",
            "DEPLOYING MATERIA_LOGICALDB",
            "DEPLOYING OTEL_CONFIG",
            "DEPLOYING CONTROL_PLANE_BUNDLE",
            "DEPLOYING LOAD_BALANCER",
            "DEPLOYING PLUGIN",
            "ACTIVE",
        ]
    );
    // Without the boot of the VMs, of about 30 s less the 2 s that the step takes anyway.
    assert_eq!(took, Duration::from_secs(27));
    assert_eq!(cluster.deployed_step, Some(Step::Plugin));
}

#[test]
fn each_operation_has_its_steps() {
    let check = |kind, status, csi, expect: &[&str]| {
        let mut cluster = cluster();
        run(&mut cluster, all_there);
        cluster.status = status;
        cluster.requested_features.csi = csi;
        cluster.operation = Some(Operation::asked(kind, NOW));
        let (mut way, _) = run(&mut cluster, |cluster| serving(cluster, &[]));
        // Each VM that is replaced changes the record.
        way.dedup();
        assert_eq!(way, expect, "{kind}");
        assert_eq!(cluster.features.csi, csi);
    };
    check(
        OperationKind::Upgrade,
        ClusterStatus::ToUpgrade,
        false,
        &[
            "UPDATING CONTROL_PLANE_BUNDLE",
            "UPDATING PLUGIN",
            "UPDATING NODE_GROUP",
            "ACTIVE",
        ],
    );
    check(
        OperationKind::Redeploy,
        ClusterStatus::ToRedeploy,
        false,
        &[
            "REDEPLOYING CONTROL_PLANE_BUNDLE",
            "REDEPLOYING PLUGIN_RECONCILE",
            "ACTIVE",
        ],
    );
    check(
        OperationKind::Reconcile,
        ClusterStatus::ToReconcile,
        true,
        &[
            "RECONCILING STORAGE",
            "RECONCILING PLUGIN_RECONCILE",
            "ACTIVE",
        ],
    );
    check(
        OperationKind::Delete,
        ClusterStatus::ToDelete,
        false,
        &["DELETING"],
    );
}

#[test]
fn a_redeployment_has_a_step_for_manifests_only_if_there_are_any() {
    let check = |before: usize, after: usize, applied: Option<Applied>, expect: &[&str]| {
        let mut cluster = cluster();
        run(&mut cluster, all_there);
        cluster.status = ClusterStatus::ToRedeploy;
        let text = String::from("apiVersion: v1\nkind: Pod\nmetadata: {name: a}");
        let hooks = Hooks::new(vec![text.clone(); before], vec![text; after]);
        cluster.operation = Some(Operation {
            hooks: Some(Box::new(hooks.unwrap())),
            ..Operation::asked(OperationKind::Redeploy, NOW)
        });
        let (mut way, took) = run(&mut cluster, |cluster| Seen {
            applied: applied.clone(),
            ..serving(cluster, &[])
        });
        way.dedup();
        assert_eq!(way, expect, "{before} before, {after} after");
        took
    };
    let all = Some(Applied::All);
    let before = "REDEPLOYING REDEPLOY_BEFORE_YAML";
    let after = "REDEPLOYING REDEPLOY_AFTER_YAML";
    let roll = "REDEPLOYING CONTROL_PLANE_BUNDLE";
    let plugins = "REDEPLOYING PLUGIN_RECONCILE";
    check(1, 0, all.clone(), &[before, roll, plugins, "ACTIVE"]);
    check(0, 2, all.clone(), &[roll, plugins, after, "ACTIVE"]);
    check(1, 1, all, &[before, roll, plugins, after, "ACTIVE"]);
    let refused = Some(Applied::Refused(String::from("no")));
    let failed = "FAILED REDEPLOY_BEFORE_YAML";
    let took = check(1, 1, refused.clone(), &[before, failed]);
    assert_eq!(took, ACCEPT, "at once");
    let failed = "FAILED REDEPLOY_AFTER_YAML";
    check(0, 1, refused, &[roll, plugins, after, failed]);
    let took = check(1, 0, None, &[before, "FAILED REDEPLOY_BEFORE_YAML"]);
    assert!(took > STEP_LIMIT, "an API that never answers");
}

#[test]
fn a_step_that_waits_for_ever_fails() {
    let mut cluster = cluster();
    let without_vms = |cluster: &Cluster| Seen {
        vms: BTreeMap::new(),
        ..all_there(cluster)
    };
    let (way, took) = run(&mut cluster, without_vms);
    assert_eq!(
        way.last().map(String::as_str),
        Some("FAILED CONTROL_PLANE_BUNDLE")
    );
    assert!(took > STEP_LIMIT);
    assert_eq!(cluster.status, ClusterStatus::Failed);
}

#[test]
fn vms_are_asked_for_until_they_are_there() {
    let mut cluster = cluster();
    cluster.status = ClusterStatus::Deploying;
    cluster.operation = Some(Operation {
        kind: OperationKind::Create,
        step: Some(Step::ControlPlaneBundle),
        started_at: NOW,
        due: NOW,
        node_group: None,
        outdated_nodes: 0,
        hooks: None,
    });
    let check = |states: [VmState; 2], acts: usize, goes_on: bool| {
        let vms = cluster.control_plane.iter().map(|vm| vm.id.clone());
        let there = |(_, state): &(String, VmState)| *state != VmState::Absent;
        let seen = Seen {
            vms: vms.zip(states).filter(there).collect(),
            ..Seen::default()
        };
        let decision = decide(&cluster, &seen, NOW);
        assert_eq!(decision.acts.len(), acts, "{states:?}");
        let next = decision.next;
        let is_over = next.is_some_and(|next| next.deployed_step.is_some());
        assert_eq!(is_over, goes_on, "{states:?}");
    };
    let booting = VmState::Provisioning { since: NOW };
    let running = VmState::Running {
        since: NOW,
        healthy: true,
        reachable: true,
    };
    check([VmState::Absent, VmState::Absent], 2, false);
    check([booting, VmState::Absent], 1, false);
    check([booting, running], 0, false);
    check([running, running], 0, true);
}

#[test]
fn the_api_answers_while_a_vm_with_an_apiserver_runs() {
    let mut cluster = cluster_of(Topology::Distributed {
        components: Components::uniform(ComponentConfig {
            flavor: Flavor::Xxs,
            replication_factor: 2,
        }),
    });
    run(&mut cluster, all_there);
    let check = |cluster: &Cluster, down: &[&str], expect| {
        let mut seen = all_there(cluster);
        seen.vms
            .retain(|id, _| !down.iter().any(|part| id.contains(part)));
        let serves = decide(cluster, &seen, NOW)
            .control_plane
            .map(|found| found.serves());
        assert_eq!(serves, expect, "{down:?}");
    };
    check(&cluster, &[], Some(true));
    check(&cluster, &["_scheduler_", "_apiserver_0"], Some(true));
    check(&cluster, &["_apiserver_"], Some(false));
    cluster.status = ClusterStatus::Deleting;
    check(&cluster, &[], Some(false));
    cluster.status = ClusterStatus::Deleted;
    check(&cluster, &[], None);
}

#[test]
fn a_cluster_is_deleted_when_everything_of_it_is() {
    let mut cluster = cluster();
    run(&mut cluster, all_there);
    cluster.status = ClusterStatus::Deleting;
    let seen = all_there(&cluster);
    let decision = decide(&cluster, &seen, NOW);
    assert_eq!(decision.acts.len(), 2, "both VMs are deleted");
    assert_eq!(decision.next, None);
    let groups_left = Seen {
        node_groups: 1,
        ..Seen::default()
    };
    assert_eq!(decide(&cluster, &groups_left, NOW).next, None);
    let load_balancers_left = Seen {
        belongings: 1,
        ..Seen::default()
    };
    assert_eq!(decide(&cluster, &load_balancers_left, NOW).next, None);
    let decision = decide(&cluster, &Seen::default(), NOW);
    assert_eq!(
        decision.acts,
        [
            Act::DeleteKubernetes,
            Act::DeleteLoadBalancer,
            Act::DeleteNetworks,
            Act::DeleteVolumes
        ]
    );
    let next = decision.next.unwrap();
    assert_eq!(next.status, ClusterStatus::Deleted);
    assert!(next.control_plane.is_empty());
}

#[test]
fn ids_of_vms_follow_from_the_cluster() {
    let cluster = cluster();
    let id: &ClusterId = &cluster.id;
    let expect = format!("vm_{}_control-plane_1", id.ulid());
    assert_eq!(cluster.control_plane[1].id, expect);
}

/// VMs that are made at once and go at once, but for the ones that are down.
fn serving(cluster: &Cluster, down: &[&str]) -> Seen {
    let mut seen = all_there(cluster);
    for vm in &cluster.control_plane {
        if down.contains(&vm.name.as_str()) {
            let state = VmState::Running {
                since: NOW,
                healthy: false,
                reachable: false,
            };
            seen.vms.insert(vm.id.clone(), state);
        }
        match &vm.life.leaving {
            Some(leaving) if leaving.drained => drop(seen.vms.remove(&vm.id)),
            Some(_) => drop(seen.drains.insert(vm.id.clone(), Drain::Drained)),
            None => {}
        }
    }
    seen
}

fn sites(cluster: &Cluster) -> BTreeSet<crate::infra::Datacenter> {
    let counted = cluster.control_plane.iter().filter(|vm| vm.counts());
    counted.map(|vm| vm.datacenter).collect()
}

#[test]
fn a_replica_that_dies_is_replaced_at_its_site() {
    for replication_factor in 1..=5 {
        let mut cluster = cluster_of(Topology::DedicatedCompute {
            flavor: Flavor::Xs,
            replication_factor,
        });
        run(&mut cluster, all_there);
        let before = sites(&cluster);
        let (way, took) = run(&mut cluster, |cluster| {
            serving(cluster, &["control-plane-0"])
        });
        assert!(way.iter().all(|status| status == "ACTIVE"), "{way:?}");
        assert_eq!(took, super::super::replacement::PATIENCE);
        let names: Vec<_> = cluster
            .control_plane
            .iter()
            .map(|vm| vm.name.clone())
            .collect();
        let expect = (1..=replication_factor).map(|n| format!("control-plane-{n}"));
        assert_eq!(names, expect.collect::<Vec<_>>());
        assert!(cluster.control_plane.iter().all(|vm| vm.counts()));
        assert_eq!(sites(&cluster), before);
    }
}

#[test]
fn an_update_renews_one_replica_of_a_role_at_a_time_and_always_serves() {
    let mut cluster = cluster_of(Topology::Distributed {
        components: Components::uniform(ComponentConfig {
            flavor: Flavor::Xxs,
            replication_factor: 2,
        }),
    });
    run(&mut cluster, all_there);
    cluster.status = ClusterStatus::ToUpgrade;
    cluster.running_version = String::from("1.35");
    for vm in &mut cluster.control_plane {
        vm.version = String::from("1.35");
    }
    cluster.version = String::from("1.36");
    cluster.operation = Some(Operation::asked(OperationKind::Upgrade, NOW));
    run(&mut cluster, |cluster| {
        for component in super::super::model::Component::ALL {
            let own = cluster.control_plane.iter();
            let own: Vec<_> = own.filter(|vm| vm.components == [component]).collect();
            let new = own.iter().filter(|vm| vm.life.replaces.is_some()).count();
            assert!(new <= 1, "two at once: {own:?}");
        }
        let seen = serving(cluster, &[]);
        let working = control_plane::working(cluster, &seen.vms);
        assert!(working.apiserver.len() >= 2, "{working:?}");
        seen
    });
    assert_eq!(cluster.status, ClusterStatus::Active);
    assert_eq!(cluster.running_version, "1.36");
    assert_eq!(cluster.control_plane.len(), 10);
    assert!(cluster.control_plane.iter().all(|vm| vm.version == "1.36"));
}

#[test]
fn certificates_are_made_anew_every_ninety_days_while_all_is_well() {
    let mut cluster = cluster();
    run(&mut cluster, all_there);
    let due = NOW.saturating_add(ROTATE_EVERY);
    let early = decide(&cluster, &all_there(&cluster), Timestamp(due.0 - 1));
    assert_eq!((early.acts, early.wake), (vec![], Some(due)));
    let sick = decide(&cluster, &serving(&cluster, &["control-plane-0"]), due);
    assert!(!sick.acts.contains(&Act::RotateCertificates));
    let rotated = decide(&cluster, &all_there(&cluster), due);
    assert_eq!(rotated.acts, [Act::RotateCertificates]);
    assert_eq!(rotated.next.unwrap().certificates_rotated_at, due);
}

#[test]
fn a_site_without_room_is_left_for_the_next_best() {
    let mut cluster = cluster_of(Topology::DedicatedCompute {
        flavor: Flavor::Xs,
        replication_factor: 3,
    });
    let id = cluster.control_plane[0].id.clone();
    let first = cluster.control_plane[0].datacenter;
    control_plane::refuse(&mut cluster, &id, NOW);
    assert_ne!(cluster.control_plane[0].datacenter, first);
    assert_eq!(cluster.control_plane[0].life.retry_at, None);
    control_plane::refuse(&mut cluster, &id, NOW);
    control_plane::refuse(&mut cluster, &id, NOW);
    assert!(
        cluster.control_plane[0].life.retry_at > Some(NOW),
        "a pause"
    );
    assert_eq!(
        cluster.control_plane[0].datacenter, first,
        "the best is tried again"
    );
}

#[test]
fn a_successor_that_found_no_room_goes_to_the_site_of_the_one_it_replaces() {
    let mut cluster = cluster_of(Topology::DedicatedCompute {
        flavor: Flavor::Xs,
        replication_factor: 3,
    });
    run(&mut cluster, all_there);
    let died = cluster.control_plane[1].clone();
    cluster.control_plane[1].life.unhealthy_since = Some(NOW);
    let later = NOW.saturating_add(super::super::replacement::PATIENCE);
    let seen = serving(&cluster, &["control-plane-1"]);
    cluster = decide(&cluster, &seen, later).next.expect("a successor");
    let successor = cluster.control_plane[3].clone();
    assert_eq!(successor.life.replaces, Some(died.id));
    assert_eq!(successor.datacenter, died.datacenter);
    for _ in 0..3 {
        assert!(control_plane::refuse(&mut cluster, &successor.id, later).is_none());
    }
    let successor = &cluster.control_plane[3];
    assert!(successor.life.retry_at > Some(later), "a pause");
    assert_eq!(successor.datacenter, died.datacenter);
}

#[test]
fn a_replica_that_was_to_move_stays_when_there_is_no_room_after_all() {
    let mut cluster = cluster_of(Topology::DedicatedCompute {
        flavor: Flavor::Xs,
        replication_factor: 2,
    });
    run(&mut cluster, all_there);
    let site = cluster.control_plane[0].datacenter;
    cluster.control_plane[1].datacenter = site;
    let mut seen = all_there(&cluster);
    seen.openings = BTreeMap::from([(
        Flavor::Xs,
        Openings {
            open: Datacenter::ALL.into_iter().collect(),
            full: BTreeSet::new(),
        },
    )]);
    let begun = decide(&cluster, &seen, NOW).next.expect("one moves");
    let successor = begun.control_plane.iter().find(|vm| vm.life.moves);
    let successor = successor.expect("a successor").clone();
    assert_ne!(successor.datacenter, site);
    let mut decision = Decision {
        next: Some(begun.clone()),
        ..Decision::default()
    };
    refuse(&begun, &successor.id, NOW, &mut decision);
    let other = decision.next.clone().expect("it goes to the third site");
    assert_eq!(other.control_plane.len(), 3);
    assert!(decision.events.is_empty());
    refuse(&begun, &successor.id, NOW, &mut decision);
    assert_eq!(
        decision.next.expect("a change").control_plane,
        cluster.control_plane
    );
    assert_eq!(decision.events.len(), 1, "and it is said");
    // No site has room, one might have later.
    for openings in seen.openings.values_mut() {
        openings.full = std::mem::take(&mut openings.open);
    }
    let waiting = decide(&cluster, &seen, NOW);
    assert_eq!(waiting.next, None);
    let look_again = NOW.saturating_add(super::super::replacement::LOOK_AGAIN);
    assert_eq!(waiting.wake, Some(look_again));
}
