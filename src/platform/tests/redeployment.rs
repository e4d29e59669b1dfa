//! Manifests around a redeployment, as the platform has them applied.

use super::super::deployment_event::Step;
use super::super::redeployment::Hooks;
use super::*;

fn manifest(name: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn manifests_are_applied_before_and_after_the_control_plane_is_rolled() {
    let (world, us) = (World::new().await, owner());
    let id = world.active_cluster(SMALL).await;
    let hooks = Hooks::new(vec![manifest("a"), manifest("b")], vec![manifest("c")]).unwrap();
    let redeployed = world.platform.redeploy_cluster(&us, &id, hooks);
    redeployed.await.unwrap();
    world.advance(2).await;
    let applied = || {
        world.kubernetes.clusters.lock()[id.as_str()]
            .applied
            .clone()
    };
    let (first, all) = (
        [manifest("a"), manifest("b")],
        [manifest("a"), manifest("b"), manifest("c")],
    );
    assert_eq!(applied(), first);
    world.advance(20).await;
    assert_eq!(applied(), first, "the successor boots");
    world.advance(300).await;
    assert_eq!(applied(), all, "once each");
    let view = healed(&world, &id).await;
    assert_eq!(view.cluster.status, ClusterStatus::Active);
    assert_eq!(view.cluster.operation, None);
    world.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_fails_and_what_nobody_answers_is_asked_again() {
    let (world, us) = (World::new().await, owner());
    let id = world.active_cluster(SMALL).await;
    let redeploy = async |text: &str| {
        let hooks = Hooks::new(vec![manifest(text)], Vec::new()).unwrap();
        let redeployed = world.platform.redeploy_cluster(&us, &id, hooks).await;
        redeployed.unwrap();
    };
    redeploy("forbidden").await;
    world.advance(2).await;
    assert_eq!(world.status(&id).await, ClusterStatus::Failed);
    let events = world.platform.deployment_events(&us, &id, 2).await.unwrap();
    let told: Vec<_> = events
        .iter()
        .map(|it| (it.step, it.status, it.detail.as_deref()))
        .collect();
    let why = Some("it is forbidden");
    assert_eq!(
        told,
        [
            (None, EventStatus::Failed, why),
            (Some(Step::RedeployBeforeYaml), EventStatus::Failed, why),
        ]
    );
    world.advance(3600).await;
    assert_eq!(
        world.status(&id).await,
        ClusterStatus::Failed,
        "nothing goes on by itself"
    );
    world.platform.delete_cluster(&us, &id).await.unwrap();

    let id = world.active_cluster(SMALL).await;
    let vm = world.cloud.list_vms()[0].spec.id.clone();
    world.cloud.wedge_vm(&vm, true).await.unwrap();
    let hooks = Hooks::new(vec![manifest("late")], Vec::new()).unwrap();
    let redeployed = world.platform.redeploy_cluster(&us, &id, hooks);
    redeployed.await.unwrap();
    world.advance(20).await;
    assert_eq!(world.status(&id).await, ClusterStatus::Redeploying);
    let applied = || {
        world.kubernetes.clusters.lock()[id.as_str()]
            .applied
            .clone()
    };
    assert!(applied().is_empty());
    world.cloud.wedge_vm(&vm, false).await.unwrap();
    world.advance(16).await;
    assert_eq!(applied(), [manifest("late")]);
    world.advance(300).await;
    assert_eq!(world.status(&id).await, ClusterStatus::Active);
    world.shutdown().await;
}
