//! Requests of this process to itself: from a client's stub straight to the services.
//!
//! They are the requests of any gRPC client, with the same messages, services and errors, and are counted as
//! such. What they do without is a connection: no HTTP/2 frames, no tasks that pass bytes on, and nothing that
//! an idle keyspace would have to keep. Whoever asks does the work of answering, up to what the sequencer does;
//! only watches have a task of their own.

use std::sync::{Arc, Weak};

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http_body::Body as HttpBody;
use http_body_util::{BodyExt as _, StreamBody};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::body::Body;

use super::auth::Trusted;
use super::server::Inner;

/// The one method whose answers go on for ever.
const WATCH: &str = "/etcdserverpb.Watch/Watch";
/// Of a watch's answers, for a client that is slow to read them; then the watch waits.
const WAITING_FRAMES: usize = 16;

/// The services of one keyspace, as long as there is the server. Cheap to clone.
#[derive(Clone)]
pub struct InProcess {
    /// Weak: a client must not keep the server alive.
    server: Weak<Inner>,
    keyspace: Arc<str>,
}

impl InProcess {
    pub fn new(server: &Arc<Inner>, keyspace: &str) -> InProcess {
        InProcess {
            server: Arc::downgrade(server),
            keyspace: Arc::from(keyspace),
        }
    }

    pub fn answer(
        &self,
        mut request: ::http::Request<Body>,
    ) -> BoxFuture<'static, Result<::http::Response<Body>, Status>> {
        let Some(server) = self.server.upgrade() else {
            let gone = Status::unavailable("the etcd server was stopped");
            return std::future::ready(Err(gone)).boxed();
        };
        request.extensions_mut().insert(Trusted);
        let api = server.api(&self.keyspace, &server.shutdown);
        let watch = request.uri().path() == WATCH;
        let (call, request) = server.config.metrics.rpc.start(request);
        async move {
            // A read waits for nothing: who reads again and again lets others have their turn.
            tokio::task::consume_budget().await;
            let response = call.answer(api.call(request).await);
            Ok(match watch {
                true => response.map(by_itself),
                false => response.map(Body::new),
            })
        }
        .boxed()
    }
}

/// A body that goes on whether or not somebody reads it, as over a connection: until so many frames wait.
fn by_itself<B>(body: B) -> Body
where
    B: HttpBody<Data = Bytes, Error = Status> + Send + Unpin + 'static,
{
    let (frames, read) = mpsc::channel(WAITING_FRAMES);
    let mut body = body;
    tokio::spawn(async move {
        let pass = async {
            while let Some(frame) = body.frame().await {
                if frames.send(frame).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = pass => {}
            // Nobody reads any more.
            () = frames.closed() => {}
        }
    });
    Body::new(StreamBody::new(ReceiverStream::new(read)))
}
