//! The cheapest shape that has what is asked for.
//!
//! A VM's price is linear in its vCPU and memory, so what workers cost follows from what they have
//! together, whatever flavors it is made of. So the search is not over counts of nodes but over sums: which
//! amounts of vCPU and memory can be made of whole nodes at all, and which of those that suffice costs
//! least. (It is over 6 flavors times a few thousand sums of vCPU, with a set of bits for each sum's
//! memory: under a millisecond for what the default quota allows, and tens of them at the most.)
//!
//! The loss of a datacenter: a group's nodes go round the three sites, so of `n` nodes `n - ⌈n/3⌉` are
//! certain to be left. Nodes come in threes of which two are left, and at most once per flavor as two of
//! which one is left:
//!
//! ```text
//! nodes  2  3  5  6  8  9
//! left   1  2  3  4  5  6
//! ```
//!
//! Worked example: 24 vCPU and 32 GB that are left. Three XS leave two: 12 and 16. Six XS leave 24 and 32.
//! That is 36 vCPU and 48 GB to be paid, 264 euro a month, and the quota must allow them.

use super::catalog::{Billed, REPLICATION_FACTOR};
use super::model::{ComponentConfig, Components, Flavor, Topology, TopologyKind};
use super::pricing::{Quote, quote};
use super::quota::Resources;
use super::rates::{Rates, VmRates};
use super::shape::{NodeGroupShape, REPLICAS_FOR_A_LOSS, Shape};
use super::validation::MAX_NODES;

/// What can be asked for.
pub const MOST: Resources = Resources {
    vcpus: 4096,
    ram_gb: 8192,
};

/// What a shape must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// What the nodes have together, at least; at most [`MOST`].
    pub capacity: Resources,
    /// Whether the control plane, and nodes with the capacity, are to be there with any one datacenter lost.
    pub survives_a_datacenter: bool,
    /// What control plane and nodes may have together; `None`: whatever it takes.
    pub within: Option<Resources>,
    /// Which topologies will do.
    pub topologies: Vec<TopologyKind>,
}

/// Units in which flavors differ: all of them are of whole ones.
const VCPUS: u64 = 2;
const RAM_GB: u64 = 4;

/// A flavor's size in units.
fn units(flavor: Flavor) -> (usize, usize) {
    let size = flavor.size();
    let of = |size: u32, unit: u64| usize::try_from(u64::from(size) / unit).unwrap_or(0);
    (of(size.vcpus, VCPUS), of(size.ram_gb, RAM_GB))
}

/// Sums of vCPU and memory that can be made of whole nodes, of any number of each flavor.
struct Sums {
    /// By units of vCPU: a bit for each number of units of memory.
    rows: Vec<Vec<u64>>,
    columns: usize,
}

impl Sums {
    fn up_to(vcpus: usize, ram: usize) -> Sums {
        let columns = ram + 1;
        let words = columns.div_ceil(64);
        let mut rows = vec![vec![0u64; words]; vcpus + 1];
        rows[0][0] = 1;
        for row in 1..rows.len() {
            let (before, rest) = rows.split_at_mut(row);
            for flavor in Flavor::ALL {
                let (vcpu, ram) = units(flavor);
                if let Some(from) = row.checked_sub(vcpu) {
                    // Less than a word: at most 8 units of memory.
                    for word in 0..words {
                        let low = before[from][word] << ram;
                        let carried = word
                            .checked_sub(1)
                            .map_or(0, |it| before[from][it] >> (64 - ram));
                        rest[0][word] |= low | carried;
                    }
                }
            }
        }
        Sums { rows, columns }
    }

    fn contains(&self, vcpus: usize, ram: usize) -> bool {
        let row = self.rows.get(vcpus);
        row.is_some_and(|row| {
            row.get(ram / 64)
                .is_some_and(|word| word >> (ram % 64) & 1 == 1)
        })
    }

    /// The least memory that comes with so much vCPU, of at least `ram`.
    fn least_ram(&self, vcpus: usize, ram: usize) -> Option<usize> {
        let row = self.rows.get(vcpus)?;
        let mut word = ram / 64;
        let mut bits = row.get(word)? & (u64::MAX << (ram % 64));
        loop {
            if bits != 0 {
                let found = word * 64 + usize::try_from(bits.trailing_zeros()).unwrap_or(0);
                return (found < self.columns).then_some(found);
            }
            word += 1;
            bits = *row.get(word)?;
        }
    }

