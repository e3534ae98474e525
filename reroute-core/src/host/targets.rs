//! What is fit to be gone to: by fresh evidence of its own.

use super::choice::rank;
use super::moves::has_no_session;
use super::path::STREAK;
use super::*;

/// After a message that Meta did not take, Meta counts as out of reach for this long.
const META_AWAY_NS: u64 = SEC;

impl Machine {
    pub(super) fn meta_is_usable(&self, now: BootNs) -> bool {
        self.meta_up
            && !self.is_kept_away(now)
            && self.meta_failed_at.is_none_or(|at| now.since(at) >= META_AWAY_NS)
    }

    /// The path carries: it is healthy now, by answers of its own.
    pub(super) fn is_usable(&self, path: Path, now: BootNs) -> bool {
        let Some(state) = self.paths.get(&path) else { return false };
        let fresh_ns = 3 * state.interval_ns.min(self.settings.standby_ns);
        path.network != Network::Private
            && self.has_carrier(path.network)
            && state.health == Health::Healthy
            && state.streak >= STREAK
            && !state.is_overdue(now)
            && state.last_reply.is_some_and(|at| now.since(at) <= fresh_ns)
            && !self.has_failed(path.scvm)
    }

    /// The path carries, and the server there can take a client.
    pub(super) fn is_eligible(&self, path: Path, now: BootNs) -> bool {
        let session = self.sessions.get(&path.scvm);
        self.is_usable(path, now)
            && self.servers.get(&path.scvm).and_then(|s| s.facts).is_some_and(|f| f.is_well() && f.enforcing)
            && !has_no_session(session)
            && !self.draining.contains(&path.scvm)
            && self.refused.get(&path.scvm).is_none_or(|until| now >= *until)
    }

    /// Fit to be gone to from a server that is well.
    pub(super) fn is_fit(&self, path: Path, from: ScvmId, now: BootNs) -> bool {
        match path.scvm == from {
            _ if self.passes_small_only(path) => false,
            true => self.is_usable(path, now),
            false => self.is_eligible(path, now) && self.storage_is_well(path.scvm),
        }
    }

    pub(super) fn best(&self, now: BootNs, wanted: impl Fn(Path) -> bool) -> Option<Path> {
        let paths = self.paths.keys().copied();
        paths
            .filter(|p| wanted(*p) && self.is_eligible(*p, now))
            .min_by_key(|p| self.preference_key(*p, None))
    }

    pub(super) fn passes_small_only(&self, path: Path) -> bool {
        self.paths.get(&path).is_some_and(|p| p.small_only)
    }

    /// Those whose storage is well and whose path takes full frames first; rank; then the server the host is at; then its own order.
    pub(super) fn preference_key(&self, path: Path, at: Option<ScvmId>) -> (bool, u8, bool, usize) {
        let position = self.position.get(&path.scvm).copied().unwrap_or(usize::MAX);
        let worse = !self.storage_is_well(path.scvm) || self.passes_small_only(path);
        (worse, rank(path, self.settings.local), at.is_some_and(|at| at != path.scvm), position)
    }

    /// How long path and server have been well without a break. The server that serves this host anyway is no better and
    /// no worse by another network: of that one, the path alone counts.
    pub(super) fn stable_ns(&self, path: Path, now: BootNs) -> u64 {
        let path_since = self.paths.get(&path).and_then(|s| s.healthy_since);
        let server_since = match self.served_by() == Some(path.scvm) {
            true => path_since,
            false => self.servers.get(&path.scvm).and_then(|s| s.well_since),
        };
        match (path_since, server_since) {
            (Some(a), Some(b)) => now.since(a.max(b)),
            _ => 0,
        }
    }
}
