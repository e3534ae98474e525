//! The case against one server: pieces of evidence, what they are worth together, and the state that follows (design §7).
//!
//! A piece is *conclusive*, or it needs another one that is *independent*: from somebody else. What has been said once may
//! be a moment's; it counts when the next word on the matter says the same.

use super::verdict::Piece;
use crate::ids::*;
use crate::proto::{EvidenceKind, Health};
use std::collections::BTreeMap;

/// Consecutive words that must say the same before a piece counts.
const CONSECUTIVE: u32 = 2;
/// Consecutive good words before a failed server counts as well again.
const RECOVERED: u32 = 3;
/// Pulses that left within this asked about one moment, by whatever paths: their answers are one word.
const MOMENT_NS: u64 = MS;

/// Whose word a piece is. Two of the same source may have one cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// The SCVM's kernel, which counts calls and replies.
    Kernel,
    /// The SCVM's agent, which has asked the server itself.
    Agent,
    /// This host's paths.
    Paths,
    Meta,
    Operator,
}

impl EvidenceKind {
    /// Enough without another piece.
    pub const fn is_conclusive(self) -> bool {
        use EvidenceKind::*;
        match self {
            ListenerGone | ProcessExit | AllPathsLost | Operator => true,
            // Busy looks the same; a path is not the server; who cannot talk to Meta may serve well.
            Silent | NullFailed | DataSilent | PathLost | CarrierLost | KeepaliveLost => false,
        }
    }

    pub const fn source(self) -> Source {
        use EvidenceKind::*;
        match self {
            ListenerGone | Silent | DataSilent => Source::Kernel,
            ProcessExit | NullFailed | CarrierLost => Source::Agent,
            PathLost | AllPathsLost => Source::Paths,
            KeepaliveLost => Source::Meta,
            Operator => Source::Operator,
        }
    }
}

