//! Where requests to the REST API come in: at the router of the present world. Between two worlds they wait.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use tokio::sync::watch;
use tower::ServiceExt as _;

/// How long a request waits for a world. Loading a large one takes longer: such requests are refused.
const PATIENCE: Duration = Duration::from_secs(30);

/// Cheap to clone.
#[derive(Clone)]
pub struct Door {
    /// The present world's; `None` between two.
    router: Arc<watch::Sender<Option<Router>>>,
}

impl Door {
    pub fn closed() -> Door {
        Door {
            router: Arc::new(watch::Sender::new(None)),
        }
    }

    pub fn open(&self, router: Router) {
        self.router.send_replace(Some(router));
    }

    pub fn close(&self) {
        self.router.send_replace(None);
    }

    /// What a listener serves.
    pub fn service(&self) -> Router {
        let door = self.clone();
        Router::new().fallback_service(tower::service_fn(move |request: Request| {
            let door = door.clone();
            async move { Ok::<_, Infallible>(door.answer(request).await) }
        }))
    }

    async fn answer(&self, request: Request) -> Response {
        let Some(router) = self.present().await else {
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        };
        // What is asked of a world is over with it. Only who changes worlds hears of the next one.
        let changes_worlds = request.uri().path().starts_with("/_sim/world");
        let mut closed = self.router.subscribe();
        tokio::select! {
            answer = router.oneshot(request) => answer.into_response(),
            () = ended(&mut closed), if !changes_worlds => {
                StatusCode::SERVICE_UNAVAILABLE.into_response()
            }
        }
    }

    /// The router of the world that there is, or will be soon.
    async fn present(&self) -> Option<Router> {
        let mut router = self.router.subscribe();
        let opened = router.wait_for(Option::is_some);
        match tokio::time::timeout(PATIENCE, opened).await {
            Ok(Ok(router)) => router.clone(),
            _ => None,
        }
    }
}

/// Resolves when the world that there is ends.
async fn ended(router: &mut watch::Receiver<Option<Router>>) {
    drop(router.wait_for(Option::is_none).await);
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use axum::routing::get;

    fn request(path: &str) -> Request {
        Request::get(path).body(Body::empty()).expect("a request")
    }

    #[tokio::test]
    async fn requests_wait_for_a_world_and_end_with_it() {
        let door = Door::closed();
        let waiting = tokio::spawn({
            let door = door.clone();
            async move { door.answer(request("/a")).await.status() }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        let forever = || async { std::future::pending::<StatusCode>().await };
        let router = Router::new()
            .route("/a", get(|| async { StatusCode::OK }))
            .route("/sleep", get(forever))
            .route("/_sim/world/reset", get(forever));
        door.open(router);
        assert_eq!(waiting.await.expect("an answer"), StatusCode::OK);
        let ask = |path: &'static str| {
            let door = door.clone();
            tokio::spawn(async move { door.answer(request(path)).await.status() })
        };
        let (sleeping, changing) = (ask("/sleep"), ask("/_sim/world/reset"));
        tokio::task::yield_now().await;
        door.close();
        let status = sleeping.await.expect("an answer");
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(!changing.is_finished());
        changing.abort();
    }
}
