//! The old loop on host1, with a stand-in for Meta's session list (see [`crate::old_loop`]).

use super::{Peer, home, is_home, keep_running, own_program, stop, wait};
use crate::cases::System;
use crate::old_loop::{Line, What};
use crate::watch::Routes;
use anyhow::bail;
use lab::Lab;
use lab::control::Spec;
use lab::topology::{Node, PAIRS};
use reroute_agent::clock;
use reroute_core::ids::BootNs;
use std::time::Duration;

const LOOP: &str = "host1/loop";

pub struct Legacy {
    /// Meta's list, and each server's follower.
    around: Vec<Spec>,
    the_loop: Spec,
    routes: Routes,
}

/// It may leave home before it has heard of everybody: it is begun again.
const BEGINS: usize = 5;

impl Legacy {
    pub fn install(lab: &Lab) -> anyhow::Result<Legacy> {
        let program = own_program()?;
        let mut around = vec![Spec::new("meta/sessions", &[&program, "old-meta"])];
        for i in 1..=PAIRS {
            let node = Node::Scvm(i).to_string();
            let pidfile = lab.root_inside().join(&node).join("server.pid");
            let (id, pidfile) = (i.to_string(), pidfile.to_string_lossy().into_owned());
            around.push(Spec::new(
                format!("{node}/follower"),
                &[&program, "old-follower", "--id", &id, "--pidfile", &pidfile],
            ));
        }
        let the_loop = Spec::new(LOOP, &[&program, "old-loop", "--host", "1"]);
        let routes = Routes::watch(&lab.namespace("host1")?)?;
        Ok(Legacy { around, the_loop, routes })
    }

    fn lines(&self, lab: &Lab, from: BootNs) -> anyhow::Result<Vec<Line>> {
        let log = lab.node_log(LOOP)?;
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok());
        Ok(lines.filter(|line| line.at >= from).collect())
    }
}

impl Peer for Legacy {
    fn system(&self) -> System {
        System::Legacy
    }

    fn begin(&self, lab: &Lab) -> anyhow::Result<()> {
        for spec in &self.around {
            keep_running(lab, spec)?;
        }
        for _ in 0..BEGINS {
            home(lab)?;
            let begun = clock::now();
            keep_running(lab, &self.the_loop)?;
            wait("a round of the loop that finds everybody healthy", || {
                let lines = self.lines(lab, begun)?;
                let all = |line: &Line| matches!(&line.what, What::Round { healthy, .. } if healthy.len() == PAIRS as usize);
                match lines.iter().any(all) {
                    true => Ok(()),
                    false => bail!("{lines:?}"),
                }
            })?;
            // A server that has only just come back has no keepalive yet in its first rounds: it leaves home for that.
            if is_home(lab)? {
                return Ok(());
            }
            stop(lab, LOOP)?;
        }
        bail!("the loop has left home {BEGINS} times before anything was struck")
    }

    fn acted(&self, lab: &Lab, at: BootNs) -> anyhow::Result<Option<BootNs>> {
        let lines = self.lines(lab, at)?;
        let verdict = lines.iter().find(|line| matches!(line.what, What::Verdict { .. })).map(|line| line.at);
        // What an operator did is in no log.
        Ok(verdict.or_else(|| self.routes.first(at)))
    }

    /// ROUTE mode: the loop is off, and the operator's command deletes and adds the route.
    fn planned(&self, lab: &Lab) -> anyhow::Result<()> {
        stop(lab, LOOP)?;
        let to = Node::Scvm(2).storage().to_string();
        super::run_on_host(lab, &[&own_program()?, "old-route", &to])
    }

    fn end(&self, lab: &Lab) -> anyhow::Result<()> {
        stop(lab, LOOP)?;
        home(lab)
    }

    fn round(&self) -> Duration {
        Duration::from_secs(3)
    }
}
