//! The scheduler: gives pending pods a node that they fit on. It acts only while an instance of it works.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::api_client::{ApiClientError, At};
use super::controller_manager::volume::{SELECTED_NODE, claims_of, waits_for_consumer};
use super::controller_manager::{Outcome, Tools};
use super::registry::resource::{Kind, Resource};
use super::registry::selector::matches_requirement;

const NAME: &str = "default-scheduler";

pub async fn reconcile(tools: &Tools) -> Result<Outcome, ApiClientError> {
    let resource = Resource::of_kind(Kind::Pod);
    let pods = tools.api.list(resource).await?;
    let pending: Vec<&Value> = pods.iter().filter(|pod| is_pending(pod)).collect();
    if pending.is_empty() {
        return Ok(None);
    }
    let nodes = tools.api.list(Resource::of_kind(Kind::Node)).await?;
    let mut used = used(&pods);
    let mounts = pending.iter().any(|pod| claims_of(pod).next().is_some());
    let (claims, classes) = if mounts {
        (
            tools
                .api
                .list(Resource::of_kind(Kind::PersistentVolumeClaim))
                .await?,
            tools
                .api
                .list(Resource::of_kind(Kind::StorageClass))
                .await?,
        )
    } else {
        Default::default()
    };
    for pod in pending {
        let chosen = match mounted(pod, &claims, &classes) {
            Mounts::Refused(why) => Err(unavailable(nodes.len(), &why)),
            Mounts::Bound => choose(pod, &nodes, &used).map(Some),
            Mounts::Lazy(waiting) => match choose(pod, &nodes, &used) {
                Ok(node) => {
                    select(tools, waiting, &node).await?;
                    Ok(None)
                }
                Err(why) => Err(why),
            },
        };
        match chosen {
            // Its claims are being bound: their change brings it back here.
            Ok(None) => {}
            Ok(Some(node)) => {
                let target = json!({"kind": "Node", "apiVersion": "v1", "name": node});
                let binding = json!({
                    "kind": "Binding", "apiVersion": "v1",
                    "metadata": {"name": pod["metadata"]["name"]}, "target": target,
                });
                let at = At::of(resource, pod);
                match tools.api.post(at, "binding", &binding).await {
                    Err(error) if error.is_stale() => continue,
                    outcome => drop(outcome?),
                }
                let namespace = at.namespace.unwrap_or("");
                let message = format!("Successfully assigned {namespace}/{} to {node}", at.name);
                tools
                    .event(pod, "Normal", "Scheduled", &message, NAME)
                    .await?;
                used.entry(node).or_default().add(&Room::of(pod));
            }
            Err(why) => refuse(tools, pod, &why).await?,
        }
    }
    Ok(None)
}

/// What a pod's claims let it do.
#[derive(Debug, PartialEq)]
enum Mounts<'a> {
    Bound,
    /// These are bound once the pod has a node in sight.
    Lazy(Vec<&'a Value>),
    Refused(String),
}

fn mounted<'a>(pod: &Value, claims: &'a [Value], classes: &[Value]) -> Mounts<'a> {
    let namespace = &pod["metadata"]["namespace"];
    let mut lazy = Vec::new();
    for name in claims_of(pod) {
        let named = |claim: &&Value| {
            claim["metadata"]["name"] == name && claim["metadata"]["namespace"] == *namespace
        };
        let Some(claim) = claims.iter().find(named) else {
            return Mounts::Refused(format!("persistentvolumeclaim {name:?} not found"));
        };
        if !claim["metadata"]["deletionTimestamp"].is_null() {
            let why = format!("persistentvolumeclaim {name:?} is being deleted");
            return Mounts::Refused(why);
        }
        match claim["status"]["phase"].as_str() {
            Some("Bound") => {}
            Some("Lost") => {
                let volume = claim["spec"]["volumeName"].as_str().unwrap_or("");
                return Mounts::Refused(format!(
                    "persistentvolumeclaim {name:?} bound to non-existent persistentvolume {volume:?}"
                ));
            }
            _ if waits_for_consumer(claim, classes) => lazy.push(claim),
            _ if claim["metadata"]["annotations"][SELECTED_NODE].is_string() => lazy.push(claim),
            _ => {
                let why = "pod has unbound immediate PersistentVolumeClaims";
                return Mounts::Refused(why.to_owned());
            }
        }
    }
    if lazy.is_empty() {
        Mounts::Bound
    } else {
        Mounts::Lazy(lazy)
    }
}

