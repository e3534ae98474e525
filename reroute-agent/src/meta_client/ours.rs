//! Which Meta is ours: by its cluster id, and by its term. What another one says is refused, and named once.

use reroute_core::ids::Term;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

#[derive(Debug, Default)]
pub(super) struct Ours {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The highest heard of.
    term: Term,
    /// Who is not ours, and why.
    strangers: BTreeMap<SocketAddr, String>,
}

impl Ours {
    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A genuine answer or line of `term`. `Err`: of a leader that is over.
    pub(super) fn hears(&self, term: Term) -> Result<(), String> {
        self.with(|s| {
            if term < s.term {
                return Err(over(term, s.term));
            }
            s.term = term;
            Ok(())
        })
    }

    /// A connection begins with this: whose it is. The flag says whether that is news.
    pub(super) fn greets(
        &self,
        address: SocketAddr,
        term: Term,
        theirs: &str,
        ours: &str,
    ) -> Result<(), (String, bool)> {
        let wrong = if theirs != ours {
            Some(format!(
                "Meta at {address} is of cluster {theirs:?}, this node of {ours:?}: correct [cluster] id, or take {address} out of [cluster] meta"
            ))
        } else {
            self.hears(term).err().map(|why| format!("Meta at {address} {why}"))
        };
        self.with(|s| match wrong {
            None => {
                s.strangers.remove(&address);
                Ok(())
            }
            Some(why) => {
                // The terms grow with each start: it is the same story.
                let news = !s.strangers.contains_key(&address);
                s.strangers.insert(address, why.clone());
                Err((why, news))
            }
        })
    }

    /// In words, for `status`.
    pub(super) fn problems(&self) -> Vec<String> {
        self.with(|s| s.strangers.values().cloned().collect())
    }
}

fn over(term: Term, known: Term) -> String {
    format!(
        "speaks in {term}, which is over ({known} is known): two Metas run on different stores, stop the one that is not to be"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_cluster_and_a_lower_term_are_named_once_each() {
        let ours = Ours::default();
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        ours.greets(at(1), Term(5), "a", "a").unwrap();
        let (why, news) = ours.greets(at(2), Term(9), "b", "a").unwrap_err();
        assert!(news && why.contains("\"b\"") && why.contains("correct"), "{why}");
        assert!(!ours.greets(at(2), Term(10), "b", "a").unwrap_err().1, "said once");
        ours.hears(Term(5)).unwrap();
        let (why, news) = ours.greets(at(3), Term(4), "a", "a").unwrap_err();
        assert!(news && why.contains("two Metas"), "{why}");
        assert_eq!(ours.problems().len(), 2);
        // It was restarted, and is the leader now.
        ours.greets(at(3), Term(6), "a", "a").unwrap();
        assert_eq!(ours.problems().len(), 1);
        assert!(ours.hears(Term(5)).is_err());
    }
}
