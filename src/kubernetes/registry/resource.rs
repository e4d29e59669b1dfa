//! The one table of what a cluster serves.

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Event, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod,
    Secret, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::StorageClass;
use schemars::{Schema, SchemaGenerator};

/// A kind of object, and how it is served and kept.
#[derive(Debug)]
pub struct Resource {
    /// Empty for the core group.
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub short_names: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub namespaced: bool,
    /// Under `/registry/` in etcd, as kube-apiserver has it.
    pub storage: &'static str,
    pub names: Names,
    /// `status` is a subresource: a write of the object leaves it alone, and the other way round.
    pub status: bool,
    /// `scale` is a subresource on [`Resource::replicas`].
    pub scale: bool,
    /// `metadata.generation` counts changes of `spec`.
    pub generation: bool,
    /// Parts that strategic merge patches know how to merge: not for custom resources.
    pub strategic_merge: bool,
    /// Adds the kind's schema, and what it refers to, to the generator's; none for what has one of
    /// its own in `openapi`.
    pub schema: Option<fn(&mut SchemaGenerator) -> Schema>,
}

/// What the name of an object must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// RFC 1123 label: at most 63 characters.
    Label,
    /// RFC 1123 subdomain: at most 253 characters.
    Subdomain,
    /// RFC 1035 label: starts with a letter.
    Rfc1035Label,
}

const CORE: Resource = Resource {
    group: "",
    version: "v1",
    kind: "",
    plural: "",
    singular: "",
    short_names: &[],
    categories: &[],
    namespaced: true,
    storage: "",
    names: Names::Subdomain,
    status: false,
    scale: false,
    generation: false,
    strategic_merge: true,
    schema: None,
};

pub static RESOURCES: [Resource; 20] = [
    Resource {
        kind: "ConfigMap",
        plural: "configmaps",
        singular: "configmap",
        short_names: &["cm"],
        storage: "configmaps",
        schema: Some(|generator| generator.subschema_for::<ConfigMap>()),
        ..CORE
    },
    Resource {
        kind: "Event",
        plural: "events",
        singular: "event",
        short_names: &["ev"],
        storage: "events",
        schema: Some(|generator| generator.subschema_for::<Event>()),
        ..CORE
    },
    Resource {
        kind: "Namespace",
        plural: "namespaces",
        singular: "namespace",
        short_names: &["ns"],
        namespaced: false,
        storage: "namespaces",
        names: Names::Label,
        status: true,
        schema: Some(|generator| generator.subschema_for::<Namespace>()),
        ..CORE
    },
    Resource {
        kind: "Node",
        plural: "nodes",
        singular: "node",
        short_names: &["no"],
        namespaced: false,
        storage: "minions",
        status: true,
        schema: Some(|generator| generator.subschema_for::<Node>()),
        ..CORE
    },
    Resource {
        kind: "Pod",
        plural: "pods",
        singular: "pod",
        short_names: &["po"],
        categories: &["all"],
        storage: "pods",
        status: true,
        schema: Some(|generator| generator.subschema_for::<Pod>()),
        ..CORE
    },
    Resource {
        kind: "Secret",
        plural: "secrets",
        singular: "secret",
        storage: "secrets",
        schema: Some(|generator| generator.subschema_for::<Secret>()),
        ..CORE
    },
    Resource {
        kind: "Service",
        plural: "services",
        singular: "service",
        short_names: &["svc"],
        categories: &["all"],
        storage: "services/specs",
        names: Names::Rfc1035Label,
        status: true,
        schema: Some(|generator| generator.subschema_for::<Service>()),
        ..CORE
    },
    Resource {
        kind: "ServiceAccount",
        plural: "serviceaccounts",
        singular: "serviceaccount",
        short_names: &["sa"],
        storage: "serviceaccounts",
        schema: Some(|generator| generator.subschema_for::<ServiceAccount>()),
        ..CORE
    },
    Resource {
        group: "coordination.k8s.io",
        kind: "Lease",
        plural: "leases",
        singular: "lease",
        storage: "leases",
        schema: Some(|generator| generator.subschema_for::<Lease>()),
        ..CORE
    },
    Resource {
        group: "api.clever-cloud.com",
        kind: "NodeGroup",
        plural: "nodegroups",
        singular: "nodegroup",
        short_names: &["ng"],
        namespaced: false,
        storage: "api.clever-cloud.com/nodegroups",
        status: true,
        scale: true,
        generation: true,
        strategic_merge: false,
        ..CORE
    },
    Resource {
        group: "apps",
        kind: "Deployment",
        plural: "deployments",
        singular: "deployment",
        short_names: &["deploy"],
        categories: &["all"],
        storage: "deployments",
        status: true,
        scale: true,
        generation: true,
        schema: Some(|generator| generator.subschema_for::<Deployment>()),
        ..CORE
    },
    Resource {
        group: "apps",
        kind: "ReplicaSet",
        plural: "replicasets",
        singular: "replicaset",
        short_names: &["rs"],
        categories: &["all"],
        storage: "replicasets",
        status: true,
        scale: true,
        generation: true,
        schema: Some(|generator| generator.subschema_for::<ReplicaSet>()),
        ..CORE
    },
    Resource {
        group: "policy",
        kind: "PodDisruptionBudget",
        plural: "poddisruptionbudgets",
        singular: "poddisruptionbudget",
        short_names: &["pdb"],
        storage: "poddisruptionbudgets",
        status: true,
        generation: true,
        schema: Some(|generator| generator.subschema_for::<PodDisruptionBudget>()),
        ..CORE
    },
    Resource {
        group: "storage.k8s.io",
        kind: "StorageClass",
        plural: "storageclasses",
        singular: "storageclass",
        short_names: &["sc"],
        namespaced: false,
        storage: "storageclasses",
        schema: Some(|generator| generator.subschema_for::<StorageClass>()),
        ..CORE
    },
    Resource {
        kind: "PersistentVolume",
        plural: "persistentvolumes",
        singular: "persistentvolume",
        short_names: &["pv"],
        namespaced: false,
        storage: "persistentvolumes",
        status: true,
        schema: Some(|generator| generator.subschema_for::<PersistentVolume>()),
        ..CORE
    },
    Resource {
        kind: "PersistentVolumeClaim",
        plural: "persistentvolumeclaims",
        singular: "persistentvolumeclaim",
        short_names: &["pvc"],
        storage: "persistentvolumeclaims",
        status: true,
        schema: Some(|generator| generator.subschema_for::<PersistentVolumeClaim>()),
        ..CORE
    },
    Resource {
        kind: "Endpoints",
        plural: "endpoints",
        singular: "endpoints",
        short_names: &["ep"],
        storage: "services/endpoints",
        schema: Some(|generator| generator.subschema_for::<Endpoints>()),
        ..CORE
    },
    Resource {
        group: "discovery.k8s.io",
        kind: "EndpointSlice",
        plural: "endpointslices",
        singular: "endpointslice",
        storage: "endpointslices",
        generation: true,
        schema: Some(|generator| generator.subschema_for::<EndpointSlice>()),
        ..CORE
    },
    Resource {
        group: "apps",
        kind: "StatefulSet",
        plural: "statefulsets",
        singular: "statefulset",
        short_names: &["sts"],
        categories: &["all"],
        storage: "statefulsets",
        status: true,
        scale: true,
        generation: true,
        schema: Some(|generator| generator.subschema_for::<StatefulSet>()),
        ..CORE
    },
    Resource {
        group: "apps",
        kind: "DaemonSet",
        plural: "daemonsets",
        singular: "daemonset",
        short_names: &["ds"],
        categories: &["all"],
        storage: "daemonsets",
        status: true,
        generation: true,
        schema: Some(|generator| generator.subschema_for::<DaemonSet>()),
        ..CORE
    },
];

