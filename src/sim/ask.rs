//! What a command asks of a server: every operation of the control API has a command that asks for it.

use http::Method;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use crate::platform::shape::Shape;

use super::command::{
    Advance, CreditCommand, FaultCommand, PriceCommand, PriceOptions, RatesCommand, RatesPlan,
    SimCommand, VmCommand, WorldCommand,
};

/// A request to the control API.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    pub method: Method,
    pub path: String,
    pub body: Option<Value>,
}

/// All but these are written as `%XX`.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// A segment of a path, or a value in a query.
fn part(text: &str) -> impl std::fmt::Display {
    utf8_percent_encode(text, PLAIN)
}

fn ask(method: Method, path: impl Into<String>, body: Option<Value>) -> Ask {
    Ask {
        method,
        path: path.into(),
        body,
    }
}

fn get(path: impl Into<String>) -> Ask {
    ask(Method::GET, path, None)
}

fn put(path: impl Into<String>, body: Value) -> Ask {
    ask(Method::PUT, path, Some(body))
}

fn post(path: impl Into<String>, body: Option<Value>) -> Ask {
    ask(Method::POST, path, body)
}

impl SimCommand {
    /// Nothing of the server that is named, if it runs scenarios.
    pub fn ask(&self) -> Option<Ask> {
        Some(match self {
            SimCommand::Clock { change } => match change.as_deref() {
                None => get("/_sim/clock"),
                Some(verb @ ("pause" | "resume")) => post(format!("/_sim/clock/{verb}"), None),
                Some(scale) => put("/_sim/clock", json!({"scale": scale})),
            },
            SimCommand::Advance { by } => {
                let body = match by {
                    Advance::By(duration) => json!({"seconds": duration.as_secs_f64()}),
                    Advance::ToNextEvent => json!({"toNextEvent": true}),
                };
                post("/_sim/clock/advance", Some(body))
            }
            SimCommand::Events { since, no_follow } => {
                let since = since.map_or(String::new(), |since| format!("since={since}&"));
                get(format!("/_sim/events?{since}follow={}", !no_follow))
            }
            SimCommand::Vms { cluster } => get(format!("/_sim/vms{}", of(cluster.as_deref()))),
            SimCommand::Vm { vm, cluster, deed } => on_vm(vm, cluster.as_deref(), deed.as_ref()),
            SimCommand::Volumes {
                volume: Some(volume),
                used,
            } => put(
                format!("/_sim/volumes/{}/usage", part(volume)),
                json!({"usedBytes": used}),
            ),
            SimCommand::Volumes { volume: None, .. } => get("/_sim/volumes"),
            SimCommand::Datacenters {
                datacenter: Some(datacenter),
                state,
                capacity,
                boot_time,
                boot_failures,
            } => put(
                format!("/_sim/datacenters/{}", part(datacenter)),
                json!({
                    "state": state,
                    "capacityPercent": capacity,
                    "bootTimePercent": boot_time,
                    "bootFailuresPerMille": boot_failures,
                }),
            ),
            SimCommand::Datacenters { .. } => get("/_sim/datacenters"),
            SimCommand::Quota {
                organisation,
                vcpus,
                ram,
                ips,
            } => put(
                format!("{}/quota", organisation_path(organisation)),
                json!({"vcpus": vcpus, "ramGb": ram, "ips": ips}),
            ),
            SimCommand::Rates { change } => match change {
                None => get("/_sim/rates"),
                Some(RatesCommand::Plan(plan)) => put("/_sim/rates", planned(plan)),
            },
            SimCommand::Price(options) => price(options),
            SimCommand::Credits {
                organisation,
                change,
            } => {
                let path = format!("{}/credits", organisation_path(organisation));
                match change {
                    None => get(path),
                    Some(CreditCommand::Give {
                        name,
                        amount,
                        reason,
                    }) => put(
                        format!("{path}/{}", part(name)),
                        json!({"amount": amount, "reason": reason}),
                    ),
                }
            }
            SimCommand::Invoices {
                month,
                organisation,
                html,
            } => {
                let path = format!("{}/invoices", organisation_path(organisation));
                let format = if *html { "?format=html" } else { "" };
                match month {
                    None => get(path),
                    Some(month) => get(format!("{path}/{}{format}", part(month))),
                }
            }
            SimCommand::Versions {
                newest: None,
                auto_upgrade: None,
            } => get("/_sim/versions"),
            SimCommand::Versions {
                newest,
                auto_upgrade,
            } => put(
                "/_sim/versions",
                json!({"newest": newest, "autoUpgrade": auto_upgrade}),
            ),
            SimCommand::Faults { change } => faults(change.as_ref()),
            SimCommand::Certificates { change } => match change.as_deref() {
                None => get("/_sim/certificates"),
                Some(change) => put("/_sim/certificates", json!({"expired": change == "expire"})),
            },
            SimCommand::World { change } => match change {
                None => get("/_sim/world"),
                Some(WorldCommand::Reset { seed }) => {
                    post("/_sim/world/reset", Some(json!({"seed": seed})))
                }
                Some(WorldCommand::Snapshot { .. }) => post("/_sim/world/snapshot", None),
                Some(WorldCommand::Restore { .. }) => post("/_sim/world/restore", None),
            },
            SimCommand::Invariants => get("/_sim/invariants"),
            SimCommand::Openapi => get("/_sim/openapi.json"),
            SimCommand::Run { .. } => return None,
        })
    }
}

