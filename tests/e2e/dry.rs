//! Dry mode: a host that was just installed watches and says what it would do; an operator lets it begin.

use crate::support::*;
use lab::{Lab, Options};
use reroute_core::timeline::Event;

fn installed(name: &str) -> Lab {
    let options = Options::named(name).section("host1", "mode = \"dry\"");
    let lab = Lab::start(Options { mode: Some("shadow".into()), ..options }).expect("the lab starts");
    // Everybody's I/O goes by the private network, or where the old loop has sent it.
    lab.drive(1, 1).expect("a route of somebody else's");
    lab
}

fn would_move(lab: &Lab) -> Option<String> {
    let journal = lab.journal().expect("journal");
    journal.iter().rev().find_map(|e| match &e.event {
        Event::WouldMove { to, .. } if e.node == "host1" => Some(to.to_string()),
        _ => None,
    })
}

#[test]
fn a_host_that_was_just_installed_says_what_it_would_do_and_touches_nothing() {
    let lab = installed("dry");
    let before = lab.next_hop(1).expect("route");
    lab::wait_for("dry in the status", SOON, || {
        let status = lab.agent_status("host1")?;
        anyhow::ensure!(status["local"]["mode"] == "dry", "{status}");
        Ok(())
    })
    .expect("dry");
    lab.fault("server-killed", Some("scvm1")).expect("fault");
    lab::wait_for("what it would do", SOON, || {
        would_move(&lab).map(drop).ok_or_else(|| anyhow::anyhow!("nothing said yet"))
    })
    .expect("said");
    assert_eq!(lab.next_hop(1).expect("route"), before, "the route stands");
    assert_eq!(lab.login(1).expect("view"), None, "and nobody was logged in");
    // What cannot be is refused, and changes nothing.
    let again = lab.agent("host1", &["route", "dry"]).expect("it runs");
    assert_eq!(again.status.code(), Some(2), "{again:?}");
    let begun = lab.agent("host1", &["route", "auto"]).expect("it runs");
    assert!(begun.status.success(), "{begun:?}");
    lab::wait_for("auto in the status", SOON, || {
        let status = lab.agent_status("host1")?;
        anyhow::ensure!(status["local"]["mode"] == "auto", "{status}");
        Ok(())
    })
    .expect("auto");
}

#[test]
fn a_host_with_a_login_is_not_made_dry() {
    let lab = healthy(Options::named("notdry"));
    let refused = lab.agent("host1", &["route", "dry"]).expect("it runs");
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    let why = String::from_utf8_lossy(&refused.stderr);
    assert!(why.contains("route set"), "{why}");
}
