//! Whether another SCVM answers this one, by any network.

use crate::config::Config;
use crate::sweep::{Options, sweep};
use reroute_core::ids::{MS, ScvmId};
use reroute_core::sweep::{Outcome, Settings};
use std::net::Ipv4Addr;

/// Small enough for every network: this asks for a sign of life, not for the MTU.
const BYTES: u16 = 576;
const ASKED: Settings = Settings { tries: 3, patience_ns: 30 * MS, longest_patience_ns: 50 * MS };

/// True: none of its addresses answers, though some of the other SCVMs' do. Who reaches nobody says something of
/// itself, and so does one whose requests do not leave. Blocks for 150 ms at most.
pub fn is_silent(config: &Config, own: ScvmId, scvm: ScvmId) -> std::io::Result<bool> {
    let others = config.cluster.scvms.iter().filter(|s| s.id != own);
    let all: Vec<(ScvmId, Ipv4Addr)> =
        others.flat_map(|s| [(s.id, s.storage), (s.id, s.management)]).collect();
    let addresses: Vec<Ipv4Addr> = all.iter().map(|(_, at)| *at).collect();
    let report = sweep(&addresses, &Options { interface: None, mtu: BYTES, settings: ASKED })?;
    let ids: Vec<ScvmId> = all.iter().map(|(id, _)| *id).collect();
    Ok(verdict(scvm, &ids, &report.outcomes))
}

fn verdict(scvm: ScvmId, ids: &[ScvmId], outcomes: &[Outcome]) -> bool {
    let answers = |o: &Outcome| matches!(o, Outcome::Answers { .. } | Outcome::SmallOnly { .. });
    let mut of_it = ids.iter().zip(outcomes).filter(|(id, _)| **id == scvm).peekable();
    let asked = of_it.peek().is_some();
    asked
        && of_it.all(|(_, o)| matches!(o, Outcome::Silent | Outcome::Refused(_)))
        && ids.iter().zip(outcomes).any(|(id, o)| *id != scvm && answers(o))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silent_is_who_answers_by_no_network_while_others_do() {
        let ids = [ScvmId(2), ScvmId(2), ScvmId(3), ScvmId(3)];
        let yes = Outcome::Answers { rtt_ns: 1 };
        let no = Outcome::Silent;
        assert!(verdict(ScvmId(2), &ids, &[no, no, yes, no]));
        assert!(!verdict(ScvmId(2), &ids, &[no, yes, yes, yes]), "one network is enough");
        assert!(!verdict(ScvmId(2), &ids, &[no, no, no, no]), "nobody answers: that is about this one");
        assert!(!verdict(ScvmId(9), &ids, &[no, no, yes, yes]), "nobody asked for it");
    }
}
