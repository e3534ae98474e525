//! What the old loop decides in a round, out of the session list and the pings. Pure.

use reroute_core::ids::BootNs;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

/// An access server as the session list shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    pub id: u32,
    pub storage: Ipv4Addr,
    pub management: Ipv4Addr,
    /// Its last keepalive is younger than 8 s.
    pub alive: bool,
}

/// One round: what was seen.
#[derive(Clone, Debug)]
pub struct Round {
    pub sessions: Vec<Session>,
    /// Who answered a ping.
    pub answer: BTreeSet<Ipv4Addr>,
    /// Next hop of the route to the service address.
    pub hop: Option<Ipv4Addr>,
    /// Among equals the choice is random: by this.
    pub lot: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Stay(&'static str),
    Go { to: Ipv4Addr, why: &'static str },
}

/// What it remembers from round to round.
#[derive(Clone, Debug)]
pub struct OldLoop {
    /// The SCVM beside this host.
    local: u32,
    /// The local one must have been healthy for so long before a target that works is left for it.
    stable: Duration,
    local_since: Option<BootNs>,
}

impl OldLoop {
    pub fn new(local: u32, stable: Duration) -> OldLoop {
        OldLoop { local, stable, local_since: None }
    }

    /// A server is healthy by an address when its session is alive **and** that address answers ping. A target that
    /// works is left for the local SCVM's storage address alone: also when it is a management address.
    pub fn decide(&mut self, round: &Round, now: BootNs) -> Decision {
        let healthy = |address: Ipv4Addr, s: &Session| s.alive && round.answer.contains(&address);
        let home =
            round.sessions.iter().find(|s| s.id == self.local).map(|s| (s.storage, healthy(s.storage, s)));
        let home_is_well = home.is_some_and(|(_, well)| well);
        self.local_since = home_is_well.then(|| self.local_since.unwrap_or(now));
        let here_is_well = round.sessions.iter().any(|s| {
            round.hop.is_some_and(|hop| (hop == s.storage || hop == s.management) && healthy(hop, s))
        });
        let at_home = home.is_some_and(|(address, _)| round.hop == Some(address));
        if here_is_well {
            let stable =
                self.local_since.is_some_and(|at| Duration::from_nanos(now.since(at)) >= self.stable);
            return match home {
                _ if at_home => Decision::Stay("local scvm is well"),
                Some((to, _)) if stable => {
                    Decision::Go { to, why: "local scvm active, try to route to local scvm" }
                }
                _ => Decision::Stay("the session of local scvm is not stable"),
            };
        }
        if let Some((to, true)) = home {
            return Decision::Go { to, why: "the target is not healthy, local scvm is" };
        }
        let well = |address: fn(&Session) -> Ipv4Addr| -> Vec<Ipv4Addr> {
            let others = round.sessions.iter().filter(|s| healthy(address(s), s));
            others.map(address).collect()
        };
        for (targets, why) in [
            (well(|s| s.storage), "the target is not healthy, another scvm is by storage"),
            (well(|s| s.management), "no storage address is healthy, a management address is"),
        ] {
            if let Some(to) = targets.get(round.lot % targets.len().max(1)) {
                return Decision::Go { to: *to, why };
            }
        }
        Decision::Stay("nobody is healthy")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STABLE: Duration = Duration::from_secs(180);

    fn storage(i: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 10, 85, 20 + i)
    }
    fn management(i: u8) -> Ipv4Addr {
        Ipv4Addr::new(192, 168, 85, 20 + i)
    }
    fn at(seconds: u64) -> BootNs {
        BootNs(seconds * 1_000_000_000)
    }

    /// Everybody is alive and answers by both networks; the route leads to the local one, 1.
    fn round() -> Round {
        let session =
            |i: u8| Session { id: u32::from(i), storage: storage(i), management: management(i), alive: true };
        Round {
            sessions: (1..=3).map(session).collect(),
            answer: (1..=3).flat_map(|i| [storage(i), management(i)]).collect(),
            hop: Some(storage(1)),
            lot: 0,
        }
    }

    fn goes(decision: &Decision) -> Option<Ipv4Addr> {
        match decision {
            Decision::Go { to, .. } => Some(*to),
            Decision::Stay(_) => None,
        }
    }

    #[test]
    fn either_a_lost_session_or_a_silent_address_is_enough_to_go() {
        let mut old = OldLoop::new(1, STABLE);
        assert_eq!(old.decide(&round(), at(0)), Decision::Stay("local scvm is well"));
        let mut lost = round();
        lost.sessions[0].alive = false;
        assert_eq!(goes(&old.decide(&lost, at(3))), Some(storage(2)));
        let mut silent = round();
        silent.answer.remove(&storage(1));
        silent.lot = 1;
        assert_eq!(goes(&old.decide(&silent, at(6))), Some(storage(3)));
    }

    #[test]
    fn management_comes_last_and_nobody_means_to_stay() {
        let mut old = OldLoop::new(1, STABLE);
        let mut cut = round();
        cut.answer.retain(|a| a.octets()[0] == 192);
        cut.lot = 4;
        assert_eq!(goes(&old.decide(&cut, at(0))), Some(management(2)));
        cut.answer.clear();
        assert_eq!(old.decide(&cut, at(3)), Decision::Stay("nobody is healthy"));
    }

    #[test]
    fn it_goes_home_after_180_s_without_a_break_and_stays_on_management_until_then() {
        let mut old = OldLoop::new(1, STABLE);
        let mut away = round();
        away.hop = Some(management(2));
        assert!(goes(&old.decide(&away, at(0))).is_none());
        assert!(goes(&old.decide(&away, at(179))).is_none());
        // A break, and all of it begins anew.
        let mut broken = away.clone();
        broken.sessions[0].alive = false;
        assert!(goes(&old.decide(&broken, at(179))).is_none());
        assert!(goes(&old.decide(&away, at(182))).is_none());
        assert!(goes(&old.decide(&away, at(361))).is_none());
        assert_eq!(goes(&old.decide(&away, at(362))), Some(storage(1)));
    }

    #[test]
    fn a_target_that_fails_is_left_for_home_whether_that_is_stable_or_not() {
        let mut old = OldLoop::new(1, STABLE);
        let mut away = round();
        away.hop = Some(storage(2));
        away.answer.remove(&storage(2));
        assert_eq!(goes(&old.decide(&away, at(0))), Some(storage(1)));
        away.hop = None;
        assert_eq!(goes(&old.decide(&away, at(3))), Some(storage(1)));
    }
}