/// The query that chooses a cluster.
fn of(cluster: Option<&str>) -> String {
    cluster.map_or(String::new(), |cluster| {
        format!("?cluster={}", part(cluster))
    })
}

fn organisation_path(organisation: &str) -> String {
    format!("/_sim/organisations/{}", part(organisation))
}

fn on_vm(vm: &str, cluster: Option<&str>, deed: Option<&VmCommand>) -> Ask {
    let path = |deed: &str| format!("/_sim/vms/{}{deed}{}", part(vm), of(cluster));
    match deed {
        None => get(path("")),
        Some(VmCommand::Kill) => post(path("/kill"), None),
        Some(VmCommand::Wedge) => post(path("/wedge"), None),
        Some(VmCommand::Recover) => post(path("/recover"), None),
        Some(VmCommand::Flap { down, up }) => put(
            path("/flapping"),
            json!({"downSeconds": down.as_secs(), "upSeconds": up.as_secs()}),
        ),
        Some(VmCommand::Load { cpu, memory }) => put(
            path("/load"),
            json!({"cpuMillis": cpu, "memoryKib": memory}),
        ),
    }
}

fn planned(plan: &RatesPlan) -> Value {
    let vm = |rates: &super::command::VmRates| json!({"vcpu": rates.vcpu, "ramGb": rates.ram_gb});
    let rates = json!({
        "compute": plan.compute.as_ref().map(vm),
        "controlPlane": plan.control_plane.as_ref().map(vm),
        "loadBalancer": plan.load_balancer,
        "storageGb": plan.storage_gb,
        "beta": plan.beta,
    });
    let changes_nothing = rates
        .as_object()
        .is_some_and(|rates| rates.values().all(Value::is_null));
    match changes_nothing {
        true => json!({"changes": []}),
        false => json!({"changes": [{"from": plan.from, "rates": rates}]}),
    }
}

fn price(options: &PriceOptions) -> Ask {
    if let Some(PriceCommand::Cheapest {
        vcpus,
        ram,
        survive_datacenter,
        topologies,
        organisation,
        at,
    }) = &options.command
    {
        let topologies = Some(topologies).filter(|topologies| !topologies.is_empty());
        let body = json!({
            "vcpus": vcpus,
            "ramGb": ram,
            "survivesADatacenter": survive_datacenter,
            "topologies": topologies,
            "organisation": organisation,
            "at": at,
        });
        return post("/_sim/price/cheapest", Some(body));
    }
    let shape = |shape: &Shape| {
        let groups = shape.node_groups.iter().map(|group| {
            json!({
                "name": group.name,
                "flavor": group.flavor.to_string(),
                "targetNodeCount": group.count,
            })
        });
        json!({"topologyConfig": shape.topology, "nodeGroups": groups.collect::<Vec<_>>()})
    };
    let shapes: Vec<Value> = options.shapes.iter().map(shape).collect();
    let body = match <[Value; 1]>::try_from(shapes) {
        Ok([mut one]) => {
            one["at"] = json!(options.at);
            one
        }
        Err(several) => json!({"shapes": several, "at": options.at}),
    };
    post("/_sim/price", Some(body))
}

