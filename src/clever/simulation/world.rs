//! The world as a whole: begun anew, written to a file, put back from one.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use futures::StreamExt as _;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;

use crate::clever::Clever;
use crate::clever::error::ApiError;
use crate::clever::simulation::openapi::{Api, Operation};
use crate::clever::transport::{Json, OptionalJsonBody};
use crate::clock::Timestamp;

const MEDIA_TYPE: &str = "application/octet-stream";
/// Of a snapshot that is put back.
const SNAPSHOT_LIMIT_BYTES: u64 = 16 << 30;
/// Chunks of a snapshot on the way to a client that is slower than the disk.
const CHUNKS: usize = 16;

pub fn operations(api: Api) -> Api {
    api.add(
        Operation::get("/_sim/world", "Which world this is").answers::<WorldView>(),
        get_world,
    )
    .add(
        Operation::post(
            "/_sim/world/reset",
            "Begin a new world, as on an empty store. Answers when it serves",
        )
        .takes::<Reset>()
        .answers::<WorldView>(),
        reset,
    )
    .add(
        Operation::post(
            "/_sim/world/snapshot",
            "The whole world as of this instant: everything that is kept, what the clock reads, the seed, and \
             the faults of the REST API",
        )
        .answers_as(MEDIA_TYPE),
        snapshot,
    )
    .add(
        Operation::post(
            "/_sim/world/restore",
            "Put back the world of a snapshot, which is the body of the request. Answers when it serves",
        )
        .takes_as(MEDIA_TYPE)
        .answers::<WorldView>(),
        restore,
    )
}

/// How the composition above is asked for another world. Cheap to clone.
#[derive(Clone)]
pub struct Worlds {
    changes: mpsc::Sender<WorldChange>,
    storage: Arc<dyn Storage>,
}

/// One wish, and who waits for it.
pub struct WorldChange {
    pub to: NextWorld,
    pub done: oneshot::Sender<Result<WorldIs, String>>,
}

pub enum NextWorld {
    /// An empty one.
    New { seed: u64 },
    /// The one in the file, which was found good.
    Restored(std::fs::File),
}

/// What a world is known by.
#[derive(Clone, Debug)]
pub struct WorldIs {
    pub seed: u64,
    pub now: Timestamp,
    pub scale: String,
}

/// What can be done with the store below, by who alone knows it.
pub trait Storage: Send + Sync {
    /// The content as of now, to be written by a call that may block, with what else a snapshot says.
    /// `None` if other servers write to it as well.
    fn content(&self) -> Result<Option<WriteSnapshot>, String>;
    /// Reads a snapshot to its end.
    fn check(&self, file: &mut std::fs::File) -> Result<(), String>;
}

/// Takes the clock's reading, the seed and the faults.
pub type WriteSnapshot = Box<
    dyn FnOnce(Timestamp, u64, serde_json::Value, &mut dyn std::io::Write) -> Result<(), String>
        + Send,
>;

impl Worlds {
    /// And where the wishes arrive.
    pub fn new(storage: Arc<dyn Storage>) -> (Worlds, mpsc::Receiver<WorldChange>) {
        let (changes, arriving) = mpsc::channel(1);
        (Worlds { changes, storage }, arriving)
    }

    async fn change(&self, to: NextWorld) -> Result<WorldIs, ApiError> {
        let ending = || ApiError::unavailable("The server is ending");
        let (done, outcome) = oneshot::channel();
        let change = WorldChange { to, done };
        self.changes.send(change).await.map_err(|_| ending())?;
        let outcome = outcome.await.map_err(|_| ending())?;
        outcome.map_err(ApiError::unavailable)
    }
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorldView {
    /// RFC 3339.
    pub now: String,
    /// How the clock runs, as `/_sim/clock` says it.
    pub scale: String,
    /// Of everything random in it.
    pub seed: u64,
}

impl From<WorldIs> for WorldView {
    fn from(world: WorldIs) -> WorldView {
        WorldView {
            now: world.now.to_rfc3339(),
            scale: world.scale,
            seed: world.seed,
        }
    }
}

/// What is absent stays as it is.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Reset {
    /// Of the new world; the one that there is, unless given.
    seed: Option<u64>,
}

