//! The certificate that the clusters' APIs serve with: it can be let expire, and made anew.

use axum::extract::State;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::clever::Clever;
use crate::clever::error::ApiError;
use crate::clever::simulation::openapi::{Api, Operation};
use crate::clever::transport::{Json, JsonBody};

pub fn operations(api: Api) -> Api {
    api.add(
        Operation::get(
            "/_sim/certificates",
            "Whether the certificate of the clusters' APIs has expired",
        )
        .answers::<Certificates>(),
        get_certificates,
    )
    .add(
        Operation::put(
            "/_sim/certificates",
            "Let the certificate of the clusters' APIs expire for new connections, or make it anew. The next \
             rotation of a cluster's certificates makes it anew as well",
        )
        .takes::<Certificates>()
        .answers::<Certificates>(),
        put_certificates,
    )
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Certificates {
    expired: bool,
}

fn view(clever: &Clever) -> Json<Certificates> {
    Json(Certificates {
        expired: clever.platform.certificates_are_expired(),
    })
}

async fn get_certificates(State(clever): State<Clever>) -> Json<Certificates> {
    view(&clever)
}

async fn put_certificates(
    State(clever): State<Clever>,
    JsonBody(wanted): JsonBody<Certificates>,
) -> Result<Json<Certificates>, ApiError> {
    clever.platform.expire_certificates(wanted.expired)?;
    Ok(view(&clever))
}
