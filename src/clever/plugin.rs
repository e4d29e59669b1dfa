//! `GET /v4/kubernetes/plugins/catalog`, public: what is installed in every cluster, by version of
//! Kubernetes.

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use serde::Serialize;

use crate::clever::Clever;
use crate::clever::transport::Json;
use crate::platform::plugin::{self, Plugin};

pub fn routes() -> Router<Clever> {
    Router::new().route("/v4/kubernetes/plugins/catalog", get(get_catalog))
}

#[derive(Debug, Serialize)]
struct Catalog {
    bases: Vec<Base>,
    /// A plugin's version is the same under every version of Kubernetes: nothing has to be migrated.
    migrations: [(); 0],
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Base {
    install_order: usize,
    #[serde(rename = "k8sVersion")]
    kubernetes_version: String,
    plugin: Plugin,
    plugin_version: &'static str,
}

async fn get_catalog(State(clever): State<Clever>) -> Json<Catalog> {
    let catalog = clever.platform.catalog();
    let bases = plugin::bases(&catalog).into_iter().map(|base| Base {
        install_order: base.install_order,
        kubernetes_version: base.kubernetes_version,
        plugin: base.plugin,
        plugin_version: base.plugin.version(),
    });
    Json(Catalog {
        bases: bases.collect(),
        migrations: [],
    })
}
