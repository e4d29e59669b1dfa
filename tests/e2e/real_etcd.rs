//! A real etcd 3.5, to be compared with.

use std::path::Path;
use std::process::{Child, Stdio};

use crate::command;
use crate::etcdctl::Etcdctl;

/// A running etcd. Killed when dropped.
pub struct RealEtcd {
    child: Child,
    pub endpoint: String,
}

impl Drop for RealEtcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

impl RealEtcd {
    /// On a data directory, new or restored.
    pub fn start(directory: &Path) -> RealEtcd {
        let endpoint = format!("http://127.0.0.1:{}", free_port());
        let peer = format!("http://127.0.0.1:{}", free_port());
        let child = command::client("etcd")
            .arg("--data-dir")
            .arg(directory)
            .args(["--listen-client-urls", &endpoint])
            .args(["--advertise-client-urls", &endpoint])
            .args(["--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd starts");
        let etcd = RealEtcd { child, endpoint };
        let etcdctl = Etcdctl::new(&etcd.endpoint);
        for _ in 0..20 {
            // Waits up to five seconds itself.
            if etcdctl.run(&["endpoint", "health"]).code == Some(0) {
                return etcd;
            }
        }
        panic!("etcd does not become healthy");
    }
}
