//! What the vendor installs in every cluster: the plugin catalog (contract cke-models 1.6 and 8.4).
//!
//! Nothing of them runs here: they are told of, as what a cluster consists of. Their versions are this
//! program's own choice, as no public source names them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::catalog::Catalog;
use super::model::{InvalidId, wire_enum};

wire_enum! {
    /// In the order of their installation.
    Plugin {
        Cilium = "CILIUM",
        CoreDns = "CORE_DNS",
        CsrApprover = "CSR_APPROVER",
        MetricsServer = "METRICS_SERVER",
        Konnectivity = "KONNECTIVITY",
        OtelCollector = "OTEL_COLLECTOR",
        KubeStateMetrics = "KUBE_STATE_METRICS",
        /// With persistent storage.
        CephCsi = "CEPH_CSI",
    }
}

impl Plugin {
    /// The same for every version of Kubernetes.
    pub fn version(self) -> &'static str {
        match self {
            Plugin::Cilium => "1.18.4",
            Plugin::CoreDns => "1.13.1",
            Plugin::CsrApprover => "1.2.11",
            Plugin::MetricsServer => "0.8.0",
            Plugin::Konnectivity => "0.34.0",
            Plugin::OtelCollector => "0.140.0",
            Plugin::KubeStateMetrics => "2.17.0",
            Plugin::CephCsi => "3.15.1",
        }
    }
}

/// What a cluster has: the base plugins from their step on, the storage driver with the feature.
pub fn installed(base: bool, storage: bool) -> impl Iterator<Item = Plugin> {
    let is_installed = move |plugin: &Plugin| match plugin {
        Plugin::CephCsi => storage,
        _ => base,
    };
    Plugin::ALL.iter().copied().filter(is_installed)
}

/// A line of the catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginBase {
    /// Counts from 1.
    pub install_order: usize,
    pub kubernetes_version: String,
    pub plugin: Plugin,
}

/// Every plugin of every version that can be ordered.
pub fn bases(catalog: &Catalog) -> Vec<PluginBase> {
    let of_version = |kubernetes_version: String| {
        let plugins = Plugin::ALL.iter().copied().enumerate();
        plugins.map(move |(index, plugin)| PluginBase {
            install_order: index + 1,
            kubernetes_version: kubernetes_version.clone(),
            plugin,
        })
    };
    let versions = catalog.versions().into_iter();
    versions.flat_map(of_version).collect()
}
