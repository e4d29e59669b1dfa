//! The columns of each kind's table, as kube-apiserver names them.

use crate::kubernetes::registry::resource::Resource;

pub(super) struct Column {
    pub name: &'static str,
    pub kind: &'static str,
    /// Shown only with `-o wide`.
    pub wide: bool,
}

const fn column(name: &'static str) -> Column {
    Column {
        name,
        kind: "string",
        wide: false,
    }
}

const fn integer(name: &'static str) -> Column {
    Column {
        name,
        kind: "integer",
        wide: false,
    }
}

const fn wide(name: &'static str) -> Column {
    Column {
        name,
        kind: "string",
        wide: true,
    }
}

pub(super) fn columns(resource: &Resource) -> &'static [Column] {
    const NODES: &[Column] = &[
        column("Name"),
        column("Status"),
        column("Roles"),
        column("Age"),
        column("Version"),
        wide("Internal-IP"),
        wide("External-IP"),
        wide("OS-Image"),
        wide("Kernel-Version"),
        wide("Container-Runtime"),
    ];
    const PODS: &[Column] = &[
        column("Name"),
        column("Ready"),
        column("Status"),
        column("Restarts"),
        column("Age"),
        wide("IP"),
        wide("Node"),
        wide("Nominated Node"),
        wide("Readiness Gates"),
    ];
    const SERVICES: &[Column] = &[
        column("Name"),
        column("Type"),
        column("Cluster-IP"),
        column("External-IP"),
        column("Port(s)"),
        column("Age"),
        wide("Selector"),
    ];
    const SECRETS: &[Column] = &[
        column("Name"),
        column("Type"),
        integer("Data"),
        column("Age"),
    ];
    const CONFIG_MAPS: &[Column] = &[column("Name"), integer("Data"), column("Age")];
    const NAMESPACES: &[Column] = &[column("Name"), column("Status"), column("Age")];
    const EVENTS: &[Column] = &[
        column("Last Seen"),
        column("Type"),
        column("Reason"),
        column("Object"),
        column("Message"),
    ];
    const LEASES: &[Column] = &[column("Name"), column("Holder"), column("Age")];
    const NODE_GROUPS: &[Column] = &[
        column("Name"),
        integer("DesiredNodeCount"),
        integer("CurrentNodeCount"),
        column("Flavor"),
        column("Status"),
        column("Age"),
    ];
    const DEPLOYMENTS: &[Column] = &[
        column("Name"),
        column("Ready"),
        integer("Up-to-date"),
        integer("Available"),
        column("Age"),
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ];
    const REPLICA_SETS: &[Column] = &[
        column("Name"),
        integer("Desired"),
        integer("Current"),
        integer("Ready"),
        column("Age"),
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ];
    const BUDGETS: &[Column] = &[
        column("Name"),
        column("Min Available"),
        column("Max Unavailable"),
        integer("Allowed Disruptions"),
        column("Age"),
    ];
    const STORAGE_CLASSES: &[Column] = &[
        column("Name"),
        column("Provisioner"),
        column("ReclaimPolicy"),
        column("VolumeBindingMode"),
        column("AllowVolumeExpansion"),
        column("Age"),
    ];
    const VOLUMES: &[Column] = &[
        column("Name"),
        column("Capacity"),
        column("Access Modes"),
        column("Reclaim Policy"),
        column("Status"),
        column("Claim"),
        column("StorageClass"),
        column("VolumeAttributesClass"),
        column("Reason"),
        column("Age"),
        wide("VolumeMode"),
    ];
    const CLAIMS: &[Column] = &[
        column("Name"),
        column("Status"),
        column("Volume"),
        column("Capacity"),
        column("Access Modes"),
        column("StorageClass"),
        column("VolumeAttributesClass"),
        column("Age"),
        wide("VolumeMode"),
    ];
    const ENDPOINTS: &[Column] = &[column("Name"), column("Endpoints"), column("Age")];
    const SLICES: &[Column] = &[
        column("Name"),
        column("AddressType"),
        column("Ports"),
        column("Endpoints"),
        column("Age"),
    ];
    const STATEFUL_SETS: &[Column] = &[
        column("Name"),
        column("Ready"),
        column("Age"),
        wide("Containers"),
        wide("Images"),
    ];
    const DAEMON_SETS: &[Column] = &[
        column("Name"),
        integer("Desired"),
        integer("Current"),
        integer("Ready"),
        integer("Up-to-date"),
        integer("Available"),
        column("Node Selector"),
        column("Age"),
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ];
    const OTHERS: &[Column] = &[column("Name"), column("Age")];
    match resource.kind {
        "Node" => NODES,
        "Pod" => PODS,
        "Service" => SERVICES,
        "Secret" => SECRETS,
        "ConfigMap" => CONFIG_MAPS,
        "Namespace" => NAMESPACES,
        "Event" => EVENTS,
        "Lease" => LEASES,
        "NodeGroup" => NODE_GROUPS,
        "Deployment" => DEPLOYMENTS,
        "ReplicaSet" => REPLICA_SETS,
        "PodDisruptionBudget" => BUDGETS,
        "StorageClass" => STORAGE_CLASSES,
        "PersistentVolume" => VOLUMES,
        "PersistentVolumeClaim" => CLAIMS,
        "Endpoints" => ENDPOINTS,
        "EndpointSlice" => SLICES,
        "StatefulSet" => STATEFUL_SETS,
        "DaemonSet" => DAEMON_SETS,
        _ => OTHERS,
    }
}
