//! A server that answers, and whose storage does not.

use super::*;

/// A server that answers NULL and nothing that needs its storage is waited for this long: longer than a disk that is
/// reset, or a storage that elects, should take.
const STORAGE_HUNG_NS: u64 = 2 * SEC;
impl Machine {
    /// The server answers, its storage does not: left only for a server that is seen to reach its own. True: that is
    /// the matter now, whatever came of it.
    pub(super) fn leave_stuck_storage(&mut self, login: Current, now: BootNs, fx: &mut Effects) -> bool {
        let since = self.servers.get(&login.scvm).and_then(|s| s.without_storage_since);
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
}
