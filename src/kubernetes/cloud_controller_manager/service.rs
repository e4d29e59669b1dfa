//! What to do next about one Service of type LoadBalancer.
//!
//! ```text
//! held by a finalizer ─▶ load balancer asked for ─▶ configured as the Service and the nodes are ─▶ addresses told
//! Service goes, or is of another type ─▶ load balancer given back ─▶ addresses untold, finalizer taken away
//! ```

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A Service is not gone before its load balancer is.
pub const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";
/// Such nodes get no connections from outside.
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// A load balancer, as the provider tells of it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Upstream {
    pub id: String,
    pub domain_name: String,
    /// None until it is served.
    pub ips: Vec<String>,
    pub tags: Vec<String>,
    /// Being deleted.
    pub frozen: bool,
    #[serde(flatten)]
    pub configuration: Configuration,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configuration {
    pub listeners: Vec<Listener>,
    /// Pools of backends, in the words of the provider's API.
    pub clusters: Vec<Pool>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    pub id: String,
    pub port: i64,
    pub transport: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    pub id: String,
    pub backends: Backends,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backends {
    pub servers: Vec<String>,
    pub transport: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    Nothing,
    /// Puts the finalizer on.
    Hold,
    Create(Configuration),
    Configure {
        upstream: String,
        configuration: Configuration,
        /// Nothing else has changed.
        only_hosts: bool,
    },
    /// Writes these addresses to the status.
    Tell(Value),
    Delete {
        upstream: String,
    },
    /// Takes the addresses and the finalizer away.
    LetGo,
}

/// Tags that name the Service's load balancer among those of its cluster.
pub fn tags(service: &Value) -> [String; 2] {
    let metadata = &service["metadata"];
    let text = |field: &str| metadata[field].as_str().unwrap_or("");
    [
        format!("kubernetes-service:{}/{}", text("namespace"), text("name")),
        uid_tag(text("uid")),
    ]
}

pub fn uid_tag(uid: &str) -> String {
    format!("kubernetes-service-uid:{uid}")
}

/// Whether a load balancer of ours is to serve it.
pub fn is_wanted(service: &Value) -> bool {
    service["spec"]["type"] == "LoadBalancer"
        && service["metadata"]["deletionTimestamp"].is_null()
        // Of a class, it is somebody else's.
        && service["spec"]["loadBalancerClass"].as_str().unwrap_or("").is_empty()
}

pub fn is_held(service: &Value) -> bool {
    let held = service["metadata"]["finalizers"].as_array();
    held.into_iter().flatten().any(|held| held == FINALIZER)
}

/// `hosts` are the addresses of the nodes that take connections.
pub fn decide(service: &Value, upstream: Option<&Upstream>, hosts: &[String]) -> Act {
    if !is_wanted(service) {
        return match upstream {
            Some(upstream) if upstream.frozen => Act::Nothing,
            Some(upstream) => Act::Delete {
                upstream: upstream.id.clone(),
            },
            None if is_held(service) => Act::LetGo,
            None => Act::Nothing,
        };
    }
    if !is_held(service) {
        return Act::Hold;
    }
    let configuration = configuration(service, hosts);
    match upstream {
        None => Act::Create(configuration),
        Some(upstream) if upstream.frozen => Act::Nothing,
        Some(upstream) if upstream.configuration != configuration => Act::Configure {
            upstream: upstream.id.clone(),
            only_hosts: upstream.configuration.listeners == configuration.listeners,
            configuration,
        },
        Some(upstream) if upstream.ips.is_empty() => Act::Nothing,
        Some(upstream) => {
            let ingress = ingress(upstream);
            if service["status"]["loadBalancer"]["ingress"] == ingress {
                Act::Nothing
            } else {
                Act::Tell(ingress)
            }
        }
    }
}

/// Every port of the Service is listened on; connections go to its node port on each host.
fn configuration(service: &Value, hosts: &[String]) -> Configuration {
    let mut configuration = Configuration::default();
    for port in service["spec"]["ports"].as_array().into_iter().flatten() {
        let transport = port["protocol"].as_str().unwrap_or("TCP").to_owned();
        let number = port["port"].as_i64().unwrap_or(0);
        let id = format!("{}-{number}", transport.to_lowercase());
        let servers = match port["nodePort"].as_i64() {
            Some(node_port) if node_port != 0 => hosts
                .iter()
                .map(|host| format!("{host}:{node_port}"))
                .collect(),
            _ => Vec::new(),
        };
        configuration.clusters.push(Pool {
            id: id.clone(),
            backends: Backends {
                servers,
                transport: transport.clone(),
            },
        });
        configuration.listeners.push(Listener {
            id,
            port: number,
            transport,
        });
    }
    configuration
}

fn ingress(upstream: &Upstream) -> Value {
    let domain = &upstream.domain_name;
    let addresses = upstream.ips.iter();
    addresses
        .map(|ip| json!({"ip": ip, "hostname": domain, "ipMode": "VIP"}))
        .collect()
}

/// Addresses of the nodes that are ready for connections, in the order of the nodes' names.
pub fn hosts(nodes: &[Value]) -> Vec<String> {
    let ready = |node: &&Value| {
        let conditions = node["status"]["conditions"].as_array();
        let mut conditions = conditions.into_iter().flatten();
        conditions.any(|it| it["type"] == "Ready" && it["status"] == "True")
            && node["metadata"]["deletionTimestamp"].is_null()
            && node["metadata"]["labels"][EXCLUDED].is_null()
    };
    let address = |node: &Value| {
        let addresses = node["status"]["addresses"].as_array();
        let mut addresses = addresses.into_iter().flatten();
        let internal = addresses.find(|it| it["type"] == "InternalIP")?;
        internal["address"].as_str().map(str::to_owned)
    };
    nodes.iter().filter(ready).filter_map(address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service() -> Value {
        json!({
            "metadata": {"namespace": "default", "name": "web", "uid": "1", "finalizers": [FINALIZER]},
            "spec": {"type": "LoadBalancer", "ports": [
                {"port": 80, "protocol": "TCP", "nodePort": 30080}]},
            "status": {"loadBalancer": {}},
        })
    }

    fn upstream(hosts: &[String]) -> Upstream {
        Upstream {
            id: String::from("loadbalancer_1"),
            domain_name: String::from("x.test"),
            ips: vec![String::from("192.0.2.1"), String::from("192.0.2.2")],
            tags: tags(&service()).to_vec(),
            frozen: false,
            configuration: configuration(&service(), hosts),
        }
    }

    #[test]
    fn a_service_gets_its_load_balancer_and_gives_it_back() {
        let hosts = [String::from("10.1.0.1"), String::from("10.1.0.2")];
        let wanted = configuration(&service(), &hosts);
        assert_eq!(
            wanted.clusters[0].backends.servers,
            ["10.1.0.1:30080", "10.1.0.2:30080"]
        );
        let addresses = json!([
            {"ip": "192.0.2.1", "hostname": "x.test", "ipMode": "VIP"},
            {"ip": "192.0.2.2", "hostname": "x.test", "ipMode": "VIP"},
        ]);
        let check = |change: &dyn Fn(&mut Value), upstream: Option<&Upstream>, expect: Act| {
            let mut service = service();
            change(&mut service);
            assert_eq!(decide(&service, upstream, &hosts), expect, "{service}");
        };
        let served = upstream(&hosts);
        let asked = Upstream {
            ips: Vec::new(),
            ..served.clone()
        };
        let going = Upstream {
            frozen: true,
            ..served.clone()
        };
        let behind = upstream(&hosts[..1]);
        let id = || served.id.clone();
        let bare = |it: &mut Value| it["metadata"]["finalizers"] = json!([]);
        let deleted = |it: &mut Value| it["metadata"]["deletionTimestamp"] = json!("now");
        let other = |it: &mut Value| it["spec"]["type"] = json!("ClusterIP");
        let told = |it: &mut Value| it["status"]["loadBalancer"]["ingress"] = addresses.clone();

        check(&bare, None, Act::Hold);
        check(&|_| {}, None, Act::Create(wanted.clone()));
        check(&|_| {}, Some(&asked), Act::Nothing);
        check(&|_| {}, Some(&served), Act::Tell(addresses.clone()));
        check(&told, Some(&served), Act::Nothing);
        check(&told, Some(&going), Act::Nothing);
        check(
            &told,
            Some(&behind),
            Act::Configure {
                upstream: id(),
                configuration: wanted,
                only_hosts: true,
            },
        );
        check(&deleted, Some(&served), Act::Delete { upstream: id() });
        check(&other, Some(&served), Act::Delete { upstream: id() });
        check(&other, Some(&going), Act::Nothing);
        check(&other, None, Act::LetGo);
        check(&deleted, None, Act::LetGo);
        let of_class = |it: &mut Value| {
            bare(it);
            it["spec"]["loadBalancerClass"] = json!("theirs");
        };
        check(&of_class, None, Act::Nothing);
    }

    #[test]
    fn only_ready_nodes_get_connections() {
        let node = |ready: &str, labels: Value| {
            json!({"metadata": {"labels": labels}, "status": {
                "conditions": [{"type": "Ready", "status": ready}],
                "addresses": [{"type": "Hostname", "address": "n"},
                    {"type": "InternalIP", "address": "10.1.0.1"}]}})
        };
        let check = |node: Value, count: usize| assert_eq!(hosts(&[node]).len(), count);
        check(node("True", json!({})), 1);
        check(node("Unknown", json!({})), 0);
        check(node("True", json!({EXCLUDED: ""})), 0);
    }
}
