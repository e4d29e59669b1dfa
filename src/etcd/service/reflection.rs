//! gRPC reflection, v1 and v1alpha: lets `grpcurl` and its like ask what the API has.

use std::convert::Infallible;

use http_body::Body as HttpBody;
use tonic::Status;
use tonic::body::Body;
use tonic_reflection::server::Builder;
use tower::Service as _;

pub const V1: &str = "grpc.reflection.v1.ServerReflection";
pub const V1_ALPHA: &str = "grpc.reflection.v1alpha.ServerReflection";

/// Answers one call. The service is made anew for each: few clients ever ask, and it need not be
/// in memory for them.
pub async fn call<B>(request: http::Request<B>) -> http::Response<Body>
where
    B: HttpBody + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
{
    let builder =
        Builder::configure().register_encoded_file_descriptor_set(etcd_proto::FILE_DESCRIPTOR_SET);
    let service = request.uri().path().split('/').nth(1);
    let answered: Result<_, Infallible> = if service == Some(V1) {
        match builder.build_v1() {
            Ok(mut server) => server.call(request).await,
            Err(error) => Ok(refused(&error)),
        }
    } else {
        match builder.build_v1alpha() {
            Ok(mut server) => server.call(request).await,
            Err(error) => Ok(refused(&error)),
        }
    };
    let Ok(response) = answered;
    response
}

fn refused(error: &tonic_reflection::server::Error) -> http::Response<Body> {
    Status::internal(error.to_string()).into_http()
}
