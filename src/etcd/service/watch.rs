//! Watch, with a codec of its own: the generated service would build every event's message again
//! for every watcher.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use etcd_proto::etcdserverpb::WatchRequest;
use futures::Stream;
use futures::task::AtomicWaker;
use http_body::Body as HttpBody;
use tokio::sync::mpsc;
use tonic::body::Body;
use tonic::server::{Grpc, StreamingService};
use tonic::{Request, Response, Status, Streaming};

use super::{Backend, unimplemented};
use crate::etcd::auth::Credentials;
use crate::etcd::watch::frame::{Frame, WatchCodec};
use crate::etcd::watch::stream::{ANSWERS_LEN, StreamConfig, WatchStream};

struct Watch(Backend);

/// A stream's answers, and the work that makes them: it is done by whoever asks for the answers, which
/// is the task that sends them, so that no event waits for another task to wake up.
pub struct Answers {
    outgoing: mpsc::Receiver<Result<Frame, Status>>,
    /// `None` once it has ended.
    work: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    alarm: Arc<Alarm>,
}

/// Remembers that the work was woken: answers are asked for more often than there is work to do.
#[derive(Default)]
struct Alarm {
    rang: AtomicBool,
    /// The task that asks for answers.
    task: AtomicWaker,
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rang.store(true, Ordering::Release);
        self.task.wake();
    }
}

impl Answers {
    fn new(
        outgoing: mpsc::Receiver<Result<Frame, Status>>,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> Answers {
        let alarm = Arc::new(Alarm::default());
        // It has not begun.
        alarm.rang.store(true, Ordering::Release);
        Answers {
            outgoing,
            work: Some(Box::pin(work)),
            alarm,
        }
    }
}

impl Stream for Answers {
    type Item = Result<Frame, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        // Nobody but the work sends, so there is nobody to be woken by.
        if let Ok(answer) = self.outgoing.try_recv() {
            return Poll::Ready(Some(answer));
        }
        self.alarm.task.register(context.waker());
        if self.alarm.rang.swap(false, Ordering::AcqRel) {
            let waker = Waker::from(Arc::clone(&self.alarm));
            if let Some(work) = &mut self.work
                && work
                    .as_mut()
                    .poll(&mut Context::from_waker(&waker))
                    .is_ready()
            {
                self.work = None;
            }
            if let Ok(answer) = self.outgoing.try_recv() {
                return Poll::Ready(Some(answer));
            }
        }
        match self.work {
            Some(_) => Poll::Pending,
            None => Poll::Ready(None),
        }
    }
}

impl StreamingService<WatchRequest> for Watch {
    type Response = Frame;
    type ResponseStream = Answers;
    type Future =
        Pin<Box<dyn Future<Output = Result<Response<Self::ResponseStream>, Status>> + Send>>;

    fn call(&mut self, request: Request<Streaming<WatchRequest>>) -> Self::Future {
        let backend = self.0.clone();
        Box::pin(async move {
            let keyspace = backend.checked_keyspace().await?;
            let config = StreamConfig {
                progress_interval: backend.server.config.progress_interval(),
                max_response_bytes: backend.server.config.max_message_bytes(),
            };
            let (answers, outgoing) = mpsc::channel(ANSWERS_LEN);
            let credentials = Credentials::of(&request);
            let headers = backend.headers();
            let stream = WatchStream::new(keyspace, headers, credentials, config, answers);
            let work = stream.run(request.into_inner(), backend.draining);
            Ok(Response::new(Answers::new(outgoing, work)))
        })
    }
}

pub async fn call<B>(backend: &Backend, request: http::Request<B>) -> http::Response<Body>
where
    B: HttpBody + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
{
    if request.uri().path() != "/etcdserverpb.Watch/Watch" {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default();
        return unimplemented("etcdserverpb.Watch", method).into_http();
    }
    Grpc::new(WatchCodec)
        .apply_max_message_size_config(Some(backend.server.config.max_message_bytes()), None)
        .streaming(Watch(backend.clone()), request)
        .await
}
