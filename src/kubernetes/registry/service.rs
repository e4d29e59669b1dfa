//! What a Service is given: addresses of 10.3.0.0/16, and ports on every node.
//!
//! ```text
//! Services:  a  type NodePort,  port 80           -> clusterIP 10.3.x.y, nodePort 30000..=32767
//!            b  type ClusterIP, port 80           -> clusterIP 10.3.x.z
//!            a  becomes ClusterIP                 -> keeps its address, its node port is free again
//! ```
//!
//! What is taken is what the Services there are have: nothing else is kept, and so nothing leaks. The writes
//! that take something go one after the other, by a comparison on the key [`ALLOCATION`].

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::validation::Causes;

/// Changed by every write that takes an address or a port.
pub const ALLOCATION: &str = "/registry/ranges/services";

const FIRST_NODE_PORT: i64 = 30_000;
const LAST_NODE_PORT: i64 = 32_767;
/// 10.3.0.0/16, without the network's address and the broadcast's.
const FIRST_ADDRESS: u32 = u32::from_be_bytes([10, 3, 0, 1]);
const ADDRESSES: u32 = (1 << 16) - 2;

fn has_node_ports(spec: &Value) -> bool {
    let balanced = spec["type"] == "LoadBalancer";
    spec["type"] == "NodePort" || (balanced && spec["allocateLoadBalancerNodePorts"] != false)
}

/// What a write may leave out and still keep; what the type has no use for goes.
pub fn keep(current: &Value, next: &mut Value) {
    let (before, spec) = (&current["spec"], &mut next["spec"]);
    let named = spec["type"] == "ExternalName";
    for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        if !named && spec[field].is_null() && !before[field].is_null() {
            spec[field] = before[field].clone();
        }
    }
    let kept = ["NodePort", "LoadBalancer"].contains(&spec["type"].as_str().unwrap_or(""));
    let both =
        kept && ["NodePort", "LoadBalancer"].contains(&before["type"].as_str().unwrap_or(""));
    if both && spec["healthCheckNodePort"].is_null() && !before["healthCheckNodePort"].is_null() {
        spec["healthCheckNodePort"] = before["healthCheckNodePort"].clone();
    }
    let earlier = before["ports"].as_array().cloned().unwrap_or_default();
    for port in spec["ports"].as_array_mut().into_iter().flatten() {
        let same =
            |other: &&Value| other["port"] == port["port"] && protocol(other) == protocol(port);
        let Some(old) = earlier.iter().find(same) else {
            continue;
        };
        if both && is_zero(&port["nodePort"]) && !is_zero(&old["nodePort"]) {
            port["nodePort"] = old["nodePort"].clone();
        }
        // A type without node ports loses those that it was given before, and no others.
        if !kept && port["nodePort"] == old["nodePort"] {
            super::remove(port, "nodePort");
        }
    }
    if !kept {
        for field in ["externalTrafficPolicy", "healthCheckNodePort"] {
            if spec[field] == before[field] {
                super::remove(spec, field);
            }
        }
    }
    if spec["type"] != "LoadBalancer" {
        super::remove(spec, "allocateLoadBalancerNodePorts");
    }
}

fn protocol(port: &Value) -> &str {
    port["protocol"].as_str().unwrap_or("TCP")
}

fn is_zero(port: &Value) -> bool {
    port.as_i64().unwrap_or(0) == 0
}

/// Whether there is something that the service must be given, or that it asks for by itself.
pub fn wants(service: &Value) -> bool {
    service["spec"]["type"] != "ExternalName"
}

