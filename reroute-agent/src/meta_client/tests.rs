use super::stream::{Seen, Verdict};
use reroute_core::ids::{Epoch, ScvmId, Term};
use reroute_core::proto::{FromMeta, Order};

fn at(term: u64, seq: u64) -> FromMeta {
    FromMeta { term: Term(term), seq, order: Order::At { scvm: ScvmId(1), epoch: Epoch(1) } }
}

#[test]
fn copies_and_old_terms_are_known_whatever_their_order() {
    let mut seen = Seen::default();
    assert_eq!(seen.judge(&at(2, 5)), Verdict::New);
    assert_eq!(seen.judge(&at(2, 4)), Verdict::New, "late by another stream, but never seen");
    assert_eq!(seen.judge(&at(2, 5)), Verdict::Copy);
    assert_eq!(seen.judge(&at(1, 9)), Verdict::OldTerm);
    assert_eq!(seen.judge(&at(3, 5)), Verdict::New, "a new term counts anew");
    let hello = FromMeta { term: Term(3), seq: 0, order: Order::Hello { cluster: "c".into() } };
    assert_eq!((seen.judge(&hello), seen.judge(&hello)), (Verdict::New, Verdict::New));
}

#[test]
fn memory_is_bounded_and_what_fell_out_counts_as_seen() {
    let mut seen = Seen::default();
    for seq in 1..=5000 {
        assert_eq!(seen.judge(&at(1, seq)), Verdict::New);
    }
    assert_eq!(seen.judge(&at(1, 1)), Verdict::Copy);
    assert_eq!(seen.judge(&at(1, 5000)), Verdict::Copy);
}
