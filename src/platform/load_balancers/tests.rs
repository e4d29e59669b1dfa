//! Load balancers in a whole platform, on a manual clock.

use super::super::error::PlatformError;
use super::super::load_balancer::{Configuration, CreateLoadBalancer, FLAVOR};
use super::super::model::{ClusterId, ClusterStatus};
use super::super::testing::{BUNDLE, World, owner, request};

const OVER_QUOTA: &str = "Quota exceeded: IP max: limit = 2 | actual = 4";

fn order(cluster: &ClusterId, tag: &str) -> CreateLoadBalancer {
    CreateLoadBalancer {
        cluster: cluster.clone(),
        flavor: FLAVOR.to_owned(),
        tags: vec![tag.to_owned()],
        configuration: Configuration::default(),
    }
}

async fn world() -> (World, ClusterId) {
    let world = World::new().await;
    let view = world
        .platform
        .create_cluster(&owner(), request("demo", BUNDLE))
        .await
        .unwrap();
    world.advance(90).await;
    assert_eq!(world.status(&view.cluster.id).await, ClusterStatus::Active);
    (world, view.cluster.id)
}

async fn refusal(world: &World, cluster: &ClusterId, tag: &str) -> Option<String> {
    let order = order(cluster, tag);
    let outcome = world.platform.create_load_balancer(&owner(), order).await;
    outcome.err().map(|error| error.to_string())
}

async fn addresses(world: &World) -> Vec<Vec<String>> {
    let listed = world.platform.list_load_balancers(&owner()).await.unwrap();
    listed.into_iter().map(|found| found.ips).collect()
}

async fn held(world: &World) -> u32 {
    world
        .platform
        .store()
        .ledger(&owner())
        .await
        .unwrap()
        .value
        .total_ips()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_second_is_refused_until_the_quota_is_raised() {
    let (world, cluster) = world().await;
    let platform = &world.platform;
    assert_eq!(refusal(&world, &cluster, "a").await, None);
    assert_eq!(addresses(&world).await, [Vec::<String>::new()]);
    assert_eq!(
        refusal(&world, &cluster, "b").await.as_deref(),
        Some(OVER_QUOTA)
    );
    // The same tags: the same load balancer.
    assert_eq!(refusal(&world, &cluster, "a").await, None);
    world.advance(6).await;
    let first = vec!["192.0.2.3".to_owned(), "192.0.2.4".to_owned()];
    assert_eq!(addresses(&world).await, [first.clone()]);
    world.check_invariants().await;

    let mut limits = super::super::quota::DEFAULT_LIMITS;
    limits.ips = 4;
    let quota = platform.set_limits(&owner(), limits).await.unwrap();
    assert_eq!(quota.ip_max, 4);
    assert_eq!(refusal(&world, &cluster, "b").await, None);
    world.advance(6).await;
    let second = vec!["192.0.2.5".to_owned(), "192.0.2.6".to_owned()];
    assert_eq!(addresses(&world).await, [first, second]);
    world.check_invariants().await;

    // What is held stays, and frees its addresses once.
    limits.ips = 2;
    platform.set_limits(&owner(), limits).await.unwrap();
    let listed = platform.list_load_balancers(&owner()).await.unwrap();
    for _ in 0..2 {
        let id = &listed[0].id;
        let outcome = platform.delete_load_balancer(&owner(), id).await;
        assert!(outcome.is_ok_and(|going| going.deleting));
    }
    world.advance(1).await;
    assert_eq!(held(&world).await, 2);
    let gone = platform.get_load_balancer(&owner(), &listed[0].id).await;
    assert!(matches!(gone, Err(PlatformError::LoadBalancerNotFound(_))));
    assert_eq!(
        refusal(&world, &cluster, "c").await.as_deref(),
        Some(OVER_QUOTA)
    );
    world.check_invariants().await;
    world.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_at_once_exactly_one_is_admitted() {
    let (world, cluster) = world().await;
    let mut asked = tokio::task::JoinSet::new();
    for number in 0..20 {
        let platform = world.platform.clone();
        let order = order(&cluster, &format!("service-{number}"));
        asked.spawn(async move {
            let outcome = platform.create_load_balancer(&owner(), order).await;
            outcome.map(drop).map_err(|error| error.to_string())
        });
    }
    let outcomes = asked.join_all().await;
    let admitted = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    assert_eq!(admitted, 1, "{outcomes:?}");
    assert!(
        outcomes
            .iter()
            .all(|outcome| outcome.as_ref().err().is_none_or(|text| text == OVER_QUOTA)),
        "{outcomes:?}"
    );
    assert_eq!(held(&world).await, 2);
    world.advance(6).await;
    world.check_invariants().await;
    world.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_any_moment_leaves_nothing_behind() {
    let (mut world, cluster) = world().await;
    for (round, wait) in [0, 0, 1, 5, 6].into_iter().enumerate() {
        assert_eq!(refusal(&world, &cluster, &format!("{round}")).await, None);
        if wait > 0 {
            world.advance(wait).await;
        }
        world = world.kill().await.restart().await;
        world.advance(12).await;
        let listed = world.platform.list_load_balancers(&owner()).await.unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].ips.len(), 2, "{:?}", listed[0]);
        world.check_invariants().await;
        let id = &listed[0].id;
        world
            .platform
            .delete_load_balancer(&owner(), id)
            .await
            .unwrap();
        world = world.kill().await.restart().await;
        world.advance(1).await;
        assert_eq!(held(&world).await, 0);
        assert_eq!(addresses(&world).await, Vec::<Vec<String>>::new());
        world.check_invariants().await;
    }
    world.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_deletion_of_a_cluster_releases_its_addresses() {
    let (world, cluster) = world().await;
    assert_eq!(refusal(&world, &cluster, "a").await, None);
    world.advance(6).await;
    world
        .platform
        .delete_cluster(&owner(), &cluster)
        .await
        .unwrap();
    let refused = refusal(&world, &cluster, "b").await.unwrap();
    assert!(
        refused.starts_with("Cannot create a load balancer"),
        "{refused}"
    );
    world.advance(180).await;
    assert_eq!(world.status(&cluster).await, ClusterStatus::Deleted);
    assert_eq!(held(&world).await, 0);
    assert_eq!(addresses(&world).await, Vec::<Vec<String>>::new());
    let inventory = world.cloud.inventory().await.unwrap();
    assert_eq!(inventory.load_balancers, []);
    assert!(inventory.addresses.is_empty(), "{:?}", inventory.addresses);
    world.check_invariants().await;
    world.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_reaches_another_owners() {
    let (world, cluster) = world().await;
    assert_eq!(refusal(&world, &cluster, "a").await, None);
    let platform = &world.platform;
    let stranger = "orga_11111111-2222-4333-8444-555555555555".parse().unwrap();
    let listed = platform.list_load_balancers(&owner()).await.unwrap();
    let id = &listed[0].id;
    assert_eq!(platform.list_load_balancers(&stranger).await.unwrap(), []);
    for outcome in [
        platform.get_load_balancer(&stranger, id).await,
        platform.delete_load_balancer(&stranger, id).await,
        platform
            .configure_load_balancer(&stranger, id, Configuration::default())
            .await,
    ] {
        let not_found = PlatformError::LoadBalancerNotFound(id.clone());
        assert_eq!(outcome, Err(not_found));
    }
    let outcome = platform
        .create_load_balancer(&stranger, order(&cluster, "b"))
        .await;
    assert_eq!(outcome, Err(PlatformError::ClusterNotFound(cluster)));
    world.shutdown().await;
}
