use proptest::prelude::*;

use super::*;
use crate::platform::catalog::RATES;
use crate::platform::rates::Rate;

fn wanted(vcpus: u64, ram_gb: u64) -> Wanted {
    Wanted {
        capacity: Resources { vcpus, ram_gb },
        survives_a_datacenter: false,
        within: Some(Resources {
            vcpus: 40,
            ram_gb: 40,
        }),
        topologies: TopologyKind::ALL.to_vec(),
    }
}

#[test]
fn the_cheapest_is_found_within_the_quota() {
    let check = |wanted: Wanted, expect: &str, monthly: &str| {
        let (shape, price) = match cheapest(&wanted, &RATES) {
            Some((shape, quote)) => (shape.to_string(), quote.total.shown_monthly().to_string()),
            None => (String::from("none"), String::new()),
        };
        assert_eq!(
            (shape.as_str(), price.as_str()),
            (expect, monthly),
            "{wanted:?}"
        );
    };
    // The least is a bundle.
    check(wanted(0, 0), "ALL_IN_ONE:S:1", "64.00");
    check(wanted(8, 12), "ALL_IN_ONE:S:1", "64.00");
    check(wanted(9, 12), "ALL_IN_ONE:M:1", "84.00");
    check(wanted(40, 40), "none", "");
    check(wanted(24, 36), "ALL_IN_ONE:S:1+S:2", "192.00");
    let survives = Wanted {
        survives_a_datacenter: true,
        ..wanted(4, 4)
    };
    check(survives.clone(), "DEDICATED_COMPUTE:XS:3+2XS:2", "246.00");
    check(
        Wanted {
            capacity: Resources {
                vcpus: 12,
                ram_gb: 16,
            },
            ..survives.clone()
        },
        "none",
        "",
    );
    check(
        Wanted {
            capacity: Resources {
                vcpus: 24,
                ram_gb: 32,
            },
            within: None,
            ..survives.clone()
        },
        "DEDICATED_COMPUTE:XS:3+XS:6",
        "462.00",
    );
    check(
        Wanted {
            within: None,
            topologies: vec![TopologyKind::Distributed],
            ..survives
        },
        "DISTRIBUTED:2XS:3+2XS:2",
        "588.00",
    );
    check(
        Wanted {
            topologies: vec![TopologyKind::AllInOne],
            ..survives
        },
        "none",
        "",
    );
}

#[test]
fn as_much_as_can_be_asked_for_is_made_of_groups_that_can_be() {
    for survives_a_datacenter in [false, true] {
        let wanted = Wanted {
            capacity: MOST,
            survives_a_datacenter,
            within: None,
            topologies: vec![TopologyKind::DedicatedCompute],
        };
        let (shape, _) = cheapest(&wanted, &RATES).unwrap();
        shape.check("").unwrap();
        let has = match survives_a_datacenter {
            false => shape.capacity(),
            true => shape.capacity_after_loss(),
        };
        assert!(
            has.vcpus >= MOST.vcpus && has.ram_gb >= MOST.ram_gb,
            "{shape}"
        );
    }
}

