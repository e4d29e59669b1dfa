//! Addresses that can be handed out. Which are taken is known by their records alone.

use std::net::Ipv4Addr;

use super::vm::Datacenter;

/// A run of addresses, both ends included.
#[derive(Clone, Copy, Debug)]
struct Run {
    first: Ipv4Addr,
    last: Ipv4Addr,
}

/// Documentation addresses (RFC 5737), then those for benchmarks (RFC 2544): nothing real answers there.
/// Without the ends of each network.
const PUBLIC: [Run; 3] = [
    Run {
        first: Ipv4Addr::new(192, 0, 2, 1),
        last: Ipv4Addr::new(192, 0, 2, 254),
    },
    Run {
        first: Ipv4Addr::new(198, 51, 100, 1),
        last: Ipv4Addr::new(198, 51, 100, 254),
    },
    Run {
        first: Ipv4Addr::new(198, 18, 0, 1),
        last: Ipv4Addr::new(198, 19, 255, 254),
    },
];

fn private(datacenter: Datacenter) -> Run {
    let site = match datacenter {
        Datacenter::Par1 => 1,
        Datacenter::Par2 => 2,
        Datacenter::Par3 => 3,
    };
    Run {
        first: Ipv4Addr::new(10, site, 0, 10),
        last: Ipv4Addr::new(10, site, 255, 254),
    }
}

impl Run {
    fn addresses(self) -> impl Iterator<Item = Ipv4Addr> {
        (u32::from(self.first)..=u32::from(self.last)).map(Ipv4Addr::from)
    }
}

/// The lowest private address of the site that is not taken.
pub fn free_private(
    datacenter: Datacenter,
    is_taken: impl Fn(Ipv4Addr) -> bool,
) -> Option<Ipv4Addr> {
    private(datacenter)
        .addresses()
        .find(|address| !is_taken(*address))
}

/// The `count` lowest public addresses that are not taken, or `None` if there are fewer.
pub fn free_public(count: usize, is_taken: impl Fn(Ipv4Addr) -> bool) -> Option<Vec<Ipv4Addr>> {
    let free: Vec<Ipv4Addr> = PUBLIC
        .into_iter()
        .flat_map(Run::addresses)
        .filter(|address| !is_taken(*address))
        .take(count)
        .collect();
    (free.len() == count).then_some(free)
}

pub fn is_public(address: Ipv4Addr) -> bool {
    PUBLIC
        .iter()
        .any(|run| (run.first..=run.last).contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_addresses_are_handed_out() {
        let check = |taken: &[&str], count, expect: Option<&[&str]>| {
            let is_taken = |address: Ipv4Addr| taken.contains(&address.to_string().as_str());
            let free = free_public(count, is_taken)
                .map(|free| free.iter().map(ToString::to_string).collect::<Vec<_>>());
            let expect = expect.map(|e| e.iter().map(ToString::to_string).collect::<Vec<_>>());
            assert_eq!(free, expect);
        };
        check(&[], 2, Some(&["192.0.2.1", "192.0.2.2"]));
        check(&["192.0.2.1"], 2, Some(&["192.0.2.2", "192.0.2.3"]));
        check(&[], 131_579, None);
        let all = free_public(508, |_| false).expect("508 are free");
        assert_eq!(all[254].to_string(), "198.51.100.1");
        assert!(all.iter().all(|address| is_public(*address)));
    }
}
