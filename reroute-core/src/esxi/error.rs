//! What keeps a next hop from being looked at or changed, by name. Each says what to do.

use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum DriveError {
    #[error(
        "its ssh port answers nobody ({what}): the host is down, or a firewall drops it; on ESXi see `esxcli network firewall ruleset list --ruleset-id sshServer`"
    )]
    Filtered { what: String },
    #[error(
        "its ssh port refuses connections: start ssh there (service TSM-SSH), or let it through its firewall"
    )]
    Refused,
    #[error("no way to its ssh port ({what}): look at routes and firewalls between here and there")]
    Unreachable { what: String },
    #[error(
        "ssh time-out ({what}): it takes the connection and does not go on; look at its load and at its sshd"
    )]
    TimedOut { what: String },
    #[error(
        "wrong key: the host's is not the one in `known_hosts` ({what}): if it was installed anew, put its new key there; else somebody stands in between"
    )]
    HostKey { what: String },
    #[error(
        "wrong key: it does not take ours; put the public half of `identity` into /etc/ssh/keys-USER/authorized_keys there"
    )]
    KeyRefused,
    #[error(
        "it takes our key, and refuses the login: root may not log in (`PermitRootLogin` in its sshd_config), or it is in lockdown mode"
    )]
    LoginRefused,
    #[error("ssh failed: {what}")]
    Ssh { what: String },
    #[error("`esxcfg-route` failed with exit code {code}: {said}")]
    CommandFailed { code: i32, said: String },
    #[error("unexpected output of `esxcfg-route -l`: {what}; nothing was changed")]
    Unexpected { what: String },
    #[error(
        "a route that is not ours stands there ({what}): remove it with `esxcfg-route -d`, or point it to an SCVM; nothing was changed"
    )]
    Foreign { what: String },
    #[error(
        "its next hop is {found}, which is well, and not what was to be left: another hand has changed it; nothing was changed"
    )]
    Elsewhere { found: Ipv4Addr },
    #[error("the route was set, and does not stand: {found} was read back")]
    NotTaken { found: String },
    /// Of the SCVM that tries it.
    #[error("this SCVM cannot try it: {what}")]
    Local { what: String },
}

impl DriveError {
    /// One word, as in JSON.
    pub fn name(&self) -> &'static str {
        match self {
            DriveError::Filtered { .. } => "filtered",
            DriveError::Refused => "refused",
            DriveError::Unreachable { .. } => "unreachable",
            DriveError::TimedOut { .. } => "timed_out",
            DriveError::HostKey { .. } => "host_key",
            DriveError::KeyRefused => "key_refused",
            DriveError::LoginRefused => "login_refused",
            DriveError::Ssh { .. } => "ssh",
            DriveError::CommandFailed { .. } => "command_failed",
            DriveError::Unexpected { .. } => "unexpected",
            DriveError::Foreign { .. } => "foreign",
            DriveError::Elsewhere { .. } => "elsewhere",
            DriveError::NotTaken { .. } => "not_taken",
            DriveError::Local { .. } => "local",
        }
    }
}
