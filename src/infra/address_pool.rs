//! Addresses that can be handed out. Which are taken is known by their records alone.

use std::collections::BTreeSet;
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

/// The addresses that somebody holds, in the order of their numbers.
pub type Taken = BTreeSet<Ipv4Addr>;

impl Run {
    /// Those that nobody holds, the lowest first: goes through what is taken once, and never through more.
    fn free<'a>(self, taken: &'a Taken) -> impl Iterator<Item = Ipv4Addr> + use<'a> {
        let mut held = taken.range(self.first..=self.last).copied().peekable();
        self.addresses()
            .filter(move |address| held.next_if_eq(address).is_none())
    }
}

/// The lowest private address of the site that is not taken, nor `spoken_for`.
pub fn free_private(
    datacenter: Datacenter,
    taken: &Taken,
    spoken_for: impl Fn(&Ipv4Addr) -> bool,
) -> Option<Ipv4Addr> {
    let mut free = private(datacenter).free(taken);
    free.find(|address| !spoken_for(address))
}

/// The `count` lowest public addresses that are not taken, or `None` if there are fewer.
pub fn free_public(count: usize, taken: &Taken) -> Option<Vec<Ipv4Addr>> {
    let free = PUBLIC.into_iter().flat_map(|run| run.free(taken));
    let free: Vec<Ipv4Addr> = free.take(count).collect();
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
            let taken = taken.iter().map(|text| text.parse().expect("an address"));
            let free = free_public(count, &taken.collect())
                .map(|free| free.iter().map(ToString::to_string).collect::<Vec<_>>());
            let expect = expect.map(|e| e.iter().map(ToString::to_string).collect::<Vec<_>>());
            assert_eq!(free, expect);
        };
        check(&[], 2, Some(&["192.0.2.1", "192.0.2.2"]));
        check(&["192.0.2.1"], 2, Some(&["192.0.2.2", "192.0.2.3"]));
        check(&["192.0.2.2"], 2, Some(&["192.0.2.1", "192.0.2.3"]));
        check(&["10.1.0.10", "203.0.113.1"], 1, Some(&["192.0.2.1"]));
        check(&[], 131_579, None);
        let all = free_public(508, &Taken::new()).expect("508 are free");
        assert_eq!(all[254].to_string(), "198.51.100.1");
        assert!(all.iter().all(|address| is_public(*address)));
    }
}
