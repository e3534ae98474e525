//! What is derived from the cluster's key: pulse keys, one per host and SCVM, and the MAC of API messages.

use crate::config::ClusterKey;
use hmac::{Hmac, KeyInit, Mac};
use reroute_core::ids::{HostId, ScvmId};
use sha2::Sha256;

/// HTTP header that carries the MAC of a body, hex.
pub const MAC_HEADER: &str = "x-reroute-mac";

fn hmac(key: &ClusterKey, parts: &[&[u8]]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(&key.0)
        .unwrap_or_else(|_| unreachable!("HMAC takes keys of any length"));
    for part in parts {
        mac.update(&(part.len() as u64).to_le_bytes());
        mac.update(part);
    }
    mac
}

/// The SipHash key of the pulses between one host and one SCVM.
pub fn pulse_key(key: &ClusterKey, host: HostId, scvm: ScvmId) -> [u64; 2] {
    let bytes = hmac(key, &[b"pulse", &host.0.to_le_bytes(), &scvm.0.to_le_bytes()]).finalize().into_bytes();
    let half = |i: usize| {
        let mut b = [0; 8];
        b.copy_from_slice(&bytes[i..i + 8]);
        u64::from_le_bytes(b)
    };
    [half(0), half(8)]
}

/// MAC of a message: `direction` is the path it is sent to or the stream it is part of, so that none passes for another.
pub fn message_mac(key: &ClusterKey, direction: &str, body: &[u8]) -> String {
    hex::encode(hmac(key, &[b"message", direction.as_bytes(), body]).finalize().into_bytes())
}

/// Whether `mac` (hex) is that of the message; takes the same time wherever it differs.
pub fn message_is_genuine(key: &ClusterKey, direction: &str, body: &[u8], mac: &str) -> bool {
    hex::decode(mac)
        .is_ok_and(|m| hmac(key, &[b"message", direction.as_bytes(), body]).verify_slice(&m).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_anywhere_is_noticed() {
        let key = ClusterKey(vec![7; 32]);
        let mac = message_mac(&key, "/v1/message", b"body");
        assert!(message_is_genuine(&key, "/v1/message", b"body", &mac));
        assert!(!message_is_genuine(&key, "/v1/message", b"bodz", &mac));
        assert!(!message_is_genuine(&key, "push", b"body", &mac));
        assert!(!message_is_genuine(&ClusterKey(vec![8; 32]), "/v1/message", b"body", &mac));
        assert!(!message_is_genuine(&key, "/v1/message", b"body", "zz"));
    }

    #[test]
    fn every_pair_has_its_own_key() {
        let key = ClusterKey(vec![7; 32]);
        assert_ne!(pulse_key(&key, HostId(1), ScvmId(2)), pulse_key(&key, HostId(2), ScvmId(1)));
    }
}
