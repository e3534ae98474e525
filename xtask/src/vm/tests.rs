//! What runs in a guest: the agent; those of the `programs` tests that say something about a kernel; a lab, and the
//! tests of the kernel's NFS client in it.

use crate::workspace;
use anyhow::{Context, bail};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::Stdio;

/// Run by their full names, one after the other; a name that no test has any more fails the run. What counts without
/// the kernel's part in it is tested on this machine alone, and so is what is about microseconds: under emulation
/// everything takes some tens of times longer.
pub const PROGRAMS: &[&str] = &[
    // Every way of attaching, with a client and a server that talk on across restarts.
    "lasting::traffic_in_native_mode_survives_restarts",
    "lasting::traffic_in_generic_mode_survives_restarts",
    "lasting::traffic_by_tc_survives_restarts",
    "lasting::traffic_by_clsact_survives_restarts",
    "lasting::filters_go_with_their_directory",
    "lasting::filters_go_from_interfaces_no_longer_watched",
    "lasting::links_give_way_to_filters",
    // What is pinned: arrays mapped into memory, the timer, programs.
    "lasting::a_restart_adopts_counters_admission_slots_and_the_timer",
    "lasting::a_start_that_fails_leaves_nothing_behind",
    // The timer and the ring buffer.
    "stalls::a_hung_server_is_told_once_with_its_numbers_and_so_is_its_end",
    // Sockets looked up, packets rewritten and sent back.
    "pulses::a_reply_tells_what_the_kernel_sees",
    "pulses::the_shield_holds_back_a_dead_servers_farewell",
    // Loads of every length from every offset; loops; what is held.
    "records::a_record_split_at_every_byte_is_one_call",
    "records::segments_that_changed_places_leave_no_orphan",
    "counting::tags_options_and_padding_are_seen_through",
    // Admission by commands, from two CPUs at once.
    "admission::calls_race_with_a_fence_and_none_slips_through",
];

/// The same of `kernel_client`.
pub const NFS_CLIENT: &[&str] = &[
    "sunrpc::a_destroyed_socket_is_replaced_at_once",
    "sunrpc::a_reset_is_answered_by_a_connect_at_once",
    "sunrpc::a_refused_connect_lets_the_call_sleep",
    "sunrpc::a_server_that_ends_is_met_again_by_a_refusal",
    "sunrpc::a_connect_that_nobody_answers_goes_on_by_the_new_route",
    "sunrpc::a_connect_that_is_destroyed_lets_the_call_sleep",
    "sunrpc::an_old_connection_at_the_server_costs_a_second",
    "moves::the_client_survives_moves",
];

/// Binaries of this workspace: the agent, the lab's programs, tests.
pub const BINARIES: &[&str] = &["reroute-agent", "reroute-lab", "reroute-nfsd", "programs", "kernel_client"];

/// Where each of [`BINARIES`] lies.
pub type Programs = BTreeMap<&'static str, PathBuf>;

/// Builds them as `cargo xtask test` does.
pub fn build() -> anyhow::Result<Programs> {
    let mut command = workspace::cargo(&[
        "build",
        "--release",
        "--workspace",
        "--bins",
        "--test=programs",
        "--test=kernel_client",
        "--message-format=json-render-diagnostics",
    ]);
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot run cargo")?;
    let mut programs = Programs::new();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let message: serde_json::Value = serde_json::from_str(&line?)?;
            let Some(executable) = message["executable"].as_str() else { continue };
            let name = BINARIES.iter().find(|name| message["target"]["name"] == **name);
            programs.extend(name.map(|name| (*name, PathBuf::from(executable))));
        }
    }
    if !child.wait()?.success() {
        bail!("the build failed; if something is missing on this machine, run `cargo xtask setup`");
    }
    match BINARIES.iter().find(|name| !programs.contains_key(*name)) {
        Some(name) => bail!("cargo names no {name}"),
        None => Ok(programs),
    }
}