/// Gives the service what it lacks; `others` are the Services there are, without it. What it asks for and
/// cannot have is the error.
pub fn allocate(service: &mut Value, others: &[Value]) -> Result<(), Causes> {
    let mut causes = Causes::new();
    let name = format!(
        "{}/{}",
        service["metadata"]["namespace"].as_str().unwrap_or(""),
        service["metadata"]["name"].as_str().unwrap_or("")
    );
    let spec = &mut service["spec"];
    if spec["type"] == "ExternalName" {
        return Ok(());
    }
    address(&name, spec, others, &mut causes);
    node_ports(&name, spec, others, &mut causes);
    if causes.is_empty() {
        Ok(())
    } else {
        Err(causes)
    }
}

fn address(name: &str, spec: &mut Value, others: &[Value], causes: &mut Causes) {
    let taken: BTreeSet<&str> = others
        .iter()
        .filter_map(|other| other["spec"]["clusterIP"].as_str())
        .collect();
    let asked = spec["clusterIP"].as_str().unwrap_or("").to_owned();
    if asked.is_empty() {
        let start = start(name, "address", ADDRESSES);
        let free = (0..ADDRESSES)
            .map(|step| FIRST_ADDRESS + (start + step) % ADDRESSES)
            .map(|address| Ipv4Addr::from(address).to_string())
            .find(|address| !taken.contains(address.as_str()));
        match free {
            Some(address) => spec["clusterIP"] = json!(address),
            None => causes.push((
                String::from("spec.clusterIPs"),
                String::from("Internal error: failed to allocate a serviceIP: range is full"),
            )),
        }
    } else if asked != "None" {
        let number = asked.parse::<Ipv4Addr>().map(u32::from).unwrap_or(0);
        let refused = if !(FIRST_ADDRESS..FIRST_ADDRESS + ADDRESSES).contains(&number) {
            format!(
                "the provided IP ({asked}) is not in the valid range. The range of valid IPs is 10.3.0.0/16"
            )
        } else if taken.contains(asked.as_str()) {
            String::from("provided IP is already allocated")
        } else {
            String::new()
        };
        if !refused.is_empty() {
            causes.push((
                String::from("spec.clusterIPs"),
                format!("Invalid value: [{asked:?}]: failed to allocate IP {asked}: {refused}"),
            ));
        }
    }
    for (field, value) in [
        ("clusterIPs", json!([spec["clusterIP"]])),
        ("ipFamilies", json!(["IPv4"])),
        ("ipFamilyPolicy", json!("SingleStack")),
    ] {
        if spec[field].is_null() {
            spec[field] = value;
        }
    }
}

fn node_ports(name: &str, spec: &mut Value, others: &[Value], causes: &mut Causes) {
    let mut taken: BTreeSet<i64> = others.iter().flat_map(ports_of).collect();
    if !has_node_ports(spec) && spec["type"] != "LoadBalancer" {
        for (index, port) in spec["ports"].as_array().into_iter().flatten().enumerate() {
            if !is_zero(&port["nodePort"]) {
                causes.push((
                    format!("spec.ports[{index}].nodePort"),
                    String::from("Forbidden: may not be used when `type` is 'ClusterIP'"),
                ));
            }
        }
        return;
    }
    let allocates = has_node_ports(spec);
    let local = spec["externalTrafficPolicy"] == "Local" && spec["type"] == "LoadBalancer";
    let mut asked: BTreeSet<(i64, String)> = BTreeSet::new();
    // What is asked for by number comes first: nobody else is given it.
    let mut missing = Vec::new();
    let ports = spec["ports"].as_array_mut();
    for (index, port) in ports.into_iter().flatten().enumerate() {
        let number = port["nodePort"].as_i64().unwrap_or(0);
        let field = format!("spec.ports[{index}].nodePort");
        let mut refuse = |why: &str| {
            causes.push((field.clone(), format!("Invalid value: {number}: {why}")));
        };
        if number == 0 {
            missing.push(index);
        } else if !(FIRST_NODE_PORT..=LAST_NODE_PORT).contains(&number) {
            refuse(
                "provided port is not in the valid range. The range of valid ports is 30000-32767",
            );
        } else if taken.contains(&number) || !asked.insert((number, protocol(port).to_owned())) {
            refuse("provided port is already allocated");
        }
    }
    taken.extend(asked.into_iter().map(|(number, _)| number));
    let mut give = |what: &str| {
        let range = u32::try_from(LAST_NODE_PORT - FIRST_NODE_PORT + 1).unwrap_or(1);
        let start = start(name, what, range);
        let free = (0..range)
            .map(|step| FIRST_NODE_PORT + i64::from((start + step) % range))
            .find(|port| !taken.contains(port));
        if let Some(port) = free {
            taken.insert(port);
        }
        free
    };
    let full = || String::from("Internal error: failed to allocate a nodePort: range is full");
    if allocates {
        for index in missing {
            let port = &mut spec["ports"][index];
            let what = format!("{}/{}", protocol(port), port["port"]);
            match give(&what) {
                Some(number) => port["nodePort"] = json!(number),
                None => causes.push((format!("spec.ports[{index}].nodePort"), full())),
            }
        }
    }
    if local && is_zero(&spec["healthCheckNodePort"]) {
        match give("health") {
            Some(number) => spec["healthCheckNodePort"] = json!(number),
            None => causes.push((String::from("spec.healthCheckNodePort"), full())),
        }
    }
}

