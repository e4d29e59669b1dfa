//! Load balancers of Services: what is recorded of one, and what to do next about it.
//!
//! ```text
//! (create: record and addresses in the ledger, or neither) ─▶ asked of the fleet ─▶ has its addresses
//! (delete, or the cluster goes) ─▶ gone from the fleet ─▶ record and addresses in the ledger go together
//! ```
//!
//! The addresses stay in the ledger until the fleet has let go of them, so that an owner never has more than
//! its quota, not for a moment either.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;

use super::error::PlatformError;
use super::model::{ClusterId, OwnerId};

/// Public addresses of each (spec, "Quotas and limits": two make one LoadBalancer service).
pub const ADDRESSES: u32 = 2;
/// Size of each: two instances of the shared fleet.
pub const FLAVOR: &str = "XS-duo";
/// How long the fleet takes to serve a new one.
const DEPLOYMENT: Duration = Duration::from_secs(5);

/// A Service has at most so many ports here; an id of a listener is at most so long (contract cke-models 10.1).
const LISTENERS_LIMIT: usize = 128;
const LISTENER_ID_LIMIT: usize = 128;
/// Far more than a cluster has nodes.
const SERVERS_LIMIT: usize = 1024;
const TAGS_LIMIT: usize = 16;
const TAG_LIMIT_BYTES: usize = 512;

/// What runs over a connection's IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Transport {
    Tcp,
    Udp,
}

/// A port that is listened on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// Also that of the pool that it passes connections to.
    pub id: String,
    pub port: u16,
    pub transport: Transport,
}

/// Where a listener's connections go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// The listener's.
    pub id: String,
    pub transport: Transport,
    /// `address:port`.
    pub servers: Vec<String>,
}

/// A load balancer's own part of the fleet's configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configuration {
    pub listeners: Vec<Listener>,
    pub pools: Vec<Pool>,
}

impl Configuration {
    pub fn check(&self) -> Result<(), PlatformError> {
        let invalid = |field: &str, value: &dyn ToString, reason: String| {
            Err(PlatformError::invalid(
                format!("configuration.{field}"),
                value.to_string(),
                reason,
            ))
        };
        if self.listeners.len() > LISTENERS_LIMIT {
            let reason = format!("must be at most {LISTENERS_LIMIT}");
            return invalid("listeners", &self.listeners.len(), reason);
        }
        for (index, listener) in self.listeners.iter().enumerate() {
            let id = &listener.id;
            if id.is_empty() || id.len() > LISTENER_ID_LIMIT {
                let reason = format!("must have 1 to {LISTENER_ID_LIMIT} bytes");
                return invalid("listeners.id", id, reason);
            }
            if listener.port == 0 {
                return invalid("listeners.port", &0, String::from("must be 1 to 65535"));
            }
            let before = &self.listeners[..index];
            if before.iter().any(|other| other.id == *id) {
                return invalid("listeners.id", id, String::from("is given twice"));
            }
            let taken = |other: &Listener| {
                other.port == listener.port && other.transport == listener.transport
            };
            if before.iter().any(taken) {
                let reason = String::from("is listened on twice");
                return invalid("listeners.port", &listener.port, reason);
            }
        }
        if self.pools.len() > LISTENERS_LIMIT {
            let reason = format!("must be at most {LISTENERS_LIMIT}");
            return invalid("clusters", &self.pools.len(), reason);
        }
        for pool in &self.pools {
            let listened = self
                .listeners
                .iter()
                .any(|listener| listener.id == pool.id && listener.transport == pool.transport);
            if !listened {
                let reason = String::from("no listener of the same transport has this id");
                return invalid("clusters.id", &pool.id, reason);
            }
            if pool.servers.len() > SERVERS_LIMIT {
                let reason = format!("must be at most {SERVERS_LIMIT}");
                return invalid("clusters.servers", &pool.servers.len(), reason);
            }
            for server in &pool.servers {
                if server.parse::<std::net::SocketAddr>().is_err() {
                    let reason = String::from("must be an IP address and a port");
                    return invalid("clusters.servers", server, reason);
                }
            }
        }
        Ok(())
    }
}

/// A load balancer as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceLoadBalancer {
    pub id: String,
    pub owner: OwnerId,
    /// Whose Service it serves.
    pub cluster: ClusterId,
    pub region: String,
    pub flavor: String,
    pub domain_name: String,
    /// Who asked for it tells it from others by these.
    pub tags: Vec<String>,
    pub configuration: Configuration,
    /// Counts the changes of the configuration, from 1.
    pub configuration_version: u64,
    pub created_at: Timestamp,
    /// Public addresses; none until the fleet serves it.
    pub ips: Vec<String>,
    /// Its deletion is asked for.
    pub deleting: bool,
}

/// A request for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateLoadBalancer {
    pub cluster: ClusterId,
    pub flavor: String,
    pub tags: Vec<String>,
    pub configuration: Configuration,
}