fn faults(change: Option<&FaultCommand>) -> Ask {
    match change {
        None => get("/_sim/faults"),
        Some(FaultCommand::Api) => get("/_sim/faults/api"),
        Some(FaultCommand::Clear { api: true, .. }) => {
            ask(Method::DELETE, "/_sim/faults/api", None)
        }
        Some(FaultCommand::Clear { id: None, .. }) => ask(Method::DELETE, "/_sim/faults", None),
        Some(FaultCommand::Clear { id: Some(id), .. }) => {
            let path = format!("/_sim/faults/api/{}", part(id));
            ask(Method::DELETE, path, None)
        }
        Some(FaultCommand::Set {
            path,
            method,
            status,
            code,
            message,
            times,
            per_mille,
            latency,
            real,
        }) => {
            let body = json!({
                "path": path,
                "method": method,
                "status": status,
                "code": code,
                "message": message,
                "times": times,
                "perMille": per_mille,
                "latencySeconds": latency.map(|latency| latency.as_secs_f64()),
                "latencyClock": if *real { "real" } else { "simulated" },
            });
            post("/_sim/faults/api", Some(body))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        command: SimCommand,
    }

    fn asked(line: &str) -> Ask {
        let words = std::iter::once("sim").chain(line.split_whitespace());
        let line = Line::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}"));
        line.command.ask().expect("it asks a server")
    }

    /// A line for each operation of the control API.
    const LINES: &[&str] = &[
        "clock",
        "clock 60",
        "clock pause",
        "clock resume",
        "advance next",
        "events --since 3 --no-follow",
        "vms",
        "vm control-plane-0",
        "vm control-plane-0 --cluster kubernetes_1 kill",
        "vm control-plane-0 wedge",
        "vm control-plane-0 recover",
        "vm control-plane-0 flap --down 30s --up 1m",
        "vm control-plane-0 load --cpu 250",
        "volumes",
        "volumes storage_1 --used 5",
        "datacenters",
        "datacenters par-1 --state lost",
        "quota --vcpus 80",
        "rates",
        "rates plan --compute 2:4 --beta false",
        "price ALL_IN_ONE:S:1",
        "price cheapest --vcpus 8",
        "credits",
        "credits give welcome 25.50",
        "invoices",
        "invoices 2026-01",
        "versions",
        "versions --newest 1.37",
        "faults",
        "faults api",
        "faults set /v4/** --status 503",
        "faults clear",
        "faults clear --api",
        "faults clear fault_1",
        "certificates",
        "certificates expire",
        "world",
        "world reset --seed 7",
        "world snapshot file",
        "world restore file",
        "invariants",
        "openapi",
    ];

    /// The documented path that `path` is an instance of: the one with the fewest parameters.
    fn template(document: &Value, path: &str) -> Option<String> {
        let path = path.split('?').next()?;
        let paths = document["paths"].as_object()?.keys();
        let fits = |known: &&String| {
            known.split('/').count() == path.split('/').count()
                && known
                    .split('/')
                    .zip(path.split('/'))
                    .all(|(known, found)| known.starts_with('{') || known == found)
        };
        let found = paths.filter(fits);
        found
            .min_by_key(|known| known.matches('{').count())
            .cloned()
    }

    #[test]
    fn every_operation_of_the_control_api_has_a_command() {
        let document = crate::clever::control_api();
        let mut documented = BTreeSet::new();
        for (path, operations) in document["paths"].as_object().expect("paths") {
            for method in operations.as_object().expect("operations").keys() {
                documented.insert(format!("{} {path}", method.to_uppercase()));
            }
        }
        let reached: BTreeSet<String> = LINES
            .iter()
            .map(|line| {
                let ask = asked(line);
                let known = template(&document, &ask.path);
                let known = known.unwrap_or_else(|| panic!("{line}: {} is unknown", ask.path));
                format!("{} {known}", ask.method)
            })
            .collect();
        assert_eq!(reached, documented);
        assert_eq!(reached.len(), LINES.len(), "a line for each");
    }

    #[test]
    fn what_is_said_is_what_is_asked() {
        let check = |line: &str, path: &str, body: Value| {
            let ask = asked(line);
            assert_eq!((ask.path.as_str(), ask.body), (path, Some(body)), "{line}");
        };
        let nothing = json!({"changes": []});
        check("rates plan", "/_sim/rates", nothing);
        check(
            "rates plan --from 2026-03-01T00:00:00Z --control-plane 3.5:7 --storage-gb 0.05",
            "/_sim/rates",
            json!({"changes": [{"from": "2026-03-01T00:00:00Z", "rates": {
                "compute": null, "controlPlane": {"vcpu": "3.5", "ramGb": "7"}, "loadBalancer": null,
                "storageGb": "0.05", "beta": null,
            }}]}),
        );
        check(
            "credits --organisation orga_1 give a/b 5 --reason sorry",
            "/_sim/organisations/orga_1/credits/a%2Fb",
            json!({"amount": "5", "reason": "sorry"}),
        );
        let one = json!({
            "topologyConfig": {"topology": "DEDICATED_COMPUTE", "flavor": "XS", "replicationFactor": 3},
            "nodeGroups": [{"name": "web", "flavor": "M", "targetNodeCount": 3}],
            "at": null,
        });
        check("price DEDICATED_COMPUTE:XS:3+web=M:3", "/_sim/price", one);
        let html = asked("invoices 2026-01 --html").path;
        assert!(html.ends_with("/invoices/2026-01?format=html"), "{html}");
    }
}