/// One is conclusive, or two are independent.
pub fn is_enough<'a>(pieces: impl IntoIterator<Item = &'a Piece>) -> bool {
    let mut first: Option<Source> = None;
    pieces.into_iter().any(|piece| {
        let source = piece.kind.source();
        piece.kind.is_conclusive() || *first.get_or_insert(source) != source
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Held {
    piece: Piece,
    /// Words in a row that said so.
    said: u32,
}

/// From, to.
pub type Change = (Health, Health);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Case {
    state: Health,
    held: BTreeMap<EvidenceKind, Held>,
    /// What the last verdict rests on; kept until the server is well again.
    grounds: Vec<Piece>,
    good: u32,
    /// When the pulse left that the last word answered.
    asked_at: Option<BootNs>,
}

impl Default for Case {
    fn default() -> Case {
        Case { state: Health::Unknown, held: BTreeMap::new(), grounds: Vec::new(), good: 0, asked_at: None }
    }
}

impl Case {
    pub fn state(&self) -> Health {
        self.state
    }

    /// It has failed, and is not known to be well again.
    pub fn stands(&self) -> bool {
        matches!(self.state, Health::Failed | Health::Recovering)
    }

    /// What the verdict rests on; without one, what is held against the server as yet.
    pub fn pieces(&self) -> Vec<Piece> {
        match self.stands() {
            true => self.grounds.clone(),
            false => self.held.values().map(|held| held.piece).collect(),
        }
    }

    /// One word on everything a pulse speaks of: `against` is what it says, by `path`; the pulse left at `asked_at`. The
    /// other pieces of these sources are taken back by it.
    pub fn hear(
        &mut self,
        against: &[EvidenceKind],
        path: Path,
        asked_at: BootNs,
        now: BootNs,
    ) -> Option<Change> {
        let another = self.asked_at.is_none_or(|last| asked_at.since(last) >= MOMENT_NS);
        if another {
            self.asked_at = Some(asked_at);
        }
        // The first word counts, and then one of each moment.
        let next = |said: u32, most: u32| if another || said == 0 { (said + 1).min(most) } else { said };
        self.held.retain(|kind, _| against.contains(kind));
        for kind in against {
            let piece = Piece { kind: *kind, path: Some(path), at: now };
            let held = self.held.entry(*kind).or_insert(Held { piece, said: 0 });
            *held = Held { piece, said: next(held.said, CONSECUTIVE) };
        }
        self.good = if against.is_empty() { next(self.good, RECOVERED) } else { 0 };
        self.judge()
    }

    /// Found by this host itself, after whatever it takes to be sure of it.
    pub fn found(&mut self, kind: EvidenceKind, now: BootNs) -> Option<Change> {
        let piece = Piece { kind, path: None, at: now };
        self.held.insert(kind, Held { piece, said: CONSECUTIVE });
        self.good = 0;
        self.judge()
    }

    fn judge(&mut self) -> Option<Change> {
        let counts = || self.held.values().filter(|held| held.said >= CONSECUTIVE).map(|held| &held.piece);
        let enough = is_enough(counts());
        let next = match self.state {
            Health::Failed | Health::Recovering if self.good >= RECOVERED => Health::Healthy,
            Health::Failed | Health::Recovering if self.good > 0 => Health::Recovering,
            Health::Failed | Health::Recovering => Health::Failed,
            _ if enough => Health::Failed,
            _ if !self.held.is_empty() => Health::Suspect,
            _ => Health::Healthy,
        };
        if enough && !self.stands() {
            self.grounds = counts().copied().collect();
        }
        (next != self.state).then(|| (std::mem::replace(&mut self.state, next), next))
    }
}

#[cfg(test)]
mod tests {
    use super::EvidenceKind::*;
    use super::Health::*;
    use super::*;

    const PATH: Path = Path { scvm: ScvmId(1), network: Network::Storage };

    /// A word: what a pulse says, or what the host has found.
    #[derive(Clone, Copy)]
    enum Word {
        Says(&'static [EvidenceKind]),
        Found(EvidenceKind),
    }
    use Word::*;

    const GOOD: Word = Says(&[]);

    /// Every state, every kind of word: where it leads.
    #[test]
    fn transitions() {
        let healthy: &[Word] = &[GOOD];
        let suspect: &[Word] = &[GOOD, Says(&[Silent])];
        let failed: &[Word] = &[GOOD, Found(AllPathsLost)];
        let recovering: &[Word] = &[GOOD, Found(AllPathsLost), GOOD];
        type Row<'a> = (&'a str, &'a [Word], Health, &'a [Word], Health);
        let table: &[Row] = &[
            ("nothing heard", &[], Unknown, &[], Unknown),
            ("first word good", &[], Unknown, &[GOOD], Healthy),
            ("first word bad", &[], Unknown, &[Says(&[Silent])], Suspect),
            ("well stays well", healthy, Healthy, &[GOOD], Healthy),
            ("one word is a doubt", healthy, Healthy, &[Says(&[ListenerGone])], Suspect),
            (
                "said again it counts",
                healthy,
                Healthy,
                &[Says(&[ListenerGone]), Says(&[ListenerGone])],
                Failed,
            ),
            ("what was found counts at once", healthy, Healthy, &[Found(AllPathsLost)], Failed),
            ("busy is not dead", suspect, Suspect, &[Says(&[Silent]), Says(&[Silent])], Suspect),
            (
                "one source twice is one",
                suspect,
                Suspect,
                &[Says(&[Silent, DataSilent]), Says(&[Silent, DataSilent])],
                Suspect,
            ),
            (
                "two sources agree",
                suspect,
                Suspect,
                &[Says(&[Silent, NullFailed]), Says(&[Silent, NullFailed])],
                Failed,
            ),
            (
                "they agree for a moment",
                suspect,
                Suspect,
                &[Says(&[Silent, NullFailed]), Says(&[Silent])],
                Suspect,
            ),
            (
                "and not in turns",
                suspect,
                Suspect,
                &[Says(&[NullFailed]), Says(&[Silent]), Says(&[NullFailed])],
                Suspect,
            ),
            ("a doubt is over", suspect, Suspect, &[GOOD], Healthy),
            ("a path is not the server", healthy, Healthy, &[Found(PathLost)], Suspect),
            ("keepalive alone is nothing", healthy, Healthy, &[Found(KeepaliveLost)], Suspect),
            ("dead stays dead", failed, Failed, &[Says(&[Silent])], Failed),
            ("a sign of life", failed, Failed, &[GOOD], Recovering),
            ("not enough of them", recovering, Recovering, &[GOOD], Recovering),
            ("enough of them", recovering, Recovering, &[GOOD, GOOD], Healthy),
            ("a relapse", recovering, Recovering, &[Says(&[Silent])], Failed),
            (
                "a relapse counts from the start",
                recovering,
                Recovering,
                &[Says(&[Silent]), GOOD, GOOD],
                Recovering,
            ),
        ];
        for (name, before, from, words, to) in table {
            let mut case = Case::default();
            let mut at = BootNs(0);
            let mut say = |words: &[Word]| {
                for word in words {
                    at = at.plus(MS);
                    let was = case.state();
                    let change = match word {
                        Says(against) => case.hear(against, PATH, at, at),
                        Found(kind) => case.found(*kind, at),
                    };
                    assert_eq!(change.unwrap_or((was, was)), (was, case.state()), "{name}");
                    assert_eq!(case.stands(), matches!(case.state(), Failed | Recovering), "{name}");
                }
                case.state()
            };
            assert_eq!(say(before), *from, "{name}");
            assert_eq!(say(words), *to, "{name}");
        }
    }

    #[test]
    fn a_verdict_keeps_what_it_rests_on() {
        let mut case = Case::default();
        let hear = |case: &mut Case, against: &[EvidenceKind], at| {
            case.hear(against, PATH, BootNs(at * MS), BootNs(at * MS))
        };
        for at in [1, 2] {
            hear(&mut case, &[Silent, NullFailed], at);
        }
        let kinds = |case: &Case| case.pieces().iter().map(|p| p.kind).collect::<Vec<_>>();
        assert_eq!(kinds(&case), [Silent, NullFailed]);
        hear(&mut case, &[ListenerGone], 3);
        hear(&mut case, &[], 4);
        assert_eq!((case.state(), kinds(&case)), (Recovering, vec![Silent, NullFailed]));
        hear(&mut case, &[], 5);
        hear(&mut case, &[], 6);
        assert_eq!((case.state(), kinds(&case)), (Healthy, vec![]));
    }

    /// Paths to one server are asked in the same tick.
    #[test]
    fn a_moment_told_by_many_paths_is_one_word() {
        let mut case = Case::default();
        for (asked_us, state) in [(0, Suspect), (200, Suspect), (999, Suspect), (1000, Failed)] {
            let asked_at = BootNs(SEC + asked_us * 1000);
            case.hear(&[ListenerGone], PATH, asked_at, asked_at.plus(100));
            assert_eq!(case.state(), state, "{asked_us} us");
        }
        for (asked_us, state) in
            [(2000, Recovering), (2100, Recovering), (2200, Recovering), (4000, Recovering), (6000, Healthy)]
        {
            let asked_at = BootNs(SEC + asked_us * 1000);
            case.hear(&[], PATH, asked_at, asked_at.plus(100));
            assert_eq!(case.state(), state, "{asked_us} us");
        }
    }

    proptest::proptest! {
        /// Whatever is said in whatever order: no verdict without enough, none that is enough is missed, and no way out
        /// of one but by good words in a row.
        #[test]
        fn verdicts_follow_from_evidence(words in proptest::collection::vec(0u8..8, 1..60)) {
            let mut case = Case::default();
            let mut row = (0u8, 0u32, 0u32); // last word, its length, good ones in a row
            for (i, word) in words.into_iter().enumerate() {
                let kinds: Vec<EvidenceKind> = [(1, ListenerGone), (2, Silent), (4, NullFailed)]
                    .into_iter().filter(|(bit, _)| word & bit != 0).map(|(_, kind)| kind).collect();
                // Bits said by this word and the one before count.
                let both = if i == 0 { 0 } else { word & row.0 };
                let was = case.stands();
                let at = BootNs(i as u64 * MS);
                case.hear(&kinds, PATH, at, at);
                row = (word, row.1 + 1, if word == 0 { row.2 + 1 } else { 0 });
                let enough = both & 1 != 0 || both & 6 == 6;
                let expected = if was { row.2 < 3 } else { enough };
                proptest::prop_assert_eq!(case.stands(), expected);
            }
        }
    }
}