/// Looks at every number of nodes of every flavor, with every control plane.
fn brute_force(wanted: &Wanted, rates: &Rates) -> Option<u128> {
    let control_planes: Vec<Topology> = wanted
        .topologies
        .iter()
        .flat_map(|kind| {
            let flavors = kind.flavors().iter();
            flavors.flat_map(move |&flavor| {
                REPLICATION_FACTOR.map(move |replication_factor| match kind {
                    TopologyKind::AllInOne => Topology::AllInOne {
                        flavor,
                        replication_factor,
                    },
                    TopologyKind::DedicatedCompute => Topology::DedicatedCompute {
                        flavor,
                        replication_factor,
                    },
                    TopologyKind::Distributed => Topology::Distributed {
                        components: Components::uniform(ComponentConfig {
                            flavor,
                            replication_factor,
                        }),
                    },
                })
            })
        })
        .collect();
    let fits = |shape: &Shape| {
        let has = match wanted.survives_a_datacenter {
            true if !shape.survives_a_datacenter() => return false,
            true => shape.capacity_after_loss(),
            false => shape.capacity(),
        };
        let all = shape.resources();
        has.vcpus >= wanted.capacity.vcpus
            && has.ram_gb >= wanted.capacity.ram_gb
            && wanted
                .within
                .is_none_or(|it| all.vcpus <= it.vcpus && all.ram_gb <= it.ram_gb)
    };
    let (vcpus, ram) = (wanted.capacity.vcpus, wanted.capacity.ram_gb);
    // More of a flavor than suffice alone are never needed.
    let enough = Flavor::ALL.map(|flavor| {
        let size = flavor.size();
        let alone = vcpus
            .div_ceil(size.vcpus.into())
            .max(ram.div_ceil(size.ram_gb.into()));
        let alone = if wanted.survives_a_datacenter {
            (3 * alone).div_ceil(2)
        } else {
            alone
        };
        u32::try_from(alone).unwrap()
    });
    let mut best: Option<u128> = None;
    for topology in control_planes {
        let bare = Shape::new(topology.clone(), Vec::new());
        let all = bare.resources();
        let over = |it: Resources| all.vcpus > it.vcpus || all.ram_gb > it.ram_gb;
        let is_lost = wanted.survives_a_datacenter && !bare.survives_a_datacenter();
        if is_lost || wanted.within.is_some_and(over) {
            // No node makes up for it.
            continue;
        }
        let mut counts = [0u32; 6];
        let mut shape = Shape::new(topology, groups([1; 6]));
        'counts: loop {
            for (group, count) in shape.node_groups.iter_mut().zip(counts) {
                group.count = count;
            }
            if fits(&shape) {
                let price = quote(&shape, rates).total.monthly_micros();
                best = Some(best.map_or(price, |best| best.min(price)));
            }
            for (index, count) in counts.iter_mut().enumerate() {
                if *count < enough[index] {
                    *count += 1;
                    continue 'counts;
                }
                *count = 0;
            }
            break;
        }
    }
    best
}

/// Every amount that a few nodes have, with a datacenter lost: also those for which a pair of one flavor, and
/// of another, is the answer.
#[test]
fn nothing_cheaper_survives_the_loss_of_a_datacenter() {
    // Of vCPU alone, so that memory decides which flavor it is.
    let vcpu_alone = Rates {
        compute: VmRates {
            vcpu: Rate::euro(2),
            ram_gb: Rate::ZERO,
        },
        ..RATES
    };
    for vcpus in (0..=12).step_by(4) {
        for ram_gb in (0..=20).step_by(4) {
            let wanted = Wanted {
                survives_a_datacenter: true,
                within: None,
                topologies: vec![TopologyKind::DedicatedCompute],
                ..wanted(vcpus, ram_gb)
            };
            for rates in [RATES, vcpu_alone] {
                let found =
                    cheapest(&wanted, &rates).map(|(_, quote)| quote.total.monthly_micros());
                assert_eq!(found, brute_force(&wanted, &rates), "{wanted:?}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Nothing that suffices costs less; and what is found suffices.
    #[test]
    fn nothing_cheaper_suffices(
        vcpus in 0u64..=12,
        ram_gb in 0u64..=16,
        survives_a_datacenter in any::<bool>(),
        within in proptest::option::of((8u64..80, 8u64..100)),
        kinds in 1u8..8,
        micros in proptest::array::uniform4(0u32..5),
    ) {
        let all = TopologyKind::ALL.into_iter().enumerate();
        let topologies = all.filter(|(index, _)| kinds >> index & 1 == 1).map(|(_, kind)| kind);
        let [vcpu, ram, control_vcpu, control_ram] = micros.map(Rate::euro);
        let rates = Rates {
            compute: VmRates { vcpu, ram_gb: ram },
            control_plane: VmRates { vcpu: control_vcpu, ram_gb: control_ram },
            ..RATES
        };
        let wanted = Wanted {
            capacity: Resources { vcpus, ram_gb },
            survives_a_datacenter,
            within: within.map(|(vcpus, ram_gb)| Resources { vcpus, ram_gb }),
            topologies: topologies.collect(),
        };
        let found = cheapest(&wanted, &rates);
        let price = found.as_ref().map(|(_, quote)| quote.total.monthly_micros());
        prop_assert_eq!(price, brute_force(&wanted, &rates));
    }
}
