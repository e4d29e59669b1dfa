//! The stream of everything that happens, as server-sent events.
//!
//! | event | data |
//! |---|---|
//! | `change` | a [`Happening`]; its `id` is the sequence number |
//! | `lost` | [`Lost`]: so many changes are no longer kept, the next one follows |
//! | `world` | [`World`]: the world was reset or restored, and numbers begin anew |

use std::convert::Infallible;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures::stream::{self, Stream, StreamExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::clever::Clever;
use crate::clever::error::ApiError;
use crate::clever::simulation::history::{Happening, History};
use crate::clever::simulation::openapi::{Api, Operation};
use crate::clever::transport::Parameters;

/// Changes that are written at once, before it is looked again for more.
const PAGE: usize = 256;

pub fn operations(api: Api) -> Api {
    api.add(
        Operation::get(
            "/_sim/events",
            "Everything that happens, in order, as server-sent events: `change`, and `lost` for what is no \
             longer kept (the last 32768 are), and `world` when numbers begin anew",
        )
        .query(
            "since",
            "Only what has a greater number. Unless given, or in the header Last-Event-ID: only what happens from now on",
        )
        .query("follow", "`false`: end after what there is")
        .answers::<Happening>()
        .answers_as("text/event-stream"),
        get_events,
    )
}

/// Says that changes are missing in the stream.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Lost {
    pub count: u64,
}

/// Says that what follows is about another world.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct World {
    pub number: u64,
}

/// Where a stream is.
struct Reader {
    history: History,
    head: watch::Receiver<(u64, u64)>,
    world: u64,
    since: u64,
    follow: bool,
}

async fn get_events(
    State(clever): State<Clever>,
    parameters: Parameters,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    let asked: Vec<u64> = parameters.parse_all("since")?;
    let follow: Vec<bool> = parameters.parse_all("follow")?;
    let last_event = headers
        .get("last-event-id")
        .and_then(|id| id.to_str().ok()?.parse().ok());
    let history = clever.simulation.inner.history.clone();
    let follow = follow.first().copied().unwrap_or(true);
    if !follow {
        // Whoever asks for what there is wants all of it.
        history.settle().await;
    }
    let head = history.head();
    let (world, newest) = *head.borrow();
    let reader = Reader {
        since: asked.first().copied().or(last_event).unwrap_or(newest),
        history,
        head,
        world,
        follow,
    };
    let shutdown = clever.simulation.inner.shutdown.clone();
    let pages = stream::unfold(reader, Reader::next_page);
    let events = pages.flat_map(stream::iter).map(Ok);
    let until_shutdown = events.take_until(async move { shutdown.cancelled().await });
    Ok(Sse::new(until_shutdown).keep_alive(KeepAlive::default()))
}

impl Reader {
    async fn next_page(mut self) -> Option<(Vec<Event>, Reader)> {
        loop {
            self.head.borrow_and_update();
            let page = self.history.after(self.since, PAGE);
            let mut events = Vec::new();
            if page.world != self.world {
                self.world = page.world;
                self.since = 0;
                let world = World { number: page.world };
                return Some((vec![event("world", &world)], self));
            }
            if page.lost > 0 && !page.happenings.is_empty() {
                events.push(event("lost", &Lost { count: page.lost }));
            }
            for happening in page.happenings {
                self.since = happening.sequence;
                let id = happening.sequence.to_string();
                events.push(event("change", &happening).id(id));
            }
            if !events.is_empty() {
                return Some((events, self));
            }
            if !self.follow || self.head.changed().await.is_err() {
                return None;
            }
        }
    }
}

fn event(name: &str, data: &impl Serialize) -> Event {
    // Plain structs of text and JSON can always be written.
    let data = serde_json::to_string(data).unwrap_or_default();
    Event::default().event(name).data(data)
}
