//! How an SCVM logs in to an ESXi host.

use serde::Deserialize;
use std::net::Ipv4Addr;
use std::path::PathBuf;

/// Of a host with `agent = false`. Nothing but the port has a default: what is not written down is not tried.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Esxi {
    /// Where its sshd listens: on its management network.
    pub address: Ipv4Addr,
    #[serde(default = "Esxi::default_port")]
    pub port: u16,
    pub user: String,
    /// The private key, on each SCVM.
    pub identity: PathBuf,
    /// The host's own key, in the format of ssh, on each SCVM. A host that shows another one is not logged in to.
    pub known_hosts: PathBuf,
}

impl Esxi {
    fn default_port() -> u16 {
        22
    }

    /// Errors: the key, and what is wrong with it.
    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        if self.address.is_unspecified() || self.address.is_loopback() || self.address.is_multicast() {
            return Err(("address", format!("{} is no address of a host", self.address)));
        }
        if self.port == 0 {
            return Err(("port", "port 0 names no service: sshd uses 22".into()));
        }
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
        let begins = self.user.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b == b'_');
        if !begins || !self.user.bytes().all(plain) || self.user.len() > 32 {
            let why = format!("{:?} is no user's name: lower-case letters, digits, `-` and `_`", self.user);
            return Err(("user", why));
        }
        for (key, path) in [("identity", &self.identity), ("known_hosts", &self.known_hosts)] {
            // ssh splits UserKnownHostsFile at blanks, and expands `%`, `~` and `$`.
            let text = path.to_string_lossy();
            let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
            if !path.is_absolute() || !text.chars().all(plain) {
                let why =
                    format!("{text:?} must be an absolute path of letters, digits, `/`, `.`, `_` and `-`");
                return Err((key, why));
            }
        }
        Ok(())
    }
}