/// Tells whoever binds the claims that their pod is to run on the node.
async fn select(tools: &Tools, claims: Vec<&Value>, node: &str) -> Result<(), ApiClientError> {
    for claim in claims {
        if claim["metadata"]["annotations"][SELECTED_NODE].is_string() {
            continue;
        }
        let mut next = claim.clone();
        next["metadata"]["annotations"][SELECTED_NODE] = json!(node);
        let at = At::of(Resource::of_kind(Kind::PersistentVolumeClaim), claim);
        match tools.api.replace(at, &next).await {
            Err(error) if error.is_stale() => {}
            outcome => drop(outcome?),
        }
    }
    Ok(())
}

/// As kube-scheduler says what keeps a pod from every node.
fn unavailable(nodes: usize, why: &str) -> String {
    format!("0/{nodes} nodes are available: {why}.")
}

fn is_pending(pod: &Value) -> bool {
    pod["spec"]["nodeName"].as_str().unwrap_or("").is_empty()
        && pod["spec"]["schedulerName"].as_str().unwrap_or(NAME) == NAME
        && pod["metadata"]["deletionTimestamp"].is_null()
        && pod["spec"]["schedulingGates"]
            .as_array()
            .is_none_or(Vec::is_empty)
        && !["Succeeded", "Failed"].contains(&pod["status"]["phase"].as_str().unwrap_or(""))
}

/// Says once, and again when it changes, why a pod has no node.
async fn refuse(tools: &Tools, pod: &Value, why: &str) -> Result<(), ApiClientError> {
    let conditions = pod["status"]["conditions"].as_array();
    let known = conditions
        .into_iter()
        .flatten()
        .find(|it| it["type"] == "PodScheduled");
    if known.is_some_and(|known| known["message"] == why) {
        return Ok(());
    }
    let mut next = pod.clone();
    let others = pod["status"]["conditions"].as_array().into_iter().flatten();
    let mut conditions: Vec<Value> = others
        .filter(|it| it["type"] != "PodScheduled")
        .cloned()
        .collect();
    conditions.push(json!({
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": why,
        "lastTransitionTime": tools.time(), "lastProbeTime": null,
    }));
    next["status"]["conditions"] = Value::from(conditions);
    match tools
        .api
        .replace_status(At::of(Resource::of_kind(Kind::Pod), pod), &next)
        .await
    {
        Err(error) if error.is_stale() => return Ok(()),
        outcome => drop(outcome?),
    }
    tools
        .event(pod, "Warning", "FailedScheduling", why, NAME)
        .await
}

/// What pods ask for, or a node has: thousandths of CPUs, bytes, pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    pub cpu_millis: i64,
    pub memory_bytes: i64,
    pub pods: i64,
}

impl Room {
    /// What a pod requests: its containers together, or one of its init containers if that is more.
    pub fn of(pod: &Value) -> Room {
        let request = |container: &Value| {
            // A limit without a request is one.
            let amount = |resource: &str| {
                let resources = &container["resources"];
                match &resources["requests"][resource] {
                    Value::Null => quantity_millis(&resources["limits"][resource]),
                    given => quantity_millis(given),
                }
            };
            (amount("cpu"), amount("memory") / 1000)
        };
        let list = |field: &str| pod["spec"][field].as_array().into_iter().flatten();
        let (mut cpu, mut memory) = (0i64, 0i64);
        for container in list("containers") {
            let (more_cpu, more_memory) = request(container);
            cpu = cpu.saturating_add(more_cpu);
            memory = memory.saturating_add(more_memory);
        }
        for container in list("initContainers") {
            let (once_cpu, once_memory) = request(container);
            cpu = cpu.max(once_cpu);
            memory = memory.max(once_memory);
        }
        Room {
            cpu_millis: cpu,
            memory_bytes: memory,
            pods: 1,
        }
    }

