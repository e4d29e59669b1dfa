//! What brings a NodeGroup resource and the platform's node group to agree: a pure function.
//!
//! Either side may change. What both last agreed on is in the resource's status (`targetNodeCount`), so it
//! is known which side moved: the one that differs from it. If both did, the resource wins: somebody wrote
//! down there what they want.
//!
//! Worked example: the resource says 2, the group's target is 2, the status says 2. `kubectl scale` makes the
//! resource say 4: it differs from the status, the group does not, so the group is scaled to 4, then the
//! status says 4. Then the group is scaled to 3 over the REST API: the group differs, so the resource is
//! made to say 3.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Most nodes that the resource can say; a group of the REST API may have more.
const MOST_NODES: u32 = 16;

/// A NodeGroup resource, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    pub name: String,
    pub generation: i64,
    pub flavor: String,
    pub node_count: u32,
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Value>,
    /// Its deletion is asked for.
    pub deleting: bool,
    /// It waits for this operator when it is deleted.
    pub held: bool,
    /// Id of the platform's group.
    pub upstream_id: Option<String>,
    /// What both sides last agreed on.
    pub agreed: Option<u32>,
}

/// The platform's node group, as the REST API shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Upstream {
    pub id: String,
    pub name: String,
    pub flavor: String,
    pub current_node_count: u32,
    pub target_node_count: u32,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub taints: Vec<Value>,
    pub status: String,
}

impl Upstream {
    pub fn is_going(&self) -> bool {
        ["TO_TERMINATE", "TERMINATING", "DELETED"].contains(&self.status.as_str())
    }

