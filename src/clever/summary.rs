//! `GET /v2/summary`: what the user can see at a glance; the CLI resolves an organisation's name by it.

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use serde::Serialize;

use crate::clever::Clever;
use crate::clever::account::Role;
use crate::clever::authentication::Session;
use crate::clever::transport::Json;
use crate::platform::model::OwnerId;

pub fn routes() -> Router<Clever> {
    Router::new().route("/v2/summary", get(get_summary))
}

#[derive(Debug, Serialize)]
pub struct Summary {
    pub user: UserSummary,
    pub organisations: Vec<OrganisationSummary>,
}

/// A product that this server does not offer. There are none, but clients iterate over the lists
/// without looking whether they are there.
#[derive(Debug, Serialize)]
pub enum Unoffered {}

#[derive(Debug, Default, Serialize)]
pub struct Products {
    pub applications: Vec<Unoffered>,
    /// Clusters are not add-ons here: clients list them by the Kubernetes API.
    pub addons: Vec<Unoffered>,
    pub consumers: Vec<Unoffered>,
    pub providers: Vec<Unoffered>,
}

#[derive(Debug, Serialize)]
pub struct UserSummary {
    pub id: OwnerId,
    pub name: String,
    #[serde(flatten)]
    pub products: Products,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OrganisationSummary {
    pub id: OwnerId,
    pub name: String,
    pub avatar: Option<String>,
    pub role: Role,
    pub vat_state: &'static str,
    pub can_pay: bool,
    #[serde(rename = "canSEPA")]
    pub can_sepa: bool,
    pub clever_enterprise: bool,
    pub emergency_number: Option<String>,
    pub is_trusted: bool,
    #[serde(flatten)]
    pub products: Products,
}

async fn get_summary(State(clever): State<Clever>, session: Session) -> Json<Summary> {
    let organisations = clever
        .accounts
        .organisations_of(&session.user)
        .map(|(organisation, role)| OrganisationSummary {
            id: organisation.id.clone(),
            name: organisation.name.clone(),
            avatar: None,
            role,
            vat_state: "NOT_NEEDED",
            can_pay: true,
            can_sepa: false,
            clever_enterprise: false,
            emergency_number: None,
            is_trusted: true,
            products: Products::default(),
        })
        .collect();
    Json(Summary {
        user: UserSummary {
            id: session.user.id,
            name: session.user.name,
            products: Products::default(),
        },
        organisations,
    })
}
