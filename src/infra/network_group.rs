//! Network groups: WireGuard meshes whose peers are VMs.
//!
//! Each peer is a record of its own, made and removed in the transaction that makes or removes its VM: so
//! the list of peers follows the VMs exactly, and one VM that comes does not rewrite what is known of
//! the others. Everybody is everybody's peer, by construction. Keys are drawn from the seed and the names
//! of group and VM, so no private key is ever kept.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use curve25519_dalek::MontgomeryPoint;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::vm::VmId;

/// Bits of a group's network.
pub const PREFIX_LENGTH: u32 = 16;
const PORT: u16 = 51_820;
/// Hosts are numbered from 1; the last address is the broadcast's.
const LAST_HOST: u32 = (1 << (32 - PREFIX_LENGTH)) - 2;

/// A VM in a network group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    pub network: String,
    pub vm: VmId,
    pub hostname: String,
    pub hypervisor: String,
    /// Within the group's network.
    pub address: Ipv4Addr,
    /// Where the tunnel ends, in the platform's own network.
    pub endpoint: Ipv4Addr,
    /// Base64, as WireGuard writes it.
    pub public_key: String,
}

/// First address of the group's network. Groups are apart from one another, so two may have the same.
pub fn network_address(network: &str) -> Ipv4Addr {
    Ipv4Addr::new(10, 64 + Sha256::digest(network)[0] % 128, 0, 0)
}

/// The host that comes next after `last` (0 if there was none), round and round, and is not taken.
pub(super) fn next_host(last: u32, is_taken: impl Fn(u32) -> bool) -> Option<u32> {
    (0..LAST_HOST)
        .map(|step| (last + step) % LAST_HOST + 1)
        .find(|host| !is_taken(*host))
}

pub(super) fn address_of(network: &str, host: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(network_address(network)) + host)
}

fn private_key(seed: u64, network: &str, vm: &VmId) -> [u8; 32] {
    Sha256::new()
        .chain_update(seed.to_be_bytes())
        .chain_update("wireguard\0")
        .chain_update(network)
        .chain_update([0])
        .chain_update(&vm.0)
        .finalize()
        .into()
}

pub(super) fn public_key(seed: u64, network: &str, vm: &VmId) -> String {
    let point = MontgomeryPoint::mul_base_clamped(private_key(seed, network, vm));
    BASE64_STANDARD.encode(point.to_bytes())
}

/// The configuration of `own` among `peers`, in the format of `wg-quick`.
pub(super) fn configuration(seed: u64, own: &Peer, peers: &[Peer]) -> String {
    let key = BASE64_STANDARD.encode(private_key(seed, &own.network, &own.vm));
    let mut text = format!(
        "[Interface]\nPrivateKey = {key}\nAddress = {}/{PREFIX_LENGTH}\nListenPort = {PORT}\n",
        own.address
    );
    for peer in peers.iter().filter(|peer| peer.vm != own.vm) {
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "\n[Peer]\nPublicKey = {}\nAllowedIPs = {}/32\nEndpoint = {}:{PORT}\n",
            peer.public_key, peer.address, peer.endpoint
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_given_round_and_round() {
        let check = |last, taken: &[u32], expect| {
            assert_eq!(next_host(last, |host| taken.contains(&host)), expect);
        };
        check(0, &[], Some(1));
        check(1, &[1], Some(2));
        check(1, &[1, 2, 3], Some(4));
        check(LAST_HOST, &[1], Some(2));
        assert_eq!(next_host(7, |_| true), None);
        assert_eq!(LAST_HOST, 65_534);
    }

    #[test]
    fn a_public_key_is_the_private_one_s() {
        // A pair that OpenSSL made.
        let private = "d0f71e05194f7f236ff9f160c5867ef7289abf417d3209c9b6b17c4bf9cc8551";
        let public = "37fa7225ebf817e2c057211a9f74368d8608ba0e7cd58d7549989155d2cb4c01";
        let bytes = |text: &str| -> [u8; 32] {
            std::array::from_fn(|at| u8::from_str_radix(&text[at * 2..at * 2 + 2], 16).unwrap())
        };
        let made = MontgomeryPoint::mul_base_clamped(bytes(private));
        assert_eq!(made.to_bytes(), bytes(public));
        let vm = VmId::from("a");
        assert_eq!(public_key(1, "ng", &vm), public_key(1, "ng", &vm));
        assert_ne!(public_key(1, "ng", &vm), public_key(2, "ng", &vm));
        assert_ne!(public_key(1, "ng", &vm), public_key(1, "gn", &vm));
    }
}