    /// How many nodes of each flavor make the sum: of one flavor, if that can be; else large ones rather
    /// than many.
    fn nodes_of(&self, mut vcpus: usize, mut ram: usize) -> [u32; 6] {
        let mut counts = [0; 6];
        for (index, flavor) in Flavor::ALL.into_iter().enumerate().rev() {
            let (vcpu, memory) = units(flavor);
            if vcpus % vcpu == 0 && vcpus / vcpu * memory == ram {
                counts[index] = u32::try_from(vcpus / vcpu).unwrap_or(0);
                return counts;
            }
        }
        while (vcpus, ram) != (0, 0) {
            let step = (0..Flavor::ALL.len()).rev().find_map(|index| {
                let (vcpu, memory) = units(Flavor::ALL[index]);
                let left = (vcpus.checked_sub(vcpu)?, ram.checked_sub(memory)?);
                self.contains(left.0, left.1).then_some((index, left))
            });
            let Some((index, left)) = step else {
                // It was no sum.
                return [0; 6];
            };
            counts[index] += 1;
            (vcpus, ram) = left;
        }
        counts
    }
}

/// Nodes of each flavor, and what they cost in millionths of a euro a month.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Workers {
    counts: [u32; 6],
    cost: u128,
}

fn cost(vcpus: u64, ram_gb: u64, rates: VmRates) -> u128 {
    u128::from(vcpus) * u128::from(rates.vcpu.micros())
        + u128::from(ram_gb) * u128::from(rates.ram_gb.micros())
}

/// The cheapest nodes that have `capacity`, or are certain to have it left with any datacenter lost, within
/// `within`.
fn workers(
    capacity: Resources,
    survive: bool,
    within: Option<Resources>,
    rates: VmRates,
) -> Option<Workers> {
    if capacity == Resources::default() {
        return Some(Workers {
            counts: [0; 6],
            cost: 0,
        });
    }
    let in_units = |amount: u64, unit: u64| usize::try_from(amount.div_ceil(unit)).unwrap_or(0);
    let wanted = (
        in_units(capacity.vcpus, VCPUS),
        in_units(capacity.ram_gb, RAM_GB),
    );
    // Of nodes that suffice and of which none can be spared, all but one do not suffice: in one of the two,
    // they are below what is wanted and one node of the largest flavor. A node has at most a unit of memory
    // for each of vCPU, and at least one for each two.
    let (most_vcpu, most_ram) = units(Flavor::Xl);
    let reach = (
        wanted.0.max(2 * wanted.1) + 2 * most_vcpu,
        wanted.1.max(wanted.0) + 2 * most_ram,
    );
    let sums = Sums::up_to(reach.0, reach.1);
    // Nodes in multiples, so many of which are left, for each flavor; and apart, two of which one is left.
    let (paid, left, odd) = if survive {
        (3, 2, 1u32 << Flavor::ALL.len())
    } else {
        (1, 1, 1)
    };
    let mut best: Option<(u128, usize, u32, (usize, usize))> = None;
    for mask in 0..odd {
        let chosen = Flavor::ALL
            .iter()
            .enumerate()
            .filter(|(index, _)| mask >> index & 1 == 1);
        let pairs = chosen.map(|(_, flavor)| units(*flavor));
        let pairs = pairs.fold((0, 0), |sum, it| (sum.0 + it.0, sum.1 + it.1));
        let missing = |wanted: usize, pair: usize| wanted.saturating_sub(pair).div_ceil(left);
        let (vcpus, ram) = (missing(wanted.0, pairs.0), missing(wanted.1, pairs.1));
        for row in vcpus..=reach.0 {
            let Some(column) = sums.least_ram(row, ram) else {
                continue;
            };
            let amount = |sum: usize, pair: usize, unit: u64| (paid * sum + 2 * pair) as u64 * unit;
            let total = (amount(row, pairs.0, VCPUS), amount(column, pairs.1, RAM_GB));
            if within.is_some_and(|it| total.0 > it.vcpus || total.1 > it.ram_gb) {
                continue;
            }
            let cost = cost(total.0, total.1, rates);
            // Of what costs the same, the smallest, and then the first.
            if best.is_none_or(|(least, size, ..)| (cost, row + column) < (least, size)) {
                best = Some((cost, row + column, mask, (row, column)));
            }
        }
    }
    let (cost, _, mask, (row, column)) = best?;
    let mut counts = sums.nodes_of(row, column).map(|count| count * paid as u32);
    for (index, count) in counts.iter_mut().enumerate() {
        *count += 2 * (mask >> index & 1);
    }
    Some(Workers { counts, cost })
}

