//! Do full frames pass where pulses do? By ICMP echo, full-size and small, to the SCVMs that matter now ([`crate::sweep`]).
//!
//! A second opinion, and never a verdict alone: silence says nothing (echoes may be filtered), and what is lost now and
//! then looks the same for a moment. Held against the path is that small echoes are answered and full ones are not, where
//! both were at this MTU, many times in a row: then it is no place to go to. It is left only if a TCP of an NFS client on
//! this host waits, too: pulses pass then, and NFS does not.

use super::*;
use crate::sweep::{Obstacle, Outcome};

const EVERY_NS: u64 = 500 * MS;
/// ... and while there is a doubt.
const AGAIN_NS: u64 = 50 * MS;
/// A sweep that never ends must not be the last.
const LOST_NS: u64 = 5 * SEC;
/// Sweeps in a row. Of a queue that drops three full frames in ten and few small ones, one in eight looks like this.
const TIMES: u32 = 6;

/// One path of a sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Tried {
    pub path: Path,
    /// Of this host's interface: what a full frame was.
    pub mtu: u32,
    pub outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SizesTried {
    pub paths: Vec<Tried>,
    /// A TCP of an NFS client on this host waits: for an acknowledgement, and has sent again; or for what answers the last
    /// thing it sent. None: that could not be seen, or nobody asked.
    pub waits: Option<bool>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Seen {
    /// The MTU at which full frames passed last.
    passed: Option<u32>,
    /// In a row.
    small_only: u32,
    /// Sweeps in a row that said nothing of the sort.
    otherwise: u32,
}

impl Seen {
    fn otherwise(&mut self) -> bool {
        (self.small_only, self.otherwise) = (0, (self.otherwise + 1).min(TIMES));
        self.otherwise == TIMES
    }
}

/// What passes by a path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fits {
    All,
    /// Small echoes alone: no place to go to.
    Small,
    /// ... and a client waits there: the path is lost.
    Lost,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Sizes {
    asked_at: Option<BootNs>,
    waits: bool,
    seen: BTreeMap<Path, Seen>,
}

impl Machine {
    /// Full frames are tried on the paths that matter.
    pub fn with_size_checks(mut self) -> Machine {
        self.sizes = Some(Sizes::default());
        self
    }

    pub(super) fn try_sizes(&mut self, now: BootNs, fx: &mut Effects) {
        let paths: Vec<Path> = self
            .paths
            .iter()
            .filter(|(p, state)| {
                p.network != Network::Private && state.interval_ns <= self.settings.standby_ns
            })
            .map(|(path, _)| *path)
            .filter(|p| self.has_carrier(p.network))
            .collect();
        let Some(sizes) = &mut self.sizes else { return };
        let doubtful = |s: &Seen| s.passed.is_some() && (1..TIMES).contains(&s.small_only);
        let doubt = paths.iter().any(|path| sizes.seen.get(path).is_some_and(doubtful));
        let every = match (sizes.waits, doubt) {
            (true, _) => LOST_NS,
            (false, true) => AGAIN_NS,
            (false, false) => EVERY_NS,
        };
        if !paths.is_empty() && sizes.asked_at.is_none_or(|at| now.since(at) >= every) {
            (sizes.asked_at, sizes.waits) = (Some(now), true);
            fx.push(Effect::TrySizes(paths));
        }
    }

    pub(super) fn sizes_tried(&mut self, result: Result<SizesTried, String>, now: BootNs, fx: &mut Effects) {
        let Some(sizes) = &mut self.sizes else { return };
        sizes.waits = false;
        let mut changes = Vec::new();
        match &result {
            Ok(SizesTried { paths, waits }) => {
                for Tried { path, mtu, outcome } in paths {
                    let seen = sizes.seen.entry(*path).or_default();
                    match outcome {
                        Outcome::Answers { .. } => {
                            *seen = Seen { passed: Some(*mtu), ..Seen::default() };
                            changes.push((*path, Fits::All));
                        }
                        Outcome::SmallOnly { told, .. }
                            if !matches!(told, Some(Obstacle::NotSent { .. })) =>
                        {
                            (seen.small_only, seen.otherwise) = ((seen.small_only + 1).min(TIMES), 0);
                            if seen.small_only == TIMES && seen.passed == Some(*mtu) {
                                // Nobody needs to go there; to leave it takes a client that suffers.
                                let lost = *waits == Some(true) && self.route.wanted == Some(*path);
                                changes.push((*path, if lost { Fits::Lost } else { Fits::Small }));
                            }
                        }
                        // Filtered, or lost like anything else (pulses say which); or not sent at all.
                        _ => changes.extend(seen.otherwise().then_some((*path, Fits::All))),
                    }
                }
            }
            Err(_) => {
                let seen = sizes.seen.iter_mut();
                changes
                    .extend(seen.filter_map(|(path, seen)| seen.otherwise().then_some((*path, Fits::All))));
            }
        }
        if let Err(why) = result {
            self.fault("sizes", format!("full frames cannot be tried: {why}"), fx);
        } else {
            self.tell_sizes(fx);
        }
        let mut news = false;
        for (path, fits) in changes {
            let narrow = fits == Fits::Lost;
            let Some(state) = self.paths.get_mut(&path) else { continue };
            let small_only = fits != Fits::All;
            if std::mem::replace(&mut state.small_only, small_only) && !small_only {
                // Whatever pulses said meanwhile: well it is from now on.
                state.healthy_since = state.healthy_since.map(|_| now);
            }
            // Once lost it stays so until full frames pass: nobody suffers where nobody is.
            if state.narrow == narrow || state.narrow && fits == Fits::Small {
                continue;
            }
            state.narrow = narrow;
            news = true;
            if narrow {
                let former = state.fail();
                self.tell_health(path, former, "full frames do not pass, small ones do: MTU", fx);
            }
        }
        if news {
            self.decide(now, fx);
            self.report_to_meta(now, fx);
        }
    }

    /// Names the paths by which full frames do not pass, and pulses do.
    fn tell_sizes(&mut self, fx: &mut Effects) {
        let Some(sizes) = &self.sizes else { return };
        let named: Vec<String> = sizes
            .seen
            .iter()
            .filter(|(_, s)| s.small_only == TIMES)
            .map(|(path, _)| path.to_string())
            .collect();
        if named.is_empty() {
            drop(self.faults.remove("sizes"));
        } else {
            let what =
                format!("full frames do not pass by {}: is the MTU the same all the way?", named.join(", "));
            self.fault("sizes", what, fx);
        }
    }
}
