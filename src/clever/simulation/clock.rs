//! The clock: read it, advance it by hand, let it run, slow it down, stop it.

use std::time::Duration;

use axum::extract::State;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::clever::Clever;
use crate::clever::error::ApiError;
use crate::clever::simulation::openapi::{Api, Operation};
use crate::clever::transport::{Json, JsonBody};
use crate::clock::TimeScale;

/// Ten years at once, in seconds: enough for any test, and far from the end of the time line.
const ADVANCE_LIMIT_SECONDS: f64 = 10.0 * 366.0 * 86_400.0;
/// How far an advance to the next event looks, unless it says otherwise.
const DEFAULT_LIMIT_SECONDS: f64 = 86_400.0;

pub fn operations(api: Api) -> Api {
    api.add(
        Operation::get("/_sim/clock", "What the clock reads, and how it runs")
            .answers::<ClockView>(),
        get_clock,
    )
    .add(
        Operation::put(
            "/_sim/clock",
            "Change how the clock runs, from its present reading on",
        )
        .takes::<ClockChange>()
        .answers::<ClockView>(),
        put_clock,
    )
    .add(
        Operation::post(
            "/_sim/clock/pause",
            "Stop the clock, and wait for the work of the present instant. It can then be advanced by hand",
        )
        .answers::<ClockView>(),
        pause,
    )
    .add(
        Operation::post("/_sim/clock/resume", "Let a stopped clock run as it did before")
            .answers::<ClockView>(),
        resume,
    )
    .add(
        Operation::post(
            "/_sim/clock/advance",
            "Advance a clock that stands still. Answers once everything that was due on the way has happened",
        )
        .takes::<Advance>()
        .answers::<ClockView>(),
        advance,
    )
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClockView {
    /// RFC 3339.
    pub now: String,
    /// Simulated seconds per real second, or `manual`: the clock stands still until it is advanced.
    pub scale: String,
    /// How the clock runs again after a resume; absent unless it was stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resumes_at: Option<String>,
    /// Seed of everything random in the simulation.
    pub seed: u64,
}

impl ClockView {
    fn of(clever: &Clever) -> ClockView {
        let scale = clever.clock.scale();
        let stopped = clever
            .clock
            .last_factor()
            .filter(|_| scale == TimeScale::Manual);
        ClockView {
            now: clever.clock.now().to_rfc3339(),
            scale: scale.to_string(),
            resumes_at: stopped.map(|factor| TimeScale::Factor(factor).to_string()),
            seed: clever.simulation.inner.seed,
        }
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ClockChange {
    scale: Scale,
}

/// `manual`, or simulated seconds per real second: 0.001 to 100000, as a number or as text.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Scale {
    Factor(f64),
    Text(String),
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Advance {
    /// At least 0; may have decimals. Or else `toNextEvent`.
    seconds: Option<f64>,
    /// Advance until something is recorded in the event stream.
    #[serde(default)]
    to_next_event: bool,
    /// How far to look for an event; a day unless given. If nothing happens, the clock then reads this
    /// much later.
    limit_seconds: Option<f64>,
}

async fn get_clock(State(clever): State<Clever>) -> Json<ClockView> {
    Json(ClockView::of(&clever))
}

async fn put_clock(
    State(clever): State<Clever>,
    JsonBody(ClockChange { scale }): JsonBody<ClockChange>,
) -> Result<Json<ClockView>, ApiError> {
    let text = match scale {
        Scale::Factor(factor) => factor.to_string(),
        Scale::Text(text) => text,
    };
    let scale = text
        .parse()
        .map_err(|reason: String| ApiError::invalid_field("scale", &text, reason))?;
    change(&clever, scale).await
}

async fn pause(State(clever): State<Clever>) -> Result<Json<ClockView>, ApiError> {
    change(&clever, TimeScale::Manual).await
}

async fn resume(State(clever): State<Clever>) -> Result<Json<ClockView>, ApiError> {
    let scale = clever.clock.scale();
    if scale != TimeScale::Manual {
        return Ok(Json(ClockView::of(&clever)));
    }
    let Some(factor) = clever.clock.last_factor() else {
        return Err(ApiError::conflict(
            "The clock never ran by itself: choose a scale with PUT /_sim/clock",
        ));
    };
    change(&clever, TimeScale::Factor(factor)).await
}

async fn change(clever: &Clever, scale: TimeScale) -> Result<Json<ClockView>, ApiError> {
    if clever.simulation.inner.shared_store {
        return Err(ApiError::conflict(
            "The servers that share a store have one time line: start them all with another --time-scale",
        ));
    }
    clever.clock.set_scale(scale).await;
    if scale == TimeScale::Manual {
        clever.simulation.inner.history.settle().await;
    }
    clever.platform.save_reading().await?;
    Ok(Json(ClockView::of(clever)))
}

async fn advance(
    State(clever): State<Clever>,
    JsonBody(advance): JsonBody<Advance>,
) -> Result<Json<ClockView>, ApiError> {
    let history = &clever.simulation.inner.history;
    let advanced = match advance {
        Advance {
            seconds: Some(seconds),
            to_next_event: false,
            limit_seconds: None,
        } => {
            let seconds = in_bounds("seconds", seconds)?;
            clever.clock.advance(seconds).await
        }
        Advance {
            seconds: None,
            to_next_event: true,
            limit_seconds,
        } => {
            let limit = limit_seconds.unwrap_or(DEFAULT_LIMIT_SECONDS);
            let limit = in_bounds("limitSeconds", limit)?;
            history.settle().await;
            let before = history.count();
            let nothing_happened = || history.count() == before;
            clever.clock.advance_while(limit, nothing_happened).await
        }
        _ => {
            return Err(ApiError::bad_request(
                "Either `seconds`, or `toNextEvent` with or without `limitSeconds`",
            ));
        }
    };
    if !advanced {
        return Err(ApiError::conflict(
            "The clock runs by itself; pause it, or start with --time-scale manual, to advance it by hand",
        ));
    }
    history.settle().await;
    clever.platform.save_reading().await?;
    Ok(Json(ClockView::of(&clever)))
}

fn in_bounds(field: &'static str, seconds: f64) -> Result<Duration, ApiError> {
    if !(0.0..=ADVANCE_LIMIT_SECONDS).contains(&seconds) {
        return Err(ApiError::invalid_field(
            field,
            seconds.to_string(),
            format!("The clock can be advanced by 0 to {ADVANCE_LIMIT_SECONDS} seconds"),
        ));
    }
    Ok(Duration::from_secs_f64(seconds))
}
