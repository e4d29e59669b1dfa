//! Faults of the REST API itself: the next answers of a route fail, or come late, or both.
//!
//! A fault is found by method and path, before the request is looked at in any other way: a refused
//! request changes nothing. `/_sim` itself never fails.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use parking_lot::Mutex;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::clever::Clever;
use crate::clever::error::ApiError;
use crate::clever::simulation::openapi::{Api, Operation};
use crate::clever::transport::{Json, JsonBody};

/// Faults at once.
const FAULTS_LIMIT: usize = 256;
const SIMULATED_LATENCY_LIMIT_SECONDS: f64 = 86_400.0;
/// Clients give up before that, and a connection is held meanwhile.
const REAL_LATENCY_LIMIT_SECONDS: f64 = 120.0;

pub fn operations(api: Api) -> Api {
    api.add(
        Operation::get(
            "/_sim/faults/api",
            "The faults of the REST API that are set",
        )
        .answers::<Vec<ApiFaultView>>(),
        list,
    )
    .add(
        Operation::post(
            "/_sim/faults/api",
            "Let answers of the REST API fail, or come late",
        )
        .takes::<ApiFault>()
        .answers::<ApiFaultView>(),
        create,
    )
    .add(
        Operation::delete("/_sim/faults/api", "Clear every fault of the REST API")
            .answers::<Vec<ApiFaultView>>(),
        clear,
    )
    .add(
        Operation::delete("/_sim/faults/api/{fault}", "Clear a fault of the REST API")
            .answers::<ApiFaultView>(),
        remove,
    )
}