fn ports_of(service: &Value) -> Vec<i64> {
    let spec = &service["spec"];
    let ports = spec["ports"].as_array().into_iter().flatten();
    ports
        .map(|port| &port["nodePort"])
        .chain([&spec["healthCheckNodePort"]])
        .filter_map(Value::as_i64)
        .filter(|port| *port != 0)
        .collect()
}

/// Where the search begins: the same for the same service, whoever else asks at that instant.
fn start(name: &str, what: &str, range: u32) -> u32 {
    let mut hash = Sha256::new();
    hash.update(name.as_bytes());
    hash.update([0]);
    hash.update(what.as_bytes());
    let digest: [u8; 32] = hash.finalize().into();
    let [a, b, c, d, ..] = digest;
    u32::from_be_bytes([a, b, c, d]) % range
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, kind: &str, ports: Value) -> Value {
        json!({"metadata": {"namespace": "default", "name": name}, "spec": {"type": kind, "ports": ports}})
    }

    fn allocated(mut service: Value, others: &[Value]) -> Value {
        allocate(&mut service, others).expect("room");
        service
    }

    #[test]
    fn every_service_has_an_address_and_ports_of_its_own() {
        let mut others: Vec<Value> = Vec::new();
        let (mut addresses, mut ports) = (BTreeSet::new(), BTreeSet::new());
        for index in 0..200 {
            let two = json!([{"port": 80}, {"port": 443}]);
            let made = allocated(service(&format!("s{index}"), "LoadBalancer", two), &others);
            assert!(addresses.insert(made["spec"]["clusterIP"].to_string()));
            assert_eq!(
                made["spec"]["clusterIPs"],
                json!([made["spec"]["clusterIP"]])
            );
            for port in ports_of(&made) {
                assert!((30_000..=32_767).contains(&port), "{port}");
                assert!(ports.insert(port), "{port}");
            }
            others.push(made);
        }
        assert_eq!(ports.len(), 400);
        // Whoever asks first gets the same as who asks last, as long as nothing collides.
        let alone = allocated(service("s7", "NodePort", json!([{"port": 80}])), &[]);
        assert_eq!(alone["spec"]["clusterIP"], others[7]["spec"]["clusterIP"]);
    }

    #[test]
    fn the_range_of_node_ports_ends() {
        let ports: Vec<Value> = (1..=2768).map(|port| json!({"port": port})).collect();
        let all = allocated(service("all", "NodePort", json!(ports)), &[]);
        let mut more = service("more", "NodePort", json!([{"port": 80}]));
        let causes = allocate(&mut more, &[all]).expect_err("full");
        assert_eq!(causes[0].0, "spec.ports[0].nodePort");
        assert!(causes[0].1.ends_with("range is full"), "{causes:?}");
    }

    #[test]
    fn what_is_asked_for_is_given_or_refused() {
        let other = allocated(
            service(
                "other",
                "NodePort",
                json!([{"port": 80, "nodePort": 30080}]),
            ),
            &[],
        );
        let taken = other["spec"]["clusterIP"].as_str().expect("an address");
        let check = |kind: &str, ports: Value, address: &str, expect: &[&str]| {
            let mut asked = service("web", kind, ports);
            if !address.is_empty() {
                asked["spec"]["clusterIP"] = json!(address);
            }
            let causes = allocate(&mut asked, std::slice::from_ref(&other)).err();
            let texts: Vec<String> = causes
                .unwrap_or_default()
                .iter()
                .map(|(field, message)| format!("{field}: {message}"))
                .collect();
            assert_eq!(texts, expect);
        };
        let port = |number: i64| json!([{"port": 80, "nodePort": number}]);
        check("NodePort", port(31_000), "", &[]);
        check("NodePort", port(0), "10.3.7.7", &[]);
        check("ClusterIP", json!([{"port": 80}]), "None", &[]);
        check(
            "NodePort",
            port(30_080),
            "",
            &["spec.ports[0].nodePort: Invalid value: 30080: provided port is already allocated"],
        );
        check(
            "NodePort",
            port(80),
            "",
            &[
                "spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports is 30000-32767",
            ],
        );
        check(
            "ClusterIP",
            port(31_000),
            "",
            &["spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"],
        );
        let refused = format!(
            "spec.clusterIPs: Invalid value: [{taken:?}]: failed to allocate IP {taken}: provided IP is already allocated"
        );
        check("ClusterIP", json!([{"port": 80}]), taken, &[&refused]);
        check(
            "ClusterIP",
            json!([{"port": 80}]),
            "192.0.2.1",
            &[
                "spec.clusterIPs: Invalid value: [\"192.0.2.1\"]: failed to allocate IP 192.0.2.1: the provided IP (192.0.2.1) is not in the valid range. The range of valid IPs is 10.3.0.0/16",
            ],
        );
    }

    #[test]
    fn a_service_keeps_what_it_has_while_its_type_needs_it() {
        let before = allocated(service("web", "LoadBalancer", json!([{"port": 80}])), &[]);
        let kept = |kind: &str| {
            let mut next = service("web", kind, json!([{"port": 80}, {"port": 443}]));
            keep(&before, &mut next);
            next
        };
        let next = kept("LoadBalancer");
        assert_eq!(next["spec"]["clusterIP"], before["spec"]["clusterIP"]);
        assert_eq!(
            next["spec"]["ports"][0]["nodePort"],
            before["spec"]["ports"][0]["nodePort"]
        );
        assert!(next["spec"]["ports"][1]["nodePort"].is_null());
        assert!(kept("ClusterIP")["spec"]["ports"][0]["nodePort"].is_null());
        assert!(kept("ExternalName")["spec"]["clusterIP"].is_null());
        // With what was read, as `kubectl edit` sends it.
        let mut next = before.clone();
        next["spec"]["type"] = json!("ClusterIP");
        keep(&before, &mut next);
        assert_eq!(ports_of(&next), Vec::<i64>::new());
    }

    #[test]
    fn node_ports_may_be_waived_and_health_checks_have_one() {
        let mut waived = service("web", "LoadBalancer", json!([{"port": 80}]));
        waived["spec"]["allocateLoadBalancerNodePorts"] = json!(false);
        assert_eq!(ports_of(&allocated(waived, &[])), Vec::<i64>::new());
        let mut local = service("web", "LoadBalancer", json!([{"port": 80}]));
        local["spec"]["externalTrafficPolicy"] = json!("Local");
        assert_eq!(ports_of(&allocated(local, &[])).len(), 2);
    }
}