    fn of_node(node: &Value) -> Room {
        let allocatable = &node["status"]["allocatable"];
        Room {
            cpu_millis: quantity_millis(&allocatable["cpu"]),
            memory_bytes: quantity_millis(&allocatable["memory"]) / 1000,
            pods: quantity_millis(&allocatable["pods"]) / 1000,
        }
    }

    fn add(&mut self, other: &Room) {
        self.cpu_millis = self.cpu_millis.saturating_add(other.cpu_millis);
        self.memory_bytes = self.memory_bytes.saturating_add(other.memory_bytes);
        self.pods = self.pods.saturating_add(other.pods);
    }
}

/// By node, what pods that have not ended take.
fn used(pods: &[Value]) -> BTreeMap<String, Room> {
    let mut used: BTreeMap<String, Room> = BTreeMap::new();
    for pod in pods {
        let ended =
            ["Succeeded", "Failed"].contains(&pod["status"]["phase"].as_str().unwrap_or(""));
        if let Some(node) = pod["spec"]["nodeName"]
            .as_str()
            .filter(|it| !it.is_empty() && !ended)
        {
            used.entry(node.to_owned()).or_default().add(&Room::of(pod));
        }
    }
    used
}

/// Thousandths of a quantity such as `100m`, `1.5`, `128Mi` or `1e3`; one that is none counts as zero.
pub fn quantity_millis(quantity: &Value) -> i64 {
    let text = match quantity {
        Value::String(text) => text.trim().to_owned(),
        Value::Number(number) => number.to_string(),
        _ => return 0,
    };
    let end = text
        .find(|it: char| !it.is_ascii_digit() && it != '.' && it != '-' && it != '+')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    // (factor, divisor) to thousandths.
    let (factor, divisor): (i128, i128) = match suffix {
        "n" => (1, 1_000_000),
        "u" => (1, 1_000),
        "m" => (1, 1),
        "" => (1_000, 1),
        "k" => (1_000_000, 1),
        "M" => (1_000_000_000, 1),
        "G" => (1_000_000_000_000, 1),
        "T" => (1_000_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1_000 << 10, 1),
        "Mi" => (1_000 << 20, 1),
        "Gi" => (1_000 << 30, 1),
        "Ti" => (1_000 << 40, 1),
        "Pi" => (1_000 << 50, 1),
        exponent => match exponent
            .strip_prefix(['e', 'E'])
            .and_then(|it| it.parse::<u32>().ok())
        {
            Some(power) if power <= 15 => (1_000 * 10i128.pow(power), 1),
            _ => return 0,
        },
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let fraction = &fraction[..fraction.len().min(9)];
    let digits = format!("{whole}{fraction}");
    let Ok(value) = digits.parse::<i128>() else {
        return 0;
    };
    let scale = 10i128.pow(u32::try_from(fraction.len()).unwrap_or(0));
    let millis = value.saturating_mul(factor) / (scale * divisor);
    i64::try_from(millis).unwrap_or(i64::MAX)
}

/// The node with most room left, in proportion; or why there is none, as kube-scheduler says it.
fn choose(pod: &Value, nodes: &[Value], used: &BTreeMap<String, Room>) -> Result<String, String> {
    let asked = Room::of(pod);
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let mut best: Option<(i64, &str)> = None;
    for node in nodes {
        let name = node["metadata"]["name"].as_str().unwrap_or("");
        let has = Room::of_node(node);
        let mut taken = used.get(name).copied().unwrap_or_default();
        if let Some(reason) = unfit(pod, node) {
            *reasons.entry(reason).or_default() += 1;
            continue;
        }
        taken.add(&asked);
        let mut short = false;
        for (is, limit, reason) in [
            (taken.pods, has.pods, "Too many pods"),
            (taken.cpu_millis, has.cpu_millis, "Insufficient cpu"),
            (taken.memory_bytes, has.memory_bytes, "Insufficient memory"),
        ] {
            if is > limit {
                short = true;
                *reasons.entry(reason.to_owned()).or_default() += 1;
            }
        }
        if short {
            continue;
        }
        let left = |is: i64, limit: i64| {
            ((limit - is).saturating_mul(100))
                .checked_div(limit)
                .unwrap_or(0)
        };
        // Requests first; then fewer pods, so that pods that ask for nothing spread, too.
        let score = (left(taken.cpu_millis, has.cpu_millis)
            + left(taken.memory_bytes, has.memory_bytes))
            * 1000
            + left(taken.pods, has.pods) * 10
            - preference(node);
        if best.is_none_or(|(highest, _)| score > highest) {
            best = Some((score, name));
        }
    }
    if let Some((_, name)) = best {
        return Ok(name.to_owned());
    }
    if nodes.is_empty() {
        return Err(String::from("no nodes available to schedule pods"));
    }
    let reasons: Vec<String> = reasons
        .into_iter()
        .map(|(reason, nodes)| format!("{nodes} {reason}"))
        .collect();
    Err(format!(
        "0/{} nodes are available: {}.",
        nodes.len(),
        reasons.join(", ")
    ))
}

/// How much a node would rather have no pods.
fn preference(node: &Value) -> i64 {
    let taints = node["spec"]["taints"].as_array();
    let soft = taints
        .into_iter()
        .flatten()
        .filter(|it| it["effect"] == "PreferNoSchedule")
        .count();
    i64::try_from(soft).unwrap_or(0) * 1_000_000
}

/// Why the pod may not be on the node, room aside.
fn unfit(pod: &Value, node: &Value) -> Option<String> {
    let spec = &node["spec"];
    let cordon = json!({"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"});
    if spec["unschedulable"] == true && !tolerates(pod, &cordon) {
        return Some(String::from("node(s) were unschedulable"));
    }
    if let Some(taint) = untolerated(pod, node, &["NoSchedule", "NoExecute"]) {
        let key = taint["key"].as_str().unwrap_or("");
        let value = taint["value"].as_str().unwrap_or("");
        return Some(format!("node(s) had untolerated taint {{{key}: {value}}}"));
    }
    let conditions = node["status"]["conditions"].as_array();
    let ready = conditions
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
    if !ready {
        return Some(String::from("node(s) were not ready"));
    }
    (!matches_node(pod, node))
        .then(|| String::from("node(s) didn't match Pod's node affinity/selector"))
}

/// A taint of these effects that keeps the pod from the node.
pub fn untolerated<'a>(pod: &Value, node: &'a Value, effects: &[&str]) -> Option<&'a Value> {
    let taints = node["spec"]["taints"].as_array();
    let mut taints = taints.into_iter().flatten();
    taints.find(|taint| {
        let effect = taint["effect"].as_str().unwrap_or("");
        effects.contains(&effect) && !tolerates(pod, taint)
    })
}