impl Resource {
    pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
        RESOURCES.iter().find(|resource| {
            resource.group == group && resource.version == version && resource.plural == plural
        })
    }

    /// One that the code itself needs.
    pub const fn of_kind(kind: Kind) -> &'static Resource {
        &RESOURCES[kind as usize]
    }

    /// The field of `spec`, and of `status`, that `scale` is about.
    pub fn replicas(&self) -> &'static str {
        if self.kind == "NodeGroup" {
            "nodeCount"
        } else {
            "replicas"
        }
    }

    /// `apiVersion` of its objects.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// As error texts name it: `pods`, `nodegroups.api.clever-cloud.com`.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.plural.to_owned()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    /// Where its objects begin in etcd: all of them, or those of one namespace.
    pub fn prefix(&self, namespace: Option<&str>) -> String {
        match namespace {
            Some(namespace) => format!("/registry/{}/{namespace}/", self.storage),
            None => format!("/registry/{}/", self.storage),
        }
    }

    pub fn key(&self, namespace: Option<&str>, name: &str) -> String {
        format!("{}{name}", self.prefix(namespace))
    }
}

/// Index into [`RESOURCES`] of what the code itself handles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    ConfigMap = 0,
    Event = 1,
    Namespace = 2,
    Node = 3,
    Pod = 4,
    Service = 6,
    ServiceAccount = 7,
    Lease = 8,
    NodeGroup = 9,
    Deployment = 10,
    ReplicaSet = 11,
    PodDisruptionBudget = 12,
    StorageClass = 13,
    PersistentVolume = 14,
    PersistentVolumeClaim = 15,
    Endpoints = 16,
    EndpointSlice = 17,
    StatefulSet = 18,
    DaemonSet = 19,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_stand_where_they_are_looked_for() {
        let check = |kind: Kind, name: &str| assert_eq!(Resource::of_kind(kind).kind, name);
        check(Kind::ConfigMap, "ConfigMap");
        check(Kind::Event, "Event");
        check(Kind::Node, "Node");
        check(Kind::Pod, "Pod");
        check(Kind::NodeGroup, "NodeGroup");
        check(Kind::Lease, "Lease");
        check(Kind::StorageClass, "StorageClass");
        check(Kind::PersistentVolume, "PersistentVolume");
        check(Kind::PersistentVolumeClaim, "PersistentVolumeClaim");
        check(Kind::Endpoints, "Endpoints");
        check(Kind::EndpointSlice, "EndpointSlice");
        check(Kind::StatefulSet, "StatefulSet");
        check(Kind::DaemonSet, "DaemonSet");
        check(Kind::Deployment, "Deployment");
        check(Kind::ReplicaSet, "ReplicaSet");
        check(Kind::PodDisruptionBudget, "PodDisruptionBudget");
        check(Kind::Namespace, "Namespace");
        check(Kind::Service, "Service");
        check(Kind::ServiceAccount, "ServiceAccount");
    }

    #[test]
    fn keys_are_kube_apiservers() {
        let check = |plural: &str, namespace: Option<&str>, expect: &str| {
            let resource = RESOURCES
                .iter()
                .find(|resource| resource.plural == plural)
                .expect(plural);
            assert_eq!(resource.key(namespace, "x"), expect);
        };
        check("pods", Some("default"), "/registry/pods/default/x");
        check("nodes", None, "/registry/minions/x");
        check("services", Some("a"), "/registry/services/specs/a/x");
        check(
            "nodegroups",
            None,
            "/registry/api.clever-cloud.com/nodegroups/x",
        );
    }
}
