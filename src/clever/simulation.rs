//! `/_sim`: control over the simulation. Without authentication: whoever reaches the port owns it.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};

use crate::clever::Clever;
use crate::clever::error::ApiError;
use crate::clever::transport::{Json, JsonBody};
use crate::platform::invariant::Violation;

/// Ten years at once, in seconds: enough for any test, and far from the end of the time line.
const ADVANCE_LIMIT_SECONDS: f64 = 10.0 * 366.0 * 86_400.0;

pub fn routes() -> Router<Clever> {
    Router::new()
        .route("/_sim/clock", get(get_clock))
        .route("/_sim/clock/advance", post(advance))
        .route("/_sim/invariants", get(get_invariants))
}

#[derive(Debug, Serialize)]
pub struct ClockView {
    /// RFC 3339.
    pub now: String,
    /// Simulated seconds per real second, or `manual`.
    pub scale: String,
}

impl ClockView {
    fn of(clever: &Clever) -> ClockView {
        ClockView {
            now: clever.clock.now().to_rfc3339(),
            scale: clever.clock.scale().to_string(),
        }
    }
}

async fn get_clock(State(clever): State<Clever>) -> Json<ClockView> {
    Json(ClockView::of(&clever))
}

#[derive(Debug, Deserialize)]
struct Advance {
    /// At least 0; may have decimals.
    seconds: f64,
}

/// Answers once everything that was due on the way has happened.
async fn advance(
    State(clever): State<Clever>,
    JsonBody(Advance { seconds }): JsonBody<Advance>,
) -> Result<Json<ClockView>, ApiError> {
    if !(0.0..=ADVANCE_LIMIT_SECONDS).contains(&seconds) {
        return Err(ApiError::invalid_field(
            "seconds",
            seconds.to_string(),
            format!("The clock can be advanced by 0 to {ADVANCE_LIMIT_SECONDS} seconds"),
        ));
    }
    if !clever.clock.advance(Duration::from_secs_f64(seconds)).await {
        return Err(ApiError::conflict(
            "The clock runs by itself; start with --time-scale manual to advance it by hand",
        ));
    }
    clever.platform.save_reading().await?;
    Ok(Json(ClockView::of(&clever)))
}

/// What is wrong with the platform's state: nothing, at rest.
async fn get_invariants(State(clever): State<Clever>) -> Result<Json<Vec<Violation>>, ApiError> {
    Ok(Json(clever.platform.check_invariants().await?))
}