/// Whether the node is one that the pod asks for, by its selector and its required affinity.
pub fn matches_node(pod: &Value, node: &Value) -> bool {
    let metadata = &node["metadata"];
    let wanted = pod["spec"]["nodeSelector"].as_object();
    let selected = wanted
        .into_iter()
        .flatten()
        .all(|(key, value)| metadata["labels"][key] == *value);
    let required =
        &pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    let affine = required["nodeSelectorTerms"]
        .as_array()
        .is_none_or(|terms| {
            terms.iter().any(|term| {
                let labels = term["matchExpressions"].as_array().into_iter().flatten();
                let fields = term["matchFields"].as_array().into_iter().flatten();
                let name = json!({"metadata.name": metadata["name"]});
                labels.clone().count() + fields.clone().count() > 0
                    && labels
                        .into_iter()
                        .all(|it| matches_requirement(it, &metadata["labels"]))
                    && fields.into_iter().all(|it| matches_requirement(it, &name))
            })
        });
    selected && affine
}

fn tolerates(pod: &Value, taint: &Value) -> bool {
    pod["spec"]["tolerations"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|toleration| is_tolerated(toleration, taint))
}

/// Whether the toleration is about the taint.
pub fn is_tolerated(toleration: &Value, taint: &Value) -> bool {
    let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
    let effect = text(&toleration["effect"]);
    let key = text(&toleration["key"]);
    let exists = toleration["operator"] == "Exists";
    (effect.is_empty() || effect == text(&taint["effect"]))
        && (key == text(&taint["key"]) || (key.is_empty() && exists))
        && (exists || text(&toleration["value"]) == text(&taint["value"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_kubernetes() {
        let check =
            |text: &str, expect: i64| assert_eq!(quantity_millis(&json!(text)), expect, "{text}");
        check("100m", 100);
        check("1", 1000);
        check("1.5", 1500);
        check("0.1", 100);
        check("128Mi", 134_217_728_000);
        check("1k", 1_000_000);
        check("2e3", 2_000_000);
        check("1500u", 1);
        check("x", 0);
    }

    fn node(name: &str, spec: Value) -> Value {
        json!({
            "metadata": {"name": name, "labels": {"zone": name}}, "spec": spec,
            "status": {
                "allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"},
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        })
    }

    #[test]
    fn pods_go_where_they_fit_and_most_is_left() {
        let check =
            |nodes: &[Value], used: &[(&str, i64)], pod: Value, expect: Result<&str, &str>| {
                let used = used
                    .iter()
                    .map(|(name, cpu_millis)| {
                        let room = Room {
                            cpu_millis: *cpu_millis,
                            memory_bytes: 0,
                            pods: 1,
                        };
                        ((*name).to_owned(), room)
                    })
                    .collect();
                let found = choose(&json!({"spec": pod}), nodes, &used);
                assert_eq!(
                    found,
                    expect.map(str::to_owned).map_err(str::to_owned),
                    "{pod}"
                );
            };
        let two = [node("a", json!({})), node("b", json!({}))];
        let asks = |cpu: &str| json!({"containers": [{"resources": {"requests": {"cpu": cpu}}}]});
        check(
            &[],
            &[],
            json!({}),
            Err("no nodes available to schedule pods"),
        );
        check(&two, &[], json!({}), Ok("a"));
        check(&two, &[("a", 0)], json!({}), Ok("b"));
        check(&two, &[("a", 1000)], asks("1"), Ok("b"));
        check(&two, &[("b", 3500)], asks("1"), Ok("a"));
        check(
            &two,
            &[],
            asks("5"),
            Err("0/2 nodes are available: 2 Insufficient cpu."),
        );
        check(&two, &[], json!({"nodeSelector": {"zone": "b"}}), Ok("b"));
        check(
            &two,
            &[],
            json!({"nodeSelector": {"zone": "c"}}),
            Err("0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector."),
        );
        let closed = [
            node("a", json!({"unschedulable": true})),
            node(
                "b",
                json!({"taints": [{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]}),
            ),
        ];
        check(
            &closed,
            &[],
            json!({}),
            Err(
                "0/2 nodes are available: 1 node(s) had untolerated taint {gpu: yes}, 1 node(s) were unschedulable.",
            ),
        );
        check(
            &closed,
            &[],
            json!({"tolerations": [{"key": "gpu", "value": "yes"}]}),
            Ok("b"),
        );
        check(
            &closed,
            &[],
            json!({"tolerations": [{"key": "gpu", "operator": "Exists"}]}),
            Ok("b"),
        );
        // As a DaemonSet's pod does.
        check(
            &closed,
            &[],
            json!({"tolerations": [{"operator": "Exists"}]}),
            Ok("a"),
        );
        let affinity = |zone: &str| {
            json!({"affinity": {"nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "zone", "operator": "In", "values": [zone]}]}]}}}})
        };
        check(&two, &[], affinity("b"), Ok("b"));
    }
}
