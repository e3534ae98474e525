//! A server that answers, and whose storage does not.

use super::*;

/// A server that answers NULL and nothing that needs its storage is waited for this long: longer than a slow server or a
/// storage that elects should take.
const STORAGE_HUNG_NS: u64 = 5 * SEC;

impl Machine {
    /// The server answers, its storage does not: left only for a server that is seen to reach its own. True: that is
    /// the matter now, whatever came of it.
    pub(super) fn leave_stuck_storage(&mut self, login: Current, now: BootNs, fx: &mut Effects) -> bool {
        let server = self.servers.get(&login.scvm).filter(|s| s.facts.is_some_and(|f| f.data_silent));
        let since = server.and_then(|s| s.without_storage_since);
        let Some(stuck_ns) = since.map(|at| now.since(at)).filter(|ns| *ns >= STORAGE_HUNG_NS) else {
            self.faults.remove("storage");
            return false;
        };
        let reaches = |p: Path| self.servers.get(&p.scvm).is_some_and(|s| s.reaches_storage(stuck_ns));
        let to = self.best(now, |p| p.scvm != login.scvm && reaches(p));
        let may_move = self.meta_is_usable(now) && self.budget.left(now) > 0;
        match to.filter(|_| may_move) {
            Some(to) => {
                let reason = format!(
                    "no call for data is answered by {} for {} ms, and {} answers them",
                    login.scvm,
                    STORAGE_HUNG_NS / MS,
                    to.scvm
                );
                let pieces = vec![Piece { kind: EvidenceKind::DataSilent, path: None, at: now }];
                self.stuck.insert(login.scvm, now);
                self.ask(to, false, reason, pieces, now, fx);
            }
            None => {
                let why = match to {
                    Some(_) => "no move can be asked for now",
                    None => "no other server is seen to answer them",
                };
                let what = format!("no call for data is answered by {}, and {why}: staying", login.scvm);
                self.fault("storage", what, fx);
            }
        }
        true
    }

    /// Nothing speaks against its storage: not its kernel, and it was not left for that.
    pub(super) fn storage_is_well(&self, scvm: ScvmId) -> bool {
        let silent = self.servers.get(&scvm).and_then(|s| s.facts).is_some_and(|f| f.data_silent);
        !silent && !self.stuck.contains_key(&scvm)
    }

    /// A server that was left counts as stuck until it has answered a call for data since. One without clients cannot:
    /// it is tried again after the longest wait for a return.
    pub(super) fn storage_heard(&mut self, scvm: ScvmId, facts: &Facts, now: BootNs) {
        if let Some(left_ns) = self.stuck.get(&scvm).map(|at| now.since(*at))
            && !facts.data_silent
            && (facts.data_reply_age_ns < left_ns || left_ns >= self.settings.hold_down_max_ns)
        {
            self.stuck.remove(&scvm);
        }
    }
}
