//! One connection: from HTTP requests to the services of the keyspace that they are for.

use std::convert::Infallible;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};

use super::auth::Trusted;
use super::auth::peer::PeerName;
use super::coalesce::Coalescing;
use super::gateway;
use super::http;
use super::keyspace_choice::Chosen;
use super::metrics::rpc::Answered;
use super::pings::{PingLimit, Pings, UnderWay};
use super::server::Inner;
use super::service::Api;

/// HTTP/2 flow control: what a client may send before it is read, per stream and per connection.
pub const STREAM_WINDOW_BYTES: u32 = 1 << 20;
pub const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// Streams that a client may have cancelled before the server got to them. A client that cancels
/// many watches at once means no harm.
const MAX_RESET_STREAMS: usize = 100_000;
/// Bytes that one stream's answers may have waiting for the network.
const SEND_BUFFER_BYTES: usize = 1 << 20;
/// How long an HTTP/1.1 client may take to begin its next request, and to send its head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(120);

/// The services, to one connection.
#[derive(Clone)]
pub struct Connected {
    pub api: Api,
    /// Who the client has proven to be.
    pub peer: Option<PeerName>,
    /// The client is this process itself.
    pub trusted: bool,
    /// The listener is for scrapers and probes alone.
    pub metrics_only: bool,
    /// What users may choose; `None` if they may not here.
    pub chosen: Option<Chosen>,
    pub under_way: UnderWay,
}

impl hyper::service::Service<::http::Request<Incoming>> for Connected {
    type Response = ::http::Response<Answered>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn call(&self, mut request: ::http::Request<Incoming>) -> Self::Future {
        let api = match &self.chosen {
            None => self.api.clone(),
            Some(chosen) => chosen.api(&self.api, &mut request),
        };
        if let Some(peer) = &self.peer {
            request.extensions_mut().insert(peer.clone());
        }
        if self.trusted {
            request.extensions_mut().insert(Trusted);
        }
        let metrics_only = self.metrics_only;
        let begun = self.under_way.begin();
        async move {
            let content_type = request.headers().get(::http::header::CONTENT_TYPE);
            let grpc =
                content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
            if grpc && !metrics_only {
                let methods = &api.backend().server.config.metrics.rpc;
                let (call, request) = methods.start(request);
                let response = call.answer(api.call(request).await);
                return Ok(response.map(|body| body.holding(begun)));
            }
            let json = gateway::serves(request.uri().path()) && !metrics_only;
            let mut response = if request.method() == ::http::Method::OPTIONS {
                http::options()
            } else if json {
                gateway::call(api, request).await
            } else {
                http::call(api.backend(), &request).await
            };
            http::allow_origins(&mut response);
            Ok(Answered::uncounted(response).map(|body| body.holding(begun)))
        }
        .boxed()
    }
}

impl Inner {
    /// One connection, HTTP/2 or HTTP/1.1 as the client begins.
    pub fn connection<I>(
        &self,
        mut connected: Connected,
        stream: I,
    ) -> auto::Connection<'static, TokioIo<Pings<Coalescing<I>>>, Connected, TokioExecutor>
    where
        I: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        // Clones of one listener's share them.
        connected.under_way = UnderWay::default();
        connected.chosen = connected.chosen.map(|_| Chosen::default());
        let limit = (!connected.trusted).then(|| PingLimit {
            clock: self.clock.clone(),
            interval: self.config.ping_interval,
            under_way: connected.under_way.clone(),
        });
        let stream = Pings::new(Coalescing::new(stream), limit);
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(self.config.keepalive_interval)
            .keep_alive_timeout(self.config.keepalive_timeout)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_concurrent_streams(self.config.max_concurrent_streams)
            .max_pending_accept_reset_streams(MAX_RESET_STREAMS)
            .max_send_buf_size(SEND_BUFFER_BYTES);
        builder
            .serve_connection(TokioIo::new(stream), connected)
            .into_owned()
    }
}
