//! What is paid while a VM is replaced: see the rule in [`crate::platform::billing`].

use super::*;
use crate::infra::metering::Interval;

/// What the control plane's one VM has on the meter, and what the node group's; by start.
async fn intervals(world: &World) -> [Vec<Interval>; 2] {
    let metered = world.cloud.metered("").await.unwrap();
    let mut intervals = metered.intervals;
    intervals.sort_by_key(|it| it.started_at);
    let (workers, control_plane) = intervals
        .into_iter()
        .partition(|it| it.owner.contains("node_group"));
    [control_plane, workers]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_failed_is_paid_until_its_probes_say_so() {
    let world = World::new().await;
    let id = world.active_cluster(SMALL).await;
    let vm = world.cloud.list_vms()[0].spec.id.clone();
    let killed_at = world.clock.now();
    world.cloud.kill_vm(&vm).await.unwrap();
    world.advance(600).await;
    healed(&world, &id).await;
    let [control_plane, _] = intervals(&world).await;
    let [old, new] = &control_plane[..] else {
        panic!("{control_plane:?}");
    };
    // Three probes, ten seconds apart.
    assert_eq!(old.resource, vm.0);
    assert_eq!(killed_at.until(old.ended_at), Duration::from_secs(30));
    assert!(old.ended_at < new.started_at, "{old:?} {new:?}");
    world.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_renewed_is_paid_until_it_is_taken_down() {
    let (world, us) = (World::new().await, owner());
    let mut order = request("demo", SMALL);
    order.version = Some(String::from("1.35"));
    order.node_groups = vec![CreateNodeGroup::new("w", Flavor::Xxs, 1)];
    let view = world.platform.create_cluster(&us, order).await.unwrap();
    let id = view.cluster.id;
    world.advance(300).await;
    let update = world.platform.update_version(&us, &id, "1.36");
    update.await.unwrap();
    world.advance(900).await;
    let view = healed(&world, &id).await;
    assert_eq!(view.cluster.running_version, "1.36");
    let month = consumption::BillingMonth::of(world.clock.now());
    let bill = world.platform.bill(&us, month).await.unwrap();
    // The control plane's predecessor goes in the instant in which the successor serves; a node joins, and
    // the old one is drained, before it goes.
    let both_ran = [false, true];
    for (index, intervals) in intervals(&world).await.into_iter().enumerate() {
        let [old, new] = &intervals[..] else {
            panic!("{intervals:?}");
        };
        assert!(new.started_at <= old.ended_at, "no gap: {intervals:?}");
        let overlaps = new.started_at < old.ended_at;
        assert_eq!(overlaps, both_ran[index], "{intervals:?}");
        let lengths = intervals.iter();
        let ran: Duration = lengths.map(|it| it.started_at.until(it.ended_at)).sum();
        let paid = bill.invoice.lines[index].charges[0].unit_ms.to_string();
        let expect = u128::from(old.level.vcpus) * ran.as_millis();
        assert_eq!(paid, expect.to_string(), "each its time");
    }
    world.shutdown().await;
}