/// Control planes that may do: of those that cost no less and give no more, one is enough.
fn control_planes(wanted: &Wanted) -> Vec<Topology> {
    let (fewest, most) = (*REPLICATION_FACTOR.start(), *REPLICATION_FACTOR.end());
    let replication_factor = if wanted.survives_a_datacenter {
        REPLICAS_FOR_A_LOSS
    } else {
        fewest
    };
    let mut found = Vec::new();
    for kind in TopologyKind::ALL {
        let smallest = kind.flavors()[0];
        if !wanted.topologies.contains(&kind) {
            continue;
        }
        match kind {
            // Never across datacenters. Its bundles are nodes, so that more of them may be what is wanted.
            TopologyKind::AllInOne if wanted.survives_a_datacenter => {}
            TopologyKind::AllInOne => {
                for flavor in kind.flavors() {
                    for replication_factor in fewest..=most {
                        found.push(Topology::AllInOne {
                            flavor: *flavor,
                            replication_factor,
                        });
                    }
                }
            }
            TopologyKind::DedicatedCompute => found.push(Topology::DedicatedCompute {
                flavor: smallest,
                replication_factor,
            }),
            TopologyKind::Distributed => found.push(Topology::Distributed {
                components: Components::uniform(ComponentConfig {
                    flavor: smallest,
                    replication_factor,
                }),
            }),
        }
    }
    found
}

/// Groups of these nodes: one of each flavor, or more where a group may not have so many.
fn groups(counts: [u32; 6]) -> Vec<NodeGroupShape> {
    // Threes go round the sites evenly however they are divided.
    let most = MAX_NODES - MAX_NODES % 3;
    let mut groups = Vec::new();
    for (flavor, mut count) in Flavor::ALL.into_iter().zip(counts) {
        while count > 0 {
            let taken = count.min(most);
            groups.push(NodeGroupShape {
                name: None,
                flavor,
                count: taken,
            });
            count -= taken;
        }
    }
    groups
}

/// The cheapest shape, and what it costs; `None` if nothing is within the bounds.
pub fn cheapest(wanted: &Wanted, rates: &Rates) -> Option<(Shape, Quote)> {
    let capacity = Resources {
        vcpus: wanted.capacity.vcpus.min(MOST.vcpus),
        ram_gb: wanted.capacity.ram_gb.min(MOST.ram_gb),
    };
    let mut best: Option<(u128, Shape, Quote)> = None;
    for topology in control_planes(wanted) {
        let own = Resources::of_control_plane(&topology);
        let within = match wanted.within {
            Some(within) if own.vcpus > within.vcpus || own.ram_gb > within.ram_gb => continue,
            Some(within) => Some(within.less(own)),
            None => None,
        };
        let bare = Shape::new(topology, Vec::new());
        let missing = capacity.less(bare.capacity());
        let price = quote(&bare, rates).total.monthly_micros();
        // Already dearer than one that does.
        if best.as_ref().is_some_and(|(least, ..)| price >= *least) {
            continue;
        }
        let survive = wanted.survives_a_datacenter;
        let Some(workers) = workers(missing, survive, within, rates.of(Billed::Compute)) else {
            continue;
        };
        let total = price + workers.cost;
        if best.as_ref().is_none_or(|(least, ..)| total < *least) {
            let shape = Shape::new(bare.topology, groups(workers.counts));
            let quote = quote(&shape, rates);
            best = Some((total, shape, quote));
        }
    }
    best.map(|(_, shape, quote)| (shape, quote))
}

#[cfg(test)]
mod tests;