/// What is to go wrong, and with which requests.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ApiFault {
    /// Such as `POST`; any, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Such as `/v4/kubernetes/organisations/*/clusters`: `*` is one segment, `**` at the end any number.
    pub path: String,
    /// How many requests it meets before it is over; no end, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<u64>,
    /// So many of a thousand requests are met, drawn from the seed; all, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_mille: Option<u32>,
    /// The answer, 400 to 599; the request is let through, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The error's code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// The error's text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// How long the request is held up before anything else happens to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_seconds: Option<f64>,
    /// By which clock the latency is measured.
    #[serde(default)]
    pub latency_clock: LatencyClock,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum LatencyClock {
    /// While it stands still, the request waits until it is advanced.
    #[default]
    Simulated,
    Real,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApiFaultView {
    pub id: String,
    #[serde(flatten)]
    pub fault: ApiFault,
    /// How many requests it has met.
    pub met: u64,
}

/// What happens to one request.
#[derive(Debug, Default)]
struct Verdict {
    simulated: Duration,
    real: Duration,
    error: Option<ApiError>,
}

struct Rule {
    fault: ApiFault,
    met: u64,
    random: ChaCha8Rng,
}

#[derive(Default)]
struct Rules {
    last: u64,
    rules: BTreeMap<u64, Rule>,
}

/// The faults that are set. Cheap to clone.
#[derive(Clone)]
pub struct Injections {
    seed: u64,
    rules: Arc<Mutex<Rules>>,
}

impl Injections {
    pub fn new(seed: u64) -> Injections {
        Injections {
            seed,
            rules: Arc::default(),
        }
    }

    fn add(&self, fault: ApiFault) -> Result<ApiFaultView, ApiError> {
        check(&fault)?;
        let mut rules = self.rules.lock();
        if rules.rules.len() >= FAULTS_LIMIT {
            return Err(ApiError::conflict(format!(
                "{FAULTS_LIMIT} faults of the API are set already"
            )));
        }
        rules.last += 1;
        let number = rules.last;
        let rule = Rule {
            fault,
            met: 0,
            random: draws(self.seed, number),
        };
        let view = view(number, &rule);
        rules.rules.insert(number, rule);
        Ok(view)
    }

    pub fn list(&self) -> Vec<ApiFaultView> {
        let rules = self.rules.lock();
        rules
            .rules
            .iter()
            .map(|(id, rule)| view(*id, rule))
            .collect()
    }

    pub fn clear(&self) {
        self.rules.lock().rules.clear();
    }

    /// All that is set, and how far each is, for a snapshot.
    pub fn to_json(&self) -> serde_json::Value {
        let rules = self.rules.lock();
        let kept = rules.rules.iter().map(|(number, rule)| Kept {
            number: *number,
            fault: rule.fault.clone(),
            met: rule.met,
            // JSON has no numbers of 128 bits.
            drawn: rule.random.get_word_pos().to_string(),
        });
        // Plain structs of text and numbers can always be written.
        serde_json::to_value(kept.collect::<Vec<_>>()).unwrap_or_default()
    }

    /// As [`Injections::new`], with what a snapshot kept. What cannot be read is not set.
    pub fn restored(seed: u64, kept: &serde_json::Value) -> Injections {
        let injections = Injections::new(seed);
        let kept: Vec<Kept> = serde_json::from_value(kept.clone()).unwrap_or_default();
        let mut rules = injections.rules.lock();
        for kept in kept.into_iter().filter(|kept| check(&kept.fault).is_ok()) {
            let mut random = draws(seed, kept.number);
            random.set_word_pos(kept.drawn.parse().unwrap_or(0));
            rules.last = rules.last.max(kept.number);
            let rule = Rule {
                fault: kept.fault,
                met: kept.met,
                random,
            };
            rules.rules.insert(kept.number, rule);
        }
        drop(rules);
        injections
    }

    fn remove(&self, id: &str) -> Option<ApiFaultView> {
        let number = id.strip_prefix("fault_")?.parse().ok()?;
        let rule = self.rules.lock().rules.remove(&number)?;
        Some(view(number, &rule))
    }

    /// The first fault with a status decides on the answer; latencies add up.
    fn judge(&self, method: &Method, path: &str) -> Verdict {
        let mut verdict = Verdict::default();
        if path.starts_with("/_sim/") {
            return verdict;
        }
        let mut rules = self.rules.lock();
        for rule in rules.rules.values_mut() {
            let fault = &rule.fault;
            let is_meant = fault.method.as_deref().is_none_or(|meant| meant == method)
                && matches_path(&fault.path, path)
                && !(fault.status.is_some() && verdict.error.is_some());
            if !is_meant {
                continue;
            }
            if let Some(rate) = fault.per_mille
                && rule.random.random_range(0..1000) >= rate
            {
                continue;
            }
            rule.met += 1;
            let latency = Duration::from_secs_f64(fault.latency_seconds.unwrap_or(0.0));
            match fault.latency_clock {
                LatencyClock::Simulated => verdict.simulated += latency,
                LatencyClock::Real => verdict.real += latency,
            }
            verdict.error = verdict.error.or_else(|| error(&rule.fault));
        }
        rules
            .rules
            .retain(|_, rule| rule.fault.times.is_none_or(|times| rule.met < times));
        verdict
    }
}

/// A fault as a snapshot keeps it.
#[derive(Serialize, Deserialize)]
struct Kept {
    number: u64,
    fault: ApiFault,
    met: u64,
    drawn: String,
}

/// Which requests the fault with this number meets.
fn draws(seed: u64, number: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed ^ number.rotate_left(32))
}

fn view(number: u64, rule: &Rule) -> ApiFaultView {
    ApiFaultView {
        id: format!("fault_{number}"),
        fault: rule.fault.clone(),
        met: rule.met,
    }
}

fn error(fault: &ApiFault) -> Option<ApiError> {
    let status = StatusCode::from_u16(fault.status?).ok()?;
    let code = fault.code.clone().unwrap_or_else(|| {
        let reason = status.canonical_reason().unwrap_or("injected");
        format!(
            "clever.core.{}",
            reason.to_ascii_lowercase().replace(' ', "-")
        )
    });
    let message = fault.message.clone();
    let message = message.unwrap_or_else(|| String::from("A fault was set for this route"));
    Some(ApiError::new(status, code, message))
}

