//! Many keyspaces, each for the clients whose certificate has its name. None may see another's keys.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cke::etcd::client::{self, Client};
use etcd_proto::etcdserverpb::TxnRequest;
use futures::{StreamExt as _, stream};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::Endpoint;

use super::certificates::Authority;
use super::{Outcome, Tally};
use crate::Failure;
use crate::server::{Peer, Server};

/// One connection for each, which stays open.
pub const KEYSPACES: usize = 5_000;
/// In each, written by one transaction.
const KEYS: usize = 100;
const VALUE_BYTES: usize = 256;
/// Keyspaces that are worked with at the same time.
const AT_ONCE: usize = 64;
/// From the process's start until the first handshake.
const START_TIMEOUT: Duration = Duration::from_secs(20);

fn name(number: usize) -> String {
    format!("cluster-{number:05}")
}

/// What is done is a key that was written and read again.
pub async fn run() -> Result<Outcome, Failure> {
    let authority = Authority::new()?;
    let mut flags = authority.server_flags()?;
    flags.extend(["--keyspace-by-cn".into(), "*".into()]);
    let server = Server::launch(Peer::Cke, "https", &flags)?;
    let port = server.url.rsplit(':').next().unwrap_or_default().parse()?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    until_listening(address).await?;

    let mut tally = Tally::default();
    let writing = (0..KEYSPACES).map(|number| {
        let tls = authority.client(&name(number));
        async move {
            let client = connect(address, tls?).await?;
            write(&client, number).await?;
            Ok::<_, Failure>((number, client))
        }
    });
    let written: Vec<_> = stream::iter(writing)
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let mut clients = Vec::new();
    for outcome in written {
        match outcome {
            Ok(client) => clients.push(client),
            Err(failure) => tally.error(failure),
        }
    }
    // Only now: whatever got into the wrong keyspace is seen.
    let reading = clients.iter().map(|(number, client)| read(client, *number));
    let read: Vec<_> = stream::iter(reading)
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    for outcome in read {
        match outcome {
            Ok(()) => tally.done += KEYS,
            Err(failure) => tally.error(failure),
        }
    }
    let note = format!("keys; {KEYSPACES} keyspaces, a TLS connection open for each");
    Outcome::now(&server, tally, note)
}

async fn until_listening(address: SocketAddr) -> Result<(), Failure> {
    let deadline = Instant::now() + START_TIMEOUT;
    while TcpStream::connect(address).await.is_err() {
        if Instant::now() > deadline {
            return Err(format!("nobody listens on {address}").into());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

async fn connect(address: SocketAddr, tls: Arc<ClientConfig>) -> Result<Client, Failure> {
    let connector = tower::service_fn(move |_: http::Uri| {
        let tls = TlsConnector::from(Arc::clone(&tls));
        async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let server = ServerName::from(address.ip());
            Ok::<_, std::io::Error>(TokioIo::new(tls.connect(server, stream).await?))
        }
    });
    // The connector is what speaks TLS; tonic is told of none.
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
    Ok(Client::new(
        endpoint.connect_with_connector(connector).await?,
    ))
}

fn key(index: usize) -> Bytes {
    Bytes::from(format!("/registry/object-{index:03}"))
}

/// Begins with the keyspace's name.
fn value(number: usize) -> Bytes {
    Bytes::from(format!("{:<VALUE_BYTES$}", name(number)))
}

/// A keyspace that nobody has written to is at revision 1.
async fn write(client: &Client, number: usize) -> Result<(), Failure> {
    let puts = (0..KEYS).map(|index| client::put(key(index), value(number)));
    let request = TxnRequest {
        success: puts.collect(),
        ..TxnRequest::default()
    };
    let revision = client::header_revision(client.txn(request).await?.header);
    if revision != 2 {
        return Err(format!("{}: the first write is revision {revision}", name(number)).into());
    }
    Ok(())
}

async fn read(client: &Client, number: usize) -> Result<(), Failure> {
    let found = client.list("").await?;
    let expected = value(number);
    let own = found.value.iter().filter(|kv| kv.value == expected).count();
    if (own, found.value.len(), found.revision) != (KEYS, KEYS, 2) {
        let (name, all, revision) = (name(number), found.value.len(), found.revision);
        return Err(format!("{name}: {own} own keys of {all}, at revision {revision}").into());
    }
    Ok(())
}
