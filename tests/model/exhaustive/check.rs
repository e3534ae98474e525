//! Runs a search to its end, and says what it covered.

use super::adversary::{Move, SAFE, Search};
use super::story::{Safeguard, Story};
use super::world::World;
use stateright::{Checker, HasDiscoveries, Model};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// One search at a time: each uses both of CI's CPUs.
static TURN: Mutex<()> = Mutex::new(());

pub struct Found {
    states: usize,
    depth: usize,
    pub seen: Vec<&'static str>,
    trace: Option<String>,
    seconds: f64,
}

fn search(stories: Vec<Story>, until_found: bool) -> Found {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let begun = Instant::now();
    let checker = Search { stories }.checker().threads(2);
    let first = HasDiscoveries::AnyOf([SAFE].into());
    let checker = if until_found { checker.finish_when(first) } else { checker };
    let checker = checker.spawn_bfs().join();
    let trace = checker.discovery(SAFE).map(|path| told(path.into_vec()));
    let seen = checker.discoveries().keys().copied().filter(|name| *name != SAFE).collect();
    let seconds = begun.elapsed().as_secs_f64();
    drop(turn);
    Found { states: checker.unique_state_count(), depth: checker.max_depth(), seen, trace, seconds }
}

/// A path as text: every moment at which something is different from the one before, and every trouble.
fn told(path: Vec<(World, Option<Move>)>) -> String {
    let mut text = String::new();
    for (world, action) in path {
        text += &format!("  {world:?}\n");
        if let Some(Move::Trouble(trouble)) = action {
            text += &format!("  *** {trouble:?}\n");
        }
        if let Some(what) = world.violation() {
            text += &format!("  !!! {what}\n");
        }
    }
    text
}

/// More trouble than CI has time for: `cargo xtask model --depth N`.
fn deeper(stories: Vec<Story>) -> Vec<Story> {
    let depth = std::env::var("REROUTE_MODEL_DEPTH").ok().and_then(|d| d.parse::<u8>().ok()).unwrap_or(0);
    stories.into_iter().map(|s| Story { budget: s.budget.max(depth), ..s }).collect()
}

/// Everything within the bounds: never two servers, never a late call.
pub fn verify(name: &str, stories: Vec<Story>) -> Found {
    let stories = deeper(stories);
    let budget = stories.iter().map(|s| s.budget).max().unwrap_or(0);
    let kinds = stories.iter().map(|s| s.troubles.len()).max().unwrap_or(0);
    let rounds = stories.iter().map(|s| s.rounds).max().unwrap_or(0);
    let count = stories.len();
    let found = search(stories, false);
    println!(
        "model: {name}: {count} stories of up to {rounds} rounds, {budget} of {kinds} troubles: {} states, depth {}, {:.1} s",
        found.states, found.depth, found.seconds
    );
    if let Some(trace) = &found.trace {
        panic!("{name}: a counterexample\n{trace}");
    }
    found
}

/// Without the safeguard there is a counterexample; with it, in the same bounds, there is none.
pub fn needs(safeguard: Safeguard, story: Story) {
    let without = Story { off: Some(safeguard), ..story.clone() };
    let found = search(vec![without.clone()], true);
    let Some(trace) = found.trace else {
        panic!(
            "without {safeguard:?} nothing goes wrong in {} states: nothing shows that it is needed",
            found.states
        )
    };
    let last = trace.lines().rev().find(|l| l.contains("!!!")).unwrap_or_default();
    let troubles: Vec<&str> = trace.lines().filter(|l| l.contains("***")).collect();
    println!(
        "model: without {safeguard:?}: after {} states, {:.1} s:{}{last}",
        found.states,
        found.seconds,
        troubles.concat()
    );
    verify(&format!("with {safeguard:?}, the same"), vec![story]);
}