fn refuse_sharing(clever: &Clever) -> Result<(), ApiError> {
    if clever.simulation.inner.shared_store {
        return Err(ApiError::conflict(
            "The servers that share a store have one world: it is where they all are",
        ));
    }
    Ok(())
}

async fn get_world(State(clever): State<Clever>) -> Json<WorldView> {
    Json(WorldView {
        now: clever.clock.now().to_rfc3339(),
        scale: clever.clock.scale().to_string(),
        seed: clever.simulation.inner.seed,
    })
}

async fn reset(
    State(clever): State<Clever>,
    OptionalJsonBody(reset): OptionalJsonBody<Reset>,
) -> Result<Json<WorldView>, ApiError> {
    refuse_sharing(&clever)?;
    let inner = &clever.simulation.inner;
    let seed = reset.unwrap_or_default().seed.unwrap_or(inner.seed);
    let world = inner.worlds.change(NextWorld::New { seed }).await?;
    Ok(Json(world.into()))
}

async fn snapshot(State(clever): State<Clever>) -> Result<Response, ApiError> {
    refuse_sharing(&clever)?;
    let inner = Arc::clone(&clever.simulation.inner);
    // Nothing happens between what the clock reads and what the store holds.
    let standing = clever.clock.stand_still().await;
    clever.clock.quiesce().await;
    clever.platform.save_reading().await?;
    let now = clever.clock.now();
    let content = inner
        .worlds
        .storage
        .content()
        .map_err(ApiError::unavailable)?;
    drop(standing);
    let write = content.ok_or_else(|| ApiError::conflict("The store has no snapshots"))?;
    let faults = inner.injections.to_json();
    let (sender, chunks) = mpsc::channel::<Result<Bytes, std::io::Error>>(CHUNKS);
    tokio::task::spawn_blocking(move || {
        let mut to = ChunkWriter(sender.clone());
        if let Err(reason) = write(now, inner.seed, faults, &mut to) {
            // A body that ends with an error is no body to its reader.
            let _ = sender.blocking_send(Err(std::io::Error::other(reason)));
        }
    });
    let headers = [
        (CONTENT_TYPE, MEDIA_TYPE),
        (CONTENT_DISPOSITION, "attachment; filename=\"world.cke\""),
    ];
    let body = Body::from_stream(ReceiverStream::new(chunks));
    Ok((headers, body).into_response())
}

struct ChunkWriter(mpsc::Sender<Result<Bytes, std::io::Error>>);

impl std::io::Write for ChunkWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let chunk = Bytes::copy_from_slice(bytes);
        let sent = self.0.blocking_send(Ok(chunk));
        sent.map_err(|_| std::io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

async fn restore(
    State(clever): State<Clever>,
    request: Request,
) -> Result<Json<WorldView>, ApiError> {
    refuse_sharing(&clever)?;
    let unwritable = |error: std::io::Error| {
        ApiError::unavailable(format!("the snapshot cannot be kept: {error}"))
    };
    let file = tempfile::tempfile().map_err(unwritable)?;
    let mut to = tokio::fs::File::from_std(file);
    let mut chunks = request.into_body().into_data_stream();
    let mut size: u64 = 0;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| ApiError::bad_request(error.to_string()))?;
        size += chunk.len() as u64;
        if size > SNAPSHOT_LIMIT_BYTES {
            let reason = format!("A snapshot is at most {SNAPSHOT_LIMIT_BYTES} bytes");
            return Err(ApiError::bad_request(reason));
        }
        to.write_all(&chunk).await.map_err(unwritable)?;
    }
    to.flush().await.map_err(unwritable)?;
    let mut file = to.into_std().await;
    let inner = Arc::clone(&clever.simulation.inner);
    let storage = Arc::clone(&inner.worlds.storage);
    // Nothing of this world changes before all of the other is known to be there.
    let checked = tokio::task::spawn_blocking(move || {
        let outcome = storage.check(&mut file);
        outcome.map(|()| file)
    });
    let checked = checked.await;
    let checked = checked.unwrap_or_else(|died| Err(died.to_string()));
    let file = checked.map_err(ApiError::bad_request)?;
    let world = inner.worlds.change(NextWorld::Restored(file)).await?;
    Ok(Json(world.into()))
}
