//! A shape that runs for the 720 hours of a month of prices costs exactly what it was quoted.

use super::super::billing::invoice;
use super::super::catalog::RATES;
use super::super::pricing::quote;
use super::super::rates::RateTable;
use super::super::shape::Shape;
use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_runs_for_720_hours_costs_what_was_quoted() {
    for text in [
        "ALL_IN_ONE:S:2+web=XS:2",
        "DEDICATED_COMPUTE:XS:3+web=M:1+batch=2XS:3",
        "DISTRIBUTED:2XS:1,apiserver=S:3,scheduler=XS:2+web=2XS:2+batch=XL:1",
    ] {
        let shape: Shape = text.parse().unwrap();
        let world = World::new().await;
        let limits = quota::Limits {
            vcpus: 1000,
            ram_gb: 1000,
            ips: 2,
        };
        world.platform.set_limits(&owner(), limits).await.unwrap();
        let mut order = request("demo", shape.topology.clone());
        let groups = shape.node_groups.iter().map(|group| {
            let name = group.name.as_deref().unwrap_or_default();
            CreateNodeGroup::new(name, group.flavor, group.count)
        });
        order.node_groups = groups.collect();
        world
            .platform
            .create_cluster(&owner(), order)
            .await
            .unwrap();
        world.advance(3600).await;
        let start = world.clock.now();
        world.advance(720 * 3600).await;
        let end = world.clock.now();
        let metered = world.cloud.metered(&format!("{}/", owner())).await.unwrap();
        let billable = world.platform.billable(&owner()).await.unwrap();
        let cost =
            |from, until| invoice(&metered, &billable, &RateTable::default(), from, until).total;
        let quoted = quote(&shape, &RATES).total;
        assert_eq!(
            cost(start, end).shown(12).normalize(),
            quoted.shown_monthly().normalize(),
            "{text}"
        );
        // And however the time is divided.
        let middle = Timestamp(start.0 + 1_234_567_891);
        assert_eq!(
            cost(start, middle) + cost(middle, end),
            cost(start, end),
            "{text}"
        );
        world.shutdown().await;
    }
}
