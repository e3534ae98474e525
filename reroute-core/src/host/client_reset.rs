//! Sockets from before a move that this kernel does not destroy: the server is asked to have them end (adr/0026).
//!
//! Only once the route stands and the login is acted on, and only for those bound to the address by which the server is
//! reached now: what the others send reaches nobody who could answer. Asked again while they stay, a few times; what
//! is left then ends by TCP's own timer, as it would have without us.

use super::phase::Phase;
use super::*;

/// Longer than the 500 ms within which a TCP answers only one segment that fits nothing.
const ASK_NS: u64 = 600 * MS;
/// After a question that nobody took, and twice as long after each more.
const UNHEARD_NS: u64 = 100 * MS;
/// Of those, some 25 s in all: what is left then is TCP's.
const UNHEARD: u32 = 8;
const LOOK_NS: u64 = 50 * MS;
const ROUNDS: u32 = 6;

/// A socket to the service address, by the network whose address of this host it is bound to (None: another address).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct OldSocket {
    pub network: Option<Network>,
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct ClientReset {
    epoch: Epoch,
    path: Path,
    connections: u32,
    left: u32,
    /// The server's own ends go, too: the connections are with this very server.
    own: bool,
    began: BootNs,
    rounds: u32,
    /// Questions that nobody took.
    unheard: u32,
    ask_at: BootNs,
    /// None: it is over.
    look_at: Option<BootNs>,
}

/// Connections that this host's kernel could not end, as its operator sees them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ResetStanding {
    pub epoch: Epoch,
    pub path: Path,
    pub connections: u32,
    /// Still there, when last looked at.
    pub left: u32,
    /// How often the server was asked.
    pub asked: u32,
    /// Since it was asked first.
    pub age_ns: u64,
}

impl ClientReset {
    pub fn standing(&self, now: BootNs) -> ResetStanding {
        ResetStanding {
            epoch: self.epoch,
            path: self.path,
            connections: self.connections,
            left: self.left,
            asked: self.rounds,
            age_ns: now.since(self.began),
        }
    }
}

fn ports(sockets: &[OldSocket], network: Network) -> Vec<u16> {
    sockets.iter().filter(|s| s.network == Some(network)).map(|s| s.port).collect()
}

impl Machine {
    /// The answer of a kernel that destroys no sockets.
    pub(super) fn sockets_stay(&mut self, sockets: Vec<OldSocket>, now: BootNs, fx: &mut Effects) {
        self.faults.remove("sockets");
        let own = !matches!(&self.phase, Phase::Arriving(arriving) if !arriving.trip.same_server);
        self.sockets_done(now, fx);
        let stands = self.login.filter(|l| matches!(self.phase, Phase::Settled) && self.may_affirm(l.epoch));
        let path = self.route.wanted.filter(|path| self.route.stands(*path));
        let (Some(login), Some(path)) = (stands, path.filter(|p| stands.is_some_and(|l| l.scvm == p.scvm)))
        else {
            return;
        };
        let ports = ports(&sockets, path.network);
        let others = sockets.len() - ports.len();
        if others > 0 {
            let what = format!(
                "{others} connections stay that are bound to another address of this host than the one on {}, and this kernel destroys none: they end when TCP or the NFS client gives them up",
                path.network
            );
            self.fault("stay", what, fx);
        } else {
            self.faults.remove("stay");
        }
        let count = ports.len() as u32;
        if count == 0 {
            return;
        }
        let (epoch, look_at) = (login.epoch, Some(now));
        self.client_reset = Some(ClientReset {
            epoch,
            path,
            connections: count,
            left: count,
            own,
            began: now,
            rounds: 0,
            unheard: 0,
            ask_at: now,
            look_at,
        });
        self.ask_for_reset(ports, now, fx);
    }

    fn ask_for_reset(&mut self, mut ports: Vec<u16>, now: BootNs, fx: &mut Effects) {
        let Some(reset) = &mut self.client_reset else { return };
        ports.truncate(MOST_RESET);
        reset.rounds += 1;
        reset.ask_at = now.plus(ASK_NS);
        reset.look_at = Some(now.plus(LOOK_NS));
        let (epoch, path, round, own) = (reset.epoch, reset.path, reset.rounds, reset.own);
        let connections = ports.len() as u32;
        fx.push(Effect::Meta(ToMeta::ResetWanted { epoch, network: path.network, ports, own }));
        fx.push(Effect::Journal(Event::ResetAsked { scvm: path.scvm, epoch, connections, round }));
    }

    /// Looks after those that were there.
    pub(super) fn watch_sockets(&mut self, now: BootNs, fx: &mut Effects) {
        let stands = matches!(self.phase, Phase::Settled | Phase::Asked(_));
        let (login, wanted) = (self.login, self.route.wanted);
        let Some(reset) = &mut self.client_reset else { return };
        if !stands || login.is_none_or(|l| l.epoch != reset.epoch) || wanted != Some(reset.path) {
            // What stays after the next arrival is found then.
            reset.look_at = None;
        }
        if reset.look_at.is_some_and(|at| at <= now) {
            reset.look_at = Some(now.plus(SEC));
            fx.push(Effect::FindSockets);
        }
    }

    pub(super) fn sockets_found(
        &mut self,
        found: Result<Vec<OldSocket>, String>,
        now: BootNs,
        fx: &mut Effects,
    ) {
        let Some(reset) = self.client_reset.as_mut().filter(|r| r.look_at.is_some()) else { return };
        let ports = match found {
            Ok(sockets) => ports(&sockets, reset.path.network),
            Err(why) => {
                reset.look_at = Some(now.plus(ASK_NS));
                return self.fault("sockets", format!("old sockets cannot be looked for: {why}"), fx);
            }
        };
        reset.left = ports.len() as u32;
        if ports.is_empty() {
            reset.look_at = None;
            let (connections, took_ns) = (reset.connections, now.since(reset.began));
            self.faults.remove("sockets");
            return fx.push(Effect::Journal(Event::OldConnectionsEnded { connections, took_ns }));
        }
        if now < reset.ask_at {
            reset.look_at = Some(now.plus(LOOK_NS));
        } else if reset.rounds < ROUNDS {
            self.ask_for_reset(ports, now, fx);
        } else {
            reset.look_at = None;
            let what = format!(
                "{} old connections have not ended after {ROUNDS} resets by {}: they end by TCP's own timer",
                ports.len(),
                reset.path.scvm
            );
            self.fault("sockets", what, fx);
        }
    }

    /// Nobody took the question.
    pub(super) fn reset_unheard(&mut self, epoch: Epoch, now: BootNs) {
        if let Some(reset) = self.client_reset.as_mut().filter(|r| r.epoch == epoch) {
            reset.rounds = reset.rounds.saturating_sub(1);
            reset.ask_at = now.plus(UNHEARD_NS << reset.unheard);
            reset.unheard += 1;
            if reset.unheard == UNHEARD {
                reset.look_at = None;
            }
        }
    }

    /// The login at that epoch is over.
    pub(super) fn reset_over(&mut self, epoch: Epoch) {
        if let Some(reset) = self.client_reset.as_mut().filter(|r| r.epoch == epoch) {
            reset.look_at = None;
        }
    }
}