impl CreateLoadBalancer {
    pub fn check(&self) -> Result<(), PlatformError> {
        if self.flavor != FLAVOR {
            let reason = format!("load balancers of services are of flavor {FLAVOR}");
            return Err(PlatformError::invalid("flavor", &self.flavor, reason));
        }
        if self.tags.len() > TAGS_LIMIT {
            let reason = format!("must be at most {TAGS_LIMIT}");
            return Err(PlatformError::invalid("tags", self.tags.len(), reason));
        }
        if let Some(tag) = self.tags.iter().find(|tag| tag.len() > TAG_LIMIT_BYTES) {
            let reason = format!("must have at most {TAG_LIMIT_BYTES} bytes");
            return Err(PlatformError::invalid("tags", tag, reason));
        }
        self.configuration.check()
    }
}

/// What is to be done next about a load balancer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    Nothing,
    /// The fleet takes its time.
    LookAgain(Timestamp),
    CreateInFleet,
    Record(Vec<String>),
    /// Away from the fleet, then record and ledger together.
    Remove,
}

/// `in_fleet` are the addresses that the fleet gave it; none if it does not know it.
pub fn decide(
    load_balancer: &ServiceLoadBalancer,
    cluster_is_going: bool,
    in_fleet: Option<&[String]>,
    now: Timestamp,
) -> Next {
    if load_balancer.deleting || cluster_is_going {
        return Next::Remove;
    }
    let Some(addresses) = in_fleet else {
        return Next::CreateInFleet;
    };
    let served = load_balancer.created_at.saturating_add(DEPLOYMENT);
    if load_balancer.ips == addresses {
        Next::Nothing
    } else if now < served {
        Next::LookAgain(served)
    } else {
        Next::Record(addresses.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener(id: &str, port: u16, transport: Transport) -> Listener {
        Listener {
            id: id.to_owned(),
            port,
            transport,
        }
    }

    #[test]
    fn a_configuration_is_checked() {
        let pool = |id: &str, server: &str| Pool {
            id: id.to_owned(),
            transport: Transport::Tcp,
            servers: vec![server.to_owned()],
        };
        let check = |listeners: Vec<Listener>, pools: Vec<Pool>, expect: &str| {
            let outcome = Configuration { listeners, pools }.check();
            let text = outcome.err().map(|error| error.to_string());
            assert_eq!(text.unwrap_or_default(), expect);
        };
        let http = || listener("http", 80, Transport::Tcp);
        check(vec![], vec![], "");
        check(vec![http()], vec![pool("http", "10.1.0.10:30080")], "");
        check(
            vec![http(), listener("dns", 80, Transport::Udp)],
            vec![],
            "",
        );
        check(
            vec![http(), listener("other", 80, Transport::Tcp)],
            vec![],
            "Invalid configuration.listeners.port: is listened on twice",
        );
        check(
            vec![http(), listener("http", 81, Transport::Tcp)],
            vec![],
            "Invalid configuration.listeners.id: is given twice",
        );
        check(
            vec![listener("", 80, Transport::Tcp)],
            vec![],
            "Invalid configuration.listeners.id: must have 1 to 128 bytes",
        );
        check(
            vec![listener("a", 0, Transport::Tcp)],
            vec![],
            "Invalid configuration.listeners.port: must be 1 to 65535",
        );
        check(
            vec![http()],
            vec![pool("https", "10.1.0.10:30080")],
            "Invalid configuration.clusters.id: no listener of the same transport has this id",
        );
        check(
            vec![http()],
            vec![pool("http", "node0")],
            "Invalid configuration.clusters.servers: must be an IP address and a port",
        );
    }

    #[test]
    fn the_record_leads_and_the_fleet_follows() {
        let now = Timestamp(1_000_000);
        let ips = ["192.0.2.1".to_owned(), "192.0.2.2".to_owned()];
        let asked = ServiceLoadBalancer {
            id: String::from("loadbalancer_1"),
            owner: "orga_3547a882-e464-4c34-8168-add4b3e0c135".parse().unwrap(),
            cluster: ClusterId::new(ulid::Ulid(1)),
            region: String::from("par"),
            flavor: String::from(FLAVOR),
            domain_name: String::from("x.test"),
            tags: Vec::new(),
            configuration: Configuration::default(),
            configuration_version: 1,
            created_at: now,
            ips: Vec::new(),
            deleting: false,
        };
        let served = now.saturating_add(DEPLOYMENT);
        let check =
            |record: &ServiceLoadBalancer, going, in_fleet: Option<&[String]>, at, expect| {
                assert_eq!(decide(record, going, in_fleet, at), expect);
            };
        check(&asked, false, None, now, Next::CreateInFleet);
        check(&asked, false, Some(&ips), now, Next::LookAgain(served));
        check(
            &asked,
            false,
            Some(&ips),
            served,
            Next::Record(ips.to_vec()),
        );
        check(&asked, true, Some(&ips), served, Next::Remove);
        let done = ServiceLoadBalancer {
            ips: ips.to_vec(),
            ..asked
        };
        check(&done, false, Some(&ips), served, Next::Nothing);
        check(&done, false, None, served, Next::CreateInFleet);
        let deleted = ServiceLoadBalancer {
            deleting: true,
            ..done
        };
        check(&deleted, false, None, served, Next::Remove);
    }
}