fn check(fault: &ApiFault) -> Result<(), ApiError> {
    let refuse = |field: &str, value: String, reason: &str| {
        Err(ApiError::invalid_field(field, value, reason))
    };
    if !fault.path.starts_with('/') || fault.path.starts_with("/_sim") {
        return refuse(
            "path",
            fault.path.clone(),
            "A path starts with `/`, and is none of the control API's",
        );
    }
    if let Some(method) = &fault.method
        && (method.is_empty() || !method.bytes().all(|byte| byte.is_ascii_uppercase()))
    {
        return refuse("method", method.clone(), "A method is such as GET or POST");
    }
    if fault.times == Some(0) {
        return refuse("times", String::from("0"), "At least 1");
    }
    if let Some(rate) = fault.per_mille.filter(|rate| !(1..=1000).contains(rate)) {
        return refuse("perMille", rate.to_string(), "1 to 1000");
    }
    if let Some(status) = fault.status.filter(|status| !(400..600).contains(status)) {
        return refuse("status", status.to_string(), "400 to 599");
    }
    let limit = match fault.latency_clock {
        LatencyClock::Simulated => SIMULATED_LATENCY_LIMIT_SECONDS,
        LatencyClock::Real => REAL_LATENCY_LIMIT_SECONDS,
    };
    let latency = fault.latency_seconds;
    if let Some(latency) = latency.filter(|latency| !(0.0..=limit).contains(latency)) {
        let reason = format!("0 to {limit}");
        return refuse("latencySeconds", latency.to_string(), &reason);
    }
    if fault.status.is_none() && fault.latency_seconds.is_none() {
        return Err(ApiError::bad_request(
            "A fault has a `status`, `latencySeconds`, or both",
        ));
    }
    Ok(())
}

fn matches_path(pattern: &str, path: &str) -> bool {
    let (mut pattern, mut path) = (pattern.split('/'), path.split('/'));
    loop {
        match (pattern.next(), path.next()) {
            (Some("**"), _) | (None, None) => return true,
            (Some("*"), Some(segment)) if !segment.is_empty() => {}
            (Some(wanted), Some(segment)) if wanted == segment => {}
            _ => return false,
        }
    }
}

/// Holds up and refuses requests as the faults say. What changes something is work at the present
/// instant: a clock that stands still waits for it, but not for what is held up.
///
/// Under a manual clock a change is answered when all that follows from it at this instant is done: so requests one
/// after the other make one history, however quick their client is.
pub async fn inject(State(clever): State<Clever>, request: Request, next: Next) -> Response {
    let injections = &clever.simulation.inner.injections;
    let verdict = injections.judge(request.method(), request.uri().path());
    if !verdict.real.is_zero() {
        tokio::time::sleep(verdict.real).await;
    }
    if !verdict.simulated.is_zero() {
        drop(clever.clock.sleep(verdict.simulated).await);
    }
    if let Some(error) = verdict.error {
        return error.into_response();
    }
    let path = request.uri().path();
    // Those wait themselves until nothing is under way.
    let waits = ["/_sim/clock", "/_sim/world"];
    let waits = waits.iter().any(|prefix| path.starts_with(prefix));
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let activity = (!waits && !reads).then(|| clever.clock.activity());
    let response = next.run(request).await;
    if let Some(activity) = activity {
        clever.clock.conclude(activity).await;
    }
    response
}

async fn list(State(clever): State<Clever>) -> Json<Vec<ApiFaultView>> {
    Json(clever.simulation.inner.injections.list())
}

async fn create(
    State(clever): State<Clever>,
    JsonBody(fault): JsonBody<ApiFault>,
) -> Result<Json<ApiFaultView>, ApiError> {
    clever.simulation.inner.injections.add(fault).map(Json)
}

async fn clear(State(clever): State<Clever>) -> Json<Vec<ApiFaultView>> {
    clever.simulation.inner.injections.clear();
    Json(clever.simulation.inner.injections.list())
}

