//! Whether another station answers for this node's own storage address (address conflict detection, RFC 5227).
//!
//! Every node asks for its own address, in nobody's name: whoever answers is one too many, and nobody's idea of who has
//! the address changes by the question. (Who asks for *another's* address in his own name gets both answers, and his
//! kernel may take the wrong one for true.) Nobody moves for it: who knows the right neighbour goes on with it.

use crate::ids::*;
use crate::sweep::Mac;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Everybody on the network hears the question: it is asked seldom, while nothing is wrong.
const EVERY_NS: u64 = 10 * SEC;
/// ... and more often when somebody has answered, until nobody does.
const AGAIN_NS: u64 = SEC;
/// Times in a row: an address may be on its way from one NIC to another.
const TIMES: u32 = 2;
/// An answer that never comes must not end the story.
const LOST_NS: u64 = 10 * SEC;

/// Who else answers for an address of ours.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Claims {
    pub address: IpAddr,
    pub macs: BTreeSet<Mac>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Watch {
    asked_at: Option<BootNs>,
    waits: bool,
    /// Times in a row that somebody has answered.
    claimed: u32,
    found: Option<String>,
    /// Why nobody could be asked, as said last.
    failed: Option<String>,
}

impl Watch {
    /// True: it is to be asked now, and [`Watch::answered`] comes of it.
    pub fn is_due(&mut self, now: BootNs) -> bool {
        let every = match (self.waits, self.claimed) {
            (true, _) => LOST_NS,
            (false, 0) => EVERY_NS,
            (false, _) => AGAIN_NS,
        };
        let due = self.asked_at.is_none_or(|at| now.since(at) >= every);
        if due {
            (self.asked_at, self.waits) = (Some(now), true);
        }
        due
    }

    /// Gives what is news.
    pub fn answered(&mut self, answered: Result<Claims, String>) -> Option<String> {
        self.waits = false;
        let claims = match answered {
            Ok(claims) => claims,
            // No evidence of anything: what was found stands.
            Err(why) => {
                let news = self.failed.as_ref() != Some(&why);
                self.failed = Some(why.clone());
                return news.then(|| format!("nobody can be asked whether an address is used twice: {why}"));
            }
        };
        self.failed = None;
        self.claimed = if claims.macs.is_empty() { 0 } else { self.claimed.saturating_add(1) };
        if self.claimed == 0 {
            self.found = None;
        }
        if self.claimed < TIMES {
            return None;
        }
        let macs: Vec<String> = claims.macs.iter().map(Mac::to_string).collect();
        let found = format!(
            "duplicate address: {} is used by {} too, by its answer to ARP: take it from that station",
            claims.address,
            macs.join(" and ")
        );
        let news = self.found.as_ref() != Some(&found);
        self.found = Some(found.clone());
        news.then_some(found)
    }

    /// What is wrong now.
    pub fn found(&self) -> Option<&String> {
        self.found.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(macs: &[u8]) -> Result<Claims, String> {
        let macs = macs.iter().map(|last| Mac([2, 0, 0, 0, 0, *last])).collect();
        Ok(Claims { address: [10, 10, 85, 21].into(), macs })
    }

    #[test]
    fn a_second_answer_is_named_once_and_forgotten_when_it_ends() {
        let mut watch = Watch::default();
        assert_eq!(watch.answered(claims(&[])), None);
        assert_eq!(watch.answered(claims(&[7])), None, "it may be on its way");
        let named = watch.answered(claims(&[7])).expect("news");
        assert!(
            named.starts_with("duplicate address: 10.10.85.21 is used by 02:00:00:00:00:07 too"),
            "{named}"
        );
        assert_eq!(watch.answered(claims(&[7])), None, "no news");
        assert!(watch.answered(Err("gone".into())).expect("news").contains("gone"));
        assert_eq!(watch.answered(Err("gone".into())), None);
        assert_eq!(watch.found(), Some(&named), "not to know is no end");
        assert_eq!(watch.answered(claims(&[])), None);
        assert_eq!(watch.found(), None);
        assert_eq!(watch.answered(claims(&[8])), None, "from the beginning");
    }

    #[test]
    fn it_is_asked_seldom_and_often_while_somebody_answers() {
        let at = |ms: u64| BootNs(SEC + ms * MS);
        let mut watch = Watch::default();
        assert!(watch.is_due(at(0)));
        assert!(!watch.is_due(at(9_999)), "an answer is waited for");
        assert_eq!(watch.answered(claims(&[])), None);
        assert!(!watch.is_due(at(9_999)));
        assert!(watch.is_due(at(10_000)));
        assert_eq!(watch.answered(claims(&[7])), None);
        assert!(!watch.is_due(at(10_999)));
        assert!(watch.is_due(at(11_000)));
        assert!(watch.is_due(at(21_000)), "the answer is lost");
    }
}
