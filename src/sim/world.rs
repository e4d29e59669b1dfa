//! `cke sim world`: snapshots to and from files.

use std::path::Path;

use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::io::AsyncWriteExt as _;

use super::client::{Client, ClientError};
use super::{SimError, say};

const MEDIA_TYPE: &str = "application/octet-stream";

pub async fn snapshot(client: &Client, path: &str, file: &Path) -> Result<(), SimError> {
    let write = |source| SimError::Write {
        path: file.to_owned(),
        source,
    };
    let answer = client.open(&Method::POST, path, None).await?;
    let mut body = succeeded(path, answer).await?;
    let mut to = tokio::fs::File::create(file).await.map_err(write)?;
    let mut size = 0;
    while let Some(frame) = body.frame().await {
        let frame = match frame {
            Ok(frame) => frame,
            Err(source) => {
                // Half a world is of no use to anybody.
                drop(tokio::fs::remove_file(file).await);
                let url = path.to_owned();
                return Err(ClientError::Http { url, source }.into());
            }
        };
        if let Ok(data) = frame.into_data() {
            size += data.len();
            to.write_all(&data).await.map_err(write)?;
        }
    }
    to.sync_all().await.map_err(write)?;
    say(&format!("{} bytes in {}\n", size, file.display()));
    Ok(())
}

pub async fn restore(client: &Client, path: &str, file: &Path) -> Result<(), SimError> {
    let content = tokio::fs::read(file).await;
    let content = content.map_err(|source| SimError::Read {
        path: file.to_owned(),
        source,
    })?;
    let sent = client.exchange(&Method::POST, path, MEDIA_TYPE, Bytes::from(content));
    let body = succeeded(path, sent.await?).await?;
    let said = read(path, body).await?;
    say(&format!("{}\n", String::from_utf8_lossy(&said)));
    Ok(())
}

/// The body of a success.
async fn succeeded(path: &str, answer: http::Response<Incoming>) -> Result<Incoming, SimError> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer.into_body());
    }
    let said = read(path, answer.into_body()).await?;
    Err(SimError::Client(ClientError::Refused {
        method: Method::POST,
        path: path.to_owned(),
        status,
        said: String::from_utf8_lossy(&said).into_owned(),
    }))
}

async fn read(path: &str, body: Incoming) -> Result<Bytes, ClientError> {
    let read = body.collect().await.map_err(|source| ClientError::Http {
        url: path.to_owned(),
        source,
    });
    Ok(read?.to_bytes())
}