async fn remove(
    State(clever): State<Clever>,
    Path(fault): Path<String>,
) -> Result<Json<ApiFaultView>, ApiError> {
    let removed = clever.simulation.inner.injections.remove(&fault);
    removed
        .map(Json)
        .ok_or_else(|| ApiError::resource_not_found("Fault", &fault))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fault(value: serde_json::Value) -> ApiFault {
        serde_json::from_value(value).expect("a fault")
    }

    /// The statuses of `count` requests; 0 for one that is let through.
    fn statuses(injections: &Injections, method: Method, path: &str, count: usize) -> Vec<u16> {
        (0..count)
            .map(|_| injections.judge(&method, path).error)
            .map(|error| error.map_or(0, |error| error.status.as_u16()))
            .collect()
    }

    #[test]
    fn patterns_match_by_segment() {
        let check = |pattern: &str, path: &str, expect: bool| {
            assert_eq!(matches_path(pattern, path), expect, "{pattern} {path}");
        };
        check("/v4/a", "/v4/a", true);
        check("/v4/a", "/v4/a/b", false);
        check("/v4/*/b", "/v4/a/b", true);
        check("/v4/*/b", "/v4/a/c", false);
        check("/v4/*/b", "/v4//b", false);
        check("/v4/*", "/v4/a/b", false);
        check("/v4/**", "/v4/a/b", true);
        check("/v4/**", "/v4", true);
        check("/**", "/v2/self", true);
        check("/v4/a", "/v4", false);
    }

    #[test]
    fn a_fault_meets_so_many_requests_and_is_over() {
        let injections = Injections::new(1);
        injections
            .add(fault(
                json!({"method": "GET", "path": "/a/**", "times": 2, "status": 503}),
            ))
            .expect("a fault");
        assert_eq!(statuses(&injections, Method::POST, "/a/b", 2), [0, 0]);
        assert_eq!(statuses(&injections, Method::GET, "/b", 1), [0]);
        assert_eq!(statuses(&injections, Method::GET, "/a/b", 3), [503, 503, 0]);
        assert!(injections.list().is_empty());
    }

    #[test]
    fn a_rate_is_drawn_from_the_seed() {
        let drawn = |seed: u64| {
            let injections = Injections::new(seed);
            let half = json!({"path": "/**", "perMille": 500, "status": 500});
            injections.add(fault(half)).expect("a fault");
            statuses(&injections, Method::GET, "/a", 1000)
        };
        let failed = drawn(1).iter().filter(|status| **status == 500).count();
        assert!((400..600).contains(&failed), "{failed}");
        assert_eq!(drawn(1), drawn(1));
        assert_ne!(drawn(1), drawn(2));
    }

    #[test]
    fn what_is_kept_goes_on_where_it_was() {
        let half = json!({"path": "/**", "perMille": 500, "status": 500, "times": 200});
        let injections = Injections::new(7);
        injections.add(fault(half)).expect("a fault");
        statuses(&injections, Method::GET, "/a", 100);
        let restored = Injections::restored(7, &injections.to_json());
        assert_eq!(restored.list()[0].met, injections.list()[0].met);
        let rest = statuses(&injections, Method::GET, "/a", 400);
        assert_eq!(statuses(&restored, Method::GET, "/a", 400), rest);
        let next = json!({"path": "/b", "status": 500});
        let next = restored.add(fault(next)).expect("a fault");
        assert_eq!(next.id, "fault_2");
    }

    #[test]
    fn latencies_add_up_and_the_first_status_counts() {
        let injections = Injections::new(1);
        for (latency, status) in [(2, 502), (3, 503)] {
            let slow = json!({"path": "/**", "latencySeconds": latency});
            injections.add(fault(slow)).expect("a fault");
            let failing = json!({"path": "/**", "status": status, "code": "x", "message": "y"});
            injections.add(fault(failing)).expect("a fault");
        }
        let verdict = injections.judge(&Method::GET, "/a");
        assert_eq!(verdict.simulated, Duration::from_secs(5));
        let error = verdict.error.expect("an error");
        assert_eq!(error.to_string(), "502 Bad Gateway x: y");
        assert!(
            injections
                .judge(&Method::GET, "/_sim/clock")
                .error
                .is_none()
        );
    }

    #[test]
    fn senseless_faults_are_refused() {
        let check = |value: serde_json::Value| {
            let refused = Injections::new(1).add(fault(value.clone()));
            assert_eq!(
                refused.expect_err(&value.to_string()).status,
                400,
                "{value}"
            );
        };
        check(json!({"path": "/a"}));
        check(json!({"path": "a", "status": 500}));
        check(json!({"path": "/_sim/clock", "status": 500}));
        check(json!({"path": "/a", "status": 200}));
        check(json!({"path": "/a", "status": 500, "times": 0}));
        check(json!({"path": "/a", "status": 500, "perMille": 1001}));
        check(json!({"path": "/a", "status": 500, "method": "get"}));
        check(json!({"path": "/a", "latencySeconds": -1}));
        check(json!({"path": "/a", "latencySeconds": 1000, "latencyClock": "real"}));
    }
}
