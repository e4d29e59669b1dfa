//! What an owner may hold, and what it holds now.

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use schemars::JsonSchema;
use serde::Serialize;

use crate::clever::Clever;
use crate::clever::authentication::Owner;
use crate::clever::error::ApiError;
use crate::clever::transport::Json;
use crate::platform::model::{ClusterId, OwnerId, Quota, UsageItem, UsageItemType};

pub fn routes() -> Router<Clever> {
    Router::new()
        .route("/v4/kubernetes/organisations/{owner}/quota", get(get_quota))
        .route("/v4/kubernetes/organisations/{owner}/usage", get(get_usage))
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct QuotaBody {
    pub id: String,
    #[schemars(with = "String")]
    pub tenant_id: OwnerId,
    pub tags: Vec<String>,
    pub quotas: Vec<QuotaItem>,
}

#[derive(Debug, PartialEq, Serialize, JsonSchema)]
#[serde(tag = "type")]
pub enum QuotaItem {
    MillivCPUMaxLimit { maximum: u64 },
    RamMaxUsage { information: Information },
    MaxIp { maximum: u32 },
}

/// An amount with a unit. The CLI reads units as powers of 1024.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub struct Information {
    pub name: &'static str,
    pub number: u64,
    pub unit: &'static str,
    pub readable: String,
}

impl From<Quota> for QuotaBody {
    fn from(quota: Quota) -> Self {
        QuotaBody {
            id: quota.id,
            tenant_id: quota.owner,
            tags: Vec::new(),
            quotas: vec![
                QuotaItem::MillivCPUMaxLimit {
                    maximum: quota.vcpu_millis_max,
                },
                QuotaItem::RamMaxUsage {
                    information: Information {
                        name: "RAM max",
                        number: quota.ram_gb_max,
                        unit: "GB",
                        readable: format!("{}.0 GB", quota.ram_gb_max),
                    },
                },
                QuotaItem::MaxIp {
                    maximum: quota.ip_max,
                },
            ],
        }
    }
}

async fn get_quota(
    State(clever): State<Clever>,
    owner: Owner,
) -> Result<Json<QuotaBody>, ApiError> {
    Ok(Json(clever.platform.quota(&owner.id).await?.into()))
}

/// One thing that counts against the quota. The CLI sums every item that it is given, so only what
/// runs now may be among them.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UsageBody {
    pub id: String,
    pub cluster_id: ClusterId,
    pub owner_id: OwnerId,
    pub item_type: UsageItemType,
    pub cpu_millicores: u64,
    pub ram_bytes: u64,
    pub created_at: Option<String>,
    pub deactivated_at: Option<String>,
}

impl From<UsageItem> for UsageBody {
    fn from(item: UsageItem) -> Self {
        UsageBody {
            id: item.id,
            cluster_id: item.cluster_id,
            owner_id: item.owner,
            item_type: item.item_type,
            cpu_millicores: item.cpu_millicores,
            ram_bytes: item.ram_bytes,
            created_at: Some(item.created_at.to_rfc3339()),
            deactivated_at: item.deactivated_at.map(|at| at.to_rfc3339()),
        }
    }
}

async fn get_usage(
    State(clever): State<Clever>,
    owner: Owner,
) -> Result<Json<Vec<UsageBody>>, ApiError> {
    let items = clever.platform.usage(&owner.id).await?;
    let live = items
        .into_iter()
        .filter(|item| item.deactivated_at.is_none());
    Ok(Json(live.map(UsageBody::from).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_quota_is_spelled_as_the_cli_reads_it() {
        let owner: OwnerId = crate::clever::account::SEED_ORGANISATION_ID
            .parse()
            .unwrap();
        let body = QuotaBody::from(Quota {
            id: "quota_1".into(),
            owner: owner.clone(),
            vcpu_millis_max: 40_000,
            ram_gb_max: 40,
            ip_max: 2,
        });
        assert_eq!(
            serde_json::to_value(body).unwrap(),
            json!({"id": "quota_1", "tenantId": owner, "tags": [], "quotas": [
                {"type": "MillivCPUMaxLimit", "maximum": 40000},
                {"type": "RamMaxUsage", "information":
                    {"name": "RAM max", "number": 40, "unit": "GB", "readable": "40.0 GB"}},
                {"type": "MaxIp", "maximum": 2}]})
        );
    }
}
