//! Each way to end up with two writers, twice: with the safeguard against it nothing is lost or applied late, and
//! without it the very same story damages data. A safeguard is switched off from outside, where only a lab can: in the
//! kernel's tables, or in the server.
//!
//! | | the way | the safeguard |
//! |---|---|---|
//! | [`in_hand`] | a server hangs, or is cut off, or stands still, with calls in its hands | the storage's check |
//! | [`delayed`] | calls on their way across a move, a return, a change of path | the fence; closing old connections; old paths shut |
//! | [`flap`] | the route is flushed, and I/O falls to the private network | the fence at the local server |
//! | [`killed`] | Meta, or the host's agent, dies at any step of a move | records on disk, and all of the above |

mod catalogue;
mod delayed;
mod flap;
mod in_hand;
mod killed;

use crate::support::*;
use lab::handle::Report;
use lab::{Lab, Writer};
use reroute_common::table::{Client, Config, MAX_CLIENTS, pin};
use std::time::Duration;

/// Calls of the writer outstanding at once, into few slots: what is applied late is older than what stands there.
const OUTSTANDING: u64 = 8;

fn writer(lab: &Lab) -> Writer<'_> {
    paced_writer(lab, 16, 0)
}

/// One that issues a write at most every `interval_us`. What is late is hidden again where it meets a newer write of the
/// same slot on its way: fewer are, the slower it is and the more slots there are.
fn paced_writer(lab: &Lab, slots: u32, interval_us: u32) -> Writer<'_> {
    let (outstanding, slots, interval) =
        (OUTSTANDING.to_string(), slots.to_string(), interval_us.to_string());
    let flags =
        ["--outstanding", &outstanding, "--hot-slots", &slots, "--interval-us", &interval, "--expect-damage"];
    let writer = lab.writer(1, 1, &flags).expect("writer");
    writer.wait_writes(now(), 300, SOON).expect("writes");
    writer
}

fn tell(story: &str, safeguard: bool, result: &Report) {
    let with = if safeguard { "with" } else { "without" };
    println!("{story}, {with} the safeguard: {} lost, {} stale", result.lost_writes, result.stale_writes);
}

/// Stops the writer and judges: nothing wrong with the safeguard, something applied late without it.
fn judge(story: &str, safeguard: bool, writer: Writer) {
    let result = writer.stop().expect("the writer's result");
    tell(story, safeguard, &result);
    if safeguard {
        assert_eq!((result.lost_writes, result.stale_writes), (0, 0), "{story}: {result:#?}");
    } else {
        assert!(result.stale_writes > 0, "{story}: {result:#?}");
    }
}

/// Sets the mode in the kernel's table, behind the agent's back.
fn set_kernel_mode(lab: &Lab, node: &str, mode: u32) {
    let mut table = table::<Config>(lab, node, pin::CONFIG);
    let config = table.get(&0, 0).expect("config");
    table.set(0, Config { mode, ..config }, 0).expect("config");
}

/// What a node's kernel counts for host1.
fn host1(lab: &Lab, node: &str) -> Client {
    let table = table::<Client>(lab, node, pin::CLIENTS);
    let clients = (1..MAX_CLIENTS).filter_map(|slot| table.get(&slot, 0).ok());
    clients.into_iter().find(|c| c.host == 1).expect("host1 is registered")
}

/// Waits for a change in what a node's kernel counts for host1.
fn wait_count(lab: &Lab, node: &str, what: &str, count: impl Fn(&Client) -> u64, more_than: u64) {
    lab::wait_for(what, SOON, || {
        let now = count(&host1(lab, node));
        if now <= more_than {
            anyhow::bail!("{now}");
        }
        Ok(())
    })
    .expect(what);
}

/// Waits until no write has been completed for so long: what is outstanding is stuck where it is.
fn wait_stuck(writer: &Writer, quiet: Duration) {
    lab::wait_for("the writer to be stuck", SOON, || {
        let from = reroute_core::ids::BootNs(now().0 - quiet.as_nanos() as u64);
        match writer.gap(from, None)?.completed {
            0 => Ok(()),
            some => anyhow::bail!("{some} completed"),
        }
    })
    .expect("stuck");
}

/// Waits until host1 is logged in elsewhere than at `scvm`.
fn wait_moved(lab: &Lab, scvm: u32) -> (u32, reroute_core::proto::FenceProof) {
    let view = lab
        .wait_view("host1 served by another SCVM", SOON, |view| match login(view, 1) {
            Some((at, ..)) if at.0 != scvm => None,
            other => Some(format!("{other:?}")),
        })
        .expect("the login moves");
    let (at, _, proof) = login(&view, 1).expect("at");
    (at.0, proof)
}