    /// What the resource says of the target.
    fn sayable(&self) -> u32 {
        self.target_node_count.min(MOST_NODES)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// A resource for a group that came from elsewhere, by this name.
    CreateResource {
        name: String,
        of: Upstream,
    },
    /// Before the group is asked for, so that the resource cannot go without it.
    Hold {
        resource: String,
    },
    CreateUpstream {
        resource: String,
    },
    /// The resource is of this group from now on.
    Link {
        resource: String,
        upstream: String,
    },
    ScaleUpstream {
        resource: String,
        upstream: String,
        count: u32,
    },
    ScaleResource {
        resource: String,
        count: u32,
    },
    DeleteUpstream {
        resource: String,
        upstream: String,
    },
    DeleteResource {
        resource: String,
    },
    LetGo {
        resource: String,
    },
}

/// What to do now, in order. Once all is done, and it has had its effects, there is nothing to do.
pub fn decide(resources: &[Resource], upstream: &[Upstream]) -> Vec<Act> {
    let mut acts = Vec::new();
    let claimed: BTreeSet<&str> = resources
        .iter()
        .filter_map(|resource| resource.upstream_id.as_deref())
        .collect();
    let mut free: Vec<&Upstream> = upstream
        .iter()
        .filter(|group| !claimed.contains(group.id.as_str()))
        .collect();
    for resource in resources {
        let name = || resource.name.clone();
        let Some(id) = &resource.upstream_id else {
            // A group that this resource asked for, before a crash kept its id from being written down; or
            // one of the same name that came over the REST API at the same moment.
            let twin = free.iter().position(|group| {
                group.name == resource.name && group.flavor == resource.flavor && !group.is_going()
            });
            acts.push(match twin {
                Some(index) => Act::Link {
                    resource: name(),
                    upstream: free.remove(index).id.clone(),
                },
                None if resource.deleting && resource.held => Act::LetGo { resource: name() },
                None if resource.deleting => continue,
                None if !resource.held => Act::Hold { resource: name() },
                None => Act::CreateUpstream { resource: name() },
            });
            continue;
        };
        let Some(group) = upstream.iter().find(|group| group.id == *id) else {
            // The group is gone, whoever deleted it: so does the resource.
            match (resource.deleting, resource.held) {
                (true, true) => acts.push(Act::LetGo { resource: name() }),
                (true, false) => {}
                (false, _) => acts.push(Act::DeleteResource { resource: name() }),
            }
            continue;
        };
        if group.is_going() {
            if !resource.deleting {
                acts.push(Act::DeleteResource { resource: name() });
            }
            continue;
        }
        if resource.deleting {
            acts.push(Act::DeleteUpstream {
                resource: name(),
                upstream: id.clone(),
            });
            continue;
        }
        if !resource.held {
            acts.push(Act::Hold { resource: name() });
        }
        let agreed = resource.agreed.map(|count| count.min(MOST_NODES));
        if resource.node_count == group.sayable() {
            // What is agreed on is written with the status.
        } else if agreed == Some(resource.node_count) {
            acts.push(Act::ScaleResource {
                resource: name(),
                count: group.sayable(),
            });
        } else if group.status == "READY" {
            // Before that it takes no other size; that it is ready brings us back here.
            acts.push(Act::ScaleUpstream {
                resource: name(),
                upstream: id.clone(),
                count: resource.node_count,
            });
        }
    }
    let mut names: BTreeSet<String> = resources.iter().map(|it| it.name.clone()).collect();
    for group in free.into_iter().filter(|group| !group.is_going()) {
        // Groups may share a name, resources may not.
        let name = if names.contains(&group.name) {
            let unique = group.id.rsplit('_').next().unwrap_or(&group.id);
            let unique = unique.to_ascii_lowercase();
            format!("{}-{unique}", group.name)
        } else {
            group.name.clone()
        };
        if names.insert(name.clone()) {
            acts.push(Act::CreateResource {
                name,
                of: group.clone(),
            });
        }
    }
    acts
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    fn resource(name: &str, count: u32) -> Resource {
        Resource {
            name: name.to_owned(),
            generation: 1,
            flavor: String::from("M"),
            node_count: count,
            labels: BTreeMap::new(),
            taints: Vec::new(),
            deleting: false,
            held: true,
            upstream_id: None,
            agreed: None,
        }
    }

    fn group(number: u32, name: &str, target: u32) -> Upstream {
        Upstream {
            id: format!("node_group_{number}"),
            name: name.to_owned(),
            flavor: String::from("M"),
            current_node_count: 0,
            target_node_count: target,
            labels: BTreeMap::new(),
            taints: Vec::new(),
            status: String::from("READY"),
        }
    }

    /// The world that the acts make, as far as they are about it. A resource that is let go of is gone.
    fn apply(resources: &mut Vec<Resource>, upstream: &mut Vec<Upstream>, acts: &[Act]) {
        for act in acts {
            let mut with = |name: &str, change: &mut dyn FnMut(&mut Resource)| {
                resources
                    .iter_mut()
                    .filter(|resource| resource.name == name)
                    .for_each(change);
            };
            match act {
                Act::CreateResource { name, of } => resources.push(Resource {
                    flavor: of.flavor.clone(),
                    upstream_id: Some(of.id.clone()),
                    agreed: Some(of.target_node_count),
                    ..resource(name, of.sayable())
                }),
                Act::Hold { resource } => with(resource, &mut |it| it.held = true),
                Act::Link { resource, upstream } => {
                    with(resource, &mut |it| it.upstream_id = Some(upstream.clone()));
                }
                Act::CreateUpstream { resource: name } => {
                    let number = u32::try_from(upstream.len()).unwrap() + 100;
                    let count = resources.iter().find(|it| it.name == *name).unwrap();
                    upstream.push(group(number, name, count.node_count));
                }
                Act::ScaleUpstream {
                    upstream: id,
                    count,
                    ..
                } => upstream
                    .iter_mut()
                    .filter(|it| it.id == *id)
                    .for_each(|it| it.target_node_count = *count),
                Act::ScaleResource { resource, count } => {
                    with(resource, &mut |it| it.node_count = *count);
                }
                Act::DeleteUpstream { upstream: id, .. } => upstream.retain(|it| it.id != *id),
                Act::DeleteResource { resource: name } => {
                    with(name, &mut |it| it.deleting = true);
                    resources.retain(|it| !it.deleting || it.held);
                }
                Act::LetGo { resource: name } => resources.retain(|it| it.name != *name),
            }
        }
        // What the status says after the round.
        for resource in resources.iter_mut() {
            let id = resource.upstream_id.as_ref();
            if let Some(found) = upstream.iter().find(|it| Some(&it.id) == id)
                && found.sayable() == resource.node_count
            {
                resource.agreed = Some(found.target_node_count);
            }
        }
    }

    #[test]
    fn the_side_that_moved_is_followed() {
        let linked = |count, agreed| Resource {
            upstream_id: Some(String::from("node_group_1")),
            agreed,
            ..resource("a", count)
        };
        let check = |resource: Resource, target: u32, expect: &str| {
            let acts = decide(&[resource], &[group(1, "a", target)]);
            let said: Vec<String> = acts
                .iter()
                .map(|act| match act {
                    Act::ScaleUpstream { count, .. } => format!("group to {count}"),
                    Act::ScaleResource { count, .. } => format!("resource to {count}"),
                    other => format!("{other:?}"),
                })
                .collect();
            assert_eq!(said.join(", "), expect);
        };
        check(linked(2, Some(2)), 2, "");
        check(linked(4, Some(2)), 2, "group to 4");
        check(linked(2, Some(2)), 3, "resource to 3");
        check(linked(4, Some(2)), 3, "group to 4");
        check(linked(3, Some(2)), 3, "");
        // Over what the resource can say, it says the most, and that is not a wish.
        check(linked(2, Some(2)), 40, "resource to 16");
        check(linked(16, Some(40)), 40, "");
        check(linked(4, Some(40)), 40, "group to 4");
    }

    #[test]
    fn a_resource_comes_and_goes_with_its_group() {
        let check = |resources: &[Resource], groups: &[Upstream], expect: &[Act]| {
            assert_eq!(decide(resources, groups), expect);
        };
        let name = || String::from("a");
        let id = || String::from("node_group_1");
        let new = resource("a", 2);
        let unheld = Resource {
            held: false,
            ..new.clone()
        };
        check(&[unheld], &[], &[Act::Hold { resource: name() }]);
        let create = Act::CreateUpstream { resource: name() };
        check(std::slice::from_ref(&new), &[], &[create]);
        let link = Act::Link {
            resource: name(),
            upstream: id(),
        };
        check(&[new], &[group(1, "a", 2)], &[link]);
        let linked = Resource {
            upstream_id: Some(id()),
            agreed: Some(2),
            ..resource("a", 2)
        };
        let delete = Act::DeleteResource { resource: name() };
        check(
            std::slice::from_ref(&linked),
            &[],
            std::slice::from_ref(&delete),
        );
        let going = Upstream {
            status: String::from("TERMINATING"),
            ..group(1, "a", 2)
        };
        check(
            std::slice::from_ref(&linked),
            std::slice::from_ref(&going),
            &[delete],
        );
        let deleting = Resource {
            deleting: true,
            ..linked
        };
        let delete = Act::DeleteUpstream {
            resource: name(),
            upstream: id(),
        };
        check(
            std::slice::from_ref(&deleting),
            &[group(1, "a", 2)],
            &[delete],
        );
        check(std::slice::from_ref(&deleting), &[going], &[]);
        check(&[deleting], &[], &[Act::LetGo { resource: name() }]);
        // Two groups of one name are two resources.
        let acts = decide(&[], &[group(1, "a", 2), group(2, "a", 1)]);
        let names: Vec<&str> = acts
            .iter()
            .filter_map(|act| match act {
                Act::CreateResource { name, .. } => Some(name.as_str()),
                _ => None,
            })
            .collect();
        assert_eq!(names, ["a", "a-2"]);
    }

    proptest! {
        /// From any state a few rounds lead to rest, and at rest every group has a resource that says its
        /// target, and every resource has a group.
        #[test]
        fn both_sides_come_to_agree(
            of_resources in proptest::collection::vec((0u8..4, 0u32..17, any::<bool>(), any::<bool>(), 0u32..5, 0u32..40), 0..4),
            of_groups in proptest::collection::vec((0u8..4, 0u32..40, any::<bool>()), 0..5),
        ) {
            let mut groups: Vec<Upstream> = Vec::new();
            for (number, (name, target, going)) in (0u32..).zip(of_groups) {
                let mut made = group(number, &format!("g{name}"), target);
                if going {
                    made.status = String::from("TERMINATING");
                }
                groups.push(made);
            }
            let mut resources: Vec<Resource> = Vec::new();
            for (name, count, deleting, held, link, agreed) in of_resources {
                let name = format!("g{name}");
                let id = (link < 4).then(|| format!("node_group_{link}"));
                let taken = resources.iter().any(|it: &Resource| {
                    it.name == name || (id.is_some() && it.upstream_id == id)
                });
                // One without a finalizer would be gone at once.
                if !taken {
                    resources.push(Resource {
                        deleting: deleting && held,
                        held,
                        agreed: id.is_some().then_some(agreed),
                        upstream_id: id,
                        ..resource(&name, count)
                    });
                }
            }
            for _ in 0..12 {
                let acts = decide(&resources, &groups);
                if acts.is_empty() {
                    // What was going ends.
                    groups.retain(|it| !it.is_going());
                }
                apply(&mut resources, &mut groups, &acts);
            }
            prop_assert_eq!(decide(&resources, &groups), []);
            prop_assert_eq!(resources.len(), groups.len());
            for resource in &resources {
                let found = groups.iter().find(|it| Some(&it.id) == resource.upstream_id.as_ref());
                prop_assert_eq!(found.map(Upstream::sayable), Some(resource.node_count));
            }
        }
    }
}
